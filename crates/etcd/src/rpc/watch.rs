//! Service Watch: many watchers on one stream.
//!
//! A stream is pulled by its connection. It looks at the requests that came, then at the history for watchers that begin in
//! the past, then at the [`feed`](super::feed) for all others, and sleeps when none of them has anything.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use rand::Rng;
use storage::{Error, Event, KeyRange, Revision};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::feed::{Entry, Place};
use super::grpc::{Frames, Requests};
use super::wire::{self, WatchFields};
use super::{Call, Member, failure, grpc};
use crate::api::{FilterType, WatchCreateRequest, WatchRequest, watch_request::RequestUnion};
use crate::auth::permission::Access;
use crate::{EventsMax, Query};

/// The id of an answer that is about no watcher in particular.
const NO_WATCHER: i64 = -1;
/// Events and bytes that go out at once.
const BATCH: EventsMax = EventsMax { events: 1000, bytes: 1 << 20 };

struct Watcher {
    range: KeyRange,
    /// Earlier events are not sent.
    next: Revision,
    no_put: bool,
    no_delete: bool,
    previous: bool,
    fragment: bool,
    progress: bool,
    /// Whether the next tick tells the progress: nothing was sent since the last.
    quiet: bool,
    synced: bool,
    /// What the feed has for it in this round, by place among what is new there.
    pending: Vec<usize>,
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        event.revision() >= self.next
            && match event {
                Event::Put { .. } => !self.no_put,
                Event::Delete { .. } => !self.no_delete,
            }
    }

    /// Writes encoded events; `revision` is what all of them reach.
    fn send(&mut self, id: i64, revision: Revision, events: &[&[u8]], member: &Member, out: &mut BytesMut) {
        if events.is_empty() {
            return;
        }
        self.quiet = false;
        member.metrics.events_sent.add(events.len() as u64);
        let fields = WatchFields { watch_id: id, ..Default::default() };
        let fragment_bytes = member.message_bytes_max();
        if !self.fragment || events.iter().map(|e| e.len()).sum::<usize>() < fragment_bytes {
            wire::put_watch_response(&member.header, revision, fields, events, out);
            return;
        }
        let mut rest = events;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|e| {
                bytes += e.len();
                bytes < fragment_bytes
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let fields = WatchFields { fragment: !rest.is_empty(), ..fields };
            wire::put_watch_response(&member.header, revision, fields, now, out);
        }
    }
}

struct Stream {
    member: Arc<Member>,
    call: Call,
    requests: Requests,
    /// The client will ask nothing more; its watchers stay.
    said_all: bool,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    /// Synced watchers: of one key each, and of ranges.
    by_key: HashMap<Bytes, Vec<i64>>,
    by_range: Vec<i64>,
    catching_up: VecDeque<i64>,
    place: Place,
    tip: watch::Receiver<u64>,
    /// The revision that a progress report which was asked for must reach.
    progress_asked: Option<Revision>,
    /// Watchers that want to be told of progress.
    reported: usize,
    /// Stays registered while the stream sleeps and wakes.
    tick: Pin<Box<Sleep>>,
    out: BytesMut,
}

enum Woken {
    Request(Result<Option<WatchRequest>, Status>),
    Feed,
    Tick,
}

impl Member {
    /// Answers a watch stream.
    pub fn watch(self: &Arc<Member>, call: Call, requests: Requests) -> Frames {
        let tip = self.feed.subscribe();
        let stream = Stream {
            place: self.feed.ring().end(),
            tip,
            call,
            requests,
            said_all: false,
            watchers: BTreeMap::new(),
            next_id: 0,
            by_key: HashMap::new(),
            by_range: Vec::new(),
            catching_up: VecDeque::new(),
            progress_asked: None,
            reported: 0,
            tick: Box::pin(tokio::time::sleep_until(next_tick(self))),
            out: BytesMut::new(),
            member: self.clone(),
        };
        self.metrics.watch_streams.add(1);
        // In a box, since it moves with every message.
        Box::pin(futures::stream::try_unfold(Box::new(stream), |mut stream| async move {
            let frames = stream.next().await?;
            Ok(Some((frames, stream)))
        }))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for watcher in self.watchers.values() {
            self.member.metrics.watchers.sub(1);
            if watcher.previous {
                self.member.feed.want_previous(false);
            }
        }
        self.member.metrics.watch_streams.sub(1);
    }
}

