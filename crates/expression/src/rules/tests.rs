use apimachinery::field_path::Path;
use serde_json::{Value as Json, json};

use super::*;

fn schema(properties: Json, rules: Json) -> Json {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties,
        "x-kubernetes-validations": rules}}})
}

fn errors(schema: &Json, new: Json, old: Option<Json>) -> Vec<String> {
    let wrap =
        |spec: Json| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "spec": spec});
    let (new, old) = (wrap(new), old.map(wrap));
    let findings = Rules::new(schema).unwrap().validate(&new, old.as_ref());
    let shown = findings.errors.iter().map(ToString::to_string);
    shown.chain(findings.warnings.iter().map(|w| format!("warning: {w}"))).collect()
}

#[test]
fn evaluates_rules() {
    let int = json!({"type": "integer"});
    let text = json!({"type": "string"});
    let properties = json!({"a": int, "b": int, "s": text, "no-dash": int, "namespace": text,
        "when": {"type": "string", "format": "date-time"}, "long": {"type": "string", "format": "duration"},
        "port": {"x-kubernetes-int-or-string": true},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": int},
        "map": {"type": "object", "additionalProperties": int}});
    let one = |rule: Json| schema(properties.clone(), json!([rule]));
    for (rule, new, old, want) in [
        (json!({"rule": "self.a < self.b"}), json!({"a": 1, "b": 2}), None, vec![]),
        (
            json!({"rule": "self.a < self.b"}),
            json!({"a": 2, "b": 2}),
            None,
            vec!["spec: Invalid value: failed rule: self.a < self.b"],
        ),
        (
            json!({"rule": "self.a < self.b", "message": "a must be less"}),
            json!({"a": 2, "b": 2}),
            None,
            vec!["spec: Invalid value: a must be less"],
        ),
        (
            json!({"rule": "self.a < self.b", "messageExpression": "'a is %d'.format([self.a])", "fieldPath": ".a",
                "reason": "FieldValueForbidden"}),
            json!({"a": 2, "b": 2}),
            None,
            vec!["spec.a: Forbidden: a is 2"],
        ),
        (
            json!({"rule": "self.a < self.b", "reason": "FieldValueRequired", "message": "m"}),
            json!({"a": 2, "b": 2}),
            None,
            vec!["spec: Required value: m"],
        ),
        (
            json!({"rule": "self.a < self.b"}),
            json!({"a": 1}),
            None,
            vec!["spec: Invalid value: \"object\": no such key: b evaluating rule: self.a < self.b"],
        ),
        (json!({"rule": "!has(self.b) || self.a < self.b"}), json!({"a": 1}), None, vec![]),
        (json!({"rule": "self.no__dash__dash == 1"}), json!({"no-dash": 1}), None, vec![]),
        (json!({"rule": "self.__namespace__ == 'x'"}), json!({"namespace": "x"}), None, vec![]),
        (
            json!({"rule": "self.when > timestamp('2020-01-01T00:00:00Z')"}),
            json!({"when": "2021-01-01T00:00:00Z"}),
            None,
            vec![],
        ),
        (json!({"rule": "self.long >= duration('1h')"}), json!({"long": "60m"}), None, vec![]),
        (
            json!({"rule": "type(self.port) == int ? self.port > 1 : self.port == 'http'"}),
            json!({"port": "http"}),
            None,
            vec![],
        ),
        (
            json!({"rule": "self.port > 1"}),
            json!({"port": "http"}),
            None,
            vec![
                "spec: Invalid value: \"object\": 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: self.port > 1",
            ],
        ),
        (json!({"rule": "self.set == [2, 1]"}), json!({"set": [1, 2]}), None, vec![]),
        (json!({"rule": "(self.set + [1, 3]).size() == 3"}), json!({"set": [1, 2]}), None, vec![]),
        (
            json!({"rule": "self.map.all(k, k.startsWith('x') && self.map[k] > 0)"}),
            json!({"map": {"x": 1}}),
            None,
            vec![],
        ),
        // Rules about changes.
        (json!({"rule": "self.a >= oldSelf.a"}), json!({"a": 1}), None, vec![]),
        (
            json!({"rule": "self.a >= oldSelf.a"}),
            json!({"a": 1}),
            Some(json!({"a": 2})),
            vec!["spec: Invalid value: failed rule: self.a >= oldSelf.a"],
        ),
        (
            json!({"rule": "oldSelf.hasValue() || self.a == 1", "optionalOldSelf": true}),
            json!({"a": 2}),
            None,
            vec!["spec: Invalid value: failed rule: oldSelf.hasValue() || self.a == 1"],
        ),
        (
            json!({"rule": "oldSelf.hasValue() || self.a == 1", "optionalOldSelf": true}),
            json!({"a": 2}),
            Some(json!({"a": 3})),
            vec![],
        ),
        // What was so before passes with a warning.
        (
            json!({"rule": "self.a > 5"}),
            json!({"a": 1}),
            Some(json!({"a": 1})),
            vec!["warning: spec: Invalid value: failed rule: self.a > 5"],
        ),
        (
            json!({"rule": "self.a > 5"}),
            json!({"a": 1, "b": 1}),
            Some(json!({"a": 1})),
            vec!["spec: Invalid value: failed rule: self.a > 5"],
        ),
    ] {
        let got = errors(&one(rule.clone()), new, old);
        assert_eq!(got, want, "{rule}");
    }
}

