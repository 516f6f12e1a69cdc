//! Snapshots: the state at one log index, so that older log segments can go. Written in chunks while writers go on,
//! read as of one revision; durable under a temporary name before they are renamed into place.
//!
//! A file is a sequence of [`frame`]s: a header, leases, key-values, and an end mark with their number, without which
//! the file does not count.

use std::io;
use std::sync::Arc;

use parking_lot::RwLock;
use storage::{KeyValue, LeaseId, Revision};

use crate::command::{put_bytes, put_i64, take_bytes, take_i64, take_u8};
use crate::disk::Disk;
use crate::frame;
use crate::state::State;

const VERSION: u8 = 1;
const HEADER: u8 = 0;
const LEASE: u8 = 1;
const KEY_VALUES: u8 = 2;
const END: u8 = 3;

const CHUNK_KEYS: usize = 512;

/// Where in the log a snapshot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The last log entry it includes.
    pub index: u64,
    pub revision: Revision,
}

/// The file's name; sorts by index.
pub fn name(position: Position) -> String {
    format!("snapshot-{:016x}-{:016x}", position.index, position.revision)
}

pub fn parse_name(name: &str) -> Option<Position> {
    let (index, revision) = name.strip_prefix("snapshot-")?.split_once('-')?;
    Some(Position {
        index: u64::from_str_radix(index, 16).ok()?,
        revision: i64::from_str_radix(revision, 16).ok()?,
    })
}

/// Writes the state at `position`, whose leases were `leases` then. The caller keeps `position.revision` from being
/// compacted away meanwhile. Returns the file's length.
pub fn write(
    disk: &dyn Disk,
    state: &RwLock<State>,
    position: Position,
    leases: &[(LeaseId, i64)],
) -> io::Result<u64> {
    let temporary = format!("{}.tmp", name(position));
    let mut file = disk.append_to(&temporary, 0)?;
    let (mut buffer, mut frames, mut written) = (Vec::new(), 0u64, 0u64);
    let mut emit = |body: &dyn Fn(&mut Vec<u8>)| -> io::Result<()> {
        buffer.clear();
        let at = frame::begin(&mut buffer, frames);
        body(&mut buffer);
        frame::finish(&mut buffer, at);
        frames += 1;
        written += buffer.len() as u64;
        file.append(&buffer)
    };
    emit(&|out| {
        out.push(HEADER);
        out.push(VERSION);
        put_i64(out, position.index as i64);
        put_i64(out, position.revision);
    })?;
    for (id, ttl_seconds) in leases {
        emit(&|out| {
            out.push(LEASE);
            put_i64(out, *id);
            put_i64(out, *ttl_seconds);
        })?;
    }
    let (mut from, mut keys) = (bytes::Bytes::new(), 0i64);
    loop {
        let (kvs, next) = state.read().chunk(&from, position.revision, CHUNK_KEYS);
        keys += kvs.len() as i64;
        emit(&|out| {
            out.push(KEY_VALUES);
            for kv in &kvs {
                put_i64(out, kv.create_revision);
                put_i64(out, kv.mod_revision);
                put_i64(out, kv.version);
                put_i64(out, kv.lease);
                put_bytes(out, &kv.key);
                put_bytes(out, &kv.value);
            }
        })?;
        match next {
            Some(key) => from = key,
            None => break,
        }
    }
    emit(&|out| {
        out.push(END);
        put_i64(out, keys);
    })?;
    file.sync()?;
    disk.rename(&temporary, &name(position))?;
    Ok(written)
}

/// Reads a snapshot back; the error says what is wrong with it.
pub fn read(bytes: &[u8]) -> Result<(Position, State), String> {
    let mut at = 0;
    let mut position = None;
    let (mut leases, mut kvs, mut complete) = (Vec::new(), Vec::new(), false);
    while let Some(frame) = frame::read(bytes, at) {
        let mut input = frame.payload;
        parse_frame(&mut input, &mut position, &mut leases, &mut kvs, &mut complete)
            .ok_or_else(|| format!("the frame at byte {at} is malformed"))?;
        at = frame.end;
    }
    match position {
        Some(position) if complete && at == bytes.len() => {
            Ok((position, State::restored(position.revision, kvs, leases)))
        }
        _ => Err(format!("damaged or cut short at byte {at} of {}", bytes.len())),
    }
}

fn parse_frame(
    input: &mut &[u8],
    position: &mut Option<Position>,
    leases: &mut Vec<(LeaseId, i64)>,
    kvs: &mut Vec<Arc<KeyValue>>,
    complete: &mut bool,
) -> Option<()> {
    match take_u8(input)? {
        HEADER => {
            if take_u8(input)? != VERSION {
                return None;
            }
            *position = Some(Position { index: take_i64(input)? as u64, revision: take_i64(input)? });
        }
        LEASE => leases.push((take_i64(input)?, take_i64(input)?)),
        KEY_VALUES => {
            while !input.is_empty() {
                let (create_revision, mod_revision) = (take_i64(input)?, take_i64(input)?);
                let (version, lease) = (take_i64(input)?, take_i64(input)?);
                let (key, value) = (take_bytes(input)?, take_bytes(input)?);
                kvs.push(Arc::new(KeyValue { key, value, create_revision, mod_revision, version, lease }));
            }
        }
        END => *complete = take_i64(input)? == kvs.len() as i64,
        _ => return None,
    }
    Some(())
}
