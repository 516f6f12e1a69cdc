//! One HTTP/2 connection, kept alive.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Request, Target};

pub const JSON: &str = "application/json";
pub const MERGE_PATCH: &str = "application/merge-patch+json";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Bodies of failures are kept up to this many bytes.
const KEPT_BYTES_MAX: usize = 2048;
const WINDOW: u32 = 4 << 20;

#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
    authorization: Option<http::HeaderValue>,
}

impl Connection {
    pub async fn open(target: &Target) -> Result<Connection> {
        let stream = tokio::net::TcpStream::connect((&*target.host, target.port))
            .await
            .with_context(|| format!("connect to {}:{}", target.host, target.port))?;
        stream.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::try_from(target.host.clone())?;
        let stream = tokio_rustls::TlsConnector::from(target.tls.clone())
            .connect(name, stream)
            .await
            .context("TLS handshake")?;
        ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "the server does not speak HTTP/2");
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW)
            .handshake(TokioIo::new(stream))
            .await?;
        // Ends when the last sender is gone.
        tokio::spawn(connection);
        let authority = format!("{}:{}", target.host, target.port);
        Ok(Connection { sender, authority, authorization: target.authorization.clone() })
    }

    /// Sends a request and answers as soon as the head of the response is there.
    pub async fn open_stream(&self, request: Request) -> Result<http::Response<Incoming>> {
        let mut builder = http::Request::builder()
            .method(request.method)
            .uri(format!("https://{}{}", self.authority, request.path))
            .header(http::header::ACCEPT, request.accept)
            .header(http::header::USER_AGENT, "testkit-load/1");
        if request.gzip {
            builder = builder.header(http::header::ACCEPT_ENCODING, "gzip");
        }
        if !request.body.is_empty() {
            builder = builder.header(http::header::CONTENT_TYPE, request.content_type);
        }
        if let Some(authorization) = &self.authorization {
            builder = builder.header(http::header::AUTHORIZATION, authorization.clone());
        }
        let mut sender = self.sender.clone();
        sender.ready().await?;
        Ok(sender.send_request(builder.body(Full::new(request.body))?).await?)
    }

    /// Code, length of the body, and its beginning.
    pub async fn send_counting(&self, request: Request) -> Result<(StatusCode, usize, Vec<u8>)> {
        let mut response = self.open_stream(request).await?;
        let (mut length, mut kept) = (0, Vec::new());
        while let Some(frame) = response.body_mut().frame().await {
            if let Ok(data) = frame?.into_data() {
                length += data.len();
                if kept.len() < KEPT_BYTES_MAX {
                    kept.extend_from_slice(&data[..data.len().min(KEPT_BYTES_MAX)]);
                }
            }
        }
        Ok((response.status(), length, kept))
    }

    pub async fn send(&self, request: Request) -> Result<(StatusCode, Vec<u8>)> {
        let (code, _, body) = self.send_counting(request).await?;
        Ok((code, body))
    }
}
