//! Objects in and out of JSON, YAML and protobuf, driven by the schema.
//!
//! Decoding checks types as Go's decoder does (and says so in its words), drops what the schema does not know into
//! complaints, and brings values into the form Go would write them in: quantities, times, zero values. Equal objects
//! are equal values afterwards, whatever notation they came in.

mod inlined;
pub mod json;
pub mod numbers;
pub mod protobuf;
mod time;
mod transcode;
pub mod yaml;

use serde_json::Value;

use crate::schema::Schema;
use crate::status::{Status, quote};

pub use time::{normalize_micro_time, normalize_time};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    Json,
    Yaml,
    Protobuf,
}

impl MediaType {
    /// From a `Content-Type`; parameters are ignored.
    pub fn from_content_type(value: &str) -> Option<MediaType> {
        match value.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
            "application/json" | "" | "*/*" | "application/*" => Some(MediaType::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Some(MediaType::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(MediaType::Protobuf),
            _ => None,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            MediaType::Json => "application/json",
            MediaType::Yaml => "application/yaml",
            MediaType::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// What becomes of unknown and duplicate fields; the request's `fieldValidation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// Dropped without a word.
    Ignore,
    /// Dropped, and named in the complaints.
    #[default]
    Warn,
    /// An error.
    Strict,
}

impl Strictness {
    /// From the query parameter; empty is the default.
    pub fn parse(text: &str) -> Option<Strictness> {
        match text {
            "Ignore" => Some(Strictness::Ignore),
            "" | "Warn" => Some(Strictness::Warn),
            "Strict" => Some(Strictness::Strict),
            _ => None,
        }
    }
}

/// A decoded object and what was wrong with it but could be dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    pub complaints: Vec<String>,
}

/// Why nothing could be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    pub message: String,
    says: Says,
}

/// How an error is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// As a body that is no object of the kind.
    OfKind,
    /// As it is, as a bad request.
    Plainly,
    /// As it is, as a failure of the server.
    Unknown,
}

impl DecodeError {
    pub fn new(message: impl Into<String>) -> DecodeError {
        DecodeError { message: message.into(), says: Says::OfKind }
    }

    /// The 400 that upstream answers to a body that is no `kind` of `version`.
    pub fn to_status(&self, kind: &str, version: &str) -> Status {
        match self.says {
            Says::OfKind => {}
            Says::Plainly => return Status::bad_request(self.message.clone()),
            Says::Unknown => return Status::unknown(self.message.clone()),
        }
        Status::bad_request(format!(
            "{kind} in version {} cannot be handled as a {kind}: {}",
            quote(version),
            self.message
        ))
    }
}

/// Decodes one object.
pub fn decode(
    bytes: &[u8],
    media_type: MediaType,
    schema: &Schema,
    strictness: Strictness,
) -> Result<Decoded, DecodeError> {
    let decoded = match media_type {
        MediaType::Json => json::decode(bytes, schema, strictness != Strictness::Ignore, true)?,
        MediaType::Yaml => {
            let (json, mut complaints) = yaml::to_json(bytes)?;
            let mut decoded = json::decode(&json, schema, strictness != Strictness::Ignore, true)?;
            if strictness == Strictness::Warn {
                // Each by itself.
                let lines = |c: &String| -> Vec<String> {
                    let c = c.strip_prefix("yaml: unmarshal errors:\n  ").unwrap_or(c);
                    c.split("\n  ").map(str::to_owned).collect()
                };
                complaints = complaints.iter().flat_map(lines).collect();
            }
            if strictness != Strictness::Ignore {
                complaints.append(&mut decoded.complaints);
                decoded.complaints = complaints;
            }
            decoded
        }
        MediaType::Protobuf => Decoded { value: protobuf::decode(bytes, schema)?, complaints: vec![] },
    };
    if strictness == Strictness::Strict && !decoded.complaints.is_empty() {
        return Err(DecodeError::new(format!("strict decoding error: {}", decoded.complaints.join(", "))));
    }
    Ok(decoded)
}

