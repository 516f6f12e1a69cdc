//! Service KV.

use bytes::{Bytes, BytesMut};
use prost::Message;
use storage::KeyRange;
use tonic::Status;

use super::failure::status;
use super::{Member, convert, grpc, validate, wire};
use crate::api::{self, request_op::Request};
use crate::auth::Identity;
use crate::auth::permission::{Access, range_of};
use crate::{OpOutcome, TxnOutcome};

type Who = Option<Identity>;

fn finished(mut out: BytesMut) -> Bytes {
    grpc::finish(&mut out, 0);
    out.freeze()
}

impl Member {
    pub async fn range(&self, who: Who, request: api::RangeRequest) -> Result<Bytes, Status> {
        validate::range(&request)?;
        self.auth.check(&who, Access::Read, &range_of(&request.key, &request.range_end))?;
        let found = self.engine.query(&convert::query(request)).await.map_err(status)?;
        self.auth.check_fresh(&who)?;
        self.metrics.ranges.add(1);
        let mut out = wire::begin(wire::range_body_len(&found));
        self.header.put(found.revision, &mut out);
        wire::put_range_body(&found, &mut out);
        Ok(finished(out))
    }

    /// Answers a put; [`Member::put_outcome`] is the same without the frame.
    pub async fn put(&self, who: Who, request: api::PutRequest) -> Result<Bytes, Status> {
        let outcome = self.put_outcome(&who, request).await?;
        let previous = match outcome.outcomes.first() {
            Some(OpOutcome::Put { previous }) => previous.as_ref(),
            _ => None,
        };
        let mut out = wire::begin(previous.map_or(0, |kv| wire::key_value_len(kv) + 6));
        self.header.put(outcome.revision, &mut out);
        if let Some(kv) = previous {
            wire::put_key_value(2, kv, &mut out);
        }
        Ok(finished(out))
    }

    pub async fn put_outcome(&self, who: &Who, request: api::PutRequest) -> Result<TxnOutcome, Status> {
        validate::put(&request)?;
        self.check_size(request.encoded_len())?;
        self.check_intact()?;
        if self.auth.enabled() {
            let key = KeyRange::key(request.key.clone());
            self.auth.check(who, Access::Write, &key)?;
            self.check_lease_puts(who, request.lease)?;
            if request.prev_kv {
                self.auth.check(who, Access::Read, &key)?;
            }
        }
        self.metrics.puts.add(1);
        self.engine.put(convert::put(request)).await.map_err(status)
    }

    /// Who may not write a key that hangs on the lease may not use the lease.
    pub fn check_lease_puts(&self, who: &Who, lease: i64) -> Result<(), Status> {
        if lease == 0 || self.auth.check_admin(who).is_ok() {
            return Ok(());
        }
        for key in self.engine.lease_status(lease, true).map(|s| s.keys).unwrap_or_default() {
            self.auth.check(who, Access::Write, &KeyRange::key(key))?;
        }
        Ok(())
    }

    pub async fn delete_range(&self, who: Who, request: api::DeleteRangeRequest) -> Result<Bytes, Status> {
        validate::delete_range(&request)?;
        self.check_size(request.encoded_len())?;
        self.check_intact()?;
        let range = range_of(&request.key, &request.range_end);
        self.auth.check(&who, Access::Write, &range)?;
        if request.prev_kv {
            self.auth.check(&who, Access::Read, &range)?;
        }
        let outcome = self.engine.delete_range(convert::delete_range(request)).await.map_err(status)?;
        self.metrics.deletes.add(1);
        let (deleted, previous) = match outcome.outcomes.first() {
            Some(OpOutcome::DeleteRange { deleted, previous }) => (*deleted, &previous[..]),
            _ => (0, &[][..]),
        };
        let mut out = wire::begin(previous.iter().map(|kv| wire::key_value_len(kv) + 6).sum::<usize>() + 12);
        self.header.put(outcome.revision, &mut out);
        wire::put_delete_body(deleted, previous, &mut out);
        Ok(finished(out))
    }

    pub async fn txn(&self, who: Who, request: api::TxnRequest) -> Result<Bytes, Status> {
        let outcome = self.txn_outcome(&who, request).await?;
        let mut out = wire::begin(64);
        self.header.put(outcome.revision, &mut out);
        wire::put_txn_body(&outcome, &mut out);
        Ok(finished(out))
    }

    pub async fn txn_outcome(&self, who: &Who, request: api::TxnRequest) -> Result<TxnOutcome, Status> {
        validate::txn(&request, self.limits.txn_ops_max)?;
        if self.auth.enabled() {
            self.check_txn(who, &request)?;
        }
        let size = request.encoded_len();
        let txn = convert::txn(request);
        if !txn.is_read_only() {
            self.check_size(size)?;
            self.check_intact()?;
        }
        let outcome = self.engine.txn(txn).await.map_err(status)?;
        self.metrics.txns.add(1);
        self.auth.check_fresh(who)?;
        Ok(outcome)
    }

    fn check_txn(&self, who: &Who, request: &api::TxnRequest) -> Result<(), Status> {
        for compare in &request.compare {
            self.auth.check(who, Access::Read, &range_of(&compare.key, &compare.range_end))?;
        }
        for op in request.success.iter().chain(&request.failure) {
            match &op.request {
                Some(Request::Range(r)) => {
                    self.auth.check(who, Access::Read, &range_of(&r.key, &r.range_end))?
                }
                Some(Request::Put(r)) => {
                    let key = KeyRange::key(r.key.clone());
                    self.auth.check(who, Access::Write, &key)?;
                    self.check_lease_puts(who, r.lease)?;
                    if r.prev_kv {
                        self.auth.check(who, Access::Read, &key)?;
                    }
                }
                Some(Request::DeleteRange(r)) => {
                    let range = range_of(&r.key, &r.range_end);
                    if r.prev_kv {
                        self.auth.check(who, Access::Read, &range)?;
                    }
                    self.auth.check(who, Access::Write, &range)?;
                }
                Some(Request::Txn(inner)) => self.check_txn(who, inner)?,
                None => {}
            }
        }
        Ok(())
    }

    pub async fn compact(&self, request: api::CompactionRequest) -> Result<api::CompactionResponse, Status> {
        self.check_intact()?;
        self.engine.compact_to(request.revision, request.physical).await.map_err(status)?;
        Ok(api::CompactionResponse { header: self.header.message(self.engine.current_revision()) })
    }
}
