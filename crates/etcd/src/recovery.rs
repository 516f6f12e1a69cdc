//! From files to state: the newest checkpoint, then every log entry after it.

use std::io;

use storage::Error;

use crate::checkpoint::{self, Position};
use crate::command::{Command, Reader};
use crate::disk::Disk;
use crate::files::{FileName, Files};
use crate::frame::{Frames, Tail};
use crate::state::State;

const VERSION_FILE: &str = "VERSION";
/// What this code reads and writes.
const VERSION: &str = "2\n";

/// What the files told.
pub struct Recovered {
    pub state: State,
    /// The index of the last entry applied.
    pub index: u64,
    pub checkpoint: Option<Position>,
    /// The length of the checkpoint.
    pub checkpoint_bytes: u64,
    /// Logs by the index of their first entry, and data files.
    pub files: Vec<(FileName, u64)>,
    /// Bytes of log after the checkpoint.
    pub since_checkpoint: u64,
}

fn unreadable(what: &str) -> impl Fn(io::Error) -> Error + '_ {
    move |e| Error::Unavailable(format!("{what}: {e}"))
}

/// Refuses a directory of another layout, and marks a new one.
pub fn check_version(disk: &dyn Disk) -> Result<(), Error> {
    let names = disk.list().map_err(unreadable("list the data directory"))?;
    if names.iter().any(|name| name == VERSION_FILE) {
        let file = disk.open(VERSION_FILE).map_err(unreadable(VERSION_FILE))?;
        let mut text = vec![0; file.size().map_err(unreadable(VERSION_FILE))?.min(64) as usize];
        file.read_at(&mut text, 0).map_err(unreadable(VERSION_FILE))?;
        // An empty file is one whose writing was cut short, in a directory that holds nothing yet.
        if text == VERSION.as_bytes() {
            return Ok(());
        }
        if !text.is_empty() {
            return Err(Error::Corrupt(format!(
                "the data directory has version {:?}; this program reads version {:?}",
                String::from_utf8_lossy(&text).trim_end(),
                VERSION.trim_end()
            )));
        }
    }
    let used =
        |n: &&String| ["log-", "data-", "checkpoint-", "snapshot-"].iter().any(|kind| n.starts_with(kind));
    if let Some(name) = names.iter().find(used) {
        return Err(Error::Corrupt(format!(
            "the data directory holds {name} but does not say which version it has; an earlier version wrote it, \
             which this program does not read"
        )));
    }
    let mark = || -> io::Result<()> {
        let mut file = disk.append_to(VERSION_FILE, 0)?;
        file.append(VERSION.as_bytes())?;
        file.sync()?;
        disk.sync()
    };
    mark().map_err(unreadable(VERSION_FILE))
}

/// Reads the state back. Files that are no longer needed are listed like the others.
pub fn recover(disk: &dyn Disk, files: &Files) -> Result<Recovered, Error> {
    check_version(disk)?;
    let names = disk.list().map_err(unreadable("list the data directory"))?;
    for name in names.iter().filter(|n| n.ends_with(".tmp")) {
        // A checkpoint that was not finished.
        disk.remove(name).map_err(unreadable(name))?;
    }
    let mut lengths = Vec::new();
    for name in names.iter().filter_map(|n| FileName::parse(n)) {
        let text = name.to_string();
        let file = files.open(name).map_err(unreadable(&text))?;
        lengths.push((name, file.size().map_err(unreadable(&text))?));
    }
    lengths.sort_unstable_by_key(|(name, _)| name.file());

    let mut recovered = Recovered {
        state: State::default(),
        index: 0,
        checkpoint: None,
        checkpoint_bytes: 0,
        files: lengths,
        since_checkpoint: 0,
    };
    let mut checkpoints: Vec<u64> = names.iter().filter_map(|n| checkpoint::parse_name(n)).collect();
    checkpoints.sort_unstable();
    if let Some(newest) = checkpoints.pop() {
        let name = checkpoint::name(newest);
        let file = disk.open(&name).map_err(unreadable(&name))?;
        recovered.checkpoint_bytes = file.size().map_err(unreadable(&name))?;
        let (position, state) = checkpoint::read(&name, file, &recovered.files)?;
        (recovered.index, recovered.state, recovered.checkpoint) = (position.index, state, Some(position));
    }
    for old in checkpoints {
        let name = checkpoint::name(old);
        disk.remove(&name).map_err(unreadable(&name))?;
    }
    replay_logs(disk, files, &mut recovered)?;
    Ok(recovered)
}

