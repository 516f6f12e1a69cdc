//! Service Cluster.

use super::{ResponseHeader, messages};

messages! {
    Member {
        id ("ID"): uint64 = 1; name: string = 2; peer_urls ("peerURLs"): repeated string = 3;
        client_urls ("clientURLs"): repeated string = 4; is_learner ("isLearner"): bool = 5;
    }
    MemberAddRequest { peer_urls ("peerURLs"): repeated string = 1; is_learner ("isLearner"): bool = 2; }
    MemberAddResponse { header: ResponseHeader = 1; member: Member = 2; members: repeated Member = 3; }
    MemberRemoveRequest { id ("ID"): uint64 = 1; }
    MemberRemoveResponse { header: ResponseHeader = 1; members: repeated Member = 2; }
    MemberUpdateRequest { id ("ID"): uint64 = 1; peer_urls ("peerURLs"): repeated string = 2; }
    MemberUpdateResponse { header: ResponseHeader = 1; members: repeated Member = 2; }
    MemberListRequest { linearizable: bool = 1; }
    MemberListResponse { header: ResponseHeader = 1; members: repeated Member = 2; }
    MemberPromoteRequest { id ("ID"): uint64 = 1; }
    MemberPromoteResponse { header: ResponseHeader = 1; members: repeated Member = 2; }
}
