//! OpenAPI documents of what is served, made from the schema tables and the resource rows. Documents are written
//! piece by piece, so that building one never holds it as a tree. Descriptions of
//! built-in types are those of the crate `k8s-openapi`.

mod definitions;
mod facts;
mod paths;
mod protobuf;

pub use paths::deletes_to_object;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::resources::{self, ResourceInfo};
use crate::schema;
use facts::Facts;

pub use definitions::custom_definition_name;

/// The content type of version 3 documents is plain JSON; this names the version documents claim.
pub const VERSION: &str = "1.36";

/// Which OpenAPI is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavor {
    V2,
    V3,
}

impl Flavor {
    fn reference(self, name: &str) -> Value {
        Value::String(match self {
            Flavor::V2 => format!("#/definitions/{name}"),
            Flavor::V3 => format!("#/components/schemas/{name}"),
        })
    }
}

/// One served version of a custom resource.
#[derive(Clone, Debug, Default)]
pub struct CustomResource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub list_kind: String,
    pub namespaced: bool,
    /// The version's `openAPIV3Schema`; `Null` where it has none.
    pub schema: Value,
    /// `spec.preserveUnknownFields`.
    pub preserve_unknown: bool,
    pub status: bool,
    pub scale: bool,
    /// `selectableFields` of the version, as they are in the definition; `Null` for none.
    pub selectable_fields: Value,
}

/// A resource as paths see it, built-in or custom.
struct Served {
    group: String,
    version: String,
    plural: String,
    kind: String,
    namespaced: bool,
    verbs: Vec<String>,
    /// Definition of the object and of its list.
    definition: String,
    list_definition: Option<String>,
    subresources: Vec<Sub>,
    custom: bool,
}

struct Sub {
    name: String,
    group: String,
    version: String,
    kind: String,
    definition: Option<String>,
    verbs: Vec<String>,
}

impl Served {
    fn builtin(info: &ResourceInfo) -> Option<Served> {
        let schema = schema::for_kind(info.group, info.version, info.kind)?;
        let list = schema::for_kind(info.group, info.version, &format!("{}List", info.kind));
        Some(Served {
            group: info.group.into(),
            version: info.version.into(),
            plural: info.resource.into(),
            kind: info.kind.into(),
            namespaced: info.namespaced,
            verbs: info.verbs.iter().map(|v| (*v).to_owned()).collect(),
            definition: schema.name.into(),
            list_definition: list.map(|s| s.name.to_owned()),
            subresources: info
                .subresources
                .iter()
                .map(|s| {
                    let (group, version) = (s.group.unwrap_or(info.group), s.version.unwrap_or(info.version));
                    Sub {
                        name: s.name.into(),
                        group: group.into(),
                        version: version.into(),
                        kind: s.kind.into(),
                        definition: schema::for_kind(group, version, s.kind)
                            .filter(|_| !s.kind.ends_with("Options"))
                            .map(|s| s.name.to_owned()),
                        verbs: s.verbs.iter().map(|v| (*v).to_owned()).collect(),
                    }
                })
                .collect(),
            custom: false,
        })
    }

    fn custom(resource: &CustomResource) -> Served {
        let name = |kind: &str| custom_definition_name(&resource.group, &resource.version, kind);
        let verbs = |list: &[&str]| list.iter().map(|v| (*v).to_owned()).collect();
        let mut subresources = vec![];
        if resource.status {
            subresources.push(Sub {
                name: "status".into(),
                group: resource.group.clone(),
                version: resource.version.clone(),
                kind: resource.kind.clone(),
                definition: Some(name(&resource.kind)),
                verbs: verbs(&["get", "patch", "update"]),
            });
        }
        if resource.scale {
            subresources.push(Sub {
                name: "scale".into(),
                group: "autoscaling".into(),
                version: "v1".into(),
                kind: "Scale".into(),
                definition: Some("io.k8s.api.autoscaling.v1.Scale".into()),
                verbs: verbs(&["get", "patch", "update"]),
            });
        }
        Served {
            group: resource.group.clone(),
            version: resource.version.clone(),
            plural: resource.plural.clone(),
            kind: resource.kind.clone(),
            namespaced: resource.namespaced,
            verbs: verbs(&[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ]),
            definition: name(&resource.kind),
            list_definition: Some(name(&resource.list_kind)),
            subresources,
            custom: true,
        }
    }
}

/// What fields are for, given as types and names.
pub fn descriptions(fields: &[(&str, &str)]) -> Vec<String> {
    let facts = Facts::load();
    fields.iter().map(|(name, field)| facts.description(name, field).to_owned()).collect()
}

