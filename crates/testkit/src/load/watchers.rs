//! Watch fan-out: many watchers of a few objects that change often.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::connection::{Connection, JSON};
use super::process::{self, Usage};
use super::report::Row;
use super::{Load, Request, Target};

/// How long the last events may take.
const DELIVERY_MAX: Duration = Duration::from_secs(60);

/// Objects that take turns, so that their writers rarely meet.
const OBJECTS: usize = 16;

struct Seen {
    events: AtomicUsize,
    bytes: AtomicUsize,
    /// When each change was seen by the first watcher.
    arrivals: std::sync::Mutex<Vec<(usize, Instant)>>,
}

pub async fn phase(load: &Load<'_>, target: &Target) -> Result<()> {
    let flags = load.flags;
    let path = format!("/api/v1/namespaces/{}/configmaps", flags.namespace);
    for i in 0..OBJECTS {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("watched-{i}"), "labels": {"load": "watched"}}, "data": {"change": "0"}});
        load.make(path.clone(), &object).await?;
    }
    let now = Request::get(format!("{path}?labelSelector=load%3Dwatched&limit=1"), JSON);
    let (code, body) = load.connections[0].send(now).await?;
    ensure!(code.is_success(), "{path}: {code}");
    let read: Value = serde_json::from_slice(&body).context("the watched objects")?;
    let version = read["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let seen = Arc::new(Seen {
        events: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        arrivals: std::sync::Mutex::default(),
    });
    let mut watchers = tokio::task::JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..flags.watch_connections.max(1) {
        connections.push(Connection::open(target).await?);
    }
    let wanted = format!("{path}?watch=true&labelSelector=load%3Dwatched&resourceVersion={version}");
    for i in 0..flags.watchers {
        let connection = &connections[i % connections.len()];
        let response = connection.open_stream(Request::get(wanted.clone(), JSON)).await?;
        ensure!(response.status().is_success(), "watch: {}", response.status());
        let seen = seen.clone();
        watchers.spawn(async move { watch(response, &seen, i == 0).await });
    }
    let before = Usage::of(&flags.server_pid)?;
    let started = Instant::now();
    let sent = change(load, &path, flags.events).await?;
    let total = flags.watchers * flags.events;
    let deadline = Instant::now() + DELIVERY_MAX;
    while seen.events.load(Ordering::Relaxed) < total {
        if Instant::now() > deadline {
            bail!("{} of {total} events arrived", seen.events.load(Ordering::Relaxed));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let elapsed = started.elapsed();
    let used = Usage::of(&flags.server_pid)?.since(&before);
    let arrivals = std::mem::take(&mut *seen.arrivals.lock().expect("nobody panics with it"));
    let took = arrivals
        .into_iter()
        .filter_map(|(n, at)| Some(at.saturating_duration_since((*sent.get(n)?)?)))
        .collect();
    let what = format!("watch event ({} watchers)", flags.watchers);
    let bytes = seen.bytes.load(Ordering::Relaxed);
    let (resident, _) = process::resident(&flags.server_pid)?;
    Row { what: &what, count: total, elapsed, used, took, bytes, resident }.print();
    Ok(())
}

/// Changes the watched objects `events` times, some at a time. Tells when each change was sent.
async fn change(load: &Load<'_>, path: &str, events: usize) -> Result<Vec<Option<Instant>>> {
    let mut sent = vec![None; events + 1];
    let mut running = tokio::task::JoinSet::new();
    for (n, sent) in sent.iter_mut().enumerate().skip(1) {
        if running.len() >= OBJECTS / 2 {
            running.join_next().await.transpose()?.transpose()?;
        }
        *sent = Some(Instant::now());
        let connection = load.connections[n % load.connections.len()].clone();
        let request = Request::patch(
            format!("{path}/watched-{}", n % OBJECTS),
            &json!({"data": {"change": n.to_string()}}),
        );
        running.spawn(async move {
            let (code, body) = connection.send(request).await?;
            ensure!(code.is_success(), "patch: {code}: {}", String::from_utf8_lossy(&body));
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(sent)
}

async fn watch(mut response: http::Response<hyper::body::Incoming>, seen: &Seen, timed: bool) -> Result<()> {
    const CHANGE: &str = "\"change\":\"";
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = response.body_mut().frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let now = Instant::now();
        let lines = data.iter().filter(|b| **b == b'\n').count();
        seen.events.fetch_add(lines, Ordering::Relaxed);
        seen.bytes.fetch_add(data.len(), Ordering::Relaxed);
        if !timed {
            continue;
        }
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line);
            let n = text
                .split_once(CHANGE)
                .and_then(|(_, r)| r.split_once('"'))
                .and_then(|(n, _)| n.parse().ok());
            if let Some(n) = n {
                seen.arrivals.lock().expect("nobody panics with it").push((n, now));
            }
        }
    }
    Ok(())
}
