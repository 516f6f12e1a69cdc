//! Service Election (v3electionpb).

use std::sync::Arc;

use bytes::Bytes;
use storage::{Event, KeyRange, KeyValue, Revision};
use tonic::Status;

use super::grpc::{self, Frames};
use super::lock::Waiting;
use super::{Member, failure};
use crate::api::{self, compare::TargetUnion, request_op::Request};
use crate::auth::Identity;
use crate::auth::permission::Access;
use crate::{EventsMax, Query, Sort, SortTarget, TxnOutcome};

const EVENTS: EventsMax = EventsMax { events: 64, bytes: 1 << 20 };

fn no_leader() -> Status {
    Status::unknown("election: no leader")
}

fn message(kv: &KeyValue) -> api::KeyValue {
    api::KeyValue {
        key: kv.key.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value.clone(),
        lease: kv.lease,
    }
}

impl Member {
    pub async fn campaign(
        self: &Arc<Member>,
        who: Option<Identity>,
        request: api::CampaignRequest,
    ) -> Result<api::CampaignResponse, Status> {
        let lease = self.session(request.lease).await?;
        let place = self.enqueue(&who, &request.name, lease, request.value.clone()).await?;
        let leader =
            api::LeaderKey { name: request.name.clone(), key: place.key.clone(), rev: place.created, lease };
        let waiting = Waiting { member: self.clone(), key: Some(place.key.clone()) };
        if place.found.is_some_and(|value| value != request.value) {
            let put =
                api::PutRequest { key: place.key.clone(), value: request.value, lease, ..Default::default() };
            self.as_leader(&who, &leader, Request::Put(put)).await?;
        }
        self.wait_turn(&request.name, place.created).await?;
        if !self.key_exists(&place.key).await? {
            return Err(Status::unknown("election: session is expired"));
        }
        waiting.done();
        Ok(api::CampaignResponse { header: self.header.message(place.revision), leader: Some(leader) })
    }

    /// Does `request` if the leader's key is still the one that was created at its revision.
    async fn as_leader(
        &self,
        who: &Option<Identity>,
        leader: &api::LeaderKey,
        request: Request,
    ) -> Result<TxnOutcome, Status> {
        let compare = api::Compare {
            target: api::CompareTarget::Create as i32,
            key: leader.key.clone(),
            target_union: Some(TargetUnion::CreateRevision(leader.rev)),
            ..Default::default()
        };
        let txn = api::TxnRequest {
            compare: vec![compare],
            success: vec![api::RequestOp { request: Some(request) }],
            failure: Vec::new(),
        };
        self.txn_outcome(who, txn).await
    }

    pub async fn proclaim(
        &self,
        who: Option<Identity>,
        request: api::ProclaimRequest,
    ) -> Result<api::ProclaimResponse, Status> {
        let leader = request.leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))?;
        let put = api::PutRequest {
            key: leader.key.clone(),
            value: request.value,
            lease: leader.lease,
            ..Default::default()
        };
        let outcome = self.as_leader(&who, &leader, Request::Put(put)).await?;
        if !outcome.succeeded {
            return Err(Status::unknown("election: not leader"));
        }
        Ok(api::ProclaimResponse { header: self.header.message(outcome.revision) })
    }

    pub async fn resign(
        &self,
        who: Option<Identity>,
        request: api::ResignRequest,
    ) -> Result<api::ResignResponse, Status> {
        let leader = request.leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))?;
        let delete = api::DeleteRangeRequest { key: leader.key.clone(), ..Default::default() };
        let outcome = self.as_leader(&who, &leader, Request::DeleteRange(delete)).await?;
        Ok(api::ResignResponse { header: self.header.message(outcome.revision) })
    }

    /// The one who leads, and the store's revision.
    async fn leading(&self, name: &[u8]) -> Result<(Option<Arc<KeyValue>>, Revision), Status> {
        let query = Query {
            limit: 1,
            sort: Some(Sort { target: SortTarget::Create, descending: false }),
            ..Query::new(KeyRange::prefix([name, b"/"].concat()))
        };
        let found = self.engine.query(&query).await.map_err(failure::status)?;
        Ok((found.kvs.first().cloned(), found.revision))
    }

    pub async fn leader(
        &self,
        who: Option<Identity>,
        request: api::LeaderRequest,
    ) -> Result<api::LeaderResponse, Status> {
        self.may_observe(&who, &request.name)?;
        let (kv, revision) = self.leading(&request.name).await?;
        let kv = kv.ok_or_else(no_leader)?;
        Ok(api::LeaderResponse { header: self.header.message(revision), kv: Some(message(&kv)) })
    }

    pub fn may_observe(&self, who: &Option<Identity>, name: &[u8]) -> Result<(), Status> {
        Ok(self.auth.check(who, Access::Read, &KeyRange::prefix([name, b"/"].concat()))?)
    }

    /// Tells the leader now and every change of who leads or what the leader proclaims.
    pub fn observe(self: &Arc<Member>, name: Bytes) -> Frames {
        struct Observing {
            member: Arc<Member>,
            name: Bytes,
            /// The leader's key, and what of it was told.
            leader: Option<(Bytes, Revision)>,
            next: Revision,
        }
        let start = Observing { member: self.clone(), name, leader: None, next: 0 };
        Box::pin(futures::stream::try_unfold(start, |mut state| async move {
            let member = state.member.clone();
            let mut applied = member.engine.subscribe();
            loop {
                let (leading, revision) = member.leading(&state.name).await?;
                if let Some(kv) = leading {
                    let now = (kv.key.clone(), kv.mod_revision);
                    if state.leader.as_ref() != Some(&now) {
                        state.leader = Some(now);
                        state.next = revision + 1;
                        let header = member.header.message(revision);
                        let answer = api::LeaderResponse { header, kv: Some(message(&kv)) };
                        return Ok(Some((grpc::frame(&answer), state)));
                    }
                }
                state.next = state.next.max(revision + 1);
                let prefix = KeyRange::prefix([&state.name[..], b"/"].concat());
                // Sleeps until something below the name changes.
                loop {
                    if *applied.borrow_and_update() < state.next {
                        tokio::select! {
                            changed = applied.changed() => changed.map_err(|_| failure::STOPPED)?,
                            () = member.shutdown.cancelled() => return Err(failure::STOPPED.into()),
                        }
                        continue;
                    }
                    match member.engine.events(std::slice::from_ref(&prefix), state.next, EVENTS, false).await
                    {
                        Ok(batch) if batch.events.is_empty() => state.next = batch.revision + 1,
                        Ok(batch) => {
                            let deleted = |event: &Event| matches!((event, &state.leader), (Event::Delete { key, .. }, Some((leader, _))) if key == leader);
                            if batch.events.iter().any(deleted) {
                                state.leader = None;
                            }
                            state.next = batch.revision + 1;
                            break;
                        }
                        Err(storage::Error::Compacted { .. }) => break,
                        Err(error) => return Err(failure::status(error)),
                    }
                }
            }
        }))
    }
}
