//! Containers' logs as CRI writes them, a line each: time, stream, a tag that says whether the line is whole, text.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use nix::sys::inotify::AddWatchFlags;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use crate::inotify::Watcher;
use crate::pods::PodHandle;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub follow: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit: Option<u64>,
    /// How long to wait for the first words of a container that has just started.
    pub patience: Duration,
    /// Only this stream.
    pub stream: Option<&'static str>,
}

const CHUNK: usize = 32 << 10;
/// A line without an end is given up at this length.
const LINE_MAX: usize = 1 << 20;

/// One line of a log.
#[derive(Debug, PartialEq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stream: &'a str,
    pub partial: bool,
    pub text: &'a [u8],
}

/// Takes apart a line, which comes without its newline.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let text = parts.next().unwrap_or_default();
    if stream != "stdout" && stream != "stderr" {
        return None;
    }
    let partial = tags.split(|b| *b == b':').next() == Some(b"P");
    Some(Line { time, stream, partial, text })
}

/// What of the log's text is shown, line by line.
struct Printer {
    options: Options,
    left: u64,
    /// The line before was not whole.
    within: bool,
}

impl Printer {
    fn new(options: Options) -> Printer {
        let left = options.limit.unwrap_or(u64::MAX);
        Printer { options, left, within: false }
    }

    /// Appends what the line shows; false once the limit is reached.
    fn print(&mut self, raw: &[u8], out: &mut BytesMut) -> bool {
        let Some(line) = parse(raw) else { return true };
        if self.options.stream.is_some_and(|s| s != line.stream) {
            return true;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|t| t < since)
        {
            return true;
        }
        let before = out.len();
        if self.options.timestamps && !self.within {
            out.extend_from_slice(line.time.as_bytes());
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.extend_from_slice(b"\n");
        }
        self.within = line.partial;
        let added = (out.len() - before) as u64;
        if added >= self.left {
            out.truncate(before + self.left as usize);
            self.left = 0;
            return false;
        }
        self.left -= added;
        true
    }
}

