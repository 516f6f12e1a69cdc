//! What may be asked of the store: etcd's v3 model as plain data. Ranges, puts, deletes, and transactions of them.

use std::sync::Arc;

use bytes::Bytes;
use storage::{KeyRange, KeyValue, LeaseId, RangeResponse, Revision};

/// A key range in etcd's encoding: an empty end means the one key, a single zero byte means to the end of the keys.
pub fn key_range(key: Bytes, range_end: Bytes) -> KeyRange {
    match &range_end[..] {
        [] => KeyRange::key(key),
        [0] => KeyRange { start: key, end: None },
        _ => KeyRange { start: key, end: Some(range_end) },
    }
}

/// What to read, and how the answer is to be cut and ordered. Bounds on revisions are inclusive; 0 means none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub range: KeyRange,
    /// 0 means no limit.
    pub limit: usize,
    /// `None` reads the present state.
    pub revision: Option<Revision>,
    /// `None` is key order. Keys that compare equal stay in key order.
    pub sort: Option<Sort>,
    pub min_mod_revision: Revision,
    pub max_mod_revision: Revision,
    pub min_create_revision: Revision,
    pub max_create_revision: Revision,
    pub keys_only: bool,
    pub count_only: bool,
}

impl Query {
    pub fn new(range: KeyRange) -> Query {
        Query {
            range,
            limit: 0,
            revision: None,
            sort: None,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
            keys_only: false,
            count_only: false,
        }
    }

    /// Whether revisions as given pass the bounds.
    pub(crate) fn admits(&self, create: Revision, modified: Revision) -> bool {
        let within = |n, min, max| (min == 0 || n >= min) && (max == 0 || n <= max);
        within(modified, self.min_mod_revision, self.max_mod_revision)
            && within(create, self.min_create_revision, self.max_create_revision)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    pub target: SortTarget,
    pub descending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortTarget {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// A condition that every key of `range` must meet. Where the range holds none, a comparison with a value fails and
/// any other sees zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub range: KeyRange,
    pub target: CompareTarget,
    pub op: CompareOp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    Create(Revision),
    Mod(Revision),
    Version(i64),
    Lease(LeaseId),
    Value(Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    Equal,
    Greater,
    Less,
    NotEqual,
}

impl CompareOp {
    pub(crate) fn holds(self, found: std::cmp::Ordering) -> bool {
        match self {
            CompareOp::Equal => found.is_eq(),
            CompareOp::Greater => found.is_gt(),
            CompareOp::Less => found.is_lt(),
            CompareOp::NotEqual => found.is_ne(),
        }
    }
}

/// Where a value lies in the data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The number of the file; 0 is none.
    pub file: u32,
    pub offset: u32,
}

/// A value on its way into the store: its bytes, and where the log has put them.
#[derive(Clone, Debug, Default)]
pub struct Value {
    /// Empty when a log is replayed, where only the place counts.
    pub bytes: Bytes,
    pub len: u32,
    pub crc: u32,
    pub place: Place,
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Value {
        Value { len: bytes.len() as u32, crc: crc32fast::hash(&bytes), bytes, place: Place::default() }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Value {}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub key: Bytes,
    pub value: Value,
    /// 0 means none.
    pub lease: LeaseId,
    /// Answer with the key-value that was there before.
    pub previous: bool,
    /// Keep the value there is; the key must exist.
    pub ignore_value: bool,
    /// Keep the lease there is; the key must exist.
    pub ignore_lease: bool,
}

impl Put {
    pub fn new(key: Bytes, value: Bytes) -> Put {
        Put { key, value: value.into(), lease: 0, previous: false, ignore_value: false, ignore_lease: false }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRange {
    pub range: KeyRange,
    /// Answer with the key-values that were deleted.
    pub previous: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Range(Query),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// Runs `success` when all compares hold and `failure` otherwise, at one revision. Compares of nested transactions
/// see the state before the outermost one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

impl Txn {
    /// A transaction of one unconditional operation.
    pub fn of(op: Op) -> Txn {
        Txn { success: vec![op], ..Txn::default() }
    }

    /// Whether no branch writes.
    pub fn is_read_only(&self) -> bool {
        self.ops().all(|op| match op {
            Op::Range(_) => true,
            Op::Put(_) | Op::DeleteRange(_) => false,
            Op::Txn(txn) => txn.is_read_only(),
        })
    }

    /// Bytes that the larger branch would add; 0 when no branch puts anything. Counted as etcd's quota does.
    pub(crate) fn cost(&self) -> u64 {
        let branch = |ops: &[Op]| ops.iter().map(Op::cost).sum::<u64>();
        branch(&self.success).max(branch(&self.failure))
    }

    fn ops(&self) -> impl Iterator<Item = &Op> {
        self.success.iter().chain(&self.failure)
    }
}

impl Op {
    fn cost(&self) -> u64 {
        match self {
            Op::Put(put) => put_cost(&put.key, &put.value),
            Op::Txn(txn) => txn.cost(),
            Op::Range(_) | Op::DeleteRange(_) => 0,
        }
    }
}

/// What a put is taken to cost before it is made.
pub(crate) fn put_cost(key: &[u8], value: &Value) -> u64 {
    256 + key.len() as u64 + u64::from(value.len)
}

/// How one operation ended, in the order of the operations.
#[derive(Clone, Debug)]
pub enum OpOutcome {
    Range(RangeResponse),
    Put { previous: Option<Arc<KeyValue>> },
    DeleteRange { deleted: usize, previous: Vec<Arc<KeyValue>> },
    Txn(TxnOutcome),
}

#[derive(Clone, Debug)]
pub struct TxnOutcome {
    pub succeeded: bool,
    /// The store's revision after the transaction.
    pub revision: Revision,
    pub outcomes: Vec<OpOutcome>,
}

/// Something is wrong with the store until an operator says it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alarm {
    pub member: u64,
    pub kind: AlarmKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmKind {
    /// The quota is used up: puts and lease grants are refused.
    NoSpace,
    /// The data is damaged.
    Corrupt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_etcds_encoding() {
        assert_eq!(key_range("a".into(), "".into()), KeyRange::key("a"));
        assert_eq!(key_range("a".into(), "\0".into()).end, None);
        assert_eq!(key_range("a".into(), "b".into()), KeyRange::prefix("a"));
    }

    #[test]
    fn a_transaction_costs_its_dearer_branch() {
        let put = |n: usize| Op::Put(Put::new("k".into(), vec![0; n].into()));
        let txn = Txn { success: vec![put(10)], failure: vec![Op::Txn(Txn::of(put(100)))], ..Txn::default() };
        assert_eq!(txn.cost(), 256 + 1 + 100);
        assert!(!txn.is_read_only());
        let read = Txn::of(Op::Range(Query::new(KeyRange::prefix("a"))));
        assert!(read.is_read_only());
        assert_eq!(read.cost(), 0);
    }
}