/// Reads an applied configuration of whatever kind; also answers what was wrong with it but could be dropped.
pub fn read_applied(bytes: &[u8], strictness: Strictness) -> Result<Decoded, DecodeError> {
    let refused = |why: String| DecodeError { message: why, says: Says::Plainly };
    let (json, mut complaints) =
        yaml::to_json(bytes).map_err(|e| refused(format!("error decoding YAML: {e}")))?;
    if strictness == Strictness::Strict && !complaints.is_empty() {
        let why =
            format!("error strict decoding YAML: error converting YAML to JSON: {}", complaints.join(", "));
        return Err(refused(why));
    }
    if strictness == Strictness::Ignore {
        complaints.clear();
    }
    let decoding = |why: String| {
        refused(format!("error decoding YAML: error unmarshaling JSON: while decoding JSON: {why}"))
    };
    match json::decode_any(&json).map_err(|e| decoding(e.message))? {
        value @ Value::Object(_) => Ok(Decoded { value, complaints }),
        Value::Null => Ok(Decoded { value: Value::Object(Default::default()), complaints }),
        other => Err(decoding(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            json::kind_of(&other)
        ))),
    }
}

/// An applied configuration of a type: values stay as they were written, zero values are neither dropped nor added.
/// What it mentions matters, not what that amounts to. Unknown fields are errors, since nobody could own them.
pub fn type_applied(config: &Value, schema: &Schema) -> Result<Value, DecodeError> {
    crate::managed_fields::typed::check(config, schema).map_err(|why| DecodeError {
        message: format!("failed to create typed patch object ({}): {why}", described(config)),
        says: Says::Unknown,
    })?;
    Ok(json::decode(&encode_json(config), schema, false, false)?.value)
}

/// `namespace/name; group/version, Kind=kind`, as upstream names an object in errors of applying.
fn described(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let version = text("/apiVersion");
    let slash = if version.contains('/') { "" } else { "/" };
    format!(
        "{}/{}; {slash}{version}, Kind={}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        text("/kind")
    )
}

/// Brings a value that was put together otherwise (by a patch, by a webhook) into the form [`decode`] answers.
pub fn normalize(value: &Value, schema: &Schema, strictness: Strictness) -> Result<Decoded, DecodeError> {
    decode(&encode_json(value), MediaType::Json, schema, strictness)
}

/// Any JSON or YAML, without a schema.
pub fn decode_any(bytes: &[u8], media_type: MediaType) -> Result<Value, DecodeError> {
    match media_type {
        MediaType::Json => json::decode_any(bytes),
        MediaType::Yaml => json::decode_any(&yaml::to_json(bytes)?.0),
        MediaType::Protobuf => Err(DecodeError::new("protobuf cannot be decoded without knowing the type")),
    }
}

/// The `apiVersion` and `kind` of a body, without decoding the rest more than necessary. Absent ones are empty.
pub fn type_meta(bytes: &[u8], media_type: MediaType) -> Result<(String, String), DecodeError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TypeMeta {
        #[serde(default)]
        api_version: Value,
        #[serde(default)]
        kind: Value,
    }
    let json;
    let bytes = match media_type {
        MediaType::Json => bytes,
        MediaType::Yaml => {
            json = yaml::to_json(bytes)?.0;
            &json
        }
        MediaType::Protobuf => {
            let unknown = protobuf::unwrap(bytes)?;
            return Ok((unknown.api_version, unknown.kind));
        }
    };
    let refused =
        |why: String| DecodeError::new(format!("couldn't get version/kind; json parse error: {why}"));
    let whole: Value = serde_json::from_slice(bytes).map_err(|e| refused(json::explain(bytes, &e)))?;
    let meta: TypeMeta = match whole {
        Value::Object(_) => serde_json::from_value(whole).map_err(|e| refused(e.to_string()))?,
        Value::Null => return Ok(Default::default()),
        other => {
            return Err(refused(format!(
                "json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \
                 \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
                json::kind_of(&other)
            )));
        }
    };
    let text = |name: &str, value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        other => Err(refused(format!(
            "json: cannot unmarshal {} into Go struct field .{name} of type string",
            json::kind_of(&other)
        ))),
    };
    Ok((text("apiVersion", meta.api_version)?, text("kind", meta.kind)?))
}

