//! `tables/types.tsv` to static schemas.
//!
//! A type is a line `T name go-name a? group/version/Kind;…` and its fields, sorted by name:
//! `name kind flags protobuf-path list patch default`.
//!
//! Kinds: `s` string, `b` boolean, `i` int32, `l` int64, `f` double (each optionally `:go-name`), `y` bytes,
//! `q` Quantity, `t` Time, `u` MicroTime, `d` Duration, `x` IntOrString, `r` RawExtension, `v` FieldsV1, `j` any JSON,
//! `E` a list of strings that is a message of its own, `A`/`B`/`S` the JSON schema unions, `@name` a type, `[]` a list
//! of, `{}` a map of. Flags: `p` pointer, `o` omitempty, `z` omitzero, `r` required. The protobuf path has one number
//! per message on the way (inlined structs are nested messages). List: `a` atomic, `s` set, `g` granular,
//! `m:key,key` map.

use std::collections::HashMap;
use std::fmt::Write;

#[derive(Default)]
struct Generator<'a> {
    types: HashMap<&'a str, usize>,
    /// Schemas that are no types of their own, by their expression.
    anonymous: HashMap<String, usize>,
    anonymous_order: Vec<String>,
    keys: Vec<Vec<String>>,
    /// Arguments of each type's schema but its flags: names, fields, indexes.
    parts: HashMap<&'a str, (String, String)>,
}

pub fn generate(table: &str) -> String {
    let mut generator = Generator::default();
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split('\t').collect()).collect();
    for row in rows.iter().filter(|r| r[0] == "T") {
        let next = generator.types.len();
        generator.types.insert(row[1], next);
    }
    generator.collect_parts(&rows);
    let mut out = String::new();
    let mut names: Vec<(&str, usize)> = vec![];
    let mut kinds: Vec<(String, usize)> = vec![];
    let mut at = 0;
    while at < rows.len() {
        let head = &rows[at];
        let column = |i: usize| head.get(i).copied().unwrap_or("");
        let index = generator.types[head[1]];
        names.push((head[1], index));
        for gvk in column(4).split(';').filter(|s| !s.is_empty()) {
            let parts: Vec<&str> = gvk.split('/').collect();
            let (group, version, kind) = match parts[..] {
                [version, kind] => ("", version, kind),
                [group, version, kind] => (group, version, kind),
                _ => panic!("{gvk}"),
            };
            kinds.push((format!("({group:?}, {version:?}, {kind:?}"), index));
        }
        at += 1;
        let mut fields = String::new();
        let first = at;
        while at < rows.len() && rows[at][0] != "T" {
            fields.push_str(&generator.field(&rows[at]));
            at += 1;
        }
        let count = at - first;
        let flags = if column(3) == "a" { "ATOMIC" } else { "0" };
        let (names, fields_and_indexes) = &generator.parts[head[1]];
        writeln!(
            out,
            "static F{index}: [Field; {count}] = [\n{fields}];\nstatic T{index}: Schema = Schema::named({names}, {flags}, \
             {fields_and_indexes});"
        )
        .expect("a String takes all");
    }
    for (i, expression) in generator.anonymous_order.iter().enumerate() {
        writeln!(out, "static A{i}: Schema = {expression};").expect("a String takes all");
    }
    for (i, keys) in generator.keys.iter().enumerate() {
        writeln!(out, "static K{i}: [Cow<'static, str>; {}] = [{}];", keys.len(), keys.join(", "))
            .expect("a String takes all");
    }
    names.sort_unstable();
    kinds.sort_unstable();
    out.push_str("static NAMES: &[(&str, &Schema)] = &[\n");
    for (name, index) in names {
        writeln!(out, "({name:?}, &T{index}),").expect("a String takes all");
    }
    out.push_str("];\nstatic KINDS: &[(&str, &str, &str, &Schema)] = &[\n");
    for (head, index) in kinds {
        writeln!(out, "{head}, &T{index}),").expect("a String takes all");
    }
    out.push_str("];\n");
    out
}

/// By (outermost) protobuf number, the index plus one of a field that has it; and the indexes of the fields that Go
/// always writes.
fn indexes(rows: &[Vec<&str>]) -> (Vec<u8>, Vec<u8>) {
    let (mut numbers, mut always) = (vec![0u8], vec![]);
    for (i, row) in rows.iter().enumerate() {
        let column = |i: usize| row.get(i).copied().unwrap_or("");
        let Some(number) = column(3).split('.').next().and_then(|n| n.parse::<usize>().ok()) else {
            continue;
        };
        if numbers.len() <= number {
            numbers.resize(number + 1, 0);
        }
        let i = u8::try_from(i).expect("few fields");
        numbers[number] = i + 1;
        let flags = column(2);
        // Quantities and times are structs in Go, so `omitempty` does not leave them out.
        let written = match column(1).as_bytes()[0] {
            b'@' | b'q' | b't' | b'u' => true,
            b's' | b'b' | b'i' | b'l' | b'f' | b'[' | b'{' => !flags.contains('o'),
            _ => false,
        };
        if written && !flags.contains(['p', 'z']) {
            always.push(i);
        }
    }
    (numbers, always)
}

