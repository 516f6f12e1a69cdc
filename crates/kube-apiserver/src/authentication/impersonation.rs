//! `Impersonate-*` headers: acting as somebody else, when the authorizers let each part be impersonated.
//!
//! There are several ways to be let (KEP-5284). The constrained ones ask whether this request may be made as one of a kind
//! of user, and whether one may be that user; the last asks, as it always was, only the latter.

use std::collections::BTreeMap;
use std::time::Instant;

use apimachinery::field_path::Path;
use apimachinery::status::Status;
use apimachinery::user::{ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, SYSTEM_MASTERS, UserInfo};

use super::{configuration, request_header};
use crate::metrics::Families;
use crate::seams::{Authorizer, Decision, Impersonated, RequestInfo};
use crate::security::failure;

const AUTHENTICATION: &str = "authentication.k8s.io";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// What the user of a check bears instead of its own extra, where that the check is made for all nodes alike.
const NODE_KEYS: &str = "authentication.kubernetes.io/associated-node-keys";
/// From so many on it is asked first whether all are allowed.
const MANY: usize = 4;
const BOUNDS: &[f64] = &[
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// A way to be let act as somebody else, in the order they are tried in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A service account of a pod as the node the pod runs on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    /// Without a word on what is asked for.
    Legacy,
}

impl Mode {
    const ALL: [Mode; 5] =
        [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "legacy",
        }
    }

    fn is_constrained(self) -> bool {
        self != Mode::Legacy
    }

    fn verb(self) -> String {
        if self.is_constrained() { format!("impersonate:{}", self.name()) } else { "impersonate".to_owned() }
    }

    /// Whether it is about such users at all.
    fn is_about(self, target: &UserInfo, requestor: &UserInfo) -> bool {
        let name_only = target.uid.is_empty() && target.groups.is_empty() && target.extra.is_empty();
        let node = node_name(&target.name);
        let account = service_account(&target.name).is_some();
        match self {
            Mode::AssociatedNode => {
                let runs_on = requestor.extra.get(NODE_NAME).map(Vec::as_slice);
                name_only
                    && node.is_some_and(|n| matches!(runs_on, Some([one]) if one == n))
                    && service_account(&requestor.name).is_some()
            }
            Mode::ArbitraryNode => name_only && node.is_some(),
            Mode::ServiceAccount => name_only && account,
            Mode::UserInfo => node.is_none() && !account,
            Mode::Legacy => true,
        }
    }
}

fn node_name(name: &str) -> Option<&str> {
    name.strip_prefix("system:node:").filter(|n| apimachinery::validation::is_dns1123_subdomain(n))
}

/// Whom the headers ask to act as; `None` without such headers.
pub fn wanted(headers: &http::HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let (name, uid) = (text("impersonate-user"), text("impersonate-uid"));
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|v| v.to_str().ok())
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

/// Asks the authorizers for the one who wants to act as somebody else.
struct Asking<'a> {
    authorizer: &'a dyn Authorizer,
    requestor: UserInfo,
    mode: Mode,
    families: &'a Families,
}

