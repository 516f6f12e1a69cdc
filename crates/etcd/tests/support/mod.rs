//! A disk in memory that forgets what was not synced, and short ways to use the engine.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use etcd::disk::{AppendFile, Disk, ReadFile};
use etcd::{Engine, Options};
use parking_lot::Mutex;
use storage::{Change, Error, Expect, KeyRange, RangeRequest, Store, WriteOutcome, WriteRequest};

/// Files by name. Clones share them.
#[derive(Clone, Default)]
pub struct FakeDisk(pub Arc<Mutex<Files>>);

#[derive(Default)]
pub struct Files {
    pub files: BTreeMap<String, Fake>,
    /// Removed since the directory was last synced.
    removed: BTreeMap<String, Fake>,
    /// The longest that a file may become.
    pub capacity: Option<usize>,
    /// Appends, syncs and other changes still allowed; each fails after that, as if the power had gone.
    pub steps_left: Option<u64>,
    pub steps: u64,
}

#[derive(Clone, Default)]
pub struct Fake {
    pub bytes: Arc<Mutex<Vec<u8>>>,
    synced: usize,
    /// Whether the directory was synced since the file was created.
    listed: bool,
}

impl Files {
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        match &mut self.steps_left {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl FakeDisk {
    /// What a power loss leaves: synced bytes, and of what came after as many as `torn` says, of what the directory was
    /// not synced for as much as it likes.
    pub fn after_power_loss(&self, mut torn: impl FnMut(usize) -> usize) -> FakeDisk {
        let files = self.0.lock();
        let mut kept = BTreeMap::new();
        for (name, file) in files.files.iter().chain(&files.removed) {
            let unsynced = file.bytes.lock().len() - file.synced;
            let lost = !file.listed && torn(1) == 0 && file.synced == 0;
            let gone = !files.files.contains_key(name) && torn(1) == 0;
            if lost || gone {
                continue;
            }
            let len = file.synced + torn(unsynced).min(unsynced);
            let bytes = file.bytes.lock()[..len].to_vec();
            kept.insert(name.clone(), Fake { bytes: Arc::new(Mutex::new(bytes)), synced: len, listed: true });
        }
        FakeDisk(Arc::new(Mutex::new(Files { files: kept, ..Files::default() })))
    }

    /// What the end of the process leaves: everything.
    pub fn after_kill(&self) -> FakeDisk {
        self.after_power_loss(|unsynced| unsynced)
    }

    pub fn edit(&self, name: &str, f: impl FnOnce(&mut Vec<u8>)) {
        let mut files = self.0.lock();
        let file = files.files.get_mut(name).unwrap();
        let mut bytes = file.bytes.lock();
        f(&mut bytes);
        file.synced = bytes.len();
    }

    pub fn names(&self) -> Vec<String> {
        self.0.lock().files.keys().cloned().collect()
    }

    /// The one file whose name begins with `kind`, or the last of several.
    pub fn last(&self, kind: &str) -> String {
        self.names().into_iter().rfind(|n| n.starts_with(kind)).unwrap()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.lock().files[name].bytes.lock().clone()
    }

    pub fn total(&self) -> usize {
        self.0.lock().files.values().map(|f| f.bytes.lock().len()).sum()
    }
}

struct FakeAppend(FakeDisk, String);

struct FakeRead(Arc<Mutex<Vec<u8>>>);

impl Disk for FakeDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadFile>> {
        let files = self.0.lock();
        let file = files.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(FakeRead(file.bytes.clone())))
    }
    fn append_to(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>> {
        let mut files = self.0.lock();
        files.step()?;
        let file = files.files.entry(name.into()).or_default();
        file.bytes.lock().resize(len as usize, 0);
        file.synced = file.synced.min(len as usize);
        Ok(Box::new(FakeAppend(self.clone(), name.into())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock();
        files.step()?;
        let mut file = files.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        file.listed = true;
        files.files.insert(to.into(), file);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut files = self.0.lock();
        files.step()?;
        let file = files.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        files.removed.insert(name.into(), file);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        let mut files = self.0.lock();
        files.step()?;
        files.files.values_mut().for_each(|f| f.listed = true);
        files.removed.clear();
        Ok(())
    }
}

impl ReadFile for FakeRead {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.0.lock();
        let from = bytes.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl AppendFile for FakeAppend {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut files = self.0.0.lock();
        let capacity = files.capacity.unwrap_or(usize::MAX);
        files.step()?;
        let file = files.files.get_mut(&self.1).ok_or(io::ErrorKind::NotFound)?;
        let mut to = file.bytes.lock();
        let room = capacity.saturating_sub(to.len()).min(bytes.len());
        to.extend_from_slice(&bytes[..room]);
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut files = self.0.0.lock();
        files.step()?;
        let file = files.files.get_mut(&self.1).ok_or(io::ErrorKind::NotFound)?;
        file.synced = file.bytes.lock().len();
        Ok(())
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut files = self.0.0.lock();
        files.step()?;
        let file = files.files.get_mut(&self.1).ok_or(io::ErrorKind::NotFound)?;
        file.bytes.lock().truncate(len as usize);
        file.synced = file.synced.min(len as usize);
        Ok(())
    }
}

pub fn open(disk: &FakeDisk, options: &Options) -> Result<Engine, Error> {
    Engine::open(Arc::new(disk.clone()), options.clone())
}

pub async fn put(engine: &Engine, key: &str, value: &str) -> Result<i64, Error> {
    let change = Change::Put { value: value.to_owned().into(), lease: 0 };
    match engine.write(WriteRequest { key: key.to_owned().into(), expect: Expect::Anything, change }).await? {
        WriteOutcome::Written { revision } => Ok(revision),
        other => panic!("{other:?}"),
    }
}

/// Every key with its value and mod revision.
pub async fn dump(engine: &Engine) -> Vec<(String, String, i64)> {
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    let all = engine.range(RangeRequest::new(KeyRange::prefix(""))).await.unwrap();
    all.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value), kv.mod_revision)).collect()
}

/// Numbers from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n.max(1)
    }
}

/// How many points of failure to try: `ISOPOD_FAULT_POINTS`, or what CI can bear.
pub fn fault_points(default: u64) -> u64 {
    std::env::var("ISOPOD_FAULT_POINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Files roll, are checkpointed and cleaned after a few writes.
pub fn small() -> Options {
    Options {
        segment_bytes: 2000,
        checkpoint_bytes: 1000,
        cache_bytes: 2000,
        history_events_max: 0,
        ..Options::default()
    }
}
