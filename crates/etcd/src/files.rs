//! Where values are read from: the files of the data directory, behind a bounded cache of key-values.
//!
//! What was just written is in the cache, so that watchers and caches above share the writer's bytes; the oldest go
//! first unless they were read meanwhile. A value read from disk is checked against its checksum.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use storage::{Error, KeyValue, RangeResponse, Revision};

use crate::disk::{Disk, ReadFile};
use crate::record::{Record, RecordRef};
use crate::request::{OpOutcome, TxnOutcome};
use crate::state::{Done, Found, Fresh, Transacted, Values};

/// Reads that are no further apart than this are made as one.
const GAP_MAX: u64 = 4096;
/// One read is no longer than this, unless a value is.
const READ_MAX: u64 = 256 << 10;

/// What kind of file: its name is the kind, the file's number and, for a log, the index of its first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileName {
    Log { file: u32, first: u64 },
    Data { file: u32 },
}

impl FileName {
    pub fn file(self) -> u32 {
        match self {
            FileName::Log { file, .. } | FileName::Data { file } => file,
        }
    }

    pub fn parse(name: &str) -> Option<FileName> {
        if let Some(rest) = name.strip_prefix("log-") {
            let (file, first) = rest.split_once('-')?;
            let (file, first) = (u32::from_str_radix(file, 16).ok()?, u64::from_str_radix(first, 16).ok()?);
            return Some(FileName::Log { file, first });
        }
        let file = u32::from_str_radix(name.strip_prefix("data-")?, 16).ok()?;
        Some(FileName::Data { file })
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FileName::Log { file, first } => write!(f, "log-{file:08x}-{first:016x}"),
            FileName::Data { file } => write!(f, "data-{file:08x}"),
        }
    }
}

#[derive(Clone)]
struct Open {
    name: FileName,
    file: Arc<dyn ReadFile>,
}

struct Cached {
    kv: Arc<KeyValue>,
    read: bool,
}

#[derive(Default)]
struct Cache {
    entries: HashMap<(Revision, u32), Cached>,
    order: VecDeque<(Revision, u32)>,
    bytes: usize,
}

fn size(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + 200
}

impl Cache {
    fn insert(&mut self, position: (Revision, u32), kv: Arc<KeyValue>, max: usize) {
        self.bytes += size(&kv);
        if let Some(old) = self.entries.insert(position, Cached { kv, read: false }) {
            self.bytes -= size(&old.kv);
        } else {
            self.order.push_back(position);
        }
        while self.bytes > max
            && let Some(oldest) = self.order.pop_front()
        {
            match self.entries.get_mut(&oldest) {
                Some(cached) if cached.read => {
                    cached.read = false;
                    self.order.push_back(oldest);
                }
                Some(_) => self.remove(oldest),
                None => {}
            }
        }
    }

    fn remove(&mut self, position: (Revision, u32)) {
        if let Some(old) = self.entries.remove(&position) {
            self.bytes -= size(&old.kv);
        }
    }

    fn get(&mut self, position: (Revision, u32)) -> Option<Arc<KeyValue>> {
        let cached = self.entries.get_mut(&position)?;
        cached.read = true;
        Some(cached.kv.clone())
    }
}

/// The files that values lie in.
pub struct Files {
    disk: Arc<dyn Disk>,
    open: RwLock<HashMap<u32, Open>>,
    cache: Mutex<Cache>,
    cache_bytes_max: usize,
}

impl Files {
    pub fn new(disk: Arc<dyn Disk>, cache_bytes_max: usize) -> Files {
        Files { disk, open: RwLock::default(), cache: Mutex::default(), cache_bytes_max }
    }

    /// Makes a file readable.
    pub fn open(&self, name: FileName) -> io::Result<Arc<dyn ReadFile>> {
        let file = self.disk.open(&name.to_string())?;
        self.open.write().insert(name.file(), Open { name, file: file.clone() });
        Ok(file)
    }

    /// Forgets files that are gone from disk. Whoever still holds a version that lay there can no longer read it.
    pub fn close(&self, files: &[u32]) {
        let mut open = self.open.write();
        for file in files {
            open.remove(file);
        }
    }

    pub fn remember(&self, fresh: Vec<Fresh>) {
        let mut cache = self.cache.lock();
        for Fresh { record, key, value } in fresh {
            cache.insert(record.position(), Arc::new(key_value(&record, key, value)), self.cache_bytes_max);
        }
    }