impl<'a> Generator<'a> {
    fn collect_parts(&mut self, rows: &[Vec<&'a str>]) {
        for members in rows.chunk_by(|_, next| next[0] != "T") {
            let (head, fields) = (&members[0], &members[1..]);
            let (numbers, always) = indexes(fields);
            let index = self.types[head[1]];
            let go = head.get(2).copied().unwrap_or("");
            let parts = (format!("{:?}, {go:?}", head[1]), format!("&F{index}, &{numbers:?}, &{always:?}"));
            self.parts.insert(head[1], parts);
        }
    }

    fn field(&mut self, row: &[&'a str]) -> String {
        let column = |i: usize| row.get(i).copied().unwrap_or("");
        let schema = self.schema(column(1), column(4));
        let mut flags: Vec<&str> = column(2)
            .chars()
            .map(|c| match c {
                'p' => "POINTER",
                'o' => "OMIT_EMPTY",
                'z' => "OMIT_ZERO",
                'r' => "REQUIRED",
                other => panic!("flag {other}"),
            })
            .collect();
        if flags.is_empty() {
            flags.push("0");
        }
        let mut path: Vec<String> =
            column(3).split('.').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        path.resize(4, "0".into());
        let (strategy, merge_key) = column(5).split_once(':').unwrap_or((column(5), ""));
        format!(
            "Field::fixed({:?}, &{schema}, {}, [{}], {strategy:?}, {merge_key:?}, {:?}),\n",
            row[0],
            flags.join(" | "),
            path.join(", "),
            column(6)
        )
    }

    fn named(&mut self, expression: String) -> String {
        if let Some(i) = self.anonymous.get(&expression) {
            return format!("A{i}");
        }
        let i = self.anonymous_order.len();
        self.anonymous.insert(expression.clone(), i);
        self.anonymous_order.push(expression);
        format!("A{i}")
    }

    fn schema(&mut self, kind: &str, list: &str) -> String {
        let atomic = match list {
            "a" => "ATOMIC",
            "g" => "GRANULAR",
            _ => "0",
        };
        if let Some(name) = kind.strip_prefix('@').filter(|_| list == "g") {
            // Where the field says otherwise than its type.
            let (names, rest) = self.parts.get(name).unwrap_or_else(|| panic!("no type {name}")).clone();
            return self.named(format!("Schema::named({names}, GRANULAR, {rest})"));
        }
        if let Some(name) = kind.strip_prefix('@') {
            let index = self.types.get(name).unwrap_or_else(|| panic!("no type {name}"));
            return format!("T{index}");
        }
        if let Some(items) = kind.strip_prefix("[]") {
            let items = self.schema(items, "");
            let list = match list {
                "s" => "ListType::Set".into(),
                _ if list.starts_with("m:") => {
                    let keys: Vec<String> =
                        list[2..].split(',').map(|k| format!("Cow::Borrowed({k:?})")).collect();
                    let i = self.keys.iter().position(|k| *k == keys).unwrap_or_else(|| {
                        self.keys.push(keys);
                        self.keys.len() - 1
                    });
                    format!("ListType::Map(Cow::Borrowed(&K{i}))")
                }
                _ => "ListType::Atomic".into(),
            };
            return self.named(format!("Schema::list(&{items}, {list})"));
        }
        if let Some(values) = kind.strip_prefix("{}") {
            let values = self.schema(values, "");
            return self.named(format!("Schema::map(&{values}, {atomic})"));
        }
        if kind == "E" {
            let items = self.schema("s", "");
            return self.named(format!("Schema::message_list(&{items})"));
        }
        let (kind, go) = kind.split_once(':').unwrap_or((kind, ""));
        let variant = match kind {
            "s" => "String",
            "b" => "Bool",
            "i" => "Int32",
            "l" => "Int64",
            "f" => "Double",
            "y" => "Bytes",
            "q" => "Quantity",
            "t" => "Time",
            "u" => "MicroTime",
            "d" => "Duration",
            "x" => "IntOrString",
            "r" => "Raw",
            "v" => "FieldsV1",
            "j" => "Any",
            "A" => "SchemaOrArray",
            "B" => "SchemaOrBool",
            "S" => "SchemaOrStringArray",
            other => panic!("kind {other}"),
        };
        self.named(format!("Schema::scalar(Kind::{variant}, {go:?})"))
    }
}
