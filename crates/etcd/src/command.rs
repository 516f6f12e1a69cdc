//! What the state machine is told to do, and how that is written in the log. Commands are proposals: what they do is
//! decided when they are applied, so that a replicated log can stand between proposing and applying.
//!
//! Values stay where the log puts them: encoding notes the place of each value in the file, decoding finds it again.

use bytes::Bytes;
use storage::{Change, Expect, KeyRange, LeaseId, Revision};

use crate::request::{
    Alarm, AlarmKind, Compare, CompareOp, CompareTarget, DeleteRange, Op, Place, Put, Query, Sort,
    SortTarget, Txn, Value, put_cost,
};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Write {
        key: Bytes,
        expect: Expect,
        change: ChangeTo,
    },
    Txn(Txn),
    LeaseGrant {
        lease: LeaseId,
        ttl_seconds: i64,
    },
    /// Deletes the lease and the keys attached to it.
    LeaseRevoke {
        lease: LeaseId,
    },
    /// What is left of leases' time, for after a restart; 0 is all of it. Leases that are gone are passed over.
    LeaseRemaining(Vec<(LeaseId, i64)>),
    Compact {
        revision: Revision,
    },
    Alarm {
        alarm: Alarm,
        raised: bool,
    },
    /// Changes the bucket of meta keys, all or nothing; `expect` is the version of the bucket that the writer saw.
    Meta {
        expect: Option<u64>,
        changes: Vec<(Bytes, Option<Bytes>)>,
    },
}

/// [`Change`], comparable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeTo {
    Put { value: Value, lease: LeaseId },
    Delete,
}

impl From<Change> for ChangeTo {
    fn from(change: Change) -> ChangeTo {
        match change {
            Change::Put { value, lease } => ChangeTo::Put { value: value.into(), lease },
            Change::Delete => ChangeTo::Delete,
        }
    }
}

const WRITE: u8 = 1;
const LEASE_GRANT: u8 = 2;
const LEASE_REVOKE: u8 = 3;
const COMPACT: u8 = 4;
const TXN: u8 = 5;
const LEASE_REMAINING: u8 = 6;
const ALARM: u8 = 7;
const META: u8 = 8;

const EXPECT_ANYTHING: u8 = 0;
const EXPECT_ABSENT: u8 = 1;
const EXPECT_MOD_REVISION: u8 = 2;

const PUT: u8 = 0;
const DELETE: u8 = 1;
const RANGE: u8 = 2;
const NESTED: u8 = 3;

/// Deeper transactions are taken for damage. The gRPC decoder allows no more.
const DEPTH_MAX: usize = 100;

/// Where commands are written: a buffer that will stand at `base` of file `file`.
pub struct Writer<'a> {
    pub out: &'a mut Vec<u8>,
    pub file: u32,
    pub base: u64,
}

