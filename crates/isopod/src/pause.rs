//! The sandbox image: a program that only waits, holding a pod's namespaces. It is 300 bytes, so Isopod carries it
//! and needs no registry for it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use oci_image::{Image, RunConfig};

use crate::images;

/// The name under which the image is imported.
pub const IMAGE: &str = "isopod.local/pause:1";

/// Gives a kubelet's own runtime the image before the first pod needs it.
pub fn importer() -> kubelet::RuntimeReady {
    Arc::new(|endpoint: String| {
        Box::pin(async move {
            let socket = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(&endpoint));
            images::ensure(&socket, IMAGE, image).await
        })
    })
}

/// x86-64: ignore SIGCHLD, so that the kernel reaps what is re-parented to process 1 of a shared namespace; then
/// pause for ever. As process 1 it is stopped by SIGKILL, which is what runtimes send to sandboxes.
#[rustfmt::skip]
const X86_64: [u8; 68] = [
    0xb8, 0x0d, 0x00, 0x00, 0x00,             // mov  eax, 13 (rt_sigaction)
    0xbf, 0x11, 0x00, 0x00, 0x00,             // mov  edi, 17 (SIGCHLD)
    0x48, 0x8d, 0x35, 0x13, 0x00, 0x00, 0x00, // lea  rsi, [rip+0x13] (action)
    0x31, 0xd2,                               // xor  edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00,       // mov  r10d, 8
    0x0f, 0x05,                               // syscall
    0xb8, 0x22, 0x00, 0x00, 0x00,             // mov  eax, 34 (pause)
    0x0f, 0x05,                               // syscall
    0xeb, 0xf7,                               // jmp  to the mov above
    // action: handler SIG_IGN, no flags, no restorer, empty mask
    1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// The program as a static ELF executable for this machine.
pub fn program() -> Result<Vec<u8>> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "no built-in pause program for {}; name a sandbox image with --pod-infra-container-image",
            std::env::consts::ARCH
        );
    }
    const HEADERS: u64 = 64 + 56;
    const BASE: u64 = 0x40_0000;
    let size = HEADERS + X86_64.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |elf: &mut Vec<u8>, n: u16| elf.extend_from_slice(&n.to_le_bytes());
    let word = |elf: &mut Vec<u8>, n: u32| elf.extend_from_slice(&n.to_le_bytes());
    let long = |elf: &mut Vec<u8>, n: u64| elf.extend_from_slice(&n.to_le_bytes());
    half(&mut elf, 2); // executable
    half(&mut elf, 62); // x86-64
    word(&mut elf, 1);
    long(&mut elf, BASE + HEADERS); // entry point
    long(&mut elf, 64); // program headers
    long(&mut elf, 0);
    word(&mut elf, 0);
    for n in [64, 56, 1, 0, 0, 0] {
        half(&mut elf, n);
    }
    word(&mut elf, 1); // loadable segment
    word(&mut elf, 5); // read, execute
    for n in [0, BASE, BASE, size, size, 0x1000] {
        long(&mut elf, n);
    }
    elf.extend_from_slice(&X86_64);
    Ok(elf)
}

/// The image archive.
pub fn image() -> Result<Vec<u8>> {
    let mut image = Image::new(RunConfig {
        entrypoint: vec!["/pause".into()],
        user: "65535:65535".into(),
        ..RunConfig::default()
    });
    image.file("/pause", 0o755, program()?);
    let mut archive = Vec::new();
    image.write(IMAGE, &mut archive)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_program_runs_and_waits() {
        let path = std::env::temp_dir().join(format!("isopod-pause-{}", std::process::id()));
        std::fs::write(&path, super::program().unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        // It has begun to wait when the kernel reports it asleep in pause(2), system call 34.
        let syscall = format!("/proc/{}/syscall", child.id());
        let waits = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            std::fs::read_to_string(&syscall).is_ok_and(|s| s.starts_with("34 "))
        });
        let alive = child.try_wait().unwrap().is_none();
        let _ = child.kill();
        let _ = child.wait();
        let _ = std::fs::remove_file(&path);
        assert!(alive, "exited");
        assert!(waits, "does not wait in pause(2)");
    }
}
