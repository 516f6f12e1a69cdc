//! Resources as OpenAPI paths and operations.

use serde_json::{Map, Value, json};

use super::{Flavor, META, Served};

const READ: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAM: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const DELETE_COLLECTION: &[(&str, &str)] = &[
    ("continue", "string"),
    ("dryRun", "string"),
    ("fieldSelector", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
];

/// The body of a request.
enum Body<'a> {
    None,
    Object(&'a str),
    Patch,
    DeleteOptions,
}

fn parameter(flavor: Flavor, name: &str, kind: &str, place: &str) -> Value {
    let mut out = json!({"name": name, "in": place});
    let map = out.as_object_mut().into_iter();
    for object in map {
        match flavor {
            Flavor::V2 => {
                object.insert("type".into(), kind.into());
                object.insert("uniqueItems".into(), true.into());
            }
            Flavor::V3 => {
                object.insert("schema".into(), json!({"type": kind, "uniqueItems": true}));
            }
        }
        if place == "path" {
            object.insert("required".into(), true.into());
        }
    }
    out
}

fn group_name(group: &str) -> String {
    if group.is_empty() {
        return "Core".into();
    }
    group.trim_end_matches(".k8s.io").split(['.', '-']).map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|c| c.to_uppercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

fn tag(group: &str, version: &str) -> String {
    let name = group_name(group);
    let (first, rest) = name.split_at(name.len().min(1));
    format!("{}{rest}_{version}", first.to_lowercase())
}

struct Operation<'a> {
    flavor: Flavor,
    id: String,
    tag: String,
    action: &'a str,
    kind: Value,
    parameters: &'a [(&'a str, &'a str)],
    body: Body<'a>,
    /// Status codes of success.
    codes: &'a [u16],
    /// Definition of the answer; `None` is text.
    answer: Option<&'a str>,
    produces: Vec<&'a str>,
    custom: bool,
}

impl Operation<'_> {
    fn write(self) -> Value {
        let flavor = self.flavor;
        let mut out = Map::new();
        out.insert("operationId".into(), self.id.into());
        out.insert("tags".into(), json!([self.tag]));
        if !self.action.is_empty() {
            out.insert("x-kubernetes-action".into(), self.action.into());
        }
        if !self.kind.is_null() {
            out.insert("x-kubernetes-group-version-kind".into(), self.kind);
        }
        let mut parameters: Vec<Value> =
            self.parameters.iter().map(|(name, kind)| parameter(flavor, name, kind, "query")).collect();
        let patches: Vec<&str> =
            PATCHES.iter().copied().filter(|p| !(self.custom && p.contains("strategic"))).collect();
        let (name, required, types): (Option<String>, bool, Vec<&str>) = match self.body {
            Body::None => (None, false, vec!["*/*"]),
            Body::Object(name) => (Some(name.to_owned()), true, vec!["*/*"]),
            Body::Patch => (Some(format!("{META}Patch")), true, patches),
            Body::DeleteOptions => (Some(format!("{META}DeleteOptions")), false, vec!["*/*"]),
        };
        let answer = self.answer.map(|name| json!({"$ref": flavor.reference(name)}));
        match flavor {
            Flavor::V2 => {
                if let Some(name) = name {
                    let mut body =
                        json!({"name": "body", "in": "body", "schema": {"$ref": flavor.reference(&name)}});
                    if required {
                        body["required"] = true.into();
                    }
                    parameters.insert(0, body);
                }
                out.insert("consumes".into(), json!(types));
                out.insert("produces".into(), json!(self.produces));
                out.insert("schemes".into(), json!(["https"]));
                let schema = answer.unwrap_or_else(|| json!({"type": "string"}));
                let mut responses = Map::new();
                for code in self.codes {
                    let text = reason(*code);
                    responses.insert(code.to_string(), json!({"description": text, "schema": schema}));
                }
                responses.insert("401".into(), json!({"description": "Unauthorized"}));
                out.insert("responses".into(), Value::Object(responses));
            }
            Flavor::V3 => {
                if let Some(name) = name {
                    let content: Map<String, Value> = types
                        .iter()
                        .map(|t| ((*t).to_owned(), json!({"schema": {"$ref": flavor.reference(&name)}})))
                        .collect();
                    let mut body = json!({"content": content});
                    if required {
                        body["required"] = true.into();
                    }
                    out.insert("requestBody".into(), body);
                }
                let schema = answer.unwrap_or_else(|| json!({"type": "string"}));
                let content: Map<String, Value> =
                    self.produces.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect();
                let mut responses = Map::new();
                for code in self.codes {
                    let text = reason(*code);
                    responses.insert(code.to_string(), json!({"description": text, "content": content}));
                }
                responses.insert("401".into(), json!({"description": "Unauthorized"}));
                out.insert("responses".into(), Value::Object(responses));
            }
        }
        if !parameters.is_empty() {
            out.insert("parameters".into(), parameters.into());
        }
        Value::Object(out)
    }
}

