//! Where events go: the log or a webhook, at once or in batches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::Level;
use super::event::Event;
use super::log::Log;
use super::webhook::Webhook;
use crate::metrics::{Families, Family};

/// Whether requests wait for their events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No; events are gathered and sent together.
    Batch,
    /// Yes.
    Blocking,
    /// Yes, and they fail when the event of their arrival cannot be kept.
    BlockingStrict,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        match text {
            "batch" => Ok(Mode::Batch),
            "blocking" => Ok(Mode::Blocking),
            "blocking-strict" => Ok(Mode::BlockingStrict),
            other => Err(format!("{other} is no mode, allowed modes are \"batch,blocking,blocking-strict\"")),
        }
    }
}

/// How events are gathered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Batching {
    /// Events that may wait; more are dropped.
    pub buffer_size: usize,
    pub size_max: usize,
    pub wait_max: Duration,
    /// Batches per second, and how many at once.
    pub throttle: Option<(f32, u32)>,
}

/// What is done with events that are large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// In bytes.
    pub event_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    pub mode: Mode,
    pub batching: Batching,
    pub truncation: Option<Truncation>,
}

impl Options {
    /// Upstream's for the log.
    pub fn log() -> Options {
        let wait_max = Duration::ZERO;
        let batching = Batching { buffer_size: 10_000, size_max: 1, wait_max, throttle: None };
        Options { mode: Mode::Blocking, batching, truncation: None }
    }

    /// Upstream's for a webhook.
    pub fn webhook() -> Options {
        let wait_max = Duration::from_secs(30);
        let batching = Batching { buffer_size: 10_000, size_max: 400, wait_max, throttle: Some((10.0, 15)) };
        Options { mode: Mode::Batch, batching, truncation: None }
    }
}

/// Who takes events in the end.
pub enum Sink {
    Log(Log),
    Webhook(Webhook),
}

impl Sink {
    async fn take(&self, events: &[Event]) -> Result<(), String> {
        match self {
            Sink::Log(log) => events.iter().try_for_each(|e| log.write(e)),
            Sink::Webhook(webhook) => webhook.send(events).await,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Sink::Log(_) => "log",
            Sink::Webhook(_) => "webhook",
        }
    }
}

/// Events that could not be kept, by who failed.
#[derive(Clone)]
pub struct Errors(Arc<Family>);

impl Errors {
    pub fn new(families: &Families) -> Errors {
        let help = "Audit events that could not be kept, by the part that failed.";
        Errors(families.counter("apiserver_audit_error_total", help, &["plugin"]))
    }

    fn tell(&self, plugin: &str, events: usize, why: &str) {
        self.0.add(&[plugin], events as f64);
        tracing::error!(plugin, events, why, "audit events could not be kept");
    }
}

