//! Reading a range a part at a time.

use bytes::Bytes;
use storage::{KeyRange, Revision};

use super::{Found, State, Version};
use crate::record::{Key, Record};
use crate::request::{Query, Sort, SortTarget};

/// A range that is read a part at a time, so that a long one does not keep writers waiting.
pub struct Scan<'a> {
    query: &'a Query,
    /// Where order or filters come between, everything has to be looked at before the limit.
    keep: usize,
    pub(super) found: Found,
    /// Where to go on, and the revision to read as of.
    next: Option<(Key, Revision)>,
}

impl<'a> Scan<'a> {
    pub fn new(query: &'a Query) -> Scan<'a> {
        let keep = if query.sort.is_none() && query.limit > 0 { query.limit } else { usize::MAX };
        let found = Found { keys_only: query.keys_only, ..Found::default() };
        Scan { query, keep, found, next: None }
    }

    pub(super) fn add(&mut self, version: Version<'_>) {
        self.found.count += 1;
        if self.query.count_only || !self.query.admits(version.create_revision, version.mod_revision) {
            return;
        }
        if self.found.records.len() < self.keep {
            self.found.records.push(version.clone_arc());
        } else {
            self.found.more = true;
        }
    }

    /// Looks at no more than `max` keys. While there are more, the revision read is pinned; it is unpinned with the
    /// last step. Returns whether that was all.
    pub fn step(&mut self, state: &State, max: usize) -> bool {
        let query = self.query;
        let from = self.next.take();
        if from.is_none() {
            self.found.revision = state.revision;
        }
        let revision = from.as_ref().map(|(_, revision)| *revision).or(query.revision);
        let range = match &from {
            Some((key, _)) => &KeyRange { start: Bytes::copy_from_slice(key), end: query.range.end.clone() },
            None => &query.range,
        };
        for (visited, (key, history)) in state.entries(range).enumerate() {
            if visited == max {
                let revision = revision.unwrap_or(state.revision);
                if from.is_none() {
                    state.pin(revision);
                }
                self.next = Some((key.clone(), revision));
                return false;
            }
            let found = match revision {
                None => history.latest(),
                Some(revision) => history.at(revision),
            };
            found.into_iter().for_each(|version| self.add(version));
        }
        if let Some((_, revision)) = from {
            state.unpin(revision);
        }
        true
    }

    pub fn finish(self) -> Found {
        let Scan { query, mut found, .. } = self;
        match query.sort {
            None => {}
            Some(Sort { target: SortTarget::Value, descending }) => {
                found.by_value = Some((descending, query.limit));
            }
            Some(Sort { target, descending }) => {
                let by = |a: &Record, b: &Record| match target {
                    SortTarget::Key => a.key.cmp(&b.key),
                    SortTarget::Version => a.version.cmp(&b.version),
                    SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                    SortTarget::Mod | SortTarget::Value => a.mod_revision.cmp(&b.mod_revision),
                };
                found.records.sort_by(|a, b| if descending { by(b, a) } else { by(a, b) });
                if query.limit > 0 && found.records.len() > query.limit {
                    found.records.truncate(query.limit);
                    found.more = true;
                }
            }
        }
        found
    }
}
