//! What a node may leave on a machine, and its removal: mounts and cgroups. Network leftovers belong to flannel and
//! kube-proxy.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Unmounts everything at and below the directories, deepest first. Returns what stayed.
pub fn unmount_below(directories: &[&Path]) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| directories.iter().any(|d| path.starts_with(d)))
        .collect();
    mounts.sort();
    mounts.into_iter().rev().filter(|path| umount2(path, MntFlags::MNT_DETACH).is_err()).collect()
}

/// The mount table writes blanks and the like as three octal digits.
fn unescape(path: &str) -> String {
    let mut out = Vec::with_capacity(path.len());
    let bytes = path.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = (bytes[i] == b'\\')
            .then(|| path.get(i + 1..i + 4).and_then(|d| u8::from_str_radix(d, 8).ok()))
            .flatten();
        out.push(octal.unwrap_or(bytes[i]));
        i += if octal.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Removes `kubepods` below the cgroup `root` with all below it, in every hierarchy, and `root` where nothing else is in it.
pub fn remove_cgroups(root: &str) {
    let top = Path::new("/sys/fs/cgroup");
    // Hierarchies of version 1; in version 2 these are cgroups, which do not hold one of that name.
    let hierarchies = std::fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in std::iter::once(top.to_owned()).chain(hierarchies) {
        let root = root.trim_matches('/');
        remove_cgroup(&hierarchy.join(root).join("kubepods"));
        let mut above = Path::new(root);
        while !above.as_os_str().is_empty() && std::fs::remove_dir(hierarchy.join(above)).is_ok() {
            above = above.parent().unwrap_or(Path::new(""));
        }
    }
}

fn remove_cgroup(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_escaped_mount_points() {
        for (escaped, want) in [("/a", "/a"), (r"/a\040b", "/a b"), (r"/a\134", r"/a\"), (r"/a\9", r"/a\9")] {
            assert_eq!(super::unescape(escaped), want);
        }
    }
}