fn replay_logs(disk: &dyn Disk, files: &Files, recovered: &mut Recovered) -> Result<(), Error> {
    let mut logs: Vec<(u32, u64, usize)> = Vec::new();
    for (at, (name, _)) in recovered.files.iter().enumerate() {
        if let FileName::Log { file, first } = name {
            logs.push((*file, *first, at));
        }
    }
    if let Some(position) = recovered.checkpoint
        && position.file > 0
        && logs.last().is_none_or(|(file, ..)| *file < position.file)
    {
        return Err(Error::Corrupt(format!(
            "log file {:08x}, in which the entries after the checkpoint begin, is missing",
            position.file
        )));
    }
    for (i, (file, first, at)) in logs.iter().enumerate() {
        let (name, index) = (recovered.files[*at].0, recovered.index);
        let is_last = i + 1 == logs.len();
        if logs.get(i + 1).is_some_and(|(_, next, _)| *next <= index + 1) {
            // The checkpoint has it all; the file is there for its values.
            continue;
        }
        if *first > index + 1 {
            return Err(Error::Corrupt(format!(
                "{name} begins at entry {first}, but entries {} to {} are missing",
                index + 1,
                first - 1
            )));
        }
        let text = name.to_string();
        let start = recovered.checkpoint.filter(|p| p.file == *file).map_or(0, |p| p.offset);
        let reader = disk.open(&text).map_err(unreadable(&text))?;
        let mut frames = Frames::new(reader, start).map_err(unreadable(&text))?;
        let len = frames.size();
        if len < start {
            return Err(Error::Corrupt(format!(
                "{name} is cut short: it ends at byte {len} instead of {start}"
            )));
        }
        while let Some(frame) = frames.read_next().map_err(unreadable(&text))? {
            let reader = Reader { input: frame.payload, file: *file, end: frame.end, values: false };
            replay(&mut recovered.state, &mut recovered.index, frame.index, reader, files)
                .map_err(|why| Error::Corrupt(format!("{name} at byte {}: {why}", frame.start)))?;
        }
        let end = frames.at();
        match frames.tail(recovered.index + 1).map_err(unreadable(&text))? {
            Tail::Clean => {}
            Tail::Torn { .. } if is_last => {
                tracing::warn!(
                    segment = text,
                    at = end,
                    bytes = len - end,
                    "cut off a torn tail: the last append did not complete and was never acknowledged"
                );
                recovered.files[*at].1 = end;
            }
            Tail::Torn { .. } | Tail::Damaged { .. } => {
                return Err(Error::Corrupt(format!(
                    "{name} is damaged at byte {end} of {len}; entries follow it, so this is no interrupted write. \
                     Restore the data directory from a snapshot"
                )));
            }
        }
        recovered.since_checkpoint += end - start;
    }
    Ok(())
}

/// Applies the entries of one frame that the state does not include yet.
fn replay(
    state: &mut State,
    index: &mut u64,
    first: u64,
    mut reader: Reader<'_>,
    files: &Files,
) -> Result<(), String> {
    let mut entry = first;
    while !reader.is_empty() {
        let command = Command::decode(&mut reader).ok_or("an entry is malformed")?;
        if entry > *index + 1 {
            return Err(format!("entries {} to {} are missing", *index + 1, entry - 1));
        }
        if entry == *index + 1 {
            // What a command answered was told to whoever proposed it; only its effect counts now.
            let _ = state.apply(command, files);
            *index = entry;
        }
        entry += 1;
    }
    Ok(())
}
