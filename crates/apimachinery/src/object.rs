//! One revision of one object as the whole system passes it around: encoded once, with what must be known
//! without decoding kept beside the bytes.
//!
//! Sketch: a 3.5 KB pod costs its bytes plus about 300 B of attributes; the typed struct would take 16 KB. Nobody
//! holds typed structs; they are decoded for the moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::codec::{DecodeError, protobuf};
use crate::schema::Schema;

/// An owner reference's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: Box<str>,
    pub kind: Box<str>,
    pub name: Box<str>,
    pub api_version: Box<str>,
    pub controller: bool,
}

/// What selectors, indexes and caches ask of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Empty for cluster-scoped objects.
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    /// Sorted by key.
    pub labels: Box<[(Arc<str>, Arc<str>)]>,
    /// Selectable fields beyond `metadata.name` and `metadata.namespace`, as (path, value).
    pub fields: Box<[(&'static str, Box<str>)]>,
    pub owners: Box<[Owner]>,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
}

impl Attributes {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|i| &*self.labels[i].1)
    }

    /// The value of a selectable field, `metadata.name` and `metadata.namespace` included.
    pub fn field(&self, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => self.fields.iter().find(|(p, _)| *p == path).map(|(_, v)| &**v),
        }
    }

    pub fn controller(&self) -> Option<&Owner> {
        self.owners.iter().find(|o| o.controller)
    }
}

/// One revision of one object. `body` is its JSON without `metadata.resourceVersion`, as it lies in the store.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Shared by the clones of an object, which differ in their revision.
    pub attributes: Arc<Attributes>,
    pub resource_version: u64,
    pub body: Bytes,
    /// Where in `body` the members of `metadata` begin: right after `"metadata":{`.
    pub splice: u32,
    pub message: Message,
}

/// An object's protobuf message, kept once a list has asked for it, as long as there is room and it does not grow old. A clone
/// begins without: it may get another revision, which is in the message.
#[derive(Debug, Default)]
pub struct Message(Mutex<Option<Box<Kept>>>);

#[derive(Debug)]
struct Kept {
    resource_version: u64,
    bytes: Bytes,
    /// Whether it was asked for since it last grew older.
    used: bool,
}

/// Bytes of messages that are kept at most.
const MESSAGES_BYTES_MAX: usize = 32 << 20;
static MESSAGES_BYTES: AtomicUsize = AtomicUsize::new(0);

impl Clone for Message {
    fn clone(&self) -> Message {
        Message::default()
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        Message::give_back(self.0.get_mut());
    }
}

impl Message {
    /// Whether any are kept.
    pub fn any_kept() -> bool {
        MESSAGES_BYTES.load(Ordering::Relaxed) > 0
    }

    fn get(&self, resource_version: u64) -> Option<Bytes> {
        let mut kept = self.0.lock();
        let kept = kept.as_mut().filter(|kept| kept.resource_version == resource_version)?;
        kept.used = true;
        Some(kept.bytes.clone())
    }

    fn keep(&self, resource_version: u64, message: &Bytes) {
        if MESSAGES_BYTES.load(Ordering::Relaxed) + message.len() > MESSAGES_BYTES_MAX {
            return;
        }
        let mut kept = self.0.lock();
        if kept.is_none() {
            MESSAGES_BYTES.fetch_add(message.len(), Ordering::Relaxed);
            *kept = Some(Box::new(Kept { resource_version, bytes: message.clone(), used: true }));
        }
    }

    /// Gives the memory back of one that nobody has asked for since the last call. Whether it is still kept.
    pub fn grow_older(&self) -> bool {
        let mut kept = self.0.lock();
        if let Some(kept) = kept.as_mut().filter(|kept| kept.used) {
            kept.used = false;
            return true;
        }
        Message::give_back(&mut kept);
        false
    }

    /// Gives the memory back; whoever asks next makes the message anew.
    pub fn forget(&self) {
        Message::give_back(&mut self.0.lock());
    }

    fn give_back(kept: &mut Option<Box<Kept>>) {
        if let Some(kept) = kept.take() {
            MESSAGES_BYTES.fetch_sub(kept.bytes.len(), Ordering::Relaxed);
        }
    }
}

/// Reads an object, or a part of one, into a struct. Clients in Go write some members that are empty as `null`, which structs that
/// expect a list or a time refuse: those members then count as left out, and the time of a condition, which may not be, as Go's
/// zero.
pub fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(json).or_else(|_| {
        let mut value: Value = serde_json::from_slice(json)?;
        drop_nulls(&mut value);
        // Through text again: a second way to read every type would cost more than a megabyte of code.
        serde_json::from_slice(&serde_json::to_vec(&value)?)
    })
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(time @ Value::Null) = members.get_mut("lastTransitionTime") {
                *time = "0001-01-01T00:00:00Z".into();
            }
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

