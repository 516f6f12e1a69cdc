//! Custom resources: what a CustomResourceDefinition adds to a row of the table.

use apimachinery::status::{FieldError, Status};
use jiff::Timestamp;
use serde_json::Value;

/// One served version of a custom resource.
pub enum CustomResource {}

impl CustomResource {
    /// The stored name of a field label, or why it cannot be selected by.
    pub fn field_label(&self, _label: &str) -> Result<String, String> {
        match *self {}
    }

    pub fn prepare_for_create(&self, _object: &mut Value) {
        match *self {}
    }

    pub fn prepare_for_update(&self, _new: &mut Value, _old: &Value) {
        match *self {}
    }

    pub fn prepare_for_status_update(&self, _new: &mut Value, _old: &Value) {
        match *self {}
    }

    pub fn validate(&self, _object: &Value) -> Vec<FieldError> {
        match *self {}
    }

    pub fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        match *self {}
    }

    /// Whether stored bytes are what clients of this version see.
    pub fn reads_verbatim(&self) -> bool {
        match *self {}
    }

    pub fn columns(&self) -> Vec<Value> {
        match *self {}
    }

    pub fn cells(&self, _object: &Value, _now: Timestamp) -> Vec<Value> {
        match *self {}
    }

    pub fn scale(&self) -> Option<api::scale::Scale> {
        match *self {}
    }

    pub fn schema(&self) -> Option<&apimachinery::schema::Schema> {
        match *self {}
    }

    pub fn storage_schema(&self) -> Option<&apimachinery::schema::Schema> {
        match *self {}
    }

    /// What a write through the main resource, or `status`, cannot change.
    pub fn reset_fields(&self, _status: bool) -> &'static [&'static [&'static str]] {
        match *self {}
    }

    /// The resource for OpenAPI documents.
    pub fn open_api(&self, _entry: &crate::registry::Entry) -> apimachinery::openapi::CustomResource {
        match *self {}
    }

    /// Changes whenever what is published about the resource does.
    pub fn fingerprint(&self) -> String {
        match *self {}
    }

    pub fn from_storage(&self, _object: &mut Value) -> Result<(), Status> {
        match *self {}
    }

    pub fn to_storage(&self, _object: &mut Value) -> Result<(), Status> {
        match *self {}
    }
}
