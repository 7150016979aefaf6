//! What an operator lets a plugin do. Nothing, unless a policy says so.
//!
//! Two spellings: `policy.json`, whose keys are file stems and whose values are [`HttpPolicy`] objects, and TOML
//! (`[plugins.NAME]`, or `[plugins."sha256:…"]` for one exact component), which says all of [`Policy`].
//! A digest's entry wins over a name's, TOML over JSON. An absent file is deny-all, a malformed one an error.

mod bounds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shipote_config::ConfigError;

/// Why policies could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file is there but unreadable.
    #[error("read policy {path}: {source}; make it readable for the service, or remove it to deny everything")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not the JSON that was expected.
    #[error("read policy {path}: {source}; it must be {{\"<file stem>\": {{\"allowed_hosts\": [..]}}}}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Not the TOML that was expected; it names the file.
    #[error("read policy {0}")]
    Toml(Box<ConfigError>),
}

/// What `http-fetch` may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpPolicy {
    /// `verify-tls: false` is honoured instead of refused.
    pub allow_insecure: bool,
    /// Host names: literal, `*.example.com` (any name below `example.com`, not itself), or `*`. Empty: none.
    #[serde(deserialize_with = "bounds::hosts")]
    pub allowed_hosts: Vec<String>,
    /// Bytes of a request's and of a response's body.
    #[serde(deserialize_with = "shipote_units::size")]
    pub max_body_size: u32,
    /// Milliseconds, where the call gives none.
    #[serde(deserialize_with = "bounds::milliseconds")]
    pub default_timeout_ms: u32,
    /// Redirects followed, where the call gives no number.
    pub default_follow_redirects: u32,
}

impl Default for HttpPolicy {
    fn default() -> Self {
        Self {
            allow_insecure: false,
            allowed_hosts: Vec::new(),
            max_body_size: 1 << 20,
            default_timeout_ms: 30_000,
            default_follow_redirects: 5,
        }
    }
}

impl HttpPolicy {
    /// Whether `host` (a name or an address, no port) may be reached. A trailing dot and case don't matter.
    #[must_use]
    pub fn allows_host(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        !host.is_empty()
            && self.allowed_hosts.iter().any(|pattern| match pattern.strip_prefix("*.") {
                _ if pattern == "*" => true,
                None => pattern.eq_ignore_ascii_case(host),
                Some(parent) => host
                    .len()
                    .checked_sub(parent.len() + 1)
                    .filter(|&cut| cut > 0 && host.is_char_boundary(cut))
                    .is_some_and(|cut| host[cut..].starts_with('.') && host[cut + 1..].eq_ignore_ascii_case(parent)),
            })
    }
}

/// Bytes of input that a handler is handed at most; what is cut off shows as `truncated`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputLimits {
    /// Request body.
    #[serde(deserialize_with = "shipote_units::size")]
    pub request_body: u32,
    /// Response body.
    #[serde(deserialize_with = "shipote_units::size")]
    pub response_body: u32,
    /// `l4-bytes`.
    #[serde(deserialize_with = "shipote_units::size")]
    pub l4_bytes: u32,
    /// `l4-peek`.
    #[serde(deserialize_with = "shipote_units::size")]
    pub peek: u32,
}

impl Default for InputLimits {
    fn default() -> Self {
        Self { request_body: 1 << 20, response_body: 1 << 20, l4_bytes: 64 << 10, peek: 8 << 10 }
    }
}

/// How many plugins implement an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cardinality {
    /// 1.
    ExactlyOne,
    /// 0 or 1.
    AtMostOne,
    /// 1 or more.
    AtLeastOne,
    /// 0 or more.
    Any,
}

impl Cardinality {
    /// As it is written in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactlyOne => "exactly-one",
            Self::AtMostOne => "at-most-one",
            Self::AtLeastOne => "at-least-one",
            Self::Any => "any",
        }
    }

    /// Whether `count` plugins are as many as it should be.
    #[must_use]
    pub fn admits(self, count: usize) -> bool {
        match self {
            Self::ExactlyOne => count == 1,
            Self::AtMostOne => count <= 1,
            Self::AtLeastOne => count >= 1,
            Self::Any => true,
        }
    }
}

