//! Addresses, networks and URLs.

use std::net::IpAddr;

use super::strings_of;
use crate::value::{Error, Value, fail};

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Result<Value<'a>, Error>> {
    Some(match (function, args) {
        ("ip", [Value::String(s)]) => parse_ip(s).map(Value::Ip),
        ("ip", [Value::Cidr(ip, _)]) => Ok(Value::Ip(*ip)),
        ("isIP", [Value::String(s)]) => Ok(Value::Bool(parse_ip(s).is_ok())),
        ("ip.isCanonical", [Value::String(s)]) => parse_ip(s).map(|ip| Value::Bool(ip.to_string() == **s)),
        ("family", [Value::Ip(ip)]) => Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
        ("isUnspecified", [Value::Ip(ip)]) => Ok(Value::Bool(ip.is_unspecified())),
        ("isLoopback", [Value::Ip(ip)]) => Ok(Value::Bool(ip.is_loopback())),
        ("isLinkLocalMulticast", [Value::Ip(ip)]) => Ok(Value::Bool(is_link_local_multicast(ip))),
        ("isLinkLocalUnicast", [Value::Ip(ip)]) => Ok(Value::Bool(is_link_local_unicast(ip))),
        ("isGlobalUnicast", [Value::Ip(ip)]) => Ok(Value::Bool(is_global_unicast(ip))),
        ("cidr", [Value::String(s)]) => {
            let parsed = parse_cidr(s).or_else(|why| {
                fail(format!("network address parse error during conversion from string: {why}"))
            });
            parsed.map(|(ip, bits)| Value::Cidr(ip, bits))
        }
        ("isCIDR", [Value::String(s)]) => Ok(Value::Bool(parse_cidr(s).is_ok())),
        ("containsIP", [Value::Cidr(net, bits), Value::String(s)]) => {
            parse_ip(s).map(|ip| Value::Bool(contains(net, *bits, &ip)))
        }
        ("containsIP", [Value::Cidr(net, bits), Value::Ip(ip)]) => Ok(Value::Bool(contains(net, *bits, ip))),
        ("containsCIDR", [Value::Cidr(net, bits), other]) => {
            let other = match other {
                Value::Cidr(ip, bits) => Ok((*ip, *bits)),
                Value::String(s) => parse_cidr(s).or_else(|why| {
                    fail(format!("network address parse error during conversion from string: {why}"))
                }),
                _ => return None,
            };
            other.map(|(ip, inner)| Value::Bool(inner >= *bits && contains(net, *bits, &ip)))
        }
        ("prefixLength", [Value::Cidr(_, bits)]) => Ok(Value::Int(i64::from(*bits))),
        ("masked", [Value::Cidr(ip, bits)]) => Ok(Value::Cidr(masked(ip, *bits), *bits)),
        ("url", [Value::String(s)]) => match Url::parse(s) {
            Ok(url) => Ok(Value::Url(url.into())),
            Err(why) => fail(format!("URL parse error during conversion from string: {why}")),
        },
        ("isURL", [Value::String(s)]) => Ok(Value::Bool(Url::parse(s).is_ok())),
        ("getScheme", [Value::Url(u)]) => Ok(u.scheme.clone().into()),
        ("getHost", [Value::Url(u)]) => Ok(u.host.clone().into()),
        ("getHostname", [Value::Url(u)]) => Ok(u.hostname().to_owned().into()),
        ("getPort", [Value::Url(u)]) => Ok(u.port().to_owned().into()),
        ("getEscapedPath", [Value::Url(u)]) => Ok(u.path.clone().into()),
        ("getQuery", [Value::Url(u)]) => Ok(u.query()),
        _ => return None,
    })
}

fn parse_ip(text: &str) -> Result<IpAddr, Error> {
    let quoted = || apimachinery::status::quote(text);
    let bare = text.split_once('%').map_or(text, |(ip, _)| ip);
    let Ok(ip) = bare.parse::<IpAddr>() else {
        return fail(format!(
            "IP Address {q} parse error during conversion from string: ParseAddr({q}): unable to parse IP",
            q = quoted()
        ));
    };
    if bare.len() != text.len() {
        return fail(format!("IP address {} with zone value is not allowed", quoted()));
    }
    if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return fail(format!("IPv4-mapped IPv6 address {} is not allowed", quoted()));
    }
    Ok(ip)
}

fn parse_cidr(text: &str) -> Result<(IpAddr, u8), Error> {
    let quoted = || apimachinery::status::quote(text);
    let bad = |why: &str| {
        fail(format!(
            "network address parse error during conversion from string: netip.ParsePrefix({}): {why}",
            quoted()
        ))
    };
    let Some((ip, bits)) = text.rsplit_once('/') else { return bad("no '/'") };
    let Ok(ip) = ip.parse::<IpAddr>() else { return bad(&format!("ParseAddr({ip:?}): unable to parse IP")) };
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let plain = !bits.is_empty()
        && bits.bytes().all(|b| b.is_ascii_digit())
        && (bits.len() == 1 || !bits.starts_with('0'));
    let parsed = bits.parse::<u8>().ok().filter(|b| plain && *b <= most);
    let Some(bits) = parsed else { return bad(&format!("bad bits after slash: {bits:?}")) };
    if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return fail(format!("IPv4-mapped IPv6 address {} is not allowed", quoted()));
    }
    Ok((ip, bits))
}

