//! One change as watchers get it.

use std::sync::{Arc, OnceLock};

use apimachinery::object::{Attributes, Encoded};
use bytes::Bytes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

impl EventKind {
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Added => "ADDED",
            EventKind::Modified => "MODIFIED",
            EventKind::Deleted => "DELETED",
        }
    }
}

/// One change of one object. For a deletion `object` is the last state, with the deletion's revision.
#[derive(Debug)]
pub struct CachedEvent {
    pub kind: EventKind,
    pub object: Arc<Encoded>,
    pub previous: Option<Arc<Encoded>>,
    pub revision: u64,
}

/// How an event appears to a watcher with a selection.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: EventKind,
    pub object: Arc<Encoded>,
}

impl CachedEvent {
    /// What kind of event this is to a watcher who sees only objects that `matches` accepts.
    pub fn kind_for(&self, matches: impl Fn(&Attributes) -> bool) -> Option<EventKind> {
        let now = self.kind != EventKind::Deleted && matches(&self.object.attributes);
        let before = match (&self.previous, self.kind) {
            (Some(previous), _) => matches(&previous.attributes),
            (None, EventKind::Deleted) => matches(&self.object.attributes),
            (None, _) => false,
        };
        match (before, now) {
            (false, false) => None,
            (false, true) => Some(EventKind::Added),
            (true, true) => Some(EventKind::Modified),
            (true, false) => Some(EventKind::Deleted),
        }
    }

    /// The object of the event as seen with `kind`: one that leaves a selection is shown as it was, at the revision
    /// at which it left.
    pub fn object_for(&self, kind: EventKind) -> Arc<Encoded> {
        match (kind, self.kind, &self.previous) {
            (EventKind::Deleted, EventKind::Modified | EventKind::Added, Some(previous)) => {
                Arc::new(Encoded { resource_version: self.revision, ..Encoded::clone(previous) })
            }
            _ => self.object.clone(),
        }
    }
}

/// An event on its way to watchers, who share the frames encoded from it.
#[derive(Debug)]
pub struct Frame {
    pub event: Arc<CachedEvent>,
    json: [OnceLock<Bytes>; 3],
    protobuf: [OnceLock<Option<Bytes>>; 3],
}

impl Frame {
    pub fn new(event: Arc<CachedEvent>) -> Frame {
        Frame { event, json: Default::default(), protobuf: Default::default() }
    }

    /// The line of a JSON watch.
    pub fn json(&self, kind: EventKind) -> &Bytes {
        self.json[kind as usize].get_or_init(|| {
            let object = self.event.object_for(kind);
            let mut out = Vec::with_capacity(object.body.len() + 96);
            write_json_event(&mut out, kind, &object);
            out.into()
        })
    }

    /// The frame of a protobuf watch, made by `encode` the first time.
    pub fn protobuf(
        &self,
        kind: EventKind,
        encode: impl FnOnce(EventKind, &Encoded) -> Option<Bytes>,
    ) -> Option<&Bytes> {
        self.protobuf[kind as usize].get_or_init(|| encode(kind, &self.event.object_for(kind))).as_ref()
    }
}

/// Events that watchers are told together, and which of them one watcher sees.
#[derive(Clone, Debug)]
pub struct Told {
    frames: Arc<[Frame]>,
    /// Places in `frames` and the kinds that they have for this watcher; `None` where it sees all of them as they are.
    seen: Option<Box<[(u32, EventKind)]>>,
}

impl Told {
    /// What a watcher sees of `frames`; `None` when that is nothing.
    pub fn new(frames: &Arc<[Frame]>, kind_for: impl Fn(&CachedEvent) -> Option<EventKind>) -> Option<Told> {
        let as_it_is = |frame: &Frame| kind_for(&frame.event) == Some(frame.event.kind);
        let first = frames.iter().take_while(|frame| as_it_is(frame)).count();
        if first == frames.len() {
            return (first > 0).then(|| Told { frames: frames.clone(), seen: None });
        }
        let before = frames[..first].iter().enumerate().map(|(i, frame)| (i as u32, frame.event.kind));
        let rest = frames.iter().enumerate().skip(first);
        let rest = rest.filter_map(|(i, frame)| Some((i as u32, kind_for(&frame.event)?)));
        let seen: Box<[_]> = before.chain(rest).collect();
        (!seen.is_empty()).then(|| Told { frames: frames.clone(), seen: Some(seen) })
    }

    /// How many the watcher sees, one at least.
    pub fn events(&self) -> usize {
        self.seen.as_ref().map_or(self.frames.len(), |seen| seen.len())
    }

    pub fn get(&self, i: usize) -> Option<(EventKind, &Frame)> {
        match &self.seen {
            None => self.frames.get(i).map(|frame| (frame.event.kind, frame)),
            Some(seen) => seen.get(i).map(|(place, kind)| (*kind, &self.frames[*place as usize])),
        }
    }
}

/// Appends `{"type":…,"object":…}` and a line end.
pub fn write_json_event(out: &mut Vec<u8>, kind: EventKind, object: &Encoded) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.name().as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    object.write_json(out);
    out.extend_from_slice(b"}\n");
}
