//! The requests, in the order they are made, and what of an answer is compared.

use bytes::Bytes;
use etcd::api::json::{self, Json};
use etcd::api::{self, compare::TargetUnion, request_op::Request};
use prost::Message;
use serde_json::Value;

/// One request, and how its answer is made comparable.
pub struct Step {
    pub name: String,
    pub path: &'static str,
    pub message: Bytes,
    pub user: Option<&'static str>,
    /// Keeps the answer's token under this name.
    pub token_of: Option<&'static str>,
    pub decode: fn(&[u8]) -> Value,
}

fn decoded<A: Message + Default + Json>(bytes: &[u8]) -> Value {
    json::to_value(&A::decode(bytes).unwrap())
}

#[derive(Default)]
pub struct Table {
    pub steps: Vec<Step>,
    group: &'static str,
    user: Option<&'static str>,
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn range(key: &str, end: &str) -> api::RangeRequest {
    api::RangeRequest { key: bytes(key), range_end: bytes(end), ..Default::default() }
}

pub fn put(key: &str, value: &str) -> api::PutRequest {
    api::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

pub fn delete(key: &str, end: &str) -> api::DeleteRangeRequest {
    api::DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: false }
}

fn op(request: Request) -> api::RequestOp {
    api::RequestOp { request: Some(request) }
}

fn put_op(key: &str, value: &str) -> api::RequestOp {
    op(Request::Put(put(key, value)))
}

fn range_op(key: &str, end: &str) -> api::RequestOp {
    op(Request::Range(range(key, end)))
}

fn delete_op(key: &str, end: &str) -> api::RequestOp {
    op(Request::DeleteRange(api::DeleteRangeRequest { prev_kv: true, ..delete(key, end) }))
}

fn compare(key: &str, result: i32, target: i32, union: Option<TargetUnion>) -> api::Compare {
    api::Compare { key: bytes(key), result, target, target_union: union, range_end: Bytes::new() }
}

impl Table {
    fn add<A: Message + Default + Json>(
        &mut self,
        path: &'static str,
        message: impl Message + Json,
        note: &str,
    ) {
        let method = path.rsplit('/').next().unwrap();
        let said = json::to_value(&message).to_string();
        let said = if said.len() > 160 {
            format!("{}…", said.chars().take(160).collect::<String>())
        } else {
            said
        };
        self.steps.push(Step {
            name: format!("{}: {method} {said} as {}{note}", self.group, self.user.unwrap_or("nobody")),
            path,
            message: message.encode_to_vec().into(),
            user: self.user,
            token_of: None,
            decode: decoded::<A>,
        });
    }

