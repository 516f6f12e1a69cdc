//! Snapshots as etcd's tools know them: a bbolt database with etcd's buckets, followed by its SHA-256 once a client has saved
//! it. Written from the engine, read back into an empty data directory.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::{Bytes, BytesMut};
use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};
use storage::{KeyValue, Revision};

use crate::api::{self, AlarmType};
use crate::bolt;
use crate::rpc::CLUSTER_VERSION;
use crate::rpc::cluster::Identity;
use crate::snapshot::{key_value_message, revision_key};
use crate::{Alarm, AlarmKind, Header, Snapshot, Version};

/// Buckets that hold the meta bucket's records, by the part of their key before the slash.
const META_BUCKETS: [&str; 5] = ["auth", "authRoles", "authUsers", "members", "members_removed"];
const CHECKSUM_BYTES: u64 = 32;
/// Databases are made of pages, which are multiples of this; what is over is the checksum.
const PAGE_BYTES_MIN: u64 = 512;
const CHUNK_BYTES: usize = 1 << 20;
const TOMBSTONE: u8 = b't';

/// A finished database, read from front to back.
pub struct BackupFile {
    file: fs::File,
    len: u64,
}

impl BackupFile {
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next `max` bytes, or what is left.
    pub fn next(&mut self, max: usize) -> io::Result<Option<Bytes>> {
        let mut piece = BytesMut::zeroed(max);
        let mut filled = 0;
        while filled < max {
            match self.file.read(&mut piece[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        piece.truncate(filled);
        Ok((filled > 0).then(|| piece.freeze()))
    }
}

/// Writes the state as a database into an unnamed file in `scratch`. Blocks.
pub fn write(
    mut snapshot: Snapshot,
    identity: &Identity,
    index: u64,
    scratch: &Path,
) -> io::Result<BackupFile> {
    let path = scratch.join(format!("snapshot-{:016x}.tmp", rand::random::<u64>()));
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    let mut writer = bolt::Writer::new(file)?;
    let header = snapshot.header.clone();

    let mut keys = writer.bucket();
    let (mut key, mut value) = (Vec::new(), Vec::new());
    while let Some(versions) = snapshot.next(CHUNK_BYTES).map_err(io::Error::other)? {
        for Version { sub, kv } in versions {
            key.clear();
            value.clear();
            revision_key(&mut key, kv.mod_revision, sub, kv.version == 0);
            key_value_message(&mut value, &kv);
            keys.put(&key, &value)?;
        }
    }
    keys.finish(b"key")?;

    let mut meta = writer.bucket();
    let voters = json!({
        "voters": [identity.member_id], "learners": [], "voters_outgoing": [], "learners_next": [], "auto_leave": false,
    });
    meta.put(b"confState", voters.to_string().as_bytes())?;
    meta.put(b"consistent_index", &index.to_be_bytes())?;
    if header.compacted > 0 {
        key.clear();
        revision_key(&mut key, header.compacted, 0, false);
        meta.put(b"finishedCompactRev", &key)?;
        meta.put(b"scheduledCompactRev", &key)?;
    }
    meta.put(b"storageVersion", CLUSTER_VERSION.as_bytes())?;
    meta.put(b"term", &1u64.to_be_bytes())?;
    meta.finish(b"meta")?;

    let mut leases = writer.bucket();
    let mut all = header.leases.clone();
    all.sort_unstable_by_key(|(id, ..)| *id as u64);
    for (id, ttl, _) in all {
        let lease = api::StoredLease { id, ttl, remaining_ttl: 0 };
        leases.put(&id.to_be_bytes(), &lease.encode_to_vec())?;
    }
    leases.finish(b"lease")?;

    let mut alarms = writer.bucket();
    let mut records: Vec<Vec<u8>> = header.alarms.iter().map(alarm_record).collect();
    records.sort();
    for record in records {
        alarms.put(&record, &[])?;
    }
    alarms.finish(b"alarm")?;

    let mut cluster = writer.bucket();
    cluster.put(b"clusterVersion", CLUSTER_VERSION.as_bytes())?;
    cluster.finish(b"cluster")?;

    let mut meta_records = header.meta.clone();
    meta_records.sort();
    for name in META_BUCKETS {
        let mut bucket = writer.bucket();
        for (key, value) in &meta_records {
            if let Some(key) = key.strip_prefix(name.as_bytes()).and_then(|k| k.strip_prefix(b"/")) {
                bucket.put(key, value)?;
            }
        }
        bucket.finish(name.as_bytes())?;
    }

    let mut file = writer.finish()?;
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    Ok(BackupFile { file, len })
}

fn alarm_record(alarm: &Alarm) -> Vec<u8> {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => AlarmType::NoSpace,
        AlarmKind::Corrupt => AlarmType::Corrupt,
    };
    api::AlarmMember { member_id: alarm.member, alarm: kind as i32 }.encode_to_vec()
}

/// What `snapshot status` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub hash: u32,
    pub revision: Revision,
    pub total_key: u64,
    pub total_size: u64,
    pub version: String,
}

/// Opens a snapshot that was saved; its checksum must be there and right unless `check` is off.
fn open(path: &Path, check: bool) -> anyhow::Result<bolt::File> {
    let file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let len = file.metadata()?.len();
    let has_checksum = len % PAGE_BYTES_MIN == CHECKSUM_BYTES;
    if check {
        ensure!(has_checksum, "snapshot missing hash but --skip-hash-check=false");
        let (mut hash, mut at) = (Sha256::new(), 0);
        let mut buffer = vec![0; CHUNK_BYTES];
        while at < len - CHECKSUM_BYTES {
            let n = (len - CHECKSUM_BYTES - at).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..n], at)?;
            hash.update(&buffer[..n]);
            at += n as u64;
        }
        let mut said = [0; CHECKSUM_BYTES as usize];
        file.read_exact_at(&mut said, at)?;
        let found = hash.finalize();
        ensure!(found[..] == said, "expected sha256 {}, got {}", hex(&said), hex(&found));
    }
    bolt::File::open(file).with_context(|| format!("read {}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads a snapshot through.
pub fn status(path: &Path) -> anyhow::Result<Status> {
    let len = fs::metadata(path).with_context(|| format!("open {}", path.display()))?.len();
    let has_checksum = len % PAGE_BYTES_MIN == CHECKSUM_BYTES;
    let file = open(path, has_checksum)?;
    let mut status =
        Status { hash: 0, revision: 0, total_key: 0, total_size: file.len(), version: String::new() };
    // The names and contents of all buckets, as etcd's own tool sums them.
    let mut hash = 0;
    for bucket in file.buckets()? {
        hash = crc32c::crc32c_append(hash, &bucket);
        file.each(&bucket, |key, value| {
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
            if bucket == b"key" {
                status.revision = revision(key).map_or(status.revision, |(revision, ..)| revision);
            }
            if bucket == b"meta" && key == b"storageVersion" {
                status.version = String::from_utf8_lossy(value).into_owned();
            }
            status.total_key += 1;
            Ok(())
        })?;
    }
    status.hash = hash;
    Ok(status)
}

/// Revision, position and kind of a key in bucket `key`.
fn revision(key: &[u8]) -> Option<(Revision, u32, bool)> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let (sub, rest) = rest.strip_prefix(b"_")?.split_first_chunk::<8>()?;
    let tombstone = match rest {
        [] => false,
        [TOMBSTONE] => true,
        _ => return None,
    };
    Some((i64::from_be_bytes(*main), u32::try_from(i64::from_be_bytes(*sub)).ok()?, tombstone))
}

/// What a restored member is and how its revisions go on.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    pub identity: Identity,
    pub skip_hash_check: bool,
    /// Added to the revision, so that clients see that history was cut.
    pub bump_revision: u64,
    /// Forgets everything up to the bumped revision.
    pub mark_compacted: bool,
}

