//! The KMS v2 API (KEP-3299): its messages, the calls over a plugin's unix socket, and how values are stored that were
//! encrypted with its help.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct StatusRequest {}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct StatusResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub healthz: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// The plaintext of the source is the key itself.
pub const SOURCE_KEY: i32 = 0;
/// It is a seed, from which each value's own key is derived.
pub const SOURCE_SEED: i32 = 1;

/// A value as it is stored.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    pub encrypted_data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    pub encrypted_dek_source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub encrypted_dek_source_type: i32,
}

const KEY_ID_BYTES_MAX: usize = 1 << 10;
const SOURCE_BYTES_MAX: usize = 1 << 10;
const ANNOTATIONS_BYTES_MAX: usize = 32 << 10;

/// What is wrong with the name of a key, with upstream's code for it.
pub fn key_id_problem(key_id: &str) -> Option<(&'static str, String)> {
    match key_id.len() {
        0 => Some(("empty", "keyID is empty".to_owned())),
        n if n > KEY_ID_BYTES_MAX => Some((
            "too_long",
            format!("keyID is {n} bytes, which exceeds the max size of {KEY_ID_BYTES_MAX}"),
        )),
        _ => None,
    }
}

impl EncryptedObject {
    /// Checks all but the data.
    pub fn check_source(&self) -> Result<()> {
        if !matches!(self.encrypted_dek_source_type, SOURCE_KEY | SOURCE_SEED) {
            bail!("unknown encryptedDEKSourceType: {}", self.encrypted_dek_source_type);
        }
        match self.encrypted_dek_source.len() {
            0 => bail!("failed to validate encrypted DEK source: encrypted DEK source is empty"),
            n if n > SOURCE_BYTES_MAX => bail!(
                "failed to validate encrypted DEK source: encrypted DEK source is {n} bytes, which exceeds the max size \
                 of {SOURCE_BYTES_MAX}"
            ),
            _ => {}
        }
        if let Some((_, why)) = key_id_problem(&self.key_id) {
            bail!("failed to validate key id: {why}");
        }
        let mut total = 0;
        for (name, value) in &self.annotations {
            total += name.len() + value.len();
            let labels = name.split('.').count();
            if labels < 2 || !apimachinery::validation::is_dns1123_subdomain(name) {
                bail!(
                    "failed to validate annotations: annotations: Invalid value: {name:?}: should be a domain with at \
                     least two segments separated by dots"
                );
            }
        }
        if total > ANNOTATIONS_BYTES_MAX {
            bail!(
                "failed to validate annotations: total size of annotations is {total}, which exceeds the max size of \
                 {ANNOTATIONS_BYTES_MAX}"
            );
        }
        Ok(())
    }

    /// Checks what was read from the store.
    pub fn check(&self) -> Result<()> {
        self.check_source()?;
        if self.encrypted_data.is_empty() {
            bail!("encrypted data is empty");
        }
        Ok(())
    }
}

/// A plugin. Cheap to clone; connects when it is called.
#[derive(Clone)]
pub struct Plugin {
    channel: Channel,
    timeout: Duration,
}

/// Where a plugin listens: a path, or a name in the abstract name space.
pub fn socket(endpoint: &str) -> Option<&str> {
    let path = endpoint.strip_prefix("unix://")?;
    Some(path.strip_prefix("/@").map_or(path, |_| &path[1..]))
}

async fn connect(socket: &str) -> std::io::Result<UnixStream> {
    let Some(name) = socket.strip_prefix('@') else { return UnixStream::connect(socket).await };
    use std::os::linux::net::SocketAddrExt as _;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

impl Plugin {
    pub fn new(socket: &str, timeout: Duration) -> Plugin {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { connect(&socket).await.map(TokioIo::new) }
        });
        // The address is never resolved: the connector above goes to the socket.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Plugin { channel, timeout }
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, tonic::Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let call = async {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(path);
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            Ok(grpc.unary(tonic::Request::new(request), path, codec).await?.into_inner())
        };
        let late = |_| Err(tonic::Status::deadline_exceeded("context deadline exceeded"));
        tokio::time::timeout(self.timeout, call).await.unwrap_or_else(late)
    }

    pub async fn status(&self) -> Result<StatusResponse, tonic::Status> {
        self.call("/v2.KeyManagementService/Status", StatusRequest {}).await
    }

    pub async fn encrypt(&self, request: EncryptRequest) -> Result<EncryptResponse, tonic::Status> {
        self.call("/v2.KeyManagementService/Encrypt", request).await
    }

    pub async fn decrypt(&self, request: DecryptRequest) -> Result<DecryptResponse, tonic::Status> {
        self.call("/v2.KeyManagementService/Decrypt", request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_checked() {
        let good = EncryptedObject {
            encrypted_data: vec![1],
            key_id: "k".into(),
            encrypted_dek_source: vec![1],
            annotations: [("a.example.com".to_owned(), vec![1])].into(),
            encrypted_dek_source_type: SOURCE_SEED,
        };
        good.check().unwrap();
        let wrong: [(fn(&mut EncryptedObject), &str); 6] = [
            (|o| o.encrypted_data.clear(), "encrypted data is empty"),
            (|o| o.key_id.clear(), "failed to validate key id: keyID is empty"),
            (|o| o.key_id = "x".repeat(1025), "keyID is 1025 bytes, which exceeds the max size of 1024"),
            (|o| o.encrypted_dek_source = vec![0; 2000], "encrypted DEK source is 2000 bytes"),
            (
                |o| drop(o.annotations.insert("a".into(), vec![])),
                "should be a domain with at least two segments",
            ),
            (|o| o.encrypted_dek_source_type = 7, "unknown encryptedDEKSourceType: 7"),
        ];
        for (change, why) in wrong {
            let mut object = good.clone();
            change(&mut object);
            let told = object.check().unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn sockets() {
        for (endpoint, want) in [
            ("unix:///var/run/kms.sock", Some("/var/run/kms.sock")),
            ("unix:///@kms", Some("@kms")),
            ("tcp://localhost:1", None),
        ] {
            assert_eq!(socket(endpoint), want);
        }
    }
}
