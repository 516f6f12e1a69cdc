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

/// Removes the cgroup `name` with all below it, in every hierarchy.
pub fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    remove_cgroup(&root.join(name));
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        // Hierarchies of version 1; in version 2 these are cgroups, which do not hold one of that name.
        remove_cgroup(&entry.path().join(name));
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
