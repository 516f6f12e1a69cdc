//! Requests this server sends to services it is configured with: webhooks named by kubeconfig files, issuers of tokens.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

/// The most that one request may last.
pub const TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 16 << 20;
const ERROR_BYTES_MAX: usize = 2048;

/// Why a request had no answer, or none that helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The other side answered with this code.
    Refused {
        code: u16,
        message: String,
        retry_after: bool,
    },
    /// The connection failed, or the answer is no answer.
    Broken {
        message: String,
        reset: bool,
    },
    TimedOut {
        message: String,
    },
}

impl Failure {
    /// Whether trying again may help, as upstream sees it.
    pub fn is_transient(&self) -> bool {
        match self {
            Failure::Refused { code, retry_after, .. } => *retry_after || matches!(code, 429 | 500 | 504),
            Failure::Broken { reset, .. } => *reset,
            Failure::TimedOut { .. } => false,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Failure::Refused { message, .. }
        | Failure::Broken { message, .. }
        | Failure::TimedOut { message }) = self;
        f.write_str(message)
    }
}

impl std::error::Error for Failure {}

/// A service, and how it is reached.
#[derive(Clone)]
pub struct Service {
    client: kube::Client,
    /// Scheme and authority, as they are told.
    origin: String,
    /// The path that was configured.
    path: String,
}

/// An answer with a code of success.
pub struct Answer {
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Service {
    /// The cluster that a kubeconfig file's current context names.
    pub async fn from_kubeconfig(path: &Path) -> anyhow::Result<Service> {
        let config = Kubeconfig::read_from(path)?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        Service::new(config)
    }

    /// Whatever listens at an HTTPS URL, with the machine's own authorities or those given (DER).
    pub fn at(url: &Uri, authorities: Option<Vec<Vec<u8>>>) -> anyhow::Result<Service> {
        let mut config = kube::Config::new(url.clone());
        config.root_cert = authorities;
        Service::new(config)
    }

    fn new(mut config: kube::Config) -> anyhow::Result<Service> {
        let mut parts = config.cluster_url.clone().into_parts();
        let path = parts.path_and_query.as_ref().map_or("/", |p| p.path()).to_owned();
        // The client would join paths with a slash between, which servers tell apart.
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        config.cluster_url = Uri::from_parts(parts)?;
        config.default_retry = false;
        config.connect_timeout = Some(TIMEOUT);
        config.read_timeout = Some(TIMEOUT);
        let origin = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        Ok(Service { client: kube::Client::try_from(config)?, origin, path })
    }

    /// Posts an object to the configured path and returns the object of the answer.
    pub async fn post(&self, object: &Value, timeout: Duration) -> Result<Value, Failure> {
        let body = serde_json::to_vec(object).map_err(|e| broken(e.to_string(), false))?.into();
        let target = format!("{}?timeout={}", self.path, apimachinery::duration::format(timeout));
        let answer = self.exchange(Method::POST, &target, Some(body), None, timeout).await?;
        serde_json::from_slice(&answer.body)
            .map_err(|e| broken(format!("couldn't get version/kind; json parse error: {e}"), false))
    }

    /// Posts what wants no answer but that it was taken.
    pub async fn deliver(&self, body: Bytes) -> Result<(), Failure> {
        let target = format!("{}?timeout={}", self.path, apimachinery::duration::format(TIMEOUT));
        self.exchange(Method::POST, &target, Some(body), None, TIMEOUT).await.map(|_| ())
    }

    /// Fetches what is at a path and query of the service.
    pub async fn get(&self, target: &str, bearer: Option<&str>) -> Result<Answer, Failure> {
        self.exchange(Method::GET, target, None, bearer, TIMEOUT).await
    }

    async fn exchange(
        &self,
        method: Method,
        target: &str,
        body: Option<Bytes>,
        bearer: Option<&str>,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let what = {
            let verb = if method == Method::POST { "Post" } else { "Get" };
            format!("{verb} {:?}", format!("{}{target}", self.origin))
        };
        let mut request =
            Request::builder().method(method.clone()).uri(target).header("user-agent", "kube-apiserver");
        if body.is_some() {
            request =
                request.header("content-type", "application/json").header("accept", "application/json, */*");
        }
        if let Some(bearer) = bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let request = request.body(Body::from(body.unwrap_or_default()));
        let request = request.map_err(|e| broken(format!("{what}: {e}"), false))?;
        let call = async {
            let failed = |e: &(dyn std::error::Error + 'static)| {
                let (text, reset) = told(e);
                broken(format!("{what}: {text}"), reset)
            };
            let response = self.client.send(request).await.map_err(|e| failed(&e))?;
            let (head, body) = response.into_parts();
            let body =
                Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|e| failed(&*e))?.to_bytes();
            if head.status.is_success() {
                return Ok(Answer { headers: head.headers, body });
            }
            let message =
                if method == Method::POST { refusal(head.status, &body) } else { shown(head.status, &body) };
            let retry_after = head.headers.contains_key(header::RETRY_AFTER);
            Err(Failure::Refused { code: head.status.as_u16(), message, retry_after })
        };
        tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| {
            let why = "net/http: request canceled (Client.Timeout exceeded while awaiting headers)";
            Err(Failure::TimedOut { message: format!("{what}: {why}") })
        })
    }
}

