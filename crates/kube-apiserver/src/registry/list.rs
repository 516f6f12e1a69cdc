//! Lists: consistent, from the cache, or as of a revision; whole or in pages.

use std::borrow::Cow;
use std::sync::Arc;

use apimachinery::codec::protobuf;
use apimachinery::continue_token::Continue;
use apimachinery::field_path::Path;
use apimachinery::object::{Attributes, Encoded};
use apimachinery::status::{FieldError, Status};
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use storage::{KeyRange, RangeRequest};

use super::output::Show;
use super::selection::Selection;
use super::{Entry, Registry};
use crate::cache::ROOT;
use crate::http::Body;
use crate::http::negotiation::{Encoding, View};
use crate::http::request_info::Query;
use crate::http::respond;

/// Bytes a chunk of a streamed list grows to.
const CHUNK_BYTES: usize = 64 << 10;

/// How Go tells that `text` is no number.
pub fn not_a_number(function: &str, text: &str, error: &std::num::ParseIntError) -> String {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let why = match error.kind() {
        PosOverflow | NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    format!("strconv.{function}: parsing {text:?}: {why}")
}

/// A resource version, or what is wrong with it.
pub fn parse_version(text: &str) -> Result<u64, String> {
    text.parse().map_err(|e| format!("Invalid value: {text:?}: {}", not_a_number("ParseUint", text, &e)))
}

/// The list parameters of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub limit: usize,
    pub continued: Option<String>,
    pub resource_version: Option<u64>,
    pub exact: bool,
}

impl ListOptions {
    /// Refuses what neither lists nor watches take.
    pub fn check(query: &Query) -> Result<(), Status> {
        for name in ["limit", "timeoutSeconds"] {
            if let Some(text) = query.non_empty(name) {
                text.parse::<i64>().map_err(|e| Status::bad_request(not_a_number("ParseInt", text, &e)))?;
            }
        }
        let errors = if query.flag("watch") { check_watch(query) } else { check_list(query) };
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Status::invalid("ListOptions", "meta.k8s.io", "", errors))
        }
    }

    pub fn parse(query: &Query) -> Result<ListOptions, Status> {
        ListOptions::check(query)?;
        let limit: i64 = query.non_empty("limit").and_then(|l| l.parse().ok()).unwrap_or(0);
        let continued = query.non_empty("continue").map(str::to_owned);
        let version = query.non_empty("resourceVersion");
        let matching = query.non_empty("resourceVersionMatch");
        if let Some(token) = &continued {
            Continue::decode(token)?;
        }
        let resource_version = version
            .map(|text| {
                parse_version(text).map_err(|why| {
                    Status::bad_request(format!("invalid resource version: resourceVersion: {why}"))
                })
            })
            .transpose()?;
        if continued.is_some() && resource_version.is_some_and(|v| v != 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let limited_legacy = limit > 0 && resource_version.is_some_and(|v| v > 0) && matching.is_none();
        Ok(ListOptions {
            limit: limit.max(0) as usize,
            continued,
            resource_version,
            exact: matching == Some("Exact") || limited_legacy,
        })
    }
}