/// When a canary has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CanaryPolicy {
    /// Calls after which it is judged by its share of failures and by its latency. Fewer are counted as if they were so
    /// many, so that what fails from the start does not get them all.
    #[serde(deserialize_with = "bounds::calls")]
    pub calls: u32,
    /// Percent of its calls that may trap, overrun their deadline, run out of fuel or answer what the ABI does not allow.
    #[serde(deserialize_with = "bounds::percent")]
    pub failures_percent: u32,
    /// Its 95th percentile of time a call, in percent of that of the version at work.
    #[serde(deserialize_with = "bounds::latency")]
    pub latency_percent: u32,
    /// Microseconds that it may be slower in any case.
    pub latency_slack_us: u32,
}

impl Default for CanaryPolicy {
    fn default() -> Self {
        Self { calls: 100, failures_percent: 1, latency_percent: 200, latency_slack_us: 500 }
    }
}

/// Everything that a policy says about one plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Milliseconds a call may take.
    #[serde(deserialize_with = "bounds::milliseconds")]
    pub deadline_ms: u32,
    /// Bytes of linear memory an instance may have.
    #[serde(deserialize_with = "bounds::memory")]
    pub memory_bytes: u64,
    /// Instances of one pool.
    #[serde(deserialize_with = "bounds::instances")]
    pub instances: u32,
    /// Units of work a call may take, about one an instruction; 0: they are not counted, which is faster.
    pub fuel: u64,
    /// WASI interfaces, by full name, that the component may import; each is a stub that traps when called.
    #[serde(deserialize_with = "bounds::interfaces")]
    pub wasi_stubs: Vec<String>,
    /// Bytes that it may keep from call to call (`shipote:state/store`), all its instances and versions together; 0: a component
    /// that wants to keep something is refused.
    #[serde(deserialize_with = "shipote_units::size")]
    pub state_bytes: u64,
    /// Public keys of minisign, in base64; if there are any, a component must be signed with one of them.
    #[serde(deserialize_with = "bounds::keys")]
    pub signed_by: Vec<String>,
    /// Interfaces of other plugins that the component may call, each with how many plugins are to implement it.
    #[serde(deserialize_with = "bounds::sockets")]
    pub sockets: BTreeMap<String, Cardinality>,
    /// Input sizes.
    pub limits: InputLimits,
    /// `http-fetch`.
    pub http: HttpPolicy,
    /// When a canary of it goes back by itself.
    pub canary: CanaryPolicy,
}

impl Policy {
    /// Most instances of a pool.
    pub const INSTANCES_MAX: u32 = 1024;
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            deadline_ms: 10,
            memory_bytes: 32 << 20,
            instances: 4,
            fuel: 0,
            wasi_stubs: Vec::new(),
            state_bytes: 0,
            signed_by: Vec::new(),
            sockets: BTreeMap::new(),
            limits: InputLimits::default(),
            http: HttpPolicy::default(),
            canary: CanaryPolicy::default(),
        }
    }
}

/// Every plugin's policy, keyed by name (file stem) or by `sha256:<hex>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyTable {
    /// The entries.
    #[serde(default, deserialize_with = "bounds::plugins")]
    pub plugins: BTreeMap<String, Policy>,
}

impl PolicyTable {
    /// Parses `policy.json`.
    ///
    /// # Errors
    /// When the text is not an object of [`HttpPolicy`] objects.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let table: BTreeMap<String, HttpPolicy> = serde_json::from_str(text)?;
        Ok(Self {
            plugins: table.into_iter().map(|(stem, http)| (stem, Policy { http, ..Policy::default() })).collect(),
        })
    }

    /// Parses our TOML; errors call it `name`.
    ///
    /// # Errors
    /// With line and key, also for an unknown key, for which the nearest known one is named.
    pub fn from_toml(text: &str, name: &str) -> Result<Self, ConfigError> {
        shipote_config::parse(text, name)
    }

    /// Reads `policy.json` and then `policy.toml` from `dir`; entries of the second replace those of the first.
    ///
    /// # Errors
    /// Naming the file that is there but cannot be used.
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        let mut table = Self::default();
        let path = dir.join("policy.json");
        if let Some(text) = read(&path)? {
            table = Self::from_json(&text).map_err(|source| PolicyError::Json { path, source })?;
        }
        let path = dir.join("policy.toml");
        if let Some(text) = read(&path)? {
            let name = path.display().to_string();
            let own = Self::from_toml(&text, &name).map_err(|source| PolicyError::Toml(Box::new(source)))?;
            table.plugins.extend(own.plugins);
        }
        Ok(table)
    }

    /// The policy of the component `digest` (`sha256:<hex>`) under the name `name`; deny-all when there is none.
    #[must_use]
    pub fn get(&self, name: &str, digest: &str) -> Policy {
        self.plugins.get(digest).or_else(|| self.plugins.get(name)).cloned().unwrap_or_default()
    }
}

