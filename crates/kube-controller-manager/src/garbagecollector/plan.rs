//! What to do about an object, given what its owners are up to. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::{FOREGROUND, ORPHAN};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    Present,
    Absent,
    /// Being deleted in the foreground.
    WaitsForDependents,
}

/// An object that is not being deleted.
pub(super) struct Observed<'a> {
    pub(super) finalizers: &'a [String],
    pub(super) owners: &'a [OwnerReference],
    /// One per owner.
    pub(super) states: &'a [OwnerState],
    pub(super) has_dependents: bool,
    /// Whether a dependent waits for its own dependents, of which this object may be one.
    pub(super) circle: bool,
}

#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Keep,
    /// Keep, with only these owners.
    DropOwners(Vec<OwnerReference>),
    /// Stop holding the owners up, then delete in the foreground.
    UnblockAndDelete,
    /// Delete with this propagation policy.
    Delete(&'static str),
}

pub(super) fn plan(o: &Observed<'_>) -> Action {
    let is = |state: OwnerState| o.states.contains(&state);
    if o.owners.is_empty() {
        return Action::Keep;
    }
    if is(OwnerState::Present) {
        if o.states.iter().all(|s| *s == OwnerState::Present) {
            return Action::Keep;
        }
        let pairs = o.owners.iter().zip(o.states);
        return Action::DropOwners(
            pairs.filter(|(_, s)| **s == OwnerState::Present).map(|(r, _)| r.clone()).collect(),
        );
    }
    if is(OwnerState::WaitsForDependents) && o.has_dependents {
        // The owner waits for us, so we wait for ours.
        return if o.circle { Action::UnblockAndDelete } else { Action::Delete("Foreground") };
    }
    // An earlier request to orphan or to wait still holds.
    let has = |finalizer: &str| o.finalizers.iter().any(|f| f == finalizer);
    if has(ORPHAN) {
        Action::Delete("Orphan")
    } else if has(FOREGROUND) {
        Action::Delete("Foreground")
    } else {
        Action::Delete("Background")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_broken() {
        let observed = Observed {
            finalizers: &[],
            owners: &[OwnerReference::default()],
            states: &[OwnerState::WaitsForDependents],
            has_dependents: true,
            circle: true,
        };
        assert_eq!(plan(&observed), Action::UnblockAndDelete);
    }

    #[test]
    fn what_becomes_of_dependents() {
        use OwnerState::*;
        for (states, finalizers, has_dependents, want) in [
            (&[][..], &[][..], false, "keep"),
            (&[Present], &[], false, "keep"),
            (&[Present, Absent], &[], true, "drop 1"),
            (&[Present, WaitsForDependents, Present], &[], true, "drop 2"),
            (&[Absent], &[], true, "Background"),
            (&[Absent], &["orphan"], true, "Orphan"),
            (&[Absent], &["foregroundDeletion"], true, "Foreground"),
            (&[WaitsForDependents], &[], true, "Foreground"),
            (&[WaitsForDependents, Absent], &[], false, "Background"),
        ] {
            let owners = vec![OwnerReference::default(); states.len()];
            let finalizers: Vec<String> = finalizers.iter().map(|f: &&str| f.to_string()).collect();
            let got = match plan(&Observed {
                finalizers: &finalizers,
                owners: &owners,
                states,
                has_dependents,
                circle: false,
            }) {
                Action::Keep => "keep".to_owned(),
                Action::DropOwners(rest) => format!("drop {}", rest.len()),
                Action::UnblockAndDelete => "unblock".to_owned(),
                Action::Delete(policy) => policy.to_owned(),
            };
            assert_eq!(got, want, "{states:?} {finalizers:?}");
        }
    }
}
