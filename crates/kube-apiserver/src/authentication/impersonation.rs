//! `Impersonate-*` headers: acting as somebody else, when RBAC lets each part be impersonated.

use std::collections::BTreeMap;

use apimachinery::status::Status;
use apimachinery::user::{ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, UserInfo};

use super::request_header;
use crate::seams::{Authorizer, Decision, RequestInfo};
use crate::security::failure;

const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whom the headers ask to act as; `None` without such headers.
pub fn wanted(headers: &http::HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let (name, uid) = (text("impersonate-user"), text("impersonate-uid"));
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .filter(|g| !g.is_empty())
        .map(str::to_owned)
        .collect();
    let extra: BTreeMap<String, Vec<String>> =
        request_header::extra(headers, &["impersonate-extra-".to_owned()]);
    if name.is_empty() {
        if uid.is_empty() && groups.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(Status::bad_request(format!(
            "requested {} without impersonating a user name",
            in_go(&uid, &groups, &extra)
        )));
    }
    Ok(Some(UserInfo { name, uid, groups, extra }))
}

/// A user without a name as Go prints it, which is what the answer tells.
fn in_go(uid: &str, groups: &[String], extra: &BTreeMap<String, Vec<String>>) -> String {
    let list = |values: &[String]| {
        let quoted: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
        format!("[]string{{{}}}", quoted.join(", "))
    };
    let groups = if groups.is_empty() { "[]string(nil)".to_owned() } else { list(groups) };
    let extra = if extra.is_empty() {
        "map[string][]string(nil)".to_owned()
    } else {
        let entries: Vec<String> = extra.iter().map(|(k, v)| format!("{k:?}:{}", list(v))).collect();
        format!("map[string][]string{{{}}}", entries.join(", "))
    };
    format!("&user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:{groups}, Extra:{extra}}}")
}

fn service_account(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("system:serviceaccount:")?
        .split_once(':')
        .filter(|(ns, n)| !ns.is_empty() && !n.is_empty())
}

/// The permissions needed to become `target`.
fn needed(target: &UserInfo) -> Vec<RequestInfo> {
    let request =
        |group: &str, version: &str, resource: &str, subresource: &str, ns: &str, name: &str| RequestInfo {
            verb: "impersonate".into(),
            is_resource: true,
            group: group.into(),
            version: version.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: ns.into(),
            name: name.into(),
            ..RequestInfo::default()
        };
    let mut out = vec![match service_account(&target.name) {
        Some((ns, name)) => request("", "v1", "serviceaccounts", "", ns, name),
        None => request("", "v1", "users", "", "", &target.name),
    }];
    out.extend(target.groups.iter().map(|g| request("", "v1", "groups", "", "", g)));
    for (key, values) in &target.extra {
        out.extend(values.iter().map(|v| request(AUTHENTICATION, "v1", "userextras", key, "", v)));
    }
    if !target.uid.is_empty() {
        out.push(request(AUTHENTICATION, "v1", "uids", "", "", &target.uid));
    }
    out
}

/// Checks that `user` may act as the headers ask, and returns whom it becomes.
pub async fn impersonate(
    authorizer: &dyn Authorizer,
    user: &UserInfo,
    headers: &http::HeaderMap,
) -> Result<Option<UserInfo>, Status> {
    let Some(mut target) = wanted(headers)? else { return Ok(None) };
    for request in needed(&target) {
        match authorizer.authorize(user, &request).await {
            Decision::Allow => {}
            Decision::Deny(why) => return Err(failure::access_denied(user, &request, &why)),
            Decision::Failed(_) => return Err(failure::access_denied(user, &request, "")),
        }
    }
    if target.groups.is_empty()
        && let Some((ns, _)) = service_account(&target.name)
    {
        target.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{ns}")];
    }
    if target.name != ANONYMOUS {
        if !target.in_group(ALL_AUTHENTICATED) && !target.in_group(ALL_UNAUTHENTICATED) {
            target.groups.push(ALL_AUTHENTICATED.to_owned());
        }
    } else if !target.in_group(ALL_UNAUTHENTICATED) {
        target.groups.push(ALL_UNAUTHENTICATED.to_owned());
    }
    Ok(Some(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_every_part() {
        let mut headers = http::HeaderMap::new();
        assert_eq!(wanted(&headers).unwrap(), None);
        headers.append("impersonate-group", "dev".parse().unwrap());
        assert!(wanted(&headers).is_err());
        headers.insert("impersonate-user", "system:serviceaccount:a:b".parse().unwrap());
        headers.insert("impersonate-extra-scopes", "view".parse().unwrap());
        let target = wanted(&headers).unwrap().unwrap();
        let parts: Vec<String> = needed(&target)
            .iter()
            .map(|r| format!("{}/{}/{}/{}", r.resource, r.subresource, r.namespace, r.name))
            .collect();
        assert_eq!(parts, ["serviceaccounts//a/b", "groups///dev", "userextras/scopes//view"]);
    }
}
