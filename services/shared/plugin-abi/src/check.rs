//! The rules by which a component is refused. All that are broken are reported, not only the first, each with what its
//! author can do.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::kind::Kind;
use crate::metadata::Metadata;
use crate::policy::Policy;
use crate::shape::Shape;
use crate::{
    ABI_VERSION, HOST_INTERFACE, LINK_INTERFACE, REGISTRY_INTERFACE, STATE_INTERFACE, TYPES_INTERFACE, inspect,
};

/// Middlewares that one component may offer.
pub const MAX_EXPORTS: usize = 256;

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which rule, for matching: `abi-version`, `import`, …
    pub rule: String,
    /// What is wrong and the way out.
    pub reason: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.reason)
    }
}

impl Refusal {
    /// A refusal under the rule `rule`.
    pub fn new(rule: &str, reason: impl Into<String>) -> Self {
        Self { rule: rule.to_owned(), reason: reason.into() }
    }
}

/// Rules that need no more than the component's names. Nothing of it is run if one is broken.
#[must_use]
pub fn check_shape(shape: &Shape, policy: &Policy) -> Vec<Refusal> {
    let (mut refusals, kind) = (Vec::new(), Kind::of(shape));
    for import in &shape.imports {
        if kind != Kind::Plugin {
            if !kind.may_import(import) && !policy.wasi_stubs.contains(import) {
                let may = kind.importable();
                refusals.push(Refusal::new("import", format!("imports {import:?}; a {kind} may import {may}")));
            }
            continue;
        }
        let known = [HOST_INTERFACE, TYPES_INTERFACE, LINK_INTERFACE].contains(&import.as_str());
        let keeps = import == STATE_INTERFACE && policy.state_bytes > 0;
        if known || keeps || policy.wasi_stubs.contains(import) || policy.sockets.contains_key(import) {
            continue;
        }
        refusals.push(Refusal::new("import", import_reason(import)));
    }
    if kind == Kind::Plugin && !shape.exports.iter().any(|export| export == REGISTRY_INTERFACE) {
        refusals.push(Refusal::new(
            "registry",
            format!(
                "no export {REGISTRY_INTERFACE}; add it to the world and implement get-metadata (a command would export \
                 wasi:cli/run@0.2, a filter shipote:filter/filter@0.1.0)"
            ),
        ));
    }
    refusals
}

fn import_reason(import: &str) -> String {
    if import.starts_with("vane:host/") || import.starts_with("vane:plugin/") {
        format!("imports {import:?}, this host offers {HOST_INTERFACE}; build against that version")
    } else if import.starts_with("wasi:") {
        format!(
            "imports {import:?}, which no plugin gets; build without WASI (componentize with its stubs), or let the policy name it in wasi_stubs: it then traps when called"
        )
    } else if import == STATE_INTERFACE {
        format!("imports {import:?}, and its policy lets it keep nothing; let it say state_bytes, such as 1048576")
    } else if is_interface(import) {
        format!(
            "imports {import:?}; a plugin may import {HOST_INTERFACE}, and what other plugins export only where the policy names it in sockets"
        )
    } else {
        format!("imports {import:?}; a plugin may import {HOST_INTERFACE} alone")
    }
}

/// Whether a name is a package's interface, such as `my:package/example@1.0.0`.
fn is_interface(name: &str) -> bool {
    name.split_once(':').is_some_and(|(_, rest)| rest.contains('/'))
}

/// Interfaces that the component offers to other plugins.
pub fn plugs(shape: &Shape) -> impl Iterator<Item = &str> {
    let known = |name: &str| ["vane:", "wasi:", "shipote:"].iter().any(|package| name.starts_with(package));
    shape.exports.iter().map(String::as_str).filter(move |name| is_interface(name) && !known(name))
}

/// Rules on the name and version that a command or filter is given, as it says none of itself.
#[must_use]
pub fn check_given(metadata: &Metadata) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    check_name(&metadata.name, &mut refusals);
    check_version(&metadata.version, &mut refusals);
    refusals
}

