//! Applying nftables rules through the `nft` command: one transaction per call.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Applies `script` as one transaction.
pub fn apply(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("failed to execute nft: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// Lists a table, `None` when it does not exist.
pub fn table(family: &str, name: &str) -> io::Result<Option<Value>> {
    let output = Command::new("nft")
        .args(["-j", "list", "table", family, name])
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("failed to execute nft: {e}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        if text.contains("No such file or directory") {
            return Ok(None);
        }
        return Err(io::Error::other(format!("nft: {}", text.trim())));
    }
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}

/// Removes a table whether it exists or not.
pub fn delete_table(family: &str, name: &str) -> io::Result<()> {
    apply(&format!("add table {family} {name}\ndelete table {family} {name}\n"))
}
