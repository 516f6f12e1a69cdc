//! Semantic versions (semver.org 2.0).

use std::cmp::Ordering;
use std::fmt::{self, Display};

use crate::value::{Error, Value, fail};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    pub major: u64,
    pub minor: u64,
    pub patch: u64,
    pre: Vec<Part>,
    build: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Number(u64),
    Text(String),
}

impl Semver {
    pub fn parse(text: &str) -> Result<Semver, String> {
        if text.is_empty() {
            return Err("Version string empty".into());
        }
        let mut parts = text.splitn(3, '.');
        let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("No Major.Minor.Patch elements found".into());
        };
        let (rest, build) = match rest.split_once('+') {
            Some((rest, build)) => (rest, Some(build)),
            None => (rest, None),
        };
        let (patch, pre) = match rest.split_once('-') {
            Some((patch, pre)) => (patch, Some(pre)),
            None => (rest, None),
        };
        let number = |what: &str, text: &str| -> Result<u64, String> {
            let quoted = apimachinery::status::quote(text);
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(format!("Invalid character(s) found in {what} number {quoted}"));
            }
            if text.len() > 1 && text.starts_with('0') {
                return Err(format!(
                    "{}{} number must not contain leading zeroes {quoted}",
                    what[..1].to_uppercase(),
                    &what[1..]
                ));
            }
            text.parse().map_err(|_| format!("strconv.ParseUint: parsing {quoted}: value out of range"))
        };
        let word =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let mut version = Semver {
            major: number("major", major)?,
            minor: number("minor", minor)?,
            patch: number("patch", patch)?,
            pre: Vec::new(),
            build: Vec::new(),
        };
        for part in pre.into_iter().flat_map(|p| p.split('.')) {
            if part.is_empty() {
                return Err("Prerelease is empty".into());
            }
            if part.bytes().all(|b| b.is_ascii_digit()) {
                if part.len() > 1 && part.starts_with('0') {
                    let quoted = apimachinery::status::quote(part);
                    return Err(format!(
                        "Numeric PreRelease version must not contain leading zeroes {quoted}"
                    ));
                }
                let number = part.parse().map_err(|_| "value out of range".to_owned())?;
                version.pre.push(Part::Number(number));
            } else if word(part) {
                version.pre.push(Part::Text(part.to_owned()));
            } else {
                return Err(format!(
                    "Invalid character(s) found in prerelease {}",
                    apimachinery::status::quote(part)
                ));
            }
        }
        for part in build.into_iter().flat_map(|b| b.split('.')) {
            if part.is_empty() {
                return Err("Build meta data is empty".into());
            }
            if !word(part) {
                return Err(format!(
                    "Invalid character(s) found in build meta data {}",
                    apimachinery::status::quote(part)
                ));
            }
            version.build.push(part.to_owned());
        }
        Ok(version)
    }

    /// As [`Semver::parse`], of a version with a `v`, leading zeroes or fewer than three numbers.
    pub fn parse_normalized(text: &str) -> Result<Semver, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_owned).collect();
        for part in &mut parts {
            if part.len() > 1 {
                let trimmed = part.trim_start_matches('0');
                let bare = !trimmed.starts_with(|c: char| c.is_ascii_digit());
                *part = if bare { format!("0{trimmed}") } else { trimmed.to_owned() };
            }
        }
        if parts.len() < 3 {
            if parts.last().is_some_and(|p| p.contains(['+', '-'])) {
                return Err("short version cannot contain PreRelease/Build meta data".into());
            }
            parts.resize(3, "0".to_owned());
        }
        Semver::parse(&parts.join("."))
    }

    /// The order of precedence; build data do not count.
    pub fn compare(&self, other: &Semver) -> Ordering {
        (self.major, self.minor, self.patch).cmp(&(other.major, other.minor, other.patch)).then_with(
            || match (self.pre.is_empty(), other.pre.is_empty()) {
                (true, true) => Ordering::Equal,
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) => {
                    let by_part = self.pre.iter().zip(&other.pre).map(|(a, b)| match (a, b) {
                        (Part::Number(a), Part::Number(b)) => a.cmp(b),
                        (Part::Number(_), Part::Text(_)) => Ordering::Less,
                        (Part::Text(_), Part::Number(_)) => Ordering::Greater,
                        (Part::Text(a), Part::Text(b)) => a.cmp(b),
                    });
                    by_part
                        .into_iter()
                        .find(|o| o.is_ne())
                        .unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
                }
            },
        )
    }
}

impl Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        for (i, part) in self.pre.iter().enumerate() {
            f.write_str(if i == 0 { "-" } else { "." })?;
            match part {
                Part::Number(n) => write!(f, "{n}")?,
                Part::Text(t) => f.write_str(t)?,
            }
        }
        for (i, part) in self.build.iter().enumerate() {
            write!(f, "{}{part}", if i == 0 { "+" } else { "." })?;
        }
        Ok(())
    }
}

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Result<Value<'a>, Error>> {
    let parsed = |text: &str, normalize: Option<&Value<'a>>| match normalize {
        Some(Value::Bool(true)) => Semver::parse_normalized(text),
        _ => Semver::parse(text),
    };
    Some(Ok(match (function, args) {
        ("semver", [Value::String(s), rest @ ..]) => match parsed(s, rest.first()) {
            Ok(version) => Value::Semver(version.into()),
            Err(why) => return Some(fail(why)),
        },
        ("isSemver", [Value::String(s), rest @ ..]) => Value::Bool(parsed(s, rest.first()).is_ok()),
        ("major", [Value::Semver(v)]) => Value::Int(v.major as i64),
        ("minor", [Value::Semver(v)]) => Value::Int(v.minor as i64),
        ("patch", [Value::Semver(v)]) => Value::Int(v.patch as i64),
        ("isGreaterThan", [Value::Semver(a), Value::Semver(b)]) => Value::Bool(a.compare(b).is_gt()),
        ("isLessThan", [Value::Semver(a), Value::Semver(b)]) => Value::Bool(a.compare(b).is_lt()),
        ("compareTo", [Value::Semver(a), Value::Semver(b)]) => Value::Int(a.compare(b) as i64),
        _ => return None,
    }))
}