    pub fn forget(&self, gone: &[RecordRef]) {
        let mut cache = self.cache.lock();
        for record in gone {
            cache.remove(record.position());
        }
        // The order also lists what is gone; it must not grow with that.
        if cache.order.len() > 2 * cache.entries.len() + 1024 {
            let Cache { entries, order, .. } = &mut *cache;
            order.retain(|position| entries.contains_key(position));
        }
    }

    pub fn key_value(&self, record: &RecordRef) -> Result<Arc<KeyValue>, Error> {
        if let Some(kv) = self.cache.lock().get(record.position()) {
            return Ok(kv);
        }
        let value = self.load(record)?;
        let kv = Arc::new(key_value(record, Bytes::copy_from_slice(&record.key), value));
        self.cache.lock().insert(record.position(), kv.clone(), self.cache_bytes_max);
        Ok(kv)
    }

    /// The key-values of records, in their order.
    pub fn key_values(&self, records: &[RecordRef]) -> Result<Vec<Arc<KeyValue>>, Error> {
        if let [record] = records {
            return Ok(vec![self.key_value(record)?]);
        }
        // One large scan must not push everything else out.
        self.read_values(records, self.cache_bytes_max / 4)
    }

    /// [`Files::key_values`] for a reader of everything, who leaves no trace in the cache.
    pub fn key_values_once(&self, records: &[RecordRef]) -> Result<Vec<Arc<KeyValue>>, Error> {
        self.read_values(records, 0)
    }

