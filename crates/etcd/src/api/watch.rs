//! Service Watch.

use super::{Event, ResponseHeader, enums, json, messages};

messages! {
    WatchCreateRequest {
        key: bytes = 1; range_end: bytes = 2; start_revision: int64 = 3; progress_notify: bool = 4;
        filters: repeated enumeration FilterType = 5; prev_kv: bool = 6; watch_id: int64 = 7; fragment: bool = 8;
    }
    WatchCancelRequest { watch_id: int64 = 1; }
    WatchProgressRequest {}
    WatchResponse {
        header: ResponseHeader = 1; watch_id: int64 = 2; created: bool = 3; canceled: bool = 4; compact_revision: int64 = 5;
        cancel_reason: string = 6; fragment: bool = 7; events: repeated Event = 11;
    }
}

enums! {
    FilterType { "NOPUT" NoPut = 0, "NODELETE" NoDelete = 1 }
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct WatchRequest {
    #[prost(oneof = "watch_request::RequestUnion", tags = "1, 2, 3")]
    pub request_union: Option<watch_request::RequestUnion>,
}

pub mod watch_request {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum RequestUnion {
        #[prost(message, tag = "1")]
        Create(super::WatchCreateRequest),
        #[prost(message, tag = "2")]
        Cancel(super::WatchCancelRequest),
        #[prost(message, tag = "3")]
        Progress(super::WatchProgressRequest),
    }
}

json::oneof_json!(WatchRequest, request_union, watch_request::RequestUnion, {
    Create "create_request", Cancel "cancel_request", Progress "progress_request",
});
