//! The JSON gateway: `POST /v3/…` with the call's message as JSON; streams answer line by line.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use prost::Message;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::http::text;
use crate::api::{self, json::Json};
use crate::rpc::grpc::{Body, Frames, PREFIX, Requests, decode};
use crate::rpc::{Call, Member};

/// A call of one message and one answer.
struct Route {
    path: &'static str,
    service: &'static str,
    method: &'static str,
    request: fn(&Value) -> Result<Vec<u8>, String>,
    response: fn(&[u8]) -> Result<Value, Status>,
}

fn encoded<M: Message + Json>(value: &Value) -> Result<Vec<u8>, String> {
    api::json::from_value::<M>(value).map(|message| message.encode_to_vec())
}

fn as_json<M: Message + Default + Json>(bytes: &[u8]) -> Result<Value, Status> {
    decode::<M>(bytes).map(|message| api::json::to_value(&message))
}

macro_rules! routes {
    ($($service:literal { $($path:literal $method:literal $request:ident $response:ident;)+ })+) => {
        &[$($(Route {
            path: $path,
            service: $service,
            method: $method,
            request: encoded::<api::$request>,
            response: as_json::<api::$response>,
        },)+)+]
    };
}

const ROUTES: &[Route] = routes! {
    "etcdserverpb.KV" {
        "kv/range" "Range" RangeRequest RangeResponse;
        "kv/put" "Put" PutRequest PutResponse;
        "kv/deleterange" "DeleteRange" DeleteRangeRequest DeleteRangeResponse;
        "kv/txn" "Txn" TxnRequest TxnResponse;
        "kv/compaction" "Compact" CompactionRequest CompactionResponse;
    }
    "etcdserverpb.Lease" {
        "lease/grant" "LeaseGrant" LeaseGrantRequest LeaseGrantResponse;
        "lease/revoke" "LeaseRevoke" LeaseRevokeRequest LeaseRevokeResponse;
        "kv/lease/revoke" "LeaseRevoke" LeaseRevokeRequest LeaseRevokeResponse;
        "lease/timetolive" "LeaseTimeToLive" LeaseTimeToLiveRequest LeaseTimeToLiveResponse;
        "kv/lease/timetolive" "LeaseTimeToLive" LeaseTimeToLiveRequest LeaseTimeToLiveResponse;
        "lease/leases" "LeaseLeases" LeaseLeasesRequest LeaseLeasesResponse;
        "kv/lease/leases" "LeaseLeases" LeaseLeasesRequest LeaseLeasesResponse;
    }
    "etcdserverpb.Cluster" {
        "cluster/member/add" "MemberAdd" MemberAddRequest MemberAddResponse;
        "cluster/member/remove" "MemberRemove" MemberRemoveRequest MemberRemoveResponse;
        "cluster/member/update" "MemberUpdate" MemberUpdateRequest MemberUpdateResponse;
        "cluster/member/list" "MemberList" MemberListRequest MemberListResponse;
        "cluster/member/promote" "MemberPromote" MemberPromoteRequest MemberPromoteResponse;
    }
    "etcdserverpb.Maintenance" {
        "maintenance/alarm" "Alarm" AlarmRequest AlarmResponse;
        "maintenance/status" "Status" StatusRequest StatusResponse;
        "maintenance/defragment" "Defragment" DefragmentRequest DefragmentResponse;
        "maintenance/hash" "Hash" HashRequest HashResponse;
        "maintenance/hashkv" "HashKV" HashKvRequest HashKvResponse;
        "maintenance/transfer-leadership" "MoveLeader" MoveLeaderRequest MoveLeaderResponse;
        "maintenance/downgrade" "Downgrade" DowngradeRequest DowngradeResponse;
    }
    "etcdserverpb.Auth" {
        "auth/enable" "AuthEnable" AuthEnableRequest AuthEnableResponse;
        "auth/disable" "AuthDisable" AuthDisableRequest AuthDisableResponse;
        "auth/status" "AuthStatus" AuthStatusRequest AuthStatusResponse;
        "auth/authenticate" "Authenticate" AuthenticateRequest AuthenticateResponse;
        "auth/user/add" "UserAdd" AuthUserAddRequest AuthUserAddResponse;
        "auth/user/get" "UserGet" AuthUserGetRequest AuthUserGetResponse;
        "auth/user/list" "UserList" AuthUserListRequest AuthUserListResponse;
        "auth/user/delete" "UserDelete" AuthUserDeleteRequest AuthUserDeleteResponse;
        "auth/user/changepw" "UserChangePassword" AuthUserChangePasswordRequest AuthUserChangePasswordResponse;
        "auth/user/grant" "UserGrantRole" AuthUserGrantRoleRequest AuthUserGrantRoleResponse;
        "auth/user/revoke" "UserRevokeRole" AuthUserRevokeRoleRequest AuthUserRevokeRoleResponse;
        "auth/role/add" "RoleAdd" AuthRoleAddRequest AuthRoleAddResponse;
        "auth/role/get" "RoleGet" AuthRoleGetRequest AuthRoleGetResponse;
        "auth/role/list" "RoleList" AuthRoleListRequest AuthRoleListResponse;
        "auth/role/delete" "RoleDelete" AuthRoleDeleteRequest AuthRoleDeleteResponse;
        "auth/role/grant" "RoleGrantPermission" AuthRoleGrantPermissionRequest AuthRoleGrantPermissionResponse;
        "auth/role/revoke" "RoleRevokePermission" AuthRoleRevokePermissionRequest AuthRoleRevokePermissionResponse;
    }
    "v3lockpb.Lock" {
        "lock/lock" "Lock" LockRequest LockResponse;
        "lock/unlock" "Unlock" UnlockRequest UnlockResponse;
    }
    "v3electionpb.Election" {
        "election/campaign" "Campaign" CampaignRequest CampaignResponse;
        "election/proclaim" "Proclaim" ProclaimRequest ProclaimResponse;
        "election/leader" "Leader" LeaderRequest LeaderResponse;
        "election/resign" "Resign" ResignRequest ResignResponse;
    }
};