/// The version 3 document of one built-in group and version (`group` is empty for the core group); `None` if there is
/// none.
pub fn v3_for_group(group: &str, version: &str) -> Option<Vec<u8>> {
    let served: Vec<Served> = resources::all()
        .iter()
        .filter(|r| r.group == group && r.version == version)
        .filter_map(Served::builtin)
        .collect();
    if served.is_empty() {
        return None;
    }
    Some(v3(group, version, &served, &[]))
}

/// The version 3 document of custom resources that share a group and a version.
pub fn v3_for_custom(group: &str, version: &str, customs: &[CustomResource]) -> Vec<u8> {
    let served: Vec<Served> = customs.iter().map(Served::custom).collect();
    v3(group, version, &served, customs)
}

/// The version 3 documents of a few paths of the server's own, of groups among them: `api`, `apis`, `apis/apps`,
/// `version`, … `groups` are those served.
pub fn v3_others(groups: &[&str]) -> Vec<(String, Vec<u8>)> {
    let facts = Facts::load();
    let document = |path: &str, definition: Option<String>, item: &Value| {
        let mut names = BTreeSet::new();
        definition.into_iter().for_each(|d| add_with_references(d, &mut names));
        let mut schemas = Map::new();
        for name in names {
            if let Some(schema) = schema::builtin(&name) {
                schemas.insert(name, definitions::builtin(Flavor::V3, &facts, schema));
            }
        }
        let mut components = json!({"securitySchemes": {"BearerToken": bearer_token()}});
        if !schemas.is_empty() {
            components["schemas"] = Value::Object(schemas);
        }
        let document = json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION},
            "paths": {path: item}, "components": components});
        document.to_string().into_bytes()
    };
    paths::others(Flavor::V3, groups)
        .into_iter()
        .map(|(at, path, definition, item)| (at, document(&path, definition, &item)))
        .collect()
}

/// The paths of `/openapi/v3` that built-in groups have: `api/v1`, `apis/apps/v1`, …
pub fn v3_paths() -> Vec<String> {
    let mut paths: Vec<String> = resources::all()
        .iter()
        .map(|r| {
            if r.group.is_empty() {
                format!("api/{}", r.version)
            } else {
                format!("apis/{}/{}", r.group, r.version)
            }
        })
        .collect();
    paths.dedup();
    paths
}

/// Which group versions are served.
pub type IsServed<'a> = &'a dyn Fn(&str, &str) -> bool;

