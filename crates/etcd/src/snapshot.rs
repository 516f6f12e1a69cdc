//! The whole state at one revision, for backups and hashes: read at leisure in the order of revisions while writers go
//! on, and written back into an empty directory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use bytes::Bytes;
use storage::{Error, KeyValue, Revision};

use crate::checkpoint::{self, Position};
use crate::cleaner::DataWriter;
use crate::disk::Disk;
use crate::engine::{HashKv, Shared};
use crate::files::without_value;
use crate::record::{Key, Record, RecordRef};
use crate::recovery;
use crate::request::{Place, Value};
use crate::state::Header;

const CHUNK_KEYS: usize = 2048;
/// Values read at once.
const READ_BYTES: usize = 1 << 20;

/// One version of a key. A tombstone has version 0 and no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Position among the changes of its revision.
    pub sub: u32,
    pub kv: Arc<KeyValue>,
}

/// The state as it was when this was made.
pub struct Snapshot {
    shared: Arc<Shared>,
    pub header: Header,
    records: Option<std::vec::IntoIter<RecordRef>>,
}

impl Snapshot {
    pub(crate) fn new(shared: Arc<Shared>) -> Snapshot {
        let header = {
            let state = shared.state.read();
            let header = state.header();
            state.pin(header.compacted);
            header
        };
        Snapshot { shared, header, records: None }
    }

    /// Versions up to `revision` in order, without those that compaction at `compacted` has passed by unless they are
    /// what can be read at `kept`.
    fn records(&self, revision: Revision, compacted: Revision, kept: Revision) -> Vec<RecordRef> {
        let mut records: Vec<RecordRef> = Vec::new();
        let mut from: Option<Key> = Some(Key::from(&[][..]));
        while let Some(key) = from {
            let (chunk, next) = self.shared.state.read().chunk(&key, revision, CHUNK_KEYS);
            for (i, record) in chunk.iter().enumerate() {
                let superseded = chunk
                    .get(i + 1)
                    .is_some_and(|later| later.key == record.key && later.mod_revision <= kept);
                if record.mod_revision > compacted || !(superseded || record.is_tombstone()) {
                    records.push(record.clone());
                }
            }
            from = next;
        }
        records.sort_unstable_by_key(|record| record.position());
        records
    }

    /// The next versions in the order of revisions, about `bytes_max` of them; `None` when that was all. Reads the
    /// disk, so call it where blocking does no harm.
    pub fn next(&mut self, bytes_max: usize) -> Result<Option<Vec<Version>>, Error> {
        if self.records.is_none() {
            let Header { revision, compacted, .. } = self.header;
            self.records = Some(self.records(revision, compacted, compacted).into_iter());
        }
        let Some(records) = &mut self.records else { return Ok(None) };
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max.max(1)
            && let Some(record) = records.next()
        {
            bytes += record.key.len() + record.len as usize + 64;
            taken.push(record);
        }
        if taken.is_empty() {
            return Ok(None);
        }
        let puts: Vec<RecordRef> = taken.iter().filter(|r| !r.is_tombstone()).cloned().collect();
        let mut kvs = self.shared.files.key_values_once(&puts)?.into_iter();
        let version = |record: RecordRef| {
            let kv = if record.is_tombstone() { None } else { kvs.next() };
            Version { sub: record.sub, kv: kv.unwrap_or_else(|| Arc::new(without_value(&record))) }
        };
        Ok(Some(taken.into_iter().map(version).collect()))
    }

    /// etcd's hash of its key bucket: CRC-32C over the bucket's name and every revision with its protobuf message. As
    /// there, what is older than the compacted revision counts only where it can be read at `upto`.
    pub(crate) fn hash_kv(&mut self, upto: Revision) -> Result<HashKv, Error> {
        self.records = Some(self.records(upto, self.header.compacted, upto).into_iter());
        let mut hash = crc32c::crc32c(b"key");
        let mut bytes = Vec::new();
        while let Some(versions) = self.next(READ_BYTES)? {
            for Version { sub, kv } in &versions {
                bytes.clear();
                revision_key(&mut bytes, kv.mod_revision, *sub, kv.version == 0);
                key_value_message(&mut bytes, kv);
                hash = crc32c::crc32c_append(hash, &bytes);
            }
        }
        Ok(HashKv { hash, revision: upto, compacted: self.header.compacted })
    }

