//! Requests that a server has to refuse, and some it has to complete, with the answers upstream v1.36.2 gave to them.
//!
//! `answers/*.jsonl` hold a request and its answer a line, in groups that build on one another: the groups, and the
//! lines of each, are sent in order to one server. Names such as `${sa.uid}` stand for what an earlier answer, marked
//! `save`, had there. An answer is its code, its reason, the fields its causes blame and why, and the message where
//! that does not print upstream's own data structures; `object` is the whole object, without what differs from run to
//! run.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{client, cluster};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

const GROUPS: [(&str, &str); 17] = [
    ("setup", include_str!("answers/setup.jsonl")),
    ("fields", include_str!("answers/fields.jsonl")),
    ("defaults", include_str!("answers/defaults.jsonl")),
    ("protocol", include_str!("answers/protocol.jsonl")),
    ("http", include_str!("answers/http.jsonl")),
    ("pods", include_str!("answers/pods.jsonl")),
    ("core", include_str!("answers/core.jsonl")),
    ("apps", include_str!("answers/apps.jsonl")),
    ("batch", include_str!("answers/batch.jsonl")),
    ("policy", include_str!("answers/policy.jsonl")),
    ("rbac", include_str!("answers/rbac.jsonl")),
    ("networking", include_str!("answers/networking.jsonl")),
    ("storage", include_str!("answers/storage.jsonl")),
    ("small", include_str!("answers/small.jsonl")),
    ("extensions", include_str!("answers/extensions.jsonl")),
    ("admission", include_str!("answers/admission.jsonl")),
    ("updates", include_str!("answers/updates.jsonl")),
];

/// After which an answer is held to have no end.
const ENDLESS: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    method: String,
    path: String,
    /// Text is sent as it is, all else as JSON.
    #[serde(default)]
    body: Option<Value>,
    /// Content type; JSON by default, none if empty.
    #[serde(rename = "type")]
    content_type: Option<String>,
    /// Token: an administrator's by default, none if empty.
    token: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Under what name to keep identity and version of the answer.
    save: Option<String>,
    /// Whether to try until it works, for what takes effect a little later.
    #[serde(default)]
    wait: bool,
    answer: Answer,
}

#[derive(Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
struct Answer {
    code: u16,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: Option<String>,
    /// Field and reason of each cause.
    #[serde(default)]
    causes: BTreeSet<(String, String)>,
    #[serde(default)]
    object: Option<Value>,
    /// The texts of Warning headers, where they are looked at.
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

/// Puts fixed text in place of what differs from run to run.
fn settled(text: &str) -> String {
    let is_uid = |t: &str| {
        t.len() == 36
            && t.bytes().enumerate().all(|(i, b)| match i {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_hexdigit(),
            })
    };
    let is_time = |t: &str| {
        t.as_bytes().get(4) == Some(&b'-') && t.as_bytes().get(10) == Some(&b'T') && t.ends_with('Z')
    };
    let is_service_ip = |t: &str| {
        t.parse::<std::net::Ipv4Addr>().is_ok_and(|a| a.octets()[0] == 10 && a.octets()[1] & 0xf0 == 96)
    };
    let mut out = String::new();
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        let (found, after) = rest.split_at(end);
        // Punctuation at the end of a sentence is no part of the word.
        let bare = found.trim_end_matches([':', '.']);
        out.push_str(match bare {
            _ if is_uid(bare) => "<uid>",
            _ if is_time(bare) => "<time>",
            _ if is_service_ip(bare) => "<ip>",
            _ if bare.starts_with("kube-api-access-") => "kube-api-access-<r>",
            _ => bare,
        });
        out.push_str(&found[bare.len()..]);
        let skip = after.find(word).unwrap_or(after.len());
        out.push_str(&after[..skip]);
        rest = &after[skip..];
    }
    out
}

fn settled_object(value: &mut Value, at: &str) {
    match value {
        Value::Object(object) => {
            object.remove("managedFields");
            object.iter_mut().for_each(|(key, value)| settled_object(value, key));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| settled_object(v, "")),
        Value::String(_) | Value::Number(_)
            if matches!(at, "uid" | "resourceVersion" | "creationTimestamp" | "nodePort") =>
        {
            *value = "<v>".into();
        }
        Value::String(text) => *text = settled(text),
        _ => {}
    }
}

