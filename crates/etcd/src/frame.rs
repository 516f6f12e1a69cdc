//! Frames: what logs, data files and checkpoints are made of. One frame is one append, so a crash tears at most the last one.
//!
//! Layout, little-endian: `crc32 u32 | payload length u32 | index u64 | payload`. The checksum covers everything
//! after itself. `index` is the log index of the first entry in a log frame and a running number
//! elsewhere.
//!
//! The next frame is appended only after the last one was synced. So a bad frame with nothing valid behind it is a
//! torn tail that nobody was told about, and a bad frame with a valid one behind it is damage.

use std::io;
use std::sync::Arc;

use crate::disk::ReadFile;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 16;

/// Larger payloads are taken for damage.
pub const PAYLOAD_MAX: usize = 256 << 20;

/// Starts a frame in `out`; the caller appends the payload and calls [`finish`] with the returned position.
pub fn begin(out: &mut Vec<u8>, index: u64) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&index.to_le_bytes());
    at
}

/// Fills in length and checksum of the frame begun at `at`.
pub fn finish(out: &mut [u8], at: usize) {
    let len = (out.len() - at - HEADER_LEN) as u32;
    out[at + 4..at + 8].copy_from_slice(&len.to_le_bytes());
    let crc = crc32fast::hash(&out[at + 4..]);
    out[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// One intact frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub index: u64,
    pub payload: &'a [u8],
    /// Where the next frame begins.
    pub end: usize,
}

/// Reads the frame at `at`; `None` when it is cut short or damaged.
pub fn read(bytes: &[u8], at: usize) -> Option<Frame<'_>> {
    let header = bytes.get(at..at + HEADER_LEN)?;
    let crc = u32::from_le_bytes(header[..4].try_into().ok()?);
    let len = u32::from_le_bytes(header[4..8].try_into().ok()?) as usize;
    let index = u64::from_le_bytes(header[8..16].try_into().ok()?);
    let end = at.checked_add(HEADER_LEN)?.checked_add(len)?;
    if len > PAYLOAD_MAX || end > bytes.len() || crc32fast::hash(&bytes[at + 4..end]) != crc {
        return None;
    }
    Some(Frame { index, payload: &bytes[at + HEADER_LEN..end], end })
}

/// What lies behind the last readable frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Tail {
    /// The file ends with an intact frame.
    Clean,
    /// The last append was cut short; the bytes from `at` on were never acknowledged.
    Torn { at: usize },
    /// The frame at `at` is damaged though frames follow it.
    Damaged { at: usize },
}

/// Judges what begins at `at`, where no frame could be read. Frames that may follow have an index of at least
/// `next_index`.
pub fn judge(bytes: &[u8], at: usize, next_index: u64) -> Tail {
    if at >= bytes.len() {
        return Tail::Clean;
    }
    // A checksum is worth computing only where the header is plausible.
    for candidate in at + 1..bytes.len().saturating_sub(HEADER_LEN - 1) {
        let index = u64::from_le_bytes(bytes[candidate + 8..candidate + 16].try_into().unwrap_or_default());
        if index >= next_index && index - next_index < 1 << 32 && read(bytes, candidate).is_some() {
            return Tail::Damaged { at };
        }
    }
    Tail::Torn { at }
}

/// Reads a file frame by frame, holding a window of it.
pub struct Frames {
    file: Arc<dyn ReadFile>,
    len: u64,
    /// Where the next frame begins.
    at: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// What is read at once.
const WINDOW: u64 = 1 << 20;

/// One intact frame of a file.
pub struct FileFrame<'a> {
    pub index: u64,
    pub payload: &'a [u8],
    /// Where in the file the frame begins and ends.
    pub start: u64,
    pub end: u64,
}

impl Frames {
    pub fn new(file: Arc<dyn ReadFile>, at: u64) -> io::Result<Frames> {
        let len = file.size()?;
        Ok(Frames { file, len, at, window: Vec::new(), window_at: at })
    }

    pub fn at(&self) -> u64 {
        self.at
    }

    pub fn size(&self) -> u64 {
        self.len
    }

    /// The next frame; `None` at the end, and where a frame is cut short or damaged, which [`Frames::tail`] tells.
    pub fn read_next(&mut self) -> io::Result<Option<FileFrame<'_>>> {
        let start = self.at;
        let Some(header) = self.fill(HEADER_LEN as u64)? else { return Ok(None) };
        let len = u32::from_le_bytes(header[4..8].try_into().unwrap_or_default()) as usize;
        if len > PAYLOAD_MAX || self.fill((HEADER_LEN + len) as u64)?.is_none() {
            return Ok(None);
        }
        let Some(frame) = read(&self.window, (start - self.window_at) as usize) else { return Ok(None) };
        self.at = self.window_at + frame.end as u64;
        Ok(Some(FileFrame { index: frame.index, payload: frame.payload, start, end: self.at }))
    }

    /// Has `n` bytes from `at` on in the window; `None` where the file is shorter.
    fn fill(&mut self, n: u64) -> io::Result<Option<&[u8]>> {
        if self.at + n > self.len {
            return Ok(None);
        }
        if self.at + n > self.window_at + self.window.len() as u64 {
            let size = n.max(WINDOW).min(self.len - self.at);
            self.window.resize(size as usize, 0);
            self.window_at = self.at;
            self.file.read_at(&mut self.window, self.at)?;
        }
        let from = (self.at - self.window_at) as usize;
        Ok(Some(&self.window[from..from + n as usize]))
    }

    /// What lies where [`Frames::read_next`] ended.
    pub fn tail(&mut self, next_index: u64) -> io::Result<Tail> {
        let mut rest = vec![0; (self.len - self.at) as usize];
        self.file.read_at(&mut rest, self.at)?;
        Ok(judge(&rest, 0, next_index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(payloads: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, p) in payloads.iter().enumerate() {
            let at = begin(&mut out, i as u64 + 1);
            out.extend_from_slice(p);
            finish(&mut out, at);
        }
        out
    }

    #[test]
    fn every_cut_is_a_torn_tail() {
        let whole = frames(&[b"one", b"two", b"three"]);
        let second_end = frames(&[b"one", b"two"]).len();
        for cut in second_end + 1..whole.len() {
            let bytes = &whole[..cut];
            assert!(read(bytes, second_end).is_none());
            assert_eq!(judge(bytes, second_end, 3), Tail::Torn { at: second_end });
        }
    }

    #[test]
    fn every_flipped_byte_before_an_intact_frame_is_damage() {
        let whole = frames(&[b"one", b"two", b"three"]);
        let first_end = frames(&[b"one"]).len();
        let second_end = frames(&[b"one", b"two"]).len();
        for i in first_end..second_end {
            let mut bytes = whole.clone();
            bytes[i] ^= 0x40;
            assert!(read(&bytes, first_end).is_none(), "byte {i}");
            assert_eq!(judge(&bytes, first_end, 2), Tail::Damaged { at: first_end }, "byte {i}");
        }
    }
}
