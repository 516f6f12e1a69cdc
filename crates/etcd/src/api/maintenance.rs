//! Service Maintenance.

use super::{ResponseHeader, enums, messages};

messages! {
    AlarmRequest { action: enumeration AlarmAction = 1; member_id ("memberID"): uint64 = 2; alarm: enumeration AlarmType = 3; }
    AlarmMember { member_id ("memberID"): uint64 = 1; alarm: enumeration AlarmType = 2; }
    AlarmResponse { header: ResponseHeader = 1; alarms: repeated AlarmMember = 2; }
    StatusRequest {}
    StatusResponse {
        header: ResponseHeader = 1; version: string = 2; db_size ("dbSize"): int64 = 3; leader: uint64 = 4;
        raft_index ("raftIndex"): uint64 = 5; raft_term ("raftTerm"): uint64 = 6;
        raft_applied_index ("raftAppliedIndex"): uint64 = 7; errors: repeated string = 8;
        db_size_in_use ("dbSizeInUse"): int64 = 9; is_learner ("isLearner"): bool = 10;
        storage_version ("storageVersion"): string = 11; db_size_quota ("dbSizeQuota"): int64 = 12;
        downgrade_info ("downgradeInfo"): DowngradeInfo = 13;
    }
    DowngradeInfo { enabled: bool = 1; target_version ("targetVersion"): string = 2; }
    DefragmentRequest {}
    DefragmentResponse { header: ResponseHeader = 1; }
    HashRequest {}
    HashResponse { header: ResponseHeader = 1; hash: uint32 = 2; }
    HashKvRequest { revision: int64 = 1; }
    HashKvResponse { header: ResponseHeader = 1; hash: uint32 = 2; compact_revision: int64 = 3; hash_revision: int64 = 4; }
    SnapshotRequest {}
    SnapshotResponse { header: ResponseHeader = 1; remaining_bytes: uint64 = 2; blob: bytes = 3; version: string = 4; }
    MoveLeaderRequest { target_id ("targetID"): uint64 = 1; }
    MoveLeaderResponse { header: ResponseHeader = 1; }
    DowngradeRequest { action: enumeration DowngradeAction = 1; version: string = 2; }
    DowngradeResponse { header: ResponseHeader = 1; version: string = 2; }
    /// grpc.health.v1.
    HealthCheckRequest { service: string = 1; }
    HealthCheckResponse { status: enumeration ServingStatus = 1; }
}

enums! {
    AlarmType { "NONE" None = 0, "NOSPACE" NoSpace = 1, "CORRUPT" Corrupt = 2 }
    AlarmAction { "GET" Get = 0, "ACTIVATE" Activate = 1, "DEACTIVATE" Deactivate = 2 }
    DowngradeAction { "VALIDATE" Validate = 0, "ENABLE" Enable = 1, "CANCEL" Cancel = 2 }
    ServingStatus { "UNKNOWN" Unknown = 0, "SERVING" Serving = 1, "NOT_SERVING" NotServing = 2, "SERVICE_UNKNOWN" ServiceUnknown = 3 }
}