    fn range(&mut self, request: api::RangeRequest) {
        self.add::<api::RangeResponse>("/etcdserverpb.KV/Range", request, "");
    }
    fn put(&mut self, request: api::PutRequest) {
        self.add::<api::PutResponse>("/etcdserverpb.KV/Put", request, "");
    }
    fn delete(&mut self, request: api::DeleteRangeRequest) {
        self.add::<api::DeleteRangeResponse>("/etcdserverpb.KV/DeleteRange", request, "");
    }
    fn txn(
        &mut self,
        compare: Vec<api::Compare>,
        success: Vec<api::RequestOp>,
        failure: Vec<api::RequestOp>,
    ) {
        let request = api::TxnRequest { compare, success, failure };
        self.add::<api::TxnResponse>("/etcdserverpb.KV/Txn", request, "");
    }
    fn compact(&mut self, revision: i64, physical: bool) {
        let request = api::CompactionRequest { revision, physical };
        self.add::<api::CompactionResponse>("/etcdserverpb.KV/Compact", request, "");
    }
    fn grant(&mut self, id: i64, ttl: i64) {
        self.add::<api::LeaseGrantResponse>(
            "/etcdserverpb.Lease/LeaseGrant",
            api::LeaseGrantRequest { id, ttl },
            "",
        );
    }
    fn revoke(&mut self, id: i64) {
        self.add::<api::LeaseRevokeResponse>(
            "/etcdserverpb.Lease/LeaseRevoke",
            api::LeaseRevokeRequest { id },
            "",
        );
    }
    fn time_to_live(&mut self, id: i64, keys: bool) {
        let request = api::LeaseTimeToLiveRequest { id, keys };
        self.add::<api::LeaseTimeToLiveResponse>("/etcdserverpb.Lease/LeaseTimeToLive", request, "");
    }
}

/// All requests; revisions follow from their order.
pub fn table() -> Vec<Step> {
    let mut t = Table::default();
    puts_and_ranges(&mut t);
    sorts_and_filters(&mut t);
    deletes(&mut t);
    transactions(&mut t);
    compares(&mut t);
    leases(&mut t);
    history(&mut t);
    wrong_requests(&mut t);
    cluster_and_maintenance(&mut t);
    recipes(&mut t);
    access_control(&mut t);
    quota(&mut t);
    t.steps
}

fn puts_and_ranges(t: &mut Table) {
    t.group = "puts and ranges";
    t.range(range("a", ""));
    for (key, value) in
        [("a", "1"), ("b", "2"), ("a", "3"), ("c", ""), ("aa", "x"), ("a\u{0}", "zero"), ("é", "ü")]
    {
        t.put(put(key, value));
        t.range(range(key, ""));
    }
    t.put(api::PutRequest { prev_kv: true, ..put("a", "4") });
    t.put(api::PutRequest { prev_kv: true, ..put("new", "n") });
    t.put(api::PutRequest { ignore_value: true, ..put("a", "") });
    t.put(api::PutRequest { ignore_value: true, prev_kv: true, ..put("a", "") });
    t.put(api::PutRequest { ignore_lease: true, ..put("a", "5") });
    t.put(api::PutRequest { ignore_value: true, ignore_lease: true, ..put("b", "") });
    for missing in [put("none", ""), put("none2", "")] {
        t.put(api::PutRequest { ignore_value: true, ..missing.clone() });
        t.put(api::PutRequest { ignore_lease: true, ..missing });
    }
    for (key, end) in [
        ("a", "b"),
        ("a", "c"),
        ("a", "\u{0}"),
        ("\u{0}", "\u{0}"),
        ("b", "a"),
        ("b", "b"),
        ("a", "a\u{0}"),
        ("a", "aa"),
        ("d", "z"),
        ("z", ""),
    ] {
        t.range(range(key, end));
        t.range(api::RangeRequest { keys_only: true, ..range(key, end) });
        t.range(api::RangeRequest { count_only: true, ..range(key, end) });
        t.range(api::RangeRequest { limit: 2, ..range(key, end) });
        t.range(api::RangeRequest { limit: 2, count_only: true, ..range(key, end) });
        t.range(api::RangeRequest { serializable: true, limit: 100, ..range(key, end) });
    }
    t.range(api::RangeRequest { limit: -1, ..range("a", "z") });
    t.range(api::RangeRequest { keys_only: true, count_only: true, ..range("a", "z") });
}

fn sorts_and_filters(t: &mut Table) {
    t.group = "sorts and filters";
    for (key, value) in
        [("s/3", "q"), ("s/1", "z"), ("s/2", "m"), ("s/1", "b"), ("s/4", "d"), ("s/2", "a"), ("s/1", "k")]
    {
        t.put(put(key, value));
    }
    for sort_target in 0..=4 {
        for sort_order in 0..=2 {
            t.range(api::RangeRequest { sort_target, sort_order, ..range("s/", "s0") });
            t.range(api::RangeRequest { sort_target, sort_order, limit: 2, ..range("s/", "s0") });
        }
    }
    // Revisions of the keys below s/ begin somewhere after 15.
    for at in [0, 1, 16, 18, 19, 20, 21, 22, 23, 24, 25, 100] {
        t.range(api::RangeRequest { min_mod_revision: at, ..range("s/", "s0") });
        t.range(api::RangeRequest { max_mod_revision: at, ..range("s/", "s0") });
        t.range(api::RangeRequest { min_create_revision: at, ..range("s/", "s0") });
        t.range(api::RangeRequest { max_create_revision: at, limit: 1, ..range("s/", "s0") });
    }
    t.range(api::RangeRequest { min_mod_revision: 18, max_mod_revision: 22, limit: 1, ..range("s/", "s0") });
    t.range(api::RangeRequest { min_mod_revision: 18, count_only: true, ..range("s/", "s0") });
    t.range(api::RangeRequest { min_mod_revision: 18, keys_only: true, sort_target: 4, ..range("s/", "s0") });
}

fn deletes(t: &mut Table) {
    t.group = "deletes";
    for i in 0..6 {
        t.put(put(&format!("d/{i}"), &i.to_string()));
    }
    t.delete(delete("d/0", ""));
    t.delete(delete("d/0", ""));
    t.delete(api::DeleteRangeRequest { prev_kv: true, ..delete("d/1", "") });
    t.delete(api::DeleteRangeRequest { prev_kv: true, ..delete("d/1", "") });
    t.delete(api::DeleteRangeRequest { prev_kv: true, ..delete("d/2", "d/4") });
    t.delete(delete("d/9", "d/5"));
    t.delete(delete("d/", "d0"));
    t.range(range("d/", "d0"));
    t.put(put("d/0", ", again"));
    t.range(range("d/0", ""));
    t.put(api::PutRequest { prev_kv: true, ..put("d/1", ", again") });
    t.delete(delete("d/", "\u{0}"));
    t.range(api::RangeRequest { count_only: true, ..range("\u{0}", "\u{0}") });
}

fn transactions(t: &mut Table) {
    t.group = "transactions";
    t.txn(vec![], vec![], vec![]);
    t.txn(vec![], vec![put_op("t/a", "1")], vec![]);
    t.txn(vec![], vec![put_op("t/a", "2"), put_op("t/b", "2"), range_op("t/", "t0")], vec![]);
    t.txn(vec![], vec![range_op("t/", "t0"), put_op("t/c", "3"), range_op("t/", "t0")], vec![]);
    t.txn(vec![], vec![delete_op("t/a", ""), range_op("t/", "t0")], vec![]);
    t.txn(vec![], vec![delete_op("t/none", ""), range_op("t/", "t0")], vec![]);
    t.txn(vec![], vec![range_op("t/b", ""), range_op("t/none", "")], vec![]);
    t.txn(vec![], vec![delete_op("t/b", ""), delete_op("t/b", "")], vec![]);
    t.txn(vec![], vec![delete_op("t/", "t0"), put_op("u", "1")], vec![]);
    let exists =
        |key: &str, yes: bool| compare(key, if yes { 1 } else { 0 }, 0, Some(TargetUnion::Version(0)));
    for (key, yes) in [("u", true), ("u", false), ("t/none", true), ("t/none", false)] {
        t.txn(
            vec![exists(key, yes)],
            vec![put_op("t/yes", key)],
            vec![put_op("t/no", key), range_op("t/", "t0")],
        );
    }
    let inner = |key: &str, yes: bool| {
        op(Request::Txn(api::TxnRequest {
            compare: vec![exists(key, yes)],
            success: vec![put_op("t/inner", "yes"), range_op("t/inner", "")],
            failure: vec![delete_op("t/inner", ""), range_op("t/", "t0")],
        }))
    };
    t.txn(vec![], vec![inner("u", true)], vec![]);
    t.txn(vec![], vec![inner("u", false), put_op("t/after", "1")], vec![]);
    t.txn(vec![exists("u", false)], vec![], vec![inner("u", true), range_op("t/", "t0")]);
    let deep = op(Request::Txn(api::TxnRequest { success: vec![inner("u", true)], ..Default::default() }));
    t.txn(vec![], vec![deep, put_op("t/outer", "1")], vec![]);
    t.txn(vec![], vec![op(Request::Put(api::PutRequest { prev_kv: true, ..put("u", "2") }))], vec![]);
    t.txn(vec![], vec![op(Request::Put(api::PutRequest { ignore_value: true, ..put("u", "") }))], vec![]);
    t.txn(
        vec![],
        vec![op(Request::Put(api::PutRequest { ignore_value: true, ..put("t/none", "") }))],
        vec![],
    );
    t.txn(vec![], vec![op(Request::Put(api::PutRequest { lease: 12345, ..put("t/none", "") }))], vec![]);
    t.txn(
        vec![],
        vec![put_op("t/undone", "1"), op(Request::Put(api::PutRequest { lease: 12345, ..put("t/x", "") }))],
        vec![],
    );
    t.range(range("t/undone", ""));
    t.txn(vec![], vec![op(Request::Range(api::RangeRequest { revision: 3, ..range("a", "z") }))], vec![]);
    t.txn(
        vec![],
        vec![op(Request::Range(api::RangeRequest { revision: 3_000_000, ..range("a", "z") }))],
        vec![],
    );
    t.txn(
        vec![],
        vec![op(Request::Range(api::RangeRequest {
            limit: 1,
            sort_target: 3,
            sort_order: 2,
            ..range("t/", "t0")
        }))],
        vec![],
    );
    t.range(range("t/", "t0"));
}

fn compares(t: &mut Table) {
    t.group = "compares";
    t.put(put("k", "m"));
    t.put(put("k", "m"));
    for key in ["k", "k-none"] {
        for result in 0..=3 {
            for n in [0, 1, 2, 3] {
                t.txn(vec![compare(key, result, 0, Some(TargetUnion::Version(n)))], vec![], vec![]);
            }
            for n in [0, 1, i64::MAX] {
                t.txn(vec![compare(key, result, 1, Some(TargetUnion::CreateRevision(n)))], vec![], vec![]);
                t.txn(vec![compare(key, result, 2, Some(TargetUnion::ModRevision(n)))], vec![], vec![]);
                t.txn(vec![compare(key, result, 4, Some(TargetUnion::Lease(n)))], vec![], vec![]);
            }
            for value in ["", "a", "m", "z"] {
                t.txn(vec![compare(key, result, 3, Some(TargetUnion::Value(bytes(value))))], vec![], vec![]);
            }
        }
    }
    // What is compared is of another kind than the target, or not given.
    t.txn(vec![compare("k", 0, 0, Some(TargetUnion::ModRevision(2)))], vec![], vec![]);
    t.txn(vec![compare("k", 0, 3, None)], vec![], vec![]);
    t.txn(vec![compare("k", 1, 1, None)], vec![], vec![]);
    // Of a range, every key must hold.
    for (key, end) in [("s/", "s0"), ("k", "\u{0}"), ("none/", "none0")] {
        for result in 0..=3 {
            for (target, union) in [
                (0, TargetUnion::Version(1)),
                (2, TargetUnion::ModRevision(5)),
                (3, TargetUnion::Value(bytes("b"))),
            ] {
                let ranged =
                    api::Compare { range_end: bytes(end), ..compare(key, result, target, Some(union)) };
                t.txn(vec![ranged], vec![], vec![]);
            }
        }
    }
    let several = |a: i64, b: i64| {
        vec![
            compare("k", 0, 0, Some(TargetUnion::Version(a))),
            compare("u", 1, 0, Some(TargetUnion::Version(b))),
        ]
    };
    t.txn(several(2, 0), vec![range_op("k", "")], vec![range_op("u", "")]);
    t.txn(several(2, 9), vec![range_op("k", "")], vec![range_op("u", "")]);
    t.txn(several(9, 0), vec![range_op("k", "")], vec![range_op("u", "")]);
}

fn leases(t: &mut Table) {
    t.group = "leases";
    t.grant(100, 3600);
    t.grant(100, 3600);
    t.grant(101, 0);
    t.grant(102, -5);
    t.grant(103, 9_000_000_001);
    t.grant(104, 9_000_000_000);
    t.grant(105, 3600);
    t.put(api::PutRequest { lease: 100, ..put("l/a", "1") });
    t.put(api::PutRequest { lease: 100, ..put("l/b", "2") });
    t.put(api::PutRequest { lease: 105, ..put("l/c", "3") });
    t.put(api::PutRequest { lease: 999, ..put("l/d", "4") });
    t.range(range("l/", "l0"));
    t.txn(vec![compare("l/a", 0, 4, Some(TargetUnion::Lease(100)))], vec![range_op("l/a", "")], vec![]);
    t.time_to_live(100, true);
    t.time_to_live(100, false);
    t.time_to_live(999, true);
    t.put(api::PutRequest { lease: 105, ..put("l/b", "5") });
    t.time_to_live(100, true);
    t.put(put("l/c", "6"));
    t.time_to_live(105, true);
    t.put(api::PutRequest { ignore_lease: true, ..put("l/b", "7") });
    t.time_to_live(105, true);
    t.delete(delete("l/b", ""));
    t.time_to_live(105, true);
    t.revoke(100);
    t.revoke(100);
    t.revoke(999);
    t.range(range("l/", "l0"));
    t.time_to_live(100, true);
    t.add::<api::LeaseLeasesResponse>("/etcdserverpb.Lease/LeaseLeases", api::LeaseLeasesRequest {}, "");
    t.put(api::PutRequest { lease: 105, ignore_lease: true, ..put("l/c", "6") });
    t.revoke(101);
    t.revoke(102);
    t.revoke(104);
    t.revoke(105);
    t.revoke(0);
    t.add::<api::LeaseLeasesResponse>("/etcdserverpb.Lease/LeaseLeases", api::LeaseLeasesRequest {}, "");
}

fn history(t: &mut Table) {
    t.group = "history";
    for revision in [-1, 0, 1, 2, 3, 4, 5, 8, 20, 40, 1_000_000] {
        t.range(api::RangeRequest { revision, ..range("a", "c") });
        t.range(api::RangeRequest { revision, limit: 1, ..range("a", "\u{0}") });
        t.range(api::RangeRequest { revision, count_only: true, ..range("\u{0}", "\u{0}") });
    }
    for (revision, physical) in
        [(5, false), (5, false), (4, true), (10, true), (1_000_000, false), (0, false), (-1, false)]
    {
        t.compact(revision, physical);
    }
    for revision in [1, 4, 5, 9, 10, 11] {
        t.range(api::RangeRequest { revision, ..range("a", "c") });
        t.txn(vec![], vec![op(Request::Range(api::RangeRequest { revision, ..range("a", "c") }))], vec![]);
    }
    t.range(range("a", "c"));
    t.put(api::PutRequest { prev_kv: true, ..put("a", "after") });
}

fn wrong_requests(t: &mut Table) {
    t.group = "wrong requests";
    t.range(range("", ""));
    t.range(range("", "z"));
    t.range(api::RangeRequest { sort_order: 7, ..range("a", "") });
    // A sort target of 7 is not asked for: it ends etcd 3.4.
    t.put(put("", "x"));
    t.put(api::PutRequest { ignore_value: true, ..put("a", "x") });
    t.put(api::PutRequest { ignore_lease: true, lease: 5, ..put("a", "x") });
    t.delete(delete("", ""));
    t.txn(vec![], vec![put_op("a", "1"), put_op("a", "2")], vec![]);
    t.txn(vec![], vec![], vec![put_op("a", "1"), put_op("a", "2")]);
    t.txn(vec![], vec![put_op("a", "1"), delete_op("a", "")], vec![]);
    t.txn(vec![], vec![delete_op("a", "z"), put_op("b", "1")], vec![]);
    t.txn(vec![], vec![put_op("", "1")], vec![]);
    t.txn(vec![], vec![range_op("", "")], vec![]);
    t.txn(vec![], vec![api::RequestOp { request: None }], vec![]);
    t.txn(vec![compare("", 0, 0, None)], vec![], vec![]);
    t.txn(vec![], (0..128).map(|i| range_op(&format!("o/{i}"), "")).collect(), vec![]);
    t.txn(vec![], (0..129).map(|i| put_op(&format!("o/{i}"), "")).collect(), vec![]);
    t.txn((0..129).map(|_| compare("a", 0, 0, None)).collect(), vec![], vec![]);
    let nested = |ops: Vec<api::RequestOp>, others: Vec<api::RequestOp>| {
        op(Request::Txn(api::TxnRequest { compare: vec![], success: ops, failure: others }))
    };
    t.txn(vec![], vec![nested(vec![put_op("n", "1")], vec![put_op("n", "2")])], vec![]);
    t.txn(vec![], vec![put_op("n", "1"), nested(vec![put_op("n", "1")], vec![])], vec![]);
    t.txn(
        vec![],
        vec![nested(vec![put_op("n", "1")], vec![]), nested(vec![], vec![put_op("n", "1")])],
        vec![],
    );
    t.txn(vec![], vec![nested(vec![delete_op("n", "o")], vec![]), put_op("n1", "1")], vec![]);
    t.put(put("large", &"x".repeat(1_572_000)));
    t.put(put("large", &"x".repeat(1_572_864)));
    t.put(put("large", &"x".repeat(2_000_000)));
    t.put(put("large", &"x".repeat(2_200_000)));
    t.delete(delete("large", ""));
    t.add::<api::PutResponse>("/etcdserverpb.KV/Nonsense", put("a", "b"), "");
    t.add::<api::PutResponse>("/no.Service/Nonsense", put("a", "b"), "");
}

fn cluster_and_maintenance(t: &mut Table) {
    t.group = "cluster and maintenance";
    let urls = |urls: &[&str]| urls.iter().map(|u| (*u).to_owned()).collect::<Vec<_>>();
    for bad in [
        vec![],
        urls(&["not a url"]),
        urls(&["http://host"]),
        urls(&["ftp://a:1"]),
        urls(&["http://a:1/path"]),
    ] {
        let request = api::MemberAddRequest { peer_urls: bad, is_learner: false };
        t.add::<api::MemberAddResponse>("/etcdserverpb.Cluster/MemberAdd", request, "");
    }
    t.add::<api::MemberRemoveResponse>(
        "/etcdserverpb.Cluster/MemberRemove",
        api::MemberRemoveRequest { id: 42 },
        "",
    );
    t.add::<api::MemberPromoteResponse>(
        "/etcdserverpb.Cluster/MemberPromote",
        api::MemberPromoteRequest { id: 42 },
        "",
    );
    let update = api::MemberUpdateRequest { id: 42, peer_urls: urls(&["http://127.0.0.1:1"]) };
    t.add::<api::MemberUpdateResponse>("/etcdserverpb.Cluster/MemberUpdate", update, "");
    t.add::<api::MoveLeaderResponse>(
        "/etcdserverpb.Maintenance/MoveLeader",
        api::MoveLeaderRequest { target_id: 42 },
        "",
    );
    t.add::<api::DefragmentResponse>("/etcdserverpb.Maintenance/Defragment", api::DefragmentRequest {}, "");
    let alarm = |action, alarm| api::AlarmRequest { action, member_id: 7, alarm };
    // An alarm of no kind is not raised: etcd 3.4 keeps it.
    for (action, kind) in [(0, 0), (0, 1), (1, 1), (1, 1), (0, 0), (0, 1), (0, 2)] {
        t.add::<api::AlarmResponse>("/etcdserverpb.Maintenance/Alarm", alarm(action, kind), "");
    }
    t.put(put("no", "space"));
    t.txn(vec![], vec![put_op("no", "space")], vec![]);
    t.txn(vec![], vec![delete_op("no", "")], vec![]);
    t.range(range("a", ""));
    t.grant(300, 60);
    t.delete(delete("no", ""));
    for (action, kind) in [(2, 2), (2, 1), (2, 1), (0, 0)] {
        t.add::<api::AlarmResponse>("/etcdserverpb.Maintenance/Alarm", alarm(action, kind), "");
    }
    t.put(put("with", "space"));
    for (action, kind) in [(1, 2), (0, 0)] {
        t.add::<api::AlarmResponse>("/etcdserverpb.Maintenance/Alarm", alarm(action, kind), "");
    }
    t.put(put("corrupt", "1"));
    t.range(range("a", ""));
    t.txn(vec![], vec![range_op("a", "")], vec![]);
    t.delete(delete("a", ""));
    t.grant(301, 60);
    t.compact(20, false);
    t.add::<api::AlarmResponse>("/etcdserverpb.Maintenance/Alarm", alarm(2, 2), "");
    t.put(put("sound", "1"));
}

fn recipes(t: &mut Table) {
    t.group = "lock and election";
    t.grant(500, 3600);
    t.grant(501, 3600);
    let lock = |name: &str, lease| api::LockRequest { name: bytes(name), lease };
    t.add::<api::LockResponse>("/v3lockpb.Lock/Lock", lock("lk", 500), "");
    t.add::<api::LockResponse>("/v3lockpb.Lock/Lock", lock("lk", 500), ", again");
    t.range(range("lk", "lk\u{ff}"));
    t.add::<api::UnlockResponse>("/v3lockpb.Lock/Unlock", api::UnlockRequest { key: bytes("lk/1f4") }, "");
    t.add::<api::UnlockResponse>(
        "/v3lockpb.Lock/Unlock",
        api::UnlockRequest { key: bytes("lk/1f4") },
        "again",
    );
    t.range(range("lk", "lk\u{ff}"));
    t.add::<api::LockResponse>("/v3lockpb.Lock/Lock", lock("lk", 7777), ", without such a lease");
    let leader = |name: &str| api::LeaderRequest { name: bytes(name) };
    t.add::<api::LeaderResponse>("/v3electionpb.Election/Leader", leader("el"), "");
    let campaign = |value: &str| api::CampaignRequest { name: bytes("el"), lease: 501, value: bytes(value) };
    t.add::<api::CampaignResponse>("/v3electionpb.Election/Campaign", campaign("one"), "");
    t.add::<api::LeaderResponse>("/v3electionpb.Election/Leader", leader("el"), "");
    t.add::<api::CampaignResponse>("/v3electionpb.Election/Campaign", campaign("two"), "");
    t.add::<api::LeaderResponse>("/v3electionpb.Election/Leader", leader("el"), "");
    let key = |rev| Some(api::LeaderKey { name: bytes("el"), key: bytes("el/1f5"), rev, lease: 501 });
    let proclaim = |rev| api::ProclaimRequest { leader: key(rev), value: bytes("three") };
    t.add::<api::ProclaimResponse>("/v3electionpb.Election/Proclaim", proclaim(1), "");
    t.add::<api::ProclaimResponse>("/v3electionpb.Election/Proclaim", api::ProclaimRequest::default(), "");
    t.add::<api::ResignResponse>("/v3electionpb.Election/Resign", api::ResignRequest { leader: key(1) }, "");
    t.add::<api::LeaderResponse>("/v3electionpb.Election/Leader", leader("el"), "");
    t.add::<api::ResignResponse>("/v3electionpb.Election/Resign", api::ResignRequest { leader: None }, "");
    t.revoke(501);
    t.add::<api::LeaderResponse>("/v3electionpb.Election/Leader", leader("el"), "");
    t.revoke(500);
}

#[allow(clippy::needless_update, reason = "one form for all requests, whether or not more fields are left")]
fn access_control(t: &mut Table) {
    t.group = "access control";
    macro_rules! auth {
        ($method:literal $request:ident { $($field:ident : $value:expr),* } $response:ident) => {
            t.add::<api::$response>(concat!("/etcdserverpb.Auth/", $method), api::$request { $($field: $value,)* ..Default::default() }, "")
        };
    }
    macro_rules! user_add {
        ($name:expr, $password:expr, $no_password:expr) => {
            auth!("UserAdd" AuthUserAddRequest { name: $name.to_owned(), password: $password.to_owned(), options: Some(api::UserAddOptions { no_password: $no_password }) } AuthUserAddResponse)
        };
    }
    macro_rules! grant_role {
        ($user:expr, $role:expr) => {
            auth!("UserGrantRole" AuthUserGrantRoleRequest { user: $user.to_owned(), role: $role.to_owned() } AuthUserGrantRoleResponse)
        };
    }
    macro_rules! permit {
        ($role:expr, $kind:expr, $key:expr, $end:expr) => {
            auth!("RoleGrantPermission" AuthRoleGrantPermissionRequest { name: $role.to_owned(), perm: Some(api::Permission { perm_type: $kind, key: bytes($key), range_end: bytes($end) }) } AuthRoleGrantPermissionResponse)
        };
    }
    macro_rules! log_in {
        ($name:expr, $password:expr) => {
            auth!("Authenticate" AuthenticateRequest { name: $name.to_owned(), password: $password.to_owned() } AuthenticateResponse);
            t.steps.last_mut().unwrap().token_of = Some($name);
        };
    }
    auth!("AuthEnable" AuthEnableRequest {} AuthEnableResponse);
    auth!("AuthDisable" AuthDisableRequest {} AuthDisableResponse);
    auth!("Authenticate" AuthenticateRequest { name: "root".to_owned(), password: "x".to_owned() } AuthenticateResponse);
    user_add!("", "x", false);
    user_add!("root", "rootpw", false);
    user_add!("root", "rootpw", false);
    auth!("AuthEnable" AuthEnableRequest {} AuthEnableResponse);
    user_add!("alice", "alicepw", false);
    user_add!("bob", "", true);
    user_add!("carol", "carolpw", false);
    auth!("UserList" AuthUserListRequest {} AuthUserListResponse);
    auth!("UserGet" AuthUserGetRequest { name: "alice".to_owned() } AuthUserGetResponse);
    auth!("UserGet" AuthUserGetRequest { name: "nobody".to_owned() } AuthUserGetResponse);
    auth!("UserDelete" AuthUserDeleteRequest { name: "nobody".to_owned() } AuthUserDeleteResponse);
    auth!("UserChangePassword" AuthUserChangePasswordRequest { name: "nobody".to_owned(), password: "x".to_owned() } AuthUserChangePasswordResponse);
    for role in ["", "reader", "reader", "writer", "root"] {
        auth!("RoleAdd" AuthRoleAddRequest { name: role.to_owned() } AuthRoleAddResponse);
    }
    auth!("RoleList" AuthRoleListRequest {} AuthRoleListResponse);
    auth!("RoleGet" AuthRoleGetRequest { role: "nothing".to_owned() } AuthRoleGetResponse);
    auth!("RoleGet" AuthRoleGetRequest { role: "root".to_owned() } AuthRoleGetResponse);
    auth!("RoleDelete" AuthRoleDeleteRequest { role: "nothing".to_owned() } AuthRoleDeleteResponse);
    permit!("nothing", 0, "r/", "r0");
    // A grant without a permission is not asked for: it ends etcd 3.4.
    permit!("reader", 0, "r/", "r0");
    permit!("reader", 0, "r/", "r0");
    permit!("reader", 0, "one", "");
    permit!("writer", 1, "w/", "w0");
    permit!("writer", 2, "rw/", "\u{0}");
    permit!("writer", 0, "b", "a");
    permit!("writer", 0, "", "");
    auth!("RoleGet" AuthRoleGetRequest { role: "reader".to_owned() } AuthRoleGetResponse);
    auth!("RoleGet" AuthRoleGetRequest { role: "writer".to_owned() } AuthRoleGetResponse);
    let revoke = |role: &str, key: &str, end: &str| api::AuthRoleRevokePermissionRequest {
        role: role.to_owned(),
        key: bytes(key),
        range_end: bytes(end),
    };
    for (role, key, end) in
        [("nothing", "a", ""), ("reader", "a", ""), ("reader", "r/", ""), ("reader", "one", "")]
    {
        t.add::<api::AuthRoleRevokePermissionResponse>(
            "/etcdserverpb.Auth/RoleRevokePermission",
            revoke(role, key, end),
            "",
        );
    }
    permit!("reader", 0, "one", "");
    for (user, role) in [
        ("nobody", "reader"),
        ("alice", "nothing"),
        ("alice", "reader"),
        ("alice", "reader"),
        ("carol", "writer"),
        ("alice", "writer"),
        ("bob", "reader"),
    ] {
        grant_role!(user, role);
    }
    let revoke_role = |name: &str, role: &str| api::AuthUserRevokeRoleRequest {
        name: name.to_owned(),
        role: role.to_owned(),
    };
    for (user, role) in [("nobody", "reader"), ("carol", "reader"), ("alice", "writer")] {
        t.add::<api::AuthUserRevokeRoleResponse>(
            "/etcdserverpb.Auth/UserRevokeRole",
            revoke_role(user, role),
            "",
        );
    }
    auth!("UserGet" AuthUserGetRequest { name: "alice".to_owned() } AuthUserGetResponse);
    auth!("AuthEnable" AuthEnableRequest {} AuthEnableResponse);
    grant_role!("root", "root");
    t.put(put("r/1", "readable"));
    t.put(put("w/1", "writable"));
    t.put(put("one", "1"));
    t.grant(600, 3600);
    t.put(api::PutRequest { lease: 600, ..put("secret", "s") });
    auth!("AuthEnable" AuthEnableRequest {} AuthEnableResponse);
    // From here on nobody may do anything without a token.
    t.range(range("r/1", ""));
    t.put(put("r/1", "x"));
    auth!("UserList" AuthUserListRequest {} AuthUserListResponse);
    auth!("Authenticate" AuthenticateRequest { name: "alice".to_owned(), password: "wrong".to_owned() } AuthenticateResponse);
    auth!("Authenticate" AuthenticateRequest { name: "nobody".to_owned(), password: "x".to_owned() } AuthenticateResponse);
    auth!("Authenticate" AuthenticateRequest { name: "bob".to_owned(), password: "".to_owned() } AuthenticateResponse);
    log_in!("root", "rootpw");
    log_in!("alice", "alicepw");
    log_in!("carol", "carolpw");
    t.user = Some("not.1");
    t.range(range("r/1", ""));
    for user in ["alice", "carol", "root"] {
        t.user = Some(user);
        for (key, end) in [
            ("r/1", ""),
            ("r/", "r0"),
            ("r/", "r1"),
            ("one", ""),
            ("one", "two"),
            ("w/1", ""),
            ("\u{0}", "\u{0}"),
        ] {
            t.range(range(key, end));
        }
        t.put(put("w/1", user));
        t.put(put("rw/1", user));
        t.put(put("zz", user));
        t.put(api::PutRequest { prev_kv: true, ..put("w/1", user) });
        t.put(api::PutRequest { lease: 600, ..put("rw/2", user) });
        t.delete(delete("w/none", ""));
        t.delete(api::DeleteRangeRequest { prev_kv: true, ..delete("w/none", "") });
        t.delete(delete("w/", "x"));
        t.txn(vec![compare("r/1", 1, 0, Some(TargetUnion::Version(0)))], vec![put_op("w/2", "1")], vec![]);
        t.txn(vec![], vec![range_op("r/1", "")], vec![put_op("w/2", "1")]);
        t.txn(vec![], vec![range_op("r/1", "")], vec![]);
        t.revoke(700);
        t.time_to_live(600, true);
        t.grant(0x700 + user.len() as i64, 3600);
        auth!("UserGet" AuthUserGetRequest { name: "alice".to_owned() } AuthUserGetResponse);
        auth!("RoleGet" AuthRoleGetRequest { role: "reader".to_owned() } AuthRoleGetResponse);
        auth!("UserList" AuthUserListRequest {} AuthUserListResponse);
        auth!("RoleAdd" AuthRoleAddRequest { name: "made-by-somebody".to_owned() } AuthRoleAddResponse);
        t.add::<api::DefragmentResponse>(
            "/etcdserverpb.Maintenance/Defragment",
            api::DefragmentRequest {},
            "",
        );
    }
    // root goes on.
    auth!("UserDelete" AuthUserDeleteRequest { name: "root".to_owned() } AuthUserDeleteResponse);
    auth!("RoleDelete" AuthRoleDeleteRequest { role: "root".to_owned() } AuthRoleDeleteResponse);
    t.add::<api::AuthUserRevokeRoleResponse>(
        "/etcdserverpb.Auth/UserRevokeRole",
        revoke_role("root", "root"),
        "",
    );
    auth!("UserChangePassword" AuthUserChangePasswordRequest { name: "alice".to_owned(), password: "other".to_owned() } AuthUserChangePasswordResponse);
    t.user = Some("alice");
    t.range(range("r/1", ""));
    t.user = None;
    auth!("Authenticate" AuthenticateRequest { name: "alice".to_owned(), password: "alicepw".to_owned() } AuthenticateResponse);
    log_in!("alice", "other");
    t.user = Some("alice");
    t.range(range("r/1", ""));
    t.user = Some("root");
    auth!("RoleDelete" AuthRoleDeleteRequest { role: "reader".to_owned() } AuthRoleDeleteResponse);
    auth!("UserGet" AuthUserGetRequest { name: "alice".to_owned() } AuthUserGetResponse);
    auth!("UserDelete" AuthUserDeleteRequest { name: "alice".to_owned() } AuthUserDeleteResponse);
    t.user = Some("alice");
    t.range(range("r/1", ""));
    t.user = Some("root");
    auth!("RoleList" AuthRoleListRequest {} AuthRoleListResponse);
    auth!("UserList" AuthUserListRequest {} AuthUserListResponse);
    auth!("AuthDisable" AuthDisableRequest {} AuthDisableResponse);
    t.user = None;
    t.range(range("r/1", ""));
    auth!("AuthDisable" AuthDisableRequest {} AuthDisableResponse);
}

fn quota(t: &mut Table) {
    t.group = "quota";
    let full = "x".repeat(1 << 20);
    for i in 0..8 {
        t.put(put(&format!("q/{i}"), &full));
    }
    t.delete(delete("q/", "q0"));
    t.range(api::RangeRequest { count_only: true, ..range("q/", "q0") });
}
