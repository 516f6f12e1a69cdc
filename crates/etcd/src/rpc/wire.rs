//! Answers that are written straight from the store's shared key-values into the frame that is sent: no message is built.

use bytes::{BufMut, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};
use storage::{Event, KeyValue, RangeResponse, Revision};

use super::grpc;
use crate::{OpOutcome, TxnOutcome};

/// What is the same in every response header.
#[derive(Clone, Debug)]
pub struct Header {
    pub cluster_id: u64,
    pub member_id: u64,
    pub raft_term: u64,
    /// Fields 1 and 2, encoded.
    ids: Vec<u8>,
    /// Field 4, encoded.
    term: Vec<u8>,
}

const VARINT: u64 = 0;
const DELIMITED: u64 = 2;

fn put_number(field: u64, n: u64, out: &mut impl BufMut) {
    if n != 0 {
        encode_varint(field << 3 | VARINT, out);
        encode_varint(n, out);
    }
}

fn number_len(n: u64) -> usize {
    if n == 0 { 0 } else { 1 + encoded_len_varint(n) }
}

fn put_bytes(field: u64, bytes: &[u8], out: &mut impl BufMut) {
    if !bytes.is_empty() {
        encode_varint(field << 3 | DELIMITED, out);
        encode_varint(bytes.len() as u64, out);
        out.put_slice(bytes);
    }
}

fn bytes_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { 1 + encoded_len_varint(bytes.len() as u64) + bytes.len() }
}

/// Begins a message in field `field` (below 16) whose length is known.
fn open(field: u64, len: usize, out: &mut impl BufMut) {
    encode_varint(field << 3 | DELIMITED, out);
    encode_varint(len as u64, out);
}

impl Header {
    pub fn new(cluster_id: u64, member_id: u64, raft_term: u64) -> Header {
        let (mut ids, mut term) = (Vec::new(), Vec::new());
        put_number(1, cluster_id, &mut ids);
        put_number(2, member_id, &mut ids);
        put_number(4, raft_term, &mut term);
        Header { cluster_id, member_id, raft_term, ids, term }
    }

    /// The header as a message, for answers that are built as one.
    pub fn message(&self, revision: Revision) -> Option<crate::api::ResponseHeader> {
        let Header { cluster_id, member_id, raft_term, .. } = *self;
        Some(crate::api::ResponseHeader { cluster_id, member_id, revision, raft_term })
    }

    /// Writes the header as field 1.
    pub fn put(&self, revision: Revision, out: &mut BytesMut) {
        open(1, self.ids.len() + number_len(revision as u64) + self.term.len(), out);
        out.put_slice(&self.ids);
        put_number(3, revision as u64, out);
        out.put_slice(&self.term);
    }
}

pub fn key_value_len(kv: &KeyValue) -> usize {
    bytes_len(&kv.key)
        + number_len(kv.create_revision as u64)
        + number_len(kv.mod_revision as u64)
        + number_len(kv.version as u64)
        + bytes_len(&kv.value)
        + number_len(kv.lease as u64)
}

fn put_key_value_fields(kv: &KeyValue, out: &mut BytesMut) {
    put_bytes(1, &kv.key, out);
    put_number(2, kv.create_revision as u64, out);
    put_number(3, kv.mod_revision as u64, out);
    put_number(4, kv.version as u64, out);
    put_bytes(5, &kv.value, out);
    put_number(6, kv.lease as u64, out);
}

/// Writes a key-value as field `field`.
pub fn put_key_value(field: u64, kv: &KeyValue, out: &mut BytesMut) {
    open(field, key_value_len(kv), out);
    put_key_value_fields(kv, out);
}

/// Room for a response of `body` bytes beside its header.
pub fn begin(body: usize) -> BytesMut {
    grpc::begin(body + 48)
}

pub fn range_body_len(response: &RangeResponse) -> usize {
    response.kvs.iter().map(|kv| key_value_len(kv) + 6).sum::<usize>() + 16
}

/// Fields 2 to 4 of a RangeResponse.
pub fn put_range_body(response: &RangeResponse, out: &mut BytesMut) {
    for kv in &response.kvs {
        put_key_value(2, kv, out);
    }
    put_number(3, u64::from(response.more), out);
    put_number(4, response.count as u64, out);
}

/// Fields 2 and 3 of a TxnResponse. Headers within carry a revision alone: what the store was at after that operation.
pub fn put_txn_body(outcome: &TxnOutcome, out: &mut BytesMut) {
    let mut at = outcome.revision - i64::from(writes(outcome));
    put_txn_fields(outcome, outcome.revision, &mut at, out);
}