impl Writer<'_> {
    fn u8(&mut self, n: u8) {
        self.out.push(n);
    }

    fn i64(&mut self, n: i64) {
        put_i64(self.out, n);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        put_bytes(self.out, bytes);
    }

    fn range(&mut self, range: &KeyRange) {
        self.bytes(&range.start);
        match &range.end {
            Some(end) => {
                self.u8(1);
                self.bytes(end);
            }
            None => self.u8(0),
        }
    }

    fn value(&mut self, value: &mut Value) {
        self.out.extend_from_slice(&value.crc.to_le_bytes());
        self.out.extend_from_slice(&value.len.to_le_bytes());
        value.place = Place { file: self.file, offset: (self.base + self.out.len() as u64) as u32 };
        self.out.extend_from_slice(&value.bytes);
    }

    fn txn(&mut self, txn: &mut Txn) {
        self.i64(txn.compares.len() as i64);
        for compare in &txn.compares {
            self.compare(compare);
        }
        for ops in [&mut txn.success, &mut txn.failure] {
            self.i64(ops.len() as i64);
            for op in ops {
                self.op(op);
            }
        }
    }

    fn compare(&mut self, compare: &Compare) {
        self.range(&compare.range);
        self.u8(match compare.op {
            CompareOp::Equal => 0,
            CompareOp::Greater => 1,
            CompareOp::Less => 2,
            CompareOp::NotEqual => 3,
        });
        let (target, number) = match &compare.target {
            CompareTarget::Create(n) => (0, *n),
            CompareTarget::Mod(n) => (1, *n),
            CompareTarget::Version(n) => (2, *n),
            CompareTarget::Lease(n) => (3, *n),
            CompareTarget::Value(value) => {
                self.u8(4);
                return self.bytes(value);
            }
        };
        self.u8(target);
        self.i64(number);
    }

    fn op(&mut self, op: &mut Op) {
        match op {
            Op::Range(query) => {
                self.u8(RANGE);
                self.query(query);
            }
            Op::Put(put) => {
                self.u8(PUT);
                self.bytes(&put.key);
                self.value(&mut put.value);
                self.i64(put.lease);
                self.u8(flags([put.previous, put.ignore_value, put.ignore_lease]));
            }
            Op::DeleteRange(delete) => {
                self.u8(DELETE);
                self.range(&delete.range);
                self.u8(flags([delete.previous]));
            }
            Op::Txn(txn) => {
                self.u8(NESTED);
                self.txn(txn);
            }
        }
    }

    fn query(&mut self, query: &Query) {
        self.range(&query.range);
        self.i64(query.limit as i64);
        self.i64(query.revision.unwrap_or(0));
        for bound in [
            query.min_mod_revision,
            query.max_mod_revision,
            query.min_create_revision,
            query.max_create_revision,
        ] {
            self.i64(bound);
        }
        self.u8(match query.sort {
            None => 0,
            Some(sort) => {
                let target = match sort.target {
                    SortTarget::Key => 1,
                    SortTarget::Version => 2,
                    SortTarget::Create => 3,
                    SortTarget::Mod => 4,
                    SortTarget::Value => 5,
                };
                target << 1 | u8::from(sort.descending)
            }
        });
        self.u8(flags([query.keys_only, query.count_only]));
    }
}

fn flags<const N: usize>(bits: [bool; N]) -> u8 {
    bits.iter().enumerate().map(|(i, bit)| u8::from(*bit) << i).sum()
}

/// Where commands are read: the rest of a frame that ends at `end` of file `file`.
pub struct Reader<'a> {
    pub input: &'a [u8],
    pub file: u32,
    pub end: u64,
    /// Whether values are wanted; otherwise only their places are noted.
    pub values: bool,
}

