//! YAML by way of JSON, as upstream reads it: YAML 1.1 booleans, string keys, one document.

use serde_json::Value;

use super::DecodeError;

/// The document as JSON text, and complaints about repeated keys.
pub fn to_json(bytes: &[u8]) -> Result<(Vec<u8>, Vec<String>), DecodeError> {
    // Clients like to send JSON under YAML's name.
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
        && super::json::decode_any(bytes).is_ok()
    {
        return Ok((bytes.to_vec(), vec![]));
    }
    let text = String::from_utf8_lossy(bytes);
    let text = first_document(&text);
    let parse = |policy| {
        let options = serde_saphyr::options! { duplicate_keys: policy, with_snippet: false };
        serde_saphyr::from_str_with_options::<Value>(text, options)
    };
    let (value, complaints) = match parse(serde_saphyr::DuplicateKeyPolicy::Error) {
        Ok(value) => (value, vec![]),
        Err(first) => match parse(serde_saphyr::DuplicateKeyPolicy::LastWins) {
            Ok(value) => (
                value,
                vec![format!("yaml: unmarshal errors:\n  {}", repeated_keys(text, first).join("\n  "))],
            ),
            Err(e) => {
                let why = explain(text, &e);
                return Err(DecodeError::new(format!("error converting YAML to JSON: yaml: {why}")));
            }
        },
    };
    Ok((super::encode_json(&value), complaints))
}

/// Only the first document of a stream counts.
fn first_document(text: &str) -> &str {
    let mut at = 0;
    let mut begun = false;
    for line in text.split_inclusive('\n') {
        let mark = |mark: &str| {
            line.strip_prefix(mark).is_some_and(|r| r.is_empty() || r.starts_with([' ', '\t', '\r', '\n']))
        };
        if begun && (mark("---") || mark("...")) {
            return &text[..at];
        }
        let bare = line.trim();
        begun |= mark("---") || !bare.is_empty() && !bare.starts_with(['#', '%']);
        at += line.len();
    }
    text
}

/// What is wrong, in the words of upstream's parser where the case is a common one.
fn explain(text: &str, error: &serde_saphyr::Error) -> String {
    let said = error.to_string();
    let place = |name: &str| -> Option<usize> {
        said.rsplit_once(name)?.1.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
    };
    let (Some(line), Some(column)) = (place("line "), place("column ")) else { return said };
    let rest = || -> String {
        let at = text.lines().nth(line - 1).unwrap_or_default();
        at.chars().skip(column.saturating_sub(1)).collect()
    };
    if said.contains("unknown anchor") {
        let name: String =
            rest().trim_start_matches('*').chars().take_while(|c| c.is_alphanumeric()).collect();
        return format!("unknown anchor '{name}' referenced");
    }
    if said.contains("unclosed bracket") {
        let closing = if said.contains('[') { ']' } else { '}' };
        let empty = text.trim_end().ends_with(['[', '{', ',']);
        let wanted = if empty { "node content".to_owned() } else { format!("',' or '{closing}'") };
        return format!("line {line}: did not find expected {wanted}");
    }
    if said.contains("unclosed quote") {
        return format!("line {}: found unexpected end of stream", text.split('\n').count());
    }
    if said.contains("tabs disallowed") {
        return format!("line {line}: found character that cannot start any token");
    }
    if said.contains("found a tab") {
        return format!("line {}: found a tab character that violates indentation", line + 1);
    }
    said
}

/// All keys that come again. The parser stops at the first, so each is renamed for the next look.
fn repeated_keys(text: &str, first: serde_saphyr::Error) -> Vec<String> {
    const MAX_KEYS: usize = 20;
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let (mut error, mut all) = (first, vec![]);
    loop {
        all.push(repeated_key(&error));
        let renamed = rename(&mut lines, &error, all.len());
        if !renamed || all.len() == MAX_KEYS {
            return all;
        }
        let policy = serde_saphyr::DuplicateKeyPolicy::Error;
        let options = serde_saphyr::options! { duplicate_keys: policy, with_snippet: false };
        match serde_saphyr::from_str_with_options::<Value>(&lines.join("\n"), options) {
            Err(next) if next.to_string().starts_with(REPEATED) => error = next,
            _ => return all,
        }
    }
}

