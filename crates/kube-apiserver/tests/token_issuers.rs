//! Tokens of issuers and of webhooks, from the configuration to who the API server takes the client for.

mod common;
#[path = "../src/authentication/jwt/testing.rs"]
#[allow(dead_code)]
mod signing;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::https::{Answer, Https};
use common::{client, cluster_on, engine};
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenReview, UserInfo};
use kube::api::{Api, PostParams};
use kube_apiserver::Handle;
use kube_apiserver::authentication::configuration::AuthenticationConfiguration;
use kube_apiserver::authentication::webhook;
use kube_apiserver::security::Authentication;
use parking_lot::Mutex;
use serde_json::{Value, json};
use signing::{Signer, key_set};

/// An issuer whose keys can be changed.
struct Issuer {
    https: Https,
    keys: Arc<Mutex<Vec<u8>>>,
    fetched: Arc<AtomicUsize>,
}

impl Issuer {
    async fn serve(signers: &[&Signer]) -> Issuer {
        let keys = Arc::new(Mutex::new(key_set(signers)));
        let fetched = Arc::new(AtomicUsize::new(0));
        let (served, counted, url) = (keys.clone(), fetched.clone(), Arc::new(Mutex::new(String::new())));
        let told = url.clone();
        let https = Https::serve(move |asked| match asked.path.as_str() {
            "/.well-known/openid-configuration" | "/elsewhere" => {
                let url = told.lock().clone();
                Answer::json(&json!({"issuer": url, "jwks_uri": format!("{url}/keys")}))
            }
            "/keys" => {
                counted.fetch_add(1, Ordering::SeqCst);
                Answer { body: served.lock().clone(), ..Answer::json(&Value::Null) }
            }
            _ => Answer::code(404),
        })
        .await;
        *url.lock() = https.url.clone();
        Issuer { https, keys, fetched }
    }

    fn yaml(&self, rest: &str) -> String {
        let authority = self.https.authority.replace('\n', "\\n");
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: '{}', \
             audiences: [api, other], audienceMatchPolicy: MatchAny, certificateAuthority: \"{authority}\"}}\n  \
             claimMappings: {{username: {{claim: sub, prefix: 'i:'}}, groups: {{expression: claims.roles}}}}\n{rest}",
            self.https.url
        )
    }

    fn claims(&self, name: &str) -> Value {
        let now = jiff::Timestamp::now().as_second();
        json!({"iss": self.https.url, "sub": name, "aud": "api", "exp": now + 600, "roles": ["dev"], "jti": "7"})
    }
}

fn file(path: &Path, text: &str) -> Option<Authentication> {
    std::fs::write(path, text).unwrap();
    let config = AuthenticationConfiguration::parse(text.as_bytes()).unwrap();
    Some(Authentication::File { path: path.to_owned(), text: text.as_bytes().to_vec(), config })
}

/// Whom the server takes a client for; the code of its refusal otherwise.
async fn who(handle: &Handle, token: Option<&str>) -> Result<UserInfo, u16> {
    let reviews: Api<SelfSubjectReview> = Api::all(client(handle, token));
    match reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await {
        Ok(review) => Ok(review.status.unwrap().user_info.unwrap()),
        Err(error) => Err(common::code(error).0),
    }
}

