//! Host paths and the types they are declared to be of.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Makes sure that `path` is what `kind` says, creating it where the kind asks for that.
pub fn check(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    let wrong = |what: &str| Err(format!("hostPath type check failed: {shown} is not a {what}"));
    let meta = fs::metadata(path);
    match kind {
        "" => {
            // As runtimes do with a missing source of a bind mount.
            if meta.is_err() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(path)
                    .map_err(|e| format!("{shown}: {e}"))?;
            }
            Ok(())
        }
        "DirectoryOrCreate" => match meta {
            Ok(m) if m.is_dir() => Ok(()),
            Ok(_) => wrong("directory"),
            Err(_) => fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(path)
                .map_err(|e| format!("{shown}: {e}")),
        },
        "FileOrCreate" => match meta {
            Ok(m) if m.is_file() => Ok(()),
            Ok(_) => wrong("file"),
            Err(_) => fs::OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o644)
                .open(path)
                .map(drop)
                .map_err(|e| format!("{shown}: {e}")),
        },
        _ => {
            let kind_of = meta.ok().map(|m| m.file_type());
            let (fits, what) = match kind {
                "Directory" => (kind_of.is_some_and(|t| t.is_dir()), "directory"),
                "File" => (kind_of.is_some_and(|t| t.is_file()), "file"),
                "Socket" => (kind_of.is_some_and(|t| t.is_socket()), "socket file"),
                "CharDevice" => (kind_of.is_some_and(|t| t.is_char_device()), "character device"),
                "BlockDevice" => (kind_of.is_some_and(|t| t.is_block_device()), "block device"),
                other => return Err(format!("{other} is an invalid volume type")),
            };
            if fits { Ok(()) } else { wrong(what) }
        }
    }
}
