//! What the member counts, told at `/metrics` under etcd's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tonic::Code;

use super::{CLUSTER_VERSION, Member, VERSION};

#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub struct Metrics {
    pub puts: Counter,
    pub ranges: Counter,
    pub deletes: Counter,
    pub txns: Counter,
    pub leases_granted: Counter,
    pub leases_revoked: Counter,
    pub leases_renewed: Counter,
    pub watchers: Counter,
    pub watch_streams: Counter,
    pub events_sent: Counter,
    /// Calls of the three hot methods that ended well.
    hot: [Counter; 3],
    calls: Mutex<BTreeMap<(String, &'static str), u64>>,
}

const HOT: [&str; 3] = ["/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"];
/// Methods counted one by one; a client could ask for any number of others.
const CALLS_MAX: usize = 1000;

impl Metrics {
    /// Counts a call that was answered.
    pub fn handled(&self, path: &str, code: Code) {
        if code == Code::Ok
            && let Some(i) = HOT.iter().position(|hot| *hot == path)
        {
            return self.hot[i].add(1);
        }
        let mut calls = self.calls.lock();
        let key = (path.to_owned(), code_name(code));
        if calls.len() < CALLS_MAX || calls.contains_key(&key) {
            *calls.entry(key).or_default() += 1;
        }
    }
}

/// gRPC's names, as etcd's metrics label them.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

fn one(out: &mut String, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}

impl Member {
    /// The text of `/metrics`.
    pub fn metrics_text(&self) -> String {
        let m = &self.metrics;
        let mut out = String::with_capacity(8 << 10);
        let o = &mut out;
        let size = self.engine.size();
        let (live, _) = self.engine.statistics();
        let index = self.engine.applied_index();
        one(o, "etcd_server_has_leader", "gauge", "1 while the member knows a leader.", 1);
        one(o, "etcd_server_is_leader", "gauge", "1 while the member leads.", 1);
        one(o, "etcd_server_is_learner", "gauge", "1 while the member only learns.", 0);
        one(
            o,
            "etcd_server_leader_changes_seen_total",
            "counter",
            "Changes of the leader since the start.",
            1,
        );
        one(
            o,
            "etcd_server_proposals_committed_total",
            "gauge",
            "Entries of the log that are committed.",
            index,
        );
        one(o, "etcd_server_proposals_applied_total", "gauge", "Entries of the log that are applied.", index);
        one(
            o,
            "etcd_server_quota_backend_bytes",
            "gauge",
            "Bytes in use past which puts are refused.",
            self.limits.quota_bytes,
        );
        let labeled = |o: &mut String, name: &str, help: &str, label: &str, value: &str| {
            let _ = writeln!(o, "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{{label}=\"{value}\"}} 1");
        };
        labeled(
            o,
            "etcd_server_version",
            "The version whose API is served, as a label.",
            "server_version",
            VERSION,
        );
        labeled(
            o,
            "etcd_server_id",
            "The member's id in hexadecimal, as a label.",
            "server_id",
            &format!("{:x}", self.header.member_id),
        );
        labeled(
            o,
            "etcd_cluster_version",
            "The cluster's version, as a label.",
            "cluster_version",
            CLUSTER_VERSION,
        );
        one(o, "etcd_mvcc_db_total_size_in_bytes", "gauge", "Bytes of all files.", size.bytes);
        one(
            o,
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "gauge",
            "Bytes of what is kept.",
            size.bytes_in_use,
        );
        one(o, "etcd_mvcc_put_total", "counter", "Puts, outside of transactions.", m.puts.get());
        one(o, "etcd_mvcc_range_total", "counter", "Ranges, outside of transactions.", m.ranges.get());
        one(o, "etcd_mvcc_delete_total", "counter", "Deletes, outside of transactions.", m.deletes.get());
        one(o, "etcd_mvcc_txn_total", "counter", "Transactions.", m.txns.get());
        one(o, "etcd_debugging_mvcc_keys_total", "gauge", "Live keys.", live);
        one(
            o,
            "etcd_debugging_mvcc_watch_stream_total",
            "gauge",
            "Open watch streams.",
            m.watch_streams.get(),
        );
        one(o, "etcd_debugging_mvcc_watcher_total", "gauge", "Watchers on all streams.", m.watchers.get());
        one(
            o,
            "etcd_debugging_mvcc_events_total",
            "counter",
            "Events sent to watchers.",
            m.events_sent.get(),
        );
        one(
            o,
            "etcd_debugging_mvcc_current_revision",
            "gauge",
            "The newest revision.",
            self.engine.current_revision(),
        );
        one(
            o,
            "etcd_debugging_mvcc_compact_revision",
            "gauge",
            "The revision that was compacted last.",
            self.engine.compacted(),
        );
        one(o, "etcd_debugging_lease_granted_total", "counter", "Leases granted.", m.leases_granted.get());
        one(
            o,
            "etcd_debugging_lease_revoked_total",
            "counter",
            "Leases revoked by a client.",
            m.leases_revoked.get(),
        );
        one(o, "etcd_debugging_lease_renewed_total", "counter", "Leases renewed.", m.leases_renewed.get());
        one(
            o,
            "etcd_debugging_auth_revision",
            "gauge",
            "The revision of users and roles.",
            self.auth.revision(),
        );
        let _ = writeln!(
            o,
            "# HELP grpc_server_handled_total Calls that were answered, by method and code.\n# TYPE grpc_server_handled_total counter"
        );
        let mut calls = m.calls.lock().clone();
        for (i, path) in HOT.iter().enumerate() {
            calls.insert(((*path).to_owned(), "OK"), m.hot[i].get());
        }
        for ((path, code), n) in calls {
            let Some((service, method)) = path.trim_start_matches('/').split_once('/') else { continue };
            let kind = match method {
                "Watch" | "LeaseKeepAlive" => "bidi_stream",
                "Snapshot" | "Observe" => "server_stream",
                _ => "unary",
            };
            let clean = |s: &str| s.replace(['"', '\\', '\n'], "_");
            let _ = writeln!(
                o,
                "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{kind}\"}} {n}",
                clean(method),
                clean(service)
            );
        }
        process(o);
        out
    }
}

/// What the process itself uses.
fn process(o: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kib) = resident {
        one(o, "process_resident_memory_bytes", "gauge", "Resident memory.", kib << 10);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        one(o, "process_open_fds", "gauge", "Open file descriptors.", files.count());
    }
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    if let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) {
        let seconds = (user + system) as f64 / 100.0;
        one(o, "process_cpu_seconds_total", "counter", "CPU time of user and system.", seconds);
    }
}
