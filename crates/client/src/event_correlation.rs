//! Keeping Events few: a spam filter per object, aggregation of similar ones, counting of equal ones. Pure.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

/// Events about one object from one source: this many at once, then one per [`SPAM_INTERVAL`].
const SPAM_BURST: f64 = 25.0;
const SPAM_INTERVAL: Duration = Duration::from_secs(300);
/// More than this many similar events within [`AGGREGATE_WINDOW`] become one.
const AGGREGATE_AFTER: usize = 10;
const AGGREGATE_WINDOW: Duration = Duration::from_secs(600);
const REMEMBERED: usize = 4096;

/// What is about to be recorded, without its time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Occurrence {
    /// Identity of the object the event is about.
    pub object: String,
    pub event_type: String,
    pub reason: String,
    pub message: String,
}

/// What to do about an occurrence.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Drop,
    /// A new event; report its name with [`Correlator::created`].
    Create {
        message: String,
    },
    /// Count up the event that stands for this occurrence.
    Count {
        name: String,
        count: i32,
        message: String,
    },
}

struct Tokens {
    left: f64,
    at: Timestamp,
}

struct Similar {
    messages: Vec<String>,
    since: Timestamp,
}

struct Recorded {
    name: String,
    count: i32,
    at: Timestamp,
}

/// Remembers enough of the recent past to judge the next occurrence.
#[derive(Default)]
pub struct Correlator {
    tokens: HashMap<String, Tokens>,
    similar: HashMap<(String, String, String), Similar>,
    recorded: HashMap<Occurrence, Recorded>,
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

impl Correlator {
    pub fn judge(&mut self, occurrence: &Occurrence, now: Timestamp) -> Verdict {
        self.forget_old(now);
        let tokens =
            self.tokens.entry(occurrence.object.clone()).or_insert(Tokens { left: SPAM_BURST, at: now });
        let refill = since(tokens.at, now).as_secs_f64() / SPAM_INTERVAL.as_secs_f64();
        (tokens.left, tokens.at) = ((tokens.left + refill).min(SPAM_BURST), now);
        if tokens.left < 1.0 {
            return Verdict::Drop;
        }
        tokens.left -= 1.0;

        let key = self.stands_for(occurrence, now);
        match self.recorded.get_mut(&key) {
            Some(recorded) => {
                recorded.count += 1;
                recorded.at = now;
                Verdict::Count { name: recorded.name.clone(), count: recorded.count, message: key.message }
            }
            None => Verdict::Create { message: key.message },
        }
    }

    /// An event for `occurrence` exists as `name`.
    pub fn created(&mut self, occurrence: &Occurrence, message: &str, name: String, now: Timestamp) {
        let key = Occurrence { message: message.to_owned(), ..occurrence.clone() };
        self.recorded.insert(key, Recorded { name, count: 1, at: now });
    }

    /// The event of `occurrence` no longer exists.
    pub fn lost(&mut self, occurrence: &Occurrence, message: &str) {
        self.recorded.remove(&Occurrence { message: message.to_owned(), ..occurrence.clone() });
    }

    /// The occurrence itself, or the one that stands for many similar ones.
    fn stands_for(&mut self, occurrence: &Occurrence, now: Timestamp) -> Occurrence {
        let group = (occurrence.object.clone(), occurrence.event_type.clone(), occurrence.reason.clone());
        let similar = self.similar.entry(group).or_insert(Similar { messages: vec![], since: now });
        if since(similar.since, now) > AGGREGATE_WINDOW {
            *similar = Similar { messages: vec![], since: now };
        }
        if !similar.messages.contains(&occurrence.message) {
            if similar.messages.len() < AGGREGATE_AFTER {
                similar.messages.push(occurrence.message.clone());
            } else {
                let message = format!("(combined from similar events): {}", occurrence.message);
                // All combined events count as one, whatever they say.
                let known = self
                    .recorded
                    .keys()
                    .find(|k| {
                        k.object == occurrence.object
                            && k.reason == occurrence.reason
                            && k.event_type == occurrence.event_type
                            && k.message.starts_with("(combined from similar events): ")
                    })
                    .cloned();
                let key = Occurrence { message, ..occurrence.clone() };
                if let Some(recorded) = known.and_then(|k| self.recorded.remove(&k)) {
                    self.recorded.insert(key.clone(), recorded);
                }
                return key;
            }
        }
        occurrence.clone()
    }

    fn forget_old(&mut self, now: Timestamp) {
        if self.tokens.len() > REMEMBERED {
            let full = SPAM_INTERVAL * SPAM_BURST as u32;
            self.tokens.retain(|_, t| since(t.at, now) < full);
            if self.tokens.len() > REMEMBERED {
                self.tokens.clear();
            }
        }
        if self.similar.len() > REMEMBERED {
            self.similar.retain(|_, s| since(s.since, now) < AGGREGATE_WINDOW);
            if self.similar.len() > REMEMBERED {
                self.similar.clear();
            }
        }
        if self.recorded.len() > REMEMBERED {
            self.recorded.retain(|_, r| since(r.at, now) < AGGREGATE_WINDOW);
            if self.recorded.len() > REMEMBERED {
                self.recorded.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(object: &str, message: &str) -> Occurrence {
        Occurrence {
            object: object.into(),
            event_type: "Normal".into(),
            reason: "R".into(),
            message: message.into(),
        }
    }

    #[test]
    fn counts_equal_events() {
        let (mut c, now) = (Correlator::default(), Timestamp::UNIX_EPOCH);
        let o = occurrence("a", "m");
        assert_eq!(c.judge(&o, now), Verdict::Create { message: "m".into() });
        c.created(&o, "m", "a.1".into(), now);
        assert_eq!(c.judge(&o, now), Verdict::Count { name: "a.1".into(), count: 2, message: "m".into() });
        c.lost(&o, "m");
        assert_eq!(c.judge(&o, now), Verdict::Create { message: "m".into() });
    }

    #[test]
    fn combines_similar_events() {
        let (mut c, now) = (Correlator::default(), Timestamp::UNIX_EPOCH);
        for i in 0..AGGREGATE_AFTER {
            let o = occurrence("a", &i.to_string());
            assert!(matches!(c.judge(&o, now), Verdict::Create { .. }));
        }
        let o = occurrence("a", "x");
        let message = "(combined from similar events): x".to_owned();
        assert_eq!(c.judge(&o, now), Verdict::Create { message: message.clone() });
        c.created(&o, &message, "a.1".into(), now);
        let Verdict::Count { count: 2, message, .. } = c.judge(&occurrence("a", "y"), now) else {
            panic!("not counted")
        };
        assert_eq!(message, "(combined from similar events): y");
    }

    #[test]
    fn drops_spam_until_tokens_return() {
        let (mut c, now) = (Correlator::default(), Timestamp::UNIX_EPOCH);
        let o = occurrence("a", "m");
        let kept = (0..100).filter(|_| c.judge(&o, now) != Verdict::Drop).count();
        assert_eq!(kept, 25);
        assert_ne!(c.judge(&occurrence("b", "m"), now), Verdict::Drop);
        let later = now + SPAM_INTERVAL;
        assert_ne!(c.judge(&o, later), Verdict::Drop);
        assert_eq!(c.judge(&o, later), Verdict::Drop);
    }
}
