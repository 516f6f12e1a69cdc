//! What was found out about tokens, remembered for a while; those who ask at the same time share one answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::clock::Clock;
use apimachinery::user::UserInfo;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use ring::hmac;

use crate::metrics::{Families, Family};
use crate::remembered::Remembered;

/// A user and those of the audiences asked for that the token is good for; `None` for tokens of nobody known; or why
/// the token could not be told.
pub type Outcome = Result<Option<(UserInfo, Vec<String>)>, String>;

/// Tokens that are remembered.
const REMEMBERED_MAX: usize = 32_768;
/// How long a look-up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

type Digest = [u8; 32];
type Lookup = Shared<BoxFuture<'static, Outcome>>;

pub struct TokenCache {
    success_ttl: Duration,
    failure_ttl: Duration,
    /// Keeps tokens out of memory, and what clients send from choosing where it is kept.
    key: hmac::Key,
    known: Remembered<Digest, Outcome>,
    asking: Mutex<HashMap<Digest, Lookup>>,
    requests: Arc<Family>,
    fetches: Arc<Family>,
}

impl TokenCache {
    /// Nothing is remembered for a time of zero. Errors never are.
    pub fn new(
        success_ttl: Duration,
        failure_ttl: Duration,
        clock: Clock,
        families: &Families,
    ) -> TokenCache {
        let mut secret = [0; 32];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut secret);
        TokenCache {
            success_ttl,
            failure_ttl,
            key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            known: Remembered::new(REMEMBERED_MAX, clock),
            asking: Mutex::default(),
            requests: families.counter(
                "authentication_token_cache_request_total",
                "Tokens that were looked for in the cache.",
                &["status"],
            ),
            fetches: families.counter(
                "authentication_token_cache_fetch_total",
                "Tokens that were not in the cache, and whether finding out succeeded.",
                &["status"],
            ),
        }
    }

    fn digest(&self, token: &str, audiences: &[String]) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        let mut part = |text: &str| {
            context.update(&(text.len() as u32).to_be_bytes());
            context.update(text.as_bytes());
        };
        part(token);
        audiences.iter().for_each(|a| part(a));
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }

    /// What is known of a token, or what `look_up` finds out.
    pub async fn get(
        &self,
        token: &str,
        audiences: &[String],
        look_up: impl FnOnce() -> BoxFuture<'static, Outcome>,
    ) -> Outcome {
        let digest = self.digest(token, audiences);
        if let Some(outcome) = self.known.get(&digest) {
            self.requests.inc(&["hit"]);
            return outcome;
        }
        self.requests.inc(&["miss"]);
        let lookup = {
            let mut asking = self.asking.lock();
            let fresh = || {
                let bounded = tokio::time::timeout(LOOKUP_TIMEOUT, look_up());
                bounded
                    .map(|o| o.unwrap_or_else(|_| Err("context deadline exceeded".to_owned())))
                    .boxed()
                    .shared()
            };
            asking.entry(digest).or_insert_with(fresh).clone()
        };
        let forget = Forget { cache: self, digest, lookup: lookup.clone() };
        let outcome = lookup.await;
        if forget.is_first() {
            self.fetches.inc(&[if outcome.is_ok() { "ok" } else { "error" }]);
            self.remember(digest, &outcome);
        }
        outcome
    }

    fn remember(&self, digest: Digest, outcome: &Outcome) {
        let ttl = match outcome {
            Ok(Some(_)) => self.success_ttl,
            Ok(None) => self.failure_ttl,
            Err(_) => return,
        };
        self.known.keep(digest, outcome.clone(), ttl);
    }
}

/// Takes a look-up out of those under way, when the first who waited for it has its answer or gave up.
struct Forget<'a> {
    cache: &'a TokenCache,
    digest: Digest,
    lookup: Lookup,
}

impl Forget<'_> {
    /// Takes it out; whether it was still there.
    fn is_first(&self) -> bool {
        let mut asking = self.cache.asking.lock();
        let ours = asking.get(&self.digest).is_some_and(|l| l.ptr_eq(&self.lookup));
        if ours {
            asking.remove(&self.digest);
        }
        ours
    }
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.is_first();
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn remembers() {
        let families = Families::default();
        let time = Arc::new(Mutex::new(Timestamp::UNIX_EPOCH));
        let clock = Clock::from_fn({
            let time = time.clone();
            move || *time.lock()
        });
        let cache = TokenCache::new(Duration::from_secs(10), Duration::from_secs(5), clock, &families);
        let calls = Arc::new(AtomicUsize::new(0));
        let look_up = |outcome: Outcome| {
            let calls = calls.clone();
            move || {
                async move {
                    calls.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    outcome
                }
                .boxed()
            }
        };
        let found: Outcome = Ok(Some((UserInfo::new("a", &[]), Vec::new())));
        let (x, y) = (vec!["x".to_owned()], vec!["y".to_owned()]);
        // Together, again, for others, and when it was forgotten.
        let both =
            tokio::join!(cache.get("t", &x, look_up(found.clone())), cache.get("t", &x, look_up(Ok(None))),);
        assert_eq!(both, (found.clone(), found.clone()));
        assert_eq!(cache.get("t", &x, look_up(Ok(None))).await, found);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(cache.get("t", &y, look_up(Ok(None))).await, Ok(None));
        assert_eq!(cache.get("t", &y, look_up(found.clone())).await, Ok(None));
        *time.lock() += Duration::from_secs(6);
        assert_eq!(cache.get("t", &y, look_up(found.clone())).await, found);
        assert_eq!(cache.get("t", &x, look_up(Ok(None))).await, found);
        *time.lock() += Duration::from_secs(6);
        assert_eq!(cache.get("t", &x, look_up(Ok(None))).await, Ok(None));
        // Errors are not remembered.
        for _ in 0..2 {
            let before = calls.load(Ordering::SeqCst);
            assert!(cache.get("e", &x, look_up(Err("no".into()))).await.is_err());
            assert_eq!(calls.load(Ordering::SeqCst), before + 1);
        }
        assert!(cache.asking.lock().is_empty());
    }
}
