//! Exec, attach and port-forward: between clients and the streaming server that the runtime offers. SPDY clients and
//! the older WebSocket protocols are understood by the runtime itself, so their connections are passed through;
//! `v5.channel.k8s.io` is translated, and port-forward's tunnel is unwrapped.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};

use super::spdy::{self, Event};
use super::{Body, full, text};

pub const V5: &str = "v5.channel.k8s.io";
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Which streams a session has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

pub enum Session {
    Command(Streams),
    PortForward,
}

fn upgrade_of(headers: &HeaderMap) -> String {
    headers.get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_ascii_lowercase()
}

fn protocols(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|p| p.trim().to_owned())
        .collect()
}

/// Answers an upgrade request by connecting it with the runtime's stream at `url`.
pub async fn connect(
    kubelet: &crate::kubelet::Kubelet,
    request: Request<Incoming>,
    url: &str,
    session: Session,
) -> Response<Body> {
    let upgrade = upgrade_of(request.headers());
    let offered = protocols(request.headers());
    let offers = |p: &str| offered.iter().any(|o| o == p);
    let result = match (upgrade.as_str(), session) {
        ("websocket", Session::Command(streams)) if offers(V5) => {
            translate(kubelet, request, url, streams).await
        }
        ("websocket", Session::PortForward) if offers(TUNNEL) => tunnel(kubelet, request, url).await,
        ("websocket" | "spdy/3.1", _) => pass_through(kubelet, request, url).await,
        _ => return text(StatusCode::BAD_REQUEST, "Upgrade request required"),
    };
    result.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, error))
}

async fn pass_through(
    kubelet: &crate::kubelet::Kubelet,
    mut request: Request<Incoming>,
    url: &str,
) -> Result<Response<Body>, String> {
    let mut headers = request.headers().clone();
    for private in [header::AUTHORIZATION, header::HOST, header::CONTENT_LENGTH, header::ORIGIN] {
        headers.remove(private);
    }
    let answer = open(kubelet, url, headers).await?;
    let (answer, runtime) = match answer {
        Answer::Refused(response) => return Ok(response),
        Answer::Upgraded(headers, runtime) => (headers, runtime),
    };
    let client = hyper::upgrade::on(&mut request);
    let stop = kubelet.shutdown.clone();
    kubelet.tasks.spawn(async move {
        let Ok(client) = client.await else { return };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        tokio::select! {
            _ = stop.cancelled() => {}
            _ = tokio::io::copy_bidirectional(&mut client, &mut runtime) => {}
        }
    });
    switching(answer)
}

fn switching(headers: HeaderMap) -> Result<Response<Body>, String> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    Ok(response)
}

enum Answer {
    Refused(Response<Body>),
    Upgraded(HeaderMap, Upgraded),
}

/// Upgrades a connection to the runtime and keeps it driven.
async fn open(kubelet: &crate::kubelet::Kubelet, url: &str, headers: HeaderMap) -> Result<Answer, String> {
    let uri: http::Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
    let authority = uri.authority().ok_or("the runtime's URL has no host")?.clone();
    let tcp = TcpStream::connect(authority.as_str()).await.map_err(|e| format!("{authority}: {e}"))?;
    let _ = tcp.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|e| e.to_string())?;
    let stop = kubelet.shutdown.clone();
    kubelet.tasks.spawn(async move {
        tokio::select! {
            _ = stop.cancelled() => {}
            _ = connection.with_upgrades() => {}
        }
    });
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::post(path).body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    if headers.get(header::UPGRADE).is_some_and(|u| u.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        *request.method_mut() = http::Method::GET;
    }
    *request.headers_mut() = headers;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|e| e.to_string())?;
    request.headers_mut().insert(header::HOST, host);
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        return Ok(Answer::Refused(text(status, String::from_utf8_lossy(&body).into_owned())));
    }
    let headers = response.headers().clone();
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| e.to_string())?;
    Ok(Answer::Upgraded(headers, upgraded))
}

fn spdy_headers(protocol: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert("x-stream-protocol-version", HeaderValue::from_static(protocol));
    headers
}

/// Answers a WebSocket handshake; the socket comes once the answer is sent.
fn accept(
    request: &mut Request<Incoming>,
    protocol: &'static str,
) -> Result<(HeaderMap, hyper::upgrade::OnUpgrade), String> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).ok_or("Sec-WebSocket-Key is missing")?;
    let accept = derive_accept_key(key.as_bytes());
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).map_err(|e| e.to_string())?);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok((headers, hyper::upgrade::on(request)))
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn socket(upgrade: hyper::upgrade::OnUpgrade) -> Option<Socket> {
    let upgraded = upgrade.await.ok()?;
    Some(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await)
}

/// Bytes of SPDY wrapped in WebSocket messages.
async fn tunnel(
    kubelet: &crate::kubelet::Kubelet,
    mut request: Request<Incoming>,
    url: &str,
) -> Result<Response<Body>, String> {
    let runtime = match open(kubelet, url, spdy_headers("portforward.k8s.io")).await? {
        Answer::Refused(response) => return Ok(response),
        Answer::Upgraded(_, runtime) => runtime,
    };
    let (headers, upgrade) = accept(&mut request, TUNNEL)?;
    let stop = kubelet.shutdown.clone();
    kubelet.tasks.spawn(async move {
        let Some(socket) = socket(upgrade).await else { return };
        tokio::select! {
            _ = stop.cancelled() => {}
            _ = relay(socket, TokioIo::new(runtime)) => {}
        }
    });
    switching(headers)
}