/// Spread, so that streams that began together do not report together.
fn next_tick(member: &Member) -> Instant {
    let interval = member.limits.progress_interval;
    Instant::now() + interval + interval.mul_f64(rand::rng().random_range(0.0..0.1))
}

impl Stream {
    /// The next frames to send. The stream ends when the client drops it.
    async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            let behind = !self.catching_up.is_empty() || *self.tip.borrow_and_update() > self.place.sequence;
            if self.member.feed.is_stopped() {
                return Err(failure::STOPPED.into());
            }
            let woken = if behind {
                // Only what has arrived already.
                std::future::poll_fn(|cx| match self.requests.poll_next(cx) {
                    Poll::Ready(request) if !self.said_all => {
                        Poll::Ready(Some(Woken::Request(decoded(request))))
                    }
                    _ => Poll::Ready(None),
                })
                .await
            } else {
                let Stream { requests, said_all, tip, tick, reported, .. } = self;
                Some(tokio::select! {
                    biased;
                    request = requests.next(), if !*said_all => Woken::Request(request),
                    _ = tip.changed() => Woken::Feed,
                    () = tick.as_mut(), if *reported > 0 => Woken::Tick,
                })
            };
            match woken {
                Some(Woken::Request(Ok(Some(request)))) => self.request(request),
                Some(Woken::Request(Ok(None))) => self.said_all = true,
                Some(Woken::Request(Err(status))) => return Err(status),
                Some(Woken::Tick) => self.report_all(),
                Some(Woken::Feed) | None => {
                    if let Some(id) = self.catching_up.pop_front() {
                        self.catch_up(id).await?;
                    }
                    self.read_feed();
                }
            }
            self.answer_progress();
            if !self.out.is_empty() {
                self.member.metrics.sent_bytes.add(self.out.len() as u64);
                return Ok(self.out.split().freeze());
            }
        }
    }

    fn request(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::Create(request)) => self.create(request),
            Some(RequestUnion::Cancel(request)) => self.cancel(request.watch_id),
            Some(RequestUnion::Progress(_)) => {
                self.progress_asked = Some(self.member.engine.current_revision())
            }
            None => {}
        }
    }

    fn cancel(&mut self, watch_id: i64) {
        if self.remove(watch_id) {
            let fields = WatchFields { watch_id, canceled: true, ..Default::default() };
            self.say(self.member.engine.current_revision(), fields);
        }
    }

    fn create(&mut self, request: WatchCreateRequest) {
        let revision = self.member.engine.current_revision();
        let refuse = |stream: &mut Stream, cancel_reason: &str| {
            let fields = WatchFields {
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason,
                ..Default::default()
            };
            stream.say(revision, fields);
        };
        if request.start_revision < 0 {
            return refuse(self, failure::COMPACTED.text);
        }
        let key = if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key };
        let range = crate::key_range(key, request.range_end);
        if let Err(status) = self.permit(&range) {
            let code = format!("{:?}", status.code());
            return refuse(self, &format!("rpc error: code = {code} desc = {}", status.message()));
        }
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return refuse(self, "mvcc: watcher range is empty");
        }
        let id = if request.watch_id == 0 {
            while self.watchers.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            self.next_id += 1;
            self.next_id - 1
        } else if self.watchers.contains_key(&request.watch_id) {
            return refuse(self, "mvcc: duplicate watch ID provided on the WatchStream");
        } else {
            request.watch_id
        };
        let begins_now = request.start_revision == 0 || request.start_revision > revision;
        let watcher = Watcher {
            range,
            next: if begins_now { request.start_revision.max(revision + 1) } else { request.start_revision },
            no_put: request.filters.contains(&(FilterType::NoPut as i32)),
            no_delete: request.filters.contains(&(FilterType::NoDelete as i32)),
            previous: request.prev_kv,
            fragment: request.fragment,
            progress: request.progress_notify,
            quiet: true,
            synced: false,
            pending: Vec::new(),
        };
        if watcher.previous {
            self.member.feed.want_previous(true);
        }
        self.member.metrics.watchers.add(1);
        self.reported += usize::from(watcher.progress);
        self.watchers.insert(id, watcher);
        self.say(revision, WatchFields { watch_id: id, created: true, ..Default::default() });
        if begins_now {
            self.join(id);
        } else {
            self.catching_up.push_back(id);
        }
    }

    fn permit(&self, range: &KeyRange) -> Result<(), Status> {
        let who = self.member.identify(&self.call)?;
        Ok(self.member.auth.check(&who, Access::Read, range)?)
    }

    fn say(&mut self, revision: Revision, fields: WatchFields<'_>) {
        wire::put_watch_response(&self.member.header, revision, fields, &[], &mut self.out);
    }

    /// From here on the feed serves the watcher.
    fn join(&mut self, id: i64) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        watcher.synced = true;
        match single_key(&watcher.range) {
            Some(key) => self.by_key.entry(key).or_default().push(id),
            None => self.by_range.push(id),
        }
    }

    /// The feed serves the watcher no more.
    fn leave(&mut self, id: i64) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        if !std::mem::take(&mut watcher.synced) {
            return;
        }
        match single_key(&watcher.range) {
            Some(key) => {
                if let Some(ids) = self.by_key.get_mut(&key) {
                    ids.retain(|other| *other != id);
                    if ids.is_empty() {
                        self.by_key.remove(&key);
                    }
                }
            }
            None => self.by_range.retain(|other| *other != id),
        }
    }

    fn remove(&mut self, id: i64) -> bool {
        self.leave(id);
        self.catching_up.retain(|other| *other != id);
        let Some(watcher) = self.watchers.remove(&id) else { return false };
        self.member.metrics.watchers.sub(1);
        self.reported -= usize::from(watcher.progress);
        if watcher.previous {
            self.member.feed.want_previous(false);
        }
        true
    }

    /// Sends a watcher the next of what it missed.
    async fn catch_up(&mut self, id: i64) -> Result<(), Status> {
        let Some(watcher) = self.watchers.get(&id) else { return Ok(()) };
        let (range, from, previous) = (watcher.range.clone(), watcher.next, watcher.previous);
        let engine = self.member.engine.clone();
        let batch = match engine.events(std::slice::from_ref(&range), from, BATCH, previous).await {
            Ok(batch) => batch,
            // What the compacted revision itself wrote is still there, where nothing has replaced it.
            Err(Error::Compacted { compacted }) if compacted == from => {
                let query = Query {
                    revision: Some(compacted),
                    min_mod_revision: compacted,
                    max_mod_revision: compacted,
                    ..Query::new(range)
                };
                match engine.query(&query).await {
                    Ok(found) => storage::EventBatch {
                        events: found.kvs.into_iter().map(|kv| Event::Put { kv, previous: None }).collect(),
                        revision: compacted,
                    },
                    Err(_) => {
                        self.end_compacted(id, engine.compacted());
                        return Ok(());
                    }
                }
            }
            Err(Error::Compacted { compacted }) => {
                self.end_compacted(id, compacted);
                return Ok(());
            }
            Err(error) => return Err(failure::status(error)),
        };
        let Some(watcher) = self.watchers.get_mut(&id) else { return Ok(()) };
        let entries: Vec<Entry> =
            batch.events.into_iter().filter(|e| watcher.wants(e)).map(|e| Entry::new(e, true)).collect();
        let encoded: Vec<&[u8]> =
            entries.iter().filter_map(|e| e.encoded(watcher.previous)).map(|bytes| &bytes[..]).collect();
        watcher.send(id, batch.revision, &encoded, &self.member, &mut self.out);
        watcher.next = watcher.next.max(batch.revision + 1);
        if batch.revision >= self.place.revision {
            self.join(id);
        } else {
            self.catching_up.push_back(id);
        }
        Ok(())
    }

    fn end_compacted(&mut self, id: i64, compact_revision: Revision) {
        self.remove(id);
        let fields = WatchFields { watch_id: id, canceled: true, compact_revision, ..Default::default() };
        self.say(self.member.engine.current_revision(), fields);
    }

    /// Sends what is new to the watchers that want it.
    fn read_feed(&mut self) {
        let ring = self.member.feed.ring();
        let Some(entries) = ring.from(self.place.sequence) else {
            let (end, seen) = (ring.end(), self.place.revision);
            drop(ring);
            self.fall_behind(seen, end);
            return;
        };
        let mut touched: Vec<i64> = Vec::new();
        let (mut events, mut bytes, mut last) = (0, 0, 0);
        let mut whole = true;
        for entry in entries.clone() {
            let revision = entry.event.revision();
            if revision != last && (events >= BATCH.events || bytes >= BATCH.bytes) {
                whole = false;
                break;
            }
            let key = entry.event.key();
            let of_key = self.by_key.get(key).map_or(&[][..], Vec::as_slice);
            for id in self.by_range.iter().chain(of_key) {
                let Some(watcher) = self.watchers.get_mut(id) else { continue };
                if watcher.wants(&entry.event) && watcher.range.contains(key) {
                    if watcher.pending.is_empty() {
                        touched.push(*id);
                    }
                    bytes += entry.encoded(false).map_or(0, Bytes::len);
                    watcher.pending.push(events);
                }
            }
            (last, events) = (revision, events + 1);
        }
        if whole {
            self.place = ring.end();
        } else {
            self.place = Place { sequence: self.place.sequence + events as u64, revision: last };
        }
        let new: Vec<&Entry> = entries.take(events).collect();
        let mut unread = Vec::new();
        for id in touched {
            let Some(watcher) = self.watchers.get_mut(&id) else { continue };
            let pending = std::mem::take(&mut watcher.pending);
            let encoded: Option<Vec<&[u8]>> =
                pending.iter().map(|i| new[*i].encoded(watcher.previous).map(|bytes| &bytes[..])).collect();
            match encoded {
                Some(encoded) => {
                    watcher.send(id, self.place.revision, &encoded, &self.member, &mut self.out);
                    watcher.pending = pending;
                    watcher.pending.clear();
                }
                // The feed was read before this watcher asked for what events replace.
                None => unread.push((id, new[pending[0]].event.revision())),
            }
        }
        drop(ring);
        for (id, from) in unread {
            self.leave(id);
            if let Some(watcher) = self.watchers.get_mut(&id) {
                watcher.next = from;
                self.catching_up.push_back(id);
            }
        }
    }

    /// The ring has gone on without this stream: its watchers read the history from where they were.
    fn fall_behind(&mut self, seen: Revision, end: Place) {
        self.place = end;
        let synced: Vec<i64> = self.watchers.iter().filter(|(_, w)| w.synced).map(|(id, _)| *id).collect();
        for id in synced {
            self.leave(id);
            if let Some(watcher) = self.watchers.get_mut(&id) {
                if watcher.next > end.revision {
                    // It begins in the future.
                    self.join(id);
                    continue;
                }
                watcher.next = watcher.next.max(seen + 1);
                self.catching_up.push_back(id);
            }
        }
    }

    /// Tells watchers that asked for it how far they are, when they heard nothing since the last time.
    fn report_all(&mut self) {
        self.tick.as_mut().reset(next_tick(&self.member));
        let mut due = Vec::new();
        for (id, watcher) in &mut self.watchers {
            if watcher.progress && watcher.quiet && watcher.synced && watcher.next <= self.place.revision + 1
            {
                due.push(*id);
            }
            watcher.quiet = true;
        }
        for watch_id in due {
            self.say(self.place.revision, WatchFields { watch_id, ..Default::default() });
        }
    }

    /// Answers a request for progress once all watchers have come so far.
    fn answer_progress(&mut self) {
        let Some(wanted) = self.progress_asked else { return };
        if self.watchers.is_empty() {
            self.progress_asked = None;
        } else if self.catching_up.is_empty() && self.place.revision >= wanted {
            self.progress_asked = None;
            self.say(self.place.revision, WatchFields { watch_id: NO_WATCHER, ..Default::default() });
        }
    }
}

fn decoded(request: Result<Option<Bytes>, Status>) -> Result<Option<WatchRequest>, Status> {
    request?.map(|bytes| grpc::decode(&bytes)).transpose()
}

/// The key of a range that holds just that.
fn single_key(range: &KeyRange) -> Option<Bytes> {
    let end = range.end.as_ref()?;
    let one = end.len() == range.start.len() + 1 && end.last() == Some(&0) && end.starts_with(&range.start);
    one.then(|| range.start.clone())
}
