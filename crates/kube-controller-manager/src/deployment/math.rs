//! How many replicas each ReplicaSet should have. Pure.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::replica_sets::{created, desired_annotation, max_annotation, name, replicas};

/// What the arithmetic asks of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Targets {
    pub(crate) replicas: i32,
    pub(crate) rolling: bool,
    pub(crate) max_surge: i32,
    pub(crate) max_unavailable: i32,
}

/// An absolute number, or a percentage of `total` rounded as asked. What does not parse counts as 0.
pub(crate) fn scaled(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(s)) => {
            let percent: f64 = s.strip_suffix('%').and_then(|p| p.trim().parse().ok()).unwrap_or(0.0);
            let exact = percent * f64::from(total) / 100.0;
            (if round_up { exact.ceil() } else { exact.floor() }) as i32
        }
        None => 0,
    }
}

impl Targets {
    pub(crate) fn of(deployment: &Deployment) -> Targets {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|s| s.replicas).unwrap_or(1);
        let strategy = spec.and_then(|s| s.strategy.as_ref());
        let rolling = strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate");
        if !rolling {
            return Targets { replicas, rolling, max_surge: 0, max_unavailable: 0 };
        }
        let update = strategy.and_then(|s| s.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".to_owned());
        let surge = update.map_or(Some(&quarter), |u| u.max_surge.as_ref());
        let unavailable = update.map_or(Some(&quarter), |u| u.max_unavailable.as_ref());
        let max_surge = scaled(surge, replicas, true).max(0);
        let mut max_unavailable = scaled(unavailable, replicas, false).max(0);
        if max_surge == 0 && max_unavailable == 0 {
            // Nothing could ever move.
            max_unavailable = 1;
        }
        Targets { replicas, rolling, max_surge, max_unavailable: max_unavailable.min(replicas) }
    }

    pub(crate) fn min_available(&self) -> i32 {
        self.replicas - self.max_unavailable
    }

    pub(crate) fn max_total(&self) -> i32 {
        self.replicas + self.max_surge
    }
}

/// The new set's size, given the replicas of all sets together (`total`, the new one's `current` included).
pub(crate) fn new_size(t: Targets, total: i32, current: i32) -> i32 {
    if !t.rolling {
        return t.replicas;
    }
    if current > t.replicas {
        return t.replicas;
    }
    let room = t.max_total() - total;
    if room <= 0 { current } else { current + room.min(t.replicas - current) }
}

/// A set's replicas as asked for and as available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) wanted: i32,
    pub(crate) available: i32,
}

/// The sizes of the old sets (oldest first) after one step: unhealthy replicas go first, then what the new set's
/// available replicas allow.
pub(crate) fn old_sizes(t: Targets, old: &[Size], new: Size) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|s| s.wanted).collect();
    let old_total: i32 = sizes.iter().sum();
    if old_total == 0 {
        return sizes;
    }
    let unavailable_new = new.wanted - new.available;
    let max_down = old_total + new.wanted - t.min_available() - unavailable_new;
    if max_down <= 0 {
        return sizes;
    }
    let mut down = 0;
    for (size, set) in sizes.iter_mut().zip(old) {
        if down >= max_down {
            break;
        }
        let unhealthy = (set.wanted - set.available).max(0);
        let step = unhealthy.min(max_down - down).min(*size);
        *size -= step;
        down += step;
    }
    let available: i32 = old.iter().map(|s| s.available).sum::<i32>() + new.available;
    let mut spare = available - t.min_available();
    for size in &mut sizes {
        if spare <= 0 {
            break;
        }
        let step = spare.min(*size);
        *size -= step;
        spare -= step;
    }
    sizes
}

