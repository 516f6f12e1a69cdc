//! Service Lease.

use std::sync::Arc;

use storage::{Error, KeyRange};
use tonic::Status;

use super::failure::{self, status};
use super::grpc::{self, Frames, Requests};
use super::{Call, Member};
use crate::api;
use crate::auth::Identity;
use crate::auth::permission::Access;

impl Member {
    pub async fn lease_grant(
        &self,
        request: api::LeaseGrantRequest,
    ) -> Result<api::LeaseGrantResponse, Status> {
        self.check_intact()?;
        let granted = self.engine.grant(request.id, request.ttl).await.map_err(status)?;
        self.metrics.leases_granted.add(1);
        let header = self.header.message(self.engine.current_revision());
        Ok(api::LeaseGrantResponse { header, id: granted.id, ttl: granted.ttl_seconds, error: String::new() })
    }

    pub async fn lease_revoke(
        &self,
        who: &Option<Identity>,
        request: api::LeaseRevokeRequest,
    ) -> Result<api::LeaseRevokeResponse, Status> {
        self.check_intact()?;
        if self.auth.enabled() {
            self.check_lease_puts(who, request.id)?;
        }
        self.engine.revoke(request.id).await.map_err(status)?;
        self.metrics.leases_revoked.add(1);
        Ok(api::LeaseRevokeResponse { header: self.header.message(self.engine.current_revision()) })
    }

    /// A lease that is gone has 0 seconds left; that is no error.
    pub async fn lease_renew(&self, id: i64) -> Result<api::LeaseKeepAliveResponse, Status> {
        let header = self.header.message(self.engine.current_revision());
        let ttl = match self.engine.renew(id).await {
            Ok(ttl) => ttl,
            Err(Error::LeaseNotFound) => 0,
            Err(error) => return Err(status(error)),
        };
        self.metrics.leases_renewed.add(1);
        Ok(api::LeaseKeepAliveResponse { header, id, ttl })
    }

    pub fn lease_keep_alive(self: &Arc<Member>, requests: Requests) -> Frames {
        let member = self.clone();
        Box::pin(futures::stream::try_unfold(requests, move |mut requests| {
            let member = member.clone();
            async move {
                let request = tokio::select! {
                    request = requests.next::<api::LeaseKeepAliveRequest>() => request?,
                    () = member.shutdown.cancelled() => return Err(failure::STOPPED.into()),
                };
                let Some(request) = request else { return Ok(None) };
                let answer = member.lease_renew(request.id).await?;
                Ok(Some((grpc::frame(&answer), requests)))
            }
        }))
    }

    pub fn lease_time_to_live(
        &self,
        call: &Call,
        request: api::LeaseTimeToLiveRequest,
    ) -> Result<api::LeaseTimeToLiveResponse, Status> {
        let header = self.header.message(self.engine.current_revision());
        let found = self.engine.lease_status(request.id, request.keys);
        if request.keys && self.auth.enabled() {
            let who = self.identify(call)?;
            if who.is_none() {
                return Err(failure::USER_EMPTY.into());
            }
            for key in found.iter().flat_map(|lease| &lease.keys) {
                self.auth.check(&who, Access::Read, &KeyRange::key(key.clone()))?;
            }
        }
        Ok(match found {
            Some(lease) => api::LeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: lease.remaining_seconds,
                granted_ttl: lease.granted_seconds,
                keys: lease.keys,
            },
            None => api::LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, ..Default::default() },
        })
    }

    /// All leases, those that run out first before the others.
    pub fn lease_leases(&self) -> api::LeaseLeasesResponse {
        let mut leases: Vec<(i64, i64)> = self
            .engine
            .lease_ids()
            .into_iter()
            .filter_map(|id| Some((self.engine.lease_status(id, false)?.remaining_seconds, id)))
            .collect();
        leases.sort_unstable();
        api::LeaseLeasesResponse {
            header: self.header.message(self.engine.current_revision()),
            leases: leases.into_iter().map(|(_, id)| api::LeaseStatus { id }).collect(),
        }
    }
}
