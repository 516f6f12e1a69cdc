//! One version of one key as the store keeps it in memory: everything but the value, which lies on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use storage::{LeaseId, Revision};

use crate::request::Place;

/// Bytes that a version is taken to use beside its key and value.
const OVERHEAD: u64 = 64;

/// Bytes of a put in the log beside its key and value.
const STORED_OVERHEAD: u64 = 23;

/// Immutable but for the place of its value, which moves when its file is cleaned.
#[derive(Debug)]
pub struct Record {
    /// Shared by all versions of the key.
    pub key: Arc<[u8]>,
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
        key: Arc<[u8]>,
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

    pub fn tombstone(key: Arc<[u8]>, mod_revision: Revision, sub: u32) -> Record {
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
        let packed = self.place.load(Ordering::Acquire);
        Place { file: (packed >> 32) as u32, offset: packed as u32 }
    }

    pub fn move_to(&self, place: Place) {
        self.place.store(pack(place), Ordering::Release);
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