/// Sizes after the deployment was scaled in the middle of a rollout: (index into `active`, size).
pub(crate) fn proportional(t: Targets, deployment_replicas: i32, active: &[ReplicaSet]) -> Vec<(usize, i32)> {
    let total: i32 = active.iter().map(replicas).sum();
    let allowed = if t.replicas > 0 { t.max_total() } else { 0 };
    let to_add = allowed - total;
    let mut order: Vec<usize> = (0..active.len()).collect();
    // Largest first; of equals the newer grow first and the older shrink first.
    order.sort_by(|&a, &b| {
        let by_age = created(&active[a])
            .cmp(&created(&active[b]))
            .then_with(|| name(&active[a]).cmp(name(&active[b])));
        let by_age = if to_add > 0 { by_age.reverse() } else { by_age };
        replicas(&active[b]).cmp(&replicas(&active[a])).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<(usize, i32)> = order
        .into_iter()
        .map(|i| {
            let set = &active[i];
            let mut size = replicas(set);
            if to_add != 0 {
                let share = share(t, deployment_replicas, set, to_add, added);
                size += share;
                added += share;
            }
            (i, size)
        })
        .collect();
    if let Some(first) = sizes.first_mut().filter(|_| to_add != 0) {
        first.1 = (first.1 + to_add - added).max(0);
    }
    sizes
}

fn share(t: Targets, deployment_replicas: i32, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let current = replicas(set);
    if current == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = if t.replicas == 0 {
        -current
    } else {
        // The status stands in for sets that were never annotated.
        let before = max_annotation(set).unwrap_or(deployment_replicas).max(1);
        (f64::from(current) * f64::from(t.max_total()) / f64::from(before)).round() as i32 - current
    };
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

/// Whether the new set has all replicas, all available, at the present scale.
pub(crate) fn is_saturated(t: Targets, new: &ReplicaSet) -> bool {
    let available = new.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
    replicas(new) == t.replicas && desired_annotation(new) == Some(t.replicas) && available == t.replicas
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn t(replicas: i32, max_surge: i32, max_unavailable: i32) -> Targets {
        Targets { replicas, rolling: true, max_surge, max_unavailable }
    }

    #[test]
    fn limits() {
        let deployment = |replicas: i32,
                          surge: serde_json::Value,
                          unavailable: serde_json::Value|
         -> Deployment {
            serde_json::from_value(json!({"metadata": {}, "spec": {"replicas": replicas, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
            .unwrap()
        };
        for (replicas, surge, unavailable, want) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (4, json!(0), json!(0), (0, 1)),
            (3, json!(1), json!(5), (1, 3)),
            (0, json!("25%"), json!("25%"), (0, 0)),
        ] {
            let t = Targets::of(&deployment(replicas, surge, unavailable));
            assert_eq!((t.max_surge, t.max_unavailable), want, "{replicas}");
        }
    }

    #[test]
    fn the_new_set_grows_into_the_room() {
        for (targets, total, current, want) in [
            (t(10, 0, 2), 10, 0, 0),
            (t(10, 2, 0), 10, 0, 2),
            (t(10, 5, 0), 5, 5, 10),
            (t(10, 2, 2), 8, 3, 7),
            (t(10, 2, 2), 20, 12, 10),
        ] {
            assert_eq!(new_size(targets, total, current), want);
        }
    }

    #[test]
    fn old_sets_shrink_as_availability_allows() {
        let s = |wanted, available| Size { wanted, available };
        for (targets, old, new, want) in [
            // Nothing of the new set is available yet, no unavailability allowed.
            (t(10, 2, 0), vec![s(10, 10)], s(2, 0), vec![10]),
            (t(10, 2, 0), vec![s(10, 10)], s(2, 2), vec![8]),
            (t(10, 0, 2), vec![s(10, 10)], s(0, 0), vec![8]),
            // Unhealthy ones go first, whatever set they are in.
            (t(10, 0, 2), vec![s(5, 5), s(5, 2)], s(0, 0), vec![5, 3]),
            (t(3, 1, 1), vec![s(1, 1)], s(3, 3), vec![0]),
            (t(3, 1, 1), vec![s(0, 0)], s(3, 3), vec![0]),
        ] {
            assert_eq!(old_sizes(targets, &old, new), want, "{old:?} {new:?}");
        }
    }

    #[test]
    fn scaling_in_a_rollout_keeps_proportions() {
        let set = |name: &str, replicas: i32, max: i32, age: u32| -> ReplicaSet {
            serde_json::from_value(json!({
                "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{age:02}Z"),
                    "annotations": {"deployment.kubernetes.io/max-replicas": max.to_string()}},
                "spec": {"replicas": replicas, "selector": {}}}))
            .unwrap()
        };
        let sizes = |targets, sets: &[ReplicaSet]| {
            let mut sizes = proportional(targets, 0, sets);
            sizes.sort();
            sizes.into_iter().map(|(_, n)| n).collect::<Vec<_>>()
        };
        // 10 -> 20 with surge 0.
        assert_eq!(sizes(t(20, 0, 0), &[set("a", 8, 10, 1), set("b", 2, 10, 2)]), [16, 4]);
        // 10 -> 5.
        assert_eq!(sizes(t(5, 0, 0), &[set("a", 8, 10, 1), set("b", 2, 10, 2)]), [4, 1]);
        assert_eq!(sizes(t(0, 0, 0), &[set("a", 8, 10, 1), set("b", 2, 10, 2)]), [0, 0]);
        // What rounding leaves over goes to the largest.
        assert_eq!(
            sizes(t(7, 0, 0), &[set("a", 3, 6, 1), set("b", 2, 6, 2), set("c", 1, 6, 3)]).iter().sum::<i32>(),
            7
        );
    }
}
