//! Control groups of pods: names, limits, and their coming and going. Version 1 (one hierarchy per controller) and
//! version 2 (one for all); with the systemd driver the slices are systemd's to make.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::cri::api::LinuxContainerResources;
use crate::pod::spec::{self, Qos};
use crate::quantity;

const ROOT: &str = "/sys/fs/cgroup";
const CPU_PERIOD: i64 = 100_000;
const CPU_SHARES_MIN: i64 = 2;
const CPU_SHARES_MAX: i64 = 262_144;

#[derive(Clone, Debug)]
pub struct Cgroups {
    pub v2: bool,
    pub systemd: bool,
    /// Path of the group that holds all pods: `kubepods` below the configured root.
    pods: String,
    /// Mounted hierarchies; one for version 2.
    hierarchies: Vec<PathBuf>,
    memory_capacity: i64,
}

impl Cgroups {
    /// `root` is the path below which the pods' groups are made; empty or `/` for the top.
    pub fn detect(systemd: bool, root: &str, memory_capacity: i64) -> Cgroups {
        let v2 = Path::new(ROOT).join("cgroup.controllers").exists();
        let hierarchies = if v2 {
            vec![PathBuf::from(ROOT)]
        } else {
            let mut dirs: Vec<PathBuf> = fs::read_dir(ROOT)
                .into_iter()
                .flatten()
                .flatten()
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path())
                .collect();
            dirs.sort();
            dirs
        };
        Cgroups { v2, systemd, pods: pods_group(root), hierarchies, memory_capacity }
    }

    /// What CRI is told as the parent of a pod's containers.
    pub fn parent(&self, pod: &Pod) -> String {
        let uid = spec::uid(pod);
        let class = match spec::qos(pod) {
            Qos::Guaranteed => "",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        };
        if self.systemd {
            // A slice's name tells its place: a-b.slice lies in a.slice.
            let (uid, pods) = (uid.replace('-', "_"), self.pods.replace('/', "-"));
            match class {
                "" => format!("{pods}-pod{uid}.slice"),
                class => format!("{pods}-{class}-pod{uid}.slice"),
            }
        } else {
            match class {
                "" => format!("/{}/pod{uid}", self.pods),
                class => format!("/{}/{class}/pod{uid}", self.pods),
            }
        }
    }

    /// Makes the groups that all pods share.
    pub fn prepare(&self, cpu_milli: i64) {
        if self.systemd {
            return;
        }
        for (path, shares) in [
            (self.pods.clone(), milli_to_shares(cpu_milli)),
            (format!("{}/burstable", self.pods), CPU_SHARES_MIN),
            (format!("{}/besteffort", self.pods), CPU_SHARES_MIN),
        ] {
            if let Err(error) = self.make(&path).and_then(|()| self.set_shares(&path, shares)) {
                tracing::warn!(path, %error, "control group");
            }
        }
    }

    fn make(&self, path: &str) -> io::Result<()> {
        if self.v2 {
            // A child has the controllers that each of its parents hands down.
            let mut dir = PathBuf::from(ROOT);
            for part in Path::new(path).components() {
                let control = dir.join("cgroup.subtree_control");
                for controller in ["+cpu", "+cpuset", "+memory", "+io", "+pids", "+hugetlb"] {
                    let _ = fs::write(&control, controller);
                }
                dir.push(part);
                fs::create_dir_all(&dir)?;
            }
            return Ok(());
        }
        for controller in ["cpu", "memory"] {
            if let Some(base) = self.controller(controller) {
                fs::create_dir_all(base.join(path))?;
            }
        }
        Ok(())
    }

    fn controller(&self, name: &str) -> Option<PathBuf> {
        if self.v2 {
            return self.hierarchies.first().cloned();
        }
        // Hierarchies may be joint, as in "cpu,cpuacct".
        self.hierarchies
            .iter()
            .find(|h| h.file_name().is_some_and(|n| n.to_string_lossy().split(',').any(|c| c == name)))
            .cloned()
    }

    fn write(&self, controller: &str, path: &str, file: &str, value: &str) -> io::Result<()> {
        match self.controller(controller) {
            Some(base) => fs::write(base.join(path).join(file), value),
            None => Ok(()),
        }
    }

    fn set_shares(&self, path: &str, shares: i64) -> io::Result<()> {
        if self.v2 {
            self.write("cpu", path, "cpu.weight", &shares_to_weight(shares).to_string())
        } else {
            self.write("cpu", path, "cpu.shares", &shares.to_string())
        }
    }

    /// Makes a pod's own group with the limits of the pod as a whole.
    pub fn make_pod(&self, pod: &Pod) -> io::Result<()> {
        if self.systemd {
            return Ok(());
        }
        let path = self.parent(pod);
        let path = path.trim_start_matches('/');
        self.make(path)?;
        let totals = pod_totals(pod);
        self.set_shares(path, milli_to_shares(totals.cpu_request))?;
        let quota = totals.cpu_limit.map(|cpu| (cpu * CPU_PERIOD / 1000).max(1000));
        if self.v2 {
            let quota = quota.map_or_else(|| "max".to_owned(), |q| q.to_string());
            self.write("cpu", path, "cpu.max", &format!("{quota} {CPU_PERIOD}"))?;
            let memory = totals.memory_limit.map_or_else(|| "max".to_owned(), |m| m.to_string());
            self.write("memory", path, "memory.max", &memory)
        } else {
            self.write("cpu", path, "cpu.cfs_period_us", &CPU_PERIOD.to_string())?;
            self.write("cpu", path, "cpu.cfs_quota_us", &quota.unwrap_or(-1).to_string())?;
            self.write(
                "memory",
                path,
                "memory.limit_in_bytes",
                &totals.memory_limit.unwrap_or(-1).to_string(),
            )
        }
    }

    /// Removes what is left of a pod's group; processes in it are already gone.
    pub fn remove_pod(&self, pod: &Pod) {
        if self.systemd {
            return;
        }
        let path = self.parent(pod);
        for base in &self.hierarchies {
            remove_tree(&base.join(path.trim_start_matches('/')));
        }
    }

    /// CRI's form of a container's limits.
    pub fn container_resources(&self, pod: &Pod, container: &Container) -> LinuxContainerResources {
        let resources = container.resources.as_ref();
        let mut out = linux_resources(resources);
        out.oom_score_adj = self.oom_score_adj(pod, container);
        if self.v2 {
            out.unified.insert("memory.oom.group".into(), "1".into());
        }
        out
    }

    fn oom_score_adj(&self, pod: &Pod, container: &Container) -> i64 {
        // Node-critical pods go last.
        if spec::spec(pod).priority.unwrap_or(0) >= 2_000_000_000 {
            return -997;
        }
        match spec::qos(pod) {
            Qos::Guaranteed => -997,
            Qos::BestEffort => 1000,
            Qos::Burstable => {
                let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
                let memory = quantity::of(requests, "memory").unwrap_or(0);
                let share = 1000 - 1000 * memory / self.memory_capacity.max(1);
                share.clamp(3, 999)
            }
        }
    }
}

