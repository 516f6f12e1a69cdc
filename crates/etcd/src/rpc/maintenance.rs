//! Service Maintenance.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tonic::Status;

use super::failure::{self, status};
use super::grpc::{self, Frames};
use super::{CLUSTER_VERSION, Member, VERSION};
use crate::api::{self, AlarmAction, AlarmType, DowngradeAction, ServingStatus};
use crate::{Alarm, AlarmKind, backup};

/// Bytes of a snapshot in one message, as etcd sends it.
const SNAPSHOT_PIECE_BYTES: usize = 32 << 10;
/// Pieces that wait for the client.
const SNAPSHOT_PIECES_MAX: usize = 16;
/// What `Status` tells when no quota is set.
const DEFAULT_QUOTA_BYTES: i64 = 2 << 30;

fn alarm_message(alarm: &Alarm) -> api::AlarmMember {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => AlarmType::NoSpace,
        AlarmKind::Corrupt => AlarmType::Corrupt,
    };
    api::AlarmMember { member_id: alarm.member, alarm: kind as i32 }
}

impl Member {
    fn maintenance_header(&self) -> Option<api::ResponseHeader> {
        self.header.message(self.engine.current_revision())
    }

    pub fn status(&self) -> api::StatusResponse {
        let size = self.engine.size();
        let index = self.engine.applied_index();
        let alarm_text = |alarm: &Alarm| {
            let name = match alarm.kind {
                AlarmKind::NoSpace => "NOSPACE",
                AlarmKind::Corrupt => "CORRUPT",
            };
            format!("memberID:{} alarm:{name} ", alarm.member)
        };
        api::StatusResponse {
            header: self.maintenance_header(),
            version: VERSION.to_owned(),
            db_size: size.bytes as i64,
            leader: self.header.member_id,
            raft_index: index,
            raft_term: self.header.raft_term,
            raft_applied_index: index,
            errors: self.engine.alarms().iter().map(alarm_text).collect(),
            db_size_in_use: size.bytes_in_use as i64,
            is_learner: false,
            storage_version: CLUSTER_VERSION.to_owned(),
            db_size_quota: match self.limits.quota_bytes {
                0 => DEFAULT_QUOTA_BYTES,
                quota => quota as i64,
            },
            downgrade_info: Some(api::DowngradeInfo::default()),
        }
    }

