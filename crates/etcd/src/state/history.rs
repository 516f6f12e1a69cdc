//! The versions of one key.

use storage::Revision;
use triomphe::{Arc, ArcBorrow, ArcUnion, ArcUnionBorrow};

use crate::record::{Record, RecordRef};

/// A version in its place in the index.
pub type Version<'a> = ArcBorrow<'a, Record>;

/// A key's life since the last compaction, oldest first, in the width of a pointer: an index of many keys is mostly
/// these. Most keys have one version, which is then pointed to itself; the others' lie in a vector.
#[derive(Debug)]
pub struct History(ArcUnion<Record, Vec<RecordRef>>);

impl History {
    pub fn one(version: RecordRef) -> History {
        History(ArcUnion::from_first(version))
    }

    /// `None` where there are no versions.
    pub fn many(mut versions: Vec<RecordRef>) -> Option<History> {
        match versions.len() {
            0 => None,
            1 => versions.pop().map(History::one),
            _ => Some(History(ArcUnion::from_second(Arc::new(versions)))),
        }
    }

    pub fn len(&self) -> usize {
        match self.0.borrow() {
            ArcUnionBorrow::First(_) => 1,
            ArcUnionBorrow::Second(versions) => versions.len(),
        }
    }

    /// The version at a place, which must be there.
    fn version(&self, i: usize) -> Option<Version<'_>> {
        match self.0.borrow() {
            ArcUnionBorrow::First(only) => (i == 0).then_some(only),
            ArcUnionBorrow::Second(versions) => versions.get().get(i).map(RecordRef::borrow_arc),
        }
    }

    pub fn versions(&self) -> impl Iterator<Item = Version<'_>> {
        (0..self.len()).filter_map(|i| self.version(i))
    }

    /// How many versions from the oldest on are such, where those come first.
    fn first(&self, such: impl Fn(&Record) -> bool) -> usize {
        match self.0.borrow() {
            ArcUnionBorrow::First(only) => usize::from(such(&only)),
            ArcUnionBorrow::Second(versions) => versions.partition_point(|v| such(v)),
        }
    }

    /// The last of the first `n` versions, unless that is a deletion.
    fn live(&self, n: usize) -> Option<Version<'_>> {
        self.version(n.checked_sub(1)?).filter(|v| !v.is_tombstone())
    }

    pub fn newest(&self) -> Option<Version<'_>> {
        self.version(self.len() - 1)
    }

    pub fn latest(&self) -> Option<Version<'_>> {
        self.live(self.len())
    }

    pub fn at(&self, revision: Revision) -> Option<Version<'_>> {
        match self.newest() {
            Some(last) if last.mod_revision <= revision => self.live(self.len()),
            _ => self.live(self.first(|v| v.mod_revision <= revision)),
        }
    }

    /// The version before `position`, unless that was a deletion or is no longer known.
    pub fn before(&self, position: (Revision, u32)) -> Option<Version<'_>> {
        self.live(self.first(|v| v.position() < position))
    }

    pub fn push(&mut self, version: RecordRef) {
        match self.0.borrow() {
            ArcUnionBorrow::First(only) => {
                self.0 = ArcUnion::from_second(Arc::new(vec![only.clone_arc(), version]));
            }
            ArcUnionBorrow::Second(versions) => {
                let mut versions = versions.clone_arc();
                // The vector is nobody else's as soon as this place lets go of it.
                self.0 = ArcUnion::from_first(version.clone());
                Arc::make_mut(&mut versions).push(version);
                self.0 = ArcUnion::from_second(versions);
            }
        }
    }

    /// How many versions nobody can see who reads at `upto` or later.
    fn passed(&self, upto: Revision) -> usize {
        let first = self.first(|v| v.mod_revision <= upto).saturating_sub(1);
        let deleted = self.version(first).is_some_and(|v| v.is_tombstone() && v.mod_revision <= upto);
        first + usize::from(deleted)
    }

    /// Drops the versions that nobody can see who reads at `upto` or later. Returns whether any are left.
    pub fn trim(&mut self, upto: Revision, gone: &mut Vec<RecordRef>) -> bool {
        let (passed, len) = (self.passed(upto), self.len());
        gone.extend(self.versions().take(passed).map(|v| v.clone_arc()));
        if passed == 0 || passed == len {
            return passed < len;
        }
        if let Some(left) = History::many(self.versions().skip(passed).map(|v| v.clone_arc()).collect()) {
            *self = left;
        }
        true
    }
}
