//! Directories of files that change all at once: the files live in a directory of their own, `..data` points to it,
//! and what users see are links through `..data`. Swapping that one link swaps everything.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Who owns it, where that is not root.
    pub owner: Option<u32>,
}

/// By path relative to the volume.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";

/// Whether `path` stays inside its volume and out of this module's way.
pub fn acceptable(path: &str) -> bool {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    !parts.is_empty()
        && !path.starts_with("..")
        && parts.iter().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// Makes `dir` show exactly `payload`. Nothing is touched if it does already.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    if let Some(bad) = payload.keys().find(|p| !acceptable(p)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {bad:?}")));
    }
    fs::create_dir_all(dir)?;
    let old = fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && same(&dir.join(old), payload)
    {
        return Ok(false);
    }
    let stamp = Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let name = format!("{stamp}.{}", rand::random::<u32>());
    let fresh = dir.join(&name);
    fs::create_dir(&fresh)?;
    // The owner's group gets in where one is set; everybody may otherwise, as the files' modes decide.
    let dir_mode = 0o755;
    set(&fresh, dir_mode, None, group, true)?;
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = Path::new(path).parent() {
            let mut at = fresh.clone();
            for part in parent.components() {
                at.push(part);
                if !at.exists() {
                    fs::create_dir(&at)?;
                    set(&at, dir_mode, None, group, true)?;
                }
            }
        }
        fs::write(&target, &file.data)?;
        let mode =
            if group.is_some() { file.mode | (file.mode & 0o700) >> 3 & 0o050 | 0o040 } else { file.mode };
        set(&target, mode, file.owner, group, false)?;
    }
    let staged = dir.join("..data_tmp");
    let _ = fs::remove_file(&staged);
    symlink(&name, &staged)?;
    fs::rename(&staged, dir.join(DATA))?;

    let tops: Vec<PathBuf> = payload
        .keys()
        .filter_map(|p| Path::new(p).components().find(|c| matches!(c, Component::Normal(_))))
        .map(|c| c.as_os_str().into())
        .collect();
    for top in &tops {
        let link = dir.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(top), &link)?;
        }
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let shown = PathBuf::from(entry.file_name());
        let internal = shown.to_string_lossy().starts_with("..");
        if !internal && !tops.contains(&shown) {
            let _ = fs::remove_file(entry.path());
        }
    }
    if let Some(old) = old
        && old.components().count() == 1
    {
        let _ = fs::remove_dir_all(dir.join(old));
    }
    Ok(true)
}

fn set(path: &Path, mode: u32, owner: Option<u32>, group: Option<u32>, is_dir: bool) -> io::Result<()> {
    if owner.is_some() || group.is_some() {
        std::os::unix::fs::chown(path, owner, group)?;
    }
    let mode = if is_dir && group.is_some() { mode | 0o2050 } else { mode };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn same(dir: &Path, payload: &Payload) -> bool {
    let mut found = 0;
    let mut stack = vec![dir.to_path_buf()];
    while let Some(at) = stack.pop() {
        let Ok(entries) = fs::read_dir(&at) else { return false };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                stack.push(path);
                continue;
            }
            let Ok(relative) = path.strip_prefix(dir) else { return false };
            let wanted = payload.iter().find(|(p, _)| Path::new(p) == relative);
            match wanted {
                Some((_, file)) if fs::read(&path).is_ok_and(|d| d == file.data) => found += 1,
                _ => return false,
            }
        }
    }
    found == payload.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps() {
        let tmp = tempfile::tempdir().unwrap();
        let file = |d: &str| File { data: d.into(), mode: 0o644, owner: None };
        let one = Payload::from([("a".into(), file("1")), ("d/b".into(), file("2"))]);
        assert!(write(tmp.path(), &one, None).unwrap());
        assert!(!write(tmp.path(), &one, None).unwrap());
        assert_eq!(fs::read_to_string(tmp.path().join("d/b")).unwrap(), "2");
        let two = Payload::from([("a".into(), file("3"))]);
        assert!(write(tmp.path(), &two, None).unwrap());
        assert_eq!(fs::read_to_string(tmp.path().join("a")).unwrap(), "3");
        assert!(!tmp.path().join("d").exists());
        let entries: Vec<_> = fs::read_dir(tmp.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(entries.len(), 3, "{entries:?}");
        assert!(write(tmp.path(), &Payload::new(), None).unwrap());
        assert!(!tmp.path().join("a").exists());
        for bad in ["../x", "/x", "", "..x", "a/../b"] {
            assert!(!acceptable(bad), "{bad}");
        }
    }
}
