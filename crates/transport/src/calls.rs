//! Runs the calls of an HTTP/2 connection on the connection's own task.
//!
//! Most calls are a few microseconds of work; a task of its own for each would cost as much again, in making it and in waking it
//! from the log's thread. What is answered together also goes to the socket together.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::{FuturesUnordered, Stream};
use parking_lot::Mutex;

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the connection leaves calls that have begun.
#[derive(Clone, Default)]
pub struct Begun(Arc<Mutex<Vec<Call>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Begun {
    fn execute(&self, call: F) {
        self.0.lock().push(Box::pin(call));
    }
}

/// A connection together with its calls. Ends with the connection, and drops the calls that are then left.
pub struct WithCalls<C> {
    pub connection: C,
    begun: Begun,
    calls: FuturesUnordered<Call>,
}

impl<C> WithCalls<C> {
    pub fn new(connection: C, begun: Begun) -> WithCalls<C> {
        WithCalls { connection, begun, calls: FuturesUnordered::new() }
    }

    /// Moves the calls on that can be. Whether there was any.
    fn poll_calls(&mut self, cx: &mut Context<'_>) -> bool {
        self.calls.extend(std::mem::take(&mut *self.begun.0.lock()));
        let mut ended = false;
        while let Poll::Ready(Some(())) = Pin::new(&mut self.calls).poll_next(cx) {
            ended = true;
        }
        ended
    }
}

impl<C> Drop for WithCalls<C> {
    fn drop(&mut self) {
        // A call holds a way to begin others, so that what is left there would hold itself.
        let left = std::mem::take(&mut *self.begun.0.lock());
        drop(left);
    }
}

impl<C: Future + Unpin> Future for WithCalls<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut self.connection).poll(cx) {
                return Poll::Ready(ended);
            }
            // What has been answered must be sent.
            if !self.poll_calls(cx) {
                return Poll::Pending;
            }
        }
    }
}
