//! The CNI plugins: the same binary under other names, or under `isopod` with `CNI_COMMAND` set.
//!
//! A plugin delegating to another one of ours calls it in the same process; others are executed from `CNI_PATH`.

mod bridge;
mod external;
mod flannel;
mod host_local;
mod loopback;
mod masquerade;
mod netns;
mod portmap;
#[cfg(test)]
#[path = "tests.rs"]
mod traffic;
pub mod types;

pub(crate) use masquerade::TABLE as MASQUERADE_TABLE;
pub(crate) use portmap::TABLE as HOSTPORT_TABLE;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use types::{Doing, Error, Success};

/// The names this binary answers to as a plugin.
pub const PLUGINS: &[&str] = &["flannel", "bridge", "host-local", "portmap", "loopback"];

/// One call of a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub container_id: String,
    /// Empty when the runtime no longer knows it (DEL only).
    pub netns: String,
    pub ifname: String,
    pub args: BTreeMap<String, String>,
    /// `CNI_ARGS` as it came, for plugins we execute.
    pub raw_args: String,
    pub path: Vec<PathBuf>,
    pub config: Value,
}

impl Request {
    /// The version results are given in.
    pub fn version(&self) -> &str {
        self.config["cniVersion"].as_str().unwrap_or(types::VERSIONS[0])
    }

    pub fn network(&self) -> &str {
        self.config["name"].as_str().unwrap_or_default()
    }

    pub fn text(&self, field: &str) -> &str {
        self.config[field].as_str().unwrap_or_default()
    }

    pub fn flag(&self, field: &str) -> bool {
        self.config[field].as_bool().unwrap_or(false)
    }

    /// The result of the plugin before this one in the chain.
    pub fn previous(&self) -> Result<Option<Success>, Error> {
        match &self.config["prevResult"] {
            Value::Null => Ok(None),
            value => Success::from_json(value).map(Some),
        }
    }

    pub fn with_config(&self, config: Value) -> Request {
        Request { config, ..self.clone() }
    }

    /// The attachments that still exist, as GC is told.
    pub fn valid_attachments(&self) -> Vec<(String, String)> {
        let list = self.config["cni.dev/valid-attachments"].as_array();
        list.into_iter()
            .flatten()
            .filter_map(|a| Some((a["containerID"].as_str()?.to_owned(), a["ifname"].as_str()?.to_owned())))
            .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
        }
    }
}

/// Runs plugin `kind`: one of ours in this process, another one from `CNI_PATH`.
fn invoke(kind: &str, command: Command, request: &Request) -> Result<Option<Success>, Error> {
    use Command::*;
    let none = |r: Result<(), Error>| r.map(|()| None);
    match (kind, command) {
        ("flannel", command) => flannel::run(command, request),
        ("bridge", Add) => bridge::add(request).map(Some),
        ("bridge", Del) => none(bridge::del(request)),
        ("bridge", Check) => none(bridge::check(request)),
        ("bridge", Gc) => none(bridge::gc(request)),
        ("bridge", Status) => none(bridge::status(request)),
        ("host-local", Add) => host_local::add(request).map(Some),
        ("host-local", Del) => none(host_local::del(request)),
        ("host-local", Check) => none(host_local::check(request)),
        ("host-local", Gc) => none(host_local::gc(request)),
        ("host-local", Status) => Ok(None),
        ("portmap", Add) => portmap::add(request).map(Some),
        ("portmap", Del) => none(portmap::del(request)),
        ("portmap", Check) => none(portmap::check(request)),
        ("portmap", Gc) => none(portmap::gc(request)),
        ("portmap", Status) => none(portmap::status()),
        ("loopback", Add) => loopback::add(request).map(Some),
        ("loopback", Del) => none(loopback::del(request)),
        ("loopback", Check) => none(loopback::check(request)),
        ("loopback", Gc | Status) => Ok(None),
        (other, command) => external::invoke(other, command, request),
    }
}

