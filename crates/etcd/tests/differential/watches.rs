//! Watch streams: the same requests and writes on both servers, and what the watchers are told.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd::api::{self, watch_request::RequestUnion};
use futures::StreamExt;
use prost::Message;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::peer::{self, Peer};
use crate::table::{bytes, delete, put};

/// What happens, in order.
enum Act {
    Create(api::WatchCreateRequest),
    Cancel(i64),
    Put(&'static str, &'static str),
    Delete(&'static str, &'static str),
    Compact(i64),
    /// Waits until so many events and control messages have come in all.
    Await(usize),
}

fn create(key: &str, end: &str) -> api::WatchCreateRequest {
    api::WatchCreateRequest { key: bytes(key), range_end: bytes(end), ..Default::default() }
}

/// Runs a scenario; what came is listed by watcher, events one by one, so that the batches they came in do not count.
async fn told(peer: &Peer, acts: &[Act]) -> BTreeMap<i64, Vec<Value>> {
    let (sender, mut answers) = peer.watch(None).await;
    let mut told: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
    let mut count = 0;
    let call = async |path: &str, message: Vec<u8>| peer.call(path, message.into(), None).await.map(drop);
    for act in acts {
        match act {
            Act::Create(request) => {
                let request =
                    api::WatchRequest { request_union: Some(RequestUnion::Create(request.clone())) };
                sender.send(request).await.unwrap();
            }
            Act::Cancel(watch_id) => {
                let cancel = api::WatchCancelRequest { watch_id: *watch_id };
                sender
                    .send(api::WatchRequest { request_union: Some(RequestUnion::Cancel(cancel)) })
                    .await
                    .unwrap();
            }
            Act::Put(key, value) => {
                call("/etcdserverpb.KV/Put", put(key, value).encode_to_vec()).await.unwrap()
            }
            Act::Delete(key, end) => {
                call("/etcdserverpb.KV/DeleteRange", delete(key, end).encode_to_vec()).await.unwrap();
            }
            Act::Compact(revision) => {
                let request = api::CompactionRequest { revision: *revision, physical: true };
                call("/etcdserverpb.KV/Compact", request.encode_to_vec()).await.unwrap();
            }
            Act::Await(wanted) => {
                while count < *wanted {
                    let answer = tokio::time::timeout(Duration::from_secs(20), answers.next())
                        .await
                        .unwrap_or_else(|_| panic!("{}: {count} of {wanted} came: {told:?}", peer.name))
                        .unwrap()
                        .unwrap();
                    let to = told.entry(answer.watch_id).or_default();
                    if answer.created || answer.canceled {
                        count += 1;
                        to.push(json!({
                            "created": answer.created,
                            "canceled": answer.canceled,
                            "reason": answer.cancel_reason,
                            "compacted": answer.compact_revision,
                        }));
                    }
                    for event in &answer.events {
                        count += 1;
                        to.push(api::json::to_value(event));
                    }
                }
            }
        }
    }
    told
}

fn scenarios() -> Vec<(&'static str, Vec<Act>)> {
    use Act::*;
    let from = |request: api::WatchCreateRequest, start_revision| api::WatchCreateRequest {
        start_revision,
        ..request
    };
    let with_previous =
        |request: api::WatchCreateRequest| api::WatchCreateRequest { prev_kv: true, ..request };
    let with_filter = |request: api::WatchCreateRequest, filter| api::WatchCreateRequest {
        filters: vec![filter],
        ..request
    };
    let with_id =
        |request: api::WatchCreateRequest, watch_id| api::WatchCreateRequest { watch_id, ..request };
    vec![
        // Revisions 2 to 9.
        (
            "one key",
            vec![
                Create(create("w", "")),
                Await(1),
                Put("w", "1"),
                Put("w", "2"),
                Put("x", "3"),
                Delete("w", ""),
                Await(4),
            ],
        ),
        (
            "a prefix with what was replaced",
            vec![
                Create(with_previous(create("w", "x"))),
                Await(1),
                Put("w1", "a"),
                Put("w1", "b"),
                Delete("w", "x"),
                Delete("w", "x"),
                Put("w2", "c"),
                Await(5),
            ],
        ),
        ("from the beginning", vec![Create(from(create("\0", "\0"), 2)), Await(9), Put("y", "1"), Await(10)]),
        ("from the middle with previous", vec![Create(with_previous(from(create("w", "x"), 4))), Await(6)]),
        (
            "in the future",
            vec![
                Create(from(create("f", ""), 14)),
                Await(1),
                Put("f", "1"),
                Put("f", "2"),
                Put("f", "3"),
                Put("f", "4"),
                Await(2),
            ],
        ),
        (
            "no puts",
            vec![
                Create(with_filter(create("g", ""), 0)),
                Await(1),
                Put("g", "1"),
                Delete("g", ""),
                Put("g", "2"),
                Delete("g", ""),
                Await(3),
            ],
        ),
        (
            "no deletes",
            vec![
                Create(with_filter(create("g", ""), 1)),
                Await(1),
                Put("g", "1"),
                Delete("g", ""),
                Put("g", "2"),
                Await(3),
            ],
        ),
        (
            "several on one stream",
            vec![
                Create(create("m1", "")),
                Create(create("m", "n")),
                Create(with_id(create("m2", ""), 17)),
                Create(with_id(create("m2", ""), 17)),
                Await(4),
                Put("m1", "1"),
                Put("m2", "2"),
                Await(8),
                Cancel(1),
                Cancel(99),
                Await(9),
                Put("m1", "3"),
                Await(10),
                Create(create("m1", "")),
                Await(11),
            ],
        ),
        (
            "empty and wrong ranges",
            vec![Create(create("b", "a")), Await(1), Create(create("b", "b")), Await(2)],
        ),
        ("a negative revision", vec![Create(from(create("a", ""), -1)), Await(1)]),
        (
            "everything",
            vec![Create(create("", "")), Create(create("", "\0")), Await(2), Put("e", "1"), Await(3)],
        ),
        ("many changes of history", vec![Create(with_previous(from(create("m", "n"), 2))), Await(4)]),
        ("compacted", vec![Compact(12), Create(from(create("\0", "\0"), 3)), Await(2)]),
        ("at the compacted revision", vec![Create(from(create("\0", "\0"), 12)), Await(15)]),
        ("just after it", vec![Create(with_previous(from(create("\0", "\0"), 13))), Await(14)]),
    ]
}

/// Scenarios in which only etcd 3.4 differs, and why.
const OLD: &[(&str, &str)] =
    &[("a negative revision", "3.4 takes it for the present; later ones refuse it as compacted")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_are_told_what_etcds_are() {
    if !peer::etcd_is_installed() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let (address, serving) = peer::serve(directory.path(), shutdown.clone()).await;
    let (theirs, ours) = tokio::join!(peer::theirs(directory.path()), peer::ours(address));
    let (old, mut wrong) = (theirs.is_old().await, Vec::new());
    for (name, acts) in scenarios() {
        let expected = told(&theirs, &acts).await;
        let found = told(&ours, &acts).await;
        if old && OLD.iter().any(|(other, _)| *other == name) {
            assert_ne!(expected, found, "{name} is listed as intended but equal");
        } else if expected != found {
            wrong.push(format!("{name}\n  etcd:   {}\n  isopod: {}", json!(expected), json!(found)));
        }
    }
    shutdown.cancel();
    serving.await.unwrap();
    assert!(wrong.is_empty(), "{} scenarios differ:\n{}", wrong.len(), wrong.join("\n"));
}
