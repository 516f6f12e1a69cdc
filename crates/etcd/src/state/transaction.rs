//! Transactions: every compare is decided first, then what was chosen is checked, then done, all at one revision.

use std::collections::VecDeque;

use bytes::Bytes;
use storage::{Error, Revision};

use super::{Done, History, State, Transacted, Values};
use crate::record::RecordRef;
use crate::request::{Compare, CompareTarget, DeleteRange, Op, Put, Query, Txn, Value};

impl State {
    pub(super) fn transact(&mut self, txn: Txn, values: &dyn Values) -> Result<Transacted, Error> {
        // As in etcd: every compare, also of nested transactions, is decided before anything is written.
        let mut path = VecDeque::new();
        self.choose(&txn, values, &mut path)?;
        let mut steps = path.iter().copied();
        self.check_puts(&txn, &mut steps)?;
        let mut steps = path.iter().copied();
        self.check_ranges(&txn, &mut steps)?;
        self.changes = 0;
        let mut transacted = self.run(txn, &mut path);
        if self.changes > 0 {
            self.revision += 1;
            set_revision(&mut transacted, self.revision);
        }
        Ok(transacted)
    }

    /// Runs a transaction that writes nothing.
    pub fn read(&self, txn: &Txn, values: &dyn Values) -> Result<Transacted, Error> {
        let mut path = VecDeque::new();
        self.choose(txn, values, &mut path)?;
        self.check_ranges(txn, &mut path.iter().copied())?;
        Ok(self.run_reads(txn, &mut path))
    }

    fn run_reads(&self, txn: &Txn, path: &mut VecDeque<bool>) -> Transacted {
        let succeeded = path.pop_front().unwrap_or(false);
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let outcomes = ops
            .iter()
            .map(|op| match op {
                Op::Range(query) => Done::Range(self.find(query)),
                Op::Txn(txn) => Done::Txn(self.run_reads(txn, path)),
                Op::Put(_) => Done::Put { previous: None },
                Op::DeleteRange(_) => Done::DeleteRange { deleted: 0, previous: Vec::new() },
            })
            .collect();
        Transacted { succeeded, revision: self.revision, outcomes }
    }

    /// Which branches are taken, in the order they are met.
    fn choose(&self, txn: &Txn, values: &dyn Values, path: &mut VecDeque<bool>) -> Result<(), Error> {
        let mut succeeded = true;
        for compare in &txn.compares {
            if !self.holds(compare, values)? {
                succeeded = false;
                break;
            }
        }
        path.push_back(succeeded);
        for op in if succeeded { &txn.success } else { &txn.failure } {
            if let Op::Txn(nested) = op {
                self.choose(nested, values, path)?;
            }
        }
        Ok(())
    }

    pub(super) fn holds(&self, compare: &Compare, values: &dyn Values) -> Result<bool, Error> {
        let mut found = false;
        for record in self.histories(&compare.range).filter_map(History::latest) {
            found = true;
            let order = match &compare.target {
                CompareTarget::Create(n) => record.create_revision.cmp(n),
                CompareTarget::Mod(n) => record.mod_revision.cmp(n),
                CompareTarget::Version(n) => record.version.cmp(n),
                CompareTarget::Lease(n) => record.lease.cmp(n),
                CompareTarget::Value(wanted) => values.value(&record)?.cmp(wanted),
            };
            if !compare.op.holds(order) {
                return Ok(false);
            }
        }
        if found {
            return Ok(true);
        }
        Ok(match &compare.target {
            CompareTarget::Value(_) => false,
            CompareTarget::Create(n)
            | CompareTarget::Mod(n)
            | CompareTarget::Version(n)
            | CompareTarget::Lease(n) => compare.op.holds(0.cmp(n)),
        })
    }

    fn check_puts(&self, txn: &Txn, path: &mut impl Iterator<Item = bool>) -> Result<(), Error> {
        for op in if path.next().unwrap_or(false) { &txn.success } else { &txn.failure } {
            match op {
                Op::Put(put) => {
                    if put.lease != 0 && !put.ignore_lease && !self.leases.contains_key(&put.lease) {
                        return Err(Error::LeaseNotFound);
                    }
                    if (put.ignore_value || put.ignore_lease) && self.latest(&put.key).is_none() {
                        return Err(Error::KeyNotFound);
                    }
                }
                Op::Txn(nested) => self.check_puts(nested, path)?,
                Op::Range(_) | Op::DeleteRange(_) => {}
            }
        }
        Ok(())
    }

    fn check_ranges(&self, txn: &Txn, path: &mut impl Iterator<Item = bool>) -> Result<(), Error> {
        for op in if path.next().unwrap_or(false) { &txn.success } else { &txn.failure } {
            match op {
                Op::Range(Query { revision: Some(revision), .. }) => self.readable(*revision)?,
                Op::Txn(nested) => self.check_ranges(nested, path)?,
                Op::Range(_) | Op::Put(_) | Op::DeleteRange(_) => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, txn: Txn, path: &mut VecDeque<bool>) -> Transacted {
        let succeeded = path.pop_front().unwrap_or(false);
        let ops = if succeeded { txn.success } else { txn.failure };
        let outcomes = ops
            .into_iter()
            .map(|op| match op {
                Op::Range(query) => Done::Range(self.find(&query)),
                Op::Put(put) => Done::Put { previous: self.run_put(put) },
                Op::DeleteRange(delete) => self.run_delete(&delete),
                Op::Txn(nested) => Done::Txn(self.run(nested, path)),
            })
            .collect();
        Transacted { succeeded, revision: self.revision, outcomes }
    }

    fn run_put(&mut self, put: Put) -> Option<RecordRef> {
        let current = self.latest(&put.key).map(|v| v.clone_arc());
        let mut value = put.value;
        if put.ignore_value {
            // The new version shares the stored bytes of the old one.
            value = current.as_ref().map_or_else(Value::default, |c| Value {
                bytes: Bytes::new(),
                len: c.len,
                crc: c.crc,
                place: c.place(),
            });
        }
        let lease = match &current {
            Some(current) if put.ignore_lease => current.lease,
            _ => put.lease,
        };
        self.put(&put.key, &value, lease, current.clone());
        current.filter(|_| put.previous)
    }

    fn run_delete(&mut self, delete: &DeleteRange) -> Done {
        let doomed: Vec<RecordRef> =
            self.histories(&delete.range).filter_map(History::latest).map(|v| v.clone_arc()).collect();
        for record in &doomed {
            self.delete(record);
        }
        let deleted = doomed.len();
        Done::DeleteRange { deleted, previous: if delete.previous { doomed } else { Vec::new() } }
    }
}

fn set_revision(transacted: &mut Transacted, revision: Revision) {
    transacted.revision = revision;
    for outcome in &mut transacted.outcomes {
        match outcome {
            Done::Range(found) => found.revision = revision,
            Done::Txn(nested) => set_revision(nested, revision),
            Done::Put { .. } | Done::DeleteRange { .. } => {}
        }
    }
}