impl Encoded {
    /// Reads the attributes of a stored object. `fields` gives the selectable fields of its resource.
    pub fn new(
        body: Bytes,
        resource_version: u64,
        fields: impl FnOnce(&Value) -> Vec<(&'static str, String)>,
    ) -> Result<Encoded, serde_json::Error> {
        let value: Value = serde_json::from_slice(&body)?;
        Ok(Encoded::with_value(body, resource_version, &value, fields(&value)))
    }

    /// As [`Encoded::new`] where the decoded value is at hand; `value` and `body` must be the same object.
    pub fn with_value(
        body: Bytes,
        resource_version: u64,
        value: &Value,
        fields: Vec<(&'static str, String)>,
    ) -> Encoded {
        let meta = &value["metadata"];
        let text = |v: &Value| v.as_str().unwrap_or_default().into();
        let mut labels: Vec<(Arc<str>, Arc<str>)> = meta["labels"]
            .as_object()
            .map(|m| {
                m.iter().map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect()
            })
            .unwrap_or_default();
        labels.sort();
        let owners = meta["ownerReferences"]
            .as_array()
            .map(|refs| {
                refs.iter()
                    .map(|r| Owner {
                        uid: text(&r["uid"]),
                        kind: text(&r["kind"]),
                        name: text(&r["name"]),
                        api_version: text(&r["apiVersion"]),
                        controller: r["controller"].as_bool().unwrap_or(false),
                    })
                    .collect()
            })
            .unwrap_or_default();
        Encoded {
            attributes: Arc::new(Attributes {
                namespace: text(&meta["namespace"]),
                name: text(&meta["name"]),
                uid: text(&meta["uid"]),
                labels: labels.into(),
                fields: fields.into_iter().map(|(p, v)| (p, v.into())).collect(),
                owners,
                deleting: !meta["deletionTimestamp"].is_null(),
            }),
            resource_version,
            splice: splice_offset(&body),
            body,
            message: Message::default(),
        }
    }

    pub fn namespace(&self) -> &str {
        &self.attributes.namespace
    }

    pub fn name(&self) -> &str {
        &self.attributes.name
    }

    pub fn uid(&self) -> &str {
        &self.attributes.uid
    }

    /// `namespace/name`, or the name alone for cluster-scoped objects: the key of work queues.
    pub fn key(&self) -> String {
        object_key(&self.attributes.namespace, &self.attributes.name)
    }

    /// The JSON as clients get it, in three parts: shared bytes, a small one with the resource version, shared bytes.
    pub fn parts(&self) -> [Bytes; 3] {
        let at = self.splice as usize;
        if at == 0 {
            return [self.body.clone(), Bytes::new(), Bytes::new()];
        }
        let comma = if self.body.get(at) == Some(&b'}') { "" } else { "," };
        let rv = format!("\"resourceVersion\":\"{}\"{comma}", self.resource_version);
        [self.body.slice(..at), rv.into(), self.body.slice(at..)]
    }

    /// Appends the JSON as clients get it.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        self.write_json_from(0, out);
    }

    /// As [`write_json`](Encoded::write_json) for a list of built-in objects: its items do not say what they are.
    /// `head` is how the JSON of such an object begins, up to and with the comma after kind and version.
    pub fn write_item(&self, head: &[u8], out: &mut Vec<u8>) {
        if !head.is_empty() && head.len() < self.splice as usize && self.body.starts_with(head) {
            out.push(b'{');
            self.write_json_from(head.len(), out);
        } else {
            self.write_json(out);
        }
    }

    fn write_json_from(&self, start: usize, out: &mut Vec<u8>) {
        let at = self.splice as usize;
        let (before, after) = self.body.split_at(at.min(self.body.len()));
        out.extend_from_slice(before.get(start..).unwrap_or_default());
        if at > 0 {
            out.extend_from_slice(b"\"resourceVersion\":\"");
            out.extend_from_slice(itoa::Buffer::new().format(self.resource_version).as_bytes());
            out.extend_from_slice(if after.first() == Some(&b'}') { b"\"" } else { b"\"," });
        }
        out.extend_from_slice(after);
    }

    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + 40);
        self.write_json(&mut out);
        out
    }

    /// The object as a protobuf message without envelope; `schema` is that of the stored version.
    pub fn to_message(&self, schema: &Schema) -> Result<Bytes, DecodeError> {
        match self.message.get(self.resource_version) {
            Some(kept) => Ok(kept),
            None => Ok(protobuf::transcode_message(&self.to_json(), schema)?.into()),
        }
    }

    /// As [`Encoded::to_message`]; keeps it for the next who asks.
    pub fn to_kept_message(&self, schema: &Schema) -> Result<Bytes, DecodeError> {
        let message = self.to_message(schema)?;
        self.message.keep(self.resource_version, &message);
        Ok(message)
    }

    /// The typed object (or a partial view of it), with its resource version.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        read(&self.to_json())
    }

    /// The generic object, with its resource version.
    pub fn to_value(&self) -> Result<Value, serde_json::Error> {
        self.decode()
    }
}

/// The members of a built-in object in the order its JSON has them: what it is and is called comes first, as upstream
/// writes it and some readers expect it.
pub fn in_order(members: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    const FIRST: [&str; 3] = ["kind", "apiVersion", "metadata"];
    let first = FIRST.into_iter().filter_map(|name| members.get_key_value(name));
    first.chain(members.iter().filter(|(name, _)| !FIRST.contains(&name.as_str())))
}

