//! What a policy's values may be. They are judged while they are read, so that an error has file, line and key, and so that
//! nobody hears of a value that cannot work only when a plugin is added, called or handed over.
//!
//! By the convention of `shipote_config` a message brings its way out after a semicolon.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;

use minisign_verify::PublicKey;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::{Cardinality, Policy};

/// A page of WebAssembly: no memory is smaller.
const PAGE: u64 = 64 << 10;

fn least<T: Copy + PartialOrd + Display, E: Error>(value: T, least: T, what: &str) -> Result<T, E> {
    if value < least {
        return Err(E::custom(format!("{value} is too little; give {least} {what}")));
    }
    Ok(value)
}

pub(super) fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    least(shipote_units::millis(deserializer)?, 1, "or more milliseconds")
}

pub(super) fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    least(shipote_units::size(deserializer)?, PAGE, "or more bytes, a page of WebAssembly")
}

pub(super) fn calls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    least(u32::deserialize(deserializer)?, 1, "or more calls")
}

pub(super) fn latency<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    // Less would have every canary fail that is not faster than what is at work.
    least(u32::deserialize(deserializer)?, 100, "or more percent of the time of the version at work")
}

pub(super) fn instances<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let value = u32::deserialize(deserializer)?;
    if (1..=Policy::INSTANCES_MAX).contains(&value) {
        return Ok(value);
    }
    Err(D::Error::custom(format!("a pool cannot have {value} instances; give 1 to {}", Policy::INSTANCES_MAX)))
}

pub(super) fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let value = u32::deserialize(deserializer)?;
    if value <= 100 {
        return Ok(value);
    }
    Err(D::Error::custom(format!("{value} percent are more than all; give 0 to 100")))
}

/// The values of a list that all pass; of the first that does not, what is wrong and what is allowed.
fn list<'de, D, F>(deserializer: D, wrong: F) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
    F: Fn(&str) -> Option<String>,
{
    let values = Vec::<String>::deserialize(deserializer)?;
    match values.iter().find_map(|value| wrong(value)) {
        None => Ok(values),
        Some(reason) => Err(D::Error::custom(reason)),
    }
}

pub(super) fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    list(deserializer, |key| {
        let error = PublicKey::from_base64(key).err()?;
        Some(format!("{key:?} is no public key of minisign ({error}); copy the second line of minisign.pub"))
    })
}

pub(super) fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    list(deserializer, |host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        let name = host.strip_prefix("*.").unwrap_or(host);
        let matches = host == "*" || address || !(name.is_empty() || name.contains([':', '/', '*', ' ', '@']));
        (!matches).then(|| {
            format!(
                "{host:?} is no host; give names without scheme, port and path: `example.com`, `*.example.com` or `*`"
            )
        })
    })
}

/// Whether this has the form of an interface's full name, `namespace:package/interface`, with or without a version.
fn interface(name: &str) -> bool {
    let Some((package, interface)) = name.split_once('/') else { return false };
    let Some((namespace, package)) = package.split_once(':') else { return false };
    let interface = interface.split_once('@').map_or(interface, |(interface, _)| interface);
    let word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    word(namespace) && word(package) && word(interface)
}

const INTERFACE: &str =
    "no interface; give its full name as the component imports it, such as `wasi:cli/environment@0.2.3`";

pub(super) fn interfaces<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    list(deserializer, |name| (!interface(name)).then(|| format!("{name:?} is {INTERFACE}")))
}

pub(super) fn sockets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Cardinality>, D::Error> {
    let sockets = BTreeMap::<String, Cardinality>::deserialize(deserializer)?;
    match sockets.keys().find(|name| !interface(name)) {
        None => Ok(sockets),
        Some(name) => Err(D::Error::custom(format!("{name:?} is {INTERFACE}"))),
    }
}

