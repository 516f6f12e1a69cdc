//! Checks of the strings that occur everywhere: names, labels, ports, addresses. Each answers what is wrong, in
//! upstream's words; nothing wrong is an empty list.

use std::net::{IpAddr, Ipv6Addr};

use serde_json::Value;

use crate::field_path::Path;
use crate::status::{FieldError, quote};

pub const DNS1123_LABEL_MAX: usize = 63;
pub const DNS1123_SUBDOMAIN_MAX: usize = 253;
pub const LABEL_VALUE_MAX: usize = 63;
/// All annotation keys and values of an object together.
pub const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1035_LABEL: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

pub fn max_len_error(max: usize) -> String {
    format!("must be no more than {max} characters")
}

pub fn range_error(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// `message (e.g. 'a',  or 'b', regex used for validation is 'pattern')`, with upstream's odd commas.
pub fn regex_error(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let mut text = format!("{message} (e.g. ");
    for (i, example) in examples.iter().enumerate() {
        if i > 0 {
            text.push_str(" or ");
        }
        text.push_str(&format!("'{example}', "));
    }
    text.push_str(&format!("regex used for validation is '{pattern}')"));
    text
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Whether `text` begins and ends with what `edge` takes and holds only that and `inner` between.
fn framed(text: &str, edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let b = text.as_bytes();
    match (b.first(), b.last()) {
        (Some(first), Some(last)) => edge(*first) && edge(*last) && b.iter().all(|c| edge(*c) || inner(*c)),
        _ => false,
    }
}

fn label_shaped(text: &str) -> bool {
    framed(text, lower_alnum, |b| b == b'-')
}

/// Whether `value` is a DNS-1123 label; the fast form of [`dns1123_label`].
pub fn is_dns1123_label(value: &str) -> bool {
    value.len() <= DNS1123_LABEL_MAX && label_shaped(value)
}

/// Whether `value` is a DNS-1123 subdomain; the fast form of [`dns1123_subdomain`].
pub fn is_dns1123_subdomain(value: &str) -> bool {
    value.len() <= DNS1123_SUBDOMAIN_MAX && value.split('.').all(label_shaped)
}

pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut wrong = vec![];
    if value.len() > DNS1123_LABEL_MAX {
        wrong.push(max_len_error(DNS1123_LABEL_MAX));
    }
    if !label_shaped(value) {
        if dns1123_subdomain(value).is_empty() {
            wrong.push("must not contain dots".into());
        } else {
            wrong.push(regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                 start and end with an alphanumeric character",
                DNS1123_LABEL,
                &["my-name", "123-abc"],
            ));
        }
    }
    wrong
}

pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut wrong = vec![];
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        wrong.push(max_len_error(DNS1123_SUBDOMAIN_MAX));
    }
    if !value.split('.').all(label_shaped) {
        wrong.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
             must start and end with an alphanumeric character",
            &format!("{DNS1123_LABEL}(\\.{DNS1123_LABEL})*"),
            &["example.com"],
        ));
    }
    wrong
}

pub fn wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut wrong = vec![];
    if value.len() > DNS1123_SUBDOMAIN_MAX {
        wrong.push(max_len_error(DNS1123_SUBDOMAIN_MAX));
    }
    if !value.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(label_shaped)) {
        wrong.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
             consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{DNS1123_LABEL}(\\.{DNS1123_LABEL})*"),
            &["*.example.com"],
        ));
    }
    wrong
}

pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut wrong = vec![];
    if value.len() > DNS1123_LABEL_MAX {
        wrong.push(max_len_error(DNS1123_LABEL_MAX));
    }
    if !label_shaped(value) || value.as_bytes()[0].is_ascii_digit() {
        wrong.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            DNS1035_LABEL,
            &["my-name", "abc-123"],
        ));
    }
    wrong
}

fn label_key_shaped(name: &str) -> bool {
    framed(name, |b| b.is_ascii_alphanumeric(), |b| matches!(b, b'-' | b'_' | b'.'))
}

