//! One version of one key as the store keeps it in memory: everything but the value, which lies on disk.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Deref;
use std::sync::atomic::{self, AtomicU64};

use storage::{LeaseId, Revision};
use triomphe::ThinArc;

use crate::request::Place;

/// Bytes that a version is taken to use beside its key and value.
const OVERHEAD: u64 = 64;

/// Bytes of a put in the log beside its key and value.
const STORED_OVERHEAD: u64 = 23;

/// A key, shared by the index and all its versions: one pointer wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(ThinArc<(), u8>);

// In the order of the bytes; the pointer's own order looks at the length first.
impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        self[..].cmp(other)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Key {
        Key(ThinArc::from_header_and_slice((), bytes))
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.slice
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

/// A record as index, history and readers share it. Nobody holds one weakly, so there is no count for that: 8 B less for
/// every version.
pub type RecordRef = triomphe::Arc<Record>;

/// Immutable but for the place of its value, which moves when its file is cleaned.
#[derive(Debug)]
pub struct Record {
    /// Shared by all versions of the key.
    pub key: Key,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// Puts since the key was created; 0 for a tombstone.
    pub version: i64,
    pub lease: LeaseId,
    /// Position among the changes of its revision.
    pub sub: u32,
    /// Length and checksum of the value.
    pub len: u32,
    pub crc: u32,
    place: AtomicU64,
}

impl Record {
    pub fn put(
        key: Key,
        revisions: (Revision, Revision, u32),
        version: i64,
        lease: LeaseId,
        value: (u32, u32, Place),
    ) -> Record {
        let ((create_revision, mod_revision, sub), (len, crc, place)) = (revisions, value);
        Record {
            key,
            create_revision,
            mod_revision,
            version,
            lease,
            sub,
            len,
            crc,
            place: AtomicU64::new(pack(place)),
        }
    }

    pub fn tombstone(key: Key, mod_revision: Revision, sub: u32) -> Record {
        Record {
            key,
            create_revision: 0,
            mod_revision,
            version: 0,
            lease: 0,
            sub,
            len: 0,
            crc: 0,
            place: AtomicU64::new(0),
        }
    }

    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// The record's place in the order of all changes.
    pub fn position(&self) -> (Revision, u32) {
        (self.mod_revision, self.sub)
    }

    pub fn place(&self) -> Place {
        let packed = self.place.load(atomic::Ordering::Acquire);
        Place { file: (packed >> 32) as u32, offset: packed as u32 }
    }

    pub fn move_to(&self, place: Place) {
        self.place.store(pack(place), atomic::Ordering::Release);
    }

    /// What the version takes of a log file, where its value lies.
    pub fn stored(&self) -> u64 {
        STORED_OVERHEAD + self.key.len() as u64 + u64::from(self.len)
    }

    /// What the version adds to the bytes in use.
    pub fn cost(&self) -> u64 {
        OVERHEAD + self.key.len() as u64 + u64::from(self.len)
    }
}

fn pack(place: Place) -> u64 {
    u64::from(place.file) << 32 | u64::from(place.offset)
}
