//! The store's trait over the network: against a member of ours and, where it is installed, the distribution's etcd.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use etcd::flags::Flags;
use etcd::remote::{Options, Remote};
use etcd::server;
use futures::StreamExt;
use storage::{Change, Error, Event, Expect, KeyRange, RangeRequest, Store, WriteOutcome, WriteRequest};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
}

async fn connect(url: String, prefix: Option<&str>) -> Remote {
    let options = Options { endpoints: vec![url], prefix: prefix.map(str::to_owned), ..Options::default() };
    for _ in 0..200 {
        if let Ok(remote) = Remote::connect(options.clone()).await {
            return remote;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the store is not reached");
}

async fn write(store: &Remote, key: &str, expect: Expect, value: Option<&str>) -> WriteOutcome {
    let change = match value {
        Some(value) => Change::Put { value: Bytes::copy_from_slice(value.as_bytes()), lease: 0 },
        None => Change::Delete,
    };
    store.write(WriteRequest { key: key.to_owned().into(), expect, change }).await.unwrap()
}

fn written(outcome: WriteOutcome) -> i64 {
    match outcome {
        WriteOutcome::Written { revision } => revision,
        WriteOutcome::Unmet { .. } => panic!("{outcome:?}"),
    }
}

/// What an API server asks of a store. `root` is where it really lies.
async fn behaves(store: Remote, plain: Remote, root: &str) {
    let first = written(write(&store, "/registry/a", Expect::Absent, Some("1")).await);
    let WriteOutcome::Unmet { current: Some(current), .. } =
        write(&store, "/registry/a", Expect::Absent, Some("2")).await
    else {
        panic!("written over")
    };
    assert_eq!((&current.value[..], current.mod_revision), (&b"1"[..], first));
    assert_eq!(&current.key[..], b"/registry/a");
    let second = written(write(&store, "/registry/a", Expect::ModRevision(first), Some("2")).await);
    assert!(matches!(
        write(&store, "/registry/a", Expect::ModRevision(first), None).await,
        WriteOutcome::Unmet { .. }
    ));
    assert!(matches!(
        write(&store, "/registry/none", Expect::Anything, None).await,
        WriteOutcome::Unmet { .. }
    ));
    let there = plain.range(RangeRequest::new(KeyRange::key(format!("{root}/a")))).await.unwrap();
    assert_eq!(there.kvs.len(), 1, "keys lie below {root}");

    let everything = KeyRange::prefix("/registry/");
    let mut watch = store.watch(everything.clone(), first).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(watch.next().await.unwrap().unwrap().events);
    }
    assert_eq!(seen.iter().map(Event::revision).collect::<Vec<_>>(), [first, second]);
    let third = written(write(&store, "/registry/a", Expect::ModRevision(second), None).await);
    let batch = watch.next().await.unwrap().unwrap();
    assert!(
        matches!(&batch.events[..], [Event::Delete { key, revision, .. }] if key == "/registry/a" && *revision == third)
    );

    // A write elsewhere: who asks for the revision gets it, and so does the watch, without an event.
    let elsewhere = written(write(&plain, "elsewhere", Expect::Anything, Some("x")).await);
    let told = async {
        loop {
            assert!(store.revision().await.unwrap() >= elsewhere);
            let next = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
            if let Ok(batch) = next {
                let batch = batch.unwrap().unwrap();
                assert!(batch.events.is_empty());
                if batch.revision >= elsewhere {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.expect("the watch tells how far it is");

    for i in 0..25 {
        written(write(&store, &format!("/registry/p/{i:02}"), Expect::Absent, Some("v")).await);
    }
    let pages = RangeRequest { limit: 10, ..RangeRequest::new(KeyRange::prefix("/registry/p/")) };
    let found = store.range(pages).await.unwrap();
    assert_eq!((found.kvs.len(), found.more, found.count), (10, true, 25));
    let old = RangeRequest { revision: Some(second), ..RangeRequest::new(everything.clone()) };
    assert_eq!(store.range(old.clone()).await.unwrap().kvs.len(), 1);
    store.compact(third).await.unwrap();
    assert!(matches!(store.range(old).await, Err(Error::Compacted { .. })));
    let mut late = store.watch(everything, first).await.unwrap();
    assert!(matches!(late.next().await, Some(Err(Error::Compacted { compacted })) if compacted == third));

    let lease = store.lease_grant(60).await.unwrap();
    let change = Change::Put { value: "v".into(), lease };
    let leased = WriteRequest { key: "/registry/l".into(), expect: Expect::Absent, change };
    written(store.write(leased).await.unwrap());
    store.lease_keep_alive(lease).await.unwrap();
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(store.lease_keep_alive(lease).await, Err(Error::LeaseNotFound));
    let gone = store.range(RangeRequest::new(KeyRange::key("/registry/l"))).await.unwrap();
    assert!(gone.kvs.is_empty());
    assert!(store.size_bytes().await.unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_ours() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("a");
    let url = "http://127.0.0.1:0";
    let arguments = [
        "etcd",
        "--data-dir",
        data.to_str().unwrap(),
        "--listen-client-urls",
        url,
        "--advertise-client-urls",
        url,
    ];
    let prepared = server::prepare(Arguments::parse_from(arguments).flags.config().unwrap()).await.unwrap();
    let (url, shutdown) = (format!("http://{}", prepared.addresses()[0]), CancellationToken::new());
    let running = tokio::spawn(prepared.run(shutdown.clone()));
    let plain = connect(url.clone(), None).await;
    behaves(connect(url.clone(), None).await, plain.clone(), "/registry").await;
    behaves(connect(url, Some("/other/place/")).await, plain, "/other/place").await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_distributions_etcd() {
    let directory = tempfile::tempdir().unwrap();
    let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (url, peer) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
    let started = Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.path().join("b"))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(process) = started else {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "the program etcd is not installed, and CI=true"
        );
        eprintln!("NOT RUN: the program etcd is not installed (scripts/install-dependencies installs it)");
        return;
    };
    let _ended = Ended(process);
    let plain = connect(url.clone(), None).await;
    behaves(connect(url, None).await, plain, "/registry").await;
}
