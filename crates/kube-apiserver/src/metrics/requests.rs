//! Requests by what they asked for and how they ended.

use std::fmt::Write;
use std::time::Duration;

use hashbrown::{Equivalent, HashMap};
use http::{HeaderMap, Method};
use parking_lot::Mutex;

use crate::http::request_info::Query;
use crate::seams::RequestInfo;

/// Upper bounds of the buckets of durations, in seconds.
const BOUNDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Of durations that levels of service are measured by: the same without the two shortest.
const LEVEL_BOUNDS: &[f64] = BOUNDS.split_at(2).1;
/// Of sizes, in bytes.
const SIZES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Distinct label sets kept; what comes beyond is counted as `other`.
const SERIES_MAX: usize = 4000;

/// What a request asked for, as its labels tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asked<'a> {
    pub verb: &'static str,
    pub dry_run: &'static str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub scope: &'static str,
    pub component: &'static str,
    pub client: &'static str,
}

impl<'a> Asked<'a> {
    pub fn new(method: &Method, headers: &HeaderMap, query: &Query, info: &'a RequestInfo) -> Asked<'a> {
        let scope = match info {
            _ if !info.is_resource => "",
            _ if !info.name.is_empty() || info.verb == "create" => "resource",
            _ if !info.namespace.is_empty() => "namespace",
            _ => "cluster",
        };
        let of_collection = scope != "resource" && !scope.is_empty();
        let content_type = headers.get(http::header::CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
        let connects = matches!(&*info.subresource, "log" | "exec" | "portforward" | "attach" | "proxy");
        let verb = match method.as_str() {
            _ if info.verb == "watch" => "WATCH",
            _ if info.is_resource && connects => "CONNECT",
            "GET" | "HEAD" if of_collection => "LIST",
            "GET" | "HEAD" => "GET",
            "POST" => "POST",
            "PUT" => "PUT",
            "PATCH" if content_type == b"application/apply-patch+yaml" => "APPLY",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            _ => "other",
        };
        let mut dry_run = query.all("dryRun");
        let dry_run = match (dry_run.next(), dry_run.all(|v| v == "All")) {
            (None, _) => "",
            (Some("All"), true) => "All",
            _ => "invalid",
        };
        let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let client = match agent.split_once('/') {
            Some(("kube-apiserver", _)) => "kube-apiserver",
            Some(("kube-controller-manager", _)) => "kube-controller-manager",
            Some(("kube-scheduler", _)) => "kube-scheduler",
            _ => "",
        };
        let RequestInfo { group, version, resource, subresource, .. } = info;
        let mut asked = Asked {
            verb,
            dry_run,
            group,
            version,
            resource,
            subresource,
            scope,
            component: "apiserver",
            client,
        };
        if !info.is_resource {
            (asked.subresource, asked.component) = match info.path.as_str() {
                // They are told of as if they were resources.
                "/statusz" => {
                    asked.resource = "statusz";
                    ("", "apiserver")
                }
                "/flagz" => {
                    asked.resource = "flagz";
                    ("", "apiserver")
                }
                path if path.starts_with("/openapi/v3") => ("openapi/v3", ""),
                path => (path, ""),
            };
        }
        asked
    }

    /// Labels and their values, without the client and whether it was a dry run.
    fn labels(&self) -> String {
        format!(
            "component={:?},group={:?},resource={:?},scope={:?},subresource={:?},verb={:?},version={:?}",
            self.component, self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }

    /// The same, as the families of its own have them.
    pub fn values(&self) -> [&str; 7] {
        [self.verb, self.group, self.version, self.resource, self.subresource, self.scope, self.component]
    }
}

/// The names of [`Asked::values`].
pub const LABELS: &[&str] = &["verb", "group", "version", "resource", "subresource", "scope", "component"];

/// An [`Asked`] that is kept, and the code of the answer.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    verb: &'static str,
    dry_run: &'static str,
    group: Box<str>,
    version: Box<str>,
    resource: Box<str>,
    subresource: Box<str>,
    scope: &'static str,
    component: &'static str,
    client: &'static str,
    code: u16,
}

impl Key {
    fn asked(&self) -> Asked<'_> {
        let Key { verb, dry_run, scope, component, client, .. } = *self;
        let (group, version) = (&*self.group, &*self.version);
        let (resource, subresource) = (&*self.resource, &*self.subresource);
        Asked { verb, dry_run, group, version, resource, subresource, scope, component, client }
    }
}

/// What is looked for, without a copy of its parts. Hashes as [`Key`] does: the same fields in the same order.
#[derive(Hash)]
struct Wanted<'a>(Asked<'a>, u16);

