//! Leader election on coordination Leases.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Client;

/// Which lease is contended for, and how patiently.
#[derive(Clone, Debug)]
pub struct LeaderElection {
    pub namespace: String,
    pub name: String,
    /// Unique among the candidates.
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl LeaderElection {
    /// Upstream's timing: 15 s lease, 10 s to renew, 2 s between tries.
    pub fn new(
        namespace: impl Into<String>,
        name: impl Into<String>,
        identity: impl Into<String>,
    ) -> LeaderElection {
        LeaderElection {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// A candidate for a lease.
pub struct LeaderElector {
    election: LeaderElection,
    leases: Api<Lease>,
    /// What the lease said when it last changed, and when we saw that, by our own clock.
    observed: Option<(LeaseSpec, Instant)>,
}

impl LeaderElector {
    pub fn new(client: &Client, election: LeaderElection) -> LeaderElector {
        let leases = client.namespaced(&election.namespace);
        LeaderElector { election, leases, observed: None }
    }

    /// Waits for the lease, then runs `lead` for as long as it is held. Returns when `lead` has ended, the lease is
    /// lost (`lead`'s token is cancelled, and `lead` awaited), or `shutdown` is cancelled; the lease is given
    /// back then. Returns whether the lease was lost.
    pub async fn run<F, Fut>(mut self, shutdown: CancellationToken, lead: F) -> bool
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        while !self.try_acquire().await {
            let wait = jittered(self.election.retry_period);
            if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return false;
            }
        }
        tracing::info!(lease = self.election.name, identity = self.election.identity, "leading");
        let leading = shutdown.child_token();
        let work = lead(leading.clone());
        tokio::pin!(work);
        let lost = tokio::select! {
            () = &mut work => false,
            () = self.renew() => true,
            () = shutdown.cancelled() => false,
        };
        leading.cancel();
        if lost {
            tracing::error!(lease = self.election.name, "lost the lease");
            return true;
        }
        if shutdown.is_cancelled() {
            work.await;
        }
        self.release().await;
        false
    }

    /// Returns once the lease could not be renewed in time.
    async fn renew(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.election.retry_period).await;
            let deadline = renewed + self.election.renew_deadline;
            match tokio::time::timeout_at(deadline, self.try_acquire()).await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) if Instant::now() < deadline => {}
                _ => return,
            }
        }
    }

    async fn try_acquire(&mut self) -> bool {
        match self.acquire_once().await {
            Ok(held) => held,
            Err(error) => {
                tracing::debug!(lease = self.election.name, %error, "lease not acquired");
                false
            }
        }
    }

    async fn acquire_once(&mut self) -> kube::Result<bool> {
        let now = MicroTime(Timestamp::now());
        let mut spec = LeaseSpec {
            holder_identity: Some(self.election.identity.clone()),
            lease_duration_seconds: Some(self.election.lease_duration.as_secs() as i32),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        };
        let Some(mut lease) = self.leases.get_opt(&self.election.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.election.name.clone()),
                    namespace: Some(self.election.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(spec),
            };
            let lease = self.leases.create(&PostParams::default(), &lease).await?;
            self.observe(lease.spec.unwrap_or_default());
            return Ok(true);
        };
        let held = lease.spec.clone().unwrap_or_default();
        self.observe(held.clone());
        let holder = held.holder_identity.as_deref().unwrap_or_default();
        let ours = holder == self.election.identity;
        if !may_take(&held, ours, self.observed.as_ref().map(|(_, at)| at.elapsed()).unwrap_or_default()) {
            return Ok(false);
        }
        if ours {
            spec.acquire_time = held.acquire_time;
            spec.lease_transitions = held.lease_transitions;
        } else {
            spec.lease_transitions = Some(held.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        lease.spec = Some(spec);
        let lease = self.leases.replace(&self.election.name, &PostParams::default(), &lease).await?;
        self.observe(lease.spec.unwrap_or_default());
        Ok(true)
    }

    fn observe(&mut self, spec: LeaseSpec) {
        if self.observed.as_ref().is_none_or(|(known, _)| *known != spec) {
            self.observed = Some((spec, Instant::now()));
        }
    }

    /// Lets the next candidate in at once.
    async fn release(&mut self) {
        let Ok(Some(mut lease)) = self.leases.get_opt(&self.election.name).await else { return };
        let Some(spec) = &mut lease.spec else { return };
        if spec.holder_identity.as_deref() != Some(&self.election.identity) {
            return;
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        let _ = self.leases.replace(&self.election.name, &PostParams::default(), &lease).await;
    }
}

/// Whether a lease seen unchanged for `unchanged` can be taken.
fn may_take(held: &LeaseSpec, ours: bool, unchanged: Duration) -> bool {
    let duration = Duration::from_secs(held.lease_duration_seconds.unwrap_or(0).max(0) as u64);
    ours || held.holder_identity.as_deref().unwrap_or_default().is_empty() || unchanged >= duration
}

fn jittered(period: Duration) -> Duration {
    period.mul_f64(1.0 + 1.2 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_take_a_lease() {
        for (holder, ours, unchanged, want) in
            [("", false, 0, true), ("a", true, 0, true), ("b", false, 14, false), ("b", false, 15, true)]
        {
            let held = LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(15),
                ..LeaseSpec::default()
            };
            assert_eq!(may_take(&held, ours, Duration::from_secs(unchanged)), want, "{holder} {unchanged}");
        }
    }
}
