//! Small writes gathered into big ones.
//!
//! HTTP/2 hands a connection every frame by itself and flushes in between, and each of those would be a TLS record
//! and a system call of its own. Here they go into a buffer, which is sent when the connection has nothing more to
//! say for now ([`gathered`]) or when it is full. With 500 watchers on ten connections one write carries the event
//! of fifty of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait at most: four full TLS records.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// What a buffer begins with at least; an idle connection has none.
const BUFFER_BYTES_FIRST: usize = 8 << 10;

struct State<S> {
    stream: S,
    waiting: Vec<u8>,
    /// What the last buffer grew to: the next one begins with that, since growing copies.
    grown: usize,
    /// How much of `waiting` the stream has taken.
    sent: usize,
}

impl<S: AsyncWrite + Unpin> State<S> {
    /// Sends everything that waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.waiting[self.sent..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
        }
        if self.sent > 0 {
            self.grown = self.sent;
            self.waiting = Vec::new();
            self.sent = 0;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.len() >= BUFFER_BYTES_MAX {
            return self.poll_send(cx);
        }
        if self.waiting.capacity() == 0 {
            self.waiting.reserve(self.grown.max(BUFFER_BYTES_FIRST));
        }
        Poll::Ready(Ok(()))
    }
}

/// A stream whose flushes wait for the end of the poll; to be driven through [`gathered`].
pub struct Gather<S>(Arc<Mutex<State<S>>>);

impl<S> Gather<S> {
    pub fn new(stream: S) -> Gather<S> {
        Gather(Arc::new(Mutex::new(State { stream, waiting: Vec::new(), grown: 0, sent: 0 })))
    }

    fn share(&self) -> Gather<S> {
        Gather(self.0.clone())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        ready!(state.poll_room(cx))?;
        state.waiting.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        ready!(state.poll_room(cx))?;
        for buf in bufs {
            state.waiting.extend_from_slice(buf);
        }
        Poll::Ready(Ok(bufs.iter().map(|b| b.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Says yes; the sending is [`gathered`]'s.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        ready!(state.poll_send(cx))?;
        Pin::new(&mut state.stream).poll_shutdown(cx)
    }
}

/// Runs `serving`, which writes to the stream it is given, and sends what each poll of it left.
pub async fn gathered<S, F, T>(stream: Gather<S>, serving: impl FnOnce(Gather<S>) -> F) -> T
where
    S: AsyncWrite + Unpin,
    F: Future<Output = T>,
{
    let mut serving = std::pin::pin!(serving(stream.share()));
    std::future::poll_fn(|cx| {
        let ended = serving.as_mut().poll(cx);
        // A failure is found again by the next write or read. Where the stream takes no more, its waker is ours.
        let _ = stream.0.lock().poll_send(cx);
        ended
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts the writes it gets, and takes a few bytes of each.
    struct Slow<S> {
        stream: S,
        writes: Arc<Mutex<usize>>,
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Slow<S> {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            *self.writes.lock() += 1;
            Pin::new(&mut self.stream).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    /// Small flushed writes arrive in one; a reader that takes a few bytes at a time loses nothing.
    #[tokio::test]
    async fn gathers_and_loses_nothing() {
        for (pipe, frames, writes_max) in [(1 << 20, 50, 1), (7, 50, 10_000), (1000, 40_000, 100_000)] {
            let (near, mut far) = tokio::io::duplex(pipe);
            let writes = Arc::new(Mutex::new(0));
            let stream = Gather::new(Slow { stream: near, writes: writes.clone() });
            let sending = gathered(stream, |mut stream| async move {
                for i in 0..frames {
                    stream.write_all(format!("{i},").as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                }
                // Nothing more to say, but not at the end yet.
                tokio::task::yield_now().await;
                stream.shutdown().await.unwrap();
            });
            let mut got = String::new();
            let (read, ()) = tokio::join!(far.read_to_string(&mut got), sending);
            read.unwrap();
            let want: String = (0..frames).map(|i| format!("{i},")).collect();
            assert_eq!(got, want);
            assert!(*writes.lock() <= writes_max, "{} writes", writes.lock());
        }
    }
}
