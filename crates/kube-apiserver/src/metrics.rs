//! The server's own figures, in Prometheus' text form and under upstream's names.

mod families;
mod process;

use std::fmt::Write;
use std::time::Duration;

use hashbrown::{Equivalent, HashMap};
use parking_lot::Mutex;

pub use families::{Families, Family, hash};
pub use process::Process;

use crate::seams::RequestInfo;

/// Upper bounds of the duration buckets, in seconds.
const BOUNDS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0];
/// Distinct label sets kept; what comes beyond is counted as `other`.
const SERIES_MAX: usize = 4000;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

/// A [`Key`] that is looked for, without a copy of its parts.
#[derive(Clone, Copy, Hash)]
struct Wanted<'a> {
    verb: &'a str,
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
    code: u16,
}

impl Equivalent<Key> for Wanted<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.code == key.code
            && self.resource == key.resource
            && self.verb == key.verb
            && self.subresource == key.subresource
            && self.group == key.group
            && self.version == key.version
    }
}

impl From<&Wanted<'_>> for Key {
    fn from(wanted: &Wanted<'_>) -> Key {
        Key {
            verb: wanted.verb.to_owned(),
            group: wanted.group.to_owned(),
            version: wanted.version.to_owned(),
            resource: wanted.resource.to_owned(),
            subresource: wanted.subresource.to_owned(),
            code: wanted.code,
        }
    }
}

#[derive(Default)]
struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BOUNDS.len()],
}

#[derive(Default)]
pub struct Metrics {
    pub families: Families,
    /// What `/metrics/slis` tells.
    pub health: Families,
    pub process: Process,
    requests: Mutex<HashMap<Key, Series>>,
}

impl Metrics {
    pub fn answered(&self, info: &RequestInfo, code: u16, took: Duration) {
        let verb = match info.verb.as_str() {
            "get" => "GET",
            "create" => "POST",
            "update" => "PUT",
            "patch" => "PATCH",
            "list" => "LIST",
            "watch" => "WATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            other => &other.to_ascii_uppercase(),
        };
        let path;
        let mut wanted = Wanted {
            verb,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            code,
        };
        if !info.is_resource {
            path = info.path.split('/').take(2).collect::<Vec<_>>().join("/");
            wanted.subresource = &path;
        }
        let mut requests = self.requests.lock();
        if requests.len() >= SERIES_MAX && !requests.contains_key(&wanted) {
            let other = "other";
            wanted = Wanted { group: other, version: other, resource: other, subresource: other, ..wanted };
        }
        let series = requests.entry_ref(&wanted).or_default();
        series.count += 1;
        let seconds = took.as_secs_f64();
        series.seconds += seconds;
        if let Some(i) = BOUNDS.iter().position(|b| seconds <= *b) {
            series.buckets[i] += 1;
        }
    }

    pub fn render(&self, out: &mut String) {
        self.families.render(out);
        self.process.render(out);
        let requests = self.requests.lock();
        let labels = |k: &Key| {
            format!(
                "group={:?},resource={:?},subresource={:?},verb={:?},version={:?}",
                k.group, k.resource, k.subresource, k.verb, k.version
            )
        };
        out.push_str(
            "# HELP apiserver_request_total Requests answered.\n# TYPE apiserver_request_total counter\n",
        );
        for (key, series) in requests.iter() {
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{}\",component=\"apiserver\",dry_run=\"\",{}}} {}",
                key.code,
                labels(key),
                series.count
            );
        }
        out.push_str(
            "# HELP apiserver_request_duration_seconds Time to answer.\n\
             # TYPE apiserver_request_duration_seconds histogram\n",
        );
        let mut merged: HashMap<String, (u64, f64, [u64; BOUNDS.len()])> = HashMap::new();
        for (key, series) in requests.iter() {
            let sum = merged.entry(labels(key)).or_default();
            sum.0 += series.count;
            sum.1 += series.seconds;
            for (a, b) in sum.2.iter_mut().zip(series.buckets) {
                *a += b;
            }
        }
        for (labels, (count, seconds, buckets)) in merged {
            let name = "apiserver_request_duration_seconds";
            let labels = format!("component=\"apiserver\",dry_run=\"\",{labels}");
            let mut below = 0;
            for (bound, n) in BOUNDS.iter().zip(buckets) {
                below += n;
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{name}_sum{{{labels}}} {seconds}");
            let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
        }
    }
}
