//! Message bodies: whole, in shared pieces, or streamed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use apimachinery::status::Status;
use bytes::{Buf, Bytes, BytesMut};
use futures::Stream;
use http_body::{Frame, SizeHint};
use transport::inbound::Inbound;

use super::respond;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

/// The body of a request or response.
#[derive(Default)]
pub enum Body {
    #[default]
    Empty,
    Pieces(VecDeque<Bytes>),
    Stream(ByteStream),
    Incoming(hyper::body::Incoming),
    /// As it comes from a client over HTTP/2.
    Inbound(Inbound),
    Other(http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    pub fn full(bytes: impl Into<Bytes>) -> Body {
        let bytes = bytes.into();
        if bytes.is_empty() { Body::Empty } else { Body::Pieces([bytes].into()) }
    }

    pub fn stream(stream: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
        Body::Stream(Box::pin(stream))
    }

    /// Wraps any body, such as kube's.
    pub fn wrap<B>(body: B) -> Body
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        use http_body_util::BodyExt as _;
        Body::Other(body.map_err(Into::into).boxed_unsync())
    }

    /// Reads the body to its end, at most `limit` bytes of it.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, Status> {
        let mut first: Option<Bytes> = None;
        let mut all = BytesMut::new();
        let mut length = 0;
        while let Some(frame) =
            std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut self), cx)).await
        {
            let frame = frame
                .map_err(|e| respond::bad_request(format!("the request body could not be read: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            length += data.len();
            if length > limit {
                return Err(respond::too_large(limit));
            }
            match first.take() {
                None if all.is_empty() => first = Some(data),
                None => all.extend_from_slice(&data),
                Some(before) => {
                    all.extend_from_slice(&before);
                    all.extend_from_slice(&data);
                }
            }
        }
        Ok(first.unwrap_or_else(|| all.freeze()))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Body::full(bytes)
    }
}

impl From<String> for Body {
    fn from(text: String) -> Body {
        Body::full(text)
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Body {
        Body::full(text)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Body::Empty => Poll::Ready(None),
            Body::Pieces(pieces) => Poll::Ready(pieces.pop_front().map(|b| Ok(Frame::data(b)))),
            Body::Stream(stream) => stream.as_mut().poll_next(cx).map(|o| o.map(|r| r.map(Frame::data))),
            Body::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Body::Inbound(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Body::Other(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Pieces(pieces) => pieces.is_empty(),
            Body::Stream(_) => false,
            Body::Incoming(body) => body.is_end_stream(),
            Body::Inbound(body) => body.is_end_stream(),
            Body::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Pieces(pieces) => SizeHint::with_exact(pieces.iter().map(|b| b.remaining() as u64).sum()),
            Body::Stream(_) => SizeHint::default(),
            Body::Incoming(body) => body.size_hint(),
            Body::Inbound(body) => body.size_hint(),
            Body::Other(body) => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body")
    }
}
