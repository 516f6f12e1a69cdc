//! What is wrong with a request before the store is asked.

use std::collections::HashSet;

use storage::KeyRange;

use super::failure::{self, Failure};
use crate::api::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, SortOrder, SortTarget, TxnRequest,
    request_op::Request,
};

pub fn range(request: &RangeRequest) -> Result<(), Failure> {
    if request.key.is_empty() {
        return Err(failure::EMPTY_KEY);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(failure::INVALID_SORT_OPTION);
    }
    Ok(())
}

pub fn put(request: &PutRequest) -> Result<(), Failure> {
    if request.key.is_empty() {
        return Err(failure::EMPTY_KEY);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(failure::VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(failure::LEASE_PROVIDED);
    }
    Ok(())
}

pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Failure> {
    if request.key.is_empty() { Err(failure::EMPTY_KEY) } else { Ok(()) }
}

pub fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), Failure> {
    operations(request, ops_max)?;
    changes(&request.success)?;
    changes(&request.failure)?;
    Ok(())
}

/// A nested transaction has what its parents leave of the operations.
fn operations(request: &TxnRequest, ops_max: usize) -> Result<(), Failure> {
    let count = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = ops_max.checked_sub(count).ok_or(failure::TOO_MANY_OPS)?;
    if request.compare.iter().any(|c| c.key.is_empty()) {
        return Err(failure::EMPTY_KEY);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::Range(request)) => range(request)?,
            Some(Request::Put(request)) => put(request)?,
            Some(Request::DeleteRange(request)) => delete_range(request)?,
            Some(Request::Txn(request)) => operations(request, left)?,
            None => return Err(failure::KEY_NOT_FOUND),
        }
    }
    Ok(())
}

/// Keys that a branch puts, and ranges that it deletes.
type Changes<'a> = (HashSet<&'a [u8]>, Vec<KeyRange>);

/// No key is put twice, nor put and deleted. The branches of one nested transaction exclude each other.
fn changes(ops: &[RequestOp]) -> Result<Changes<'_>, Failure> {
    let mut puts = HashSet::new();
    let mut deletes = Vec::new();
    for op in ops {
        if let Some(Request::DeleteRange(request)) = &op.request {
            // As etcd: here, and only here, an end of "\0" does not mean the end of all keys.
            deletes.push(match request.range_end.is_empty() {
                true => KeyRange::key(request.key.clone()),
                false => KeyRange { start: request.key.clone(), end: Some(request.range_end.clone()) },
            });
        }
    }
    let is_deleted = |deletes: &[KeyRange], key: &[u8]| deletes.iter().any(|range| range.contains(key));
    for op in ops {
        let Some(Request::Txn(inner)) = &op.request else { continue };
        let (then_puts, then_deletes) = changes(&inner.success)?;
        let (else_puts, else_deletes) = changes(&inner.failure)?;
        for key in &then_puts {
            if is_deleted(&deletes, key) || !puts.insert(*key) {
                return Err(failure::DUPLICATE_KEY);
            }
        }
        for key in else_puts {
            if is_deleted(&deletes, key) || (!puts.insert(key) && !then_puts.contains(key)) {
                return Err(failure::DUPLICATE_KEY);
            }
        }
        deletes.extend(then_deletes);
        deletes.extend(else_deletes);
    }
    for op in ops {
        if let Some(Request::Put(request)) = &op.request
            && (is_deleted(&deletes, &request.key) || !puts.insert(&request.key[..]))
        {
            return Err(failure::DUPLICATE_KEY);
        }
    }
    Ok((puts, deletes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_op(key: &str) -> RequestOp {
        let put = PutRequest { key: key.to_owned().into(), ..Default::default() };
        RequestOp { request: Some(Request::Put(put)) }
    }

    fn delete_op(key: &str, end: &str) -> RequestOp {
        let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
        RequestOp {
            request: Some(Request::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false })),
        }
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp { request: Some(Request::Txn(TxnRequest { compare: Vec::new(), success, failure })) }
    }

    #[test]
    fn keys_change_once() {
        let duplicate = Err(failure::DUPLICATE_KEY);
        for (name, ops, expected) in [
            ("two keys", vec![put_op("a"), put_op("b")], Ok(())),
            ("twice", vec![put_op("a"), put_op("a")], duplicate),
            ("put and delete", vec![put_op("a"), delete_op("a", "")], duplicate),
            ("delete and put", vec![delete_op("a", "c"), put_op("b")], duplicate),
            ("delete twice", vec![delete_op("a", ""), delete_op("a", "")], Ok(())),
            ("nested twice", vec![put_op("a"), txn_op(vec![put_op("a")], vec![])], duplicate),
            ("both branches", vec![txn_op(vec![put_op("a")], vec![put_op("a")])], Ok(())),
            (
                "two nested",
                vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![], vec![put_op("a")])],
                duplicate,
            ),
            ("nested delete", vec![txn_op(vec![delete_op("a", "c")], vec![]), put_op("b")], duplicate),
            ("open delete", vec![delete_op("a", "\0"), put_op("b")], Ok(())),
        ] {
            let request = TxnRequest { success: ops, ..Default::default() };
            assert_eq!(txn(&request, 128), expected, "{name}");
        }
    }

    #[test]
    fn operations_are_counted() {
        let many = |n: usize| (0..n).map(|i| put_op(&i.to_string())).collect::<Vec<_>>();
        let request = |success| TxnRequest { success, ..Default::default() };
        assert_eq!(txn(&request(many(128)), 128), Ok(()));
        assert_eq!(txn(&request(many(129)), 128), Err(failure::TOO_MANY_OPS));
        assert_eq!(txn(&request(vec![txn_op(many(127), vec![])]), 128), Ok(()));
        assert_eq!(txn(&request(vec![txn_op(many(128), vec![])]), 128), Err(failure::TOO_MANY_OPS));
        assert_eq!(txn(&request(vec![RequestOp::default()]), 128), Err(failure::KEY_NOT_FOUND));
        assert_eq!(txn(&request(vec![put_op("")]), 128), Err(failure::EMPTY_KEY));
    }
}
