//! OpenAPI version 2 as the protobuf message `openapi.v2.Document` (gnostic-models), the only form in which Go clients
//! ask for it. Messages are tables of fields; a document is written piece by piece, as its JSON is.

use serde_json::{Map, Value};

/// How one member of a JSON object goes into its message.
enum Shape {
    Text,
    Bool,
    Int,
    Double,
    Texts,
    /// Any value, as text.
    Any,
    Anys,
    Message(&'static [Field]),
    Messages(&'static [Field]),
    /// An object of names and messages: `repeated Named… { name = 1; value = 2 }`, in the field of this number.
    Named(u32, &'static [Field]),
    /// A message of strings that JSON abbreviates to the string, when it is one.
    Type,
    /// A message of schemas that JSON abbreviates to the schema, when it is one.
    Items,
    SchemaOrBool,
    /// A response's `schema`, which may be a file in other documents.
    SchemaItem,
    Parameters,
    Responses,
    Security,
    SecuritySchemes,
}

struct Field {
    name: &'static str,
    number: u32,
    shape: Shape,
}

const fn field(name: &'static str, number: u32, shape: Shape) -> Field {
    Field { name, number, shape }
}

/// Names the field of `x-…` members; it comes last in a table.
const EXTENSIONS: &str = "x-";

static SCHEMA: [Field; 29] = [
    field("$ref", 1, Shape::Text),
    field("format", 2, Shape::Text),
    field("title", 3, Shape::Text),
    field("description", 4, Shape::Text),
    field("default", 5, Shape::Any),
    field("multipleOf", 6, Shape::Double),
    field("maximum", 7, Shape::Double),
    field("exclusiveMaximum", 8, Shape::Bool),
    field("minimum", 9, Shape::Double),
    field("exclusiveMinimum", 10, Shape::Bool),
    field("maxLength", 11, Shape::Int),
    field("minLength", 12, Shape::Int),
    field("pattern", 13, Shape::Text),
    field("maxItems", 14, Shape::Int),
    field("minItems", 15, Shape::Int),
    field("uniqueItems", 16, Shape::Bool),
    field("maxProperties", 17, Shape::Int),
    field("minProperties", 18, Shape::Int),
    field("required", 19, Shape::Texts),
    field("enum", 20, Shape::Anys),
    field("additionalProperties", 21, Shape::SchemaOrBool),
    field("type", 22, Shape::Type),
    field("items", 23, Shape::Items),
    field("allOf", 24, Shape::Messages(&SCHEMA)),
    field("properties", 25, Shape::Named(1, &SCHEMA)),
    field("readOnly", 27, Shape::Bool),
    field("externalDocs", 29, Shape::Message(&EXTERNAL_DOCS)),
    field("example", 30, Shape::Any),
    field(EXTENSIONS, 31, Shape::Any),
];

static EXTERNAL_DOCS: [Field; 3] =
    [field("description", 1, Shape::Text), field("url", 2, Shape::Text), field(EXTENSIONS, 3, Shape::Any)];

static PATH_ITEM: [Field; 10] = [
    field("$ref", 1, Shape::Text),
    field("get", 2, Shape::Message(&OPERATION)),
    field("put", 3, Shape::Message(&OPERATION)),
    field("post", 4, Shape::Message(&OPERATION)),
    field("delete", 5, Shape::Message(&OPERATION)),
    field("options", 6, Shape::Message(&OPERATION)),
    field("head", 7, Shape::Message(&OPERATION)),
    field("patch", 8, Shape::Message(&OPERATION)),
    field("parameters", 9, Shape::Parameters),
    field(EXTENSIONS, 10, Shape::Any),
];

static OPERATION: [Field; 12] = [
    field("tags", 1, Shape::Texts),
    field("summary", 2, Shape::Text),
    field("description", 3, Shape::Text),
    field("operationId", 5, Shape::Text),
    field("produces", 6, Shape::Texts),
    field("consumes", 7, Shape::Texts),
    field("parameters", 8, Shape::Parameters),
    field("responses", 9, Shape::Responses),
    field("schemes", 10, Shape::Texts),
    field("deprecated", 11, Shape::Bool),
    field("security", 12, Shape::Security),
    field(EXTENSIONS, 13, Shape::Any),
];

static RESPONSE: [Field; 3] = [
    field("description", 1, Shape::Text),
    field("schema", 2, Shape::SchemaItem),
    field(EXTENSIONS, 5, Shape::Any),
];

static REFERENCE: [Field; 2] = [field("$ref", 1, Shape::Text), field("description", 2, Shape::Text)];

static BODY_PARAMETER: [Field; 6] = [
    field("description", 1, Shape::Text),
    field("name", 2, Shape::Text),
    field("in", 3, Shape::Text),
    field("required", 4, Shape::Bool),
    field("schema", 5, Shape::Message(&SCHEMA)),
    field(EXTENSIONS, 6, Shape::Any),
];

static QUERY_PARAMETER: [Field; 9] = [
    field("required", 1, Shape::Bool),
    field("in", 2, Shape::Text),
    field("description", 3, Shape::Text),
    field("name", 4, Shape::Text),
    field("allowEmptyValue", 5, Shape::Bool),
    field("type", 6, Shape::Text),
    field("format", 7, Shape::Text),
    field("uniqueItems", 20, Shape::Bool),
    field(EXTENSIONS, 23, Shape::Any),
];

/// Of headers and paths.
static OTHER_PARAMETER: [Field; 8] = [
    field("required", 1, Shape::Bool),
    field("in", 2, Shape::Text),
    field("description", 3, Shape::Text),
    field("name", 4, Shape::Text),
    field("type", 5, Shape::Text),
    field("format", 6, Shape::Text),
    field("uniqueItems", 19, Shape::Bool),
    field(EXTENSIONS, 22, Shape::Any),
];

static API_KEY: [Field; 5] = [
    field("type", 1, Shape::Text),
    field("name", 2, Shape::Text),
    field("in", 3, Shape::Text),
    field("description", 4, Shape::Text),
    field(EXTENSIONS, 5, Shape::Any),
];

static INFO: [Field; 4] = [
    field("title", 1, Shape::Text),
    field("version", 2, Shape::Text),
    field("description", 3, Shape::Text),
    field(EXTENSIONS, 7, Shape::Any),
];

static DOCUMENT: [Field; 4] = [
    field("swagger", 1, Shape::Text),
    field("info", 2, Shape::Message(&INFO)),
    field("security", 12, Shape::Security),
    field("securityDefinitions", 13, Shape::SecuritySchemes),
];

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn key(out: &mut Vec<u8>, number: u32, wire: u32) {
    varint(out, u64::from(number << 3 | wire));
}

fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    key(out, number, BYTES);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn within(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    bytes(out, number, &inner);
}

fn truth(out: &mut Vec<u8>, number: u32) {
    key(out, number, VARINT);
    out.push(1);
}

fn texts(out: &mut Vec<u8>, number: u32, value: &Value) {
    for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
        bytes(out, number, text.as_bytes());
    }
}

/// `Any`: readers parse its text as YAML, which JSON is.
fn any(out: &mut Vec<u8>, number: u32, value: &Value) {
    within(out, number, |out| bytes(out, 2, format!("{value}\n").as_bytes()));
}

fn named(out: &mut Vec<u8>, number: u32, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    within(out, number, |out| {
        bytes(out, 1, name.as_bytes());
        within(out, 2, write);
    });
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn message(out: &mut Vec<u8>, fields: &'static [Field], value: &Value) {
    let Value::Object(members) = value else { return };
    for field in fields {
        if field.name == EXTENSIONS {
            for (name, value) in members.iter().filter(|(name, _)| name.starts_with(EXTENSIONS)) {
                within(out, field.number, |out| {
                    bytes(out, 1, name.as_bytes());
                    any(out, 2, value);
                });
            }
        } else if let Some(value) = members.get(field.name) {
            member(out, field, value);
        }
    }
}

fn member(out: &mut Vec<u8>, field: &Field, value: &Value) {
    let number = field.number;
    match field.shape {
        Shape::Text => {
            if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
                bytes(out, number, text.as_bytes());
            }
        }
        Shape::Bool if value == true => truth(out, number),
        Shape::Bool => {}
        Shape::Int => {
            if let Some(n) = value.as_i64().filter(|n| *n != 0) {
                key(out, number, VARINT);
                varint(out, n as u64);
            }
        }
        Shape::Double => {
            if let Some(n) = value.as_f64().filter(|n| *n != 0.0) {
                key(out, number, FIXED64);
                out.extend_from_slice(&n.to_le_bytes());
            }
        }
        Shape::Texts => texts(out, number, value),
        Shape::Any => any(out, number, value),
        Shape::Anys => elements(value).for_each(|v| any(out, number, v)),
        Shape::Message(fields) => within(out, number, |out| message(out, fields, value)),
        Shape::Messages(fields) => {
            elements(value).for_each(|v| within(out, number, |out| message(out, fields, v)));
        }
        Shape::Named(inner, fields) => within(out, number, |out| {
            for (name, value) in entries(value) {
                named(out, inner, name, |out| message(out, fields, value));
            }
        }),
        Shape::Type => within(out, number, |out| match value {
            Value::String(text) => bytes(out, 1, text.as_bytes()),
            many => texts(out, 1, many),
        }),
        Shape::Items => within(out, number, |out| match value {
            Value::Array(many) => {
                many.iter().for_each(|v| within(out, 1, |out| message(out, &SCHEMA, v)));
            }
            one => within(out, 1, |out| message(out, &SCHEMA, one)),
        }),
        Shape::SchemaOrBool => within(out, number, |out| match value {
            // Of alternatives even a false is written.
            Value::Bool(said) => {
                key(out, 2, VARINT);
                out.push(u8::from(*said));
            }
            schema => within(out, 1, |out| message(out, &SCHEMA, schema)),
        }),
        Shape::SchemaItem => {
            within(out, number, |out| within(out, 1, |out| message(out, &SCHEMA, value)));
        }
        Shape::Parameters => elements(value).for_each(|v| within(out, number, |out| parameter(out, v))),
        Shape::Responses => within(out, number, |out| {
            for (code, value) in entries(value) {
                named(out, 1, code, |out| within(out, 1, |out| message(out, &RESPONSE, value)));
            }
        }),
        Shape::Security => {
            for requirement in elements(value) {
                within(out, number, |out| {
                    for (name, scopes) in entries(requirement) {
                        named(out, 1, name, |out| texts(out, 1, scopes));
                    }
                });
            }
        }
        Shape::SecuritySchemes => within(out, number, |out| {
            for (name, scheme) in entries(value) {
                named(out, 1, name, |out| within(out, 2, |out| message(out, &API_KEY, scheme)));
            }
        }),
    }
}

/// `ParametersItem`.
fn parameter(out: &mut Vec<u8>, value: &Value) {
    if value.get("$ref").is_some() {
        return within(out, 2, |out| message(out, &REFERENCE, value));
    }
    within(out, 1, |out| match value.get("in").and_then(Value::as_str) {
        Some("body") => within(out, 1, |out| message(out, &BODY_PARAMETER, value)),
        Some("query") => within(out, 2, |out| within(out, 3, |out| message(out, &QUERY_PARAMETER, value))),
        Some("header") => within(out, 2, |out| within(out, 1, |out| message(out, &OTHER_PARAMETER, value))),
        _ => within(out, 2, |out| within(out, 4, |out| message(out, &OTHER_PARAMETER, value))),
    });
}

/// A document in the making: paths and definitions come one by one.
#[derive(Default)]
pub(super) struct Document {
    paths: Vec<u8>,
    definitions: Vec<u8>,
}

impl Document {
    pub(super) fn path(&mut self, path: &str, item: &Value) {
        named(&mut self.paths, 2, path, |out| message(out, &PATH_ITEM, item));
    }

    pub(super) fn definition(&mut self, name: &str, schema: &Value) {
        named(&mut self.definitions, 1, name, |out| message(out, &SCHEMA, schema));
    }

    /// The document, with what its other members say.
    pub(super) fn finish(self, others: Map<String, Value>) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.paths.len() + self.definitions.len() + 256);
        message(&mut out, &DOCUMENT, &Value::Object(others));
        bytes(&mut out, 8, &self.paths);
        bytes(&mut out, 9, &self.definitions);
        out
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A message as text: `number{…}` for what can be read as one, `number"…"` or `number=…` otherwise.
    fn text(mut rest: &[u8]) -> String {
        fn take(rest: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            while let Some((first, more)) = rest.split_first() {
                *rest = more;
                value |= u64::from(first & 0x7f) << shift;
                shift += 7;
                if first & 0x80 == 0 {
                    break;
                }
            }
            value
        }
        let mut out = String::new();
        while !rest.is_empty() {
            let key = take(&mut rest);
            let number = key >> 3;
            match (key & 7) as u32 {
                VARINT => out += &format!("{number}={} ", take(&mut rest)),
                BYTES => {
                    let len = take(&mut rest) as usize;
                    let (content, more) = rest.split_at(len);
                    rest = more;
                    match std::str::from_utf8(content) {
                        Ok(words) if words.bytes().all(|b| b == b'\n' || (0x20..0x7f).contains(&b)) => {
                            out += &format!("{number}{words:?} ");
                        }
                        _ => out += &format!("{number}{{{}}} ", text(content).trim_end()),
                    }
                }
                wire => panic!("wire type {wire}"),
            }
        }
        out
    }

    #[test]
    fn schemas() {
        for (schema, want) in [
            (json!({"$ref": "#/definitions/a"}), r##"1"#/definitions/a""##),
            (json!({"type": "object", "required": ["a", "b"]}), r#"19"a" 19"b" 22{1"object"}"#),
            (json!({"type": ["string", "null"], "minLength": 3}), r#"12=3 22{1"string" 1"null"}"#),
            (json!({"type": "array", "items": {"type": "string"}}), r#"22{1"array"} 23{1{22{1"string"}}}"#),
            (json!({"additionalProperties": {"format": "x"}}), r#"21{1{2"x"}}"#),
            (json!({"additionalProperties": false}), r#"21{2=0}"#),
            (json!({"properties": {"a": {"default": {"b": 1}}}}), r#"25{1{1"a" 2{5{2"{\"b\":1}\n"}}}}"#),
            (json!({"x-a": [1], "enum": ["b"]}), r#"20{2"\"b\"\n"} 31{1"x-a" 2{2"[1]\n"}}"#),
        ] {
            let mut out = Vec::new();
            message(&mut out, &SCHEMA, &schema);
            assert_eq!(text(&out).trim_end(), want, "{schema}");
        }
    }

    #[test]
    fn documents() {
        let mut document = Document::default();
        let path = json!({"name": "p", "in": "path", "required": true, "type": "string"});
        let query = json!({"name": "q", "in": "query", "type": "string", "uniqueItems": true});
        let body = json!({"name": "body", "in": "body", "schema": {"$ref": "r"}});
        let patch = json!({"operationId": "o", "parameters": [query, body],
            "responses": {"200": {"description": "OK", "schema": {"$ref": "r"}}}, "x-k": "v"});
        document.path("/a/{p}", &json!({"patch": patch, "parameters": [path]}));
        document.definition("d", &json!({"description": "words"}));
        let others = json!({"swagger": "2.0", "info": {"title": "t"}, "security": [{"s": []}]});
        let Value::Object(others) = others else { panic!() };
        let text = text(&document.finish(others));
        let patch = r#"8{5"o" 8{1{2{3{2"query" 4"q" 6"string" 20=1}}}} 8{1{1{2"body" 3"body" 5{1"r"}}}} 9{1{1"200" 2{1{1"OK" 2{1{1"r"}}}}}} 13{1"x-k" 2{2"\"v\"\n"}}}"#;
        let path = r#"9{1{2{4{1=1 2"path" 4"p" 5"string"}}}}"#;
        let want = format!(
            r#"1"2.0" 2{{1"t"}} 12{{1{{1"s" 2""}}}} 8{{2{{1"/a/{{p}}" 2{{{patch} {path}}}}}}} 9{{1{{1"d" 2{{4"words"}}}}}} "#
        );
        assert_eq!(text, want);
    }
}
