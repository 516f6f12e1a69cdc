//! The `nft` command: one transaction per call.

use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Applies `script` as one transaction: all of it or nothing.
pub async fn apply(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("failed to execute nft: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    // One wrong line can repeat for pages.
    let text = String::from_utf8_lossy(&output.stderr);
    let text: String = text.trim().chars().take(2000).collect();
    Err(io::Error::other(format!("nft: {text}")))
}
