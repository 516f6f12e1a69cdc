use serde_json::Value;

use super::DecodeError;
use crate::schema::Schema;

/// `runtime.Unknown`: an object in its envelope.
pub struct Unknown<'a> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'a [u8],
}

pub fn unwrap(_bytes: &[u8]) -> Result<Unknown<'_>, DecodeError> {
    Err(DecodeError::new("protobuf is not understood yet"))
}

pub fn decode(_bytes: &[u8], _schema: &Schema) -> Result<Value, DecodeError> {
    Err(DecodeError::new("protobuf is not understood yet"))
}