fn max_bytes_error(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// A label or annotation key: an optional DNS prefix and a name.
pub fn qualified_name(value: &str) -> Vec<String> {
    const SHAPE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                         alphanumeric character";
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut wrong = vec![];
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".into());
            } else {
                wrong.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            let shape = regex_error(SHAPE, LABEL_KEY, EXAMPLES);
            return vec![format!(
                "a valid label key {shape} with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        wrong.push(format!("name part {}", max_bytes_error(63)));
    }
    if !label_key_shaped(name) {
        wrong.push(format!("name part {}", regex_error(SHAPE, LABEL_KEY, EXAMPLES)));
    }
    wrong
}

pub fn label_value(value: &str) -> Vec<String> {
    let mut wrong = vec![];
    if value.len() > LABEL_VALUE_MAX {
        wrong.push(max_bytes_error(LABEL_VALUE_MAX));
    }
    if !value.is_empty() && !label_key_shaped(value) {
        wrong.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            &format!("({LABEL_KEY})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    wrong
}

pub fn port_number(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

pub fn in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) { vec![] } else { vec![range_error(low, high)] }
}

pub fn user_or_group_id(id: i64) -> Vec<String> {
    in_range(id, 0, i64::from(i32::MAX))
}

pub fn port_name(name: &str) -> Vec<String> {
    let mut wrong = vec![];
    if name.len() > 15 {
        wrong.push(max_len_error(15));
    }
    if name.is_empty() || !name.bytes().all(|b| lower_alnum(b) || b == b'-') {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        wrong.push("must not contain consecutive hyphens".into());
    }
    if name.starts_with('-') || name.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".into());
    }
    wrong
}

pub fn percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or("");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return vec![regex_error(
            "a valid percent string must be a numeric string followed by an ending '%'",
            "[0-9]+%",
            &["1%", "93%"],
        )];
    }
    vec![]
}

pub fn http_header_name(name: &str) -> Vec<String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return vec![regex_error(
            "a valid HTTP header must consist of alphanumeric characters or '-'",
            "[-A-Za-z0-9]+",
            &["X-Header-Name"],
        )];
    }
    vec![]
}

/// Environment variable names as the API takes them today: printable ASCII without `=`.
pub fn env_var_name(name: &str) -> Vec<String> {
    let mut wrong = vec![];
    if name.is_empty() {
        wrong.push("environment variable name must be non-empty".into());
    }
    if !name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        wrong.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .into(),
        );
    }
    wrong
}