    pub async fn alarm(&self, request: api::AlarmRequest) -> Result<api::AlarmResponse, Status> {
        let wanted = match AlarmType::try_from(request.alarm) {
            Ok(AlarmType::NoSpace) => Some(AlarmKind::NoSpace),
            Ok(AlarmType::Corrupt) => Some(AlarmKind::Corrupt),
            _ => None,
        };
        let mut alarms = Vec::new();
        let raised = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                alarms = self.engine.alarms();
                alarms.retain(|alarm| wanted.is_none_or(|kind| kind == alarm.kind));
                None
            }
            Ok(AlarmAction::Activate) => Some(true),
            Ok(AlarmAction::Deactivate) => Some(false),
            Err(_) => return Err(Status::unknown("etcdserver: unknown method")),
        };
        if let (Some(raised), Some(kind)) = (raised, wanted) {
            let alarm = Alarm { member: request.member_id, kind };
            let changed = self.engine.set_alarm(alarm, raised).await.map_err(status)?;
            self.note_alarms();
            // Raising tells the alarm whether or not it was raised before; ending one that is not there tells nothing.
            if changed || raised {
                alarms.push(alarm);
            }
        }
        let header = self.maintenance_header();
        Ok(api::AlarmResponse { header, alarms: alarms.iter().map(alarm_message).collect() })
    }

    pub async fn defragment(&self) -> Result<api::DefragmentResponse, Status> {
        let begun = Instant::now();
        self.defragmenting.store(true, Ordering::Relaxed);
        let done = self.engine.defragment().await;
        self.defragmenting.store(false, Ordering::Relaxed);
        self.metrics.defragmentations.observe(begun.elapsed());
        done.map_err(status)?;
        Ok(api::DefragmentResponse { header: None })
    }

    pub async fn hash(&self) -> Result<api::HashResponse, Status> {
        let begun = Instant::now();
        let hash = self.engine.hash().await.map_err(status)?;
        self.metrics.hashes.observe(begun.elapsed());
        Ok(api::HashResponse { header: self.maintenance_header(), hash })
    }

    pub async fn hash_kv(&self, revision: i64) -> Result<api::HashKvResponse, Status> {
        let begun = Instant::now();
        let found = self.engine.hash_kv(revision).await.map_err(status)?;
        self.metrics.revision_hashes.observe(begun.elapsed());
        // A store that was never compacted says so with -1.
        let compact_revision = if found.compacted == 0 { -1 } else { found.compacted };
        Ok(api::HashKvResponse {
            header: self.maintenance_header(),
            hash: found.hash,
            compact_revision,
            hash_revision: found.revision,
        })
    }

    pub fn move_leader(&self, target: u64) -> Result<api::MoveLeaderResponse, Status> {
        if target != self.header.member_id {
            return Err(failure::BAD_LEADER_TRANSFEREE.into());
        }
        Ok(api::MoveLeaderResponse { header: None })
    }

    pub fn downgrade(&self, request: &api::DowngradeRequest) -> Result<api::DowngradeResponse, Status> {
        let cluster =
            || CLUSTER_VERSION.rsplit_once('.').map_or(CLUSTER_VERSION, |(cluster, _)| cluster).to_owned();
        let answer = api::DowngradeResponse { header: self.maintenance_header(), version: cluster() };
        match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Cancel) => Ok(answer),
            Ok(action) => {
                let target = minor(&request.version).ok_or(failure::WRONG_DOWNGRADE_VERSION)?;
                let now = minor(CLUSTER_VERSION).unwrap_or_default();
                if target.0 != now.0 || target.1 + 1 != now.1 {
                    return Err(failure::INVALID_DOWNGRADE_TARGET.into());
                }
                if action == DowngradeAction::Enable {
                    return Err(Status::unimplemented("etcdserver: this server's data cannot be downgraded"));
                }
                Ok(answer)
            }
            Err(_) => Err(Status::unknown("etcdserver: unknown method")),
        }
    }

    /// The whole state as a file that etcd's tools read, and its checksum at the end.
    pub fn snapshot(self: &Arc<Member>) -> Frames {
        let (sender, receiver) = mpsc::channel::<Result<Bytes, Status>>(SNAPSHOT_PIECES_MAX);
        let member = self.clone();
        // Reads the disk; ends with the snapshot, or when the client is gone.
        let work = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let written = member.write_snapshot(&sender);
            member.metrics.snapshots.observe(begun.elapsed());
            if let Err(error) = written {
                tracing::warn!(%error, "a snapshot was not finished");
                let _ =
                    sender.blocking_send(Err(Status::unavailable(format!("etcdserver: snapshot: {error}"))));
            }
        });
        Box::pin(futures::stream::unfold((receiver, work), |(mut receiver, work)| async move {
            let piece = receiver.recv().await?;
            Some((piece, (receiver, work)))
        }))
    }

    fn write_snapshot(&self, sender: &mpsc::Sender<Result<Bytes, Status>>) -> std::io::Result<()> {
        let identity = self.identity.lock().clone();
        let index = self.engine.applied_index();
        let mut file = backup::write(self.engine.snapshot(), &identity, index, &self.directory)?;
        let total = file.len();
        let (mut sent, mut hash) = (0u64, Sha256::new());
        let gone = || std::io::Error::other("the client is gone");
        let say = |remaining_bytes: u64, blob: Bytes| {
            let message = api::SnapshotResponse {
                header: None,
                remaining_bytes,
                blob,
                version: CLUSTER_VERSION.to_owned(),
            };
            sender.blocking_send(Ok(grpc::frame(&message))).map_err(|_| gone())
        };
        while let Some(piece) = file.next(SNAPSHOT_PIECE_BYTES)? {
            hash.update(&piece);
            sent += piece.len() as u64;
            say(total - sent, piece)?;
        }
        say(0, Bytes::copy_from_slice(&hash.finalize()))
    }

    /// grpc.health.v1: healthy unless the data is being defragmented or damaged.
    pub fn health_check(&self) -> api::HealthCheckResponse {
        let serving = !self.defragmenting.load(Ordering::Relaxed) && self.check_intact().is_ok();
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        api::HealthCheckResponse { status: status as i32 }
    }
}

/// Major and minor of `X.Y` or `X.Y.Z`.
fn minor(version: &str) -> Option<(u64, u64)> {
    let parts: Vec<u64> = version.split('.').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [major, minor] | [major, minor, _] => Some((major, minor)),
        _ => None,
    }
}
