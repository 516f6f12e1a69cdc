//! Users named by a trusted front proxy in `X-Remote-*` headers.

use std::collections::BTreeMap;

use apimachinery::clock::Clock;
use apimachinery::user::UserInfo;

use super::x509::{Verifier, common_name};
use crate::seams::Credentials;

/// A proxy with a trusted certificate but a name that is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAllowed;

/// Trusts the headers of clients whose certificate the front-proxy CA signed.
pub struct RequestHeader {
    verifier: Verifier,
    clock: Clock,
    options: Options,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Common names the proxy may have; empty means any.
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_header_prefixes: Vec<String>,
}

impl Default for Options {
    fn default() -> Options {
        let one = |s: &str| vec![s.to_owned()];
        Options {
            allowed_names: Vec::new(),
            username_headers: one("X-Remote-User"),
            uid_headers: one("X-Remote-Uid"),
            group_headers: one("X-Remote-Group"),
            extra_header_prefixes: one("X-Remote-Extra-"),
        }
    }
}

impl RequestHeader {
    pub fn new(ca_pem: &[u8], options: Options, clock: Clock) -> anyhow::Result<RequestHeader> {
        Ok(RequestHeader { verifier: Verifier::new(ca_pem)?, clock, options })
    }

    /// `Ok(None)` when this is no front proxy; `Err` when it claims to be one and may not.
    pub fn user(&self, credentials: &Credentials<'_>) -> Result<Option<UserInfo>, NotAllowed> {
        let Some(leaf) = credentials.peer_certificates.first() else { return Ok(None) };
        let first = |names: &[String]| {
            names
                .iter()
                .filter_map(|n| credentials.headers.get(n.as_str()))
                .filter_map(|v| v.to_str().ok())
                .find(|v| !v.is_empty())
                .map(str::to_owned)
        };
        let Some(name) = first(&self.options.username_headers) else { return Ok(None) };
        if self.verifier.verify(credentials.peer_certificates, &self.clock).is_err() {
            return Ok(None);
        }
        let allowed = &self.options.allowed_names;
        if !allowed.is_empty() && !common_name(leaf).is_some_and(|cn| allowed.contains(&cn)) {
            return Err(NotAllowed);
        }
        let groups = self.options.group_headers.iter().flat_map(|n| credentials.headers.get_all(n.as_str()));
        let groups = groups.filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
        let extra = extra(credentials.headers, &self.options.extra_header_prefixes);
        Ok(Some(UserInfo { name, uid: first(&self.options.uid_headers).unwrap_or_default(), groups, extra }))
    }
}

/// The values of headers with one of the prefixes, by the percent-decoded, lower-case rest of their names.
pub fn extra(headers: &http::HeaderMap, prefixes: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let name = name.as_str();
        let rest = prefixes.iter().find_map(|p| {
            let head = name.get(..p.len())?;
            head.eq_ignore_ascii_case(p).then(|| &name[p.len()..])
        });
        if let (Some(rest), Ok(value)) = (rest.filter(|r| !r.is_empty()), value.to_str()) {
            let key = percent_encoding::percent_decode_str(rest).decode_utf8_lossy().to_lowercase();
            out.entry(key).or_default().push(value.to_owned());
        }
    }
    out
}
