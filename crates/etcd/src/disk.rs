//! The disk as a handle: a flat directory of append-only files. Tests substitute one that loses unsynced writes,
//! tears the last one, or runs full.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory of append-only files.
pub trait Disk: Send + Sync + 'static {
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a file for reading at any place, also while it grows and after it was removed.
    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadFile>>;
    /// Opens a file for appending after cutting it to `len` bytes; creates it when it is missing.
    fn append_to(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>>;
    /// Atomic and durable.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations and removals durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file to read from.
pub trait ReadFile: Send + Sync {
    fn size(&self) -> io::Result<u64>;
    /// Fills `out` from `offset` on; fails with `UnexpectedEof` where the file is shorter.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A file that only grows.
pub trait AppendFile: Send {
    /// All or nothing as far as the process sees; durable only after [`AppendFile::sync`].
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file back to `len` bytes after a failed append.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// A real directory. Files are created 0600; a lock keeps a second process out.
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Opens (creating it 0700 when missing) and locks a directory.
    pub fn open(path: &Path) -> io::Result<Directory> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("LOCK"))?;
        lock.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use by another process", path.display()),
            ),
            std::fs::TryLockError::Error(e) => e,
        })?;
        Ok(Directory { path: path.to_owned(), _lock: lock })
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadFile>> {
        Ok(Arc::new(File::open(self.path.join(name))?))
    }

    fn append_to(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.path.join(name))?;
        if file.metadata()?.len() != len {
            file.set_len(len)?;
            file.sync_all()?;
        }
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))?;
        self.sync()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl ReadFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }
}

impl AppendFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)?;
        self.sync_all()
    }
}