pub struct Backend {
    sink: Arc<Sink>,
    options: Options,
    errors: Errors,
    /// Of mode batch: where events wait, and who sends them. Both are gone once the backend has ended.
    queue: Mutex<Option<mpsc::Sender<Event>>>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Backend {
    pub fn start(sink: Sink, options: Options, errors: Errors) -> Backend {
        let sink = Arc::new(sink);
        let (mut queue, mut worker) = (None, None);
        if options.mode == Mode::Batch {
            let (sender, receiver) = mpsc::channel(options.batching.buffer_size.max(1));
            worker =
                Some(tokio::spawn(send_batches(receiver, sink.clone(), options.batching, errors.clone())));
            queue = Some(sender);
        }
        Backend { sink, options, errors, queue: Mutex::new(queue), worker: Mutex::new(worker) }
    }

    /// Whether handing an event over may take long.
    pub fn waits(&self) -> bool {
        self.options.mode != Mode::Batch && matches!(*self.sink, Sink::Webhook(_))
    }

    /// Hands an event over; `false` where the request must not go on without.
    pub async fn take(&self, event: &Event) -> bool {
        let Some(event) = self.fitting(event) else { return true };
        if self.options.mode == Mode::Batch {
            let queue = self.queue.lock();
            let why = match &*queue {
                None => "audit backend shut down",
                Some(queue) if queue.try_send(event).is_err() => "audit buffer queue blocked",
                Some(_) => return true,
            };
            self.errors.tell("buffered", 1, why);
            return true;
        }
        match self.sink.take(&[event]).await {
            Ok(()) => true,
            Err(why) => {
                self.errors.tell(self.sink.name(), 1, &why);
                self.options.mode == Mode::Blocking
            }
        }
    }

    /// The event, or what may be sent of it.
    fn fitting(&self, event: &Event) -> Option<Event> {
        let Some(truncation) = self.options.truncation else { return Some(event.clone()) };
        if event.bytes() <= truncation.event_max {
            return Some(event.clone());
        }
        let truncated = (event.level >= Level::Request).then(|| event.truncated());
        let fits = truncated.filter(|e| e.bytes() <= truncation.event_max);
        if fits.is_none() {
            self.errors.tell("truncate", 1, "event is too large even after truncating");
        }
        fits
    }

    /// Sends what waits, and then no more.
    pub async fn end(&self) {
        self.queue.lock().take();
        let worker = self.worker.lock().take();
        if let Some(worker) = worker
            && let Err(error) = worker.await
        {
            tracing::error!(%error, "a task of the audit log crashed");
        }
    }
}

async fn send_batches(mut queue: mpsc::Receiver<Event>, sink: Arc<Sink>, batching: Batching, errors: Errors) {
    let mut sending = JoinSet::new();
    let mut throttle = batching.throttle.map(|(rate, burst)| Throttle::new(rate, burst, Instant::now()));
    loop {
        let mut batch = Vec::new();
        // Nothing is to be done until there is an event.
        let Some(first) = queue.recv().await else { break };
        batch.push(first);
        let full = async {
            while batch.len() < batching.size_max {
                match queue.recv().await {
                    Some(event) => batch.push(event),
                    None => break,
                }
            }
        };
        let _ = tokio::time::timeout(batching.wait_max, full).await;
        if let Some(throttle) = &mut throttle {
            tokio::time::sleep(throttle.pause(Instant::now())).await;
        }
        let (to, errors) = (sink.clone(), errors.clone());
        let send = async move {
            if let Err(why) = to.take(&batch).await {
                errors.tell(to.name(), batch.len(), &why);
            }
        };
        match *sink {
            Sink::Log(_) => send.await,
            // One slow answer does not hold up the rest.
            Sink::Webhook(_) => {
                while sending.try_join_next().is_some() {}
                sending.spawn(send);
            }
        }
    }
    sending.join_all().await;
}

/// A bucket of tokens, one a batch.
struct Throttle {
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Throttle {
    fn new(rate: f32, burst: u32, now: Instant) -> Throttle {
        Throttle { rate: f64::from(rate), burst: f64::from(burst), tokens: f64::from(burst), at: now }
    }

    /// Takes a token, and tells how long to wait until it is there.
    fn pause(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.burst) - 1.0;
        self.at = now;
        Duration::try_from_secs_f64(-self.tokens.min(0.0) / self.rate).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::LogConfig;
    use serde_json::json;

    fn event(n: usize, bytes: usize) -> Event {
        let value = json!({"auditID": n.to_string(), "requestObject": "x".repeat(bytes)});
        Event::new(Level::Request, value.as_object().unwrap().clone())
    }

    #[tokio::test]
    async fn batches_end_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let families = Families::default();
        let log = Log::open(LogConfig { path: path.clone(), ..LogConfig::default() }).unwrap();
        let batching =
            Batching { buffer_size: 8, size_max: 3, wait_max: Duration::from_secs(60), throttle: None };
        let options =
            Options { mode: Mode::Batch, batching, truncation: Some(Truncation { event_max: 200 }) };
        let backend = Backend::start(Sink::Log(log), options, Errors::new(&families));
        for n in 0..7 {
            assert!(backend.take(&event(n, if n == 3 { 500 } else { 10 })).await);
        }
        backend.end().await;
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(events.len(), 7);
        assert_eq!(events[3]["annotations"]["audit.k8s.io/truncated"], "true");
        assert!(backend.take(&event(9, 1)).await);
        let errors = families.counter("apiserver_audit_error_total", "", &["plugin"]);
        assert_eq!(errors.get(&["buffered"]), 1.0);
        // What is too large even so.
        let log = Log::open(LogConfig { path, ..LogConfig::default() }).unwrap();
        let options =
            Options { mode: Mode::BlockingStrict, truncation: Some(Truncation { event_max: 5 }), ..options };
        let backend = Backend::start(Sink::Log(log), options, Errors::new(&families));
        assert!(backend.take(&event(1, 10)).await);
        assert_eq!(errors.get(&["truncate"]), 1.0);
    }

    #[test]
    fn throttles() {
        let start = Instant::now();
        let mut throttle = Throttle::new(10.0, 2, start);
        let pauses: Vec<u128> = (0..4).map(|_| throttle.pause(start).as_millis()).collect();
        assert_eq!(pauses, [0, 0, 100, 200]);
        assert_eq!(throttle.pause(start + Duration::from_secs(10)), Duration::ZERO);
    }
}