impl Equivalent<Key> for Wanted<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.1 == key.code && self.0 == key.asked()
    }
}

impl From<&Wanted<'_>> for Key {
    fn from(Wanted(asked, code): &Wanted<'_>) -> Key {
        let Asked { verb, dry_run, scope, component, client, .. } = *asked;
        Key {
            verb,
            dry_run,
            group: asked.group.into(),
            version: asked.version.into(),
            resource: asked.resource.into(),
            subresource: asked.subresource.into(),
            scope,
            component,
            client,
            code: *code,
        }
    }
}

#[derive(Clone, Default)]
struct Histogram<const N: usize> {
    count: u64,
    sum: f64,
    buckets: Vec<u64>,
}

impl<const N: usize> Histogram<N> {
    fn observe(&mut self, bounds: &[f64], value: f64) {
        self.count += 1;
        self.sum += value;
        self.buckets.resize(N, 0);
        if let Some(i) = bounds.iter().position(|b| value <= *b) {
            self.buckets[i] += 1;
        }
    }

    fn add(&mut self, other: &Histogram<N>) {
        self.count += other.count;
        self.sum += other.sum;
        self.buckets.resize(N, 0);
        for (a, b) in self.buckets.iter_mut().zip(&other.buckets) {
            *a += b;
        }
    }

    fn render(&self, out: &mut String, name: &str, labels: &str, bounds: &[f64]) {
        let mut below = 0;
        for (bound, n) in bounds.iter().zip(&self.buckets) {
            below += n;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {}", self.count);
    }
}

#[derive(Default)]
struct Series {
    took: Histogram<{ BOUNDS.len() }>,
    own: Histogram<{ LEVEL_BOUNDS.len() }>,
    sizes: Histogram<{ SIZES.len() }>,
}

/// How a request ended.
pub struct Answer {
    pub code: u16,
    pub took: Duration,
    /// The part of that during which the request waited for its turn, or for webhooks.
    pub elsewhere: Duration,
    /// Bytes of the answer, where they are known.
    pub size: Option<u64>,
}

#[derive(Default)]
pub struct Requests(Mutex<HashMap<Key, Series>>);

impl Requests {
    pub fn answered(&self, asked: Asked<'_>, answer: &Answer) {
        let mut requests = self.0.lock();
        let mut wanted = Wanted(asked, answer.code);
        if requests.len() >= SERIES_MAX && !requests.contains_key(&wanted) {
            let other = "other";
            wanted.0 = Asked { group: other, version: other, resource: other, subresource: other, ..asked };
        }
        let series = requests.entry_ref(&wanted).or_default();
        series.took.observe(&BOUNDS, answer.took.as_secs_f64());
        if asked.dry_run.is_empty() {
            let own = answer.took.saturating_sub(answer.elsewhere);
            series.own.observe(LEVEL_BOUNDS, own.as_secs_f64());
        }
        if let Some(size) = answer.size.filter(|_| matches!(asked.verb, "GET" | "LIST")) {
            series.sizes.observe(&SIZES, size as f64);
        }
    }

    pub fn reset(&self) {
        self.0.lock().clear();
    }

    pub fn render(&self, out: &mut String) {
        let requests = self.0.lock();
        if requests.is_empty() {
            return;
        }
        out.push_str(
            "# HELP apiserver_request_total [STABLE] Requests answered, by what they asked for and the code of the \
             answer.\n# TYPE apiserver_request_total counter\n",
        );
        for (key, series) in requests.iter() {
            let asked = key.asked();
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{}\",dry_run={:?},system_client={:?},{}}} {}",
                key.code,
                asked.dry_run,
                asked.client,
                asked.labels(),
                series.took.count
            );
        }
        let dry = |asked: &Asked<'_>| format!("dry_run={:?},{}", asked.dry_run, asked.labels());
        let took = merged(&requests, |s| &s.took, dry);
        family(
            out,
            "request_duration_seconds",
            "STABLE",
            "Seconds until requests were answered.",
            &BOUNDS,
            &took,
        );
        let own = merged(&requests, |s| &s.own, |asked| asked.labels());
        family(
            out,
            "request_sli_duration_seconds",
            "ALPHA",
            "Seconds until requests were answered, without what webhooks took and the wait for a turn.",
            LEVEL_BOUNDS,
            &own,
        );
        let sizes = merged(&requests, |s| &s.sizes, |asked| asked.labels());
        family(out, "response_sizes", "STABLE", "Bytes of the answers to what was read.", &SIZES, &sizes);
    }
}

