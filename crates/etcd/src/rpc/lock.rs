//! Service Lock (v3lockpb), and the queue of keys that both it and Election stand on.
//!
//! Whoever waits owns the key `NAME/LEASE`; the one that was created first holds the lock. Everybody else waits until those
//! before are deleted.

use std::sync::Arc;

use bytes::Bytes;
use storage::{Event, KeyRange, Revision};
use tonic::Status;

use super::{Member, failure};
use crate::api::{self, request_op::Request};
use crate::auth::Identity;
use crate::auth::permission::Access;
use crate::{Compare, CompareOp, CompareTarget, EventsMax, Op, OpOutcome, Put, Query, Sort, SortTarget, Txn};

/// Seconds of the lease that a caller without one gets.
const SESSION_SECONDS: i64 = 60;
const EVENTS: EventsMax = EventsMax { events: 64, bytes: 1 << 20 };

/// A place in the queue.
pub struct Place {
    pub key: Bytes,
    /// When it was created: the queue's order.
    pub created: Revision,
    /// The store's revision then.
    pub revision: Revision,
    /// Whether it was there before, and with which value.
    pub found: Option<Bytes>,
}

impl Member {
    /// The caller's lease, or one of its own.
    pub async fn session(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let granted = self.engine.grant(0, SESSION_SECONDS).await.map_err(failure::status)?;
        Ok(granted.id)
    }

    /// Takes a place in the queue `name`, or finds the one the lease has.
    pub async fn enqueue(
        &self,
        who: &Option<Identity>,
        name: &[u8],
        lease: i64,
        value: Bytes,
    ) -> Result<Place, Status> {
        let key = Bytes::from([name, format!("/{lease:x}").as_bytes()].concat());
        let range = KeyRange::key(key.clone());
        self.auth.check(who, Access::Write, &range)?;
        self.auth.check(who, Access::Read, &range)?;
        self.check_intact()?;
        let txn = Txn {
            compares: vec![Compare {
                range: range.clone(),
                target: CompareTarget::Create(0),
                op: CompareOp::Equal,
            }],
            success: vec![Op::Put(Put { lease, ..Put::new(key.clone(), value) })],
            failure: vec![Op::Range(Query::new(range))],
        };
        let outcome = self.engine.txn(txn).await.map_err(failure::status)?;
        let revision = outcome.revision;
        Ok(match outcome.outcomes.first() {
            Some(OpOutcome::Range(found)) if !found.kvs.is_empty() => {
                let kv = &found.kvs[0];
                Place { key, created: kv.create_revision, revision, found: Some(kv.value.clone()) }
            }
            _ => Place { key, created: revision, revision, found: None },
        })
    }

    /// Waits until nobody in the queue `name` is older than `created`. Returns the store's revision then.
    pub async fn wait_turn(&self, name: &[u8], created: Revision) -> Result<Revision, Status> {
        let prefix = KeyRange::prefix([name, b"/"].concat());
        loop {
            let query = Query {
                limit: 1,
                sort: Some(Sort { target: SortTarget::Create, descending: true }),
                max_create_revision: created - 1,
                ..Query::new(prefix.clone())
            };
            let found = self.engine.query(&query).await.map_err(failure::status)?;
            let Some(before) = found.kvs.first() else { return Ok(found.revision) };
            self.wait_deleted(KeyRange::key(before.key.clone()), found.revision + 1).await?;
        }
    }

    async fn wait_deleted(&self, range: KeyRange, from: Revision) -> Result<(), Status> {
        let mut applied = self.engine.subscribe();
        let mut next = from;
        loop {
            if *applied.borrow_and_update() < next {
                tokio::select! {
                    changed = applied.changed() => changed.map_err(|_| failure::STOPPED)?,
                    () = self.shutdown.cancelled() => return Err(failure::STOPPED.into()),
                }
                continue;
            }
            match self.engine.events(std::slice::from_ref(&range), next, EVENTS, false).await {
                Ok(batch) if batch.events.iter().any(|e| matches!(e, Event::Delete { .. })) => return Ok(()),
                Ok(batch) => next = batch.revision + 1,
                // What happened is forgotten; look again.
                Err(storage::Error::Compacted { .. }) => return Ok(()),
                Err(error) => return Err(failure::status(error)),
            }
        }
    }

    pub async fn key_exists(&self, key: &Bytes) -> Result<bool, Status> {
        let query = Query { count_only: true, ..Query::new(KeyRange::key(key.clone())) };
        Ok(self.engine.query(&query).await.map_err(failure::status)?.count > 0)
    }

    pub async fn lock(
        self: &Arc<Member>,
        who: Option<Identity>,
        request: api::LockRequest,
    ) -> Result<api::LockResponse, Status> {
        let lease = self.session(request.lease).await?;
        let place = self.enqueue(&who, &request.name, lease, Bytes::new()).await?;
        let waiting = Waiting { member: self.clone(), key: Some(place.key.clone()) };
        let revision = self.wait_turn(&request.name, place.created).await?;
        if !self.key_exists(&place.key).await? {
            return Err(Status::unknown("mutex: session is expired"));
        }
        waiting.done();
        Ok(api::LockResponse { header: self.header.message(revision.max(place.revision)), key: place.key })
    }

    pub async fn unlock(
        &self,
        who: Option<Identity>,
        request: api::UnlockRequest,
    ) -> Result<api::UnlockResponse, Status> {
        let delete = api::DeleteRangeRequest { key: request.key, ..Default::default() };
        let txn = api::TxnRequest {
            success: vec![api::RequestOp { request: Some(Request::DeleteRange(delete)) }],
            ..Default::default()
        };
        let outcome = self.txn_outcome(&who, txn).await?;
        Ok(api::UnlockResponse { header: self.header.message(outcome.revision) })
    }
}

/// Gives the place in the queue up when the caller goes away before its turn.
pub struct Waiting {
    pub member: Arc<Member>,
    pub key: Option<Bytes>,
}

impl Waiting {
    pub fn done(mut self) {
        self.key = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let engine = self.member.engine.clone();
            // Short, and nobody is left to wait for it.
            tokio::spawn(async move {
                let delete = crate::DeleteRange { range: KeyRange::key(key), previous: false };
                if let Err(error) = engine.delete_range(delete).await {
                    tracing::warn!(%error, "could not give up a place in a queue");
                }
            });
        }
    }
}
