//! A network namespace that serves as a machine: its own interfaces, routes and nftables, joined to this host by a pair of
//! virtual interfaces. The host's end is the outside world.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// Begins the names of all that a test run makes; its process number follows.
pub const PREFIX: &str = "isopod-test-";

pub struct Machine {
    name: String,
    namespace: File,
    /// The machine's address.
    pub address: Ipv4Addr,
}

impl Machine {
    pub fn new() -> Machine {
        let pid = std::process::id();
        let (name, link) = (format!("{PREFIX}{pid}"), format!("iso{pid}"));
        let (outside, address) = addresses(pid);
        ip(&["netns", "add", &name]);
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        ip(&["address", "add", &format!("{outside}/30"), "dev", &link]);
        ip(&["link", "set", &link, "up"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "address", "add", &format!("{address}/30"), "dev", "eth0"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        ip(&["-n", &name, "route", "add", "default", "via", &outside.to_string()]);
        Machine::left_by(pid).expect("open the namespace")
    }

    /// The machine that a test run made and did not remove.
    pub fn left_by(run: u32) -> Option<Machine> {
        let name = format!("{PREFIX}{run}");
        let namespace = File::open(format!("/run/netns/{name}")).ok()?;
        Some(Machine { name, namespace, address: addresses(run).1 })
    }

    /// A command that runs on the machine.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let namespace = self.namespace.try_clone().expect("another handle of the namespace");
        let mut command = Command::new(program);
        // SAFETY: setns is a single system call and touches nothing of the parent's.
        unsafe {
            command.pre_exec(move || {
                nix::sched::setns(namespace.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)
                    .map_err(std::io::Error::from)
            });
        }
        command
    }

    /// Names of the machine's interfaces.
    pub fn interfaces(&self) -> Vec<String> {
        let text = output(self.command("ip").args(["-o", "link"]));
        text.lines()
            .filter_map(|l| l.split_whitespace().nth(1))
            .map(|n| n.trim_end_matches(':').split('@').next().unwrap_or(n).to_owned())
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The pair of interfaces goes with the namespace.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// The host's and the machine's, of a range set aside for documentation: four addresses for each test run.
fn addresses(run: u32) -> (Ipv4Addr, Ipv4Addr) {
    let block = (run % 63) as u8 * 4;
    (Ipv4Addr::new(192, 0, 2, block + 1), Ipv4Addr::new(192, 0, 2, block + 2))
}

fn ip(arguments: &[&str]) {
    output(Command::new("ip").args(arguments));
}

/// Runs a command to its end; panics with what it said when it fails.
pub fn output(command: &mut Command) -> String {
    match try_output(command) {
        Ok(text) => text,
        Err(why) => panic!("{why}"),
    }
}

/// Standard output, or why it failed.
pub fn try_output(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}").replace('"', "");
    let Output { status, stdout, stderr } = command.output().map_err(|e| format!("{shown}: {e}"))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(stdout);
    }
    Err(format!("{shown}: {status}\n{stdout}{}", String::from_utf8_lossy(&stderr)))
}