/// Makes a data directory of a snapshot. `disk` must be empty.
pub fn restore(
    path: &Path,
    disk: &dyn crate::disk::Disk,
    options: &RestoreOptions,
) -> anyhow::Result<Header> {
    let file = open(path, !options.skip_hash_check)?;
    let mut header = Header { revision: 1, ..Header::default() };
    file.each(b"meta", |key, value| {
        // A compaction that was planned goes on when the member starts.
        if (key == b"finishedCompactRev" || key == b"scheduledCompactRev")
            && let Some((compacted, ..)) = revision(value)
        {
            header.compacted = header.compacted.max(compacted);
        }
        Ok(())
    })?;
    file.each(b"lease", |_, value| {
        let lease = api::StoredLease::decode(value).map_err(io::Error::other)?;
        let remaining = if lease.remaining_ttl > 0 { lease.remaining_ttl } else { lease.ttl };
        header.leases.push((lease.id, lease.ttl, remaining));
        Ok(())
    })?;
    for name in ["auth", "authRoles", "authUsers"] {
        file.each(name.as_bytes(), |key, value| {
            let key = [name.as_bytes(), b"/", key].concat();
            header.meta.push((key.into(), Bytes::copy_from_slice(value)));
            Ok(())
        })?;
    }
    // The cluster is a new one; alarms belonged to members of the old.
    let (key, value) = options.identity.record();
    header.meta.push((key, value));
    header.meta.sort();
    header.meta_version = 1;

    let mut last = header.compacted.max(1);
    file.each(b"key", |key, _| {
        let (main, ..) = revision(key).ok_or_else(|| io::Error::other("a revision is malformed"))?;
        last = last.max(main);
        Ok(())
    })?;
    header.revision = last;
    if options.bump_revision > 0 {
        let Ok(bump) = i64::try_from(options.bump_revision) else { bail!("--bump-revision is too large") };
        header.revision += bump;
        if options.mark_compacted {
            header.compacted = header.revision;
        }
    }
    // One thread reads the file while this one writes the directory.
    let (sender, receiver) = std::sync::mpsc::sync_channel(1024);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let read = file.each(b"key", |key, value| {
                let gone = |_| io::Error::other("the restore has ended");
                sender.send(version(key, value)).map_err(gone)
            });
            if let Err(error) = read {
                let _ = sender.send(Err(storage::Error::Corrupt(error.to_string())));
            }
        });
        crate::restore(disk, &header, receiver.into_iter())
    })
    .context("write the data directory")?;
    Ok(header)
}

/// A version as bucket `key` has it.
fn version(key: &[u8], value: &[u8]) -> Result<Version, storage::Error> {
    let wrong = |what: &str| storage::Error::Corrupt(format!("the snapshot's key bucket: {what}"));
    let (main, sub, tombstone) = revision(key).ok_or_else(|| wrong("a revision is malformed"))?;
    let kv = api::KeyValue::decode(value).map_err(|e| wrong(&e.to_string()))?;
    let kv = match tombstone {
        true => KeyValue {
            key: kv.key,
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: main,
            version: 0,
            lease: 0,
        },
        false => KeyValue {
            key: kv.key,
            value: kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        },
    };
    Ok(Version { sub, kv: Arc::new(kv) })
}
