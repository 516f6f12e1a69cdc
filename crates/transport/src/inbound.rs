//! The bodies of requests, read to their end.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// How long a client may take to end its side of a call that has been answered.
const END_WITHIN: Duration = Duration::from_secs(10);

/// The body of a request. What the client still sends when this is dropped is read to its end: otherwise the stream would be
/// reset under a client that has done nothing wrong, and a connection bears only so many resets.
pub struct Inbound(Option<Incoming>);

impl Inbound {
    pub fn new(body: Incoming) -> Inbound {
        Inbound(Some(body))
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), |body| body.size_hint())
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        // The end has arrived with the rest, nearly always.
        loop {
            match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => return,
                Poll::Pending => break,
            }
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let rest = async move { while let Some(Ok(_)) = body.frame().await {} };
            runtime.spawn(tokio::time::timeout(END_WITHIN, rest));
        }
    }
}
