//! Links in proxied answers: what points at the root of the proxied server must point below the proxy's path.

use std::sync::OnceLock;

use apimachinery::status::Status;
use http::{HeaderValue, Response, header};
use hyper::body::Incoming;
use regex::{Captures, Regex};

use super::dial::Target;
use crate::http::Body;

/// Pages larger than this pass as they are.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// The answer for the client; `base` is the path up to and with `/proxy`.
pub async fn response(
    answer: Response<Incoming>,
    base: &str,
    target: &Target,
) -> Result<Response<Body>, Status> {
    let (mut parts, body) = answer.into_parts();
    parts.headers = super::without_hops(&parts.headers);
    if let Some(location) = parts.headers.get(header::LOCATION).and_then(|v| v.to_str().ok())
        && let Some(moved) = link(location, base, target)
        && let Ok(moved) = HeaderValue::from_str(&moved)
    {
        parts.headers.insert(header::LOCATION, moved);
    }
    let html = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.starts_with("text/html"));
    let plain = !parts.headers.contains_key(header::CONTENT_ENCODING);
    if !html || !plain {
        return Ok(Response::from_parts(parts, Body::Incoming(body)));
    }
    let page = Body::Incoming(body).collect(PAGE_BYTES_MAX).await?;
    parts.headers.remove(header::CONTENT_LENGTH);
    let rewritten = links(&String::from_utf8_lossy(&page), base, target);
    Ok(Response::from_parts(parts, Body::full(rewritten)))
}

/// Where a link leads through the proxy; `None` where it leads elsewhere or is relative.
fn link(url: &str, base: &str, target: &Target) -> Option<String> {
    let path = match url.split_once("://") {
        Some((_, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if authority != target.authority() && authority != target.host {
                return None;
            }
            path
        }
        None if url.starts_with('/') && !url.starts_with("//") => url,
        None => return None,
    };
    if path.starts_with(base) {
        None
    } else {
        Some(format!("{base}{}{path}", if path.starts_with('/') { "" } else { "/" }))
    }
}

fn links(page: &str, base: &str, target: &Target) -> String {
    static ATTRIBUTE: OnceLock<Regex> = OnceLock::new();
    let attribute = ATTRIBUTE.get_or_init(|| {
        let names = "action|background|cite|classid|codebase|data|formaction|href|icon|longdesc|manifest|poster|profile|src|usemap";
        Regex::new(&format!(r#"(?i)(\s(?:{names})\s*=\s*)(?:"([^"]*)"|'([^']*)')"#)).expect("a valid pattern")
    });
    attribute
        .replace_all(page, |found: &Captures<'_>| {
            let url = found.get(2).or_else(|| found.get(3)).map_or("", |m| m.as_str());
            match link(url, base, target) {
                Some(moved) => format!("{}\"{moved}\"", &found[1]),
                None => found[0].to_owned(),
            }
        })
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_links() {
        let target = Target { tls: false, host: "10.0.0.1".into(), port: 80 };
        for (page, want) in [
            (r#"<a href="/rewriteme">test</a>"#, r#"<a href="/b/proxy/rewriteme">test</a>"#),
            (r#"<a href="rel">test</a>"#, r#"<a href="rel">test</a>"#),
            (r#"<img src='http://10.0.0.1:80/x'>"#, r#"<img src="/b/proxy/x">"#),
            (r#"<a href="https://elsewhere/x">"#, r#"<a href="https://elsewhere/x">"#),
            (r#"<a href="/b/proxy/x">"#, r#"<a href="/b/proxy/x">"#),
        ] {
            assert_eq!(links(page, "/b/proxy", &target), want);
        }
    }
}