#[test]
fn lists_of_maps_correlate_by_key() {
    let item = json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "fieldPath": ".v"}]});
    let properties = json!({"list": {"type": "array", "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["k"], "items": item}});
    let schema = schema(properties, json!([]));
    let got = errors(
        &schema,
        json!({"list": [{"k": "new", "v": 0}, {"k": "b", "v": 1}, {"k": "a", "v": 2}]}),
        Some(json!({"list": [{"k": "a", "v": 1}, {"k": "b", "v": 2}]})),
    );
    assert_eq!(got, ["spec.list[1].v: Invalid value: failed rule: self.v >= oldSelf.v"]);
}

#[test]
fn root_rules_see_the_name() {
    let schema =
        json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name == 'other'"}]});
    assert_eq!(
        errors(&schema, json!({}), None),
        ["<nil>: Invalid value: failed rule: self.metadata.name == 'other'"]
    );
}

#[test]
fn budget_ends_evaluation() {
    let schema = schema(
        json!({"l": {"type": "array", "items": {"type": "integer"}}}),
        json!([{"rule": "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c > 0)))"}, {"rule": "false"}]),
    );
    let many: Vec<i64> = (1..200).collect();
    let got = errors(&schema, json!({"l": many}), None);
    assert_eq!(got.len(), 1);
    assert!(
        got[0].contains("no further validation rules will be run due to call cost exceeds limit for rule"),
        "{got:?}"
    );
}

fn checked(schema: &Json) -> Vec<String> {
    check(schema, &Path::new("schema")).iter().map(ToString::to_string).collect()
}

#[test]
fn definitions_are_checked() {
    let properties = json!({"a": {"type": "integer"}, "s": {"type": "string"}, "l": {"type": "array", "items": {"type": "string"}}});
    let at = "schema.properties[spec].x-kubernetes-validations[0]";
    for (rule, want) in [
        (json!({"rule": "self.a > 0"}), String::new()),
        (json!({"rule": " "}), format!("{at}.rule: Required value: rule is not specified")),
        (
            json!({"rule": "true", "message": " "}),
            format!("{at}.message: Invalid value: \" \": must be non-empty if specified"),
        ),
        (
            json!({"rule": "true ||\nfalse"}),
            format!("{at}.message: Required value: message must be specified if rule contains line breaks"),
        ),
        (
            json!({"rule": "true", "reason": "X"}),
            format!(
                "{at}.reason: Unsupported value: \"X\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\""
            ),
        ),
        (
            json!({"rule": "true", "fieldPath": ".none"}),
            format!("{at}.fieldPath: Invalid value: \".none\": must be a valid path"),
        ),
        (
            json!({"rule": "self.a"}),
            format!(
                "{at}.rule: Invalid value: {{\"rule\":\"self.a\"}}: cel expression must evaluate to a bool"
            ),
        ),
        (
            json!({"rule": "self.none == 1"}),
            format!(
                "{at}.rule: Invalid value: {{\"rule\":\"self.none == 1\"}}: compilation failed: ERROR: <input>:1:5: undefined field 'none'\n | self.none == 1\n | ....^"
            ),
        ),
        (
            json!({"rule": "true", "optionalOldSelf": true}),
            format!(
                "{at}.optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"
            ),
        ),
        (
            json!({"rule": "true", "messageExpression": "1"}),
            format!(
                "{at}.messageExpression: Invalid value: {{\"messageExpression\":\"1\",\"rule\":\"true\"}}: messageExpression must evaluate to a string"
            ),
        ),
        (
            json!({"rule": "self.l.all(x, self.l.all(y, x == y))"}),
            format!(
                "{at}.rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)\nschema.properties[spec].x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema\nschema: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
            ),
        ),
    ] {
        let got = checked(&schema(properties.clone(), json!([rule.clone()]))).join("\n");
        assert_eq!(got, want, "{rule}");
    }
    let items = json!({"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > oldSelf"}]}});
    assert_eq!(
        checked(&schema(json!({"l": items}), json!([]))),
        [
            "schema.properties[spec].properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self > oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within schema.properties[spec].properties[l]"
        ]
    );
}