/// A built-in object on its way into JSON, its members [`in_order`].
pub struct InOrder<'a>(pub &'a Map<String, Value>);

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(in_order(self.0))
    }
}

/// `namespace/name`, or the name alone where there is no namespace.
pub fn object_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// Finds the top-level `"metadata":{` of a JSON object; 0 where there is none.
fn splice_offset(body: &[u8]) -> u32 {
    let (mut depth, mut i) = (0u32, 0usize);
    while i < body.len() {
        match body[i] {
            b'"' => {
                let start = i + 1;
                i = start;
                while i < body.len() && body[i] != b'"' {
                    i += if body[i] == b'\\' { 2 } else { 1 };
                }
                let is_metadata = depth == 1
                    && body.get(start..i) == Some(&b"metadata"[..])
                    && body.get(i + 1) == Some(&b':');
                if is_metadata {
                    let mut at = i + 2;
                    while body.get(at).is_some_and(u8::is_ascii_whitespace) {
                        at += 1;
                    }
                    return if body.get(at) == Some(&b'{') { (at + 1) as u32 } else { 0 };
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        i += 1;
    }
    0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_in_order() {
        let value =
            json!({"apiVersion": "v1", "data": {"a": "b"}, "kind": "ConfigMap", "metadata": {"name": "x"}});
        let body = serde_json::to_vec(&InOrder(value.as_object().unwrap())).unwrap();
        let object = Encoded::with_value(body.into(), 3, &value, vec![]);
        let text = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).unwrap()
        };
        let rest = r#""metadata":{"resourceVersion":"3","name":"x"},"data":{"a":"b"}}"#;
        let head = r#"{"kind":"ConfigMap","apiVersion":"v1","#;
        assert_eq!(text(&|out| object.write_json(out)), format!("{head}{rest}"));
        assert_eq!(text(&|out| object.write_item(head.as_bytes(), out)), format!("{{{rest}"));
        // Stored in another order.
        assert_eq!(text(&|out| object.write_item(b"{\"apiVersion\":", out)), format!("{head}{rest}"));
    }

    #[test]
    fn members_that_are_null_count_as_left_out() {
        #[derive(serde::Deserialize, Debug, PartialEq)]
        struct Image {
            #[serde(default)]
            names: Vec<String>,
            size: u64,
        }
        let read = |text: &str| read::<Vec<Image>>(text.as_bytes());
        assert_eq!(
            read(r#"[{"names": null, "size": 3}, {"names": ["a"], "size": 4}]"#).unwrap(),
            [Image { names: vec![], size: 3 }, Image { names: vec!["a".into()], size: 4 }]
        );
        for wrong in [r#"[{"names": [null], "size": 3}]"#, r#"[{"size": null}]"#, "[{"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn messages_are_of_their_revision() {
        let schema = crate::schema::for_kind("", "v1", "ConfigMap").unwrap();
        let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#;
        let first = Encoded::new(Bytes::from(body), 7, |_| vec![]).unwrap();
        let version = |e: &Encoded| {
            let message = e.to_kept_message(schema).unwrap();
            let value = protobuf::decode(&protobuf::wrap("v1", "ConfigMap", &message), schema).unwrap();
            value["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
        };
        assert_eq!((version(&first), version(&first)), ("7".into(), "7".into()));
        let second = Encoded { resource_version: 8, ..first.clone() };
        assert_eq!(version(&second), "8");
        assert_eq!(version(&Encoded { resource_version: 9, ..first }), "9");
    }

    #[test]
    fn messages_that_nobody_asks_for_are_forgotten() {
        let schema = crate::schema::for_kind("", "v1", "ConfigMap").unwrap();
        let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#;
        let object = Encoded::new(Bytes::from(body), 7, |_| vec![]).unwrap();
        let kept = || object.message.0.lock().is_some();
        object.to_message(schema).unwrap();
        assert!(!kept());
        object.to_kept_message(schema).unwrap();
        assert!(kept() && Message::any_kept());
        object.message.grow_older();
        object.to_message(schema).unwrap();
        object.message.grow_older();
        assert!(kept());
        object.message.grow_older();
        assert!(!kept());
    }

    #[test]
    fn splices_the_resource_version() {
        for (body, want) in [
            (
                r#"{"kind":"A","metadata":{"name":"x"}}"#,
                r#"{"kind":"A","metadata":{"resourceVersion":"7","name":"x"}}"#,
            ),
            (r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"7"}}"#),
            (
                r#"{"data":{"metadata":{"a":"\"metadata\":{"}},"metadata":{"name":"x"}}"#,
                r#"{"data":{"metadata":{"a":"\"metadata\":{"}},"metadata":{"resourceVersion":"7","name":"x"}}"#,
            ),
        ] {
            let e = Encoded::new(Bytes::from(body.to_owned()), 7, |_| vec![]).unwrap();
            assert_eq!(String::from_utf8(e.to_json()).unwrap(), want);
        }
    }
}