/// The entry for the plugin `plugin_name`: environment and standard input in, standard output and exit code out.
pub fn main(plugin_name: &str) -> ExitCode {
    let mut input = String::new();
    let (version, outcome) = match std::io::stdin().take(4 << 20).read_to_string(&mut input) {
        Ok(_) => answer(plugin_name, &|name| std::env::var(name).unwrap_or_default(), &input),
        Err(e) => (
            types::VERSIONS[0].to_owned(),
            Err(Error::new(types::IO_FAILURE, format!("error reading from stdin: {e}"))),
        ),
    };
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(value)) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            println!("{:#}", e.to_json(&version));
            ExitCode::FAILURE
        }
    }
}

fn answer(plugin: &str, env: &dyn Fn(&str) -> String, input: &str) -> (String, Result<Option<Value>, Error>) {
    let command = env("CNI_COMMAND");
    if command == "VERSION" {
        let version = serde_json::from_str::<Value>(input)
            .ok()
            .and_then(|v| v["cniVersion"].as_str().map(str::to_owned))
            .unwrap_or_else(|| types::VERSIONS[0].to_owned());
        let out = json!({ "cniVersion": version, "supportedVersions": types::VERSIONS });
        return (version, Ok(Some(out)));
    }
    match read_request(&command, env, input) {
        Ok((command, request)) => {
            let version = request.version().to_owned();
            let outcome = invoke(plugin, command, &request);
            (version.clone(), outcome.map(|success| success.map(|s| s.to_json(&version))))
        }
        Err((version, e)) => (version, Err(e)),
    }
}

fn read_request(
    command: &str,
    env: &dyn Fn(&str) -> String,
    input: &str,
) -> Result<(Command, Request), (String, Error)> {
    let mut version = types::VERSIONS[types::VERSIONS.len() - 1].to_owned();
    let parsed = (|| {
        let command = match command {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            other => {
                let msg = format!("unknown CNI_COMMAND: {other}");
                return Err(Error::new(types::INVALID_ENVIRONMENT, msg));
            }
        };
        let required: &[&str] = match command {
            Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Command::Gc => &["CNI_PATH"],
            Command::Status => &[],
        };
        let missing: Vec<&str> = required.iter().copied().filter(|name| env(name).is_empty()).collect();
        if !missing.is_empty() {
            let msg = format!("required env variables [{}] missing", missing.join(","));
            return Err(Error::new(types::INVALID_ENVIRONMENT, msg));
        }
        let config: Value = serde_json::from_str(input)
            .map_err(|e| Error::new(types::DECODING, format!("error unmarshall network config: {e}")))?;
        let asked = config["cniVersion"].as_str().unwrap_or("0.1.0");
        asked.clone_into(&mut version);
        if !types::VERSIONS.contains(&asked) {
            let mut e = Error::new(types::INCOMPATIBLE_VERSION, "incompatible CNI versions");
            e.details = format!("config is {asked:?}, plugin supports {:?}", types::VERSIONS);
            return Err(e);
        }
        let too_old = match command {
            Command::Check => ["0.3.0", "0.3.1"].contains(&asked),
            Command::Gc | Command::Status => asked != "1.1.0",
            _ => false,
        };
        if too_old {
            let msg = format!("config version does not allow {}", command.name());
            return Err(Error::new(types::INCOMPATIBLE_VERSION, msg));
        }
        let name = config["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            return Err(Error::config("missing network name:"));
        }
        if !is_identifier(name) {
            return Err(Error::config(format!("invalid characters found in network name: {name}")));
        }
        if matches!(command, Command::Add | Command::Check | Command::Del) {
            check_ids(&env("CNI_CONTAINERID"), &env("CNI_IFNAME"))?;
        }
        let netns = env("CNI_NETNS");
        if command == Command::Add && netns::is_host(Path::new(&netns)) {
            let msg = format!("plugin's netns and netns from CNI_NETNS should not be the same: {netns:?}");
            return Err(Error::new(types::INVALID_ENVIRONMENT, msg));
        }
        let raw_args = env("CNI_ARGS");
        Ok((
            command,
            Request {
                container_id: env("CNI_CONTAINERID"),
                netns,
                ifname: env("CNI_IFNAME"),
                args: types::parse_args(&raw_args)?,
                raw_args,
                path: env("CNI_PATH").split(':').filter(|p| !p.is_empty()).map(PathBuf::from).collect(),
                config,
            },
        ))
    })();
    parsed.map_err(|e| (version, e))
}