fn pods_group(root: &str) -> String {
    match root.trim_matches('/') {
        "" => "kubepods".to_owned(),
        root => format!("{root}/kubepods"),
    }
}

fn remove_tree(dir: &Path) {
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                remove_tree(&entry.path());
            }
        }
        let _ = fs::remove_dir(dir);
    }
}

pub fn milli_to_shares(milli: i64) -> i64 {
    if milli == 0 { CPU_SHARES_MIN } else { (milli * 1024 / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX) }
}

fn shares_to_weight(shares: i64) -> i64 {
    1 + (shares.clamp(CPU_SHARES_MIN, CPU_SHARES_MAX) - 2) * 9999 / 262_142
}

fn linux_resources(resources: Option<&ResourceRequirements>) -> LinuxContainerResources {
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    let cpu_limit = quantity::milli_of(limits, "cpu").unwrap_or(0);
    let cpu_request = quantity::milli_of(requests, "cpu").unwrap_or(cpu_limit);
    let mut out = LinuxContainerResources {
        cpu_shares: milli_to_shares(cpu_request),
        cpu_period: CPU_PERIOD,
        memory_limit_in_bytes: quantity::of(limits, "memory").unwrap_or(0),
        ..LinuxContainerResources::default()
    };
    if cpu_limit > 0 {
        out.cpu_quota = (cpu_limit * CPU_PERIOD / 1000).max(1000);
    }
    for (name, value) in limits.into_iter().flatten() {
        if let Some(size) = name.strip_prefix("hugepages-")
            && let (Some(page), Some(limit)) = (quantity::value(size), quantity::value(&value.0))
        {
            let page_size = match page {
                p if p >= 1 << 30 => format!("{}GB", p >> 30),
                p => format!("{}MB", p >> 20),
            };
            out.hugepage_limits.push(crate::cri::api::HugepageLimit { page_size, limit: limit as u64 });
        }
    }
    out
}

