//! What every type looks like: its fields, how lists and maps merge, how it travels in protobuf.
//!
//! Built-in types are statics made by build.rs from `tables/types.tsv` (no heap, no start-up cost); the schemas of
//! custom resources are built at run time from their OpenAPI and look the same.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use serde_json::{Map, Value};

/// One type.
#[derive(Debug)]
pub struct Schema {
    pub kind: Kind,
    /// OpenAPI name of built-in types (`io.k8s.api.core.v1.Pod`), else empty.
    pub name: &'static str,
    /// The name of the Go type, where error messages tell it (`v1.Protocol`).
    pub go: &'static str,
    flags: u8,
    default: Option<Box<Value>>,
    /// By outermost protobuf number, the index plus one of a field that has it.
    numbers: &'static [u8],
    /// The fields that Go always writes, by index.
    always: &'static [u8],
}

const ATOMIC: u8 = 1;
const NULLABLE: u8 = 2;
const PRESERVE: u8 = 4;
const EMBEDDED: u8 = 8;
const MESSAGE: u8 = 16;
const CUSTOM: u8 = 32;
const GRANULAR: u8 = 64;

#[derive(Debug)]
pub enum Kind {
    Object(Fields),
    Map(Ref),
    List(Ref, ListType),
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    /// RFC 3339 in whole seconds.
    Time,
    /// RFC 3339 in microseconds.
    MicroTime,
    Duration,
    IntOrString,
    /// Another object, whatever it is.
    Raw,
    /// A set of fields in the notation of managed fields.
    FieldsV1,
    /// Any JSON.
    Any,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStringArray,
}

/// How a list is merged and owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    /// Elements are identified by these fields.
    Map(Cow<'static, [Cow<'static, str>]>),
}

/// A schema within a schema.
#[derive(Clone, Debug)]
pub enum Ref {
    Static(&'static Schema),
    Shared(Arc<Schema>),
}

impl Deref for Ref {
    type Target = Schema;

    fn deref(&self) -> &Schema {
        match self {
            Ref::Static(s) => s,
            Ref::Shared(s) => s,
        }
    }
}

impl From<Schema> for Ref {
    fn from(schema: Schema) -> Ref {
        Ref::Shared(Arc::new(schema))
    }
}

/// The fields of an object, sorted by name.
#[derive(Debug)]
pub enum Fields {
    Static(&'static [Field]),
    Owned(Box<[Field]>),
}

impl Deref for Fields {
    type Target = [Field];

    fn deref(&self) -> &[Field] {
        match self {
            Fields::Static(f) => f,
            Fields::Owned(f) => f,
        }
    }
}

/// One field of an object.
#[derive(Debug)]
pub struct Field {
    pub name: Cow<'static, str>,
    pub schema: Ref,
    flags: u8,
    /// Protobuf numbers on the way to the field, one per message; zeros fill up. All zero: not in protobuf.
    pub numbers: [u8; 4],
    /// `patchStrategy` of strategic merge patches: empty, `merge`, `replace`, `retainKeys` or `merge,retainKeys`.
    pub patch_strategy: &'static str,
    pub patch_merge_key: &'static str,
    /// JSON text; empty where there is none.
    default: &'static str,
}

const POINTER: u8 = 1;
const OMIT_EMPTY: u8 = 2;
const OMIT_ZERO: u8 = 4;
const REQUIRED: u8 = 8;

impl Field {
    const fn fixed(
        name: &'static str,
        schema: &'static Schema,
        flags: u8,
        numbers: [u8; 4],
        patch_strategy: &'static str,
        patch_merge_key: &'static str,
        default: &'static str,
    ) -> Field {
        Field {
            name: Cow::Borrowed(name),
            schema: Ref::Static(schema),
            flags,
            numbers,
            patch_strategy,
            patch_merge_key,
            default,
        }
    }

    pub fn required(&self) -> bool {
        self.flags & REQUIRED != 0
    }

    /// Whether the zero value differs from absence: Go has a pointer there, or the field belongs to a custom resource.
    pub fn pointer(&self) -> bool {
        self.flags & POINTER != 0 || self.schema.is_custom()
    }

    /// Whether Go leaves the field out when it holds the zero value of a type that has no fields.
    pub fn omit_empty(&self) -> bool {
        self.flags & (OMIT_EMPTY | OMIT_ZERO) != 0
    }