fn with_saved(text: &str, saved: &BTreeMap<String, String>) -> String {
    let mut out = text.to_owned();
    for (name, value) in saved.iter().filter(|_| text.contains("${")) {
        out = out.replace(&format!("${{{name}}}"), value);
    }
    out
}

fn request(case: &Case, saved: &BTreeMap<String, String>) -> http::Request<kube::client::Body> {
    let path = with_saved(&case.path, saved).replace(' ', "%20");
    let mut request = http::Request::builder().method(case.method.as_str()).uri(path);
    if !case.headers.contains_key("Accept") {
        request = request.header("Accept", "application/json");
    }
    for (name, value) in &case.headers {
        request = request.header(name, with_saved(value, saved));
    }
    let body = case.body.as_ref().map(|body| match body {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    match (&body, case.content_type.as_deref()) {
        (None, _) | (_, Some("")) => {}
        (_, named) => request = request.header("Content-Type", named.unwrap_or("application/json")),
    }
    let body = with_saved(&body.unwrap_or_default(), saved);
    request.body(body.into_bytes().into()).unwrap()
}

fn answer(code: u16, body: &Value, whole: bool) -> Answer {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let failed = body["kind"] == "Status" && body["status"] == "Failure";
    let causes = body["details"]["causes"].as_array().into_iter().flatten().map(|cause| {
        let text = |name: &str| cause[name].as_str().unwrap_or_default().to_owned();
        (text("field"), text("reason"))
    });
    let mut object = body.clone();
    settled_object(&mut object, "");
    Answer {
        code,
        reason: if failed { text("reason") } else { String::new() },
        message: failed.then(|| settled(&text("message"))),
        causes: if failed { causes.collect() } else { BTreeSet::new() },
        object: (whole && !failed).then_some(object),
        warnings: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_as_upstream_does() {
    let cluster = cluster().await;
    let mut saved: BTreeMap<String, String> = BTreeMap::new();
    let mut clients: BTreeMap<String, kube::Client> = BTreeMap::new();
    let (mut tried, mut wrong) = (0, Vec::new());
    for (group, text) in GROUPS {
        for line in text.lines().filter(|l| !l.is_empty()) {
            let case: Case = serde_json::from_str(line).unwrap_or_else(|e| panic!("{group}: {e}: {line}"));
            let token = with_saved(case.token.as_deref().unwrap_or("t"), &saved);
            let client = clients
                .entry(token.clone())
                .or_insert_with(|| client(&cluster.handle, Some(token.as_str()).filter(|t| !t.is_empty())));
            let mut attempts = if case.wait { 40 } else { 1 };
            let (code, warnings, body) = loop {
                let exchange = async {
                    let response = client.send(request(&case, &saved)).await.unwrap();
                    let code = response.status().as_u16();
                    let warnings = response.headers().get_all("warning").iter();
                    let warnings: Vec<String> =
                        warnings.filter_map(|w| w.to_str().ok()).map(str::to_owned).collect();
                    (code, warnings, response.into_body().collect().await.unwrap().to_bytes())
                };
                // One that never ends is a wrong answer too.
                let (code, warnings, bytes) = timeout(ENDLESS, exchange).await.unwrap_or_default();
                attempts -= 1;
                if attempts == 0 || code < 300 {
                    break (code, warnings, serde_json::from_slice(&bytes).unwrap_or(Value::Null));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            if let Some(name) = &case.save {
                for (part, pointer) in [
                    ("uid", "/metadata/uid"),
                    ("rv", "/metadata/resourceVersion"),
                    ("continue", "/metadata/continue"),
                    ("token", "/status/token"),
                ] {
                    let value = body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
                    saved.insert(format!("{name}.{part}"), value.to_owned());
                }
            }
            let mut got = answer(code, &body, case.answer.object.is_some());
            if case.answer.message.is_none() {
                got.message = None;
            }
            got.warnings = case.answer.warnings.is_some().then_some(warnings);
            tried += 1;
            if got != case.answer {
                wrong.push(format!("{group}: {}\n  want {:?}\n  got  {got:?}", case.name, case.answer));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried} answers are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