async fn relay(socket: Socket, runtime: TokioIo<Upgraded>) {
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_runtime, mut to_runtime) = tokio::io::split(runtime);
    let inward = async {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                Message::Binary(data) => {
                    let written = to_runtime.write_all(&data).await;
                    if written.and(to_runtime.flush().await).is_err() {
                        return;
                    }
                }
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let outward = async {
        let mut buffer = vec![0u8; 32 << 10];
        loop {
            match from_runtime.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    if to_client.send(Message::binary(buffer[..n].to_vec())).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::pin!(inward);
    tokio::pin!(outward);
    tokio::select! {
        _ = &mut inward => {}
        _ = &mut outward => {}
    }
}

mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
    /// Says that the channel named in its payload is closed.
    pub const CLOSE: u8 = 255;
}

/// WebSocket channels on the one side, SPDY streams on the other.
async fn translate(
    kubelet: &crate::kubelet::Kubelet,
    mut request: Request<Incoming>,
    url: &str,
    streams: Streams,
) -> Result<Response<Body>, String> {
    let runtime = match open(kubelet, url, spdy_headers("v4.channel.k8s.io")).await? {
        Answer::Refused(response) => return Ok(response),
        Answer::Upgraded(_, runtime) => runtime,
    };
    let (headers, upgrade) = accept(&mut request, V5)?;
    let stop = kubelet.shutdown.clone();
    kubelet.tasks.spawn(async move {
        let Some(socket) = socket(upgrade).await else { return };
        let work = session(socket, TokioIo::new(runtime), streams);
        tokio::select! {
            _ = stop.cancelled() => {}
            result = work => if let Err(error) = result {
                tracing::debug!(%error, "a stream ended");
            }
        }
    });
    switching(headers)
}

async fn session<C, R>(mut socket: WebSocketStream<C>, runtime: R, streams: Streams) -> std::io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite,
{
    let (mut reader, mut writer) = spdy::client(runtime)?;
    let mut channels: Vec<(u8, u32)> = Vec::new();
    let wanted = [
        (true, channel::ERROR, "error"),
        (streams.stdin, channel::STDIN, "stdin"),
        (streams.stdout, channel::STDOUT, "stdout"),
        (streams.stderr && !streams.tty, channel::STDERR, "stderr"),
        (streams.tty, channel::RESIZE, "resize"),
    ];
    for (_, number, kind) in wanted.into_iter().filter(|(is, ..)| *is) {
        channels.push((number, writer.open(&[("streamType", kind)]).await?));
    }
    let stream_of = |number: u8| channels.iter().find(|(n, _)| *n == number).map(|(_, s)| *s);
    let channel_of = |stream: u32| channels.iter().find(|(_, s)| *s == stream).map(|(n, _)| *n);
    // What the other side still has to end.
    let mut open: Vec<u8> = channels
        .iter()
        .map(|(n, _)| *n)
        .filter(|n| matches!(*n, channel::STDOUT | channel::STDERR | channel::ERROR))
        .collect();
    // An empty message says that the connection stands.
    let first = [channel::STDOUT, channel::STDERR].into_iter().find(|n| open.contains(n));
    let greeting = Message::binary(vec![first.unwrap_or(channel::ERROR)]);
    let mut client_gone = socket.send(greeting).await.is_err();
    while !open.is_empty() {
        tokio::select! {
            event = reader.next() => match event? {
                Event::Data { stream, data, fin } => {
                    let Some(number) = channel_of(stream) else { continue };
                    if !data.is_empty() && !client_gone {
                        let mut message = Vec::with_capacity(data.len() + 1);
                        message.push(number);
                        message.extend_from_slice(&data);
                        client_gone = socket.send(Message::binary(message)).await.is_err();
                    }
                    if fin {
                        open.retain(|n| *n != number);
                    }
                }
                Event::Reset { stream } => open.retain(|n| Some(*n) != channel_of(stream)),
                Event::Reply(bytes) => writer.raw(&bytes).await?,
                Event::Closed => break,
            },
            message = socket.next(), if !client_gone => match message {
                // Clients in languages that tell strings from bytes send either.
                Some(Ok(message @ (Message::Binary(_) | Message::Text(_)))) => {
                    let data = message.into_data();
                    let Some((number, payload)) = data.split_first() else { continue };
                    if *number == channel::CLOSE {
                        if let Some(stream) = payload.first().and_then(|n| stream_of(*n)) {
                            writer.data(stream, &[], true).await?;
                        }
                    } else if let Some(stream) = stream_of(*number)
                        && !payload.is_empty()
                    {
                        writer.data(stream, payload, false).await?;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    // Without a client there is nobody to run for: the runtime ends the command.
                    return Ok(());
                }
                Some(Ok(_)) => {}
            },
        }
    }
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = socket.close(Some(normal)).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn text_is_as_good_as_bytes() {
        let (near, far) = tokio::io::duplex(4096);
        let (runtime, container) = tokio::io::duplex(4096);
        let server = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
        let streams = Streams { stdin: true, stdout: true, ..Streams::default() };
        let work = tokio::spawn(session(server, runtime, streams));
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let (mut reader, mut writer) = spdy::client(container).unwrap();
        let greeting = client.next().await.unwrap().unwrap();
        assert_eq!(greeting, Message::binary(vec![channel::STDOUT]));
        // Streams are opened in this order: error, stdin, stdout.
        let (error, stdin, stdout) = (1, 3, 5);
        for message in [Message::text("\0words\n"), Message::binary(b"\0words\n".to_vec())] {
            client.send(message).await.unwrap();
            let event = reader.next().await.unwrap();
            assert_eq!(event, Event::Data { stream: stdin, data: "words\n".into(), fin: false });
        }
        writer.data(stdout, b"words\n", true).await.unwrap();
        writer.data(error, b"", true).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(b"\x01words\n".to_vec()));
        assert!(matches!(client.next().await, Some(Ok(Message::Close(Some(_))))));
        work.await.unwrap().unwrap();
    }
}
