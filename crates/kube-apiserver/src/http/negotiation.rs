//! Which form of an answer a client asked for, and which form a body is in.

use http::{HeaderMap, header};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    #[default]
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    pub fn content_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// The media type's own name, parameters aside.
    pub fn of(media_type: &str) -> Option<Encoding> {
        match media_type {
            "application/json" | "text/json" => Some(Encoding::Json),
            "application/yaml" | "text/yaml" => Some(Encoding::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Encoding::Protobuf),
            _ => None,
        }
    }
}

/// Which view of the objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    #[default]
    Whole,
    Table,
    /// Metadata alone (`PartialObjectMetadata` and its list).
    Metadata,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    pub encoding: Encoding,
    pub view: View,
    pub pretty: bool,
    /// Whether the view is asked for in its version of old, `meta.k8s.io/v1beta1`.
    pub beta: bool,
    /// Whether metadata is asked for as a list.
    pub list: bool,
}

impl Accept {
    /// The API version of tables and metadata.
    pub fn view_version(self) -> &'static str {
        if self.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
    }
}

/// One clause of an Accept header.
#[derive(Clone, Debug, PartialEq)]
pub struct Clause<'a> {
    pub media_type: &'a str,
    pub parameters: Vec<(&'a str, &'a str)>,
    pub quality: f32,
}

impl<'a> Clause<'a> {
    pub fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }
}

/// The clauses of an Accept header, best first.
pub fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut all: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media_type = parts.next().filter(|m| !m.is_empty())?;
            let mut quality = 1.0;
            let mut parameters = Vec::new();
            for part in parts {
                let (k, v) = part.split_once('=').unwrap_or((part, ""));
                let (k, v) = (k.trim(), v.trim().trim_matches('"'));
                if k == "q" { quality = v.parse().unwrap_or(1.0) } else { parameters.push((k, v)) }
            }
            Some(Clause { media_type, parameters, quality })
        })
        .collect();
    all.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    all
}

pub fn accept_header(headers: &HeaderMap) -> String {
    let mut all = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let Some(first) = all.next() else { return String::new() };
    let mut out = first.to_owned();
    for more in all {
        out.push(',');
        out.push_str(more);
    }
    out
}

/// Chooses among what the server can answer; `None` is a 406. `views` says whether Table and metadata are possible.
pub fn choose(accept: &str, views: bool) -> Option<Accept> {
    if accept.is_empty() {
        return Some(Accept::default());
    }
    clauses(accept).iter().filter(|c| c.quality > 0.0).find_map(|clause| {
        let encoding = match clause.media_type {
            "*/*" | "application/*" => Encoding::Json,
            named => Encoding::of(named)?,
        };
        let pretty = clause.parameter("pretty").is_some_and(|p| p == "1" || p == "true");
        let (mut beta, mut list) = (false, false);
        let view = match clause.parameter("as") {
            None => View::Whole,
            Some(kind) if views => {
                let group = clause.parameter("g").unwrap_or_default();
                let version = clause.parameter("v").unwrap_or_default();
                let known = group == "meta.k8s.io" && (version == "v1" || version == "v1beta1");
                beta = version == "v1beta1";
                list = kind == "PartialObjectMetadataList";
                match kind {
                    "Table" if known && encoding != Encoding::Protobuf => View::Table,
                    "PartialObjectMetadata" | "PartialObjectMetadataList" if known => View::Metadata,
                    _ => return None,
                }
            }
            Some(_) => return None,
        };
        Some(Accept { encoding, view, pretty, beta, list })
    })
}

/// Whether upstream's router finds anything in an Accept header that it could answer in: it knows names, and no
/// wildcard within a type.
pub fn is_routable(accept: &str, produced: &[&str]) -> bool {
    accept.is_empty()
        || accept.split(',').any(|clause| {
            let name = clause.split(';').next().unwrap_or_default().trim();
            name == "*/*" || produced.contains(&name)
        })
}

/// Whether the client takes gzip.
pub fn gzip(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT_ENCODING)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| clauses(v).iter().any(|c| c.media_type == "gzip" && c.quality > 0.0))
}

/// The media type of the body, without parameters; empty when there is no header.
pub fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .map_or("", |v| v.split(';').next().unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_the_best_it_can_answer() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        for (accept, want) in [
            ("", Some((Encoding::Json, View::Whole))),
            ("*/*", Some((Encoding::Json, View::Whole))),
            ("application/yaml", Some((Encoding::Yaml, View::Whole))),
            ("application/vnd.kubernetes.protobuf,application/json", Some((Encoding::Protobuf, View::Whole))),
            (&format!("{table},application/json"), Some((Encoding::Json, View::Table))),
            (
                "application/json;as=Nothing;v=v1;g=meta.k8s.io,application/json",
                Some((Encoding::Json, View::Whole)),
            ),
            ("text/html", None),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None),
            ("text/html,application/json;q=0.5,*/*;q=0.1", Some((Encoding::Json, View::Whole))),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some((Encoding::Protobuf, View::Metadata)),
            ),
        ] {
            assert_eq!(choose(accept, true).map(|a| (a.encoding, a.view)), want, "{accept}");
        }
    }
}
