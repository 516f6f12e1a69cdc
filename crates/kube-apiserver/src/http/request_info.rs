//! What a request asks for, read from its method, path and query.

use http::Method;
use percent_encoding::percent_decode_str;

use crate::seams::RequestInfo;

/// The query parameters of a request, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Query {
        match query {
            None | Some("") => Query::default(),
            Some(q) => Query(form_urlencoded::parse(q.as_bytes()).into_owned().collect()),
        }
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// As [`Query::get`], with an empty value counting as none.
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Go's reading of a boolean parameter: present and not false.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v != "0" && !v.eq_ignore_ascii_case("false"))
    }
}

/// Subresources of `namespaces` that are not resources inside one.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// Reads `/api/v1/…` and `/apis/<group>/<version>/…`; everything else is a non-resource request.
pub fn parse(method: &Method, path: &str, query: &Query) -> RequestInfo {
    let mut info = RequestInfo {
        verb: method.as_str().to_ascii_lowercase(),
        path: path.to_owned(),
        ..RequestInfo::default()
    };
    let parts: Vec<String> = path
        .split('/')
        .filter(|p| !p.is_empty())
        .map(|p| percent_decode_str(p).decode_utf8_lossy().into_owned())
        .collect();
    let mut rest: &[String] = match parts.first().map(String::as_str) {
        Some("api") if parts.len() >= 3 => {
            info.version = parts[1].clone();
            &parts[2..]
        }
        Some("apis") if parts.len() >= 4 => {
            info.group = parts[1].clone();
            info.version = parts[2].clone();
            &parts[3..]
        }
        _ => return info,
    };
    info.is_resource = true;
    let mut verb = match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    if rest[0] == "watch" {
        // The deprecated form: /api/v1/watch/namespaces/x/pods.
        verb = "watch";
        rest = &rest[1..];
        if rest.is_empty() {
            info.verb = verb.to_owned();
            return info;
        }
    }
    if rest[0] == "namespaces" && rest.len() > 1 {
        info.namespace = rest[1].clone();
        if rest.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&rest[2].as_str()) {
            rest = &rest[2..];
        }
    }
    info.resource = rest[0].clone();
    if let Some(name) = rest.get(1) {
        info.name = name.clone();
    }
    if let Some(subresource) = rest.get(2) {
        info.subresource = subresource.clone();
    }
    info.label_selector = query.non_empty("labelSelector").map(str::to_owned);
    info.field_selector = query.non_empty("fieldSelector").map(str::to_owned);
    if info.name.is_empty() || (verb == "watch" && info.subresource.is_empty()) {
        if verb == "get" {
            verb = if query.flag("watch") { "watch" } else { "list" };
        } else if verb == "delete" {
            verb = "deletecollection";
        }
        if let Some(name) = info
            .field_selector
            .as_deref()
            .and_then(|s| s.split(',').find_map(|t| t.strip_prefix("metadata.name=")))
            && matches!(verb, "list" | "watch" | "deletecollection")
            && info.name.is_empty()
        {
            info.name = name.trim_start_matches('=').to_owned();
        }
    }
    info.verb = verb.to_owned();
    info
}

/// What follows the subresource in the path, for the proxy subresources: `/…/proxy/a/b` → `a/b`, undecoded.
pub fn proxy_tail<'a>(path: &'a str, info: &RequestInfo) -> &'a str {
    let skip = 2 // api, version
        + usize::from(!info.group.is_empty())
        + if info.namespace.is_empty() || info.resource == "namespaces" { 0 } else { 2 }
        + 3; // resource, name, subresource
    let mut rest = path.trim_start_matches('/');
    for _ in 0..skip {
        rest = rest.split_once('/').map_or("", |(_, rest)| rest);
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths() {
        // method, path?query, "verb|group|version|namespace|resource|name|subresource"
        for (method, uri, want) in [
            ("GET", "/api/v1/pods", "list||v1||pods||"),
            ("GET", "/api/v1/pods?watch=true", "watch||v1||pods||"),
            ("GET", "/api/v1/pods?watch=false", "list||v1||pods||"),
            ("GET", "/api/v1/namespaces/a/pods/b/log", "get||v1|a|pods|b|log"),
            ("GET", "/api/v1/namespaces", "list||v1||namespaces||"),
            ("GET", "/api/v1/namespaces/a", "get||v1|a|namespaces|a|"),
            ("PUT", "/api/v1/namespaces/a/status", "update||v1|a|namespaces|a|status"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update||v1|a|namespaces|a|finalize"),
            ("POST", "/apis/apps/v1/namespaces/a/deployments", "create|apps|v1|a|deployments||"),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection|apps|v1|a|deployments||"),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments/x", "delete|apps|v1|a|deployments|x|"),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/x/scale",
                "patch|apps|v1|a|deployments|x|scale",
            ),
            ("GET", "/api/v1/watch/namespaces/a/pods", "watch||v1|a|pods||"),
            ("GET", "/api/v1/watch/namespaces/a/pods/x", "watch||v1|a|pods|x|"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx&watch=1", "watch||v1||pods|x|"),
            ("GET", "/api/v1/nodes/n/proxy/metrics/cadvisor", "get||v1||nodes|n|proxy"),
        ] {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let i = parse(&method.parse().unwrap(), path, &Query::parse(Some(query)));
            assert!(i.is_resource, "{uri}");
            let got = [&*i.verb, &i.group, &i.version, &i.namespace, &i.resource, &i.name, &i.subresource]
                .join("|");
            assert_eq!(got, want, "{method} {uri}");
        }
        for path in
            ["/", "/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1", "/healthz", "/openapi/v3"]
        {
            assert!(!parse(&Method::GET, path, &Query::default()).is_resource, "{path}");
        }
    }

    #[test]
    fn finds_what_is_proxied() {
        for (path, want) in [
            ("/api/v1/nodes/n/proxy/metrics/cadvisor", "metrics/cadvisor"),
            ("/api/v1/nodes/n/proxy", ""),
            ("/api/v1/namespaces/a/services/http:x:80/proxy/p/", "p/"),
        ] {
            let info = parse(&Method::GET, path, &Query::default());
            assert_eq!(proxy_tail(path, &info), want, "{path}");
        }
    }
}
