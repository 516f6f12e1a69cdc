//! The file audit events go to, a line each, set aside when it is large or old.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::event::{Event, Format};

/// Where events go, and how much of them is kept.
#[derive(Clone, Debug, Default)]
pub struct LogConfig {
    /// `-` is standard output.
    pub path: PathBuf,
    /// Days that files set aside are kept; 0 means for ever.
    pub age_days_max: u64,
    /// How many of them are kept; 0 means all.
    pub backups_max: usize,
    /// Megabytes after which a file is set aside; 0 means never.
    pub megabytes_max: u64,
    /// Whether files set aside are compressed (gzip).
    pub compress: bool,
    pub format: Format,
}

enum Sink {
    Stdout,
    File { file: File, bytes: u64 },
}

pub struct Log {
    config: LogConfig,
    sink: Mutex<Sink>,
}

fn open(path: &Path) -> anyhow::Result<Sink> {
    if path == Path::new("-") {
        return Ok(Sink::Stdout);
    }
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).with_context(|| format!("open {}", path.display()))?;
    let bytes = file.metadata().map_or(0, |m| m.len());
    Ok(Sink::File { file, bytes })
}

impl Log {
    pub fn open(config: LogConfig) -> anyhow::Result<Log> {
        let sink = open(&config.path)?;
        Ok(Log { sink: Mutex::new(sink), config })
    }

    /// Writes an event's line.
    pub fn write(&self, event: &Event) -> Result<(), String> {
        self.write_line(&event.line(self.config.format))
    }

    fn write_line(&self, line: &[u8]) -> Result<(), String> {
        let mut sink = self.sink.lock();
        let most = match self.config.megabytes_max {
            0 => u64::MAX,
            megabytes => megabytes.saturating_mul(1 << 20),
        };
        let full =
            matches!(&*sink, Sink::File { bytes, .. } if *bytes > 0 && *bytes + line.len() as u64 > most);
        if full && let Err(error) = self.set_aside(&mut sink) {
            tracing::error!(error = format!("{error:#}"), "the audit log could not be set aside");
        }
        let written = match &mut *sink {
            Sink::Stdout => std::io::stdout().lock().write_all(line),
            Sink::File { file, bytes } => {
                *bytes += line.len() as u64;
                file.write_all(line)
            }
        };
        written.map_err(|e| e.to_string())
    }

    fn set_aside(&self, sink: &mut Sink) -> anyhow::Result<()> {
        let path = &self.config.path;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
        let at = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.3f").to_string();
        let aside = path.with_file_name(format!("{stem}-{at}{extension}"));
        std::fs::rename(path, &aside)?;
        *sink = open(path)?;
        if self.config.compress {
            compress(&aside)?;
        }
        self.forget(&format!("{stem}-"), &extension)
    }

    /// Deletes files set aside that are too many or too old.
    fn forget(&self, prefix: &str, extension: &str) -> anyhow::Result<()> {
        let directory = self.config.path.parent().filter(|d| !d.as_os_str().is_empty());
        let mut aside: Vec<PathBuf> = std::fs::read_dir(directory.unwrap_or(Path::new(".")))?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| {
                let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let name = name.strip_suffix(".gz").unwrap_or(&name);
                name.starts_with(prefix) && name.ends_with(extension)
            })
            .collect();
        // Names end in the time, so the newest come last.
        aside.sort();
        let keep = if self.config.backups_max == 0 { usize::MAX } else { self.config.backups_max };
        let oldest = (self.config.age_days_max > 0)
            .then(|| SystemTime::now() - Duration::from_secs(self.config.age_days_max * 24 * 3600));
        let many = aside.len().saturating_sub(keep);
        for (i, path) in aside.iter().enumerate() {
            let modified = path.metadata().and_then(|m| m.modified()).ok();
            if i < many || oldest.zip(modified).is_some_and(|(oldest, at)| at < oldest) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Puts a compressed file in the place of a file.
fn compress(path: &Path) -> anyhow::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut to =
        flate2::write::GzEncoder::new(options.open(PathBuf::from(name))?, flate2::Compression::default());
    std::io::copy(&mut File::open(path)?, &mut to)?;
    to.finish()?;
    std::fs::remove_file(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_set_aside() {
        for compress in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("audit.log");
            let config = LogConfig {
                path: path.clone(),
                backups_max: 2,
                megabytes_max: 1,
                compress,
                ..LogConfig::default()
            };
            let log = Log::open(config).unwrap();
            let line = [b'x'; 600 << 10];
            for _ in 0..5 {
                log.write_line(&line).unwrap();
                // Names tell milliseconds.
                std::thread::sleep(Duration::from_millis(2));
            }
            let names = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name());
            let names: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
            assert_eq!(names.len(), 3);
            assert_eq!(names.iter().filter(|n| n.ends_with(".log.gz")).count(), if compress { 2 } else { 0 });
            assert_eq!(path.metadata().unwrap().len(), 600 << 10);
        }
    }
}