/// What a pod as a whole asks for and may use.
#[derive(Debug, PartialEq)]
pub struct Totals {
    pub cpu_request: i64,
    pub memory_request: i64,
    /// Only where every container has one.
    pub cpu_limit: Option<i64>,
    pub memory_limit: Option<i64>,
}

pub fn pod_totals(pod: &Pod) -> Totals {
    let requests = |c: &Container, name: &str| {
        let r = c.resources.as_ref();
        let get = |l: Option<&quantity::Resources>| match name {
            "cpu" => quantity::milli_of(l, name),
            _ => quantity::of(l, name),
        };
        get(r.and_then(|r| r.requests.as_ref()))
            .or_else(|| get(r.and_then(|r| r.limits.as_ref())))
            .unwrap_or(0)
    };
    let limit = |c: &Container, name: &str| {
        let l = c.resources.as_ref().and_then(|r| r.limits.as_ref());
        match name {
            "cpu" => quantity::milli_of(l, name),
            _ => quantity::of(l, name),
        }
    };
    let overhead = spec::spec(pod).overhead.as_ref();
    let pod_level = spec::spec(pod).resources.as_ref();
    let fold = |of: &dyn Fn(&Container) -> i64| {
        let mut sidecars = 0;
        let mut peak = 0;
        for c in spec::init_containers(pod) {
            if spec::is_sidecar(c) {
                sidecars += of(c);
                peak = peak.max(sidecars);
            } else {
                peak = peak.max(sidecars + of(c));
            }
        }
        let main: i64 = spec::spec(pod).containers.iter().map(of).sum();
        peak.max(main + sidecars)
    };
    let whole = |name: &str| -> Option<i64> {
        let all = spec::init_containers(pod).iter().chain(&spec::spec(pod).containers);
        let every = all.into_iter().all(|c| limit(c, name).is_some_and(|l| l > 0));
        every.then(|| fold(&|c| limit(c, name).unwrap_or(0)))
    };
    let extra_cpu = quantity::milli_of(overhead, "cpu").unwrap_or(0);
    let extra_memory = quantity::of(overhead, "memory").unwrap_or(0);
    let level = |list: fn(&ResourceRequirements) -> Option<&quantity::Resources>, name: &str| {
        let list = pod_level.and_then(list);
        if name == "cpu" { quantity::milli_of(list, name) } else { quantity::of(list, name) }
    };
    Totals {
        cpu_request: level(|r| r.requests.as_ref(), "cpu").unwrap_or_else(|| fold(&|c| requests(c, "cpu")))
            + extra_cpu,
        memory_request: level(|r| r.requests.as_ref(), "memory")
            .unwrap_or_else(|| fold(&|c| requests(c, "memory")))
            + extra_memory,
        cpu_limit: level(|r| r.limits.as_ref(), "cpu").or_else(|| whole("cpu")).map(|l| l + extra_cpu),
        memory_limit: level(|r| r.limits.as_ref(), "memory")
            .or_else(|| whole("memory"))
            .map(|l| l + extra_memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_lie_below_the_root() {
        let uid = "0a-1";
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"uid": uid}, "spec": {"containers": [{"name": "c"}]}
        }))
        .unwrap();
        for (systemd, root, want) in [
            (false, "", "/kubepods/besteffort/pod0a-1"),
            (false, "/", "/kubepods/besteffort/pod0a-1"),
            (false, "/test/a", "/test/a/kubepods/besteffort/pod0a-1"),
            (true, "", "kubepods-besteffort-pod0a_1.slice"),
            (true, "/test", "test-kubepods-besteffort-pod0a_1.slice"),
        ] {
            assert_eq!(Cgroups::detect(systemd, root, 1).parent(&pod), want, "{systemd} {root:?}");
        }
    }

    #[test]
    fn shares() {
        for (milli, shares) in [(0, 2), (1, 2), (100, 102), (1000, 1024), (4000, 4096)] {
            assert_eq!(milli_to_shares(milli), shares);
        }
        assert_eq!(shares_to_weight(2), 1);
        assert_eq!(shares_to_weight(262_144), 10_000);
    }
}
