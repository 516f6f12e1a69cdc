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
    ("shardSelector", "string"),
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
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
];

const EXEC: &[(&str, &str)] = &[
    ("command", "string"),
    ("container", "string"),
    ("stderr", "boolean"),
    ("stdin", "boolean"),
    ("stdout", "boolean"),
    ("tty", "boolean"),
];
const LOG: &[(&str, &str)] = &[
    ("container", "string"),
    ("follow", "boolean"),
    ("insecureSkipTLSVerifyBackend", "boolean"),
    ("limitBytes", "integer"),
    ("previous", "boolean"),
    ("sinceSeconds", "integer"),
    ("stream", "string"),
    ("tailLines", "integer"),
    ("timestamps", "boolean"),
];

/// What a connecting subresource takes.
fn connect_parameters(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "exec" => EXEC,
        "attach" => &EXEC[1..],
        "portforward" => &[("ports", "integer")],
        _ => &[("path", "string")],
    }
}

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
    /// What the request is of, in words.
    description: String,
    /// Names in the path.
    place: &'a [&'a str],
    parameters: &'a [(&'a str, &'a str)],
    body: Body<'a>,
    /// Status codes of success.
    codes: &'a [u16],
    /// Definition of the answer; `None` is text.
    answer: Option<&'a str>,
    produces: Vec<&'a str>,
    custom: bool,
    /// Says nothing of what it consumes.
    plain: bool,
}

/// The operations of a path, with what all of them take said once.
fn item(operations: Vec<(&str, Value)>) -> Value {
    let mut shared: Vec<Value> = match operations.first() {
        Some((_, first)) => first["parameters"].as_array().cloned().unwrap_or_default(),
        None => vec![],
    };
    shared.retain(|parameter| {
        parameter["in"] != "body"
            && operations
                .iter()
                .all(|(_, o)| o["parameters"].as_array().is_some_and(|all| all.contains(parameter)))
    });
    let mut out = Map::new();
    for (method, mut operation) in operations {
        if let Some(Value::Array(own)) = operation.get_mut("parameters") {
            own.retain(|parameter| !shared.contains(parameter));
            if own.is_empty() {
                operation.as_object_mut().into_iter().for_each(|o| drop(o.remove("parameters")));
            }
        }
        out.insert(method.into(), operation);
    }
    if !shared.is_empty() {
        out.insert("parameters".into(), shared.into());
    }
    Value::Object(out)
}