fn broken(message: String, reset: bool) -> Failure {
    Failure::Broken { message, reset }
}

/// The innermost reason of an error, and whether it is that the connection was reset.
fn told(error: &(dyn std::error::Error + 'static)) -> (String, bool) {
    let (mut at, mut reset) = (error, false);
    loop {
        if let Some(io) = at.downcast_ref::<std::io::Error>() {
            reset |= io.kind() == std::io::ErrorKind::ConnectionReset;
            // Errors within errors of this kind are not among their sources.
            if let Some(inner) = io.get_ref() {
                at = inner;
                continue;
            }
        }
        match at.source() {
            Some(source) => at = source,
            None => return (at.to_string(), reset),
        }
    }
}

fn shown(status: StatusCode, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(&body[..body.len().min(ERROR_BYTES_MAX)]);
    format!("{}: {body}", status_line(status))
}

fn status_line(status: StatusCode) -> String {
    format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default())
}

/// What is made of an answer to a review that is no success.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let told: Option<Value> = serde_json::from_slice(body).ok();
    if let Some(message) = told.as_ref().filter(|v| v["kind"] == "Status").and_then(|v| v["message"].as_str())
    {
        return message.to_owned();
    }
    let body = String::from_utf8_lossy(&body[..body.len().min(ERROR_BYTES_MAX)]).trim().to_owned();
    match status.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => body,
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request"
            .to_owned(),
        500.. => format!("an error on the server ({body:?}) has prevented the request from succeeding"),
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}

/// How often, and after which pauses, a request that failed is sent again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub initial: Duration,
    pub steps: u32,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { initial: Duration::from_millis(500), steps: 5 }
    }
}

impl Backoff {
    /// Calls until it succeeds, fails for good, or was tried often enough.
    pub async fn retry<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        call: impl FnMut() -> F,
    ) -> Result<T, Failure> {
        self.retry_if(call, Failure::is_transient).await
    }

    /// As [`Backoff::retry`], of failures that `again` says to try again after.
    pub async fn retry_if<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        mut call: impl FnMut() -> F,
        again: impl Fn(&Failure) -> bool,
    ) -> Result<T, Failure> {
        const FACTOR: f64 = 1.5;
        const JITTER: f64 = 0.2;
        let mut pause = self.initial;
        for _ in 1..self.steps {
            match call().await {
                Err(failure) if again(&failure) => {}
                done => return done,
            }
            tokio::time::sleep(pause.mul_f64(1.0 + JITTER * rand::random::<f64>())).await;
            pause = pause.mul_f64(FACTOR);
        }
        call().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told() {
        for (code, body, want) in [
            (403, "no", "no"),
            (404, "", "the server could not find the requested resource"),
            (500, "x", "an error on the server (\"x\") has prevented the request from succeeding"),
            (409, r#"{"kind":"Status","message":"m"}"#, "m"),
        ] {
            assert_eq!(refusal(StatusCode::from_u16(code).unwrap(), body.as_bytes()), want);
        }
    }

    #[tokio::test]
    async fn tries_again() {
        let backoff = Backoff { initial: Duration::from_micros(10), ..Backoff::default() };
        for (code, want) in [(500, 5), (429, 5), (504, 5), (401, 1), (503, 1)] {
            let mut calls = 0;
            let failed: Result<(), _> = backoff
                .retry(|| {
                    calls += 1;
                    async move { Err(Failure::Refused { code, message: String::new(), retry_after: false }) }
                })
                .await;
            assert!(matches!(failed, Err(Failure::Refused { code: c, .. }) if c == code));
            assert_eq!(calls, want, "{code}");
        }
    }
}