    fn read_values(&self, records: &[RecordRef], cached_max: usize) -> Result<Vec<Arc<KeyValue>>, Error> {
        let mut found: Vec<Option<Arc<KeyValue>>> = Vec::with_capacity(records.len());
        let mut missing = Vec::new();
        {
            let mut cache = self.cache.lock();
            for (i, record) in records.iter().enumerate() {
                let cached = cache.get(record.position());
                if cached.is_none() {
                    missing.push(i);
                }
                found.push(cached);
            }
        }
        if !missing.is_empty() {
            let mut loaded = Vec::with_capacity(missing.len());
            self.load_many(records, &mut missing, &mut |i, value| {
                let record = &records[i];
                let key = Bytes::copy_from_slice(&record.key);
                let kv = Arc::new(key_value(record, key, value));
                found[i] = Some(kv.clone());
                loaded.push((record.position(), kv));
            })?;
            if loaded.iter().map(|(_, kv)| size(kv)).sum::<usize>() <= cached_max {
                let mut cache = self.cache.lock();
                for (position, kv) in loaded {
                    cache.insert(position, kv, self.cache_bytes_max);
                }
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Bytes that [`Files::key_values`] would have to read at most.
    pub fn reading(records: &[RecordRef]) -> usize {
        records.iter().map(|r| r.len as usize).sum()
    }

    fn load(&self, record: &Record) -> Result<Bytes, Error> {
        if record.len == 0 {
            return Ok(Bytes::new());
        }
        let mut value = vec![0; record.len as usize];
        let place = record.place();
        let result = self.read(place.file, u64::from(place.offset), &mut value);
        if result.is_err() && record.place() != place {
            // The value was moved and its old file removed just now.
            return self.load(record);
        }
        result?;
        self.verify(record, &value)?;
        Ok(value.into())
    }

    fn load_many(
        &self,
        records: &[RecordRef],
        wanted: &mut [usize],
        take: &mut dyn FnMut(usize, Bytes),
    ) -> Result<(), Error> {
        wanted.sort_unstable_by_key(|i| {
            let place = records[*i].place();
            (place.file, place.offset)
        });
        let mut buffer = Vec::new();
        let mut rest = &wanted[..];
        while let Some(first) = rest.first() {
            let start = records[*first].place();
            let mut end = u64::from(start.offset) + u64::from(records[*first].len);
            let mut run = 1;
            while let Some(next) = rest.get(run) {
                let (place, len) = (records[*next].place(), u64::from(records[*next].len));
                let next_end = u64::from(place.offset) + len;
                if place.file != start.file
                    || u64::from(place.offset) < u64::from(start.offset)
                    || u64::from(place.offset) > end + GAP_MAX
                    || next_end - u64::from(start.offset) > READ_MAX
                {
                    break;
                }
                end = end.max(next_end);
                run += 1;
            }
            let (these, others) = rest.split_at(run);
            rest = others;
            if run == 1 {
                take(*first, self.load(&records[*first])?);
                continue;
            }
            buffer.resize((end - u64::from(start.offset)) as usize, 0);
            let whole = self.read(start.file, u64::from(start.offset), &mut buffer).is_ok();
            for i in these {
                let record = &records[*i];
                let place = record.place();
                let value = (whole && place.file == start.file && place.offset >= start.offset)
                    .then(|| {
                        let at = (place.offset - start.offset) as usize;
                        buffer.get(at..at + record.len as usize)
                    })
                    .flatten();
                match value {
                    Some(value) if self.verify(record, value).is_ok() => {
                        take(*i, Bytes::copy_from_slice(value));
                    }
                    // Moved meanwhile, or damaged: find out by itself.
                    _ => take(*i, self.load(record)?),
                }
            }
        }
        Ok(())
    }

    fn read(&self, file: u32, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let open = self.open.read().get(&file).cloned();
        let open = open.ok_or_else(|| Error::Unavailable(format!("file {file:08x} is gone")))?;
        open.file.read_at(out, offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::Corrupt(format!(
                "{} is cut short before byte {}",
                open.name,
                offset + out.len() as u64
            )),
            _ => Error::Unavailable(format!("read {}: {e}", open.name)),
        })
    }

    fn verify(&self, record: &Record, value: &[u8]) -> Result<(), Error> {
        if crc32fast::hash(value) == record.crc {
            return Ok(());
        }
        let place = record.place();
        let name = self.open.read().get(&place.file).map_or_else(String::new, |open| open.name.to_string());
        Err(Error::Corrupt(format!(
            "the value of key {:?} at revision {} does not match its checksum: {name} is damaged at byte {} or in \
             the {} bytes that follow. Restore the data directory from a snapshot",
            String::from_utf8_lossy(&record.key),
            record.mod_revision,
            place.offset,
            record.len,
        )))
    }

    pub fn response(&self, found: Found) -> Result<RangeResponse, Error> {
        let Found { records, mut more, count, revision, keys_only, by_value } = found;
        let mut kvs = if keys_only && by_value.is_none() {
            records.iter().map(|r| Arc::new(without_value(r))).collect()
        } else {
            self.key_values(&records)?
        };
        if let Some((descending, limit)) = by_value {
            kvs.sort_by(|a, b| if descending { b.value.cmp(&a.value) } else { a.value.cmp(&b.value) });
            if limit > 0 && kvs.len() > limit {
                kvs.truncate(limit);
                more = true;
            }
            if keys_only {
                kvs = kvs
                    .iter()
                    .map(|kv| Arc::new(KeyValue { value: Bytes::new(), ..(**kv).clone() }))
                    .collect();
            }
        }
        Ok(RangeResponse { kvs, more, count, revision })
    }

    pub fn outcome(&self, transacted: Transacted) -> Result<TxnOutcome, Error> {
        let Transacted { succeeded, revision, outcomes } = transacted;
        let outcomes = outcomes
            .into_iter()
            .map(|done| {
                Ok(match done {
                    Done::Range(found) => OpOutcome::Range(self.response(found)?),
                    Done::Put { previous } => {
                        OpOutcome::Put { previous: previous.map(|r| self.key_value(&r)).transpose()? }
                    }
                    Done::DeleteRange { deleted, previous } => {
                        OpOutcome::DeleteRange { deleted, previous: self.key_values(&previous)? }
                    }
                    Done::Txn(nested) => OpOutcome::Txn(self.outcome(nested)?),
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(TxnOutcome { succeeded, revision, outcomes })
    }
}

impl Values for Files {
    fn value(&self, record: &Record) -> Result<Bytes, Error> {
        match self.cache.lock().get(record.position()) {
            Some(kv) => Ok(kv.value.clone()),
            None => self.load(record),
        }
    }
}

fn key_value(record: &Record, key: Bytes, value: Bytes) -> KeyValue {
    KeyValue {
        key,
        value,
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        lease: record.lease,
    }
}

/// The key-value without its value.
pub fn without_value(record: &Record) -> KeyValue {
    key_value(record, Bytes::copy_from_slice(&record.key), Bytes::new())
}
