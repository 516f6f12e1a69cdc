//! Answers that stream, carried over a WebSocket (RFC 6455) where the client asks for one: a watch as a message per
//! event, a log as messages of bytes under `binary.k8s.io` (or without a protocol) and in base64 under
//! `base64.binary.k8s.io`.

use apimachinery::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use futures::{Sink, SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Body;

/// An event longer than this ends the watch.
const EVENT_BYTES_MAX: usize = 64 << 20;

pub fn asked_for(headers: &HeaderMap) -> bool {
    let names = |name: header::HeaderName, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(token))
    };
    names(header::UPGRADE, "websocket") && names(header::CONNECTION, "upgrade")
}

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// Whatever bytes come together.
    Binary,
    Base64,
    /// One line.
    JsonEvent,
    /// One message with its length before it, four bytes big-endian.
    ProtobufEvent,
}

/// Lets `response` follow over the client's connection and returns the answer to the handshake.
pub fn carry(
    headers: &HeaderMap,
    upgrade: hyper::upgrade::OnUpgrade,
    response: Response<Body>,
    watch: bool,
    tasks: &TaskTracker,
    ending: CancellationToken,
) -> Result<Response<Body>, Status> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| Status::bad_request("missing Sec-WebSocket-Key"))?;
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let offered: Vec<&str> =
        offered.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).collect();
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let (protocol, framing) = match watch {
        true => {
            let protobuf = content_type.is_some_and(|t| t.starts_with("application/vnd.kubernetes.protobuf"));
            let framing = if protobuf { Framing::ProtobufEvent } else { Framing::JsonEvent };
            (offered.iter().find(|p| !p.starts_with("base64url.bearer.")).copied(), framing)
        }
        false => offered
            .iter()
            .find_map(|p| match *p {
                "" => Some((None, Framing::Binary)),
                "binary.k8s.io" => Some((Some(*p), Framing::Binary)),
                "base64.binary.k8s.io" => Some((Some(*p), Framing::Base64)),
                _ => None,
            })
            .or(offered.is_empty().then_some((None, Framing::Binary)))
            .ok_or_else(|| Status::bad_request("websocket: no offered protocol is supported"))?,
    };
    let accept = derive_accept_key(key.as_bytes());
    let mut answer = Response::new(Body::Empty);
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = answer.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).map_err(Status::internal)?);
    if let Some(protocol) = protocol {
        let protocol = HeaderValue::from_str(protocol).map_err(Status::internal)?;
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let body = response.into_body();
    tasks.spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let (mut to_client, mut from_client) = socket.split();
        // The client says nothing of interest; reading answers its pings and hears it leave.
        let gone = async { while let Some(Ok(_)) = from_client.next().await {} };
        tokio::select! {
            () = ending.cancelled() => {}
            () = gone => {}
            _ = send(&mut to_client, body, framing) => {}
        }
    });
    Ok(answer)
}

async fn send(
    to_client: &mut (impl Sink<Message, Error = Error> + Unpin),
    mut body: Body,
    framing: Framing,
) -> Result<(), Error> {
    if matches!(framing, Framing::Binary | Framing::Base64) {
        // An empty message first, so that the client knows the stream is there although there may be no words yet.
        to_client.send(message(Bytes::new(), framing)).await?;
    }
    let mut pending = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        match framing {
            Framing::Binary | Framing::Base64 => to_client.send(message(data, framing)).await?,
            Framing::JsonEvent | Framing::ProtobufEvent => {
                pending.extend_from_slice(&data);
                while let Some(event) = next_event(&mut pending, framing) {
                    to_client.send(message(event, framing)).await?;
                }
                if pending.len() > EVENT_BYTES_MAX {
                    break;
                }
            }
        }
    }
    to_client.close().await
}

/// Takes one whole event off the front.
fn next_event(pending: &mut BytesMut, framing: Framing) -> Option<Bytes> {
    if framing == Framing::JsonEvent {
        let end = memchr::memchr(b'\n', pending)?;
        return Some(pending.split_to(end + 1).freeze());
    }
    let length = u32::from_be_bytes(pending.get(..4)?.try_into().ok()?) as usize;
    if pending.len() - 4 < length {
        return None;
    }
    pending.advance(4);
    Some(pending.split_to(length).freeze())
}

fn message(data: Bytes, framing: Framing) -> Message {
    match framing {
        Framing::Binary | Framing::ProtobufEvent => Message::Binary(data),
        Framing::Base64 => Message::Text(STANDARD.encode(&data).into()),
        Framing::JsonEvent => match String::from_utf8(data.into()) {
            Ok(text) => Message::Text(text.into()),
            Err(error) => Message::Binary(error.into_bytes().into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent(parts: &[&[u8]], framing: Framing) -> Vec<Message> {
        let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::copy_from_slice(p))).collect();
        let (sink, messages) = futures::channel::mpsc::unbounded();
        let mut sink = sink.sink_map_err(|_| Error::ConnectionClosed);
        send(&mut sink, Body::stream(futures::stream::iter(parts)), framing).await.unwrap();
        drop(sink);
        messages.collect().await
    }

    #[tokio::test]
    async fn frames_what_streams() {
        let binary = |b: &'static [u8]| Message::Binary(Bytes::from_static(b));
        let text = |t: &str| Message::Text(t.into());
        let cases: [(&[&[u8]], Framing, Vec<Message>); 4] = [
            (&[b"one\n", b"two\n"], Framing::Binary, vec![binary(b""), binary(b"one\n"), binary(b"two\n")]),
            (&[b"one"], Framing::Base64, vec![text(""), text("b25l")]),
            (&[b"{1}\n{", b"2}\n{3"], Framing::JsonEvent, vec![text("{1}\n"), text("{2}\n")]),
            (&[b"\0\0\0\x02ab\0\0", b"\0\x01c"], Framing::ProtobufEvent, vec![binary(b"ab"), binary(b"c")]),
        ];
        for (parts, framing, want) in cases {
            assert_eq!(sent(parts, framing).await, want, "{framing:?}");
        }
    }

    #[test]
    fn hears_who_asks() {
        for (connection, upgrade, asks) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, upgrade", "WebSocket", true),
            ("Upgrade", "SPDY/3.1", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
            headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
            assert_eq!(asked_for(&headers), asks, "{connection} {upgrade}");
        }
    }
}
