//! Tells when a configuration file may have changed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// Files are looked at this often even where the kernel tells of nothing, as upstream does.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Editors and mounts change a file in several steps.
const SETTLE: Duration = Duration::from_millis(50);

struct Source(Inotify);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A file that is looked after. Its directory is watched, since files are mostly replaced, not written.
pub struct FileWatch {
    path: PathBuf,
    kernel: Option<AsyncFd<Source>>,
}

impl FileWatch {
    pub fn new(path: &Path) -> FileWatch {
        let kernel = watch(path);
        if let Err(error) = &kernel {
            tracing::warn!(path = %path.display(), %error, "the file is looked at once a minute only");
        }
        FileWatch { path: path.to_owned(), kernel: kernel.ok() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the file may have changed.
    pub async fn changed(&self) {
        let told = async {
            let Some(kernel) = &self.kernel else { return std::future::pending().await };
            let Ok(mut guard) = kernel.readable().await else { return std::future::pending().await };
            while guard.get_inner().0.read_events().is_ok_and(|e| !e.is_empty()) {}
            guard.clear_ready();
            tokio::time::sleep(SETTLE).await;
        };
        let _ = tokio::time::timeout(LOOK_EVERY, told).await;
    }
}

fn watch(path: &Path) -> io::Result<AsyncFd<Source>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE;
    inotify.add_watch(directory, flags)?;
    // SAFETY: `Source` owns one descriptor, and nothing replaces or closes it while `AsyncFd` has it.
    Ok(unsafe { AsyncFd::register(Source(inotify))? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_of_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, "1").unwrap();
        let watch = FileWatch::new(&path);
        std::fs::write(&path, "2").unwrap();
        watch.changed().await;
        std::fs::write(directory.path().join("b"), "3").unwrap();
        std::fs::rename(directory.path().join("b"), &path).unwrap();
        watch.changed().await;
    }
}
