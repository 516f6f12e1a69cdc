//! Functions of text.

use regex::Regex;

use super::{str_of, strings_of};
use crate::value::{Error, List, Value, fail, no_overload};

pub fn call<'a>(
    function: &str,
    args: &[Value<'a>],
    pattern: Option<&Regex>,
) -> Option<Result<Value<'a>, Error>> {
    if function == "join" {
        return Some(join(args));
    }
    let first = str_of(args.first()?)?;
    let text = |i: usize| args.get(i).and_then(str_of);
    let int = |i: usize| match args.get(i) {
        Some(Value::Int(n)) => Some(*n),
        _ => None,
    };
    Some(match (function, args.len()) {
        ("contains", 2) => Ok(Value::Bool(first.contains(text(1)?))),
        ("startsWith", 2) => Ok(Value::Bool(first.starts_with(text(1)?))),
        ("endsWith", 2) => Ok(Value::Bool(first.ends_with(text(1)?))),
        ("matches", 2) => with_pattern(pattern, text(1)?, |p| Value::Bool(p.is_match(first))),
        ("find", 2) => with_pattern(pattern, text(1)?, |p| {
            p.find(first).map(|m| m.as_str()).unwrap_or_default().to_owned().into()
        }),
        ("findAll", 2 | 3) => {
            let most = match args.get(2) {
                None => usize::MAX,
                Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
                Some(_) => return Some(no_overload()),
            };
            with_pattern(pattern, text(1)?, |p| {
                strings_of(p.find_iter(first).take(most).map(|m| m.as_str().to_owned()))
            })
        }
        ("charAt", 2) => char_at(first, int(1)?),
        ("indexOf", 2) => Ok(Value::Int(index_of(first, text(1)?, 0))),
        ("indexOf", 3) => {
            let (needle, from) = (text(1)?, int(2)?);
            if needle.is_empty() {
                return Some(Ok(Value::Int(from)));
            }
            if from < 0 || from > first.chars().count() as i64 {
                return Some(fail(format!("index out of range: {from}")));
            }
            Ok(Value::Int(index_of(first, needle, from as usize)))
        }
        ("lastIndexOf", 2) => {
            let length = first.chars().count();
            Ok(Value::Int(last_index_of(first, text(1)?, length)))
        }
        ("lastIndexOf", 3) => {
            let (needle, from) = (text(1)?, int(2)?);
            if needle.is_empty() {
                return Some(Ok(Value::Int(from)));
            }
            if from < 0 || from > first.chars().count() as i64 {
                return Some(fail(format!("index out of range: {from}")));
            }
            Ok(Value::Int(last_index_of(first, needle, from as usize)))
        }
        ("lowerAscii", 1) => Ok(first.to_ascii_lowercase().into()),
        ("upperAscii", 1) => Ok(first.to_ascii_uppercase().into()),
        ("trim", 1) => Ok(first.trim_matches(is_space).to_owned().into()),
        ("replace", 3) => replace(first, text(1)?, text(2)?, -1),
        ("replace", 4) => replace(first, text(1)?, text(2)?, int(3)?),
        ("split", 2) => Ok(split(first, text(1)?, -1)),
        ("split", 3) => Ok(split(first, text(1)?, int(2)?)),
        ("substring", 2) => {
            let length = first.chars().count() as i64;
            let from = int(1)?;
            if from < 0 || from > length {
                return Some(fail(format!("index out of range: {from}")));
            }
            Ok(first.chars().skip(from as usize).collect::<String>().into())
        }
        ("substring", 3) => substring(first, int(1)?, int(2)?),
        ("strings.quote", 1) => Ok(quote(first).into()),
        ("format", 2) => match &args[1] {
            Value::List(values) => super::format::format(first, values).map(Value::from),
            _ => no_overload(),
        },
        _ => return None,
    })
}

/// Unicode's white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || c == '\u{180e}'
}

fn with_pattern<'a>(
    compiled: Option<&Regex>,
    source: &str,
    f: impl FnOnce(&Regex) -> Value<'a>,
) -> Result<Value<'a>, Error> {
    if let Some(compiled) = compiled {
        return Ok(f(compiled));
    }
    match Regex::new(source) {
        Ok(pattern) => Ok(f(&pattern)),
        Err(e) => fail(format!("Illegal regex: {e}")),
    }
}

fn char_at<'a>(text: &str, at: i64) -> Result<Value<'a>, Error> {
    let length = text.chars().count() as i64;
    if at < 0 || at > length {
        return fail(format!("index out of range: {at}"));
    }
    Ok(text.chars().nth(at as usize).map(String::from).unwrap_or_default().into())
}

/// Places are counted in characters.
fn index_of(text: &str, needle: &str, from: usize) -> i64 {
    let start = text.char_indices().nth(from).map_or(text.len(), |(i, _)| i);
    match text[start..].find(needle) {
        Some(found) => (from + text[start..start + found].chars().count()) as i64,
        None => -1,
    }
}

fn last_index_of(text: &str, needle: &str, from: usize) -> i64 {
    if needle.is_empty() {
        return text.chars().count() as i64;
    }
    let most = text.char_indices().nth(from).map_or(text.len(), |(i, _)| i);
    let mut found = None;
    for (count, (i, _)) in text.char_indices().enumerate() {
        if i > most {
            break;
        }
        if text[i..].starts_with(needle) {
            found = Some(count);
        }
    }
    found.map_or(-1, |c| c as i64)
}

fn replace<'a>(text: &str, old: &str, new: &str, most: i64) -> Result<Value<'a>, Error> {
    let out = if most < 0 { text.replace(old, new) } else { text.replacen(old, new, most as usize) };
    Ok(out.into())
}

fn split<'a>(text: &str, by: &str, most: i64) -> Value<'a> {
    if most == 0 {
        return Value::list(Vec::new());
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if by.is_empty() {
        let mut parts: Vec<String> = Vec::new();
        for (i, c) in text.char_indices() {
            if parts.len() + 1 == most {
                parts.push(text[i..].to_owned());
                break;
            }
            parts.push(c.to_string());
        }
        return strings_of(parts);
    }
    strings_of(text.splitn(most, by).map(str::to_owned))
}

fn substring<'a>(text: &str, from: i64, to: i64) -> Result<Value<'a>, Error> {
    let length = text.chars().count() as i64;
    if from > to {
        return fail(format!("invalid substring range. start: {from}, end: {to}"));
    }
    if from < 0 || from > length {
        return fail(format!("index out of range: {from}"));
    }
    if to < 0 || to > length {
        return fail(format!("index out of range: {to}"));
    }
    Ok(text.chars().skip(from as usize).take((to - from) as usize).collect::<String>().into())
}

fn join<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let (list, separator): (&List<'a>, &str) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), separator] => match str_of(separator) {
            Some(separator) => (list, separator),
            None => return no_overload(),
        },
        _ => return no_overload(),
    };
    let mut out = String::new();
    for (i, value) in list.iter().enumerate() {
        let Some(text) = str_of(&value) else {
            return fail(format!("join: invalid input: {}", super::shown(&value)));
        };
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
    }
    Ok(out.into())
}

fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