impl Asking<'_> {
    async fn ask(&self, request: &RequestInfo) -> Result<(), Status> {
        let started = Instant::now();
        let decision = self.authorizer.authorize(&self.requestor, request).await;
        let allowed = if decision == Decision::Allow { "allowed" } else { "denied" };
        let labels = [self.mode.name(), allowed];
        let help = "Authorizations asked for on behalf of impersonation.";
        let total = "apiserver_impersonation_authorization_attempts_total";
        self.families.counter(total, help, &["mode", "decision"]).inc(&labels);
        let help = "Time of authorizations asked for on behalf of impersonation, in seconds.";
        let duration = "apiserver_impersonation_authorization_attempts_duration_seconds";
        self.families
            .histogram(duration, help, &["mode", "decision"], BOUNDS)
            .took(&labels, started.elapsed());
        match decision {
            Decision::Allow => Ok(()),
            Decision::Deny(why) | Decision::Failed(why) => Err(self.refuse(request, &why)),
        }
    }

    fn refuse(&self, request: &RequestInfo, why: &str) -> Status {
        failure::access_denied(&self.requestor, request, why)
    }

    fn part(&self, core: bool, resource: &str, name: &str) -> RequestInfo {
        RequestInfo {
            verb: self.mode.verb(),
            is_resource: true,
            group: if core && !self.mode.is_constrained() { "" } else { AUTHENTICATION }.into(),
            version: "v1".into(),
            resource: resource.into(),
            name: name.into(),
            ..RequestInfo::default()
        }
    }

    /// Whether the requestor may be `target`, part by part; the groups it gets with the name.
    async fn become_user(&self, target: &UserInfo) -> Result<Option<Vec<String>>, Status> {
        let constrained = self.mode.is_constrained();
        let mut name = self.part(true, "users", &target.name);
        let mut groups = None;
        if let Some(node) = node_name(&target.name).filter(|_| constrained) {
            (name.resource, name.name) = ("nodes".into(), node.into());
            if self.mode == Mode::AssociatedNode {
                // What is allowed is allowed for every node.
                name.name = "*".into();
            }
            groups = Some(vec!["system:nodes".to_owned()]);
        }
        if let Some((namespace, account)) = service_account(&target.name) {
            (name.resource, name.namespace, name.name) =
                ("serviceaccounts".into(), namespace.into(), account.into());
            if target.groups.is_empty() {
                let all = "system:serviceaccounts".to_owned();
                groups = Some(vec![all, format!("system:serviceaccounts:{namespace}")]);
            }
        }
        self.ask(&name).await?;
        if !target.uid.is_empty() {
            self.ask(&self.part(false, "uids", &target.uid)).await?;
        }
        self.groups(&target.groups).await?;
        self.extra(&target.extra).await?;
        Ok(groups)
    }

    async fn groups(&self, groups: &[String]) -> Result<(), Status> {
        let constrained = self.mode.is_constrained();
        let part = |name: &str| self.part(true, "groups", name);
        if constrained && groups.iter().any(String::is_empty) {
            return Err(self.refuse(&part(""), "impersonating the empty string group is not allowed"));
        }
        if constrained && groups.iter().any(|g| g == SYSTEM_MASTERS) {
            let why = "impersonating the system:masters group is not allowed";
            return Err(self.refuse(&part(SYSTEM_MASTERS), why));
        }
        if constrained && groups.len() >= MANY && self.ask(&part("*")).await.is_ok() {
            return Ok(());
        }
        for group in groups {
            self.ask(&part(group)).await?;
        }
        Ok(())
    }

    async fn extra(&self, extra: &BTreeMap<String, Vec<String>>) -> Result<(), Status> {
        let part = |key: &str, value: &str| RequestInfo {
            subresource: key.into(),
            ..self.part(false, "userextras", value)
        };
        if self.mode.is_constrained() {
            if let Some(why) = extra_problem(extra) {
                return Err(self.refuse(&part("", ""), &why));
            }
            let many = extra.len() >= MANY || extra.values().map(Vec::len).sum::<usize>() >= MANY;
            if many && self.ask(&part("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                self.ask(&part(key, value)).await?;
            }
        }
        Ok(())
    }
}

fn extra_problem(extra: &BTreeMap<String, Vec<String>>) -> Option<String> {
    for (key, values) in extra {
        let mut errors = Vec::new();
        configuration::domain_prefixed(key, &Path::new("extra").child("key"), &mut errors);
        if let Some(error) = errors.first() {
            return Some(format!("impersonating an invalid key in extra is not allowed: {error}"));
        }
        if *key != key.to_lowercase() {
            return Some(format!("impersonating a non-lowercase key in extra is not allowed: {key:?}"));
        }
        if values.iter().any(String::is_empty) {
            return Some("impersonating the empty string value in extra is not allowed".to_owned());
        }
    }
    None
}

