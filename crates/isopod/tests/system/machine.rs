//! A network namespace that serves as a machine: its own interfaces, routes and nftables, joined to this host by a pair of
//! virtual interfaces. The host's end is the outside world.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

/// Begins the names of all that a test run makes; its process number follows.
pub const PREFIX: &str = "isopod-test-";

pub struct Machine {
    name: String,
    namespace: File,
    /// The machine's address.
    pub address: Ipv4Addr,
}

/// The wire between the machines of a test run; this host's end of it is the outside world.
pub struct Network {
    run: u32,
}

impl Network {
    pub fn new() -> Network {
        let network = Network { run: std::process::id() };
        let bridge = network.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&["address", "add", &format!("{}/29", network.address(1)), "dev", &bridge]);
        ip(&["link", "set", &bridge, "up"]);
        network
    }

    /// That of a test run which did not remove it.
    pub fn left_by(run: u32) -> Network {
        Network { run }
    }

    fn bridge(&self) -> String {
        format!("isob{}", self.run)
    }

    /// Of a range set aside for documentation, eight addresses for each test run.
    fn address(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, (self.run % 32) as u8 * 8 + number)
    }

    fn machine_name(&self, number: u8) -> String {
        format!("{PREFIX}{}-{number}", self.run)
    }

    /// Adds a machine; `number` is 1 to 5.
    pub fn add(&self, number: u8) -> Machine {
        let (name, link) = (self.machine_name(number), format!("iso{}-{number}", self.run));
        let address = self.address(number + 1);
        ip(&["netns", "add", &name]);
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        ip(&["link", "set", &link, "master", &self.bridge(), "up"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "address", "add", &format!("{address}/29"), "dev", "eth0"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        ip(&["-n", &name, "route", "add", "default", "via", &self.address(1).to_string()]);
        self.find(number).expect("open the namespace")
    }

    /// A machine that was added before.
    pub fn find(&self, number: u8) -> Option<Machine> {
        let name = self.machine_name(number);
        let namespace = File::open(format!("/run/netns/{name}")).ok()?;
        Some(Machine { name, namespace, address: self.address(number + 1) })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.bridge()]).stderr(Stdio::null()).status();
    }
}

impl Machine {
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