impl Reader<'_> {
    pub fn is_empty(&self) -> bool {
        self.input.is_empty()
    }

    fn u8(&mut self) -> Option<u8> {
        take_u8(&mut self.input)
    }

    fn u32(&mut self) -> Option<u32> {
        let (n, rest) = self.input.split_first_chunk::<4>()?;
        self.input = rest;
        Some(u32::from_le_bytes(*n))
    }

    fn i64(&mut self) -> Option<i64> {
        take_i64(&mut self.input)
    }

    fn bytes(&mut self) -> Option<Bytes> {
        take_bytes(&mut self.input)
    }

    fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// A number of items, each of which takes at least a byte.
    fn count(&mut self) -> Option<usize> {
        usize::try_from(self.i64()?).ok().filter(|n| *n <= self.input.len())
    }

    fn flags<const N: usize>(&mut self) -> Option<[bool; N]> {
        let bits = self.u8()?;
        (bits >> N == 0).then(|| std::array::from_fn(|i| bits >> i & 1 == 1))
    }

    fn range(&mut self) -> Option<KeyRange> {
        let start = self.bytes()?;
        let end = if self.bool()? { Some(self.bytes()?) } else { None };
        Some(KeyRange { start, end })
    }

    fn value(&mut self) -> Option<Value> {
        let (crc, len) = (self.u32()?, self.u32()?);
        let (bytes, rest) = self.input.split_at_checked(len as usize)?;
        let place = Place { file: self.file, offset: self.end.checked_sub(self.input.len() as u64)? as u32 };
        self.input = rest;
        let bytes = if self.values { Bytes::copy_from_slice(bytes) } else { Bytes::new() };
        Some(Value { bytes, len, crc, place })
    }

    fn txn(&mut self, depth: usize) -> Option<Txn> {
        if depth > DEPTH_MAX {
            return None;
        }
        let compares = (0..self.count()?).map(|_| self.compare()).collect::<Option<_>>()?;
        let mut ops = || (0..self.count()?).map(|_| self.op(depth)).collect::<Option<_>>();
        Some(Txn { compares, success: ops()?, failure: ops()? })
    }

    fn compare(&mut self) -> Option<Compare> {
        let range = self.range()?;
        let op = match self.u8()? {
            0 => CompareOp::Equal,
            1 => CompareOp::Greater,
            2 => CompareOp::Less,
            3 => CompareOp::NotEqual,
            _ => return None,
        };
        let target = match self.u8()? {
            0 => CompareTarget::Create(self.i64()?),
            1 => CompareTarget::Mod(self.i64()?),
            2 => CompareTarget::Version(self.i64()?),
            3 => CompareTarget::Lease(self.i64()?),
            4 => CompareTarget::Value(self.bytes()?),
            _ => return None,
        };
        Some(Compare { range, target, op })
    }

    fn op(&mut self, depth: usize) -> Option<Op> {
        Some(match self.u8()? {
            RANGE => Op::Range(self.query()?),
            PUT => {
                let (key, value, lease) = (self.bytes()?, self.value()?, self.i64()?);
                let [previous, ignore_value, ignore_lease] = self.flags()?;
                Op::Put(Put { key, value, lease, previous, ignore_value, ignore_lease })
            }
            DELETE => {
                let range = self.range()?;
                let [previous] = self.flags()?;
                Op::DeleteRange(DeleteRange { range, previous })
            }
            NESTED => Op::Txn(self.txn(depth + 1)?),
            _ => return None,
        })
    }

    fn query(&mut self) -> Option<Query> {
        let range = self.range()?;
        let limit = usize::try_from(self.i64()?).ok()?;
        let revision = Some(self.i64()?).filter(|r| *r != 0);
        let [min_mod_revision, max_mod_revision] = [self.i64()?, self.i64()?];
        let [min_create_revision, max_create_revision] = [self.i64()?, self.i64()?];
        let sort = match self.u8()? {
            0 => None,
            bits => Some(Sort {
                target: match bits >> 1 {
                    1 => SortTarget::Key,
                    2 => SortTarget::Version,
                    3 => SortTarget::Create,
                    4 => SortTarget::Mod,
                    5 => SortTarget::Value,
                    _ => return None,
                },
                descending: bits & 1 == 1,
            }),
        };
        let [keys_only, count_only] = self.flags()?;
        Some(Query {
            range,
            limit,
            revision,
            sort,
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
            keys_only,
            count_only,
        })
    }
}

impl Command {
    /// Appends the command and notes where its values will lie.
    pub fn encode(&mut self, writer: &mut Writer<'_>) {
        match self {
            Command::Write { key, expect, change } => {
                writer.u8(WRITE);
                writer.bytes(key);
                match expect {
                    Expect::Anything => writer.u8(EXPECT_ANYTHING),
                    Expect::Absent => writer.u8(EXPECT_ABSENT),
                    Expect::ModRevision(revision) => {
                        writer.u8(EXPECT_MOD_REVISION);
                        writer.i64(*revision);
                    }
                }
                match change {
                    ChangeTo::Put { value, lease } => {
                        writer.u8(PUT);
                        writer.i64(*lease);
                        writer.value(value);
                    }
                    ChangeTo::Delete => writer.u8(DELETE),
                }
            }
            Command::Txn(txn) => {
                writer.u8(TXN);
                writer.txn(txn);
            }
            Command::LeaseGrant { lease, ttl_seconds } => {
                writer.u8(LEASE_GRANT);
                writer.i64(*lease);
                writer.i64(*ttl_seconds);
            }
            Command::LeaseRevoke { lease } => {
                writer.u8(LEASE_REVOKE);
                writer.i64(*lease);
            }
            Command::LeaseRemaining(leases) => {
                writer.u8(LEASE_REMAINING);
                writer.i64(leases.len() as i64);
                for (lease, seconds) in leases {
                    writer.i64(*lease);
                    writer.i64(*seconds);
                }
            }
            Command::Compact { revision } => {
                writer.u8(COMPACT);
                writer.i64(*revision);
            }
            Command::Alarm { alarm, raised } => {
                writer.u8(ALARM);
                put_alarm(writer.out, *alarm);
                writer.u8(u8::from(*raised));
            }
            Command::Meta { expect, changes } => {
                writer.u8(META);
                writer.i64(expect.map_or(-1, |v| v as i64));
                writer.i64(changes.len() as i64);
                for (key, value) in changes {
                    writer.bytes(key);
                    writer.u8(u8::from(value.is_some()));
                    if let Some(value) = value {
                        writer.bytes(value);
                    }
                }
            }
        }
    }

