//! The gRPC health protocol, as far as a probe speaks it.

use std::time::Duration;

use tonic::transport::Endpoint;

#[derive(Clone, PartialEq, ::prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, Copy, PartialEq, ::prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

pub async fn check(host: &str, port: u16, service: String, timeout: Duration) -> Result<(), String> {
    let address = crate::net::host_port(host, port);
    let work = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| e.to_string())?
            .user_agent("kube-probe/1.36")
            .map_err(|e| e.to_string())?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|_| format!("timeout: failed to connect service \"{address}\" within {timeout:?}"))?;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.map_err(|e| e.to_string())?;
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let answer = grpc.unary(tonic::Request::new(HealthCheckRequest { service }), path, codec).await;
        match answer {
            Ok(answer) if answer.get_ref().status == SERVING => Ok(()),
            Ok(answer) => Err(format!(
                "service unhealthy (responded with \"{}\")",
                match answer.get_ref().status {
                    2 => "NOT_SERVING",
                    3 => "SERVICE_UNKNOWN",
                    _ => "UNKNOWN",
                }
            )),
            Err(status) if status.code() == tonic::Code::Unimplemented => {
                Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".into())
            }
            Err(status) => Err(format!("error: health rpc failed: {}", status.message())),
        }
    };
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or_else(|_| Err(format!("timeout: health rpc did not complete within {timeout:?}")))
}
