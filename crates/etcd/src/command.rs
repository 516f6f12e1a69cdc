//! What the state machine is told to do, and how that is written in the log. Commands are proposals: what they do is
//! decided when they are applied, so that a replicated log can stand between proposing and applying.

use bytes::Bytes;
use storage::{Change, Expect, LeaseId, Revision};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Write {
        key: Bytes,
        expect: Expect,
        change: ChangeTo,
    },
    LeaseGrant {
        lease: LeaseId,
        ttl_seconds: i64,
    },
    /// Deletes the lease and the keys attached to it.
    LeaseRevoke {
        lease: LeaseId,
    },
    Compact {
        revision: Revision,
    },
}

/// [`Change`], comparable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeTo {
    Put { value: Bytes, lease: LeaseId },
    Delete,
}

impl From<Change> for ChangeTo {
    fn from(change: Change) -> ChangeTo {
        match change {
            Change::Put { value, lease } => ChangeTo::Put { value, lease },
            Change::Delete => ChangeTo::Delete,
        }
    }
}

const WRITE: u8 = 1;
const LEASE_GRANT: u8 = 2;
const LEASE_REVOKE: u8 = 3;
const COMPACT: u8 = 4;

const EXPECT_ANYTHING: u8 = 0;
const EXPECT_ABSENT: u8 = 1;
const EXPECT_MOD_REVISION: u8 = 2;

const PUT: u8 = 0;
const DELETE: u8 = 1;

impl Command {
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Command::Write { key, expect, change } => {
                out.push(WRITE);
                put_bytes(out, key);
                match expect {
                    Expect::Anything => out.push(EXPECT_ANYTHING),
                    Expect::Absent => out.push(EXPECT_ABSENT),
                    Expect::ModRevision(revision) => {
                        out.push(EXPECT_MOD_REVISION);
                        put_i64(out, *revision);
                    }
                }
                match change {
                    ChangeTo::Put { value, lease } => {
                        out.push(PUT);
                        put_i64(out, *lease);
                        put_bytes(out, value);
                    }
                    ChangeTo::Delete => out.push(DELETE),
                }
            }
            Command::LeaseGrant { lease, ttl_seconds } => {
                out.push(LEASE_GRANT);
                put_i64(out, *lease);
                put_i64(out, *ttl_seconds);
            }
            Command::LeaseRevoke { lease } => {
                out.push(LEASE_REVOKE);
                put_i64(out, *lease);
            }
            Command::Compact { revision } => {
                out.push(COMPACT);
                put_i64(out, *revision);
            }
        }
    }

    /// `None` when the bytes are no command of this version.
    pub fn decode(input: &mut &[u8]) -> Option<Command> {
        Some(match take_u8(input)? {
            WRITE => Command::Write {
                key: take_bytes(input)?,
                expect: match take_u8(input)? {
                    EXPECT_ANYTHING => Expect::Anything,
                    EXPECT_ABSENT => Expect::Absent,
                    EXPECT_MOD_REVISION => Expect::ModRevision(take_i64(input)?),
                    _ => return None,
                },
                change: match take_u8(input)? {
                    PUT => ChangeTo::Put { lease: take_i64(input)?, value: take_bytes(input)? },
                    DELETE => ChangeTo::Delete,
                    _ => return None,
                },
            },
            LEASE_GRANT => Command::LeaseGrant { lease: take_i64(input)?, ttl_seconds: take_i64(input)? },
            LEASE_REVOKE => Command::LeaseRevoke { lease: take_i64(input)? },
            COMPACT => Command::Compact { revision: take_i64(input)? },
            _ => return None,
        })
    }
}

pub fn put_i64(out: &mut Vec<u8>, n: i64) {
    out.extend_from_slice(&n.to_le_bytes());
}

pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

pub fn take_u8(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

pub fn take_i64(input: &mut &[u8]) -> Option<i64> {
    let (n, rest) = input.split_first_chunk::<8>()?;
    *input = rest;
    Some(i64::from_le_bytes(*n))
}

/// Copies: a slice of the file's buffer would keep the whole buffer in memory.
pub fn take_bytes(input: &mut &[u8]) -> Option<Bytes> {
    let (len, rest) = input.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > rest.len() {
        return None;
    }
    let (bytes, rest) = rest.split_at(len);
    *input = rest;
    Some(Bytes::copy_from_slice(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_trips() {
        for command in [
            Command::Write {
                key: "/a".into(),
                expect: Expect::ModRevision(9),
                change: ChangeTo::Put { value: "v".into(), lease: 3 },
            },
            Command::Write { key: "/a".into(), expect: Expect::Absent, change: ChangeTo::Delete },
            Command::Write { key: "".into(), expect: Expect::Anything, change: ChangeTo::Delete },
            Command::LeaseGrant { lease: i64::MAX, ttl_seconds: 60 },
            Command::LeaseRevoke { lease: 1 },
            Command::Compact { revision: 77 },
        ] {
            let mut bytes = Vec::new();
            command.encode(&mut bytes);
            let mut input = &bytes[..];
            assert_eq!(Command::decode(&mut input), Some(command));
            assert!(input.is_empty());
        }
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Command::decode(&mut &bytes[..]);
        }
    }
}