/// The histograms of all series that `labels` does not tell apart.
fn merged<const N: usize>(
    requests: &HashMap<Key, Series>,
    of: impl Fn(&Series) -> &Histogram<N>,
    labels: impl Fn(&Asked<'_>) -> String,
) -> HashMap<String, Histogram<N>> {
    let mut merged: HashMap<String, Histogram<N>> = HashMap::new();
    for (key, series) in requests.iter().filter(|(_, series)| of(series).count > 0) {
        merged.entry(labels(&key.asked())).or_default().add(of(series));
    }
    merged
}

fn family<const N: usize>(
    out: &mut String,
    name: &str,
    stability: &str,
    help: &str,
    bounds: &[f64],
    all: &HashMap<String, Histogram<N>>,
) {
    if all.is_empty() {
        return;
    }
    let name = format!("apiserver_{name}");
    let _ = writeln!(out, "# HELP {name} [{stability}] {help}\n# TYPE {name} histogram");
    for (labels, histogram) in all {
        histogram.render(out, &name, labels, bounds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request_info;

    #[test]
    fn tells_requests_apart_as_upstream_does() {
        for (method, uri, header, want) in [
            ("GET", "/api/v1/namespaces/a/pods", "", "LIST||v1|pods||namespace|apiserver"),
            ("GET", "/api/v1/nodes", "", "LIST||v1|nodes||cluster|apiserver"),
            ("GET", "/api/v1/nodes/n", "", "GET||v1|nodes||resource|apiserver"),
            ("GET", "/api/v1/pods?watch=1", "", "WATCH||v1|pods||cluster|apiserver"),
            (
                "POST",
                "/apis/apps/v1/namespaces/a/deployments",
                "",
                "POST|apps|v1|deployments||resource|apiserver",
            ),
            ("PATCH", "/api/v1/nodes/n/status", "", "PATCH||v1|nodes|status|resource|apiserver"),
            (
                "PATCH",
                "/api/v1/nodes/n",
                "application/apply-patch+yaml",
                "APPLY||v1|nodes||resource|apiserver",
            ),
            ("DELETE", "/api/v1/namespaces/a/pods", "", "DELETE||v1|pods||namespace|apiserver"),
            ("POST", "/api/v1/namespaces/a/pods/p/exec", "", "CONNECT||v1|pods|exec|resource|apiserver"),
            ("GET", "/readyz", "", "GET||||/readyz||"),
            ("GET", "/statusz", "", "GET|||statusz|||apiserver"),
            ("GET", "/openapi/v3/apis/apps/v1", "", "GET||||openapi/v3||"),
        ] {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let (method, query) = (method.parse().unwrap(), Query::parse(Some(query)));
            let info = request_info::parse(&method, path, &query);
            let mut headers = HeaderMap::new();
            headers.insert(http::header::CONTENT_TYPE, header.parse().unwrap());
            let asked = Asked::new(&method, &headers, &query, &info);
            assert_eq!(asked.values().join("|"), want, "{uri}");
        }
    }

    #[test]
    fn renders_what_was_answered() {
        let requests = Requests::default();
        let (method, query) = (Method::GET, Query::parse(Some("dryRun=All&dryRun=All")));
        let info = request_info::parse(&method, "/api/v1/nodes", &query);
        let mut headers = HeaderMap::new();
        headers.insert(http::header::USER_AGENT, "kube-scheduler/v1".parse().unwrap());
        let asked = Asked::new(&method, &headers, &query, &info);
        assert_eq!((asked.dry_run, asked.client), ("All", "kube-scheduler"));
        let (took, elsewhere) = (Duration::from_millis(300), Duration::from_millis(100));
        let answer = |code| Answer { code, took, elsewhere, size: Some(2000) };
        requests.answered(asked, &answer(200));
        requests.answered(Asked { dry_run: "", client: "", ..asked }, &answer(500));
        let mut out = String::new();
        requests.render(&mut out);
        let labels = "component=\"apiserver\",group=\"\",resource=\"nodes\",scope=\"cluster\",subresource=\"\",verb=\"LIST\",version=\"v1\"";
        for line in [
            format!(
                "apiserver_request_total{{code=\"200\",dry_run=\"All\",system_client=\"kube-scheduler\",{labels}}} 1"
            ),
            format!("apiserver_request_duration_seconds_bucket{{dry_run=\"\",{labels},le=\"0.4\"}} 1"),
            format!("apiserver_request_sli_duration_seconds_bucket{{{labels},le=\"0.2\"}} 1"),
            format!("apiserver_request_sli_duration_seconds_count{{{labels}}} 1"),
            format!("apiserver_response_sizes_bucket{{{labels},le=\"10000\"}} 2"),
        ] {
            assert!(out.contains(&line), "{line} in {out}");
        }
    }
}