    /// Whether Go leaves even an empty struct out.
    pub fn omit_zero(&self) -> bool {
        self.flags & OMIT_ZERO != 0
    }

    pub fn default(&self) -> Option<Value> {
        if !self.default.is_empty() {
            return serde_json::from_str(self.default).ok();
        }
        self.schema.default().cloned()
    }

    /// Go's zero value, for the fields that always have a value.
    pub fn zero(&self) -> Option<Value> {
        if self.pointer() {
            return None;
        }
        match self.schema.kind {
            Kind::Object(_) if !self.schema.name.is_empty() => Some(Value::Object(Map::new())),
            _ if self.omit_empty() => None,
            Kind::String => Some("".into()),
            Kind::Bool => Some(false.into()),
            Kind::Int32 | Kind::Int64 | Kind::Double => Some(0.into()),
            _ => None,
        }
    }

    /// What a key that identifies elements of a list is where it is left out.
    pub(crate) fn key_zero(&self) -> Option<Value> {
        match self.schema.kind {
            Kind::String if !self.pointer() => Some("".into()),
            _ => self.zero(),
        }
    }

    pub fn merges(&self) -> bool {
        self.patch_strategy.split(',').any(|s| s == "merge")
    }

    pub fn retains_keys(&self) -> bool {
        self.patch_strategy.split(',').any(|s| s == "retainKeys")
    }
}

impl Schema {
    const fn make(kind: Kind, name: &'static str, go: &'static str, flags: u8) -> Schema {
        Schema { kind, name, go, flags, default: None, numbers: &[], always: &[] }
    }

    const fn named(
        name: &'static str,
        go: &'static str,
        flags: u8,
        fields: &'static [Field],
        numbers: &'static [u8],
        always: &'static [u8],
    ) -> Schema {
        Schema { kind: Kind::Object(Fields::Static(fields)), name, go, flags, default: None, numbers, always }
    }

    /// A field with this outermost protobuf number.
    pub(crate) fn numbered(&self, number: u64) -> Option<&Field> {
        let index = *self.numbers.get(usize::try_from(number).ok()?)?;
        self.fields().get(usize::from(index).checked_sub(1)?)
    }

    /// Adds what Go always writes.
    pub(crate) fn fill(&self, object: &mut Map<String, Value>) {
        let fields = self.fields();
        for index in self.always {
            let Some(field) = fields.get(usize::from(*index)) else { continue };
            if !object.contains_key(&*field.name) {
                object.insert(field.name.clone().into_owned(), field.schema.zero());
            }
        }
    }

    fn writes_always(&self, index: usize) -> bool {
        self.always.iter().any(|i| usize::from(*i) == index)
    }

    const fn list(items: &'static Schema, list: ListType) -> Schema {
        Schema::make(Kind::List(Ref::Static(items), list), "", "", 0)
    }

    const fn message_list(items: &'static Schema) -> Schema {
        Schema::make(Kind::List(Ref::Static(items), ListType::Atomic), "", "", MESSAGE)
    }

    const fn map(values: &'static Schema, flags: u8) -> Schema {
        Schema::make(Kind::Map(Ref::Static(values)), "", "", flags)
    }

    const fn scalar(kind: Kind, go: &'static str) -> Schema {
        Schema::make(kind, "", go, 0)
    }

    /// The field of an object.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let fields = self.fields();
        fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok().map(|i| &fields[i])
    }

    /// As [`Schema::field`], quicker where names come in order: `expected` is the place of the field looked for last,
    /// or where to begin.
    pub(crate) fn field_near(&self, name: &str, expected: &mut usize) -> Option<&Field> {
        let fields = self.fields();
        let near = fields.get(*expected..).unwrap_or_default();
        // Names that are left out are passed over, a few of them.
        for (i, field) in near.iter().take(4).enumerate() {
            match field.name.as_ref().cmp(name) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => {
                    *expected += i + 1;
                    return Some(field);
                }
                std::cmp::Ordering::Greater => break,
            }
        }
        let found = fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok()?;
        *expected = found + 1;
        Some(&fields[found])
    }

