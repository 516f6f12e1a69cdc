//! gRPC over hyper: length-prefixed messages in, length-prefixed messages and a status in the trailers out.
//!
//! A handler's answer is one buffer that goes to the socket as it is; a stream is pulled by the connection when the
//! peer's window has room, so a slow reader holds nothing but its own place.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::Message;
use tonic::{Code, Status};
use transport::inbound::Inbound;

use super::Member;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const MESSAGE_ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Bytes before each message: a flag for compression and the length.
pub const PREFIX: usize = 5;

/// Frames of a streamed answer: each item is one or more whole messages with their prefixes.
pub type Frames = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// What goes back to the client.
pub enum Body {
    Empty,
    /// Plain HTTP.
    Full(Bytes),
    /// Plain HTTP, streamed.
    Chunks(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
    /// One message, then status 0.
    Unary(Bytes),
    Stream(Frames),
    /// The status that is still to be sent.
    Trailers(Status),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            match &mut *self {
                Body::Empty => return Poll::Ready(None),
                Body::Full(bytes) => {
                    let bytes = std::mem::take(bytes);
                    *self = Body::Empty;
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Body::Chunks(chunks) => match ready!(chunks.as_mut().poll_next(cx)) {
                    Some(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                    None => *self = Body::Empty,
                },
                Body::Unary(bytes) => {
                    let bytes = std::mem::take(bytes);
                    *self = Body::Trailers(Status::ok(""));
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Body::Stream(frames) => match ready!(frames.as_mut().poll_next(cx)) {
                    Some(Ok(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                    Some(Err(status)) => *self = Body::Trailers(status),
                    None => *self = Body::Trailers(Status::ok("")),
                },
                Body::Trailers(status) => {
                    let mut trailers = HeaderMap::with_capacity(2);
                    write_status(status, &mut trailers);
                    *self = Body::Empty;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Empty)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Body::Empty => http_body::SizeHint::with_exact(0),
            Body::Full(bytes) => http_body::SizeHint::with_exact(bytes.len() as u64),
            _ => http_body::SizeHint::default(),
        }
    }
}

fn write_status(status: &Status, headers: &mut HeaderMap) {
    if status.code() == Code::Ok {
        headers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
        return;
    }
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code() as u16));
    if !status.message().is_empty() {
        let text = utf8_percent_encode(status.message(), MESSAGE_ESCAPED).to_string();
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
            headers.insert(GRPC_MESSAGE, value);
        }
    }
}

/// The answer of a call.
pub fn response(body: Result<Body, Status>) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    match body {
        Ok(body) => *response.body_mut() = body,
        Err(status) => write_status(&status, response.headers_mut()),
    }
    response
}

/// Room for a message, and for its prefix, which [`finish`] fills in.
pub fn begin(message_bytes: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(PREFIX + message_bytes);
    buffer.put_bytes(0, PREFIX);
    buffer
}

/// Fills in the prefix of a buffer that holds [`PREFIX`] free bytes and one message from `at` on.
pub fn finish(buffer: &mut BytesMut, at: usize) {
    let len = (buffer.len() - at - PREFIX) as u32;
    buffer[at + 1..at + PREFIX].copy_from_slice(&len.to_be_bytes());
}

/// Appends a message with its prefix.
pub fn put(message: &impl Message, buffer: &mut BytesMut) {
    let len = message.encoded_len();
    buffer.reserve(PREFIX + len);
    buffer.put_u8(0);
    buffer.put_u32(len as u32);
    message.encode_raw(buffer);
}

/// One message with its prefix.
pub fn frame(message: &impl Message) -> Bytes {
    let mut buffer = BytesMut::new();
    put(message, &mut buffer);
    buffer.freeze()
}

/// The messages of a request.
pub struct Requests {
    source: Source,
    buffer: Buffer,
    message_bytes_max: usize,
    /// Whose metrics count what was received.
    member: Option<Arc<Member>>,
}

enum Source {
    Body(Inbound),
    /// Messages that are all there, without prefix.
    Given(VecDeque<Bytes>),
}

/// What has arrived. Nearly every request is one piece, which is then not copied.
enum Buffer {
    One(Bytes),
    Many(BytesMut),
}

impl Requests {
    pub fn new(body: Incoming, message_bytes_max: usize) -> Requests {
        Requests {
            source: Source::Body(Inbound::new(body)),
            buffer: Buffer::One(Bytes::new()),
            message_bytes_max,
            member: None,
        }
    }