/// Checks that `user` may make the request as the headers ask, and returns whom it becomes.
pub async fn impersonate(
    authorizer: &dyn Authorizer,
    user: &UserInfo,
    headers: &http::HeaderMap,
    request: &RequestInfo,
    families: &Families,
) -> Result<Option<Impersonated>, Status> {
    let Some(target) = wanted(headers)? else { return Ok(None) };
    let started = Instant::now();
    let mut outcome = Err(None);
    for mode in Mode::ALL.into_iter().filter(|m| m.is_about(&target, user)) {
        match by(mode, authorizer, user, &target, request, families).await {
            Ok(found) => {
                outcome = Ok((mode, found));
                break;
            }
            // The first way that is of any use says why not.
            Err(why) => outcome = Err(outcome.err().flatten().or(Some(why))),
        }
    }
    let labels = match &outcome {
        Ok((mode, _)) => [mode.name(), "allowed"],
        Err(_) => ["", "denied"],
    };
    let total = "apiserver_impersonation_attempts_total";
    families.counter(total, "Requests made as somebody else.", &["mode", "decision"]).inc(&labels);
    let (duration, help) =
        ("apiserver_impersonation_attempts_duration_seconds", "Time to decide on impersonation, in seconds.");
    families.histogram(duration, help, &["mode", "decision"], BOUNDS).took(&labels, started.elapsed());
    match outcome {
        Ok((_, found)) => Ok(Some(found)),
        Err(why) => Err(why.unwrap_or_else(|| failure::internal("all impersonation modes failed"))),
    }
}

