//! Bootstrap tokens: `id.secret`, kept as secrets of kube-system, for machines that join the cluster.

use std::sync::Arc;

use apimachinery::clock::Clock;
use apimachinery::user::UserInfo;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::seams::Objects;

pub struct BootstrapTokens {
    objects: Arc<dyn Objects>,
    clock: Clock,
}

impl BootstrapTokens {
    pub fn new(objects: Arc<dyn Objects>, clock: Clock) -> BootstrapTokens {
        BootstrapTokens { objects, clock }
    }

    pub fn user(&self, token: &str) -> Option<UserInfo> {
        let (id, secret) = parse(token)?;
        let object = self.objects.get("", "secrets", "kube-system", &format!("bootstrap-token-{id}"))?;
        if object.attributes.deleting {
            return None;
        }
        let stored: Value = serde_json::from_slice(&object.body).ok()?;
        user(&stored, id, secret, &self.clock)
    }
}

fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

fn user(stored: &Value, id: &str, secret: &str, clock: &Clock) -> Option<UserInfo> {
    let data = |key: &str| {
        let encoded = stored["data"][key].as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    let valid = stored["type"] == "bootstrap.kubernetes.io/token"
        && same(data("token-secret")?.as_bytes(), secret.as_bytes())
        && data("token-id")? == id
        && data("usage-bootstrap-authentication").as_deref() == Some("true");
    if !valid {
        return None;
    }
    if let Some(expiration) = data("expiration") {
        let expires: jiff::Timestamp = expiration.parse().ok()?;
        if clock.now() > expires {
            return None;
        }
    }
    let mut groups = vec!["system:bootstrappers".to_owned()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',').map(str::trim) {
        if group.is_empty() {
            continue;
        }
        if !group.starts_with("system:bootstrappers:") {
            return None;
        }
        groups.push(group.to_owned());
    }
    Some(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })
}

/// Compares in a time that does not depend on where the difference is.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn accepts_only_valid_tokens() {
        let stored = |expiration: &str, usage: &str| {
            let e = |s: &str| STANDARD.encode(s);
            json!({"type": "bootstrap.kubernetes.io/token", "data": {
                "token-id": e("abcdef"), "token-secret": e("0123456789abcdef"), "expiration": e(expiration),
                "usage-bootstrap-authentication": e(usage), "auth-extra-groups": e("system:bootstrappers:x")}})
        };
        let now = Clock::from_fn(|| "2030-01-01T00:00:00Z".parse().unwrap());
        for (stored, secret, want) in [
            (stored("2031-01-01T00:00:00Z", "true"), "0123456789abcdef", true),
            (stored("2029-01-01T00:00:00Z", "true"), "0123456789abcdef", false),
            (stored("2031-01-01T00:00:00Z", "false"), "0123456789abcdef", false),
            (stored("2031-01-01T00:00:00Z", "true"), "0123456789abcdee", false),
        ] {
            let got = user(&stored, "abcdef", secret, &now);
            assert_eq!(got.is_some(), want);
            if let Some(user) = got {
                assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:x"]);
            }
        }
        assert!(parse("abcdef.0123456789abcdef").is_some());
        assert!(parse("abcdeF.0123456789abcdef").is_none());
    }
}
