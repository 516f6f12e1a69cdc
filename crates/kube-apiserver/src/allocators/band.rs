//! Which numbers of a range are handed out to whom. The lower part of a range is left to those who ask for a number by
//! name, as far as possible: dynamic requests take from the upper part first.

use std::collections::HashMap;
use std::hash::Hash;

use rand::Rng as _;

/// Numbers at random tried before the range is walked.
const GUESSES: u32 = 16;

/// Numbers `first..=last`, of which those below `first + static_part` are left for static requests while others remain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    pub first: u128,
    pub last: u128,
    pub static_part: u128,
}

impl Band {
    pub fn contains(&self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// A free number, chosen at random; `None` when the range is full.
    pub fn pick(&self, taken: impl Fn(u128) -> bool) -> Option<u128> {
        let dynamic = (self.first + self.static_part).min(self.last + 1);
        let mut random = rand::rng();
        for (from, to) in [(dynamic, self.last + 1), (self.first, dynamic)] {
            if from >= to {
                continue;
            }
            for _ in 0..GUESSES {
                let guess = random.random_range(from..to);
                if !taken(guess) {
                    return Some(guess);
                }
            }
            let start = random.random_range(from..to);
            if let Some(found) = (start..to).chain(from..start).find(|n| !taken(*n)) {
                return Some(found);
            }
        }
        None
    }
}

/// Taken numbers and the service (`namespace/name`) that has each.
#[derive(Debug)]
pub struct Taken<N> {
    owners: HashMap<N, Owner>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub service: String,
    /// The service no longer wants it; free as soon as the stored service agrees.
    pub given_up: bool,
}

impl<N> Default for Taken<N> {
    fn default() -> Taken<N> {
        Taken { owners: HashMap::new() }
    }
}

impl<N: Eq + Hash + Copy> Taken<N> {
    pub fn has(&self, number: N) -> bool {
        self.owners.contains_key(&number)
    }

    pub fn owner(&self, number: N) -> Option<&Owner> {
        self.owners.get(&number)
    }

    pub fn take(&mut self, number: N, service: &str) {
        self.owners.insert(number, Owner { service: service.to_owned(), given_up: false });
    }

    pub fn free(&mut self, number: N) {
        self.owners.remove(&number);
    }

    /// Frees a number if it belongs to this service.
    pub fn free_from(&mut self, number: N, service: &str) {
        if self.owners.get(&number).is_some_and(|o| o.service == service) {
            self.owners.remove(&number);
        }
    }

    pub fn give_up(&mut self, number: N, service: &str) {
        if let Some(owner) = self.owners.get_mut(&number).filter(|o| o.service == service) {
            owner.given_up = true;
        }
    }

    /// Numbers that were given up.
    pub fn given_up(&self) -> Vec<(N, String)> {
        self.owners.iter().filter(|(_, o)| o.given_up).map(|(n, o)| (*n, o.service.clone())).collect()
    }

    pub fn len(&self) -> usize {
        self.owners.len()
    }

    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn dynamic_requests_leave_the_static_part_to_the_last() {
        let band = Band { first: 10, last: 29, static_part: 5 };
        let mut taken = HashSet::new();
        for n in 0..20 {
            let picked = band.pick(|x| taken.contains(&x)).unwrap();
            assert!(band.contains(picked) && taken.insert(picked));
            assert_eq!(picked >= 15, n < 15, "{picked} as number {n}");
        }
        assert_eq!(band.pick(|x| taken.contains(&x)), None);
    }
}