fn number(ip: &IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(*ip)), 32),
        IpAddr::V6(ip) => (u128::from(*ip), 128),
    }
}

fn contains(net: &IpAddr, bits: u8, ip: &IpAddr) -> bool {
    let ((a, width), (b, other)) = (number(net), number(ip));
    let shift = width - u32::from(bits);
    width == other && a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
}

fn masked(ip: &IpAddr, bits: u8) -> IpAddr {
    let (n, width) = number(ip);
    let shift = width - u32::from(bits);
    let kept = n.checked_shr(shift).unwrap_or(0).checked_shl(shift).unwrap_or(0);
    match ip {
        IpAddr::V4(_) => IpAddr::V4((kept as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(kept.into()),
    }
}

fn is_link_local_multicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_link_local_unicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_global_unicast(ip: &IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !broadcast
        && !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_multicast()
        && !is_link_local_unicast(ip)
}

/// An absolute URL or an absolute path.
#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    pub text: String,
    scheme: String,
    host: String,
    path: String,
    raw_query: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Url, String> {
        let bad = |why: &str| Err(format!("parse {}: {why}", apimachinery::status::quote(text)));
        if text.is_empty() {
            return bad("empty url");
        }
        if text.chars().any(|c| (c as u32) < 0x20 || c as u32 == 0x7f) {
            return bad("net/url: invalid control character in URL");
        }
        let (mut scheme, mut rest) = (String::new(), text);
        if let Some((before, after)) = text.split_once(':')
            && before.starts_with(|c: char| c.is_ascii_alphabetic())
            && before.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        {
            scheme = before.to_ascii_lowercase();
            rest = after;
        } else if text.starts_with(':') {
            return bad("missing protocol scheme");
        }
        if !rest.starts_with('/') && scheme.is_empty() {
            return bad("invalid URI for request");
        }
        if !rest.starts_with('/') {
            // An opaque part, such as `mailto:x`, is no URI for a request.
            return bad("invalid URI for request");
        }
        let (rest, _) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut host, mut path) = (String::new(), rest);
        if (!scheme.is_empty() || !rest.starts_with("///"))
            && let Some(after) = rest.strip_prefix("//")
        {
            let end = after.find('/').unwrap_or(after.len());
            let authority = &after[..end];
            path = &after[end..];
            let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let port = match authority.rsplit_once(']') {
                Some((_, after)) => after.strip_prefix(':').or((!after.is_empty()).then_some("x")),
                None if authority.starts_with('[') => return bad("missing ']' in host"),
                None => authority.rsplit_once(':').map(|(_, port)| port),
            };
            if let Some(port) = port
                && !port.bytes().all(|b| b.is_ascii_digit())
            {
                return bad(&format!(
                    "invalid port {} after host",
                    apimachinery::status::quote(&format!(":{port}"))
                ));
            }
            if authority.contains([' ', '<', '>', '"', '\\', '^', '`', '{', '|', '}']) {
                return bad("invalid character in host name");
            }
            host = authority.to_owned();
        }
        if let Some(escape) = bad_escape(path) {
            return bad(&format!("invalid URL escape {}", apimachinery::status::quote(&escape)));
        }
        Ok(Url { text: text.to_owned(), scheme, host, path: escaped_path(path), raw_query: query.to_owned() })
    }

    fn hostname(&self) -> &str {
        if let Some(rest) = self.host.strip_prefix('[') {
            return rest.split_once(']').map_or(rest, |(ip, _)| ip);
        }
        self.host.rsplit_once(':').map_or(&self.host, |(host, _)| host)
    }

    fn port(&self) -> &str {
        match self.host.rsplit_once(']') {
            Some((_, after)) => after.strip_prefix(':').unwrap_or_default(),
            None => self.host.rsplit_once(':').map_or("", |(_, port)| port),
        }
    }

    fn query<'a>(&self) -> Value<'a> {
        let mut entries: Vec<(String, Vec<String>)> = Vec::new();
        for (key, value) in form_urlencoded::parse(self.raw_query.as_bytes()) {
            match entries.iter_mut().find(|(k, _)| *k == key) {
                Some((_, values)) => values.push(value.into_owned()),
                None => entries.push((key.into_owned(), vec![value.into_owned()])),
            }
        }
        Value::map(entries.into_iter().map(|(k, v)| (k.into(), strings_of(v))).collect())
    }
}

fn bad_escape(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    (0..bytes.len()).find_map(|i| {
        let fits = bytes[i] != b'%'
            || (bytes.get(i + 1).is_some_and(u8::is_ascii_hexdigit)
                && bytes.get(i + 2).is_some_and(u8::is_ascii_hexdigit));
        (!fits).then(|| String::from_utf8_lossy(&bytes[i..bytes.len().min(i + 3)]).into_owned())
    })
}

/// The path with everything escaped that must be; escapes that are there stay.
fn escaped_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        let plain = b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@/%[]".contains(&b);
        if plain {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}