async fn by(
    mode: Mode,
    authorizer: &dyn Authorizer,
    user: &UserInfo,
    target: &UserInfo,
    request: &RequestInfo,
    families: &Families,
) -> Result<Impersonated, Status> {
    let mut requestor = user.clone();
    if mode == Mode::AssociatedNode {
        let keys = user.extra.keys().cloned().collect();
        requestor.extra = BTreeMap::from([(NODE_KEYS.to_owned(), keys)]);
    }
    let asking = Asking { authorizer, requestor, mode, families };
    if mode.is_constrained() {
        let verb = format!("impersonate-on:{}:{}", mode.name(), request.verb);
        asking.ask(&RequestInfo { verb, ..request.clone() }).await?;
    }
    let groups = asking.become_user(target).await?;
    let mut target = target.clone();
    if let Some(groups) = groups {
        target.groups = groups;
    }
    let group = if target.name == ANONYMOUS {
        ALL_UNAUTHENTICATED
    } else if target.in_group(ALL_UNAUTHENTICATED) {
        ""
    } else {
        ALL_AUTHENTICATED
    };
    if !group.is_empty() && !target.in_group(group) {
        target.groups.push(group.to_owned());
    }
    let constraint = if mode.is_constrained() { mode.verb() } else { String::new() };
    Ok(Impersonated { user: target, constraint })
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use parking_lot::Mutex;

    /// Allows what it is told to, and remembers what it was asked.
    struct Allows(&'static [&'static str], Mutex<Vec<String>>);

    #[async_trait]
    impl Authorizer for Allows {
        async fn authorize(&self, user: &UserInfo, r: &RequestInfo) -> Decision {
            assert_eq!(user.name.starts_with("system:serviceaccount:"), user.name.contains("robot"));
            let asked =
                format!("{} {}/{}/{}/{}/{}", r.verb, r.group, r.resource, r.subresource, r.namespace, r.name);
            self.1.lock().push(asked.clone());
            if self.0.contains(&asked.as_str()) { Decision::Allow } else { Decision::Deny("no".into()) }
        }
    }

    async fn of(
        allowed: &'static [&'static str],
        requestor: &UserInfo,
        given: &[(&'static str, &str)],
    ) -> (Result<Option<Impersonated>, Status>, Vec<String>) {
        let mut headers = http::HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, value.parse().unwrap());
        }
        let request = RequestInfo {
            verb: "list".into(),
            is_resource: true,
            resource: "pods".into(),
            namespace: "a".into(),
            ..RequestInfo::default()
        };
        let allows = Allows(allowed, Mutex::default());
        let got = impersonate(&allows, requestor, &headers, &request, &Families::default()).await;
        (got, allows.1.into_inner())
    }

    #[tokio::test]
    async fn there_are_several_ways() {
        let admin = UserInfo::new("admin", &[]);
        let mut robot = UserInfo::new("system:serviceaccount:a:robot", &[]);
        robot.extra.insert(NODE_NAME.to_owned(), vec!["n1".to_owned()]);
        const LEGACY: &[&str] = &[
            "impersonate /serviceaccounts//a/b",
            "impersonate /groups///dev",
            "impersonate authentication.k8s.io/userextras/scopes//view",
        ];
        const USER: &[&str] = &[
            "impersonate-on:user-info:list /pods//a/",
            "impersonate:user-info authentication.k8s.io/users///jane",
            "impersonate:user-info authentication.k8s.io/groups///dev",
            "impersonate:user-info authentication.k8s.io/userextras/a.io/k//v",
        ];
        const ACCOUNT: &[&str] = &[
            "impersonate-on:serviceaccount:list /pods//a/",
            "impersonate:serviceaccount authentication.k8s.io/serviceaccounts//a/b",
        ];
        const NODE: &[&str] = &[
            "impersonate-on:arbitrary-node:list /pods//a/",
            "impersonate:arbitrary-node authentication.k8s.io/nodes///n1",
        ];
        const OWN_NODE: &[&str] = &[
            "impersonate-on:associated-node:list /pods//a/",
            "impersonate:associated-node authentication.k8s.io/nodes///*",
        ];
        let account = ("impersonate-user", "system:serviceaccount:a:b");
        let (jane, node) = (("impersonate-user", "jane"), ("impersonate-user", "system:node:n1"));
        let (dev, extra) = (("impersonate-group", "dev"), ("impersonate-extra-a.io%2fk", "v"));
        let scopes = ("impersonate-extra-scopes", "view");
        for (allowed, requestor, headers, constraint, groups) in [
            (LEGACY, &admin, vec![account, dev, scopes], "", vec!["dev", "system:authenticated"]),
            (
                USER,
                &admin,
                vec![jane, dev, extra],
                "impersonate:user-info",
                vec!["dev", "system:authenticated"],
            ),
            (
                ACCOUNT,
                &admin,
                vec![account],
                "impersonate:serviceaccount",
                vec!["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"],
            ),
            (
                NODE,
                &admin,
                vec![node],
                "impersonate:arbitrary-node",
                vec!["system:nodes", "system:authenticated"],
            ),
            (
                OWN_NODE,
                &robot,
                vec![node],
                "impersonate:associated-node",
                vec!["system:nodes", "system:authenticated"],
            ),
        ] {
            let (got, asked) = of(allowed, requestor, &headers).await;
            let got = got.unwrap().unwrap();
            assert_eq!(got.constraint, constraint);
            assert_eq!(got.user.groups, groups);
            assert_eq!(asked, allowed, "nothing else is asked");
        }
    }

    #[tokio::test]
    async fn refusals() {
        let admin = UserInfo::new("admin", &[]);
        let (none, _) = of(&[], &admin, &[]).await;
        assert_eq!(none.unwrap(), None);
        let (nameless, _) = of(&[], &admin, &[("impersonate-group", "dev")]).await;
        assert_eq!(nameless.unwrap_err().code, 400);
        let jane = ("impersonate-user", "jane");
        let (refused, asked) = of(&[], &admin, &[jane]).await;
        assert_eq!(
            refused.unwrap_err().message,
            "pods is forbidden: User \"admin\" cannot impersonate-on:user-info:list resource \"pods\" in API group \
             \"\" in the namespace \"a\": no"
        );
        assert_eq!(asked, ["impersonate-on:user-info:list /pods//a/", "impersonate /users///jane"]);
        const ON: &[&str] = &[
            "impersonate-on:user-info:list /pods//a/",
            "impersonate:user-info authentication.k8s.io/users///jane",
        ];
        for (header, why) in [
            (
                ("impersonate-group", "system:masters"),
                "impersonating the system:masters group is not allowed",
            ),
            (("impersonate-group", ""), "impersonating the empty string group is not allowed"),
            (("impersonate-extra-k", "v"), "impersonating an invalid key in extra is not allowed"),
        ] {
            let told = of(ON, &admin, &[jane, header]).await.0.unwrap_err();
            assert!(told.code == 403 && told.message.contains(why), "{told}");
        }
    }
}