/// The version 2 document, as JSON: what is built in and served, by group and version, and `customs`.
pub fn v2(customs: &[CustomResource], is_served: IsServed<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    out.push(b'{');
    for (name, value) in others_of_v2() {
        write(&mut out, &Value::String(name));
        out.push(b':');
        write(&mut out, &value);
        out.push(b',');
    }
    out.extend_from_slice(br#""paths":{"#);
    let mut members = Members::new(&mut out);
    let mut paths = true;
    for_each_of_v2(customs, is_served, &mut |part, name, value| {
        if part == Part::Definition && paths {
            paths = false;
            members.out.extend_from_slice(br#"},"definitions":{"#);
            members.first = true;
        }
        members.add(name, value);
    });
    out.extend_from_slice(b"}}");
    out
}

/// The version 2 document, as the message `openapi.v2.Document`.
pub fn v2_protobuf(customs: &[CustomResource], is_served: IsServed<'_>) -> Vec<u8> {
    let mut document = protobuf::Document::default();
    for_each_of_v2(customs, is_served, &mut |part, name, value| match part {
        Part::Path => document.path(name, value),
        Part::Definition => document.definition(name, value),
    });
    document.finish(others_of_v2())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Path,
    Definition,
}

/// Paths first, then definitions.
fn for_each_of_v2(
    customs: &[CustomResource],
    is_served: IsServed<'_>,
    add: &mut dyn FnMut(Part, &str, &Value),
) {
    let facts = Facts::load();
    let builtin = resources::all().iter().filter(|r| is_served(r.group, r.version));
    let mut served: Vec<Served> = builtin.filter_map(Served::builtin).collect();
    served.extend(customs.iter().map(Served::custom));
    let mut groups: Vec<(String, String)> =
        served.iter().map(|s| (s.group.clone(), s.version.clone())).collect();
    groups.dedup();
    for (group, version) in &groups {
        let (path, item) = paths::group_path(Flavor::V2, group, version);
        add(Part::Path, &path, &item);
    }
    for served in &served {
        for (path, item) in paths::paths_of(Flavor::V2, served) {
            add(Part::Path, &path, &item);
        }
    }
    let mut names = closure(&served);
    let mut groups: Vec<&str> = groups.iter().map(|(group, _)| group.as_str()).collect();
    groups.dedup();
    for (_, path, definition, item) in paths::others(Flavor::V2, &groups) {
        add(Part::Path, &path, &item);
        definition.into_iter().for_each(|d| add_with_references(d, &mut names));
    }
    for name in names {
        if let Some(schema) = schema::builtin(&name) {
            let mut definition = definitions::builtin(Flavor::V2, &facts, schema);
            if let Some(kind @ ("DeleteOptions" | "WatchEvent")) = name.strip_prefix(META) {
                definitions::registered(&mut definition, kind, &definitions::all_registered());
            }
            add(Part::Definition, &name, &definition);
        } else if let Some(special) = definitions::special(Flavor::V2, &facts, &name) {
            add(Part::Definition, &name, &special);
        }
    }
    for custom in customs {
        for (name, definition) in definitions::custom(Flavor::V2, &facts, custom) {
            add(Part::Definition, &name, &definition);
        }
    }
}

/// The members of version 2 beside paths and definitions.
fn others_of_v2() -> Map<String, Value> {
    let others = [
        ("swagger", json!("2.0")),
        ("info", json!({"title": "Kubernetes", "version": VERSION})),
        ("securityDefinitions", json!({"BearerToken": bearer_token()})),
        ("security", json!([{"BearerToken": []}])),
    ];
    others.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn bearer_token() -> Value {
    json!({"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"})
}

fn v3(group: &str, version: &str, served: &[Served], customs: &[CustomResource]) -> Vec<u8> {
    let facts = Facts::load();
    let mut out = Vec::with_capacity(256 << 10);
    out.extend_from_slice(br#"{"openapi":"3.0.0","info":{"title":"Kubernetes","version":""#);
    out.extend_from_slice(VERSION.as_bytes());
    out.extend_from_slice(br#""},"paths":{"#);
    let mut paths = Members::new(&mut out);
    let (path, item) = paths::group_path(Flavor::V3, group, version);
    paths.add(&path, &item);
    for served in served {
        for (path, item) in paths::paths_of(Flavor::V3, served) {
            paths.add(&path, &item);
        }
    }
    out.extend_from_slice(br#"},"components":{"schemas":{"#);
    let mut definitions = Members::new(&mut out);
    for name in closure(served) {
        if let Some(schema) = schema::builtin(&name) {
            let mut definition = definitions::builtin(Flavor::V3, &facts, schema);
            // Every group has these.
            if let Some(kind @ ("DeleteOptions" | "WatchEvent")) = name.strip_prefix(META) {
                definitions::registered(&mut definition, kind, &[(group, version)]);
            }
            definitions.add(&name, &definition);
        } else if let Some(special) = definitions::special(Flavor::V3, &facts, &name) {
            definitions.add(&name, &special);
        }
    }
    for custom in customs {
        for (name, definition) in definitions::custom(Flavor::V3, &facts, custom) {
            definitions.add(&name, &definition);
        }
    }
    out.extend_from_slice(b"},\"securitySchemes\":");
    write(&mut out, &json!({"BearerToken": bearer_token()}));
    out.extend_from_slice(b"}}");
    out
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

fn add_with_references(name: String, names: &mut BTreeSet<String>) {
    let mut todo = vec![name];
    while let Some(name) = todo.pop() {
        if names.insert(name.clone())
            && let Some(schema) = schema::builtin(&name)
        {
            let mut found = vec![];
            definitions::references(schema, &mut found);
            todo.extend(found);
        }
    }
}

/// The names of all definitions that the paths of `served` need.
fn closure(served: &[Served]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    let add = add_with_references;
    let verbs = |served: &Served| -> Vec<String> {
        served.verbs.iter().chain(served.subresources.iter().flat_map(|s| &s.verbs)).cloned().collect()
    };
    let used: BTreeSet<String> = served.iter().flat_map(verbs).collect();
    add(format!("{META}APIResourceList"), &mut names);
    for (verb, name) in [("delete", "Status"), ("delete", "DeleteOptions"), ("patch", "Patch")] {
        if used.contains(verb) {
            add(format!("{META}{name}"), &mut names);
        }
    }
    for served in served {
        if served.custom {
            for name in ["ObjectMeta", "ListMeta"] {
                add(format!("{META}{name}"), &mut names);
            }
        } else {
            add(served.definition.clone(), &mut names);
            if let Some(list) = &served.list_definition {
                add(list.clone(), &mut names);
            }
        }
        if served.verbs.iter().any(|v| v == "watch") {
            add(format!("{META}WatchEvent"), &mut names);
        }
        for sub in &served.subresources {
            if let Some(definition) = &sub.definition
                && definition.starts_with("io.k8s.")
            {
                add(definition.clone(), &mut names);
            }
        }
    }
    names
}

fn write(out: &mut Vec<u8>, value: &Value) {
    // Values have string keys only; writing to a Vec cannot fail.
    let _ = serde_json::to_writer(out, value);
}

/// The members of an object that is being written.
struct Members<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Members<'a> {
    fn new(out: &'a mut Vec<u8>) -> Members<'a> {
        Members { out, first: true }
    }

    fn add(&mut self, name: &str, value: &Value) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        write(self.out, &Value::String(name.to_owned()));
        self.out.push(b':');
        write(self.out, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    /// JSON in which every member is named once: readers differ in what they make of others.
    struct Distinct;

    impl<'de> serde::Deserialize<'de> for Distinct {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Distinct, D::Error> {
            deserializer.deserialize_any(Distinct)
        }
    }

    impl<'de> serde::de::Visitor<'de> for Distinct {
        type Value = Distinct;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("JSON")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Distinct, A::Error> {
            let mut names = BTreeSet::new();
            while let Some((name, Distinct)) = map.next_entry::<String, Distinct>()? {
                if let Some(twice) = names.replace(name) {
                    return Err(serde::de::Error::custom(format!("{twice} is there twice")));
                }
            }
            Ok(Distinct)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Distinct, A::Error> {
            while let Some(Distinct) = seq.next_element()? {}
            Ok(Distinct)
        }

        fn visit_bool<E>(self, _: bool) -> Result<Distinct, E> {
            Ok(Distinct)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Distinct, E> {
            Ok(Distinct)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Distinct, E> {
            Ok(Distinct)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Distinct, E> {
            Ok(Distinct)
        }

        fn visit_str<E>(self, _: &str) -> Result<Distinct, E> {
            Ok(Distinct)
        }

        fn visit_unit<E>(self) -> Result<Distinct, E> {
            Ok(Distinct)
        }
    }

    #[test]
    fn members_are_named_once() {
        let distinct = |what: &str, bytes: &[u8]| {
            if let Err(error) = serde_json::from_slice::<Distinct>(bytes) {
                panic!("{what}: {error}");
            }
        };
        distinct("v2", &v2(&[], &|_, _| true));
        for (name, document) in v3_others(&["apps", "batch"]) {
            distinct(&name, &document);
        }
        for (group, version) in [("", "v1"), ("apps", "v1"), ("apiextensions.k8s.io", "v1")] {
            distinct(group, &v3_for_group(group, version).unwrap());
        }
    }

    /// Every `$ref` must lead somewhere.
    fn check_references(value: &Value, root: &Value, seen: &mut usize) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    *seen += 1;
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(root.pointer(pointer).is_some(), "{reference}");
                }
                map.values().for_each(|v| check_references(v, root, seen));
            }
            Value::Array(list) => list.iter().for_each(|v| check_references(v, root, seen)),
            _ => {}
        }
    }

    #[test]
    fn says_what_fields_are() {
        let apps = parse(&v3_for_group("apps", "v1").unwrap());
        let schemas = &apps["components"]["schemas"];
        let strategy = &schemas["io.k8s.api.apps.v1.DeploymentStrategy"]["properties"];
        assert_eq!(strategy["type"]["enum"], json!(["Recreate", "RollingUpdate"]));
        let described = strategy["type"]["description"].as_str().unwrap();
        assert!(described.ends_with("\n\nPossible enum values:\n - `\"Recreate\"`\n - `\"RollingUpdate\"`"));
        let condition = &schemas["io.k8s.api.apps.v1.DeploymentCondition"]["properties"];
        assert_eq!(condition["type"]["default"], "");
        assert_eq!(condition["reason"].get("default"), None);
        let set = &schemas["io.k8s.api.apps.v1.ReplicaSet"];
        assert_eq!(set["properties"]["spec"]["default"], json!({}));
        assert!(set["description"].as_str().is_some_and(|d| !d.is_empty()));
        assert_eq!(
            schemas["io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent"]["x-kubernetes-group-version-kind"],
            json!([{"group": "", "version": "v1", "kind": "WatchEvent"},
                {"group": "apps", "version": "v1", "kind": "WatchEvent"}])
        );
        let watch = &apps["paths"]["/apis/apps/v1/watch/deployments"];
        assert_eq!(watch["get"]["operationId"], "watchAppsV1DeploymentListForAllNamespaces");
        let names = |of: &Value| -> Vec<String> {
            let all = of.as_array().unwrap().iter();
            all.map(|p| p["name"].as_str().unwrap().to_owned()).collect()
        };
        // What all operations of a path take is said once.
        assert!(names(&watch["parameters"]).contains(&"shardSelector".to_owned()));
        assert_eq!(watch["get"].get("parameters"), None);
        let core = parse(&v3_for_group("", "v1").unwrap());
        let proxy = &core["paths"]["/api/v1/nodes/{name}/proxy/{path}"];
        assert_eq!(proxy["head"]["operationId"], "connectCoreV1HeadNodeProxyWithPath");
        assert_eq!(names(&proxy["parameters"]), ["path", "name", "path"]);
        let pod = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["delete"];
        let answer = &pod["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(answer["$ref"], "#/components/schemas/io.k8s.api.core.v1.Pod");
        let reviews = parse(&v3_for_group("authorization.k8s.io", "v1").unwrap());
        let unused = format!("{META}DeleteOptions");
        assert_eq!(reviews["components"]["schemas"].get(&unused), None);
        let others = v3_others(&["", "apps"]);
        let paths: Vec<&str> = others.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            ["api", "apis", "apis/apps", "version", ".well-known/openid-configuration", "openid/v1/jwks"]
        );
        let group = parse(&others[2].1);
        assert_eq!(group["paths"]["/apis/apps/"]["get"]["operationId"], "getAppsAPIGroup");
        check_references(&group, &group, &mut 0);
    }

    #[test]
    fn version_3() {
        for path in v3_paths() {
            let (group, version) = match path.split('/').collect::<Vec<_>>()[..] {
                ["api", version] => ("", version.to_owned()),
                ["apis", group, version] => (group, version.to_owned()),
                _ => panic!("{path}"),
            };
            let document = parse(&v3_for_group(group, &version).unwrap());
            let mut seen = 0;
            check_references(&document, &document, &mut seen);
            assert!(seen > 10);
        }
        let apps = parse(&v3_for_group("apps", "v1").unwrap());
        let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
        let names: Vec<&str> =
            patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
        assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
        let spec = &apps["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
        assert_eq!(spec["properties"]["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(spec["required"], json!(["containers"]));
    }

    #[test]
    fn version_2() {
        let custom = CustomResource {
            group: "example.com".into(),
            version: "v1".into(),
            plural: "foos".into(),
            kind: "Foo".into(),
            list_kind: "FooList".into(),
            namespaced: true,
            schema: json!({"type": "object", "description": "A foo", "properties": {"spec": {"type": "object",
                "properties": {"n": {"type": "integer", "nullable": true}, "x": {"type": "string"}}, "required": ["n", "x"]}}}),
            status: true,
            ..CustomResource::default()
        };
        let document = parse(&v2(std::slice::from_ref(&custom), &|_, _| true));
        let mut seen = 0;
        check_references(&document, &document, &mut seen);
        let foo = &document["definitions"]["com.example.v1.Foo"];
        assert_eq!(foo["description"], "A foo");
        assert_eq!(
            foo["properties"]["spec"],
            json!({"type": "object", "properties": {"n": {}, "x": {"type": "string"}}, "required": ["x"]})
        );
        assert_eq!(foo["x-kubernetes-group-version-kind"][0]["kind"], "Foo");
        let open = CustomResource {
            schema: json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {}}}),
            ..custom.clone()
        };
        let anything = parse(&v2(&[open], &|_, _| true))["definitions"]["com.example.v1.Foo"].clone();
        assert_eq!(
            (&anything["type"], anything.as_object().map(serde_json::Map::len)),
            (&json!("object"), Some(2))
        );
        let document = parse(&v3_for_custom("example.com", "v1", &[custom]));
        check_references(&document, &document, &mut seen);
        assert_eq!(
            document["components"]["schemas"]["com.example.v1.Foo"]["properties"]["spec"]["properties"]["n"]
                ["nullable"],
            true
        );
        assert!(
            document["paths"].get("/apis/example.com/v1/namespaces/{namespace}/foos/{name}/status").is_some()
        );
    }
}
