//! The same requests to the distribution's etcd and to ours, and their answers compared field by field. Response headers are
//! left aside but for the revision. What differs on purpose is listed in `INTENDED`, with the reason.

mod peer;
mod table;
mod watches;

use peer::Peer;
use serde_json::Value;
use table::Step;
use tokio_util::sync::CancellationToken;

/// Differences that are meant: a part of the step's name, whether only etcd 3.4 differs, and why.
const INTENDED: &[(&str, bool, &str)] = &[
    (
        r#""limit":"2","range_end":"czA=","sort_target""#,
        false,
        "etcd sorts only the first keys, one more than the limit, when a target but no order is given",
    ),
    (r#""sort_order":7"#, true, "3.4 takes an order it does not know"),
    (r#""perm":{"key":"Yg==","range_end":"YQ=="}"#, true, "3.4 takes a permission on an empty range"),
    (r#""name":"writer","perm":{}"#, true, "3.4 takes a permission on an empty key"),
    (r#"RoleGet {"role":"writer"} as nobody"#, true, "it has the permissions that later ones refuse"),
    (
        r#"LeaseTimeToLive {"ID":"600","keys":true} as alice"#,
        true,
        "3.4 tells keys that the user may not read",
    ),
    ("Defragment {} as alice", true, "3.4 answers code Unknown with a text of its own, not PermissionDenied"),
    ("Defragment {} as carol", true, "the same"),
    (r#"RoleGet {"role":"root"}"#, true, "3.4 does not tell the permission of the role root"),
];

/// Requests whose answers' headers are not compared at all, and why.
const HEADERS_APART: &[(&str, &str)] =
    &[("Alarm {", "etcd 3.4 answers without a header; later ones fill it in")];

/// Leaves of headers the revision, of tokens nothing, of a lease's time whether it runs; a lease's keys have no order.
fn comparable(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key("grantedTTL") {
                fields.insert("TTL".to_owned(), "…".into());
            }
            if let Some(Value::Array(keys)) = fields.get_mut("keys") {
                keys.sort_by_key(Value::to_string);
            }
            if let Some(Value::Object(header)) = fields.get_mut("header") {
                header.retain(|name, _| name == "revision");
            }
            if let Some(token) = fields.get_mut("token") {
                *token = "…".into();
            }
            fields.values_mut().for_each(comparable);
        }
        Value::Array(items) => items.iter_mut().for_each(comparable),
        _ => {}
    }
}

async fn answer(peer: &Peer, step: &Step) -> Value {
    match peer.call(step.path, step.message.clone(), step.user).await {
        Ok(bytes) => {
            let mut value = (step.decode)(&bytes);
            if let (Some(user), Some(token)) = (step.token_of, value["token"].as_str()) {
                peer.tokens.lock().unwrap().insert(user.to_owned(), token.to_owned());
            }
            comparable(&mut value);
            value
        }
        Err((code, message)) => serde_json::json!({"code": format!("{code:?}"), "message": message}),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_etcds() {
    if !peer::etcd_is_installed() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let (address, serving) = peer::serve(directory.path(), shutdown.clone()).await;
    let (theirs, ours) = tokio::join!(peer::theirs(directory.path()), peer::ours(address));
    let steps = table::table();
    assert!(steps.len() >= 400, "the table has {} requests", steps.len());
    let (mut wrong, mut intended) = (Vec::new(), std::collections::BTreeSet::new());
    let old = theirs.is_old().await;
    let meant: Vec<_> = INTENDED.iter().filter(|(_, only_old, _)| old || !only_old).collect();
    for (i, step) in steps.iter().enumerate() {
        let (mut expected, mut found) = (answer(&theirs, step).await, answer(&ours, step).await);
        if HEADERS_APART.iter().any(|(part, _)| step.name.contains(part)) {
            for answer in [&mut expected, &mut found] {
                answer.as_object_mut().map(|fields| fields.remove("header"));
            }
        }
        if expected == found {
            continue;
        }
        match meant.iter().find(|(part, ..)| step.name.contains(part)) {
            Some((part, ..)) => {
                intended.insert(*part);
            }
            None => wrong.push(format!("{i} {}\n  etcd:   {expected}\n  isopod: {found}", step.name)),
        }
    }
    let unused: Vec<_> = meant.iter().filter(|(part, ..)| !intended.contains(part)).collect();
    println!(
        "{} requests compared, {} differ on purpose, {} differ",
        steps.len(),
        intended.len(),
        wrong.len()
    );
    shutdown.cancel();
    serving.await.unwrap();
    assert!(wrong.is_empty(), "{} answers differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(unused.is_empty(), "listed as intended but equal: {unused:?}");
}
