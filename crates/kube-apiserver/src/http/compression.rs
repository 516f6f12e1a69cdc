//! gzip for big answers.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::Stream;
use http::{HeaderValue, Response, header};

use super::body::{Body, BoxError};

/// Answers smaller than this are not worth the work.
const COMPRESS_FROM: u64 = 128 << 10;

/// Compresses the body when it is big, or streamed (lists that do not fit a chunk).
pub fn compress(response: Response<Body>) -> Response<Body> {
    let size = http_body::Body::size_hint(response.body());
    let big = match size.exact() {
        Some(exact) => exact >= COMPRESS_FROM,
        None => true,
    };
    if !big
        || response.status() != http::StatusCode::OK
        || response.headers().contains_key(header::CONTENT_ENCODING)
    {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    parts.headers.remove(header::CONTENT_LENGTH);
    let encoder = Some(GzEncoder::new(Vec::new(), Compression::new(1)));
    Response::from_parts(parts, Body::stream(Compressed { body, encoder }))
}

/// The whole of `bytes`, compressed well: for documents that are kept.
pub fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::new(6));
    // Writing to memory cannot fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default().into()
}

struct Compressed {
    body: Body,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Stream for Compressed {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let Some(encoder) = &mut this.encoder else { return Poll::Ready(None) };
            match http_body::Body::poll_frame(Pin::new(&mut this.body), cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    encoder.write_all(&data)?;
                    if encoder.get_ref().len() >= 16 << 10 {
                        return Poll::Ready(Some(Ok(std::mem::take(encoder.get_mut()).into())));
                    }
                }
                Poll::Ready(None) => {
                    let rest = this.encoder.take().map(GzEncoder::finish).transpose()?.unwrap_or_default();
                    return Poll::Ready(Some(Ok(rest.into())));
                }
            }
        }
    }
}
