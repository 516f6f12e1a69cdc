//! The machine: what it has and who it is.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use anyhow::Result;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nix::sys::statvfs::statvfs;

use crate::config::Config;
use crate::quantity;

#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub cpus: usize,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    /// Page size in kilobytes and how much memory is set aside in such pages.
    pub hugepages: Vec<(u64, u64)>,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

impl Machine {
    pub fn detect(config: &Config) -> Result<Machine> {
        fs::create_dir_all(&config.root_dir)?;
        let disk = statvfs(&config.root_dir)?;
        let os_image = read("/etc/os-release")
            .lines()
            .find_map(|l| l.strip_prefix("PRETTY_NAME=").map(|v| v.trim_matches('"').to_owned()))
            .unwrap_or_else(|| "Linux".into());
        let hugepages = fs::read_dir("/sys/kernel/mm/hugepages")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| {
                let name = e.file_name().to_string_lossy().into_owned();
                let kb: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
                let count: u64 =
                    fs::read_to_string(e.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
                Some((kb, kb * 1024 * count))
            })
            .collect();
        let uname = nix::sys::utsname::uname()?;
        Ok(Machine {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_info("MemTotal").unwrap_or(0),
            disk_bytes: disk.blocks() * disk.fragment_size(),
            hugepages,
            machine_id: read("/etc/machine-id"),
            system_uuid: read("/sys/class/dmi/id/product_uuid"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: uname.release().to_string_lossy().into_owned(),
            os_image,
        })
    }

    pub fn capacity(&self, config: &Config) -> BTreeMap<String, Quantity> {
        let mut out = BTreeMap::from([
            ("cpu".to_owned(), Quantity(self.cpus.to_string())),
            ("memory".to_owned(), Quantity(format!("{}Ki", self.memory_bytes / 1024))),
            ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", self.disk_bytes / 1024))),
            ("pods".to_owned(), Quantity(config.max_pods.to_string())),
        ]);
        for (kb, bytes) in &self.hugepages {
            let name = if *kb >= 1 << 20 {
                format!("hugepages-{}Gi", kb >> 20)
            } else {
                format!("hugepages-{}Mi", kb >> 10)
            };
            let value = if *bytes == 0 { "0".into() } else { format!("{}Ki", bytes / 1024) };
            out.insert(name, Quantity(value));
        }
        out
    }

    /// Capacity less what is reserved for the system and what pods may never touch.
    pub fn allocatable(&self, config: &Config) -> BTreeMap<String, Quantity> {
        let mut out = self.capacity(config);
        let reserved = |name: &str| -> i64 {
            [&config.system_reserved, &config.kube_reserved]
                .iter()
                .filter_map(|m| m.get(name))
                .filter_map(|q| if name == "cpu" { quantity::milli_value(q) } else { quantity::value(q) })
                .sum()
        };
        let threshold = |signal: &str, capacity: u64| {
            config.eviction_hard.get(signal).and_then(|t| quantity::threshold(t, capacity)).unwrap_or(0)
                as i64
        };
        let cpu = self.cpus as i64 * 1000 - reserved("cpu");
        let cpu = if cpu % 1000 == 0 { (cpu / 1000).to_string() } else { format!("{cpu}m") };
        out.insert("cpu".into(), Quantity(cpu));
        let pages: u64 = self.hugepages.iter().map(|(_, bytes)| bytes).sum();
        let memory = self.memory_bytes as i64
            - pages as i64
            - reserved("memory")
            - threshold("memory.available", self.memory_bytes);
        out.insert("memory".into(), Quantity(format!("{}Ki", memory.max(0) / 1024)));
        let disk = self.disk_bytes as i64
            - reserved("ephemeral-storage")
            - threshold("nodefs.available", self.disk_bytes);
        out.insert("ephemeral-storage".into(), Quantity(disk.max(0).to_string()));
        out
    }
}

/// A line of /proc/meminfo, in bytes.
pub fn memory_info(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.split(':').next() == Some(field))?;
    let kb: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kb * 1024)
}

/// Of the file system that holds `path`: bytes free and bytes in all, inodes free and inodes in all. What is set aside
/// for root counts as neither free nor there, or a disk with much set aside would never be free enough.
pub fn free_disk(path: &Path) -> Option<(u64, u64, u64, u64)> {
    let s = statvfs(path).ok()?;
    let size = s.fragment_size();
    let set_aside = s.blocks_free().saturating_sub(s.blocks_available());
    Some((s.blocks_available() * size, (s.blocks() - set_aside) * size, s.files_available(), s.files()))
}

/// The addresses from which the machine would speak to the world. No packet is sent.
pub fn default_addresses() -> Vec<IpAddr> {
    let from = |bind: IpAddr, to: IpAddr| -> Option<IpAddr> {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.connect((to, 53)).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
    };
    let v4 = from(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(198, 51, 100, 1).into());
    let v6 = from(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    match v4.or(v6) {
        Some(ip) => vec![ip],
        None => interface_address().into_iter().collect(),
    }
}

/// Where there is no route to the world: the first address of an interface that is up.
fn interface_address() -> Option<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().ok()? {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            found.push(v4.ip().into());
        }
    }
    found.iter().copied().find(|ip| !ip.is_loopback()).or_else(|| found.first().copied())
}
