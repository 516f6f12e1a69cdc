//! Where the next page of a list begins, as clients carry it: base64 of JSON, as upstream's.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::status::Status;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Continue {
    v: String,
    /// The revision all pages show; -1 means whichever is there.
    pub rv: i64,
    /// The first key of the page, below the prefix that is listed.
    pub start: String,
}

impl Continue {
    pub fn encode(rv: i64, start: String) -> String {
        let token = Continue { v: "meta.k8s.io/v1".to_owned(), rv, start };
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    pub fn decode(text: &str) -> Result<Continue, Status> {
        let invalid = |why: &dyn std::fmt::Display| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|e| invalid(&format!("illegal base64 data at input byte {}", illegal_at(&e))))?;
        let token: Continue = serde_json::from_slice(&bytes).map_err(|e| invalid(&e))?;
        if token.v != "meta.k8s.io/v1" {
            return Err(invalid(&format!("server does not recognize this encoded version {}", token.v)));
        }
        if token.rv == 0 {
            return Err(invalid(&"incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        if token.start.is_empty() {
            return Err(invalid(&"encoded start key empty (version meta.k8s.io/v1)"));
        }
        if token.start.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(invalid(&token.start));
        }
        Ok(token)
    }
}

/// Where Go's decoder would stop.
fn illegal_at(error: &base64::DecodeError) -> usize {
    match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        base64::DecodeError::InvalidLength(length) => length.saturating_sub(length % 4),
        base64::DecodeError::InvalidPadding => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_round() {
        let text = Continue::encode(7, "ns/a\0".into());
        let token = Continue::decode(&text).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "ns/a\0"));
        for bad in ["x", "e30", "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiIifQ"] {
            assert_eq!(Continue::decode(bad).unwrap_err().code, 400, "{bad}");
        }
        for (bad, why) in [
            ("x", "illegal base64 data at input byte 0"),
            ("%%", "illegal base64 data at input byte 0"),
            ("e30", "server does not recognize this encoded version "),
            ("eyJ2IjoieCJ9", "server does not recognize this encoded version x"),
        ] {
            let message = Continue::decode(bad).unwrap_err().message;
            assert_eq!(message, format!("invalid continue token: continue key is not valid: {why}"));
        }
    }
}
