//! Service Lease.

use super::{ResponseHeader, messages};

messages! {
    LeaseGrantRequest { ttl ("TTL"): int64 = 1; id ("ID"): int64 = 2; }
    LeaseGrantResponse { header: ResponseHeader = 1; id ("ID"): int64 = 2; ttl ("TTL"): int64 = 3; error: string = 4; }
    LeaseRevokeRequest { id ("ID"): int64 = 1; }
    LeaseRevokeResponse { header: ResponseHeader = 1; }
    LeaseKeepAliveRequest { id ("ID"): int64 = 1; }
    LeaseKeepAliveResponse { header: ResponseHeader = 1; id ("ID"): int64 = 2; ttl ("TTL"): int64 = 3; }
    LeaseTimeToLiveRequest { id ("ID"): int64 = 1; keys: bool = 2; }
    LeaseTimeToLiveResponse {
        header: ResponseHeader = 1; id ("ID"): int64 = 2; ttl ("TTL"): int64 = 3; granted_ttl ("grantedTTL"): int64 = 4;
        keys: repeated bytes = 5;
    }
    LeaseLeasesRequest {}
    LeaseStatus { id ("ID"): int64 = 1; }
    LeaseLeasesResponse { header: ResponseHeader = 1; leases: repeated LeaseStatus = 2; }
    /// leasepb.Lease, as it lies in a snapshot.
    StoredLease { id ("ID"): int64 = 1; ttl ("TTL"): int64 = 2; remaining_ttl ("RemainingTTL"): int64 = 3; }
}
