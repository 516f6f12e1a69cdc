//! Copies what is still in use out of files that mostly are not, so that they can be removed. Runs beside the log
//! thread: it reads the files, asks the state which values are still needed, writes those to data files, and only when
//! they are durable moves the records over, a few at a time. A data file holds frames of puts, as a log does.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use storage::{Error, Expect};

use crate::command::{ChangeTo, Command, Reader, Writer};
use crate::disk::{AppendFile, Disk};
use crate::engine::Shared;
use crate::files::FileName;
use crate::frame::{self, Frames};
use crate::record::RecordRef;
use crate::request::{Place, Value};

/// Puts looked up, and records moved, under one hold of the lock.
const CHUNK: usize = 256;

/// One frame of a data file holds about this much.
const FRAME_BYTES: usize = 256 << 10;

/// What is left to the disk at a time, so that a sync of the log never waits behind a large one.
pub(crate) const SYNC_BYTES: u64 = 2 << 20;

/// Files that were written, and their lengths. Nothing lies in the victims any more.
#[derive(Debug, Default)]
pub struct Cleaned {
    pub created: Vec<(FileName, u64)>,
}

/// Appends frames of puts to data files, one after the other.
pub struct DataWriter<'a> {
    disk: &'a dyn Disk,
    next_file: &'a AtomicU32,
    segment_bytes: u64,
    open: Option<(FileName, Box<dyn AppendFile>)>,
    len: u64,
    unsynced: u64,
    frames: u64,
    buffer: Vec<u8>,
    pub created: Vec<(FileName, u64)>,
}

impl<'a> DataWriter<'a> {
    pub fn new(disk: &'a dyn Disk, next_file: &'a AtomicU32, segment_bytes: u64) -> DataWriter<'a> {
        DataWriter {
            disk,
            next_file,
            segment_bytes,
            open: None,
            len: 0,
            unsynced: 0,
            frames: 0,
            buffer: Vec::new(),
            created: Vec::new(),
        }
    }

    /// Adds a value and says where it will lie. It is there after [`DataWriter::finish`].
    pub fn add(&mut self, key: Bytes, value: Value) -> io::Result<Place> {
        if self.open.is_none() {
            let name = FileName::Data { file: self.next_file.fetch_add(1, Ordering::Relaxed) };
            let file = self.disk.append_to(&name.to_string(), 0)?;
            self.open = Some((name, file));
            (self.len, self.frames) = (0, 0);
        }
        let file = self.open.as_ref().map_or(0, |(name, _)| name.file());
        if self.buffer.is_empty() {
            frame::begin(&mut self.buffer, self.frames);
        }
        let mut writer = Writer { out: &mut self.buffer, file, base: self.len };
        let mut command =
            Command::Write { key, expect: Expect::Anything, change: ChangeTo::Put { value, lease: 0 } };
        command.encode(&mut writer);
        let mut puts = Vec::new();
        command.puts(&mut puts);
        let place = puts.first().map_or(Place::default(), |(_, value)| value.place);
        if self.buffer.len() >= FRAME_BYTES {
            self.flush()?;
        }
        if self.len >= self.segment_bytes {
            self.finish()?;
        }
        Ok(place)
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some((_, file)) = &mut self.open else { return Ok(()) };
        if self.buffer.is_empty() {
            return Ok(());
        }
        frame::finish(&mut self.buffer, 0);
        file.append(&self.buffer)?;
        self.len += self.buffer.len() as u64;
        self.unsynced += self.buffer.len() as u64;
        self.frames += 1;
        self.buffer.clear();
        if self.unsynced >= SYNC_BYTES {
            file.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Makes all that was added durable.
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Some((name, mut file)) = self.open.take() {
            file.sync()?;
            self.disk.sync()?;
            self.created.push((name, self.len));
        }
        Ok(())
    }
}

/// A record whose value was copied from one place to another.
struct Move {
    record: RecordRef,
    from: Place,
    to: Place,
}

pub(crate) fn clean(shared: &Shared, victims: &[FileName], next_file: &AtomicU32) -> Result<Cleaned, Error> {
    let failed = |e: io::Error| Error::Unavailable(format!("write a data file: {e}"));
    let mut writer = DataWriter::new(&*shared.disk, next_file, shared.options.segment_bytes);
    let (mut moves, mut opened) = (Vec::new(), 0);
    for victim in victims {
        let unreadable = |e: io::Error| Error::Unavailable(format!("read {victim}: {e}"));
        let file = shared.disk.open(&victim.to_string()).map_err(unreadable)?;
        let mut frames = Frames::new(file, 0).map_err(unreadable)?;
        while let Some(frame) = frames.read_next().map_err(unreadable)? {
            let mut reader =
                Reader { input: frame.payload, file: victim.file(), end: frame.end, values: true };
            while !reader.is_empty() {
                let mut commands = Vec::with_capacity(CHUNK);
                while commands.len() < CHUNK && !reader.is_empty() {
                    let command = Command::decode(&mut reader)
                        .ok_or_else(|| Error::Corrupt(format!("{victim} holds a malformed entry")))?;
                    commands.push(command);
                }
                copy(shared, &commands, &mut writer, &mut moves).map_err(failed)?;
            }
            if writer.created.len() > opened {
                apply_moves(shared, &writer, &mut opened, &mut moves).map_err(failed)?;
            }
        }
        if frames.at() < frames.size() {
            return Err(Error::Corrupt(format!("{victim} is damaged at byte {}", frames.at())));
        }
    }
    writer.finish().map_err(failed)?;
    apply_moves(shared, &writer, &mut opened, &mut moves).map_err(failed)?;
    Ok(Cleaned { created: writer.created })
}

/// Copies the values of `commands` that are in use.
fn copy(
    shared: &Shared,
    commands: &[Command],
    writer: &mut DataWriter<'_>,
    moves: &mut Vec<Move>,
) -> io::Result<()> {
    let mut puts = Vec::new();
    for command in commands {
        command.puts(&mut puts);
    }
    let wanted: Vec<Vec<RecordRef>> = {
        let state = shared.state.read();
        let at = |key: &[u8], place| state.versions(key).filter(move |r| r.len > 0 && r.place() == place);
        puts.iter().map(|(key, value)| at(key, value.place).map(|v| v.clone_arc()).collect()).collect()
    };
    for ((key, value), records) in puts.into_iter().zip(wanted) {
        if !records.is_empty() {
            let to = writer.add(key.clone(), value.clone())?;
            moves.extend(records.into_iter().map(|record| Move { record, from: value.place, to }));
        }
    }
    Ok(())
}

/// Lets records point to the files that are finished.
fn apply_moves(
    shared: &Shared,
    writer: &DataWriter<'_>,
    opened: &mut usize,
    moves: &mut Vec<Move>,
) -> io::Result<()> {
    for (name, _) in &writer.created[*opened..] {
        shared.files.open(*name)?;
    }
    let finished: Vec<u32> = writer.created[*opened..].iter().map(|(name, _)| name.file()).collect();
    *opened = writer.created.len();
    let (ready, rest) = std::mem::take(moves).into_iter().partition(|m| finished.contains(&m.to.file));
    let ready: Vec<Move> = ready;
    *moves = rest;
    for chunk in ready.chunks(CHUNK) {
        let mut state = shared.state.write();
        for Move { record, from, to } in chunk {
            // What was swept meanwhile is accounted for already.
            let kept = state.versions(&record.key).any(|v| std::ptr::eq(&*v, &**record));
            if kept && record.place() == *from {
                state.moved(record, *to);
            }
        }
        drop(state);
        // Writers first.
        std::thread::yield_now();
    }
    Ok(())
}
