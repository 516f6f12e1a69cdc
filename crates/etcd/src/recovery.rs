//! From files to state: the oldest snapshot kept, then every log entry after it.

use std::io;

use storage::Error;

use crate::command::Command;
use crate::disk::Disk;
use crate::frame::{self, Tail};
use crate::snapshot::{self, Position};
use crate::state::State;

/// Log segments are named by the index of their first entry.
pub fn segment_name(first_index: u64) -> String {
    format!("log-{first_index:016x}")
}

pub fn parse_segment_name(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("log-")?, 16).ok()
}

/// What the files told.
#[derive(Debug)]
pub struct Recovered {
    pub state: State,
    /// The index of the last entry applied.
    pub index: u64,
    /// Snapshots there are, oldest first.
    pub snapshots: Vec<Position>,
    /// First indexes of the segments, oldest first.
    pub segments: Vec<u64>,
    /// Where to append: the last segment's good length.
    pub tail_len: u64,
    /// Total bytes in log segments.
    pub log_bytes: u64,
}

fn unreadable(what: &str) -> impl FnOnce(io::Error) -> Error + '_ {
    move |e| Error::Unavailable(format!("{what}: {e}"))
}

pub fn recover(disk: &dyn Disk) -> Result<Recovered, Error> {
    let names = disk.list().map_err(unreadable("list the data directory"))?;
    for name in names.iter().filter(|n| n.ends_with(".tmp")) {
        // A snapshot that was not finished.
        disk.remove(name).map_err(unreadable(name))?;
    }
    let mut snapshots: Vec<Position> = names.iter().filter_map(|n| snapshot::parse_name(n)).collect();
    snapshots.sort_by_key(|p| p.index);
    let mut segments: Vec<u64> = names.iter().filter_map(|n| parse_segment_name(n)).collect();
    segments.sort_unstable();

    let (mut index, mut state) = (0, State::default());
    if let Some(oldest) = snapshots.first() {
        let name = snapshot::name(*oldest);
        let bytes = disk.read(&name).map_err(unreadable(&name))?;
        let (position, restored) =
            snapshot::read(&bytes).map_err(|why| Error::Corrupt(format!("{name}: {why}")))?;
        (index, state) = (position.index, restored);
    }

    let (mut tail_len, mut log_bytes) = (0, 0);
    for (i, first) in segments.iter().enumerate() {
        let name = segment_name(*first);
        if *first > index + 1 {
            return Err(Error::Corrupt(format!(
                "{name} begins at entry {first}, but entries {} to {} are missing",
                index + 1,
                first - 1
            )));
        }
        let is_last = i + 1 == segments.len();
        if segments.get(i + 1).is_some_and(|next| *next <= index + 1) {
            // The snapshot has it all.
            continue;
        }
        let bytes = disk.read(&name).map_err(unreadable(&name))?;
        let mut at = 0;
        while let Some(frame) = frame::read(&bytes, at) {
            replay(&mut state, &mut index, frame.index, frame.payload)
                .map_err(|why| Error::Corrupt(format!("{name} at byte {at}: {why}")))?;
            at = frame.end;
        }
        match frame::judge(&bytes, at, index + 1) {
            Tail::Clean => {}
            Tail::Torn { at } if is_last => {
                tracing::warn!(
                    segment = name,
                    at,
                    bytes = bytes.len() - at,
                    "cut off a torn tail: the last append did not complete and was never acknowledged"
                );
            }
            Tail::Torn { at } | Tail::Damaged { at } => {
                return Err(Error::Corrupt(format!(
                    "{name} is damaged at byte {at} of {}; entries follow it, so this is no interrupted write. \
                     Restore the data directory from a snapshot",
                    bytes.len()
                )));
            }
        }
        tail_len = at as u64;
        log_bytes += tail_len;
    }
    Ok(Recovered { state, index, snapshots, segments, tail_len, log_bytes })
}

/// Applies the entries of one frame that the state does not include yet.
fn replay(state: &mut State, index: &mut u64, first: u64, payload: &[u8]) -> Result<(), String> {
    let mut input = payload;
    let mut entry = first;
    while !input.is_empty() {
        let command = Command::decode(&mut input).ok_or("an entry is malformed")?;
        if entry > *index + 1 {
            return Err(format!("entries {} to {} are missing", *index + 1, entry - 1));
        }
        if entry == *index + 1 {
            // What a command answered was told to whoever proposed it; only its effect counts now.
            let _ = state.apply(command);
            *index = entry;
        }
        entry += 1;
    }
    Ok(())
}