fn failed(status: &Status) -> Response<Body> {
    let http = match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(http, "application/json", error_json(status).to_string())
}

fn error_json(status: &Status) -> Value {
    json!({"code": status.code() as i32, "message": status.message()})
}

/// Answers a request below `/v3/`.
pub async fn answer(
    member: &Arc<Member>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: Incoming,
) -> Response<Body> {
    if *method != Method::POST {
        return failed(&Status::unimplemented("Method Not Allowed"));
    }
    // The gateway is not the holder of a client's certificate.
    let call = Call::new(headers, None);
    let limited = Limited::new(body, member.message_bytes_max() * 2);
    let body = match limited.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return failed(&Status::invalid_argument(error.to_string())),
    };
    match route(member, path, &call, &body).await {
        Ok(response) => response,
        Err(status) => failed(&status),
    }
}

async fn route(member: &Arc<Member>, path: &str, call: &Call, body: &[u8]) -> Result<Response<Body>, Status> {
    let admin = |who| member.auth.check_admin(&who).map_err(Status::from);
    match path {
        "watch" => {
            let requests = messages::<api::WatchRequest>(body)?;
            return Ok(lines::<api::WatchResponse>(member.watch(call.clone(), Requests::given(requests))));
        }
        "lease/keepalive" => {
            let requests = messages::<api::LeaseKeepAliveRequest>(body)?;
            return Ok(lines::<api::LeaseKeepAliveResponse>(
                member.lease_keep_alive(Requests::given(requests)),
            ));
        }
        "maintenance/snapshot" => {
            admin(member.identify(call)?)?;
            return Ok(lines::<api::SnapshotResponse>(member.snapshot()));
        }
        "election/observe" => {
            let request: api::LeaderRequest = from_json(body)?;
            member.may_observe(&member.identify(call)?, &request.name)?;
            return Ok(lines::<api::LeaderResponse>(member.observe(request.name)));
        }
        _ => {}
    }
    let Some(route) = ROUTES.iter().find(|route| route.path == path) else {
        return Err(Status::not_found("Not Found"));
    };
    let value = json_of(body)?;
    let request = (route.request)(&value).map_err(Status::invalid_argument)?;
    let frame = member.unary(route.service, route.method, call, &request).await?;
    let value = (route.response)(&frame[PREFIX..])?;
    Ok(text(StatusCode::OK, "application/json", value.to_string()))
}

/// An empty body is an empty message.
fn json_of(body: &[u8]) -> Result<Value, Status> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(json!({}));
    }
    serde_json::from_slice(body).map_err(|e| Status::invalid_argument(e.to_string()))
}

fn from_json<M: Json>(body: &[u8]) -> Result<M, Status> {
    api::json::from_value(&json_of(body)?).map_err(Status::invalid_argument)
}

/// The messages of a streamed request: JSON values one after the other.
fn messages<M: Message + Json>(body: &[u8]) -> Result<Vec<Bytes>, Status> {
    let wrong = |e: String| Status::invalid_argument(e);
    serde_json::Deserializer::from_slice(body)
        .into_iter::<Value>()
        .map(|value| encoded::<M>(&value.map_err(|e| wrong(e.to_string()))?).map(Bytes::from).map_err(wrong))
        .collect()
}

/// A stream's messages as lines of JSON.
fn lines<M: Message + Default + Json + 'static>(frames: Frames) -> Response<Body> {
    let chunks = frames.map(|frames| {
        let mut out = String::new();
        let mut say = |value: Value| {
            out.push_str(&value.to_string());
            out.push('\n');
        };
        match frames {
            Ok(mut frames) => {
                while frames.len() >= PREFIX {
                    let len = u32::from_be_bytes([frames[1], frames[2], frames[3], frames[4]]) as usize;
                    let frame = frames.split_to(PREFIX + len);
                    match as_json::<M>(&frame[PREFIX..]) {
                        Ok(value) => say(json!({"result": value})),
                        Err(status) => say(json!({"error": error_json(&status)})),
                    }
                }
            }
            Err(status) => say(json!({"error": error_json(&status)})),
        }
        Bytes::from(out)
    });
    let mut response = text(StatusCode::OK, "application/json", Bytes::new());
    *response.body_mut() = Body::Chunks(Box::pin(chunks));
    response
}