    /// `None` when the bytes are no command of this version.
    pub fn decode(reader: &mut Reader<'_>) -> Option<Command> {
        Some(match reader.u8()? {
            WRITE => Command::Write {
                key: reader.bytes()?,
                expect: match reader.u8()? {
                    EXPECT_ANYTHING => Expect::Anything,
                    EXPECT_ABSENT => Expect::Absent,
                    EXPECT_MOD_REVISION => Expect::ModRevision(reader.i64()?),
                    _ => return None,
                },
                change: match reader.u8()? {
                    PUT => ChangeTo::Put { lease: reader.i64()?, value: reader.value()? },
                    DELETE => ChangeTo::Delete,
                    _ => return None,
                },
            },
            TXN => Command::Txn(reader.txn(0)?),
            LEASE_GRANT => Command::LeaseGrant { lease: reader.i64()?, ttl_seconds: reader.i64()? },
            LEASE_REVOKE => Command::LeaseRevoke { lease: reader.i64()? },
            LEASE_REMAINING => Command::LeaseRemaining(
                (0..reader.count()?).map(|_| Some((reader.i64()?, reader.i64()?))).collect::<Option<_>>()?,
            ),
            COMPACT => Command::Compact { revision: reader.i64()? },
            ALARM => Command::Alarm { alarm: take_alarm(&mut reader.input)?, raised: reader.bool()? },
            META => Command::Meta {
                expect: u64::try_from(reader.i64()?).ok(),
                changes: (0..reader.count()?)
                    .map(|_| {
                        let key = reader.bytes()?;
                        let value = if reader.bool()? { Some(reader.bytes()?) } else { None };
                        Some((key, value))
                    })
                    .collect::<Option<_>>()?,
            },
            _ => return None,
        })
    }

    /// What the command may add to the store, in bytes; 0 when it adds nothing and a full store may take it.
    pub(crate) fn cost(&self) -> u64 {
        match self {
            Command::Write { key, change: ChangeTo::Put { value, .. }, .. } => put_cost(key, value),
            Command::Txn(txn) => txn.cost(),
            Command::LeaseGrant { .. } => 64,
            _ => 0,
        }
    }

    /// Every put that the command may make: its key, and the place of the value.
    pub(crate) fn puts<'a>(&'a self, found: &mut Vec<(&'a Bytes, &'a Value)>) {
        fn walk<'a>(txn: &'a Txn, found: &mut Vec<(&'a Bytes, &'a Value)>) {
            for op in txn.success.iter().chain(&txn.failure) {
                match op {
                    Op::Put(put) => found.push((&put.key, &put.value)),
                    Op::Txn(txn) => walk(txn, found),
                    Op::Range(_) | Op::DeleteRange(_) => {}
                }
            }
        }
        match self {
            Command::Write { key, change: ChangeTo::Put { value, .. }, .. } => found.push((key, value)),
            Command::Txn(txn) => walk(txn, found),
            _ => {}
        }
    }
}

pub fn put_alarm(out: &mut Vec<u8>, alarm: Alarm) {
    put_i64(out, alarm.member as i64);
    out.push(match alarm.kind {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    });
}

