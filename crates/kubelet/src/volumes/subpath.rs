//! Parts of volumes. A container that can write to a volume could put a symbolic link where the part is expected; so
//! the part is opened beneath the volume, refusing to leave it, and what was opened is bound to a place of our own.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};

/// Binds `part` of `volume` to `place` and returns it. The part is made as a directory if it does not exist.
pub fn bind(volume: &Path, part: &str, place: &Path) -> Result<PathBuf, String> {
    if Path::new(part).components().any(|c| matches!(c, Component::ParentDir | Component::RootDir)) {
        return Err(format!("subPath {part:?} must be relative and must not contain '..'"));
    }
    let fail =
        |what: &str, e: &dyn std::fmt::Display| format!("failed to prepare subPath {part:?}: {what}: {e}");
    let root = nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| fail("volume", &e))?;
    let fd = match beneath(&root, Path::new(part)) {
        Ok(fd) => fd,
        Err(nix::errno::Errno::ENOENT) => {
            make(&root, Path::new(part)).map_err(|e| fail("creating", &e))?;
            beneath(&root, Path::new(part)).map_err(|e| fail("opening", &e))?
        }
        Err(e) => return Err(fail("opening", &e)),
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let is_dir = fs::metadata(&source).map_err(|e| fail("inspecting", &e))?.is_dir();
    if super::is_mount_point(place) {
        let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
    }
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(|e| fail("place", &e))?;
    }
    if is_dir {
        fs::create_dir_all(place).map_err(|e| fail("place", &e))?;
    } else {
        fs::write(place, b"").map_err(|e| fail("place", &e))?;
    }
    mount(Some(&source), place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|e| fail("binding", &e))?;
    Ok(place.to_path_buf())
}

fn beneath(root: &OwnedFd, part: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, part, how)
}

/// Makes the directories of `part` that are missing, one by one and each beneath the volume.
fn make(root: &OwnedFd, part: &Path) -> nix::Result<()> {
    let mut so_far = PathBuf::new();
    for component in part.components() {
        let parent = if so_far.as_os_str().is_empty() { None } else { Some(beneath(root, &so_far)?) };
        let Component::Normal(name) = component else { continue };
        so_far.push(name);
        let made = mkdirat(parent.as_ref().unwrap_or(root), name, Mode::from_bits_truncate(0o750));
        match made {
            Ok(()) => {
                // As open as the volume itself: the container's user has to get in.
                let fd = beneath(root, &so_far)?;
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                if let Ok(meta) = fs::metadata(format!("/proc/self/fd/{}", root.as_raw_fd())) {
                    let _ = fs::set_permissions(&path, meta.permissions());
                    use std::os::unix::fs::MetadataExt;
                    let _ = std::os::unix::fs::chown(&path, Some(meta.uid()), Some(meta.gid()));
                }
            }
            Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
