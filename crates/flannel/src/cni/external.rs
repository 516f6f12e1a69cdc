//! Executing a plugin that is not ours, from `CNI_PATH`.

use std::io::Write;
use std::process::{Command as Process, Stdio};

use serde_json::Value;

use super::types::{DECODING, Doing, Error, Success};
use super::{Command, Request, is_identifier};

pub fn invoke(kind: &str, command: Command, request: &Request) -> Result<Option<Success>, Error> {
    if !is_identifier(kind) {
        return Err(Error::config(format!("invalid plugin name: {kind}")));
    }
    let binary = request.path.iter().map(|dir| dir.join(kind)).find(|p| p.is_file());
    let Some(binary) = binary else {
        return Err(Error::generic(format!("failed to find plugin {kind:?} in path {:?}", request.path)));
    };
    let path: Vec<String> = request.path.iter().map(|p| p.display().to_string()).collect();
    let mut child = Process::new(&binary)
        .env("CNI_COMMAND", command.name())
        .env("CNI_CONTAINERID", &request.container_id)
        .env("CNI_NETNS", &request.netns)
        .env("CNI_IFNAME", &request.ifname)
        .env("CNI_ARGS", &request.raw_args)
        .env("CNI_PATH", path.join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .doing(|| format!("failed to execute {}", binary.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin may exit without reading; its exit code tells.
        let _ = stdin.write_all(request.config.to_string().as_bytes());
    }
    let output = child.wait_with_output().doing(|| format!("failed to wait for {}", binary.display()))?;
    if !output.status.success() {
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        return Err(Error {
            code: value["code"].as_u64().unwrap_or(100) as u32,
            msg: value["msg"]
                .as_str()
                .map_or_else(|| format!("{kind} failed: {}", output.status), str::to_owned),
            details: value["details"].as_str().unwrap_or_default().to_owned(),
        });
    }
    if command != Command::Add {
        return Ok(None);
    }
    let value: Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::new(DECODING, format!("plugin {kind} printed no result: {e}")))?;
    Success::from_json(&value).map(Some)
}
