//! Makes container images without a registry or a daemon: a root file system in one layer, written as the archive
//! that `docker save` writes and containerd imports.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

/// How a container of the image runs (the `config` object of the OCI image specification).
#[derive(Clone, Debug, Default)]
pub struct RunConfig {
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub exposed_ports: Vec<String>,
}

#[derive(Clone, Debug)]
enum Content {
    Directory,
    Bytes(Vec<u8>),
    Host(PathBuf),
    Link(PathBuf),
}

#[derive(Clone, Debug)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    content: Content,
}

/// An image being put together. Paths inside are absolute; parents are made as needed.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub config: RunConfig,
    entries: BTreeMap<PathBuf, Entry>,
}

impl Image {
    pub fn new(config: RunConfig) -> Image {
        Image { config, entries: BTreeMap::new() }
    }

    fn put(&mut self, path: &Path, mode: u32, owner: (u32, u32), content: Content) {
        let path = path.strip_prefix("/").unwrap_or(path).to_owned();
        let mut parent = path.parent();
        while let Some(p) = parent.filter(|p| !p.as_os_str().is_empty()) {
            self.entries.entry(p.to_owned()).or_insert(Entry {
                mode: 0o755,
                owner: (0, 0),
                content: Content::Directory,
            });
            parent = p.parent();
        }
        self.entries.insert(path, Entry { mode, owner, content });
    }

    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32, owner: (u32, u32)) -> &mut Image {
        self.put(path.as_ref(), mode, owner, Content::Directory);
        self
    }

    pub fn file(&mut self, path: impl AsRef<Path>, mode: u32, bytes: impl Into<Vec<u8>>) -> &mut Image {
        self.put(path.as_ref(), mode, (0, 0), Content::Bytes(bytes.into()));
        self
    }

    pub fn link(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) -> &mut Image {
        self.put(path.as_ref(), 0o777, (0, 0), Content::Link(target.into()));
        self
    }

    /// Copies a file of this machine to `to`.
    pub fn copy(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<&mut Image> {
        let from = from.as_ref();
        let mode =
            std::fs::metadata(from).with_context(|| format!("copy {} into the image", from.display()))?;
        self.put(
            to.as_ref(),
            mode.permissions().mode() & 0o7777,
            (0, 0),
            Content::Host(from.canonicalize()?),
        );
        Ok(self)
    }

    /// Copies a directory of this machine, links as links.
    pub fn copy_tree(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<&mut Image> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let meta = std::fs::symlink_metadata(from).with_context(|| format!("read {}", from.display()))?;
        if meta.is_symlink() {
            self.link(to, std::fs::read_link(from)?);
        } else if meta.is_dir() {
            self.put(to, meta.mode() & 0o7777, (meta.uid(), meta.gid()), Content::Directory);
            for entry in std::fs::read_dir(from)? {
                let entry = entry?;
                self.copy_tree(entry.path(), to.join(entry.file_name()))?;
            }
        } else if meta.is_file() {
            self.put(to, meta.mode() & 0o7777, (meta.uid(), meta.gid()), Content::Host(from.to_owned()));
        }
        Ok(self)
    }

    /// Copies a program of this machine to the same path, with every shared library it loads.
    pub fn program(&mut self, path: impl AsRef<Path>) -> Result<&mut Image> {
        let path = path.as_ref();
        self.copy(path, path)?;
        for library in shared_libraries(path)? {
            self.copy(&library, &library)?;
        }
        Ok(self)
    }

    /// Writes the archive. `name` is the full reference, such as `isopod.local/nginx:1`.
    pub fn write(&self, name: &str, out: impl Write) -> Result<()> {
        let layer = self.layer()?;
        let diff_id = hex(&Sha256::digest(&layer));
        let c = &self.config;
        let ports: BTreeMap<&str, serde_json::Value> =
            c.exposed_ports.iter().map(|p| (p.as_str(), json!({}))).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": c.entrypoint, "Cmd": c.command, "Env": c.env, "WorkingDir": c.working_dir,
                "User": c.user, "ExposedPorts": ports,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "isopod"}],
        }))?;
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let layer_name = format!("{diff_id}/layer.tar");
        let manifest = serde_json::to_vec(
            &json!([{"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}]),
        )?;
        let mut archive = tar::Builder::new(out);
        for (name, bytes) in
            [(&layer_name, &layer), (&config_name, &config), (&"manifest.json".into(), &manifest)]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, &bytes[..])?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(entry.mode);
            header.set_uid(entry.owner.0.into());
            header.set_gid(entry.owner.1.into());
            header.set_size(0);
            match &entry.content {
                Content::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    layer.append_data(&mut header, path, std::io::empty())?;
                }
                Content::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    layer.append_link(&mut header, path, target)?;
                }
                Content::Bytes(bytes) => {
                    header.set_size(bytes.len() as u64);
                    layer.append_data(&mut header, path, &bytes[..])?;
                }
                Content::Host(from) => {
                    let bytes = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
                    header.set_size(bytes.len() as u64);
                    layer.append_data(&mut header, path, &bytes[..])?;
                }
            }
        }
        Ok(layer.into_inner()?)
    }
}

/// The OCI name of this machine's architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The libraries the dynamic loader would load for `program`, and the loader; none for static programs.
fn shared_libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("not found") {
        bail!("{} lacks a library:\n{text}", program.display());
    }
    // A static program makes ldd fail; that is no error here.
    Ok(text
        .split_whitespace()
        .filter(|w| w.starts_with('/'))
        .map(|w| w.trim_end_matches(':').into())
        .collect())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_what_was_put_in() {
        let mut image = Image::new(RunConfig { command: vec!["/bin/x".into()], ..RunConfig::default() });
        image.file("/bin/x", 0o755, "hello").link("/x", "bin/x").directory("/tmp", 0o1777, (0, 0));
        let mut bytes = Vec::new();
        image.write("isopod.local/x:1", &mut bytes).unwrap();
        let mut names = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            if name.ends_with("layer.tar") {
                for inner in tar::Archive::new(&mut entry).entries().unwrap() {
                    names.push(inner.unwrap().path().unwrap().to_string_lossy().into_owned());
                }
            } else {
                names.push(name);
            }
        }
        assert!(names.iter().any(|n| n == "manifest.json"));
        assert!(
            ["bin", "bin/x", "tmp", "x"].iter().all(|n| names.iter().any(|m| m.trim_end_matches('/') == *n)),
            "{names:?}"
        );
    }
}
