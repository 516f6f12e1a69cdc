//! Which keys a user may read and write, merged from the permissions of all roles.

use bytes::Bytes;
use storage::KeyRange;

use crate::api::{Permission, PermissionType};

/// What a request does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// Ranges of keys, merged: sorted, and neither overlapping nor touching.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<KeyRange>);

impl Ranges {
    pub fn new(mut all: Vec<KeyRange>) -> Ranges {
        all.retain(|r| r.end.as_ref().is_none_or(|end| r.start < *end));
        all.sort_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<KeyRange> = Vec::with_capacity(all.len());
        for range in all {
            match merged.last_mut() {
                Some(last) if last.end.as_ref().is_none_or(|end| range.start <= *end) => {
                    last.end = match (last.end.take(), range.end) {
                        (Some(a), Some(b)) => Some(a.max(b)),
                        _ => None,
                    };
                }
                _ => merged.push(range),
            }
        }
        Ranges(merged)
    }

    /// Whether every key of `wanted` is in one of the ranges. An empty range is in all of them.
    pub fn cover(&self, wanted: &KeyRange) -> bool {
        let after = self.0.partition_point(|r| r.start <= wanted.start);
        let Some(held) = after.checked_sub(1).map(|i| &self.0[i]) else { return false };
        match (&held.end, &wanted.end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(held), Some(wanted)) => wanted <= held,
        }
    }
}

/// What one user may do, over all roles.
#[derive(Clone, Debug, Default)]
pub struct Permissions {
    read: Ranges,
    write: Ranges,
}

impl Permissions {
    pub fn new<'a>(all: impl Iterator<Item = &'a Permission>) -> Permissions {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in all {
            let range = range_of(&permission.key, &permission.range_end);
            if permission.perm_type != PermissionType::Write as i32 {
                read.push(range.clone());
            }
            if permission.perm_type != PermissionType::Read as i32 {
                write.push(range);
            }
        }
        Permissions { read: Ranges::new(read), write: Ranges::new(write) }
    }

    pub fn allow(&self, access: Access, range: &KeyRange) -> bool {
        match access {
            Access::Read => self.read.cover(range),
            Access::Write => self.write.cover(range),
        }
    }
}

/// etcd's two ends: no end is one key, `"\0"` is no end.
pub fn range_of(key: &Bytes, range_end: &Bytes) -> KeyRange {
    match &range_end[..] {
        [] => KeyRange::key(key.clone()),
        [0] => KeyRange { start: key.clone(), end: None },
        _ => KeyRange { start: key.clone(), end: Some(range_end.clone()) },
    }
}

/// Whether a permission may be given on this range.
pub fn is_valid(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || key < range_end || range_end == [0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn permission(kind: PermissionType, key: &str, end: &str) -> Permission {
        Permission {
            perm_type: kind as i32,
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
        }
    }

    #[test]
    fn permissions_of_several_roles_add_up() {
        use PermissionType::*;
        let all = [
            permission(Read, "a", "c"),
            permission(ReadWrite, "c", "f"),
            permission(Write, "x", ""),
            permission(Read, "z", "\0"),
        ];
        let p = Permissions::new(all.iter());
        for (access, key, end, allowed) in [
            (Access::Read, "a", "f", true),
            (Access::Read, "a", "g", false),
            (Access::Read, "b", "", true),
            (Access::Read, "f", "", false),
            (Access::Read, "x", "", false),
            (Access::Read, "zz", "\0", true),
            (Access::Read, "y", "\0", false),
            (Access::Write, "x", "", true),
            (Access::Write, "x", "y", false),
            (Access::Write, "c", "f", true),
            (Access::Write, "a", "d", false),
        ] {
            let range = range_of(&key.to_owned().into(), &end.to_owned().into());
            assert_eq!(p.allow(access, &range), allowed, "{access:?} {key} {end:?}");
        }
    }

    #[test]
    fn valid_ranges() {
        for (key, end, valid) in [
            ("a", "", true),
            ("", "", false),
            ("a", "b", true),
            ("b", "a", false),
            ("a", "a", false),
            ("a", "\0", true),
        ] {
            assert_eq!(is_valid(key.as_bytes(), end.as_bytes()), valid, "{key:?} {end:?}");
        }
    }

    proptest! {
        /// Merged ranges hold exactly the keys of the ranges they were made of.
        #[test]
        fn merging_keeps_every_key(ranges in proptest::collection::vec((0u8..20, 0u8..24), 0..6), key in 0u8..24) {
            let all: Vec<KeyRange> = ranges
                .iter()
                .map(|(a, b)| KeyRange {
                    start: vec![*a].into(),
                    end: (*b < 22).then(|| vec![*b].into()),
                })
                .collect();
            let one = KeyRange::key(vec![key]);
            let expected = all.iter().any(|r| r.contains(&[key]));
            // A range between two bytes still has longer keys in it; single keys are what is asked for here.
            prop_assert_eq!(Ranges::new(all).cover(&one), expected);
        }
    }
}