/// Identifiers become file names: letters, digits, `_`, `.`, `-`, beginning with a letter or digit.
fn is_identifier(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_ids(container_id: &str, ifname: &str) -> Result<(), Error> {
    let bad = |msg: String| Err(Error::new(types::INVALID_ENVIRONMENT, msg));
    if !is_identifier(container_id) {
        return bad(format!("invalid characters in containerID: {container_id}"));
    }
    if ifname.len() > 15 {
        return bad(format!(
            "interface name is too long: interface name should be less than 16 characters: {ifname}"
        ));
    }
    if ifname == "." || ifname == ".." {
        return bad("interface name is . or ..".into());
    }
    if ifname.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return bad(format!("interface name contains / or : or whitespace characters: {ifname}"));
    }
    Ok(())
}

/// Calls the IPAM plugin the configuration names.
fn ipam(command: Command, request: &Request) -> Result<Option<Success>, Error> {
    match request.config["ipam"]["type"].as_str() {
        Some(kind) if !kind.is_empty() => invoke(kind, command, request),
        _ => Ok(None),
    }
}

/// Writes `value` to a sysctl of this thread's network namespace.
fn sysctl(key: &str, value: &str) -> Result<(), Error> {
    std::fs::write(format!("/proc/sys/{key}"), value).doing(|| format!("failed to set {key} to {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env_of(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> String {
        move |name| pairs.iter().find(|(k, _)| *k == name).map_or(String::new(), |(_, v)| (*v).to_owned())
    }

    #[test]
    fn bad_calls_are_answered_with_the_codes_of_the_specification() {
        type Env = &'static [(&'static str, &'static str)];
        const FULL: Env = &[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/nowhere"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt"),
        ];
        const LONG: Env = &[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "sixteencharacter"),
            ("CNI_PATH", "/"),
        ];
        let cases: &[(Env, &str, u32, &str)] = &[
            (&[("CNI_COMMAND", "WAT")], "{}", 4, "unknown CNI_COMMAND: WAT"),
            (
                &[("CNI_COMMAND", "DEL"), ("CNI_PATH", "/")],
                "{}",
                4,
                "required env variables [CNI_CONTAINERID,CNI_IFNAME] missing",
            ),
            (FULL, "{", 6, "error unmarshall network config"),
            (FULL, r#"{"name":"n"}"#, 1, "incompatible CNI versions"),
            (FULL, r#"{"name":"n","cniVersion":"2.0.0"}"#, 1, "incompatible CNI versions"),
            (FULL, r#"{"cniVersion":"1.0.0"}"#, 7, "missing network name"),
            (FULL, r#"{"cniVersion":"1.0.0","name":"../x"}"#, 7, "invalid characters"),
            (LONG, r#"{"cniVersion":"1.0.0","name":"x"}"#, 4, "interface name is too long"),
            (
                &[("CNI_COMMAND", "GC"), ("CNI_PATH", "/")],
                r#"{"cniVersion":"1.0.0","name":"x"}"#,
                1,
                "config version does not allow GC",
            ),
        ];
        for (env, input, code, msg) in cases {
            let e = answer("loopback", &env_of(env), input).1.unwrap_err();
            assert_eq!(e.code, *code, "{e}");
            assert!(e.msg.contains(msg), "{} lacks {msg}", e.msg);
        }
    }

    #[test]
    fn tells_its_versions() {
        let env = env_of(&[("CNI_COMMAND", "VERSION")]);
        let out = answer("bridge", &env, r#"{"cniVersion":"0.4.0"}"#).1.unwrap().unwrap();
        assert_eq!(out["cniVersion"], "0.4.0");
        assert!(out["supportedVersions"].as_array().unwrap().contains(&json!("1.0.0")));
    }
}