fn writes(outcome: &TxnOutcome) -> bool {
    outcome.outcomes.iter().any(|one| match one {
        OpOutcome::Range(_) => false,
        OpOutcome::Put { .. } => true,
        OpOutcome::DeleteRange { deleted, .. } => *deleted > 0,
        OpOutcome::Txn(inner) => writes(inner),
    })
}

fn put_txn_fields(outcome: &TxnOutcome, end: Revision, at: &mut Revision, out: &mut BytesMut) {
    put_number(2, u64::from(outcome.succeeded), out);
    let mut scratch = BytesMut::new();
    let mut operation = BytesMut::new();
    for one in &outcome.outcomes {
        scratch.clear();
        let field = match one {
            OpOutcome::Range(response) => {
                put_revision_header(*at, &mut scratch);
                put_range_body(response, &mut scratch);
                1
            }
            OpOutcome::Put { previous } => {
                *at = end;
                put_revision_header(*at, &mut scratch);
                if let Some(kv) = previous {
                    put_key_value(2, kv, &mut scratch);
                }
                2
            }
            OpOutcome::DeleteRange { deleted, previous } => {
                if *deleted > 0 {
                    *at = end;
                }
                put_revision_header(*at, &mut scratch);
                put_delete_body(*deleted, previous, &mut scratch);
                3
            }
            OpOutcome::Txn(inner) => {
                open(1, 0, &mut scratch);
                put_txn_fields(inner, end, at, &mut scratch);
                4
            }
        };
        operation.clear();
        open(field, scratch.len(), &mut operation);
        open(3, operation.len() + scratch.len(), out);
        out.extend_from_slice(&operation);
        out.extend_from_slice(&scratch);
    }
}

fn put_revision_header(revision: Revision, out: &mut BytesMut) {
    open(1, number_len(revision as u64), out);
    put_number(3, revision as u64, out);
}

/// Fields 2 and 3 of a DeleteRangeResponse.
pub fn put_delete_body(deleted: usize, previous: &[std::sync::Arc<KeyValue>], out: &mut BytesMut) {
    put_number(2, deleted as u64, out);
    for kv in previous {
        put_key_value(3, kv, out);
    }
}

/// An event as field 11 of a WatchResponse.
pub fn put_event(event: &Event, with_previous: bool, out: &mut BytesMut) {
    let tombstone;
    let (kind, kv, previous) = match event {
        Event::Put { kv, previous } => (0, &**kv, previous),
        Event::Delete { key, revision, previous } => {
            tombstone = KeyValue {
                key: key.clone(),
                value: bytes::Bytes::new(),
                create_revision: 0,
                mod_revision: *revision,
                version: 0,
                lease: 0,
            };
            (1, &tombstone, previous)
        }
    };
    let delimited = |len: usize| 1 + encoded_len_varint(len as u64) + len;
    let previous = previous.as_ref().filter(|_| with_previous);
    let kv_len = key_value_len(kv);
    let len = number_len(kind) + delimited(kv_len) + previous.map_or(0, |p| delimited(key_value_len(p)));
    open(11, len, out);
    put_number(1, kind, out);
    open(2, kv_len, out);
    put_key_value_fields(kv, out);
    if let Some(previous) = previous {
        put_key_value(3, previous, out);
    }
}

/// What a WatchResponse says beside its events.
#[derive(Clone, Copy, Debug, Default)]
pub struct WatchFields<'a> {
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub compact_revision: Revision,
    pub cancel_reason: &'a str,
    pub fragment: bool,
}