    /// The fields of an object, sorted by name; empty for all else.
    pub fn fields(&self) -> &[Field] {
        match &self.kind {
            Kind::Object(fields) => fields,
            _ => &[],
        }
    }

    /// What a list holds.
    pub fn items(&self) -> Option<&Schema> {
        match &self.kind {
            Kind::List(items, _) => Some(items),
            _ => None,
        }
    }

    /// What a map holds.
    pub fn additional(&self) -> Option<&Schema> {
        match &self.kind {
            Kind::Map(values) => Some(values),
            _ => None,
        }
    }

    /// The schema of a member of an object or a map.
    pub fn member(&self, name: &str) -> Option<&Schema> {
        match &self.kind {
            Kind::Map(values) => Some(values),
            _ => self.field(name).map(|f| &*f.schema),
        }
    }

    /// Whether a field says that its members are owned one by one.
    pub fn granular(&self) -> bool {
        self.flags & GRANULAR != 0
    }

    /// Whether the value is owned and replaced as a whole.
    pub fn atomic(&self) -> bool {
        self.flags & ATOMIC != 0
    }

    pub fn nullable(&self) -> bool {
        self.flags & NULLABLE != 0
    }

    /// Whether unknown fields stay.
    pub fn preserves_unknown(&self) -> bool {
        self.flags & PRESERVE != 0
    }

    /// Whether the value is a complete object of its own.
    pub fn embedded(&self) -> bool {
        self.flags & EMBEDDED != 0
    }

    /// Whether a list is a message of its own in protobuf.
    pub(crate) fn message(&self) -> bool {
        self.flags & MESSAGE != 0
    }

    /// Whether this is (part of) a custom resource: types are validated later, not while decoding.
    pub fn is_custom(&self) -> bool {
        self.flags & CUSTOM != 0
    }

    pub fn default(&self) -> Option<&Value> {
        self.default.as_deref()
    }

    /// The Go type as error messages name it.
    pub fn go_type(&self) -> String {
        if !self.go.is_empty() {
            return self.go.to_owned();
        }
        match &self.kind {
            // Amounts by resource have a type of their own.
            Kind::Map(values) if matches!(values.kind, Kind::Quantity) => "v1.ResourceList".into(),
            Kind::Map(values) => format!("map[string]{}", values.go_type()),
            Kind::List(items, _) => format!("[]{}", items.go_type()),
            Kind::String => "string".into(),
            Kind::Bool => "bool".into(),
            Kind::Int32 => "int32".into(),
            Kind::Int64 => "int64".into(),
            Kind::Double => "float64".into(),
            Kind::Bytes => "[]uint8".into(),
            Kind::Quantity => "resource.Quantity".into(),
            Kind::Time => "v1.Time".into(),
            Kind::MicroTime => "v1.MicroTime".into(),
            Kind::Duration => "v1.Duration".into(),
            // What it is if it is no text.
            Kind::IntOrString => "int32".into(),
            Kind::Raw => "runtime.RawExtension".into(),
            Kind::FieldsV1 => "v1.FieldsV1".into(),
            Kind::Object(_) | Kind::Any => "map[string]interface {}".into(),
            Kind::SchemaOrArray => "v1.JSONSchemaPropsOrArray".into(),
            Kind::SchemaOrBool => "v1.JSONSchemaPropsOrBool".into(),
            Kind::SchemaOrStringArray => "v1.JSONSchemaPropsOrStringArray".into(),
        }
    }

    /// The value Go writes where nothing is set.
    pub(crate) fn zero(&self) -> Value {
        match &self.kind {
            Kind::String => Value::String(String::new()),
            Kind::Bool => Value::Bool(false),
            Kind::Quantity => Value::String("0".into()),
            Kind::Int32 | Kind::Int64 | Kind::Double => Value::from(0),
            Kind::Object(_) => {
                let mut object = Map::new();
                self.fill(&mut object);
                Value::Object(object)
            }
            _ => Value::Null,
        }
    }

    /// An object of which nothing is set, as Go writes it, nulls included.
    pub(crate) fn blank(&self) -> Value {
        let mut object = Map::new();
        for (i, field) in self.fields().iter().enumerate() {
            let nothing = match field.schema.kind {
                _ if field.pointer() || field.omit_zero() || field.numbers == [0; 4] => continue,
                Kind::Object(_) => field.schema.blank(),
                _ if self.writes_always(i) => field.schema.zero(),
                _ => continue,
            };
            object.insert(field.name.clone().into_owned(), nothing);
        }
        Value::Object(object)
    }

