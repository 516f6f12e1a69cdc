//! Programs out of the distribution's packages, without installing them on this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Packages unpacked below one directory, with whatever they depend on that this machine lacks.
pub struct Packages {
    root: PathBuf,
}

impl Packages {
    /// Downloads and unpacks `packages` below `directory`. Dependencies whose name begins with one of `without` are
    /// left out.
    pub fn fetch(directory: &Path, packages: &[&str], without: &[&str]) -> Result<Packages> {
        // ldd tells libraries by the path they are looked for at, and only absolute ones are told from its other words.
        let directory = std::path::absolute(directory)?;
        let (root, archives) = (directory.join("root"), directory.join("archives"));
        std::fs::create_dir_all(&root)?;
        std::fs::create_dir_all(&archives)?;
        let mut wanted: BTreeSet<String> = packages.iter().map(|p| (*p).to_owned()).collect();
        for package in dependencies(packages)? {
            if !without.iter().any(|w| package.starts_with(w)) && !installed(&package)? {
                wanted.insert(package);
            }
        }
        let status = Command::new("apt-get")
            .args(["download", "-q", "-o", "APT::Sandbox::User=root"])
            .args(&wanted)
            .current_dir(&archives)
            .stdout(std::process::Stdio::null())
            .status()
            .context("run apt-get")?;
        if !status.success() {
            bail!("apt-get could not download {wanted:?}; run apt-get update first");
        }
        for archive in std::fs::read_dir(&archives)? {
            let status = Command::new("dpkg-deb").arg("-x").arg(archive?.path()).arg(&root).status()?;
            if !status.success() {
                bail!("dpkg-deb could not unpack a package below {}", archives.display());
            }
        }
        Ok(Packages { root })
    }

    /// Where a file of the packages lies here.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Adds a program of the packages with the libraries it loads, at the paths it has in the packages.
    pub fn program(&self, image: &mut oci_image::Image, path: &str) -> Result<()> {
        let program = self.path(path);
        image.copy(&program, path)?;
        let libraries = [
            "lib/x86_64-linux-gnu",
            "usr/lib/x86_64-linux-gnu",
            "lib/aarch64-linux-gnu",
            "usr/lib/aarch64-linux-gnu",
        ]
        .map(|d| self.root.join(d).display().to_string())
        .join(":");
        let output = Command::new("ldd")
            .arg(&program)
            .env("LD_LIBRARY_PATH", libraries)
            .output()
            .context("run ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if text.contains("not found") {
            bail!("{path} lacks a library:\n{text}");
        }
        for library in text.split_whitespace().filter(|w| w.starts_with('/')) {
            let library = Path::new(library.trim_end_matches(':'));
            let inside =
                library.strip_prefix(&self.root).map_or(library.to_owned(), |p| Path::new("/").join(p));
            image.copy(library, inside)?;
        }
        Ok(())
    }
}

fn dependencies(packages: &[&str]) -> Result<BTreeSet<String>> {
    let output = Command::new("apt-cache")
        .args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"])
        .args(["--no-replaces", "--no-enhances", "--no-pre-depends"])
        .args(packages)
        .output()
        .context("run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Package names stand at the beginning of lines; virtual packages are in angle brackets.
    Ok(text
        .lines()
        .filter(|l| l.starts_with(|c: char| c.is_ascii_alphanumeric()))
        .filter(|l| l.starts_with("lib") || packages.contains(l))
        .map(str::to_owned)
        .collect())
}

fn installed(package: &str) -> Result<bool> {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("install ok installed"))
}
