//! Automatic compaction, by time or by number of revisions.

use std::collections::VecDeque;
use std::time::Duration;

use storage::Revision;
use tokio::time::Instant;

use crate::Engine;
use crate::flags::Retention;

const HOUR: Duration = Duration::from_secs(3600);
/// How often revisions are counted.
const REVISIONS_INTERVAL: Duration = Duration::from_secs(300);
/// Looks at the revision within one interval.
const SAMPLES: u32 = 10;

/// Compacts until the task is dropped.
pub async fn run(engine: Engine, retention: Retention) {
    match retention {
        Retention::Everything => std::future::pending().await,
        Retention::Revisions(keep) => loop {
            tokio::time::sleep(REVISIONS_INTERVAL).await;
            compact(&engine, engine.current_revision() - keep).await;
        },
        Retention::Time(period) => {
            // At most every hour; shorter periods compact as often as they are long.
            let pause = period.min(HOUR) / SAMPLES;
            let mut samples = Samples::default();
            let mut since = 0;
            loop {
                samples.note(Instant::now(), engine.current_revision());
                tokio::time::sleep(pause).await;
                since += 1;
                if let Some(revision) = samples.before(Instant::now(), period).filter(|_| since >= SAMPLES) {
                    since = 0;
                    compact(&engine, revision).await;
                }
            }
        }
    }
}

/// Where the store stood when.
#[derive(Default)]
struct Samples(VecDeque<(Instant, Revision)>);

impl Samples {
    fn note(&mut self, now: Instant, revision: Revision) {
        self.0.push_back((now, revision));
    }

    /// The newest revision that is at least `period` old; older ones are forgotten.
    fn before(&mut self, now: Instant, period: Duration) -> Option<Revision> {
        let old = self.0.iter().take_while(|(at, _)| now - *at >= period).count();
        self.0.drain(..old.saturating_sub(1));
        (old > 0).then(|| self.0[0].1)
    }
}

async fn compact(engine: &Engine, revision: Revision) {
    if revision <= engine.compacted() {
        return;
    }
    match engine.compact_to(revision, false).await {
        Ok(()) => tracing::info!(revision, "compacted"),
        Err(storage::Error::Compacted { .. }) => {}
        Err(error) => tracing::warn!(revision, %error, "cannot compact"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn samples_know_where_the_store_stood() {
        let start = Instant::now();
        let minute = Duration::from_secs(60);
        let mut samples = Samples::default();
        for i in 0..10u32 {
            samples.note(start + minute * i, i64::from(i) + 1);
        }
        assert_eq!(samples.before(start + minute * 9, minute * 10), None);
        assert_eq!(samples.before(start + minute * 10, minute * 10), Some(1));
        assert_eq!(samples.before(start + minute * 14, minute * 10), Some(5));
        assert_eq!(samples.0.len(), 6);
    }
}