fn reason(code: u16) -> &'static str {
    match code {
        201 => "Created",
        202 => "Accepted",
        _ => "OK",
    }
}

/// Discovery of a group's version.
pub(super) fn group_path(flavor: Flavor, group: &str, version: &str) -> (String, Value) {
    let list = format!("{META}APIResourceList");
    let get = Operation {
        flavor,
        id: format!("get{}{}APIResources", group_name(group), capital(version)),
        tag: tag(group, version),
        action: "",
        kind: Value::Null,
        parameters: &[],
        body: Body::None,
        codes: &[200],
        answer: Some(&list),
        produces: READ.to_vec(),
        custom: false,
    };
    (format!("{}/", base(group, version)), json!({"get": get.write()}))
}

pub(super) fn version_path(flavor: Flavor) -> (&'static str, Value) {
    let get = Operation {
        flavor,
        id: "getCodeVersion".into(),
        tag: "version".into(),
        action: "",
        kind: Value::Null,
        parameters: &[],
        body: Body::None,
        codes: &[200],
        answer: Some("io.k8s.apimachinery.pkg.version.Info"),
        produces: vec!["application/json"],
        custom: false,
    };
    ("/version/", json!({"get": get.write()}))
}

/// All paths of a resource.
pub(super) fn paths_of(flavor: Flavor, served: &Served) -> Vec<(String, Value)> {
    let mut out = vec![];
    let has = |verb: &str| served.verbs.iter().any(|v| v == verb);
    let base = base(&served.group, &served.version);
    let collection = if served.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", served.plural)
    } else {
        format!("{base}/{}", served.plural)
    };
    let scope = if served.namespaced { "Namespaced" } else { "" };
    let place = format!("{}{}", group_name(&served.group), capital(&served.version));
    let kind = json!({"group": served.group, "version": served.version, "kind": served.kind});
    let status = format!("{META}Status");
    let produces = || {
        if served.custom { vec!["application/json", "application/yaml"] } else { READ.to_vec() }
    };
    let operation = |verb: &str, action, parameters, body, codes, answer| Operation {
        flavor,
        id: format!("{verb}{place}{scope}{}", served.kind),
        tag: tag(&served.group, &served.version),
        action,
        kind: kind.clone(),
        parameters,
        body,
        codes,
        answer,
        produces: produces(),
        custom: served.custom,
    };
    let shared = |names: &[&str]| -> Value {
        let mut list: Vec<Value> = names.iter().map(|n| parameter(flavor, n, "string", "path")).collect();
        list.push(parameter(flavor, "pretty", "string", "query"));
        list.into()
    };
    let namespace: &[&str] = if served.namespaced { &["namespace"] } else { &[] };
    let name: &[&str] = if served.namespaced { &["name", "namespace"] } else { &["name"] };

    let mut item = Map::new();
    let list_definition = served.list_definition.as_deref();
    if has("list") {
        let mut get = operation("list", "list", LIST, Body::None, &[200], list_definition);
        get.produces.extend(STREAM);
        item.insert("get".into(), get.write());
    }
    if has("create") {
        let definition = served.definition.as_str();
        let post =
            operation("create", "post", WRITE, Body::Object(definition), &[200, 201, 202], Some(definition));
        item.insert("post".into(), post.write());
    }
    if has("deletecollection") {
        let mut delete = operation(
            "deleteCollection",
            "deletecollection",
            DELETE_COLLECTION,
            Body::DeleteOptions,
            &[200],
            Some(&status),
        );
        delete.id = format!("delete{place}Collection{scope}{}", served.kind);
        item.insert("delete".into(), delete.write());
    }
    if !item.is_empty() {
        item.insert("parameters".into(), shared(namespace));
        out.push((collection.clone(), Value::Object(item)));
    }
    if served.namespaced && has("list") {
        let mut get = operation("list", "list", LIST, Body::None, &[200], list_definition);
        get.id = format!("list{place}{}ForAllNamespaces", served.kind);
        get.produces.extend(STREAM);
        out.push((
            format!("{base}/{}", served.plural),
            json!({"get": get.write(), "parameters": shared(&[])}),
        ));
    }

    let mut item = Map::new();
    let definition = served.definition.as_str();
    if has("get") {
        item.insert(
            "get".into(),
            operation("read", "get", &[], Body::None, &[200], Some(definition)).write(),
        );
    }
    if has("update") {
        let put = operation("replace", "put", WRITE, Body::Object(definition), &[200, 201], Some(definition));
        item.insert("put".into(), put.write());
    }
    if has("patch") {
        let patch = operation("patch", "patch", PATCH, Body::Patch, &[200, 201], Some(definition));
        item.insert("patch".into(), patch.write());
    }
    if has("delete") {
        let delete = operation("delete", "delete", DELETE, Body::DeleteOptions, &[200, 202], Some(&status));
        item.insert("delete".into(), delete.write());
    }
    if !item.is_empty() {
        item.insert("parameters".into(), shared(name));
        out.push((format!("{collection}/{{name}}"), Value::Object(item)));
    }

    for sub in &served.subresources {
        let kind = json!({"group": sub.group, "version": sub.version, "kind": sub.kind});
        let connect = sub.definition.is_none();
        let definition = sub.definition.as_deref();
        let mut item = Map::new();
        for verb in &sub.verbs {
            let (method, action, prefix, parameters, body, codes): (_, _, _, &[(&str, &str)], _, &[u16]) =
                match (verb.as_str(), connect) {
                    ("get", false) => ("get", "get", "read", &[], Body::None, &[200]),
                    ("update", false) => (
                        "put",
                        "put",
                        "replace",
                        WRITE,
                        Body::Object(definition.unwrap_or_default()),
                        &[200, 201],
                    ),
                    ("patch", false) => ("patch", "patch", "patch", PATCH, Body::Patch, &[200, 201]),
                    ("create", false) => (
                        "post",
                        "post",
                        "create",
                        WRITE,
                        Body::Object(definition.unwrap_or_default()),
                        &[200, 201, 202],
                    ),
                    ("get", true) => ("get", "connect", "connectGet", &[], Body::None, &[200]),
                    ("create", true) => ("post", "connect", "connectPost", &[], Body::None, &[200]),
                    ("update", true) => ("put", "connect", "connectPut", &[], Body::None, &[200]),
                    ("patch", true) => ("patch", "connect", "connectPatch", &[], Body::None, &[200]),
                    ("delete", true) => ("delete", "connect", "connectDelete", &[], Body::None, &[200]),
                    _ => continue,
                };
            // Logs are text, though their kind is the pod's.
            let text = connect || sub.name == "log";
            let mut operation =
                operation(prefix, action, parameters, body, codes, if text { None } else { definition });
            operation.kind = kind.clone();
            operation.id.push_str(&capital(&sub.name));
            if text {
                operation.produces = vec!["*/*"];
            }
            item.insert(method.into(), operation.write());
        }
        if !item.is_empty() {
            item.insert("parameters".into(), shared(name));
            out.push((format!("{collection}/{{name}}/{}", sub.name), Value::Object(item)));
        }
    }
    out
}
