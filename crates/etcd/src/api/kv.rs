//! Service KV, and the messages all services share.

use super::{enums, json, messages};

messages! {
    ResponseHeader { cluster_id: uint64 = 1; member_id: uint64 = 2; revision: int64 = 3; raft_term: uint64 = 4; }

    /// mvccpb.KeyValue.
    KeyValue {
        key: bytes = 1; create_revision: int64 = 2; mod_revision: int64 = 3; version: int64 = 4; value: bytes = 5;
        lease: int64 = 6;
    }
    /// mvccpb.Event.
    Event { r#type ("type"): enumeration EventType = 1; kv: KeyValue = 2; prev_kv: KeyValue = 3; }

    RangeRequest {
        key: bytes = 1; range_end: bytes = 2; limit: int64 = 3; revision: int64 = 4; sort_order: enumeration SortOrder = 5;
        sort_target: enumeration SortTarget = 6; serializable: bool = 7; keys_only: bool = 8; count_only: bool = 9;
        min_mod_revision: int64 = 10; max_mod_revision: int64 = 11; min_create_revision: int64 = 12;
        max_create_revision: int64 = 13;
    }
    RangeResponse { header: ResponseHeader = 1; kvs: repeated KeyValue = 2; more: bool = 3; count: int64 = 4; }
    PutRequest {
        key: bytes = 1; value: bytes = 2; lease: int64 = 3; prev_kv: bool = 4; ignore_value: bool = 5; ignore_lease: bool = 6;
    }
    PutResponse { header: ResponseHeader = 1; prev_kv: KeyValue = 2; }
    DeleteRangeRequest { key: bytes = 1; range_end: bytes = 2; prev_kv: bool = 3; }
    DeleteRangeResponse { header: ResponseHeader = 1; deleted: int64 = 2; prev_kvs: repeated KeyValue = 3; }
    TxnRequest { compare: repeated Compare = 1; success: repeated RequestOp = 2; failure: repeated RequestOp = 3; }
    TxnResponse { header: ResponseHeader = 1; succeeded: bool = 2; responses: repeated ResponseOp = 3; }
    CompactionRequest { revision: int64 = 1; physical: bool = 2; }
    CompactionResponse { header: ResponseHeader = 1; }
}

enums! {
    EventType { "PUT" Put = 0, "DELETE" Delete = 1 }
    SortOrder { "NONE" None = 0, "ASCEND" Ascend = 1, "DESCEND" Descend = 2 }
    SortTarget { "KEY" Key = 0, "VERSION" Version = 1, "CREATE" Create = 2, "MOD" Mod = 3, "VALUE" Value = 4 }
    CompareResult { "EQUAL" Equal = 0, "GREATER" Greater = 1, "LESS" Less = 2, "NOT_EQUAL" NotEqual = 3 }
    CompareTarget { "VERSION" Version = 0, "CREATE" Create = 1, "MOD" Mod = 2, "VALUE" Value = 3, "LEASE" Lease = 4 }
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RequestOp {
    #[prost(oneof = "request_op::Request", tags = "1, 2, 3, 4")]
    pub request: Option<request_op::Request>,
}

pub mod request_op {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Request {
        #[prost(message, tag = "1")]
        Range(super::RangeRequest),
        #[prost(message, tag = "2")]
        Put(super::PutRequest),
        #[prost(message, tag = "3")]
        DeleteRange(super::DeleteRangeRequest),
        #[prost(message, tag = "4")]
        Txn(super::TxnRequest),
    }
}

json::oneof_json!(RequestOp, request, request_op::Request, {
    Range "request_range", Put "request_put", DeleteRange "request_delete_range", Txn "request_txn",
});

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ResponseOp {
    #[prost(oneof = "response_op::Response", tags = "1, 2, 3, 4")]
    pub response: Option<response_op::Response>,
}

pub mod response_op {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Response {
        #[prost(message, tag = "1")]
        Range(super::RangeResponse),
        #[prost(message, tag = "2")]
        Put(super::PutResponse),
        #[prost(message, tag = "3")]
        DeleteRange(super::DeleteRangeResponse),
        #[prost(message, tag = "4")]
        Txn(super::TxnResponse),
    }
}

json::oneof_json!(ResponseOp, response, response_op::Response, {
    Range "response_range", Put "response_put", DeleteRange "response_delete_range", Txn "response_txn",
});

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Compare {
    #[prost(enumeration = "CompareResult", tag = "1")]
    pub result: i32,
    #[prost(enumeration = "CompareTarget", tag = "2")]
    pub target: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub key: ::bytes::Bytes,
    #[prost(bytes = "bytes", tag = "64")]
    pub range_end: ::bytes::Bytes,
    #[prost(oneof = "compare::TargetUnion", tags = "4, 5, 6, 7, 8")]
    pub target_union: Option<compare::TargetUnion>,
}

pub mod compare {
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum TargetUnion {
        #[prost(int64, tag = "4")]
        Version(i64),
        #[prost(int64, tag = "5")]
        CreateRevision(i64),
        #[prost(int64, tag = "6")]
        ModRevision(i64),
        #[prost(bytes = "bytes", tag = "7")]
        Value(::bytes::Bytes),
        #[prost(int64, tag = "8")]
        Lease(i64),
    }
}

mod compare_union {
    use super::{Compare, compare, json};

    #[derive(Default)]
    pub struct Union {
        pub target_union: Option<compare::TargetUnion>,
    }
    json::oneof_json!(Union, target_union, compare::TargetUnion, {
        Version "version", CreateRevision "create_revision", ModRevision "mod_revision", Value "value", Lease "lease",
    });

    impl json::Json for Compare {
        fn write(&self, out: &mut serde_json::Map<String, serde_json::Value>) {
            json::Enumeration::<super::CompareResult>::default().write(out, "result", &self.result);
            json::Enumeration::<super::CompareTarget>::default().write(out, "target", &self.target);
            json::Plain.write(out, "key", &self.key);
            json::Plain.write(out, "range_end", &self.range_end);
            Union { target_union: self.target_union.clone() }.write(out);
        }
        fn read(&mut self, name: &str, value: &serde_json::Value) -> Result<bool, String> {
            match name {
                "result" => self.result = json::Enumeration::<super::CompareResult>::default().read(value)?,
                "target" => self.target = json::Enumeration::<super::CompareTarget>::default().read(value)?,
                "key" => self.key = json::Plain.read(value)?,
                "range_end" | "rangeEnd" => self.range_end = json::Plain.read(value)?,
                _ => {
                    let mut union = Union::default();
                    if !union.read(name, value)? {
                        return Ok(false);
                    }
                    self.target_union = union.target_union;
                }
            }
            Ok(true)
        }
    }
}
