//! Entering the network namespace of a pod.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::types::{Doing, Error};
use crate::netlink::Netlink;

/// Whether `path` is the namespace this process is in. One that cannot be read is not.
pub fn is_host(path: &Path) -> bool {
    let id = |p: &Path| std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
    id(path).is_some_and(|there| Some(there) == id(Path::new("/proc/thread-self/ns/net")))
}

/// Opens a namespace; `None` when it no longer exists.
pub fn open(path: &str) -> Result<Option<File>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).doing(|| format!("failed to open netns {path:?}")),
    }
}

/// Runs `work` on a thread inside the namespace, with a netlink socket of that namespace.
pub fn within<T: Send>(
    netns: &File,
    path: &str,
    work: impl FnOnce(&mut Netlink) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).doing(|| format!("failed to enter netns {path:?}"))?;
            work(&mut Netlink::open().doing(|| "failed to open netlink".into())?)
        });
        thread.join().unwrap_or_else(|_| Err(Error::generic("the thread in the network namespace panicked")))
    })
}
