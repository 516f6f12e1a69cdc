//! The name this API server has among those of its cluster, made of the machine's name as upstream makes it.

use std::sync::LazyLock;

use sha2::Digest as _;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// `apiserver-…`
pub fn id(hostname: &str) -> String {
    let mut seed = Vec::new();
    for part in [hostname, "kube-apiserver"] {
        seed.extend_from_slice(&(part.len() as u16).to_be_bytes());
        seed.extend_from_slice(part.as_bytes());
    }
    let digest = sha2::Sha256::digest(&seed);
    let (mut out, mut bits, mut have) = ("apiserver-".to_owned(), 0u32, 0);
    for byte in &digest[..16] {
        bits = bits << 8 | u32::from(*byte);
        have += 8;
        while have >= 5 {
            have -= 5;
            out.push(char::from(ALPHABET[(bits >> have & 31) as usize]));
        }
    }
    if have > 0 {
        out.push(char::from(ALPHABET[(bits << (5 - have) & 31) as usize]));
    }
    out
}

/// A digest of this server's name, as metrics are labelled with.
pub fn hash() -> &'static str {
    static HASH: LazyLock<String> = LazyLock::new(|| {
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        crate::metrics::hash(id(&hostname.to_string_lossy()).as_bytes())
    });
    &HASH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_servers() {
        let name = id("machine");
        assert_eq!(name.len(), "apiserver-".len() + 26);
        assert_ne!(name, id("machine2"));
        assert!(hash().starts_with("sha256:"));
    }
}
