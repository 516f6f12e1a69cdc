//! Checkpoints: the state at one log index without the values, so that a start need not read the whole log. Written in
//! chunks while writers go on; durable under a temporary name before they are renamed into place.
//!
//! A file is a sequence of [`frame`]s: a header, records of versions, and an end mark with their number, without which
//! the file does not count. A record takes about 25 B and its key.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use storage::{Error, Revision};

use crate::cleaner::SYNC_BYTES;
use crate::command::{put_alarm, put_bytes, put_i64, take_alarm, take_bytes, take_i64, take_u8};
use crate::disk::{AppendFile, Disk, ReadFile};
use crate::files::FileName;
use crate::frame::{self, Frames};
use crate::record::{Key, Record, RecordRef};
use crate::request::Place;
use crate::state::{Header, State};

const HEADER: u8 = 0;
const RECORDS: u8 = 1;
const END: u8 = 2;

const CHUNK_KEYS: usize = 512;

/// Records that go from one thread to the other at once.
const HANDED_OVER: usize = 1 << 13;

/// Where in the log a checkpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The last log entry it includes.
    pub index: u64,
    pub revision: Revision,
    /// Where the entry after that is written: the log's file, and the byte in it.
    pub file: u32,
    pub offset: u64,
}

/// A checkpoint's file name; sorts by index.
pub fn name(index: u64) -> String {
    format!("checkpoint-{index:016x}")
}

pub fn parse_name(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("checkpoint-")?, 16).ok()
}

struct Writer {
    file: Box<dyn AppendFile>,
    buffer: Vec<u8>,
    frames: u64,
    written: u64,
    unsynced: u64,
}