/// Where the last `lines` lines of a file begin.
async fn tail_start(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let size = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(size);
    }
    let mut found = 0u64;
    let mut end = size;
    let mut block = vec![0u8; CHUNK];
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let n = (end - start) as usize;
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut block[..n]).await?;
        for (i, byte) in block[..n].iter().enumerate().rev() {
            let at = start + i as u64;
            // The newline that ends the file ends its last line; it does not begin another.
            if *byte == b'\n' && at + 1 != size {
                found += 1;
                if found == lines {
                    return Ok(at + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// The last words of a container: at most so many lines and bytes from the end of its log.
pub async fn tail_text(path: &str, lines: usize, bytes: usize) -> Option<Vec<u8>> {
    let mut file = File::open(path).await.ok()?;
    let start = tail_start(&mut file, lines as u64).await.ok()?;
    file.seek(SeekFrom::Start(start)).await.ok()?;
    let mut raw = Vec::new();
    file.take(LINE_MAX as u64).read_to_end(&mut raw).await.ok()?;
    let mut printer = Printer::new(Options::default());
    let mut out = BytesMut::new();
    for line in raw.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        printer.print(line, &mut out);
    }
    let cut = out.len().saturating_sub(bytes);
    Some(out[cut..].to_vec())
}

/// Reads a log into `sink` until its end, or for followers until the container's.
pub async fn send(
    path: PathBuf,
    options: Options,
    following: Option<(Arc<PodHandle>, String)>,
    sink: mpsc::Sender<Result<Bytes, std::io::Error>>,
) {
    let result = tokio::select! {
        result = read(&path, options, following, &sink) => result,
        // Nobody reads any more.
        _ = sink.closed() => return,
    };
    if let Err(error) = result {
        let _ = sink.send(Err(error)).await;
    }
}

async fn read(
    path: &Path,
    options: Options,
    following: Option<(Arc<PodHandle>, String)>,
    sink: &mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> std::io::Result<()> {
    // Watch first: what is written between reading and watching must not be missed.
    let watcher = if options.follow { watch(path)? } else { None };
    let mut file = File::open(path).await?;
    if !options.patience.is_zero() && file.metadata().await?.len() == 0 {
        // The runtime writes down what a container says a moment after it was said.
        first_words(path, &file, options.patience).await?;
    }
    if let Some(lines) = options.tail {
        let start = tail_start(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    let mut printer = Printer::new(options.clone());
    let mut pending = BytesMut::new();
    loop {
        // Whether the container still ran is asked before its log is read to the end.
        let over = match &following {
            Some((handle, id)) => !handle.observed().by_id(id).is_some_and(|i| i.running()),
            None => true,
        };
        if !drain(&mut file, &mut pending, &mut printer, sink).await? {
            return Ok(());
        }
        if !options.follow || over {
            return Ok(());
        }
        if rotated(path, &file).await {
            if let Ok(fresh) = File::open(path).await {
                drain(&mut file, &mut pending, &mut printer, sink).await?;
                file = fresh;
                if let Some(watcher) = &watcher {
                    let _ = watcher.add(path, AddWatchFlags::IN_MODIFY);
                }
            }
            continue;
        }
        // The container's end makes no noise in its log.
        let pause = tokio::time::sleep(Duration::from_secs(1));
        match &watcher {
            Some(watcher) => tokio::select! {
                _ = watcher.changed() => {}
                _ = pause => {}
            },
            None => pause.await,
        }
    }
}

async fn first_words(path: &Path, file: &File, patience: Duration) -> std::io::Result<()> {
    let watcher = Watcher::new()?;
    watcher.add(path, AddWatchFlags::IN_MODIFY)?;
    if file.metadata().await?.len() == 0 {
        let _ = tokio::time::timeout(patience, watcher.changed()).await;
    }
    Ok(())
}

fn watch(path: &Path) -> std::io::Result<Option<Watcher>> {
    let watcher = Watcher::new()?;
    watcher.add(path, AddWatchFlags::IN_MODIFY)?;
    if let Some(dir) = path.parent() {
        watcher.add(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
    }
    Ok(Some(watcher))
}

async fn rotated(path: &Path, file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (tokio::fs::metadata(path).await, file.metadata().await) {
        (Ok(named), Ok(open)) => named.ino() != open.ino(),
        _ => false,
    }
}

/// Sends all whole lines there are; false once enough has been sent.
async fn drain(
    file: &mut File,
    pending: &mut BytesMut,
    printer: &mut Printer,
    sink: &mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> std::io::Result<bool> {
    loop {
        pending.reserve(CHUNK);
        let n = file.read_buf(pending).await?;
        let mut out = BytesMut::new();
        let mut more = true;
        while more && let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line = pending.split_to(end + 1);
            more = printer.print(&line[..end], &mut out);
        }
        if pending.len() > LINE_MAX {
            pending.clear();
        }
        if !out.is_empty() && sink.send(Ok(out.freeze())).await.is_err() {
            return Ok(false);
        }
        if !more {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.1Z stdout P ab\n2026-01-01T00:00:00.2Z stdout F c\n2026-01-01T00:00:01Z stderr F err\n2026-01-01T00:00:02Z stdout F last\n";

    async fn show(options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (sink, mut source) = mpsc::channel(8);
        send(path, options, None, sink).await;
        let mut all = Vec::new();
        while let Some(part) = source.recv().await {
            all.extend(part.unwrap());
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn shows() {
        for (options, want) in [
            (Options::default(), "abc\nerr\nlast\n"),
            (Options { tail: Some(1), ..Options::default() }, "last\n"),
            (Options { tail: Some(0), ..Options::default() }, ""),
            (Options { tail: Some(99), ..Options::default() }, "abc\nerr\nlast\n"),
            (Options { limit: Some(5), ..Options::default() }, "abc\ne"),
            (Options { stream: Some("stderr"), ..Options::default() }, "err\n"),
            (
                Options { timestamps: true, tail: Some(1), ..Options::default() },
                "2026-01-01T00:00:02Z last\n",
            ),
            (
                Options { since: Some("2026-01-01T00:00:01Z".parse().unwrap()), ..Options::default() },
                "err\nlast\n",
            ),
        ] {
            assert_eq!(show(options.clone()).await, want, "{options:?}");
        }
    }
}
