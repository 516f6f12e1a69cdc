//! What claims say of the devices they were given.

use serde_json::Value;

use super::{NOT_A_REQUEST, conditions_to_bind, driver, opaque, pool_name};
use crate::check::{self, Report};
use crate::core_v1::pod::scheduling;
use crate::meta;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write};

const RESERVED_MAX: usize = 256;
const RESULTS_MAX: usize = 32;
const CONFIGS_MAX: usize = 64;
const CONDITIONS_MAX: usize = 8;
const ADDRESSES_MAX: usize = 16;

/// Nothing is said of devices that were given back.
pub fn prepare(new: &mut Value, old: &Value) {
    const RESULTS: &str = "status.allocation.devices.results";
    let kept: Vec<_> = new.list(RESULTS).iter().map(|r| identity(r).map(str::to_owned)).collect();
    let gone = |device: &Value| {
        let is = |other: &[String; 4]| identity(device) == other.each_ref().map(String::as_str);
        old.list(RESULTS).iter().any(|r| identity(r) == identity(device)) && !kept.iter().any(is)
    };
    if let Some(Value::Array(devices)) = new.find_mut("status.devices") {
        devices.retain(|device| !gone(device));
        if devices.is_empty() {
            new.remove("status.devices");
        }
    }
}

pub fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("status");
    let reserved = new.list("status.reservedFor");
    let list = path.child("reservedFor");
    if reserved.len() > RESERVED_MAX {
        errors.too_many(&list, reserved.len(), RESERVED_MAX);
    }
    for (i, consumer) in reserved.iter().enumerate() {
        for name in ["resource", "name", "uid"] {
            if consumer.text(name).is_empty() {
                errors.required(&list.index(i).child(name), "");
            }
        }
        if reserved[..i].iter().any(|r| r.at("uid") == consumer.at("uid")) {
            errors.duplicate(&list.index(i), consumer.text("uid"));
        }
    }
    devices(&mut errors, new, &path.child("devices"));
    if !reserved.is_empty() && !new.has("status.allocation") {
        errors.forbidden(&list, "may not be specified when `allocated` is not set");
    }
    let before = old.list("status.reservedFor");
    if new.has("metadata.deletionTimestamp") && reserved.iter().any(|r| !before.contains(r)) {
        errors.forbidden(
            &list,
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
        );
    }
    let path = path.child("allocation");
    if new.has("status.allocation") && old.has("status.allocation") {
        errors.immutable(&path, new.at("status.allocation"), old.at("status.allocation"));
    } else if new.has("status.allocation") {
        allocation(&mut errors, new, &path);
    }
    errors
}

/// A device that a claim has, or a share of it.
fn identity(device: &Value) -> [&str; 4] {
    ["driver", "pool", "device", "shareID"].map(|name| device.text(name))
}

fn shown(identity: [&str; 4]) -> String {
    let [driver, pool, device, share] = identity;
    let device = [driver, pool, device].join("/");
    if share.is_empty() { device } else { format!("{device}/{share}") }
}

fn device(errors: &mut Errors, device: &Value, path: &Path<'_>) {
    driver(errors, device.text("driver"), &path.child("driver"));
    pool_name(errors, device.text("pool"), &path.child("pool"));
    let name = device.text("device");
    errors.invalid_each(&path.child("device"), name, check::dns1123_label(name));
}

fn share(errors: &mut Errors, device: &Value, path: &Path<'_>) {
    if !device.has("shareID") {
        return;
    }
    let (id, path) = (device.text("shareID"), path.child("shareID"));
    let shaped = |id: &str| {
        id.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
    };
    if !matches!(id.len(), 32 | 36 | 38 | 45) {
        errors.invalid(&path, id, format!("error validating uid: invalid UUID length: {}", id.len()));
    } else if id.len() == 36 && !shaped(id) {
        errors.invalid(&path, id, "error validating uid: invalid UUID format");
    } else if id.len() != 36 || id.bytes().any(|b| b.is_ascii_uppercase()) {
        let form = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase \
                    hexadecimal characters";
        errors.invalid(&path, id, form);
    }
}

