//! What a pod as a whole requests and is limited to.

use std::collections::BTreeMap;

use crate::quantity::Quantity;
use serde_json::Value;

/// The elements of a list field; none where it is absent.
pub(crate) fn items<'a>(value: &'a Value, field: &str) -> std::slice::Iter<'a, Value> {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// Quantities by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads a resource list; what does not parse is left to validation.
pub fn amounts(list: &Value) -> Amounts {
    list.as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| {
            let text = value.as_str().map(str::to_owned).unwrap_or_else(|| value.to_string());
            Some((name.clone(), Quantity::parse(&text).ok()?))
        })
        .collect()
}

pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        match to.get_mut(name) {
            Some(sum) => *sum += *amount,
            None => {
                to.insert(name.clone(), *amount);
            }
        }
    }
}

fn raise(to: &mut Amounts, floor: &Amounts) {
    for (name, amount) in floor {
        match to.get_mut(name) {
            Some(value) if *value >= *amount => {}
            _ => {
                to.insert(name.clone(), *amount);
            }
        }
    }
}

/// The sum over containers and sidecars, at least what any init container needs while it runs, with the pod's own
/// requests or limits (`field`) in place of the sums.
pub fn of_pod(spec: &Value, field: &str) -> Amounts {
    let mut total = Amounts::new();
    for container in items(spec, "containers") {
        add(&mut total, &amounts(&container["resources"][field]));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        let own = amounts(&container["resources"][field]);
        if container["restartPolicy"] == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut needed = own;
            add(&mut needed, &sidecars);
            raise(&mut starting, &needed);
        }
    }
    raise(&mut total, &starting);
    for (name, amount) in amounts(&spec["resources"][field]) {
        total.insert(name, amount);
    }
    total
}

/// [`of_pod`] with the overhead of the pod's runtime class.
pub fn with_overhead(spec: &Value, field: &str) -> Amounts {
    let mut total = of_pod(spec, field);
    for (name, amount) in amounts(&spec["overhead"]) {
        match total.get_mut(&name) {
            Some(sum) => *sum += amount,
            // An overhead alone does not make a limit.
            None if field == "requests" => {
                total.insert(name, amount);
            }
            None => {}
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sums() {
        let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        for (containers, init, want) in [
            (json!([c("1"), c("500m")]), json!([]), "1500m"),
            (json!([c("1")]), json!([c("3")]), "3"),
            (json!([c("1")]), json!([sidecar("1"), c("3")]), "4"),
            (json!([c("5")]), json!([sidecar("1"), c("3")]), "6"),
        ] {
            let spec = json!({"containers": containers, "initContainers": init});
            assert_eq!(of_pod(&spec, "requests")["cpu"], Quantity::parse(want).unwrap());
        }
        let spec = json!({"containers": [c("1")], "overhead": {"cpu": "1"}, "resources": {"requests": {"cpu": "5"}}});
        assert_eq!(with_overhead(&spec, "requests")["cpu"], Quantity::parse("6").unwrap());
        assert!(with_overhead(&spec, "limits").is_empty());
    }
}