impl Writer {
    fn emit(&mut self, body: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.buffer.clear();
        let at = frame::begin(&mut self.buffer, self.frames);
        body(&mut self.buffer);
        frame::finish(&mut self.buffer, at);
        self.frames += 1;
        self.written += self.buffer.len() as u64;
        self.unsynced += self.buffer.len() as u64;
        self.file.append(&self.buffer)?;
        if self.unsynced >= SYNC_BYTES {
            self.file.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

/// Writes the state at `position`, whose header was `header` then. The caller keeps `header.compacted` pinned
/// meanwhile. Returns the file's length.
pub fn write(disk: &dyn Disk, state: &RwLock<State>, position: Position, header: &Header) -> io::Result<u64> {
    let mut from: Option<Key> = Some(Key::from(&[][..]));
    let chunks = std::iter::from_fn(|| {
        let (records, next) = state.read().chunk(from.as_deref()?, position.revision, CHUNK_KEYS);
        from = next;
        Some(records)
    });
    write_chunks(disk, position, header, chunks)
}

/// Writes a checkpoint of records as they come: sorted by key, versions of one key oldest first.
pub fn write_chunks(
    disk: &dyn Disk,
    position: Position,
    header: &Header,
    chunks: impl Iterator<Item = Vec<RecordRef>>,
) -> io::Result<u64> {
    let temporary = format!("{}.tmp", name(position.index));
    let file = disk.append_to(&temporary, 0)?;
    let mut writer = Writer { file, buffer: Vec::new(), frames: 0, written: 0, unsynced: 0 };
    writer.emit(|out| {
        out.push(HEADER);
        put_i64(out, position.index as i64);
        put_i64(out, position.revision);
        put_i64(out, i64::from(position.file));
        put_i64(out, position.offset as i64);
        put_header(out, header);
    })?;
    let mut count = 0i64;
    for records in chunks {
        count += records.len() as i64;
        writer.emit(|out| {
            out.push(RECORDS);
            let mut key: &[u8] = &[];
            for (i, record) in records.iter().enumerate() {
                put_record(out, record, i > 0 && *key == *record.key);
                key = &record.key;
            }
        })?;
    }
    writer.emit(|out| {
        out.push(END);
        put_i64(out, count);
    })?;
    writer.file.sync()?;
    disk.rename(&temporary, &name(position.index))?;
    Ok(writer.written)
}

fn put_header(out: &mut Vec<u8>, header: &Header) {
    put_i64(out, header.compacted);
    put_i64(out, header.leases.len() as i64);
    for (id, ttl, remaining) in &header.leases {
        put_i64(out, *id);
        put_i64(out, *ttl);
        put_i64(out, *remaining);
    }
    put_i64(out, header.alarms.len() as i64);
    for alarm in &header.alarms {
        put_alarm(out, *alarm);
    }
    put_i64(out, header.meta_version as i64);
    put_i64(out, header.meta.len() as i64);
    for (key, value) in &header.meta {
        put_bytes(out, key);
        put_bytes(out, value);
    }
}

fn take_header(input: &mut &[u8], revision: Revision) -> Option<Header> {
    let compacted = take_i64(input)?;
    let leases = (0..take_i64(input)?)
        .map(|_| Some((take_i64(input)?, take_i64(input)?, take_i64(input)?)))
        .collect::<Option<_>>()?;
    let alarms = (0..take_i64(input)?).map(|_| take_alarm(input)).collect::<Option<_>>()?;
    let meta_version = take_i64(input)? as u64;
    let meta = (0..take_i64(input)?)
        .map(|_| Some((take_bytes(input)?, take_bytes(input)?)))
        .collect::<Option<Vec<(Bytes, Bytes)>>>()?;
    Some(Header { revision, compacted, leases, alarms, meta, meta_version })
}

const SAME_KEY: u8 = 1;
const TOMBSTONE: u8 = 2;
const LEASED: u8 = 4;
const LATER_SUB: u8 = 8;
const STORED: u8 = 16;

fn put_record(out: &mut Vec<u8>, record: &Record, same_key: bool) {
    let bits = [
        (SAME_KEY, same_key),
        (TOMBSTONE, record.is_tombstone()),
        (LEASED, record.lease != 0),
        (LATER_SUB, record.sub != 0),
        (STORED, record.len > 0),
    ];
    out.push(bits.iter().filter(|(_, set)| *set).map(|(bit, _)| bit).sum());
    if !same_key {
        put_varint(out, record.key.len() as u64);
        out.extend_from_slice(&record.key);
    }
    put_varint(out, record.mod_revision as u64);
    if record.sub != 0 {
        put_varint(out, u64::from(record.sub));
    }
    if record.is_tombstone() {
        return;
    }
    put_varint(out, (record.mod_revision - record.create_revision) as u64);
    put_varint(out, record.version as u64);
    if record.lease != 0 {
        put_i64(out, record.lease);
    }
    if record.len > 0 {
        let place = record.place();
        put_varint(out, u64::from(record.len));
        put_varint(out, u64::from(place.file));
        put_varint(out, u64::from(place.offset));
        out.extend_from_slice(&record.crc.to_le_bytes());
    }
}

fn take_record(input: &mut &[u8], last_key: &mut Key) -> Option<Record> {
    let bits = take_u8(input)?;
    if bits & SAME_KEY == 0 {
        let len = usize::try_from(take_varint(input)?).ok()?;
        let (key, rest) = input.split_at_checked(len)?;
        if **last_key != *key {
            *last_key = Key::from(key);
        }
        *input = rest;
    }
    let key = last_key.clone();
    let mod_revision = take_varint(input)? as Revision;
    let sub = if bits & LATER_SUB == 0 { 0 } else { u32::try_from(take_varint(input)?).ok()? };
    if bits & TOMBSTONE != 0 {
        return Some(Record::tombstone(key, mod_revision, sub));
    }
    let create_revision = mod_revision.checked_sub(take_varint(input)? as i64)?;
    let version = take_varint(input)? as i64;
    let lease = if bits & LEASED == 0 { 0 } else { take_i64(input)? };
    let mut value = (0, crc32fast::hash(&[]), Place::default());
    if bits & STORED != 0 {
        let number = |input: &mut &[u8]| u32::try_from(take_varint(input)?).ok();
        let (len, file, offset) = (number(input)?, number(input)?, number(input)?);
        let (crc, rest) = input.split_first_chunk::<4>()?;
        *input = rest;
        value = (len, u32::from_le_bytes(*crc), Place { file, offset });
    }
    Some(Record::put(key, (create_revision, mod_revision, sub), version, lease, value))
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take_u8(input)?;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(n);
        }
    }
    None
}

/// Reads a checkpoint back. `lengths` are those of the files that values lie in; all that are needed must be there.
pub fn read(
    name: &str,
    file: Arc<dyn ReadFile>,
    lengths: &[(FileName, u64)],
) -> Result<(Position, State), Error> {
    let unreadable = |e: io::Error| Error::Unavailable(format!("{name}: {e}"));
    let damaged =
        |at: u64, len: u64| Error::Corrupt(format!("{name} is damaged or cut short at byte {at} of {len}"));
    let mut frames = Frames::new(file, 0).map_err(unreadable)?;
    let len = frames.size();
    let first = frames.read_next().map_err(unreadable)?.ok_or_else(|| damaged(0, len))?;
    let (position, header) = parse_header(&mut { first.payload }).ok_or_else(|| damaged(0, len))?;
    let mut records = Records {
        frames,
        payload: Vec::new(),
        at: 0,
        key: Key::from(&[][..]),
        count: 0,
        extents: HashMap::new(),
        end: Ok(false),
    };
    // Half of the work is making records, the other half building the index of them.
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<RecordRef>>(4);
    let state = std::thread::scope(|scope| {
        scope.spawn(|| {
            let sender = sender;
            loop {
                let chunk: Vec<RecordRef> = (&mut records).take(HANDED_OVER).map(RecordRef::new).collect();
                if chunk.is_empty() || sender.send(chunk).is_err() {
                    return;
                }
            }
        });
        State::restored(header, receiver.into_iter().flatten())
    });
    match records.end {
        Ok(true) if records.frames.at() == len => {
            check_files(&records.extents, lengths)?;
            Ok((position, state))
        }
        Ok(_) => Err(damaged(records.frames.at(), len)),
        Err(e) => Err(unreadable(e)),
    }
}

fn parse_header(input: &mut &[u8]) -> Option<(Position, Header)> {
    if take_u8(input)? != HEADER {
        return None;
    }
    let (index, revision) = (take_i64(input)? as u64, take_i64(input)?);
    let (file, offset) = (u32::try_from(take_i64(input)?).ok()?, take_i64(input)? as u64);
    Some((Position { index, revision, file, offset }, take_header(input, revision)?))
}

/// The records of a checkpoint, until its end mark or damage.
struct Records {
    frames: Frames,
    payload: Vec<u8>,
    at: usize,
    key: Key,
    count: i64,
    /// Where in each file the last value ends.
    extents: HashMap<u32, u64>,
    /// Whether the end mark was read and told the right number.
    end: io::Result<bool>,
}

impl Iterator for &mut Records {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        loop {
            let mut input = self.payload.get(self.at..).filter(|rest| !rest.is_empty());
            if let Some(input) = &mut input {
                let record = take_record(input, &mut self.key)?;
                self.at = self.payload.len() - input.len();
                self.count += 1;
                if record.len > 0 {
                    let place = record.place();
                    let end = self.extents.entry(place.file).or_default();
                    *end = (*end).max(u64::from(place.offset) + u64::from(record.len));
                }
                return Some(record);
            }
            let frame = match self.frames.read_next() {
                Ok(frame) => frame?,
                Err(e) => {
                    self.end = Err(e);
                    return None;
                }
            };
            let mut payload = frame.payload;
            match take_u8(&mut payload)? {
                RECORDS => {
                    self.payload.clear();
                    self.payload.extend_from_slice(payload);
                    self.at = 0;
                }
                END => {
                    self.end = Ok(take_i64(&mut payload)? == self.count);
                    return None;
                }
                _ => return None,
            }
        }
    }
}

/// Every file that is needed must be there and long enough.
fn check_files(extents: &HashMap<u32, u64>, lengths: &[(FileName, u64)]) -> Result<(), Error> {
    for (&file, &end) in extents {
        let found = lengths.iter().find(|(name, _)| name.file() == file);
        match found {
            None => return Err(Error::Corrupt(format!("the file with number {file:08x} is missing"))),
            Some((name, len)) if *len < end => {
                return Err(Error::Corrupt(format!(
                    "{name} is cut short: values reach to byte {end}, but it ends at {len}"
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
