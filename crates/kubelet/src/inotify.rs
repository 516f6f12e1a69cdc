//! Changes of files, as the kernel tells them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

struct Source(Inotify);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells when something at its paths has changed.
pub struct Watcher(AsyncFd<Source>);

impl Watcher {
    pub fn new() -> io::Result<Watcher> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: `Source` owns one descriptor, and nothing replaces or closes it while `AsyncFd` has it.
        let source = unsafe { AsyncFd::register(Source(inotify))? };
        Ok(Watcher(source))
    }

    pub fn add(&self, path: &Path, flags: AddWatchFlags) -> io::Result<()> {
        self.0.get_ref().0.add_watch(path, flags)?;
        Ok(())
    }

    /// Waits for a change and takes all that have happened.
    pub async fn changed(&self) {
        let Ok(mut guard) = self.0.readable().await else { return std::future::pending().await };
        while guard.get_inner().0.read_events().is_ok_and(|e| !e.is_empty()) {}
        guard.clear_ready();
    }
}