/// Appends a whole frame with a WatchResponse; `events` are encoded by [`put_event`].
pub fn put_watch_response(
    header: &Header,
    revision: Revision,
    fields: WatchFields<'_>,
    events: &[&[u8]],
    out: &mut BytesMut,
) {
    let at = out.len();
    out.reserve(64 + fields.cancel_reason.len() + events.iter().map(|e| e.len()).sum::<usize>());
    out.put_bytes(0, grpc::PREFIX);
    header.put(revision, out);
    put_number(2, fields.watch_id as u64, out);
    put_number(3, u64::from(fields.created), out);
    put_number(4, u64::from(fields.canceled), out);
    put_number(5, fields.compact_revision as u64, out);
    put_bytes(6, fields.cancel_reason.as_bytes(), out);
    put_number(7, u64::from(fields.fragment), out);
    for event in events {
        out.extend_from_slice(event);
    }
    grpc::finish(out, at);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::api;
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;

    fn kv(key: &str, value: Vec<u8>, create: i64, modified: i64, version: i64, lease: i64) -> Arc<KeyValue> {
        Arc::new(KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: value.into(),
            create_revision: create,
            mod_revision: modified,
            version,
            lease,
        })
    }

    fn message(kv: &KeyValue) -> api::KeyValue {
        api::KeyValue {
            key: kv.key.clone(),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: kv.value.clone(),
            lease: kv.lease,
        }
    }

    fn key_values() -> impl Strategy<Value = Arc<KeyValue>> {
        (
            "[a-z]{0,200}",
            proptest::collection::vec(any::<u8>(), 0..300),
            any::<i64>(),
            any::<i64>(),
            any::<i64>(),
            any::<i64>(),
        )
            .prop_map(|(k, v, a, b, c, d)| kv(&k, v, a, b, c, d))
    }

    proptest! {
        #[test]
        fn ranges_decode_as_the_message(kvs in proptest::collection::vec(key_values(), 0..8), more: bool, count in 0usize..9999, revision in 0i64..i64::MAX) {
            let response = RangeResponse { kvs, more, count, revision };
            let header = Header::new(u64::MAX, 7, 2);
            let mut out = begin(range_body_len(&response));
            let capacity = out.capacity();
            header.put(revision, &mut out);
            put_range_body(&response, &mut out);
            grpc::finish(&mut out, 0);
            prop_assert_eq!(out.capacity(), capacity, "the estimate is enough");
            let decoded = api::RangeResponse::decode(&out[grpc::PREFIX..]).unwrap();
            let expected = api::RangeResponse {
                header: header.message(revision),
                kvs: response.kvs.iter().map(|kv| message(kv)).collect(),
                more,
                count: count as i64,
            };
            prop_assert_eq!(decoded, expected);
        }

        #[test]
        fn events_decode_as_the_message(a in key_values(), b in key_values(), deleted: bool, previous: bool, with: bool) {
            let before = previous.then(|| b.clone());
            let event = if deleted {
                Event::Delete { key: a.key.clone(), revision: a.mod_revision, previous: before.clone() }
            } else {
                Event::Put { kv: a.clone(), previous: before.clone() }
            };
            let mut encoded = BytesMut::new();
            put_event(&event, with, &mut encoded);
            let mut out = BytesMut::new();
            let fields = WatchFields { watch_id: -1, cancel_reason: "x", ..Default::default() };
            put_watch_response(&Header::new(1, 2, 3), 9, fields, &[&encoded[..]], &mut out);
            let decoded = api::WatchResponse::decode(&out[grpc::PREFIX..]).unwrap();
            let kv = if deleted {
                api::KeyValue { key: a.key.clone(), mod_revision: a.mod_revision, ..Default::default() }
            } else {
                message(&a)
            };
            let event = api::Event {
                r#type: i32::from(deleted),
                kv: Some(kv),
                prev_kv: before.filter(|_| with).map(|kv| message(&kv)),
            };
            prop_assert_eq!(&decoded.events, &vec![event]);
            prop_assert_eq!((decoded.watch_id, decoded.cancel_reason.as_str()), (-1, "x"));
        }
    }

    #[test]
    fn transactions_decode_as_the_message() {
        let one = kv("a", b"v".to_vec(), 2, 3, 2, 0);
        let range = RangeResponse { kvs: vec![one.clone()], more: false, count: 1, revision: 8 };
        let outcome = TxnOutcome {
            succeeded: true,
            revision: 9,
            outcomes: vec![
                OpOutcome::Range(range),
                OpOutcome::Put { previous: Some(one.clone()) },
                OpOutcome::Txn(TxnOutcome {
                    succeeded: false,
                    revision: 9,
                    outcomes: vec![OpOutcome::DeleteRange { deleted: 1, previous: vec![one.clone()] }],
                }),
            ],
        };
        let mut out = BytesMut::new();
        put_txn_body(&outcome, &mut out);
        let decoded = api::TxnResponse::decode(&out[..]).unwrap();
        let at = |revision| Some(api::ResponseHeader { revision, ..Default::default() });
        let op = |response| api::ResponseOp { response: Some(response) };
        use api::response_op::Response;
        let expected = vec![
            op(Response::Range(api::RangeResponse {
                header: at(8),
                kvs: vec![message(&one)],
                count: 1,
                ..Default::default()
            })),
            op(Response::Put(api::PutResponse { header: at(9), prev_kv: Some(message(&one)) })),
            op(Response::Txn(api::TxnResponse {
                header: at(0),
                succeeded: false,
                responses: vec![op(Response::DeleteRange(api::DeleteRangeResponse {
                    header: at(9),
                    deleted: 1,
                    prev_kvs: vec![message(&one)],
                }))],
            })),
        ];
        assert_eq!(decoded.responses, expected);
        assert!(decoded.succeeded);
    }
}