    pub(crate) fn hash(&mut self) -> Result<u32, Error> {
        let HashKv { hash, revision, .. } = self.hash_kv(self.header.revision)?;
        let mut rest = Vec::new();
        for (id, ttl, _) in &self.header.leases {
            rest.extend_from_slice(&id.to_le_bytes());
            rest.extend_from_slice(&ttl.to_le_bytes());
        }
        for (key, value) in &self.header.meta {
            rest.extend_from_slice(key);
            rest.extend_from_slice(value);
        }
        rest.extend_from_slice(&revision.to_le_bytes());
        Ok(crc32c::crc32c_append(hash, &rest))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.shared.state.read().unpin(self.header.compacted);
    }
}

/// A key of etcd's key bucket: main and sub revision, big-endian, and a mark on tombstones.
pub fn revision_key(out: &mut Vec<u8>, main: Revision, sub: u32, tombstone: bool) {
    out.extend_from_slice(&main.to_be_bytes());
    out.push(b'_');
    out.extend_from_slice(&i64::from(sub).to_be_bytes());
    if tombstone {
        out.push(b't');
    }
}

/// A value of etcd's key bucket: the protobuf message `mvccpb.KeyValue`. Of a tombstone it has the key only.
pub fn key_value_message(out: &mut Vec<u8>, kv: &KeyValue) {
    let varint = |out: &mut Vec<u8>, mut n: u64| {
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    };
    let bytes = |out: &mut Vec<u8>, tag: u8, bytes: &[u8]| {
        if !bytes.is_empty() {
            out.push(tag << 3 | 2);
            varint(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
    };
    bytes(out, 1, &kv.key);
    if kv.version == 0 {
        return;
    }
    for (tag, n) in [(2, kv.create_revision), (3, kv.mod_revision), (4, kv.version)] {
        out.push(tag << 3);
        varint(out, n as u64);
    }
    bytes(out, 5, &kv.value);
    if kv.lease != 0 {
        out.push(6 << 3);
        varint(out, kv.lease as u64);
    }
}

/// Writes a state into an empty directory, which [`Engine::open`](crate::Engine::open) then finds. `versions` come in
/// the order of revisions.
pub fn restore(
    disk: &dyn Disk,
    header: &Header,
    versions: impl Iterator<Item = Result<Version, Error>>,
) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::Unavailable(format!("restore: {e}"));
    if !disk.list().map_err(failed)?.iter().all(|name| name == "LOCK") {
        return Err(Error::Unavailable("restore: the data directory is not empty".into()));
    }
    recovery::check_version(disk)?;
    let next_file = AtomicU32::new(1);
    let mut writer = DataWriter::new(disk, &next_file, 64 << 20);
    let mut keys: HashMap<Bytes, Key> = HashMap::new();
    let mut records = Vec::new();
    for version in versions {
        let Version { sub, kv } = version?;
        let key = keys.entry(kv.key.clone()).or_insert_with(|| Key::from(&kv.key[..])).clone();
        if kv.version == 0 {
            records.push(RecordRef::new(Record::tombstone(key, kv.mod_revision, sub)));
            continue;
        }
        let value = Value::from(kv.value.clone());
        let (len, crc) = (value.len, value.crc);
        let place =
            if len == 0 { Place::default() } else { writer.add(kv.key.clone(), value).map_err(failed)? };
        let revisions = (kv.create_revision, kv.mod_revision, sub);
        records.push(RecordRef::new(Record::put(key, revisions, kv.version, kv.lease, (len, crc, place))));
    }
    writer.finish().map_err(failed)?;
    records.sort_unstable_by(|a, b| a.key.cmp(&b.key).then(a.position().cmp(&b.position())));
    let position = Position { index: 0, revision: header.revision, file: 0, offset: 0 };
    let chunks = records.chunks(4096).map(<[RecordRef]>::to_vec);
    checkpoint::write_chunks(disk, position, header, chunks).map_err(failed)?;
    disk.sync().map_err(failed)
}
