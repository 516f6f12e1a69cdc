//! How things are told: durations and references as everybody writes them.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

use crate::pod::spec;

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`, `350ms`, `1.5s`.
pub fn go_duration(d: SignedDuration) -> String {
    let nanos = d.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    if nanos.unsigned_abs() < 1_000_000_000 {
        let (unit, by) = match nanos.unsigned_abs() {
            n if n >= 1_000_000 => ("ms", 1e6),
            n if n >= 1_000 => ("µs", 1e3),
            _ => ("ns", 1.0),
        };
        return format!("{}{unit}", nanos as f64 / by);
    }
    let seconds = d.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = (seconds % 60) as f64 + f64::from(d.subsec_nanos()) / 1e9;
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, m) => format!("{m}m{rest}s"),
        (h, m) => format!("{h}h{m}m{rest}s"),
    }
}

pub fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(spec::namespace(pod).into()),
        name: Some(spec::name(pod).into()),
        uid: Some(spec::uid(pod).into()),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

pub fn container_reference(pod: &Pod, kind: spec::Kind, container: &str) -> ObjectReference {
    let list = match kind {
        spec::Kind::Init => "initContainers",
        spec::Kind::Main => "containers",
        spec::Kind::Ephemeral => "ephemeralContainers",
    };
    ObjectReference { field_path: Some(format!("spec.{list}{{{container}}}")), ..pod_reference(pod) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (ms, want) in
            [(10_000, "10s"), (80_000, "1m20s"), (300_000, "5m0s"), (1500, "1.5s"), (350, "350ms"), (0, "0s")]
        {
            assert_eq!(go_duration(SignedDuration::from_millis(ms)), want);
        }
    }
}
