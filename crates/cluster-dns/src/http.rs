//! `/health`, `/ready` and `/metrics`.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::server::Shared;

const CONNECTIONS_MAX: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);

pub async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    ready: Arc<AtomicBool>,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    let (shared, ready) = (shared.clone(), ready.clone());
                    connections.spawn(async move {
                        let _ = tokio::time::timeout(PATIENCE, answer(stream, &shared, &ready)).await;
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    connections.shutdown().await;
}

async fn answer(mut stream: TcpStream, shared: &Shared, ready: &AtomicBool) -> std::io::Result<()> {
    let mut request = Vec::with_capacity(512);
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        if request.len() > 4096 || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line =
        String::from_utf8_lossy(request.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
    let path = line.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
    let (status, body) = match path {
        "/health" => ("200 OK", "OK".to_owned()),
        "/ready" if ready.load(Ordering::Relaxed) => ("200 OK", "OK".to_owned()),
        "/ready" => ("503 Service Unavailable", "kubernetes".to_owned()),
        "/metrics" => ("200 OK", metrics(shared)),
        _ => ("404 Not Found", "404 page not found\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn metrics(shared: &Shared) -> String {
    let counts = &shared.counts;
    let get = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# TYPE coredns_dns_requests_total counter\ncoredns_dns_requests_total {}",
        get(&counts.requests)
    );
    let _ = writeln!(out, "# TYPE coredns_dns_responses_total counter");
    for (code, count) in [
        ("NOERROR", &counts.no_error),
        ("NXDOMAIN", &counts.nx_domain),
        ("SERVFAIL", &counts.serv_fail),
        ("OTHER", &counts.other),
    ] {
        let _ = writeln!(out, "coredns_dns_responses_total{{rcode=\"{code}\"}} {}", get(count));
    }
    let _ = writeln!(
        out,
        "# TYPE coredns_forward_requests_total counter\ncoredns_forward_requests_total {}",
        get(&counts.forwarded)
    );
    out
}