fn read(path: &Path) -> Result<Option<String>, PolicyError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PolicyError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_allowed_by_default() {
        let policy = PolicyTable::default().get("any", "sha256:00");
        assert_eq!(policy, Policy::default());
        assert!(!policy.http.allow_insecure && !policy.http.allows_host("example.com"));
        assert_eq!((policy.http.max_body_size, policy.http.default_timeout_ms), (1 << 20, 30_000));
        assert_eq!(policy.http.default_follow_redirects, 5);
        assert!(policy.wasi_stubs.is_empty() && policy.fuel == 0 && policy.state_bytes == 0);
    }

    #[test]
    fn the_nixos_module_knows_every_key() {
        let module = include_str!("../../../../nixos-module/assertions.nix");
        let policy = serde_json::to_value(Policy::default()).unwrap();
        for key in policy.as_object().unwrap().keys() {
            assert!(module.contains(&format!("        \"{key}\"\n")), "{key} is missing in forPlugins");
        }
    }

    #[test]
    fn host_patterns() {
        let policy = HttpPolicy {
            allowed_hosts: ["api.internal", "*.example.com"].map(String::from).to_vec(),
            ..HttpPolicy::default()
        };
        for (host, allowed) in [
            ("api.internal", true),
            ("API.Internal.", true),
            ("api.internal.evil", false),
            ("a.example.com", true),
            ("b.c.example.com", true),
            ("example.com", false),
            (".example.com", false),
            ("aexample.com", false),
            ("\u{e9}xample.com", false),
            ("", false),
        ] {
            assert_eq!(policy.allows_host(host), allowed, "{host:?}");
        }
        let any = HttpPolicy { allowed_hosts: vec!["*".into()], ..HttpPolicy::default() };
        assert!(any.allows_host("anything") && !any.allows_host(""));
    }

    #[test]
    fn json_fills_in_what_is_left_out() {
        let table = PolicyTable::from_json(r#"{"edge": {"allowed_hosts": ["x.y"], "max_body_size": 65536}}"#).unwrap();
        let edge = table.get("edge", "sha256:00");
        assert_eq!(edge.http.allowed_hosts, ["x.y"]);
        assert_eq!((edge.http.max_body_size, edge.http.default_timeout_ms), (65_536, 30_000));
    }

    #[test]
    fn a_digest_wins_over_a_name_and_an_unknown_key_is_refused() {
        let table = PolicyTable::from_toml(
            "[plugins.edge]\ndeadline_ms = 5\n[plugins.\"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"]\ndeadline_ms = 7\nhttp.allowed_hosts = [\"h\"]\n",
            "policy.toml",
        )
        .unwrap();
        assert_eq!(table.get("edge", "sha256:bb").deadline_ms, 5);
        assert_eq!(table.get("edge", &format!("sha256:{}", "a".repeat(64))).deadline_ms, 7);
        for (text, parts) in [
            ("[plugins.edge]\ndeadline = 5\n", ["policy.toml", "deadline_ms"]),
            ("[plugins.edge]\nhttp.allowed_host = []\n", ["policy.toml", "allowed_hosts"]),
            ("[plugins.edge]\nstate_bytes = -1\n", ["policy.toml", "state_bytes"]),
        ] {
            let error = PolicyTable::from_toml(text, "policy.toml").unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        let error = PolicyTable::from_json(r#"{"edge": {"allowed_host": ["h"]}}"#).unwrap_err().to_string();
        assert!(error.contains("allowed_hosts"), "{error}");
    }

    #[test]
    fn an_absent_file_denies_and_a_malformed_one_is_named() {
        let dir = std::env::temp_dir().join(format!("plugin-abi-policy-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(PolicyTable::load(&dir).unwrap(), PolicyTable::default());
        std::fs::write(dir.join("policy.json"), "{ this is not json").unwrap();
        let error = PolicyTable::load(&dir).unwrap_err().to_string();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(error.contains("policy.json"), "{error}");
    }
}
