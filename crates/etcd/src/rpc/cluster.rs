//! Service Cluster: a cluster of one member.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::{Value, json};
use tonic::Status;

use super::{Member, failure};
use crate::api;

/// Where the member's record lies in the meta bucket, as in etcd's `members` bucket.
const MEMBERS: &str = "members/";

/// Who a member is and where it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
}

fn first_eight(data: &[u8]) -> u64 {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, data);
    hash.as_ref().first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
}

impl Identity {
    /// A member's id follows from its peer URLs and the cluster's token, the cluster's from its members, as in etcd.
    pub fn new(name: &str, token: &str, mut peer_urls: Vec<String>, client_urls: Vec<String>) -> Identity {
        peer_urls.sort();
        let member_id = first_eight([&peer_urls.concat(), token].concat().as_bytes());
        Identity::with_id(member_id, name, peer_urls, client_urls)
    }

    fn with_id(member_id: u64, name: &str, peer_urls: Vec<String>, client_urls: Vec<String>) -> Identity {
        let cluster_id = first_eight(&member_id.to_be_bytes());
        Identity { cluster_id, member_id, name: name.to_owned(), peer_urls, client_urls }
    }

    /// The member that the data directory belongs to.
    pub fn read(engine: &crate::Engine) -> Option<Identity> {
        let (key, value) = engine.meta_range(MEMBERS.as_bytes()).into_iter().next()?;
        let id = std::str::from_utf8(key.strip_prefix(MEMBERS.as_bytes())?).ok()?;
        let record: Value = serde_json::from_slice(&value).ok()?;
        let list = |name: &str| {
            record[name]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        let name = record["name"].as_str().unwrap_or_default();
        Some(Identity::with_id(u64::from_str_radix(id, 16).ok()?, name, list("peerURLs"), list("clientURLs")))
    }

    /// The record, with its key.
    pub fn record(&self) -> (bytes::Bytes, bytes::Bytes) {
        let record = json!({
            "id": self.member_id, "peerURLs": self.peer_urls, "name": self.name, "clientURLs": self.client_urls,
        });
        (format!("{MEMBERS}{:x}", self.member_id).into(), record.to_string().into())
    }

    pub async fn write(&self, engine: &crate::Engine) -> Result<(), storage::Error> {
        let (key, value) = self.record();
        engine.meta_write(None, vec![(key, Some(value))]).await.map(drop)
    }

    fn message(&self) -> api::Member {
        api::Member {
            id: self.member_id,
            name: self.name.clone(),
            peer_urls: self.peer_urls.clone(),
            client_urls: self.client_urls.clone(),
            is_learner: false,
        }
    }
}

/// URLs that etcd takes for peers: a scheme it knows, a host with a port, and no path.
fn valid_urls(urls: &[String]) -> bool {
    let valid = |url: &String| {
        let Some((scheme, rest)) = url.split_once("://") else { return false };
        match scheme {
            "unix" | "unixs" => !rest.is_empty(),
            "http" | "https" => {
                let port = rest.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
                matches!(port, Some((host, Ok(_))) if !host.contains('/'))
            }
            _ => false,
        }
    };
    !urls.is_empty() && urls.iter().all(valid)
}

impl Member {
    /// Members' answers carry no revision.
    fn cluster_header(&self) -> Option<api::ResponseHeader> {
        self.header.message(0)
    }

    pub fn members(&self) -> Vec<api::Member> {
        vec![self.identity.lock().message()]
    }

    pub fn member_list(&self) -> api::MemberListResponse {
        api::MemberListResponse { header: self.cluster_header(), members: self.members() }
    }

    pub fn member_add(&self, request: &api::MemberAddRequest) -> Status {
        if !valid_urls(&request.peer_urls) {
            return failure::MEMBER_BAD_URLS.into();
        }
        if self.identity.lock().peer_urls.iter().any(|url| request.peer_urls.contains(url)) {
            return failure::PEER_URL_EXISTS.into();
        }
        Status::unimplemented("etcdserver: this is a cluster of one member; replication is not supported yet")
    }

    pub fn member_remove(&self, id: u64) -> Status {
        if id != self.header.member_id {
            return failure::MEMBER_NOT_FOUND.into();
        }
        failure::MEMBER_NOT_ENOUGH_STARTED.into()
    }

    pub fn member_promote(&self, id: u64) -> Status {
        if id != self.header.member_id {
            return failure::MEMBER_NOT_FOUND.into();
        }
        failure::MEMBER_NOT_LEARNER.into()
    }

    pub async fn member_update(
        &self,
        request: api::MemberUpdateRequest,
    ) -> Result<api::MemberUpdateResponse, Status> {
        if request.id != self.header.member_id {
            return Err(failure::MEMBER_NOT_FOUND.into());
        }
        let changed = Identity { peer_urls: request.peer_urls, ..self.identity.lock().clone() };
        changed.write(&self.engine).await.map_err(failure::status)?;
        *self.identity.lock() = changed;
        Ok(api::MemberUpdateResponse { header: self.cluster_header(), members: self.members() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_etcds() {
        // What etcd calls itself when it is started without flags.
        let urls = vec!["http://localhost:2380".to_owned()];
        let identity = Identity::new("default", "etcd-cluster", urls, Vec::new());
        assert_eq!(format!("{:x}", identity.member_id), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", identity.cluster_id), "cdf818194e3a8c32");
    }

    #[test]
    fn urls() {
        for (url, valid) in [
            ("http://a:1", true),
            ("https://[::1]:2", true),
            ("http://a", false),
            ("a:1", false),
            ("http://a:1/x", false),
        ] {
            assert_eq!(valid_urls(&[url.to_owned()]), valid, "{url}");
        }
        assert!(!valid_urls(&[]));
    }
}