fn devices(errors: &mut Errors, claim: &Value, list: &Path<'_>) {
    let known: Vec<_> = claim.list("status.allocation.devices.results").iter().map(identity).collect();
    let all = claim.list("status.devices");
    for (i, one) in all.iter().enumerate() {
        let path = list.index(i);
        device(errors, one, &path);
        share(errors, one, &path);
        let id = identity(one);
        if !known.contains(&id) {
            errors.invalid(&path, shown(id), "must be an allocated device in the claim");
        }
        let conditions = one.list("conditions");
        if conditions.len() > CONDITIONS_MAX {
            errors.too_many(&path.child("conditions"), conditions.len(), CONDITIONS_MAX);
        }
        meta::conditions(errors, conditions, &path.child("conditions"));
        if !one.at("data").is_null() && !one.at("data").is_object() {
            errors.invalid(&path.child("data"), "<value omitted>", "must be a valid JSON object");
        }
        let path = path.child("networkData");
        for (name, most) in [("interfaceName", 256), ("hardwareAddress", 128)] {
            if one.at("networkData").text(name).len() > most {
                errors.too_long(&path.child(name), most);
            }
        }
        let (addresses, path) = (one.list("networkData.ips"), path.child("ips"));
        if addresses.len() > ADDRESSES_MAX {
            errors.too_many(&path, addresses.len(), ADDRESSES_MAX);
            continue;
        }
        for (j, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            if apimachinery::validation::parse_cidr(text).is_none() {
                let form = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
                errors.invalid(&path.index(j), text, form);
            }
            if addresses[..j].contains(address) {
                errors.duplicate(&path.index(j), text);
            }
        }
    }
    for (i, one) in all.iter().enumerate() {
        if all[..i].iter().any(|other| identity(other) == identity(one)) {
            errors.duplicate(&list.index(i), shown(identity(one)));
        }
    }
}

/// A request of the claim, or one of its alternatives as `request/alternative`.
fn request(errors: &mut Errors, claim: &Value, name: &str, path: &Path<'_>) {
    let (outer, inner) = name.split_once('/').map_or((name, None), |(outer, inner)| (outer, Some(inner)));
    for part in std::iter::once(outer).chain(inner) {
        errors.invalid_each(path, part, check::dns1123_label(part));
    }
    let found = claim.list("spec.devices.requests").iter().find(|r| r.text("name") == outer);
    let known = found.is_some_and(|request| match inner {
        None => true,
        Some(inner) => request.list("firstAvailable").iter().any(|r| r.text("name") == inner),
    });
    if !known {
        errors.invalid(path, name, NOT_A_REQUEST);
    }
}

fn allocation(errors: &mut Errors, claim: &Value, path: &Path<'_>) {
    let devices = path.child("devices");
    let given = claim.at("status.allocation");
    let (results, list) = (given.list("devices.results"), devices.child("results"));
    if results.len() > RESULTS_MAX {
        errors.too_many(&list, results.len(), RESULTS_MAX);
    } else {
        for (i, result) in results.iter().enumerate() {
            let path = list.index(i);
            request(errors, claim, result.text("request"), &path.child("request"));
            device(errors, result, &path);
            conditions_to_bind(errors, result, &path);
            share(errors, result, &path);
        }
    }
    let (configs, list) = (given.list("devices.config"), devices.child("config"));
    if configs.len() > CONFIGS_MAX {
        errors.too_many(&list, configs.len(), CONFIGS_MAX);
    } else {
        for (i, config) in configs.iter().enumerate() {
            let path = list.index(i);
            match config.text("source") {
                "" => errors.required(&path.child("source"), ""),
                source => errors.one_of(&path.child("source"), source, &["FromClaim", "FromClass"]),
            }
            let (names, at) = (config.list("requests"), path.child("requests"));
            for (j, name) in names.iter().enumerate() {
                let text = name.as_str().unwrap_or_default();
                request(errors, claim, text, &at.index(j));
                if names[..j].contains(name) {
                    errors.duplicate(&at.index(j), text);
                }
            }
            opaque(errors, config, &path);
        }
    }
    if given.has("nodeSelector") {
        scheduling::node_selector(errors, given.at("nodeSelector"), &path.child("nodeSelector"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_given_was_asked_for() {
        let old =
            json!({"spec": {"devices": {"requests": [{"name": "r", "firstAvailable": [{"name": "s"}]}]}}});
        let result = |request: &str| json!({"request": request, "driver": "d.x", "pool": "p", "device": "e"});
        for (status, want) in [
            (json!({"allocation": {"devices": {"results": [result("r/s")]}}}), None),
            (json!({"allocation": {"devices": {"results": [result("r/t")]}}}), Some("request")),
            (json!({"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]}), Some("reservedFor")),
            (json!({"devices": [{"driver": "d.x", "pool": "p", "device": "e"}]}), Some("devices[0]")),
        ] {
            let mut new = old.clone();
            new["status"] = status;
            let errors = validate(&new, &old);
            let got: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
            assert!(
                want.map_or(got.is_empty(), |want| got.len() == 1 && got[0].ends_with(want)),
                "{new}: {got:?}"
            );
        }
    }
}