    pub fn counted(mut self, member: Arc<Member>) -> Requests {
        self.member = Some(member);
        self
    }

    /// The messages of a caller that is not gRPC.
    pub fn given(messages: impl IntoIterator<Item = Bytes>) -> Requests {
        let source = Source::Given(messages.into_iter().collect());
        Requests { source, buffer: Buffer::One(Bytes::new()), message_bytes_max: usize::MAX, member: None }
    }

    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let held: &[u8] = match &self.buffer {
            Buffer::One(bytes) => bytes,
            Buffer::Many(bytes) => bytes,
        };
        let Some((prefix, rest)) = held.split_first_chunk::<PREFIX>() else { return Ok(None) };
        match prefix[0] {
            0 => {}
            1 => {
                return Err(Status::unimplemented(
                    "grpc: Decompressor is not installed for the request's encoding",
                ));
            }
            flag => return Err(Status::internal(format!("grpc: received unexpected payload format {flag}"))),
        }
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if len > self.message_bytes_max {
            return Err(Status::resource_exhausted(format!(
                "grpc: received message larger than max ({len} vs. {})",
                self.message_bytes_max
            )));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let mut message = match &mut self.buffer {
            Buffer::One(bytes) => bytes.split_to(PREFIX + len),
            Buffer::Many(bytes) => bytes.split_to(PREFIX + len).freeze(),
        };
        let _ = message.split_to(PREFIX);
        if let Some(member) = &self.member {
            member.metrics.received_bytes.add((PREFIX + len) as u64);
        }
        Ok(Some(message))
    }

    fn push(&mut self, piece: Bytes) {
        match &mut self.buffer {
            Buffer::One(held) if held.is_empty() => *held = piece,
            Buffer::One(held) => {
                let mut many = BytesMut::with_capacity(held.len() + piece.len());
                many.extend_from_slice(held);
                many.extend_from_slice(&piece);
                self.buffer = Buffer::Many(many);
            }
            Buffer::Many(held) => held.extend_from_slice(&piece),
        }
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            if let Some(message) = self.take()? {
                return Poll::Ready(Ok(Some(message)));
            }
            let body = match &mut self.source {
                Source::Given(messages) => return Poll::Ready(Ok(messages.pop_front())),
                Source::Body(body) => body,
            };
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.push(data);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(Status::cancelled(error.to_string()))),
                None => {
                    let held = match &self.buffer {
                        Buffer::One(bytes) => bytes.len(),
                        Buffer::Many(bytes) => bytes.len(),
                    };
                    return Poll::Ready(if held == 0 {
                        Ok(None)
                    } else {
                        Err(Status::internal("unexpected EOF in the request"))
                    });
                }
            }
        }
    }

    /// The next message; `None` when the client has said all.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        match std::future::poll_fn(|cx| self.poll_next(cx)).await? {
            Some(bytes) => decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// The only message of a call that has one.
    pub async fn one<M: Message + Default>(&mut self) -> Result<M, Status> {
        self.next().await?.ok_or_else(|| Status::internal("the call carried no message"))
    }
}

/// Decodes from a slice, so that each field gets memory of its own and does not hold the connection's buffer.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Status> {
    M::decode(bytes).map_err(|e| Status::internal(format!("grpc: error unmarshalling request: {e}")))
}