fn article(kind: &str) -> String {
    // As upstream has it: plural kinds go without.
    match kind.chars().next() {
        _ if kind.ends_with('s') && !kind.ends_with("ss") => kind.to_owned(),
        Some('A' | 'E' | 'I' | 'O' | 'U') => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

impl Operation<'_> {
    fn write(self) -> Value {
        let flavor = self.flavor;
        let mut out = Map::new();
        if !self.description.is_empty() {
            out.insert("description".into(), self.description.into());
        }
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
        parameters.extend(self.place.iter().map(|name| parameter(flavor, name, "string", "path")));
        if !matches!(self.action, "" | "connect") {
            parameters.push(parameter(flavor, "pretty", "string", "query"));
        }
        let patches: Vec<&str> =
            PATCHES.iter().copied().filter(|p| !(self.custom && p.contains("strategic"))).collect();
        let (name, required, mut types): (Option<String>, bool, Vec<&str>) = match self.body {
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
                if self.action.is_empty() {
                    types = self.produces.clone();
                }
                if !self.plain {
                    out.insert("consumes".into(), json!(types));
                }
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

/// A path with one operation, which reads something about the server.
fn plain(
    flavor: Flavor,
    tag: &str,
    id: String,
    description: &str,
    answer: Option<&str>,
    produces: &[&str],
) -> Value {
    let get = Operation {
        flavor,
        id,
        tag: tag.to_owned(),
        action: "",
        kind: Value::Null,
        description: description.to_owned(),
        place: &[],
        parameters: &[],
        body: Body::None,
        codes: &[200],
        answer,
        produces: produces.to_vec(),
        custom: false,
        plain: answer.is_none(),
    };
    json!({"get": get.write()})
}

/// The paths of groups and of the server itself, by what `/openapi/v3` calls their documents, with the definition that
/// they answer.
pub(super) fn others(flavor: Flavor, groups: &[&str]) -> Vec<(String, String, Option<String>, Value)> {
    let discovery = |at: &str, tag: &str, id: String, text: &str, kind: &str| {
        let definition = format!("{META}{kind}");
        let item = plain(flavor, tag, id, text, Some(&definition), &READ);
        (at.to_owned(), format!("/{at}/"), Some(definition), item)
    };
    let versions = "get available API versions";
    let mut out = vec![
        discovery("api", "core", "getCoreAPIVersions".into(), versions, "APIVersions"),
        discovery("apis", "apis", "getAPIVersions".into(), versions, "APIGroupList"),
    ];
    for group in groups.iter().filter(|g| !g.is_empty()) {
        let name = group_name(group);
        let (first, rest) = name.split_at(1);
        let tag = format!("{}{rest}", first.to_lowercase());
        let id = format!("get{name}APIGroup");
        out.push(discovery(&format!("apis/{group}"), &tag, id, "get information of a group", "APIGroup"));
    }
    let mut own = |at: &str, tag: &str, id: &str, text: &str, answer: Option<&str>, produces: &[&str]| {
        let item = plain(flavor, tag, id.to_owned(), text, answer, produces);
        out.push((at.to_owned(), format!("/{at}/"), answer.map(str::to_owned), item));
    };
    own(
        "version",
        "version",
        "getCodeVersion",
        "get the version information for this server",
        Some("io.k8s.apimachinery.pkg.version.Info"),
        &["application/json"],
    );
    own(
        ".well-known/openid-configuration",
        "WellKnown",
        "getServiceAccountIssuerOpenIDConfiguration",
        "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
        None,
        &["application/json"],
    );
    own(
        "openid/v1/jwks",
        "openid",
        "getServiceAccountIssuerOpenIDKeyset",
        "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
        None,
        &["application/jwk-set+json"],
    );
    out
}

/// Discovery of a group's version.
pub(super) fn group_path(flavor: Flavor, group: &str, version: &str) -> (String, Value) {
    let list = format!("{META}APIResourceList");
    let id = format!("get{}{}APIResources", group_name(group), capital(version));
    let item = plain(flavor, &tag(group, version), id, "get available resources", Some(&list), &READ);
    (format!("{}/", base(group, version)), item)
}

/// Whether the documents promise the object, not a Status, as the answer to a resource's deletion.
pub fn deletes_to_object(group: &str, plural: &str) -> bool {
    match group {
        "" => matches!(
            plural,
            "persistentvolumes"
                | "persistentvolumeclaims"
                | "pods"
                | "podtemplates"
                | "resourcequotas"
                | "services"
                | "serviceaccounts"
        ),
        "resource.k8s.io" => plural != "devicetaintrules" && plural != "resourcepoolstatusrequests",
        "storage.k8s.io" => plural != "csistoragecapacities",
        _ => false,
    }
}

/// All paths of a resource.
pub(super) fn paths_of(flavor: Flavor, served: &Served) -> Vec<(String, Value)> {
    let mut out = vec![];
    let has = |verb: &str| served.verbs.iter().any(|v| v == verb);
    let base = base(&served.group, &served.version);
    let within = if served.namespaced { "namespaces/{namespace}/" } else { "" };
    let collection = format!("{base}/{within}{}", served.plural);
    let scope = if served.namespaced { "Namespaced" } else { "" };
    let place = format!("{}{}", group_name(&served.group), capital(&served.version));
    let gvk = json!({"group": served.group, "version": served.version, "kind": served.kind});
    let status = format!("{META}Status");
    let event = format!("{META}WatchEvent");
    let namespace: &[&str] = if served.namespaced { &["namespace"] } else { &[] };
    let name: &[&str] = if served.namespaced { &["name", "namespace"] } else { &["name"] };
    let definition = served.definition.as_str();
    let kind = served.kind.as_str();
    // `id`: verb, and what follows the kind.
    let operation =
        |id: [&str; 3], action, text: String, place_names, parameters, body, codes, answer| Operation {
            flavor,
            id: format!("{}{place}{}{scope}{kind}{}", id[0], id[1], id[2]),
            tag: tag(&served.group, &served.version),
            action,
            kind: gvk.clone(),
            description: text,
            place: place_names,
            parameters,
            body,
            codes,
            answer,
            produces: if served.custom {
                vec!["application/json", "application/yaml"]
            } else {
                READ.to_vec()
            },
            custom: served.custom,
            plain: false,
        };
    let all_id = |verb: &str, list: &str| format!("{verb}{place}{kind}{list}ForAllNamespaces");
    let streams = |mut operation: Operation<'_>| {
        operation.produces.extend(STREAM);
        operation.write()
    };

    let list_definition = served.list_definition.as_deref();
    let list = |place_names| {
        let watch = if has("watch") { "list or watch" } else { "list" };
        let text = format!("{watch} objects of kind {kind}");
        operation(["list", "", ""], "list", text, place_names, LIST, Body::None, &[200][..], list_definition)
    };
    let mut operations = vec![];
    if has("list") {
        operations.push(("get", streams(list(namespace))));
    }
    if has("create") {
        let text = format!("create {}", article(kind));
        let (body, codes) = (Body::Object(definition), &[200, 201, 202][..]);
        let post =
            operation(["create", "", ""], "post", text, namespace, WRITE, body, codes, Some(definition));
        operations.push(("post", post.write()));
    }
    if has("deletecollection") {
        let text = format!("delete collection of {kind}");
        let body = Body::DeleteOptions;
        let codes = &[200][..];
        let id = ["delete", "Collection", ""];
        let all = DELETE_COLLECTION;
        operations.push((
            "delete",
            operation(id, "deletecollection", text, namespace, all, body, codes, Some(&status)).write(),
        ));
    }
    if !operations.is_empty() {
        out.push((collection.clone(), item(operations)));
    }
    if served.namespaced && has("list") {
        let get = streams(Operation { id: all_id("list", ""), ..list(&[]) });
        out.push((format!("{base}/{}", served.plural), item(vec![("get", get)])));
    }

    let with_path: Vec<&str> = name.iter().copied().chain(["path"]).collect();
    let mut operations = vec![];
    if has("get") {
        let text = format!("read the specified {kind}");
        let get = operation(["read", "", ""], "get", text, name, &[], Body::None, &[200], Some(definition));
        operations.push(("get", get.write()));
    }
    if has("update") {
        let text = format!("replace the specified {kind}");
        let body = Body::Object(definition);
        let put =
            operation(["replace", "", ""], "put", text, name, WRITE, body, &[200, 201], Some(definition));
        operations.push(("put", put.write()));
    }
    if has("patch") {
        let text = format!("partially update the specified {kind}");
        let body = Body::Patch;
        let patch =
            operation(["patch", "", ""], "patch", text, name, PATCH, body, &[200, 201], Some(definition));
        operations.push(("patch", patch.write()));
    }
    if has("delete") {
        let answer = if !served.custom && deletes_to_object(&served.group, &served.plural) {
            definition
        } else {
            status.as_str()
        };
        let text = format!("delete {}", article(kind));
        let (body, codes) = (Body::DeleteOptions, &[200, 202][..]);
        let delete = operation(["delete", "", ""], "delete", text, name, DELETE, body, codes, Some(answer));
        operations.push(("delete", delete.write()));
    }
    if !operations.is_empty() {
        out.push((format!("{collection}/{{name}}"), item(operations)));
    }

    if has("watch") && !served.custom {
        const LATER: &str = "deprecated: use the 'watch' parameter with a list operation instead";
        let watch = |list: &'static str, place_names| {
            let (action, text) = match list {
                "" => (
                    "watch",
                    format!(
                        "watch changes to an object of kind {kind}. {LATER}, filtered to a single item with the \
                         'fieldSelector' parameter."
                    ),
                ),
                _ => ("watchlist", format!("watch individual changes to a list of {kind}. {LATER}.")),
            };
            operation(
                ["watch", "", list],
                action,
                text,
                place_names,
                LIST,
                Body::None,
                &[200][..],
                Some(&event),
            )
        };
        let at = format!("{base}/watch/{within}{}", served.plural);
        out.push((at.clone(), item(vec![("get", streams(watch("List", namespace)))])));
        if has("get") {
            out.push((format!("{at}/{{name}}"), item(vec![("get", streams(watch("", name)))])));
        }
        if served.namespaced {
            let get = streams(Operation { id: all_id("watch", "List"), ..watch("List", &[]) });
            out.push((format!("{base}/watch/{}", served.plural), item(vec![("get", get)])));
        }
    }

    for sub in &served.subresources {
        let gvk = json!({"group": sub.group, "version": sub.version, "kind": sub.kind});
        let definition = sub.definition.as_deref();
        let suffix = capital(&sub.name);
        let at = format!("{collection}/{{name}}/{}", sub.name);
        let Some(whole) = definition else {
            for (path, end) in [(at.clone(), ""), (format!("{at}/{{path}}"), "WithPath")] {
                if !end.is_empty() && sub.name != "proxy" {
                    continue;
                }
                let mut operations = vec![];
                let parameters = connect_parameters(&sub.name);
                let place_names = if end.is_empty() { name } else { &with_path };
                let mut methods: Vec<&'static str> = sub.verbs.iter().filter_map(|v| method_of(v)).collect();
                if sub.name == "proxy" {
                    methods.extend(["head", "options"]);
                }
                for method in methods {
                    let verb = method.to_uppercase();
                    let text = format!("connect {verb} requests to {} of {kind}", sub.name);
                    let id = ["connect", &capital(method), &format!("{suffix}{end}")];
                    let mut get =
                        operation(id, "connect", text, place_names, parameters, Body::None, &[200], None);
                    get.kind = gvk.clone();
                    get.produces = vec!["*/*"];
                    operations.push((method, get.write()));
                }
                if !operations.is_empty() {
                    out.push((path, item(operations)));
                }
            }
            continue;
        };
        let mut operations = vec![];
        for verb in &sub.verbs {
            let body = Body::Object(whole);
            let (method, prefix, words, parameters, body, codes): (_, _, _, &[(&str, &str)], _, &[u16]) =
                match verb.as_str() {
                    "get" => ("get", "read", "read", &[], Body::None, &[200]),
                    "update" => ("put", "replace", "replace", WRITE, body, &[200, 201]),
                    "patch" => ("patch", "patch", "partially update", PATCH, Body::Patch, &[200, 201]),
                    "create" => ("post", "create", "create", WRITE, body, &[200, 201, 202]),
                    _ => continue,
                };
            let text = match verb.as_str() {
                "create" => format!("create {} of {}", sub.name, article(kind)),
                _ => format!("{words} {} of the specified {kind}", sub.name),
            };
            // Logs are text, though their kind is the pod's.
            let log = sub.name == "log";
            let parameters = if log { LOG } else { parameters };
            let answer = if log { None } else { definition };
            let mut operation =
                operation([prefix, "", &suffix], method, text, name, parameters, body, codes, answer);
            operation.kind = gvk.clone();
            if log {
                operation.produces.push("text/plain");
            }
            operations.push((method, operation.write()));
        }
        if !operations.is_empty() {
            out.push((at, item(operations)));
        }
    }
    out
}

fn method_of(verb: &str) -> Option<&'static str> {
    Some(match verb {
        "get" => "get",
        "create" => "post",
        "update" => "put",
        "patch" => "patch",
        "delete" => "delete",
        _ => return None,
    })
}