pub fn encode_json(value: &Value) -> Vec<u8> {
    // Values have string keys only; writing to a Vec cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

pub fn encode_yaml(value: &Value) -> Vec<u8> {
    yaml::write(value).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    fn decode_kind(group: &str, kind: &str, text: &str) -> Result<Decoded, DecodeError> {
        let schema = schema::for_kind(group, "v1", kind).unwrap();
        decode(text.as_bytes(), MediaType::Json, schema, Strictness::Warn)
    }

    #[test]
    fn canonical_values() {
        let decoded = decode_kind(
            "",
            "Pod",
            r#" {"kind":"Pod","apiVersion":"v1","metadata":{"name":"x","labels":{},"creationTimestamp":null},
            "spec":{"hostNetwork":false,"activeDeadlineSeconds":0,"containers":[{"name":"a","args":[],"image":"i",
            "resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}},
            "ports":[{"containerPort":80}],"readinessProbe":{"httpGet":{"port":"http"},"periodSeconds":0}}],
            "volumes":[{"name":"\u00e9\n\ud83d\ude00","emptyDir":{}}]}}"#,
        )
        .unwrap();
        assert_eq!(decoded.complaints, Vec::<String>::new());
        assert_eq!(
            decoded.value,
            json!({"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"},
            "spec":{"activeDeadlineSeconds":0,"containers":[{"name":"a","image":"i",
            "resources":{"limits":{"cpu":"500m","memory":"1Gi"}},
            "ports":[{"containerPort":80}],"readinessProbe":{"httpGet":{"port":"http"}}}],
            "volumes":[{"name":"é\n😀","emptyDir":{}}]}, "status": {}})
        );
    }

    #[test]
    fn complaints() {
        let decoded = decode_kind(
            "",
            "Pod",
            r#"{"foo":1,"metadata":{"labels":{"a":"b","a":"c"}},"spec":{"foo":{"x":[1,2]},"nodeName":"a","nodeName":"b",
            "containers":[{"name":"a"},{"name":"b","imagee":"x"}]}}"#,
        )
        .unwrap();
        assert_eq!(
            decoded.complaints,
            [
                r#"unknown field "foo""#,
                r#"duplicate field "metadata.labels.a""#,
                r#"unknown field "spec.foo""#,
                r#"duplicate field "spec.nodeName""#,
                r#"unknown field "spec.containers[1].imagee""#
            ]
        );
        assert_eq!(decoded.value["spec"]["nodeName"], "b");
    }

    #[test]
    fn errors() {
        for (kind, text, message) in [
            ("Pod", "[]", "json: cannot unmarshal array into Go value of type v1.Pod"),
            (
                "Pod",
                r#"{"spec":{"containers":"x"}}"#,
                "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                "Pod",
                r#"{"spec":{"containers":[{"ports":[{"protocol":1}]}]}}"#,
                "json: cannot unmarshal number into Go struct field ContainerPort.spec.containers.ports.protocol of \
                 type v1.Protocol",
            ),
            (
                "Pod",
                r#"{"metadata":{"labels":{"a":1}}}"#,
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                "Pod",
                r#"{"spec":{"priority":1.5}}"#,
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
            ),
            ("Pod", r#"{"a":1"#, "unexpected end of JSON input"),
            ("Pod", r#"{"a":x}"#, "invalid character 'x' looking for beginning of value"),
            ("Pod", r#"{"a":1}}"#, "invalid character '}' after top-level value"),
            (
                "Pod",
                r#"{"spec":{"overhead":{"cpu":"x"}}}"#,
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            ("Secret", r#"{"data":{"a":"!"}}"#, "illegal base64 data at input byte 0"),
        ] {
            assert_eq!(decode_kind("", kind, text).unwrap_err().message, message);
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
        assert_eq!(decode_kind("", "Pod", &deep).unwrap_err().message, "exceeded max depth");
    }

    #[test]
    fn strict_and_applied() {
        let schema = schema::for_kind("", "v1", "Pod").unwrap();
        let text = br#"{"spec":{"hostNetwork":false},"a":1,"b":2}"#;
        let error = decode(text, MediaType::Json, schema, Strictness::Strict).unwrap_err();
        assert_eq!(error.message, r#"strict decoding error: unknown field "a", unknown field "b""#);
        let apply = |text: &str, strictness| {
            let read = read_applied(text.as_bytes(), strictness)?;
            type_applied(&read.value, schema)
        };
        for (text, code, message) in [
            (
                r#"{"spec":{"hostNetwork":false},"a":1,"b":2}"#,
                500,
                "failed to create typed patch object (/; /, Kind=): errors:\n  .a: field not declared in schema\n  .b: \
                 field not declared in schema",
            ),
            (
                "metadata: {name: x}\nspec: [a, b]\n",
                500,
                "failed to create typed patch object (/x; /, Kind=): .spec: expected map, got &{[a b]}",
            ),
            (
                "spec: {nodeName: 1}",
                500,
                "failed to create typed patch object (/; /, Kind=): .spec.nodeName: expected string, got \
                 &value.valueUnstructured{Value:1}",
            ),
            (
                "spec: {containers: [{name: a, ports: [{containerPort: 1}, {containerPort: 1}]}]}",
                500,
                "failed to create typed patch object (/; /, Kind=): .spec.containers[name=\"a\"].ports: duplicate \
                 entries for key [containerPort=1,protocol=\"TCP\"]",
            ),
            (
                "spec:\n  nodeName: a\n  nodeName: b\n",
                400,
                "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 3: key \
                 \"nodeName\" already set in map",
            ),
            (
                "[]",
                400,
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into \
                 Go value of type map[string]interface {}",
            ),
        ] {
            let status = apply(text, Strictness::Strict).unwrap_err().to_status("Pod", "v1");
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
        let applied = apply(r#"{"spec":{"hostNetwork":false}}"#, Strictness::Ignore).unwrap();
        assert_eq!(applied, json!({"spec": {"hostNetwork": false}}));
        let keyless = apply("spec: {containers: [{image: i}]}", Strictness::Ignore).unwrap();
        assert_eq!(keyless, json!({"spec": {"containers": [{"image": "i"}]}}));
        assert_eq!(
            error.to_status("Pod", "v1").message,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"a\", unknown \
             field \"b\""
        );
    }

    #[test]
    fn custom_resources_are_not_type_checked() {
        let schema = crate::schema::Schema::custom(
            &json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"size": {"type": "integer"}, "on": {"type": "boolean"}}}}}),
        );
        let text = br#"{"apiVersion":"a/v1","kind":"A","metadata":{"name":"x"},"spec":{"size":"big","on":false,"z":1}}"#;
        let decoded = decode(text, MediaType::Json, &schema, Strictness::Warn).unwrap();
        assert_eq!(decoded.value["spec"], json!({"size": "big", "on": false}));
        assert_eq!(decoded.complaints, [r#"unknown field "spec.z""#]);
        assert_eq!(type_meta(text, MediaType::Json).unwrap(), ("a/v1".into(), "A".into()));
    }

    #[test]
    fn custom_resources_are_read_without_types() {
        let schema = crate::schema::Schema::custom(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "n": {"type": "number"}, "s": {"type": "string"}, "none": {"type": "object"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}),
        );
        for (spec, want, complaints) in [
            (r#"{"n":3.0}"#, json!({"n": 3}), &[][..]),
            (r#"{"n":9223372036854775808}"#, json!({"n": 9_223_372_036_854_775_808.0}), &[]),
            (r#"{"s":null,"free":{"a":null}}"#, json!({"free": {"a": null}}), &[]),
            (r#"{"s":"a","s":null}"#, json!({}), &["duplicate field \"spec.s\""]),
            (
                r#"{"free":{"a":{"b":1},"a":{"c":2,"c":3}}}"#,
                json!({"free": {"a": {"c": 3}}}),
                &["duplicate field \"spec.free.a.c\"", "duplicate field \"spec.free.a\""],
            ),
            (
                r#"{"free":{"a":[{"b":1,"b":2}]}}"#,
                json!({"free": {"a": [{"b": 2}]}}),
                &["duplicate field \"spec.free.a[0].b\""],
            ),
            (
                r#"{"u":1,"u":2,"c":{"d":1,"d":2}}"#,
                json!({}),
                &[
                    "duplicate field \"spec.u\"",
                    "duplicate field \"spec.c.d\"",
                    "unknown field \"spec.c\"",
                    "unknown field \"spec.u\"",
                ],
            ),
            (r#"{"none":{"a":1}}"#, json!({"none": {}}), &["unknown field \"spec.none.a\""]),
        ] {
            let text =
                format!(r#"{{"apiVersion":"a/v1","kind":"A","metadata":{{"name":"x"}},"spec":{spec}}}"#);
            let decoded = decode(text.as_bytes(), MediaType::Json, &schema, Strictness::Warn).unwrap();
            assert_eq!(
                (&decoded.value["spec"], &decoded.complaints[..]),
                (&want, &complaints.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>()[..]),
                "{spec}"
            );
        }
        let many: serde_json::Map<String, Value> =
            (10..110).map(|n| (format!("f{n}"), json!({"type": "string"}))).collect();
        let wide = crate::schema::Schema::custom(&json!({"type": "object", "properties": many}));
        let text = br#"{"f11":"a","f11":"b","f99":"a","f99":"b"}"#;
        let decoded = decode(text, MediaType::Json, &wide, Strictness::Warn).unwrap();
        assert_eq!(decoded.complaints, [r#"duplicate field "f11""#, r#"duplicate field "f99""#]);
        let text = br#"{"metadata":{"labels":{"a":"1"},"labels":{"b":"2"}},"spec":{"n":1},"spec":{"s":"a"}}"#;
        let decoded = decode(text, MediaType::Json, &schema, Strictness::Warn).unwrap();
        assert_eq!(decoded.value, json!({"metadata": {"labels": {"b": "2"}}, "spec": {"s": "a"}}));
        let error =
            decode(br#"{"spec":{"n":1e400}}"#, MediaType::Json, &schema, Strictness::Warn).unwrap_err();
        assert_eq!(error.message, "json: cannot unmarshal number 1e400 into Go value of type float64");
        for (metadata, why) in [
            ("5", "Go value of type v1.ObjectMeta"),
            (r#"{"name":5}"#, "Go struct field ObjectMeta.name of type string"),
            (r#"{"labels":{"a":5}}"#, "Go struct field ObjectMeta.labels of type string"),
        ] {
            let text = format!(r#"{{"metadata":{metadata}}}"#);
            let error = decode(text.as_bytes(), MediaType::Json, &schema, Strictness::Warn).unwrap_err();
            assert_eq!(error.message, format!("json: cannot unmarshal number into {why}"));
        }
        let applied = |spec: Value| type_applied(&json!({"spec": spec}), &schema);
        assert_eq!(
            applied(json!({"none": {"a": {"b": 1}}})).unwrap()["spec"],
            json!({"none": {"a": {"b": 1}}})
        );
        assert_eq!(
            applied(json!({"s": 5})).unwrap_err().message,
            "failed to create typed patch object (/; /, Kind=): .spec.s: expected string, got \
             &value.valueUnstructured{Value:5}"
        );
    }
}