pub fn take_alarm(input: &mut &[u8]) -> Option<Alarm> {
    let member = take_i64(input)? as u64;
    let kind = match take_u8(input)? {
        1 => AlarmKind::NoSpace,
        2 => AlarmKind::Corrupt,
        _ => return None,
    };
    Some(Alarm { member, kind })
}

pub fn put_i64(out: &mut Vec<u8>, n: i64) {
    out.extend_from_slice(&n.to_le_bytes());
}

pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

pub fn take_u8(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

pub fn take_i64(input: &mut &[u8]) -> Option<i64> {
    let (n, rest) = input.split_first_chunk::<8>()?;
    *input = rest;
    Some(i64::from_le_bytes(*n))
}

/// Copies: a slice of the file's buffer would keep the whole buffer in memory.
pub fn take_bytes(input: &mut &[u8]) -> Option<Bytes> {
    take_slice(input).map(Bytes::copy_from_slice)
}

pub fn take_slice<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = input.split_first_chunk::<4>()?;
    let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *input = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reader(input: &[u8], base: u64) -> Reader<'_> {
        Reader { input, file: 5, end: base + input.len() as u64, values: true }
    }

    #[test]
    fn round_trips_and_finds_values_again() {
        let query = Query {
            limit: 3,
            revision: Some(7),
            sort: Some(Sort { target: SortTarget::Value, descending: true }),
            min_mod_revision: 1,
            max_create_revision: 9,
            keys_only: true,
            ..Query::new(KeyRange::prefix("/"))
        };
        let put = Put { lease: 4, previous: true, ..Put::new("/p".into(), "value".into()) };
        let inner = Txn::of(Op::DeleteRange(DeleteRange {
            range: KeyRange { start: "".into(), end: None },
            previous: true,
        }));
        let compare = |target| Compare { range: KeyRange::key("/a"), target, op: CompareOp::NotEqual };
        for mut command in [
            Command::Write {
                key: "/a".into(),
                expect: Expect::ModRevision(9),
                change: ChangeTo::Put { value: Bytes::from("v").into(), lease: 3 },
            },
            Command::Write { key: "/a".into(), expect: Expect::Absent, change: ChangeTo::Delete },
            Command::Write { key: "".into(), expect: Expect::Anything, change: ChangeTo::Delete },
            Command::Txn(Txn {
                compares: vec![compare(CompareTarget::Value("x".into())), compare(CompareTarget::Lease(2))],
                success: vec![Op::Range(query), Op::Put(put)],
                failure: vec![Op::Txn(inner)],
            }),
            Command::LeaseGrant { lease: i64::MAX, ttl_seconds: 60 },
            Command::LeaseRevoke { lease: 1 },
            Command::LeaseRemaining(vec![(1, 2), (3, 4)]),
            Command::Compact { revision: 77 },
            Command::Alarm { alarm: Alarm { member: u64::MAX, kind: AlarmKind::Corrupt }, raised: true },
            Command::Meta {
                expect: Some(1),
                changes: vec![("k".into(), None), ("l".into(), Some("v".into()))],
            },
        ] {
            let mut bytes = Vec::new();
            command.encode(&mut Writer { out: &mut bytes, file: 5, base: 1000 });
            let mut input = reader(&bytes, 1000);
            let decoded = Command::decode(&mut input).unwrap();
            assert!(input.is_empty());
            assert_eq!(decoded, command);
            let (mut written, mut read) = (Vec::new(), Vec::new());
            command.puts(&mut written);
            decoded.puts(&mut read);
            for ((_, written), (_, read)) in written.iter().zip(&read) {
                assert_eq!(written.place, read.place);
                let at = read.place.offset as usize - 1000;
                assert_eq!(bytes[at..at + read.len as usize], read.bytes);
            }
        }
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Command::decode(&mut reader(&bytes, 0));
            for kind in [TXN, META, LEASE_REMAINING] {
                let bytes = [&[kind][..], &bytes].concat();
                let _ = Command::decode(&mut reader(&bytes, 0));
            }
        }
    }
}
