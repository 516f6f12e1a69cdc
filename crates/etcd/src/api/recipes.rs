//! Services Lock (v3lockpb) and Election (v3electionpb).

use super::{KeyValue, ResponseHeader, messages};

messages! {
    LockRequest { name: bytes = 1; lease: int64 = 2; }
    LockResponse { header: ResponseHeader = 1; key: bytes = 2; }
    UnlockRequest { key: bytes = 1; }
    UnlockResponse { header: ResponseHeader = 1; }
    CampaignRequest { name: bytes = 1; lease: int64 = 2; value: bytes = 3; }
    CampaignResponse { header: ResponseHeader = 1; leader: LeaderKey = 2; }
    LeaderKey { name: bytes = 1; key: bytes = 2; rev: int64 = 3; lease: int64 = 4; }
    LeaderRequest { name: bytes = 1; }
    LeaderResponse { header: ResponseHeader = 1; kv: KeyValue = 2; }
    ResignRequest { leader: LeaderKey = 1; }
    ResignResponse { header: ResponseHeader = 1; }
    ProclaimRequest { leader: LeaderKey = 1; value: bytes = 2; }
    ProclaimResponse { header: ResponseHeader = 1; }
}