    /// The schema of a custom resource version, from its `openAPIV3Schema` (or `Null`: anything goes).
    pub fn custom(open_api: &Value) -> Arc<Schema> {
        let mut schema = if open_api.is_null() {
            Schema::make(Kind::Object(Fields::Owned(Box::default())), "", "", CUSTOM | PRESERVE)
        } else {
            from_open_api(open_api)
        };
        if !matches!(schema.kind, Kind::Object(_)) {
            schema.kind = Kind::Object(Fields::Owned(Box::default()));
        }
        add_object_fields(&mut schema);
        Arc::new(schema)
    }
}

fn add_object_fields(schema: &mut Schema) {
    let Kind::Object(fields) = &mut schema.kind else { return };
    let old = std::mem::replace(fields, Fields::Static(&[]));
    let mut all: Vec<Field> = match old {
        Fields::Owned(fields) => fields.into_vec(),
        Fields::Static(_) => vec![],
    };
    all.retain(|f| !matches!(&*f.name, "apiVersion" | "kind" | "metadata"));
    for (name, schema) in [
        ("apiVersion", Some(&STRING)),
        ("kind", Some(&STRING)),
        ("metadata", builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")),
    ] {
        if let Some(schema) = schema {
            all.push(Field::fixed(name, schema, OMIT_EMPTY, [0; 4], "", "", ""));
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    *fields = Fields::Owned(all.into());
}

fn from_open_api(open_api: &Value) -> Schema {
    let flag = |name: &str| open_api[name].as_bool().unwrap_or(false);
    let text = |name: &str| open_api[name].as_str().unwrap_or_default();
    let mut flags = CUSTOM;
    if flag("nullable") {
        flags |= NULLABLE;
    }
    if flag("x-kubernetes-preserve-unknown-fields") {
        flags |= PRESERVE;
    }
    if flag("x-kubernetes-embedded-resource") {
        flags |= EMBEDDED;
    }
    if text("x-kubernetes-map-type") == "atomic" {
        flags |= ATOMIC;
    }
    let additional = &open_api["additionalProperties"];
    let kind = match text("type") {
        _ if flag("x-kubernetes-int-or-string") => Kind::IntOrString,
        "object" | "" if open_api["properties"].is_object() => Kind::Object(properties(open_api)),
        "object" if additional.is_object() => Kind::Map(from_open_api(additional).into()),
        "object" if additional == &Value::Bool(true) => {
            Kind::Map(Schema::make(Kind::Any, "", "", CUSTOM | PRESERVE | NULLABLE).into())
        }
        "object" => Kind::Object(Fields::Owned(Box::default())),
        "array" => {
            let list = match text("x-kubernetes-list-type") {
                "set" => ListType::Set,
                "map" => ListType::Map(
                    open_api["x-kubernetes-list-map-keys"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|k| k.as_str().map(|k| Cow::Owned(k.to_owned())))
                        .collect(),
                ),
                _ => ListType::Atomic,
            };
            Kind::List(from_open_api(&open_api["items"]).into(), list)
        }
        "string" => Kind::String,
        "boolean" => Kind::Bool,
        "integer" => Kind::Int64,
        "number" => Kind::Double,
        _ => Kind::Any,
    };
    let default = open_api.get("default").map(|v| Box::new(v.clone()));
    let mut schema = Schema { default, ..Schema::make(kind, "", "", flags) };
    if schema.embedded() {
        add_object_fields(&mut schema);
    }
    schema
}

fn properties(open_api: &Value) -> Fields {
    let required: Vec<&str> =
        open_api["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut fields: Vec<Field> = open_api["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, property)| Field {
            flags: if required.contains(&name.as_str()) { REQUIRED } else { 0 },
            name: Cow::Owned(name.clone()),
            schema: from_open_api(property).into(),
            numbers: [0; 4],
            patch_strategy: "",
            patch_merge_key: "",
            default: "",
        })
        .collect();
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    Fields::Owned(fields.into())
}

static STRING: Schema = Schema::scalar(Kind::String, "");

include!(concat!(env!("OUT_DIR"), "/types.rs"));

/// A built-in type by its OpenAPI name.
pub fn builtin(open_api_name: &str) -> Option<&'static Schema> {
    NAMES.binary_search_by(|(name, _)| (*name).cmp(open_api_name)).ok().map(|i| NAMES[i].1)
}

/// All built-in types, sorted by OpenAPI name.
pub fn all() -> impl Iterator<Item = (&'static str, &'static Schema)> {
    NAMES.iter().copied()
}

/// All built-in kinds as (group, version, kind, schema), sorted.
pub fn kinds() -> &'static [(&'static str, &'static str, &'static str, &'static Schema)] {
    KINDS
}

