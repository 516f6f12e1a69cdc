//! From a gRPC path to the method that answers it.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;
use tonic::{Code, Status};

use super::auth::unknown;
use super::grpc::{self, Body, Requests, decode, frame};
use super::{Call, Member};
use crate::api;

/// Keys that a range on the connection's own task has at most.
const SHORT_RANGE_KEYS_MAX: i64 = 256;

/// Whether there is no telling how much a range reads.
fn may_be_long(request: &api::RangeRequest) -> bool {
    let limited = (1..=SHORT_RANGE_KEYS_MAX).contains(&request.limit);
    !request.range_end.is_empty() && !limited
}

/// The messages of a call that has one request.
fn encode(message: &impl Message) -> Result<Bytes, Status> {
    Ok(frame(message))
}

impl Member {
    /// Answers a gRPC call.
    pub async fn call(
        self: Arc<Member>,
        request: Request<Incoming>,
        common_name: Option<Arc<str>>,
    ) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let requests = Requests::new(body, self.message_bytes_max()).counted(self.clone());
        let answer = match path {
            "/etcdserverpb.KV/Put" | "/etcdserverpb.KV/Range" | "/etcdserverpb.KV/Txn" => {
                // Nobody asks who calls while access control is off.
                let known = self.auth.enabled().then(|| Call::new(&parts.headers, common_name));
                self.key_value_call(path, known.unwrap_or_default(), requests).await.map(Body::Unary)
            }
            _ => {
                let call = Call::new(&parts.headers, common_name);
                Box::pin(self.clone().other_call(path, call, requests)).await
            }
        };
        if let Ok(Body::Unary(bytes)) = &answer {
            self.metrics.sent_bytes.add(bytes.len() as u64);
        }
        self.metrics.handled(path, answer.as_ref().err().map_or(Code::Ok, Status::code));
        grpc::response(answer)
    }

    /// The calls that must be quick: they are not boxed.
    async fn key_value_call(
        self: &Arc<Member>,
        path: &str,
        call: Call,
        mut requests: Requests,
    ) -> Result<Bytes, Status> {
        match path {
            "/etcdserverpb.KV/Put" => {
                let request = requests.one().await?;
                self.put(self.identify(&call)?, request).await
            }
            "/etcdserverpb.KV/Range" => {
                let request = requests.one().await?;
                let who = self.identify(&call)?;
                if !may_be_long(&request) {
                    return self.range(who, request).await;
                }
                // The connection's other calls do not wait for it.
                let member = self.clone();
                let ranging = tokio::spawn(async move { member.range(who, request).await });
                ranging.await.map_err(|e| Status::internal(e.to_string()))?
            }
            _ => {
                let request = requests.one().await?;
                self.txn(self.identify(&call)?, request).await
            }
        }
    }

    async fn other_call(
        self: Arc<Member>,
        path: &str,
        call: Call,
        mut requests: Requests,
    ) -> Result<Body, Status> {
        let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else {
            return Err(Status::unimplemented(format!("malformed method name: {path:?}")));
        };
        match (service, method) {
            ("etcdserverpb.Watch", "Watch") => return Ok(Body::Stream(self.watch(call, requests))),
            ("etcdserverpb.Lease", "LeaseKeepAlive") => {
                return Ok(Body::Stream(self.lease_keep_alive(requests)));
            }
            ("grpc.health.v1.Health", "Watch") => return Err(unknown(service, method)),
            _ => {}
        }
        let body = match std::future::poll_fn(|cx| requests.poll_next(cx)).await? {
            Some(body) => body,
            None => return Err(Status::internal("the call carried no message")),
        };
        match (service, method) {
            ("etcdserverpb.Maintenance", "Snapshot") => {
                self.auth.check_admin(&self.identify(&call)?)?;
                Ok(Body::Stream(self.snapshot()))
            }
            ("v3electionpb.Election", "Observe") => {
                let request: api::LeaderRequest = decode(&body)?;
                self.may_observe(&self.identify(&call)?, &request.name)?;
                Ok(Body::Stream(self.observe(request.name)))
            }
            _ => self.unary(service, method, &call, &body).await.map(Body::Unary),
        }
    }

    /// Answers a call of one message with one frame. The JSON gateway comes here too.
    pub async fn unary(
        self: &Arc<Member>,
        service: &str,
        method: &str,
        call: &Call,
        body: &[u8],
    ) -> Result<Bytes, Status> {
        match (service, method) {
            ("etcdserverpb.Auth", "Authenticate") => self.auth_call(method, None, body).await,
            ("etcdserverpb.Auth", _) => self.auth_call(method, self.identify(call)?, body).await,
            ("etcdserverpb.KV", "Range") => self.range(self.identify(call)?, decode(body)?).await,
            ("etcdserverpb.KV", "Put") => self.put(self.identify(call)?, decode(body)?).await,
            ("etcdserverpb.KV", "DeleteRange") => {
                self.delete_range(self.identify(call)?, decode(body)?).await
            }
            ("etcdserverpb.KV", "Txn") => self.txn(self.identify(call)?, decode(body)?).await,
            ("etcdserverpb.KV", "Compact") => {
                self.identify(call)?;
                encode(&self.compact(decode(body)?).await?)
            }
            ("etcdserverpb.Lease", "LeaseGrant") => {
                self.identify(call)?;
                encode(&self.lease_grant(decode(body)?).await?)
            }
            ("etcdserverpb.Lease", "LeaseRevoke") => {
                encode(&self.lease_revoke(&self.identify(call)?, decode(body)?).await?)
            }
            ("etcdserverpb.Lease", "LeaseTimeToLive") => {
                encode(&self.lease_time_to_live(call, decode(body)?)?)
            }
            ("etcdserverpb.Lease", "LeaseLeases") => encode(&self.lease_leases()),
            ("etcdserverpb.Cluster", _) => self.cluster_call(method, call, body).await,
            ("etcdserverpb.Maintenance", _) => self.maintenance_call(method, call, body).await,
            ("v3lockpb.Lock" | "v3electionpb.Election", _) => {
                // etcd serves these as a client of itself, whose errors lose their code on the way.
                let lost = |status: Status| match status.code() {
                    Code::Unimplemented | Code::Internal | Code::Unavailable => status,
                    _ => Status::unknown(status.message()),
                };
                self.recipe_call(method, call, body).await.map_err(lost)
            }
            ("grpc.health.v1.Health", "Check") => {
                let request: api::HealthCheckRequest = decode(body)?;
                if !request.service.is_empty() {
                    return Err(Status::not_found("unknown service"));
                }
                encode(&self.health_check())
            }
            (
                "etcdserverpb.KV" | "etcdserverpb.Watch" | "etcdserverpb.Lease" | "grpc.health.v1.Health",
                _,
            ) => Err(unknown(service, method)),
            _ => Err(Status::unimplemented(format!("unknown service {service}"))),
        }
    }

    async fn recipe_call(
        self: &Arc<Member>,
        method: &str,
        call: &Call,
        body: &[u8],
    ) -> Result<Bytes, Status> {
        let who = self.identify(call)?;
        match method {
            "Lock" => encode(&self.lock(who, decode(body)?).await?),
            "Unlock" => encode(&self.unlock(who, decode(body)?).await?),
            "Campaign" => encode(&self.campaign(who, decode(body)?).await?),
            "Proclaim" => encode(&self.proclaim(who, decode(body)?).await?),
            "Leader" => encode(&self.leader(who, decode(body)?).await?),
            "Resign" => encode(&self.resign(who, decode(body)?).await?),
            _ => Err(unknown("v3lockpb.Lock", method)),
        }
    }

    async fn cluster_call(&self, method: &str, call: &Call, body: &[u8]) -> Result<Bytes, Status> {
        if method != "MemberList" {
            self.auth.check_admin(&self.identify(call)?)?;
        }
        match method {
            "MemberList" => encode(&self.member_list()),
            "MemberAdd" => Err(self.member_add(&decode(body)?)),
            "MemberRemove" => Err(self.member_remove(decode::<api::MemberRemoveRequest>(body)?.id)),
            "MemberPromote" => Err(self.member_promote(decode::<api::MemberPromoteRequest>(body)?.id)),
            "MemberUpdate" => encode(&self.member_update(decode(body)?).await?),
            _ => Err(unknown("etcdserverpb.Cluster", method)),
        }
    }

    async fn maintenance_call(&self, method: &str, call: &Call, body: &[u8]) -> Result<Bytes, Status> {
        let who = self.identify(call)?;
        if method != "Alarm" {
            self.auth.check_admin(&who)?;
        }
        match method {
            "Alarm" => encode(&self.alarm(decode(body)?).await?),
            "Status" => encode(&self.status()),
            "Defragment" => encode(&self.defragment().await?),
            "Hash" => encode(&self.hash().await?),
            "HashKV" => encode(&self.hash_kv(decode::<api::HashKvRequest>(body)?.revision).await?),
            "MoveLeader" => encode(&self.move_leader(decode::<api::MoveLeaderRequest>(body)?.target_id)?),
            "Downgrade" => encode(&self.downgrade(&decode(body)?)?),
            _ => Err(unknown("etcdserverpb.Maintenance", method)),
        }
    }
}
