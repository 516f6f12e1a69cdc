//! What the member counts, told at `/metrics` under etcd's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tonic::Code;

use super::{CLUSTER_VERSION, Member, VERSION};
use crate::durations::Durations;

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
    pub received_bytes: Counter,
    pub sent_bytes: Counter,
    pub healthy: Counter,
    pub unhealthy: Counter,
    pub defragmentations: Durations,
    pub snapshots: Durations,
    pub hashes: Durations,
    pub revision_hashes: Durations,
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

/// A metric without labels: name, kind, help, value.
type Row = (&'static str, &'static str, &'static str, u64);

impl Member {
    /// The text of `/metrics`.
    pub fn metrics_text(&self) -> String {
        let mut out = String::with_capacity(16 << 10);
        let o = &mut out;
        for (name, kind, help, value) in self.server_rows().into_iter().chain(self.store_rows()) {
            one(o, name, kind, help, value);
        }
        self.identity(o);
        let (syncs, commits) = self.engine.durations();
        syncs.write(o, "etcd_disk_wal_fsync_duration_seconds", "Making a batch of entries durable.");
        commits.write(o, "etcd_disk_backend_commit_duration_seconds", "Applying a batch of entries.");
        let m = &self.metrics;
        m.defragmentations.write(o, "etcd_disk_backend_defrag_duration_seconds", "Defragmentations.");
        m.snapshots.write(o, "etcd_disk_backend_snapshot_duration_seconds", "Snapshots that were sent.");
        m.hashes.write(o, "etcd_mvcc_hash_duration_seconds", "Hashing the whole store.");
        m.revision_hashes.write(o, "etcd_mvcc_hash_rev_duration_seconds", "Hashing up to a revision.");
        self.calls(o);
        process(o);
        out
    }

    fn server_rows(&self) -> Vec<Row> {
        let m = &self.metrics;
        let index = self.engine.applied_index();
        let flag = |flag: &AtomicBool| u64::from(flag.load(Ordering::Relaxed));
        vec![
            ("etcd_server_has_leader", "gauge", "1 while the member knows a leader.", 1),
            ("etcd_server_is_leader", "gauge", "1 while the member leads.", 1),
            ("etcd_server_is_learner", "gauge", "1 while the member only learns.", 0),
            ("etcd_server_learner_promote_successes", "counter", "Learners made voters.", 0),
            ("etcd_server_leader_changes_seen_total", "counter", "Changes of the leader since the start.", 1),
            ("etcd_server_heartbeat_send_failures_total", "counter", "Heartbeats sent too late.", 0),
            (
                "etcd_server_proposals_committed_total",
                "gauge",
                "Entries of the log that are committed.",
                index,
            ),
            ("etcd_server_proposals_applied_total", "gauge", "Entries of the log that are applied.", index),
            (
                "etcd_server_proposals_pending",
                "gauge",
                "Proposals that wait for the log.",
                self.engine.pending(),
            ),
            (
                "etcd_server_proposals_failed_total",
                "counter",
                "Proposals that the log refused.",
                self.engine.refused(),
            ),
            (
                "etcd_server_slow_apply_total",
                "counter",
                "Entries that took longer than 100 ms to apply.",
                self.engine.slow(),
            ),
            (
                "etcd_server_slow_read_indexes_total",
                "counter",
                "Reads that waited too long for the leader.",
                0,
            ),
            ("etcd_server_read_indexes_failed_total", "counter", "Reads that the leader did not confirm.", 0),
            (
                "etcd_server_snapshot_apply_in_progress_total",
                "gauge",
                "1 while a snapshot is being applied.",
                0,
            ),
            (
                "etcd_server_health_success",
                "counter",
                "Checks of health that found it well.",
                m.healthy.get(),
            ),
            (
                "etcd_server_health_failures",
                "counter",
                "Checks of health that found it ill.",
                m.unhealthy.get(),
            ),
            (
                "etcd_server_quota_backend_bytes",
                "gauge",
                "Bytes in use past which puts are refused.",
                self.limits.quota_bytes,
            ),
            (
                "etcd_disk_defrag_inflight",
                "gauge",
                "1 while the store is being defragmented.",
                flag(&self.defragmenting),
            ),
            (
                "etcd_disk_wal_write_bytes_total",
                "gauge",
                "Bytes appended to the log since the start.",
                self.engine.appended(),
            ),
            (
                "etcd_network_client_grpc_received_bytes_total",
                "counter",
                "Bytes of messages from clients.",
                m.received_bytes.get(),
            ),
            (
                "etcd_network_client_grpc_sent_bytes_total",
                "counter",
                "Bytes of messages to clients.",
                m.sent_bytes.get(),
            ),
            (
                "etcd_debugging_auth_revision",
                "gauge",
                "The revision of users and roles.",
                self.auth.revision(),
            ),
            ("etcd_debugging_lease_granted_total", "counter", "Leases granted.", m.leases_granted.get()),
            (
                "etcd_debugging_lease_revoked_total",
                "counter",
                "Leases revoked by a client.",
                m.leases_revoked.get(),
            ),
            ("etcd_debugging_lease_renewed_total", "counter", "Leases renewed.", m.leases_renewed.get()),
            (
                "etcd_debugging_server_lease_expired_total",
                "counter",
                "Leases that ran out.",
                self.engine.expired(),
            ),
        ]
    }

    fn store_rows(&self) -> Vec<Row> {
        let m = &self.metrics;
        let size = self.engine.size();
        let (live, _) = self.engine.statistics();
        let revision = |revision: storage::Revision| revision.try_into().unwrap_or_default();
        vec![
            ("etcd_mvcc_db_total_size_in_bytes", "gauge", "Bytes of all files.", size.bytes),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge", "Bytes of what is kept.", size.bytes_in_use),
            ("etcd_mvcc_put_total", "counter", "Puts, outside of transactions.", m.puts.get()),
            ("etcd_mvcc_range_total", "counter", "Ranges, outside of transactions.", m.ranges.get()),
            ("etcd_mvcc_delete_total", "counter", "Deletes, outside of transactions.", m.deletes.get()),
            ("etcd_mvcc_txn_total", "counter", "Transactions.", m.txns.get()),
            ("etcd_debugging_mvcc_keys_total", "gauge", "Live keys.", live as u64),
            ("etcd_debugging_mvcc_watch_stream_total", "gauge", "Open watch streams.", m.watch_streams.get()),
            ("etcd_debugging_mvcc_watcher_total", "gauge", "Watchers on all streams.", m.watchers.get()),
            ("etcd_debugging_mvcc_events_total", "counter", "Events sent to watchers.", m.events_sent.get()),
            (
                "etcd_debugging_mvcc_current_revision",
                "gauge",
                "The newest revision.",
                revision(self.engine.current_revision()),
            ),
            (
                "etcd_debugging_mvcc_compact_revision",
                "gauge",
                "The revision that was compacted last.",
                revision(self.engine.compacted()),
            ),
        ]
    }

    /// What labels tell.
    fn identity(&self, o: &mut String) {
        let id = format!("{:x}", self.header.member_id);
        for (name, help, label, value) in [
            (
                "etcd_server_version",
                "The version whose API is served, as a label.",
                "server_version",
                VERSION,
            ),
            ("etcd_server_id", "The member's id in hexadecimal, as a label.", "server_id", &id),
            (
                "etcd_cluster_version",
                "The cluster's version, as a label.",
                "cluster_version",
                CLUSTER_VERSION,
            ),
        ] {
            let _ = writeln!(o, "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{{label}=\"{value}\"}} 1");
        }
    }

    fn calls(&self, o: &mut String) {
        let m = &self.metrics;
        let mut handled = m.calls.lock().clone();
        for (i, path) in HOT.iter().enumerate() {
            handled.insert(((*path).to_owned(), "OK"), m.hot[i].get());
        }
        let mut started: BTreeMap<&str, u64> = BTreeMap::new();
        for ((path, _), n) in &handled {
            *started.entry(path).or_default() += n;
        }
        let labels = |path: &str| {
            let (service, method) = path.trim_start_matches('/').split_once('/')?;
            let kind = match method {
                "Watch" | "LeaseKeepAlive" => "bidi_stream",
                "Snapshot" | "Observe" => "server_stream",
                _ => "unary",
            };
            let clean = |s: &str| s.replace(['"', '\\', '\n'], "_");
            Some(format!(
                "grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{kind}\"",
                clean(method),
                clean(service)
            ))
        };
        let name = "grpc_server_handled_total";
        let _ =
            writeln!(o, "# HELP {name} Calls that were answered, by method and code.\n# TYPE {name} counter");
        for ((path, code), n) in &handled {
            if let Some(labels) = labels(path) {
                let _ = writeln!(o, "{name}{{grpc_code=\"{code}\",{labels}}} {n}");
            }
        }
        let name = "grpc_server_started_total";
        let _ = writeln!(
            o,
            "# HELP {name} Calls that were begun, by method; told when they are answered.\n# TYPE {name} counter"
        );
        for (path, n) in started {
            if let Some(labels) = labels(path) {
                let _ = writeln!(o, "{name}{{{labels}}} {n}");
            }
        }
    }
}

/// What the process itself uses, as Prometheus' own client tells it.
fn process(o: &mut String) {
    /// Clock ticks of /proc in a second (proc_pid_stat(5)).
    const TICKS: f64 = 100.0;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/stat");
    // From the third field on: the second may hold spaces.
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    one(
        o,
        "process_cpu_seconds_total",
        "counter",
        "CPU time of user and system.",
        (field(14) + field(15)) as f64 / TICKS,
    );
    one(o, "process_virtual_memory_bytes", "gauge", "Virtual memory.", field(23));
    let booted =
        read("/proc/stat").lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    if let Some(booted) = booted {
        one(
            o,
            "process_start_time_seconds",
            "gauge",
            "When it began, since the epoch.",
            booted + field(22) as f64 / TICKS,
        );
    }
    let status = read("/proc/self/status");
    let resident = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kib) = resident {
        one(o, "process_resident_memory_bytes", "gauge", "Resident memory.", kib << 10);
    }
    let open = std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default();
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .map_or(0, |(soft, _)| soft);
    one(o, "process_open_fds", "gauge", "Open file descriptors.", open);
    one(o, "process_max_fds", "gauge", "File descriptors that may be open.", limit);
    one(o, "os_fd_used", "gauge", "Open file descriptors.", open);
    one(o, "os_fd_limit", "gauge", "File descriptors that may be open.", limit);
}