/// Asks until the answer is what is waited for.
async fn until<T, F: Future<Output = T>>(mut ask: impl FnMut() -> F, good: impl Fn(&T) -> bool) -> T {
    for _ in 0..400 {
        let answer = ask().await;
        if good(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it never came")
}

async fn review(cluster: &common::Cluster, token: &str, audiences: &[&str]) -> Value {
    let reviews: Api<TokenReview> = Api::all(cluster.client.clone());
    let review = json!({"spec": {"token": token, "audiences": audiences}});
    let review = serde_json::from_value(review).unwrap();
    let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
    serde_json::to_value(answer.status.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn issuers_tokens_are_taken() {
    let (data, first) = (tempfile::tempdir().unwrap(), Signer::new("ES256", "one"));
    let issuer = Issuer::serve(&[&first]).await;
    let path = data.path().join("authentication.yaml");
    let anonymous = "anonymous: {enabled: true, conditions: [{path: /livez}]}\n";
    let authentication = file(&path, &issuer.yaml(anonymous));
    let cluster = cluster_on(engine(&data), |c| {
        c.security.authentication = authentication;
        c.security.api_audiences = vec!["api".to_owned()];
    })
    .await;
    let handle = &cluster.handle;
    let good = first.sign(&issuer.claims("jane"));
    let jane = until(|| who(handle, Some(&good)), Result::is_ok).await.unwrap();
    assert_eq!(jane.username.as_deref(), Some("i:jane"));
    assert_eq!(jane.groups.unwrap(), ["dev", "system:authenticated"]);
    assert_eq!(jane.extra.unwrap()["authentication.kubernetes.io/credential-id"], ["JTI=7"]);
    // Others of the same issuer.
    let mut expired = issuer.claims("jane");
    expired["exp"] = json!(1);
    let mut foreign = issuer.claims("jane");
    foreign["aud"] = json!("vault");
    let stranger = Signer::new("ES256", "one");
    for (token, why) in [
        (first.sign(&expired), "oidc: verify token: oidc: token is expired"),
        (
            first.sign(&foreign),
            "oidc: verify token: oidc: expected audience in [\"api\" \"other\"] got [\"vault\"]",
        ),
        (
            stranger.sign(&issuer.claims("x")),
            "oidc: verify token: failed to verify signature: failed to verify id token",
        ),
        ("abc".to_owned(), "invalid bearer token"),
    ] {
        assert_eq!(who(handle, Some(&token)).await, Err(401), "{why}");
        let status = review(&cluster, &token, &[]).await;
        assert!(status["error"].as_str().unwrap().starts_with(why), "{status}");
    }
    let status = review(&cluster, &good, &["api", "vault"]).await;
    assert_eq!(status["audiences"], json!(["api"]));
    assert_eq!(review(&cluster, &good, &["vault"]).await["authenticated"], Value::Null);
    // A new key is asked for when a token names it.
    let second = Signer::new("PS384", "two");
    *issuer.keys.lock() = key_set(&[&second]);
    let before = issuer.fetched.load(Ordering::SeqCst);
    assert_eq!(
        who(handle, Some(&second.sign(&issuer.claims("joe")))).await.unwrap().username.unwrap(),
        "i:joe"
    );
    assert_eq!(issuer.fetched.load(Ordering::SeqCst), before + 1);
    // Without a token, only where the file says.
    assert_eq!(who(handle, None).await, Err(401));
    let livez = http::Request::get("/livez").body(Vec::new()).unwrap();
    assert_eq!(client(handle, None).request_text(livez).await.unwrap(), "ok");
    // The file changes: bad is not taken, good is.
    let reloads = |status: &'static str| async move {
        let metrics = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = cluster.client.request_text(metrics).await.unwrap();
        let name =
            format!("apiserver_authentication_config_controller_automatic_reloads_total{{status={status:?}");
        text.lines().any(|l| l.starts_with(&name))
    };
    std::fs::write(&path, issuer.yaml(anonymous).replace("prefix: 'i:'", "prefixx: 'j:'")).unwrap();
    until(|| reloads.clone()("failure"), |failed| *failed).await;
    assert!(
        who(handle, Some(&second.sign(&issuer.claims("jim"))))
            .await
            .unwrap()
            .username
            .unwrap()
            .starts_with("i:")
    );
    std::fs::write(&path, issuer.yaml(anonymous).replace("prefix: 'i:'", "prefix: 'j:'")).unwrap();
    until(|| reloads.clone()("success"), |done| *done).await;
    assert_eq!(
        who(handle, Some(&second.sign(&issuer.claims("jon")))).await.unwrap().username.unwrap(),
        "j:jon"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_may_come_late_and_be_found_elsewhere() {
    let (data, signer) = (tempfile::tempdir().unwrap(), Signer::new("ES512", "one"));
    let issuer = Issuer::serve(&[&signer]).await;
    let text = issuer
        .yaml("")
        .replace("audiences:", &format!("discoveryURL: '{}/elsewhere', audiences:", issuer.https.url));
    let authentication = file(&data.path().join("a.yaml"), &text);
    let cluster = cluster_on(engine(&data), |c| {
        c.security.authentication = authentication;
        c.security.api_audiences = vec!["api".to_owned()];
    })
    .await;
    let token = signer.sign(&issuer.claims("jane"));
    let jane = until(|| who(&cluster.handle, Some(&token)), Result::is_ok).await.unwrap();
    assert_eq!(jane.username.unwrap(), "i:jane");
    // Own tokens are still known.
    assert_eq!(who(&cluster.handle, Some("alice-token")).await.unwrap().username.unwrap(), "alice");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_tell_whose_tokens_are() {
    for version in ["v1", "v1beta1"] {
        let (data, asked) = (tempfile::tempdir().unwrap(), Arc::new(Mutex::new(Vec::<Value>::new())));
        let seen = asked.clone();
        let https = Https::serve(move |request| {
            assert_eq!(
                (request.method.as_str(), request.path.as_str()),
                ("POST", "/authenticate?timeout=30s")
            );
            assert_eq!(request.headers["authorization"], "Bearer hook");
            let review: Value = serde_json::from_slice(&request.body).unwrap();
            seen.lock().push(review.clone());
            let times = seen.lock().iter().filter(|r| r["spec"]["token"] == review["spec"]["token"]).count();
            let status = match review["spec"]["token"].as_str().unwrap() {
                "flaky" if times < 2 => return Answer::code(500),
                "good" | "flaky" => {
                    json!({"authenticated": true, "user": {"username": "web", "groups": ["g"],
                    "extra": {"k": ["v"]}}})
                }
                "vault" => {
                    json!({"authenticated": true, "user": {"username": "web"}, "audiences": ["vault"]})
                }
                "angry" => json!({"authenticated": false, "error": "go away"}),
                _ => json!({"authenticated": false}),
            };
            let review =
                json!({"kind": review["kind"], "apiVersion": review["apiVersion"], "status": status});
            Answer::json(&review)
        })
        .await;
        let path = data.path().join("kubeconfig");
        std::fs::write(&path, https.kubeconfig("/authenticate")).unwrap();
        let cluster = cluster_on(engine(&data), |c| {
            c.security.api_audiences = vec!["api".to_owned()];
            let cache_ttl = Duration::from_secs(120);
            c.security.token_webhook =
                Some(webhook::Config { file: path, version: version.to_owned(), cache_ttl });
        })
        .await;
        let handle = &cluster.handle;
        for _ in 0..3 {
            let web = who(handle, Some("good")).await.unwrap();
            assert_eq!(web.username.unwrap(), "web");
            assert_eq!(web.extra.unwrap()["k"], ["v"]);
            assert_eq!(who(handle, Some("bad")).await, Err(401));
        }
        assert_eq!(asked.lock().len(), 2, "both are remembered");
        assert_eq!(asked.lock()[0]["spec"]["audiences"], json!(["api"]));
        assert_eq!(asked.lock()[0]["apiVersion"], format!("authentication.k8s.io/{version}"));
        // What is known here is not asked there.
        assert_eq!(who(handle, Some("alice-token")).await.unwrap().username.unwrap(), "alice");
        assert_eq!(asked.lock().len(), 2);
        assert_eq!(who(handle, Some("flaky")).await.unwrap().username.unwrap(), "web");
        assert_eq!(review(&cluster, "angry", &[]).await["error"], "go away");
        assert_eq!(review(&cluster, "vault", &["vault"]).await["audiences"], json!(["vault"]));
        assert_eq!(who(handle, Some("vault")).await, Err(401));
    }
}
