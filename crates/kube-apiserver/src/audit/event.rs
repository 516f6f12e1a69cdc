//! One event, as it is sent. Pure.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::Level;

/// How events are written into the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Json,
    /// A line of text that tells the most important.
    Legacy,
}

/// An event, encoded once for all who get it.
#[derive(Clone, Debug)]
pub struct Event {
    pub level: Level,
    pub value: Map<String, Value>,
    /// As JSON, without a line's end.
    pub json: Bytes,
}

impl Event {
    pub fn new(level: Level, value: Map<String, Value>) -> Event {
        let json = serde_json::to_vec(&value).unwrap_or_default().into();
        Event { level, value, json }
    }

    /// The event without what the request and the answer held, marked so.
    pub fn truncated(&self) -> Event {
        let mut value = self.value.clone();
        value.remove("requestObject");
        value.remove("responseObject");
        let annotations = value.entry("annotations").or_insert_with(|| Map::new().into());
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert("audit.k8s.io/truncated".to_owned(), "true".into());
        }
        Event::new(self.level, value)
    }

    /// How large it is, with its line's end.
    pub fn bytes(&self) -> usize {
        self.json.len() + 1
    }

    pub fn line(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Json => [&self.json[..], b"\n"].concat(),
            Format::Legacy => legacy(&self.value).into_bytes(),
        }
    }
}

fn legacy(event: &Map<String, Value>) -> String {
    let null = Value::Null;
    let member = |name: &str| event.get(name).unwrap_or(&null);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let or = |value: String, otherwise: &str| if value.is_empty() { otherwise.to_owned() } else { value };
    let groups = |value: &Value| -> String {
        let quoted = value.as_array().into_iter().flatten().map(|g| format!("{:?}", text(g)));
        quoted.collect::<Vec<_>>().join(",")
    };
    let (user, other) = (member("user"), member("impersonatedUser"));
    let (as_user, as_groups) = match other.is_object() {
        true => (text(&other["username"]), or(groups(&other["groups"]), "<lookup>")),
        false => ("<self>".to_owned(), "<lookup>".to_owned()),
    };
    let response =
        member("responseStatus")["code"].as_u64().map_or("<deferred>".to_owned(), |c| c.to_string());
    format!(
        "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={:?} groups={:?} as={as_user:?} asgroups={as_groups:?} \
         user-agent={:?} namespace={:?} uri={:?} response=\"{response}\"\n",
        text(member("requestReceivedTimestamp")),
        text(member("auditID")),
        text(member("stage")),
        or(text(&member("sourceIPs")[0]), "<unknown>"),
        text(member("verb")),
        or(text(&user["username"]), "<none>"),
        or(groups(&user["groups"]), "<none>"),
        text(member("userAgent")),
        or(text(&member("objectRef")["namespace"]), "<none>"),
        text(member("requestURI")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn forms() {
        let value = json!({"auditID": "i", "stage": "ResponseComplete", "verb": "get", "requestURI": "/x",
            "user": {"username": "u", "groups": ["a", "b"]}, "responseStatus": {"code": 200},
            "requestReceivedTimestamp": "2026-01-01T00:00:00.000000Z", "requestObject": {"a": 1}});
        let event = Event::new(Level::Request, value.as_object().unwrap().clone());
        assert_eq!(event.bytes(), event.line(Format::Json).len());
        assert_eq!(
            String::from_utf8(event.line(Format::Legacy)).unwrap(),
            "2026-01-01T00:00:00.000000Z AUDIT: id=\"i\" stage=\"ResponseComplete\" ip=\"<unknown>\" method=\"get\" \
             user=\"u\" groups=\"\\\"a\\\",\\\"b\\\"\" as=\"<self>\" asgroups=\"<lookup>\" user-agent=\"\" \
             namespace=\"<none>\" uri=\"/x\" response=\"200\"\n"
        );
        let truncated = event.truncated();
        assert!(truncated.bytes() < event.bytes() + 60);
        assert_eq!(truncated.value["annotations"], json!({"audit.k8s.io/truncated": "true"}));
        assert!(!truncated.value.contains_key("requestObject"));
    }
}