const REPEATED: &str = "duplicate mapping key: ";

/// Puts another key where the error is; `false` if it is not found there.
fn rename(lines: &mut [String], error: &serde_saphyr::Error, number: usize) -> bool {
    let said = error.to_string();
    let place = |name: &str| -> Option<usize> {
        said.rsplit_once(name)?.1.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
    };
    let key = said.strip_prefix(REPEATED).and_then(|t| t.split(", set ").next());
    let (Some(key), Some(line), Some(column)) = (key, place("line "), place("column ")) else { return false };
    let Some(text) = line.checked_sub(1).and_then(|i| lines.get_mut(i)) else { return false };
    let at = text.char_indices().nth(column.saturating_sub(1)).map_or(text.len(), |(at, _)| at);
    let Some((head, tail)) = text.split_at_checked(at) else { return false };
    let rest = ["", "\"", "'"]
        .iter()
        .find_map(|quote| tail.strip_prefix(quote)?.strip_prefix(key)?.strip_prefix(quote));
    let Some(rest) = rest else { return false };
    *text = format!("{head}another{number}{rest}");
    true
}

/// A parser's complaint about a repeated key, in upstream's words.
fn repeated_key(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let key = text.strip_prefix(REPEATED).and_then(|t| t.split(", set ").next());
    let line = text
        .rsplit_once("line ")
        .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    match (key, line) {
        (Some(key), Some(line)) => {
            format!("line {line}: key {} already set in map", crate::status::quote(key))
        }
        _ => text,
    }
}

pub(super) fn write(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads() {
        for (yaml, json) in [
            ("a: 1\nb: [x, yes, 'yes']\n", r#"{"a":1,"b":["x",true,"yes"]}"#),
            ("a: &x {b: on}\nc: *x\n", r#"{"a":{"b":true},"c":{"b":true}}"#),
            ("---\na: |\n  x\n  y\n", r#"{"a":"x\ny\n"}"#),
            ("a: ~\nb: 1.5\n1: x\n", r#"{"1":"x","a":null,"b":1.5}"#),
        ] {
            assert_eq!(String::from_utf8(to_json(yaml.as_bytes()).unwrap().0).unwrap(), json);
        }
        for (yaml, why) in [
            ("a: [", "line 1: did not find expected node content"),
            ("a: [v1\n", "line 1: did not find expected ',' or ']'"),
            ("a: *x\n", "unknown anchor 'x' referenced"),
            ("a: v1\n\tb: c\n", "line 2: found a tab character that violates indentation"),
        ] {
            let error = to_json(yaml.as_bytes()).unwrap_err().message;
            assert_eq!(error, format!("error converting YAML to JSON: yaml: {why}"));
        }
        for (yaml, json) in [
            ("a: 1\n---\nb: [\n", r#"{"a":1}"#),
            ("# x\n---\na: 1\n...\n", r#"{"a":1}"#),
            ("a: ---x\n", r#"{"a":"---x"}"#),
        ] {
            assert_eq!(String::from_utf8(to_json(yaml.as_bytes()).unwrap().0).unwrap(), json);
        }
        let (json, complaints) = to_json(b"a: 1\na: 2\n").unwrap();
        assert_eq!((json, complaints.len()), (br#"{"a":2}"#.to_vec(), 1));
    }

    #[test]
    fn writes_what_it_reads() {
        let value = serde_json::json!({"a": "yes", "b": "1", "c": ["x", {"d": null}], "e": "null", "f": "a: b\nc", "g": ""});
        let text = write(&value);
        let back: Value = serde_json::from_slice(&to_json(text.as_bytes()).unwrap().0).unwrap();
        assert_eq!(back, value, "{text}");
    }
}