/// Rules on what the component says about itself, given what it exports.
#[must_use]
pub fn check_metadata(metadata: &Metadata, shape: &Shape) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    check_name(&metadata.name, &mut refusals);
    check_version(&metadata.version, &mut refusals);
    check_abi(&metadata.abi_version, &mut refusals);
    if metadata.exports.is_empty() && plugs(shape).next().is_none() {
        let reason =
            "get-metadata lists no export, and nothing is offered to other plugins; list each middleware with its kind";
        refusals.push(Refusal::new("exports", reason));
    }
    if metadata.exports.len() > MAX_EXPORTS {
        let found = metadata.exports.len();
        refusals.push(Refusal::new(
            "exports",
            format!("{found} exports, at most {MAX_EXPORTS} are accepted; split the plugin"),
        ));
        return refusals;
    }
    let mut names = BTreeSet::new();
    for export in &metadata.exports {
        let name = &export.name;
        if name.is_empty() || name.len() > 128 {
            refusals.push(Refusal::new(
                "export-name",
                format!("an export's name has {} bytes; give it 1 to 128", name.len()),
            ));
            continue;
        }
        // It is shown on terminals, in logs and in figures.
        if name.chars().any(char::is_control) {
            refusals.push(Refusal::new(
                "export-name",
                format!("export {name:?} has control characters in its name; leave them out"),
            ));
        }
        if !names.insert(name) {
            refusals.push(Refusal::new(
                "export-name",
                format!("two exports are called {name:?}; rules could not tell them apart: rename one"),
            ));
        }
        let interface = export.kind.interface();
        if !shape.exports.iter().any(|known| known == interface) {
            refusals.push(Refusal::new("handler", format!("export {name:?} is {}, but the component does not export {interface}; export it or change the kind", export.kind)));
        }
        if export.needs_streaming_body {
            refusals.push(Refusal::new(
                "streaming",
                format!("export {name:?} sets needs-streaming-body, which ABI {ABI_VERSION} reserves; set it to false"),
            ));
        }
        for path in &export.inspects {
            if inspect::path_type(path).is_none() {
                let path = short(path);
                let near = inspect::KNOWN
                    .iter()
                    .map(|(known, _)| *known)
                    .find(|known| known.ends_with(&path) || path.starts_with(known));
                let hint = near.map_or_else(
                    || "known paths begin with conn.".to_owned(),
                    |near| format!("did you mean {near:?}?"),
                );
                refusals.push(Refusal::new(
                    "inspects",
                    format!("export {name:?} inspects {path:?}, which does not exist; {hint}"),
                ));
            }
        }
    }
    refusals
}

