//! Paths to fields as definitions spell them (`.spec.labels['a.b']`).

use apimachinery::field_path::Path;
use serde_json::Value as Json;

fn tokens(path: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        if bytes[at] == b'\'' {
            at += 1;
            while at < bytes.len() && (bytes[at] != b'\'' || bytes[at - 1] == b'\\') {
                at += 1;
            }
            at = (at + 1).min(bytes.len());
        } else if matches!(bytes[at], b'.' | b'[' | b']') {
            at += 1;
        } else {
            while at < bytes.len() && !matches!(bytes[at], b'.' | b'[' | b']') {
                at += 1;
            }
        }
        out.push(&path[start..at]);
    }
    out
}

fn unquoted(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some(c @ ('\'' | '\\')) => c,
            Some(c) => return Err(format!("invalid string literal: invalid escape char \\{c}")),
            None => return Err("invalid string literal: unexpected end".into()),
        });
    }
    Ok(out)
}

/// The path in the form of messages and the schema it leads to. `arrays` allows keys in brackets.
pub fn resolve<'a>(path: &str, schema: &'a Json, arrays: bool) -> Result<(String, &'a Json), String> {
    let mut found = Path::root();
    let mut schema = schema;
    let mut tokens = tokens(path).into_iter();
    let end = || "unexpected end of JSON path".to_owned();
    let unknown = || "does not refer to a valid field".to_owned();
    while let Some(token) = tokens.next() {
        let name = match token {
            "." => tokens.next().ok_or_else(end)?.to_owned(),
            "[" => {
                if !arrays {
                    return Err("array notation is not allowed".into());
                }
                let quoted = tokens.next().ok_or_else(end)?;
                let inner = quoted
                    .strip_prefix('\'')
                    .and_then(|q| q.strip_suffix('\''))
                    .filter(|_| quoted.len() >= 2);
                let name = unquoted(
                    inner.ok_or_else(|| format!("expected single quoted string but got {quoted}"))?,
                )?;
                match tokens.next().ok_or_else(end)? {
                    "]" => name,
                    other => return Err(format!("expected ] but got {other}")),
                }
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        if let Some(properties) = schema["properties"].as_object() {
            found = found.child(&name);
            schema = properties.get(&name).ok_or_else(unknown)?;
        } else if schema["additionalProperties"].is_object() {
            found = found.key(&name);
            schema = &schema["additionalProperties"];
        } else {
            return Err(unknown());
        }
    }
    Ok((found.as_str().to_owned(), schema))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resolves() {
        let schema = json!({"properties": {"spec": {"properties": {"a.b": {"type": "string"},
            "labels": {"additionalProperties": {"type": "string"}}}}}});
        for (path, want) in [
            (".spec.labels['x']", Ok("spec.labels[x]")),
            (".spec['a.b']", Ok("spec.a.b")),
            (".spec.labels.x", Ok("spec.labels[x]")),
            (".none", Err("does not refer to a valid field")),
            ("spec", Err("expected [ or . but got: spec")),
            (".spec[0]", Err("expected single quoted string but got 0")),
            (".spec.", Err("unexpected end of JSON path")),
        ] {
            let got = resolve(path, &schema, true).map(|(p, _)| p);
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{path}");
        }
        assert_eq!(resolve(".spec['a.b']", &schema, false).unwrap_err(), "array notation is not allowed");
    }
}