/// Environment variable names in their old, narrow form.
pub fn strict_env_var_name(name: &str) -> Vec<String> {
    let mut wrong = vec![];
    let shaped = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if !shaped || name.is_empty() || name.as_bytes()[0].is_ascii_digit() {
        wrong.push(regex_error(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', \
             and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    wrong.extend(parent_directory(name));
    wrong
}

pub fn config_map_key(key: &str) -> Vec<String> {
    let mut wrong = vec![];
    if key.len() > DNS1123_SUBDOMAIN_MAX {
        wrong.push(max_len_error(DNS1123_SUBDOMAIN_MAX));
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        wrong.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    wrong.extend(parent_directory(key));
    wrong
}

fn parent_directory(name: &str) -> Option<String> {
    match name {
        "." => Some("must not be '.'".into()),
        ".." => Some("must not be '..'".into()),
        _ if name.starts_with("..") => Some("must not start with '..'".into()),
        _ => None,
    }
}

/// A name that can be one segment of a URL path.
pub fn path_segment_name(name: &str) -> Vec<String> {
    let mut wrong = vec![];
    if name == "." || name == ".." {
        wrong.push(format!("may not be '{name}'"));
        return wrong;
    }
    for illegal in ["/", "%"] {
        if name.contains(illegal) {
            wrong.push(format!("may not contain '{illegal}'"));
        }
    }
    wrong
}

/// Parses an address as Go does, but for IPv4 with leading zeros, which `strict` refuses anyway.
pub fn ip(path: &Path, text: &str) -> Vec<FieldError> {
    match text.parse::<IpAddr>() {
        Err(_) => vec![FieldError::invalid(
            path,
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )],
        Ok(IpAddr::V6(six)) if is_mapped(six) => {
            vec![FieldError::invalid(path, text, "must not be an IPv4-mapped IPv6 address")]
        }
        Ok(address) if address.to_string() != text => vec![FieldError::invalid(
            path,
            text,
            format!("must be in canonical form ({})", quote(&address.to_string())),
        )],
        Ok(_) => vec![],
    }
}

/// As [`ip`] for the old fields: any notation will do.
pub fn legacy_ip(path: &Path, text: &str) -> Vec<FieldError> {
    match parse_ip(text) {
        Some(_) => vec![],
        None => vec![FieldError::invalid(
            path,
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )],
    }
}

/// Go's lenient parser: leading zeros in IPv4 octets are read as decimal.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let octets: Vec<u8> = text
        .split('.')
        .map(|o| if o.len() <= 3 && o.bytes().all(|b| b.is_ascii_digit()) { o.parse().ok() } else { None })
        .collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(IpAddr::from)
}

fn is_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

/// `address/prefix`; bits beyond the prefix are allowed.
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address = parse_ip(address)?;
    if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let prefix: u8 = prefix.parse().ok()?;
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

pub fn cidr(path: &Path, text: &str) -> Vec<FieldError> {
    match parse_cidr(text) {
        Some(_) => vec![],
        None => vec![FieldError::invalid(
            path,
            text,
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        )],
    }
}

/// Keys and values of a label map.
pub fn labels(labels: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = vec![];
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.extend(qualified_name(key).into_iter().map(|m| FieldError::invalid(path, key.as_str(), m)));
        let text = value.as_str().unwrap_or_default();
        errors.extend(label_value(text).into_iter().map(|m| FieldError::invalid(&path.key(key), text, m)));
    }
    errors
}

/// Keys and total size of an annotation map.
pub fn annotations(annotations: &Value, path: &Path) -> Vec<FieldError> {
    let mut errors = vec![];
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        let lower = key.to_ascii_lowercase();
        errors.extend(qualified_name(&lower).into_iter().map(|m| FieldError::invalid(path, key.as_str(), m)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX_BYTES));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (check, good, bad) in [
            (
                dns1123_label as fn(&str) -> Vec<String>,
                &["a", "a-1", "1a"][..],
                &["", "-a", "a-", "A", "a.b", "a_b"][..],
            ),
            (dns1123_subdomain, &["a", "a.b-c.1"], &["", "a..b", ".a", "a.", "A.b", "a.-b"]),
            (dns1035_label, &["a", "a1"], &["", "1a", "a-", "a.b"]),
            (qualified_name, &["a", "A_b.c", "x.y/Z"], &["", "/a", "a/", "a/b/c", "-a", "A.b/c"]),
            (label_value, &["", "a", "A_b.c-1"], &["-a", "a/b", "a "]),
            (port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "abcdefghijklmnop", "A"]),
            (config_map_key, &["a.b", "_x"], &["", ".", "..", "..a", "a/b"]),
            (percent, &["1%", "200%"], &["", "%", "1", "a%"]),
            (env_var_name, &["A", "a b", "1"], &["", "a=b", "é"]),
            (strict_env_var_name, &["A", "a.b-c"], &["", "1a", "a b"]),
        ] {
            for value in good {
                assert_eq!(check(value), Vec::<String>::new(), "{value}");
            }
            for value in bad {
                assert!(!check(value).is_empty(), "{value}");
            }
        }
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert!(!dns1123_label(&"a".repeat(64)).is_empty());
    }

    #[test]
    fn addresses() {
        let p = Path::new("ip");
        assert!(ip(&p, "10.0.0.1").is_empty() && ip(&p, "fd00::1").is_empty());
        assert!(!ip(&p, "010.0.0.1").is_empty() && !ip(&p, "FD00::1").is_empty());
        assert!(legacy_ip(&p, "010.0.0.1").is_empty() && !legacy_ip(&p, "10.0.0").is_empty());
        assert_eq!(parse_cidr("10.0.0.0/8"), Some(("10.0.0.0".parse().unwrap(), 8)));
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "x/8"] {
            assert_eq!(parse_cidr(bad), None);
        }
    }
}