fn cost(schema: &Json, rule: &str) -> u64 {
    let decl = declare(schema, false, "selfType").unwrap();
    let environment = Environment::default().variable(SELF, decl.ty()).variable(OLD_SELF, decl.ty());
    Program::compile(rule, &environment).unwrap().estimate(Some(&decl)).max
}

/// The figures are upstream's.
#[test]
fn estimates_costs() {
    let item = |kind: &str| match kind {
        "int-or-string" => json!({"x-kubernetes-int-or-string": true}),
        "duration" | "date" | "date-time" | "byte" => json!({"type": "string", "format": kind}),
        "numbers" => json!({"type": "array", "items": {"type": "number"}}),
        kind => json!({"type": kind}),
    };
    // Of a list, a map or a string: without a limit, and with one.
    for (of, kind, rule, open, limit, limited) in [
        ("array", "number", "self.all(x, true)", 4718591, 10, 32),
        ("array", "string", "self.all(x, true)", 3145727, 20, 62),
        ("array", "boolean", "self.all(x, true)", 1887437, 5, 17),
        ("array", "numbers", "self.all(x, true)", 3145727, 100, 302),
        ("map", "number", "self.all(x, true)", 1348169, 10, 32),
        ("map", "string", "self.all(x, true)", 1179647, 3, 11),
        ("map", "boolean", "self.all(x, true)", 943718, 100, 302),
        ("string", "", "self.contains('test')", 314574, 10, 5),
        ("string", "", "self.startsWith('test')", 2, 15, 2),
        ("string", "", "size(self + \"hello\") > size(\"hello\")", 314578, 4, 7),
        ("array", "number", "self[1] == 0.0", 2, 5000, 2),
        ("array", "string", "self[1] == self[1]", 314577, 8, 314577),
        ("array", "number", "self.all(x, self.all(y, true))", 7421701914624, 10, 352),
        ("array", "number", "self.all(x, self.all(y, self.all(z, true)))", 11673320338545967103, 10, 3552),
        ("string", "", "self.matches(\"x\")", 314574, 50, 22),
        ("string", "", "\"\".matches(\"(((((((((())))))))))[0-9]\")", 7, 10, 7),
        ("string", "", "self.matches(\"\")", 1, 100, 1),
        ("map", "number", "self[\"x\"] == 0.0", 2, 0, 2),
        ("string", "", "self == \"x\"", 2, 0, 1),
        ("array", "number", "self.all(x, x == 0.0)", 6291454, 3 * 1024 * 2048, 25165826),
        ("array", "int-or-string", "self.all(x, true)", 4718591, 10, 32),
        ("array", "int-or-string", "self[0] == 5", 3, 10, 3),
        ("array", "boolean", "self[0] == false", 2, 25, 2),
        ("array", "numbers", "self[0][0] == -1.0", 3, 51, 3),
        ("array", "duration", "self.all(x, true)", 2359295, 5, 17),
        ("array", "duration", "self[0].getHours() == 2", 4, 525, 4),
        ("array", "date", "self.all(x, true)", 725936, 15, 47),
        ("array", "date-time", "self.all(x, true)", 428963, 25, 77),
        ("array", "date-time", "self[2].getMinutes() == 45", 4, 99, 4),
        ("map", "int-or-string", "self.all(x, true)", 1348169, 15, 47),
        ("map", "duration", "self.all(x, true)", 1048577, 50, 152),
        ("map", "date", "self.all(x, true)", 524288, 50, 152),
        ("map", "date-time", "self.all(x, true)", 349526, 50, 152),
        ("string", "", "self.find('[0-9]+') == ''", 629147, 10, 11),
        ("map", "integer", "oldSelf.size() == self.size()", 5, 10, 5),
        ("map", "date-time", "self[\"a\"] == self[\"b\"]", 8, 10, 8),
    ] {
        let made = |limit: Option<u64>| {
            let mut schema = match of {
                "array" => json!({"type": "array", "items": item(kind)}),
                "map" => json!({"type": "object", "additionalProperties": item(kind)}),
                _ => json!({"type": "string"}),
            };
            if let Some(limit) = limit {
                let name = match of {
                    "array" => "maxItems",
                    "map" => "maxProperties",
                    _ => "maxLength",
                };
                schema[name] = limit.into();
            }
            schema
        };
        assert_eq!(cost(&made(None), rule), open, "{of} of {kind}: {rule}");
        assert_eq!(cost(&made(Some(limit)), rule), limited, "{of} of {kind}, limited: {rule}");
    }
    let map = json!({"type": "object", "additionalProperties": {"type": "number"}});
    assert_eq!(cost(&map, "has(self.x)"), 1);
    let named = json!({"type": "string", "enum": ["A", "B", "C", "LongValue"]});
    assert_eq!(cost(&named, "self.contains('A')"), 2);
}