/// The schema of a built-in kind; `group` is empty for the core group. Options and `Status` exist in every group.
pub fn for_kind(group: &str, version: &str, kind: &str) -> Option<&'static Schema> {
    if let Ok(i) = KINDS.binary_search_by(|(g, v, k, _)| (*g, *v, *k).cmp(&(group, version, kind))) {
        return Some(KINDS[i].3);
    }
    let meta = match kind {
        "CreateOptions"
        | "UpdateOptions"
        | "PatchOptions"
        | "DeleteOptions"
        | "GetOptions"
        | "ListOptions"
        | "Status"
        | "APIGroup"
        | "APIGroupList"
        | "APIResourceList"
        | "APIVersions"
        | "WatchEvent"
        | "PartialObjectMetadata"
        | "PartialObjectMetadataList"
        | "Table"
        | "TableOptions" => {
            format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")
        }
        "AdmissionReview" if group == "admission.k8s.io" => "io.k8s.api.admission.v1.AdmissionReview".into(),
        "ConversionReview" if group == "apiextensions.k8s.io" => {
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.ConversionReview".into()
        }
        "APIGroupDiscovery" | "APIGroupDiscoveryList" if group == "apidiscovery.k8s.io" => {
            format!("io.k8s.api.apidiscovery.v2.{kind}")
        }
        "PodLogOptions"
        | "PodExecOptions"
        | "PodAttachOptions"
        | "PodPortForwardOptions"
        | "PodProxyOptions"
        | "NodeProxyOptions"
        | "ServiceProxyOptions"
        | "RangeAllocation"
            if group.is_empty() =>
        {
            format!("io.k8s.api.core.v1.{kind}")
        }
        _ => return None,
    };
    builtin(&meta)
}

/// `metav1.ObjectMeta`.
pub fn object_meta() -> &'static Schema {
    builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").expect("the table has it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_types() {
        let pod = for_kind("", "v1", "Pod").unwrap();
        assert_eq!(pod.name, "io.k8s.api.core.v1.Pod");
        let containers = pod.field("spec").unwrap().schema.field("containers").unwrap();
        assert!(containers.required() && containers.merges() && containers.patch_merge_key == "name");
        let Kind::List(container, ListType::Map(keys)) = &containers.schema.kind else { panic!() };
        assert_eq!(&keys[..], ["name"]);
        assert_eq!(container.go, "v1.Container");
        let ports = container.field("ports").unwrap();
        assert_eq!(ports.numbers, [6, 0, 0, 0]);
        let protocol = ports.schema.items().unwrap().field("protocol").unwrap();
        assert_eq!(protocol.default(), Some(json!("TCP")));
        assert!(for_kind("apps", "v1", "DeleteOptions").is_some());
        for resource in crate::resources::all() {
            assert!(for_kind(resource.group, resource.version, resource.kind).is_some(), "{resource:?}");
        }
    }

    #[test]
    fn builds_custom_schemas() {
        let schema = Schema::custom(&json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"ports": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["port"], "items": {"type": "object", "properties": {
                    "port": {"type": "integer", "default": 80}}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}}}}}}));
        let spec = &schema.field("spec").unwrap().schema;
        let Kind::List(item, ListType::Map(keys)) = &spec.field("ports").unwrap().schema.kind else {
            panic!()
        };
        assert_eq!(
            (&keys[..], item.field("port").unwrap().default()),
            (&[Cow::Borrowed("port")][..], Some(json!(80)))
        );
        assert!(spec.member("labels").unwrap().additional().is_some());
        assert!(schema.field("metadata").unwrap().schema.field("name").is_some());
    }
}