fn check_list(query: &Query) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("resourceVersionMatch");
    let version = query.non_empty("resourceVersion");
    let mut forbid = |why: &str| errors.push(FieldError::forbidden(&path, why));
    if let Some(matching) = query.non_empty("resourceVersionMatch") {
        if version.is_none() {
            forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if query.non_empty("continue").is_some() {
            forbid("resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            errors.push(FieldError::not_supported(&path, matching, &["Exact", "NotOlderThan", ""]));
        } else if matching == "Exact" && version == Some("0") {
            forbid("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    if query.get("sendInitialEvents").is_some() {
        let path = Path::new("sendInitialEvents");
        errors.push(FieldError::forbidden(&path, "sendInitialEvents is forbidden for list"));
    }
    errors
}

fn check_watch(query: &Query) -> Vec<FieldError> {
    const WANTED: &str = "NotOlderThan";
    let mut errors = Vec::new();
    let path = Path::new("resourceVersionMatch");
    let mut forbid = |why: &str| errors.push(FieldError::forbidden(&path, why));
    let matching = query.non_empty("resourceVersionMatch");
    let asks = query.get("sendInitialEvents").is_some();
    // A watch from no version begins with what is there, as if asked to.
    let legacy =
        !asks && matching.is_none() && matches!(query.non_empty("resourceVersion"), None | Some("0"));
    let matching = if legacy { Some(WANTED) } else { matching };
    if asks && matching != Some(WANTED) {
        forbid("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if let Some(matching) = matching {
        if !asks && !legacy {
            forbid("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        }
        if matching != WANTED {
            errors.push(FieldError::not_supported(&path, matching, &[WANTED]));
        }
        if query.non_empty("continue").is_some() {
            errors.push(FieldError::forbidden(
                &path,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
    }
    errors
}

/// One page of objects.
pub struct Page {
    pub items: Vec<Arc<Encoded>>,
    pub revision: u64,
    pub next: Option<String>,
    pub remaining: Option<usize>,
}

impl Registry {
    pub async fn list(
        &self,
        entry: &Entry,
        selection: &Selection,
        options: &ListOptions,
    ) -> Result<Page, Status> {
        let cache = self.cache_of(entry)?;
        if let Some(token) = &options.continued {
            let token = Continue::decode(token)?;
            let revision = (token.rv > 0).then_some(token.rv);
            let start = format!("{}{}", selection.prefix(), token.start);
            return self.list_from_store(entry, selection, &start, revision, options.limit).await;
        }
        match (options.resource_version, options.exact) {
            (Some(version), true) => {
                let start = selection.prefix();
                return self
                    .list_from_store(entry, selection, &start, Some(version as i64), options.limit)
                    .await;
            }
            (Some(0), _) if self.cache.synced() => {}
            (Some(version), _) if version > 0 => {
                if !self.cache.wait_for(version, std::time::Duration::from_secs(3)).await {
                    return Err(Status::too_large(version, self.cache.revision()));
                }
            }
            _ => {
                if !self.cache.catch_up().await.map_err(|e| respond::store_error(&e))? {
                    return self
                        .list_from_store(entry, selection, &selection.prefix(), None, options.limit)
                        .await;
                }
            }
        }
        let matcher = selection.matcher();
        let accept = matcher.as_ref().map(|m| |a: &Attributes| m(a));
        let found =
            cache.snapshot(&selection.prefix(), accept.as_ref().map(|m| m as &dyn Fn(&Attributes) -> bool));
        if let Some(key) = found.unreadable {
            return Err(Status::internal(format!("unable to read {ROOT}{}{key}", cache.prefix())));
        }
        let mut page = Page { items: found.items, revision: found.revision, next: None, remaining: None };
        if let (Some(selector), Some(custom)) = (selection.converted(), &entry.custom) {
            page.items.retain(|object| custom.selects_converted(selector, object));
        }
        if options.limit > 0 && page.items.len() > options.limit {
            let left = page.items.len() - options.limit;
            page.items.truncate(options.limit);
            let last = &page.items[options.limit - 1];
            let key = entry.key(last.namespace(), last.name());
            page.next = Some(Continue::encode(page.revision as i64, selection.after(&key)));
            page.remaining = selection.is_everything().then_some(left);
        }
        Ok(page)
    }

    /// Reads a page from the store: as of a revision, or from where another page ended.
    async fn list_from_store(
        &self,
        entry: &Entry,
        selection: &Selection,
        start: &str,
        revision: Option<i64>,
        limit: usize,
    ) -> Result<Page, Status> {
        let cache = self.cache_of(entry)?;
        let prefix = format!("{ROOT}{}", cache.prefix());
        let whole = KeyRange::prefix(format!("{prefix}{}", selection.prefix()));
        let mut from = Bytes::from(format!("{prefix}{start}"));
        if from < whole.start {
            from = whole.start.clone();
        }
        let matcher = selection.matcher();
        let mut page = Page { items: Vec::new(), revision: 0, next: None, remaining: None };
        let mut at = revision;
        loop {
            let request = RangeRequest {
                limit: if limit == 0 { 0 } else { limit.max(100) },
                revision: at,
                ..RangeRequest::new(KeyRange { start: from.clone(), end: whole.end.clone() })
            };
            let found = self.store.range(request).await.map_err(|e| match e {
                storage::Error::Compacted { .. } => {
                    expired(start.strip_prefix(&selection.prefix()).unwrap_or(start))
                }
                other => respond::store_error(&other),
            })?;
            let shown = at.unwrap_or(found.revision);
            at = Some(shown);
            page.revision = shown as u64;
            for (i, kv) in found.kvs.iter().enumerate() {
                let key = String::from_utf8_lossy(&kv.key[prefix.len()..]).into_owned();
                let object = match cache.get(&key) {
                    Some(cached) if cached.resource_version == kv.mod_revision as u64 => cached,
                    _ => cache.encoded(kv).map_err(Status::internal)?,
                };
                if matcher.as_ref().is_some_and(|m| !m(&object.attributes)) {
                    continue;
                }
                if let (Some(selector), Some(custom)) = (selection.converted(), &entry.custom)
                    && !custom.selects_converted(selector, &object)
                {
                    continue;
                }
                page.items.push(object);
                if limit > 0 && page.items.len() == limit {
                    let left = found.count.saturating_sub(i + 1);
                    if left > 0 {
                        page.next = Some(Continue::encode(shown, selection.after(&key)));
                        page.remaining = selection.is_everything().then_some(left);
                    }
                    return Ok(page);
                }
            }
            match found.kvs.last() {
                Some(last) if found.more => {
                    let mut next = last.key.to_vec();
                    next.push(0);
                    from = next.into();
                }
                _ => return Ok(page),
            }
        }
    }
}

/// The continue token is too old, with one that goes on from the present state.
fn expired(start: &str) -> Status {
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    respond::set_continue(&mut status, Continue::encode(-1, start.to_owned()));
    status
}

fn list_metadata(page: &Page) -> Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(next) = &page.next {
        metadata["continue"] = next.as_str().into();
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

/// The answer with a page.
pub async fn response(show: Show<'_>, page: Page) -> Result<Response<Body>, Status> {
    let mut metadata = list_metadata(&page);
    if show.entry.custom.is_some() && show.accept.view == View::Whole && page.next.is_none() {
        // Lists without a type say so when they are complete.
        metadata["continue"] = "".into();
    }
    let (kind, api_version) = match show.accept.view {
        View::Whole => (show.entry.list_kind.clone(), show.entry.api_version()),
        View::Metadata => ("PartialObjectMetadataList".to_owned(), show.accept.view_version().to_owned()),
        View::Table => {
            let mut values = Vec::with_capacity(page.items.len());
            for object in &page.items {
                values.push(Cow::Owned(show.value(object)?));
            }
            let table = show.table(&values, Some(metadata));
            return Ok(respond::value(StatusCode::OK, &table, show.accept));
        }
    };
    if show.is_verbatim() && page.items.iter().all(|object| show.entry.is_current(object)) {
        let head = format!(
            "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
            json!(kind),
            json!(api_version)
        );
        let item_head = match show.entry.custom {
            None => format!("{{\"kind\":{},\"apiVersion\":{},", json!(show.entry.kind), json!(api_version)),
            Some(_) => String::new(),
        };
        let mut response = Response::new(stream_items(head.into_bytes(), item_head.into_bytes(), page.items));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return Ok(response);
    }
    if show.accept.encoding == Encoding::Protobuf
        && show.accept.view == View::Whole
        && let Some(messages) = crate::wire::protobuf_messages(show, &page.items).await?
    {
        let lengths = messages.iter().map(Bytes::len);
        let head = protobuf::list_head(&api_version, &kind, &metadata, lengths);
        let mut response = Response::new(stream_messages(head, messages));
        let content_type = HeaderValue::from_static(Encoding::Protobuf.content_type());
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        return Ok(response);
    }
    let mut items = Vec::with_capacity(page.items.len());
    for object in &page.items {
        let mut item = show.single(object)?;
        if let (View::Whole, None, Value::Object(members)) = (show.accept.view, &show.entry.custom, &mut item)
        {
            // The list says it for all of them.
            members.remove("kind");
            members.remove("apiVersion");
        }
        items.push(item);
    }
    let list = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items});
    Ok(respond::value(StatusCode::OK, &list, show.accept))
}

/// The list, made as the client takes it. Items begin with `item_head`, which is left out of them.
fn stream_items(head: Vec<u8>, item_head: Vec<u8>, items: Vec<Arc<Encoded>>) -> Body {
    let size: usize = items.iter().map(|o| o.body.len() + 40).sum::<usize>() + head.len() + 3;
    let (mut items, mut first) = (items.into_iter(), true);
    in_chunks(head, size, move |out, limit| {
        let done = fill(out, &item_head, &mut items, limit, first);
        first = false;
        done
    })
}

/// As [`stream_items`] for protobuf; `head` tells of the messages' length already.
fn stream_messages(head: Vec<u8>, messages: Vec<Bytes>) -> Body {
    let size: usize = messages.iter().map(|m| m.len() + 8).sum::<usize>() + head.len() + 8;
    let mut messages = messages.into_iter();
    in_chunks(head, size, move |out, limit| {
        while out.len() < limit {
            let Some(message) = messages.next() else {
                protobuf::put_list_end(out);
                return true;
            };
            protobuf::put_list_item(out, &message);
        }
        false
    })
}

/// `head` and what `fill` appends up to a length, until it says that this was all: in chunks, or whole where `size`, which it
/// will not exceed by much, is small.
fn in_chunks(
    head: Vec<u8>,
    size: usize,
    mut fill: impl FnMut(&mut Vec<u8>, usize) -> bool + Send + 'static,
) -> Body {
    let mut out = head;
    if size <= CHUNK_BYTES {
        out.reserve(size - out.len());
        let done = fill(&mut out, usize::MAX);
        debug_assert!(done);
        return Body::full(out);
    }
    let mut state = Some(out);
    Body::stream(stream::iter(std::iter::from_fn(move || {
        let mut out = state.take()?;
        out.reserve(CHUNK_BYTES + (8 << 10));
        if !fill(&mut out, CHUNK_BYTES) {
            state = Some(Vec::new());
        }
        Some(Ok(Bytes::from(out)))
    })))
}

/// Appends objects until `limit`; true when the list is complete.
fn fill(
    out: &mut Vec<u8>,
    item_head: &[u8],
    items: &mut std::vec::IntoIter<Arc<Encoded>>,
    limit: usize,
    mut first: bool,
) -> bool {
    while out.len() < limit {
        let Some(object) = items.next() else {
            out.extend_from_slice(b"]}\n");
            return true;
        };
        if !first {
            out.push(b',');
        }
        first = false;
        object.write_item(item_head, out);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_lists_of_any_length() {
        for n in [0, 1, 2, 3000] {
            let items: Vec<Arc<Encoded>> = (0..n)
                .map(|i| {
                    let body =
                        format!("{{\"metadata\":{{\"name\":\"n{i}\"}},\"data\":\"{}\"}}", "x".repeat(100));
                    Arc::new(Encoded::new(body.into(), 5, |_| vec![]).unwrap())
                })
                .collect();
            let body = stream_items(b"{\"items\":[".to_vec(), Vec::new(), items);
            let bytes = body.collect(usize::MAX).await.unwrap();
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(value["items"].as_array().unwrap().len(), n);
        }
    }
}