/// As much of what a component says as a refusal repeats.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A plugin's name becomes a key in policies, rules and paths of objects, so it is held to what is safe in all of them.
fn check_name(name: &str, refusals: &mut Vec<Refusal>) {
    let fits = (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
    if !fits {
        let shown = short(name);
        refusals.push(Refusal::new("name", format!("{shown:?} is no name for a plugin; use 1 to 64 of a-z, 0-9, '-', '_', '.', beginning with a letter or digit")));
    }
}

fn check_version(version: &str, refusals: &mut Vec<Refusal>) {
    if let Err(error) = semver::Version::parse(version) {
        let version = short(version);
        refusals.push(Refusal::new("version", format!("{version:?} is no semantic version ({error}); write 1.2.3")));
    }
}

fn check_abi(version: &str, refusals: &mut Vec<Refusal>) {
    match semver::Version::parse(version) {
        Err(error) => refusals.push(Refusal::new(
            "abi-version",
            format!("{:?} is no semantic version ({error}); write {ABI_VERSION}", short(version)),
        )),
        Ok(found) if found.major != ABI_VERSION.major => refusals.push(Refusal::new(
            "abi-version",
            format!("built for ABI {found}, this host speaks {ABI_VERSION}; rebuild against vane:plugin@{ABI_VERSION}"),
        )),
        Ok(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{MiddlewareExport, MiddlewareKind};

    fn export(name: &str, kind: MiddlewareKind) -> MiddlewareExport {
        MiddlewareExport {
            name: name.into(),
            kind,
            stateless: true,
            needs_body: false,
            inspects: vec![],
            needs_streaming_body: false,
        }
    }

    fn good() -> (Metadata, Shape) {
        let metadata = Metadata {
            name: "stamp".into(),
            version: "1.2.3".into(),
            abi_version: "0.1.0".into(),
            exports: vec![export("stamp", MiddlewareKind::L7Request)],
        };
        let exports = vec![REGISTRY_INTERFACE.into(), MiddlewareKind::L7Request.interface().into()];
        (metadata, Shape { imports: vec![HOST_INTERFACE.into(), TYPES_INTERFACE.into()], exports })
    }

    #[test]
    fn a_good_plugin_is_not_refused() {
        let (metadata, shape) = good();
        assert_eq!(check_shape(&shape, &Policy::default()), []);
        assert_eq!(check_metadata(&metadata, &shape), []);
    }

    #[test]
    fn each_rule_refuses_by_name() {
        type Change = fn(&mut Metadata);
        let table: [(&str, Change); 12] = [
            ("name", |m| m.name = "Sta mp".into()),
            ("name", |m| m.name = "../stamp".into()),
            ("name", |m| m.name = "x".repeat(10_000)),
            ("version", |m| m.version = "1.2".into()),
            ("abi-version", |m| m.abi_version = "1.0.0".into()),
            ("abi-version", |m| m.abi_version = "latest".into()),
            ("exports", |m| m.exports.clear()),
            ("export-name", |m| m.exports.push(m.exports[0].clone())),
            ("export-name", |m| m.exports[0].name = "a\u{1b}[2J".into()),
            ("handler", |m| m.exports[0].kind = MiddlewareKind::L4Peek),
            ("streaming", |m| m.exports[0].needs_streaming_body = true),
            ("inspects", |m| m.exports[0].inspects.push("tls.sni".into())),
        ];
        for (rule, change) in table {
            let (mut metadata, shape) = good();
            change(&mut metadata);
            let refusals = check_metadata(&metadata, &shape);
            assert_eq!(refusals.iter().map(|r| r.rule.as_str()).collect::<Vec<_>>(), [rule], "{refusals:?}");
            assert!(refusals[0].reason.len() < 400, "{refusals:?}");
        }
    }

    #[test]
    fn a_refusal_repeats_little_of_what_it_refuses() {
        let (mut metadata, shape) = good();
        let much = "x".repeat(1 << 20);
        metadata.version.clone_from(&much);
        metadata.abi_version.clone_from(&much);
        metadata.exports[0].inspects = vec![much.clone(); 3];
        metadata.exports.push(export(&much, MiddlewareKind::L7Request));
        let refusals = check_metadata(&metadata, &shape);
        assert_eq!(refusals.len(), 6, "{}", refusals.len());
        assert!(refusals.iter().all(|refusal| refusal.reason.len() < 400));
    }

    #[test]
    fn all_broken_rules_are_reported_at_once() {
        let (mut metadata, shape) = good();
        metadata.version = "x".into();
        metadata.abi_version = "9.0.0".into();
        metadata.exports[0].needs_streaming_body = true;
        assert_eq!(check_metadata(&metadata, &shape).len(), 3);
    }

    #[test]
    fn imports_need_a_policy_that_names_them() {
        let (_, mut shape) = good();
        shape.imports.push("wasi:cli/environment@0.2.3".into());
        shape.imports.push("evil:net/raw".into());
        shape.imports.push("vane:host/host@0.2.0".into());
        let policy = Policy { wasi_stubs: vec!["wasi:cli/environment@0.2.3".into()], ..Policy::default() };
        assert_eq!(check_shape(&shape, &Policy::default()).len(), 3);
        let refusals = check_shape(&shape, &policy);
        assert_eq!(refusals.len(), 2);
        assert!(refusals[0].reason.contains("evil:net/raw") && refusals[1].reason.contains(HOST_INTERFACE));
        shape.exports.clear();
        assert_eq!(check_shape(&shape, &policy)[2].rule, "registry");
    }
}