/// Policies by name or digest; half a digest would hold for nothing.
pub(super) fn plugins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Policy>, D::Error> {
    let plugins = BTreeMap::<String, Policy>::deserialize(deserializer)?;
    let whole =
        |digest: &str| digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match plugins.keys().find(|key| key.strip_prefix("sha256:").is_some_and(|digest| !whole(digest))) {
        None => Ok(plugins),
        Some(key) => Err(D::Error::custom(format!(
            "{key:?} is no digest; give all 64 digits after `sha256:`, in lower case, as `shipote plugin show` has them"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::PolicyTable;

    #[test]
    fn a_value_that_cannot_work_is_refused_with_place_and_what_is_allowed() {
        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let digest = "ea248382c023d9f39d24abee4512a2fb7caf743a67d9ab35538ba7c958c106f1";
        for (value, key, allowed) in [
            ("deadline_ms = 0", "deadline_ms", "1 or more milliseconds"),
            ("memory_bytes = 0", "memory_bytes", "65536 or more bytes"),
            ("memory_bytes = 65535", "memory_bytes", "65536 or more bytes"),
            ("instances = 0", "instances", "1 to 1024"),
            ("instances = 1025", "instances", "1 to 1024"),
            ("signed_by = [\"junk\"]", "signed_by", "minisign.pub"),
            (&format!("signed_by = [\"{key}\", \"{}\"]", &key[1..]), "signed_by", "minisign.pub"),
            ("signed_by = [\"\"]", "signed_by", "minisign.pub"),
            ("wasi_stubs = [\"environment\"]", "wasi_stubs", "full name"),
            ("sockets = { leaf = \"any\" }", "sockets", "full name"),
            ("http.allowed_hosts = [\"https://example.com\"]", "http.allowed_hosts", "*.example.com"),
            ("http.allowed_hosts = [\"example.com:443\"]", "http.allowed_hosts", "*.example.com"),
            ("http.allowed_hosts = [\"\"]", "http.allowed_hosts", "*.example.com"),
            ("http.allowed_hosts = [\"a.*.com\"]", "http.allowed_hosts", "*.example.com"),
            ("http.default_timeout_ms = 0", "http.default_timeout_ms", "1 or more"),
            ("canary.calls = 0", "canary.calls", "1 or more"),
            ("canary.failures_percent = 101", "canary.failures_percent", "0 to 100"),
            ("canary.latency_percent = 99", "canary.latency_percent", "100 or more"),
        ] {
            let text = format!("[plugins.other]\n[plugins.jwt]\n{value}\n");
            let error = PolicyTable::from_toml(&text, "policy.toml").unwrap_err().to_string();
            let place = format!(": plugins.jwt.{key}");
            assert!(
                error.starts_with("policy.toml:3:") && error.contains(&place) && error.contains(allowed),
                "{error}"
            );
        }
        let cut = format!("[plugins.\"sha256:{}\"]\n", &digest[1..]);
        let error = PolicyTable::from_toml(&cut, "policy.toml").unwrap_err().to_string();
        assert!(error.contains(&digest[1..]) && error.contains("64 digits"), "{error}");
        let error = PolicyTable::from_json(r#"{"jwt": {"allowed_hosts": ["http://x"]}}"#).unwrap_err().to_string();
        assert!(error.contains("http://x"), "{error}");
        let good = format!(
            "[plugins.jwt]\ndeadline_ms = 1\nmemory_bytes = 65536\ninstances = 1024\nfuel = 0\nstate_bytes = 0\n\
             signed_by = [\"{key}\"]\nwasi_stubs = [\"wasi:cli/environment@0.2.3\"]\nsockets = {{ \"a:b/c\" = \"any\" }}\n\
             http.allowed_hosts = [\"*\", \"x\", \"*.example.com\", \"10.0.0.1\", \"::1\", \"[::1]\"]\n\
             canary = {{ calls = 1, failures_percent = 100, latency_percent = 100 }}\n[plugins.\"sha256:{digest}\"]\n"
        );
        PolicyTable::from_toml(&good, "policy.toml").unwrap();
    }
}
