//! From the API's messages to what the engine is asked.

use bytes::Bytes;

use crate::api::{self, CompareResult, SortOrder, compare::TargetUnion, request_op::Request};
use crate::{
    Compare, CompareOp, CompareTarget, DeleteRange, Op, Put, Query, Sort, SortTarget, Txn, key_range,
};

/// An order of none means key order, or ascending by any other target.
pub fn query(request: api::RangeRequest) -> Query {
    let target = match api::SortTarget::try_from(request.sort_target) {
        Ok(api::SortTarget::Version) => SortTarget::Version,
        Ok(api::SortTarget::Create) => SortTarget::Create,
        Ok(api::SortTarget::Mod) => SortTarget::Mod,
        Ok(api::SortTarget::Value) => SortTarget::Value,
        _ => SortTarget::Key,
    };
    let descending = request.sort_order == SortOrder::Descend as i32;
    Query {
        limit: usize::try_from(request.limit).unwrap_or(0),
        revision: Some(request.revision).filter(|revision| *revision > 0),
        sort: (target != SortTarget::Key || descending).then_some(Sort { target, descending }),
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
        keys_only: request.keys_only,
        count_only: request.count_only,
        ..Query::new(key_range(request.key, request.range_end))
    }
}

pub fn put(request: api::PutRequest) -> Put {
    Put {
        lease: request.lease,
        previous: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
        ..Put::new(request.key, request.value)
    }
}

pub fn delete_range(request: api::DeleteRangeRequest) -> DeleteRange {
    DeleteRange { range: key_range(request.key, request.range_end), previous: request.prev_kv }
}

pub fn txn(request: api::TxnRequest) -> Txn {
    let ops = |ops: Vec<api::RequestOp>| ops.into_iter().filter_map(|op| op.request).map(operation).collect();
    Txn {
        compares: request.compare.into_iter().filter_map(compare).collect(),
        success: ops(request.success),
        failure: ops(request.failure),
    }
}

fn operation(request: Request) -> Op {
    match request {
        Request::Range(request) => Op::Range(query(request)),
        Request::Put(request) => Op::Put(put(request)),
        Request::DeleteRange(request) => Op::DeleteRange(delete_range(request)),
        Request::Txn(request) => Op::Txn(txn(request)),
    }
}

/// A comparison of a kind that is not known holds always, as in etcd. A value of another kind than the target counts as
/// that kind's zero.
fn compare(request: api::Compare) -> Option<Compare> {
    let op = match CompareResult::try_from(request.result).ok()? {
        CompareResult::Equal => CompareOp::Equal,
        CompareResult::Greater => CompareOp::Greater,
        CompareResult::Less => CompareOp::Less,
        CompareResult::NotEqual => CompareOp::NotEqual,
    };
    let given = request.target_union;
    let target = match api::CompareTarget::try_from(request.target) {
        Ok(api::CompareTarget::Version) => CompareTarget::Version(match given {
            Some(TargetUnion::Version(n)) => n,
            _ => 0,
        }),
        Ok(api::CompareTarget::Create) => CompareTarget::Create(match given {
            Some(TargetUnion::CreateRevision(n)) => n,
            _ => 0,
        }),
        Ok(api::CompareTarget::Mod) => CompareTarget::Mod(match given {
            Some(TargetUnion::ModRevision(n)) => n,
            _ => 0,
        }),
        Ok(api::CompareTarget::Value) => CompareTarget::Value(match given {
            Some(TargetUnion::Value(value)) => value,
            _ => Bytes::new(),
        }),
        Ok(api::CompareTarget::Lease) => CompareTarget::Lease(match given {
            Some(TargetUnion::Lease(n)) => n,
            _ => 0,
        }),
        // Nothing is compared, which makes everything equal.
        Err(_) if op == CompareOp::Equal => return None,
        Err(_) => {
            let never = CompareTarget::Version(i64::MIN);
            return Some(Compare {
                range: key_range(request.key, request.range_end),
                target: never,
                op: CompareOp::Less,
            });
        }
    };
    Some(Compare { range: key_range(request.key, request.range_end), target, op })
}
