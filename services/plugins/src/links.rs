//! What plugins offer to each other and want of each other, and whether that fits.
//!
//! A plugin offers the interfaces that it exports beside the ABI's (its plugs) and wants those that its policy lets it
//! import (its sockets). Types are compared as text, written down when a component is examined: the service itself reads
//! no component. Only versions at work count.

use std::collections::{BTreeMap, BTreeSet};

use semver::VersionReq;
use serde::{Deserialize, Serialize};
use shipote_link::Interface;
use shipote_plugin_abi::check::{self, Refusal};
use shipote_plugin_abi::policy::{Cardinality, Policy};
use shipote_plugin_abi::shape::Shape;
use wasmtime::component::Component;

use crate::store::{Entry, Index, Version};

/// Functions of an interface with their types.
pub(crate) type Face = BTreeMap<String, String>;

/// A component's plugs and sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Links {
    /// Interfaces that it offers.
    #[serde(default)]
    pub(crate) plugs: BTreeMap<String, Face>,
    /// Interfaces that it wants.
    #[serde(default)]
    pub(crate) sockets: BTreeMap<String, Socket>,
}

/// An interface that a component wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Socket {
    pub(crate) cardinality: Cardinality,
    /// As providers have to export them.
    pub(crate) functions: Face,
}

impl Links {
    pub(crate) fn is_empty(&self) -> bool {
        self.plugs.is_empty() && self.sockets.is_empty()
    }
}

/// The library's word for it.
fn cardinality(of: Cardinality) -> shipote_link::Cardinality {
    match of {
        Cardinality::ExactlyOne => shipote_link::Cardinality::ExactlyOne,
        Cardinality::AtMostOne => shipote_link::Cardinality::AtMostOne,
        Cardinality::AtLeastOne => shipote_link::Cardinality::AtLeastOne,
        Cardinality::Any => shipote_link::Cardinality::Any,
    }
}

fn face(interface: &Interface) -> Face {
    let functions = interface.functions().iter();
    functions.map(|function| (function.name().to_owned(), function.signature().to_string())).collect()
}

/// Reads a component's plugs and sockets, and which of its imports are no sockets.
pub(crate) fn read(component: &Component, shape: &Shape, policy: &Policy) -> (Links, Vec<Refusal>) {
    let (mut links, mut wrong) = (Links::default(), Vec::new());
    for plug in check::plugs(shape) {
        let any = shipote_link::Cardinality::Any;
        if let Some(interface) = Interface::exported_by(component, plug, plug, any) {
            links.plugs.insert(plug.to_owned(), face(&interface));
        }
    }
    for (name, wanted) in policy.sockets.iter().filter(|(name, _)| shape.imports.contains(*name)) {
        match Interface::wanted_by(component, name, name, cardinality(*wanted)) {
            Ok(interface) => {
                let socket = Socket { cardinality: *wanted, functions: face(&interface) };
                links.sockets.insert(name.clone(), socket);
            }
            Err(reason) => {
                let reason = format!("{name}: {reason}; see wit/shipote-link, or correct the policy's cardinality");
                wrong.push(Refusal::new("socket", reason));
            }
        }
    }
    (links, wrong)
}

/// The plug by which a plugin offers an interface: that very one, or else the highest version of it that is compatible
/// and not older than what is wanted, as semantic versioning has it.
fn plug_for<'a>(entry: &'a Entry, interface: &str) -> Option<&'a Face> {
    if let Some(plug) = entry.links.plugs.get(interface) {
        return Some(plug);
    }
    let (path, wanted) = interface.split_once('@')?;
    let wanted = VersionReq::parse(&format!("^{wanted}")).ok()?;
    let versions = entry.links.plugs.iter().filter_map(|(name, plug)| {
        let (known, version) = name.split_once('@')?;
        let version = Version::parse(version).ok()?;
        (known == path && wanted.matches(&version)).then_some((version, plug))
    });
    versions.max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, plug)| plug)
}

/// What of a socket's functions a plug lacks or has with other types.
fn misfit(socket: &Socket, plug: &Face) -> Option<String> {
    socket.functions.iter().find_map(|(name, wanted)| match plug.get(name) {
        None => Some(format!("lacks {name}")),
        Some(found) if found != wanted => Some(format!("has {name} as {found} instead of {wanted}")),
        Some(_) => None,
    })
}

/// Versions at work, by name.
pub(crate) fn at_work(index: &Index) -> BTreeMap<&str, (String, &Entry)> {
    let active = index.all().filter(|(_, _, _, active)| *active);
    active.map(|(name, version, entry, _)| (name, (version.to_string(), entry))).collect()
}

/// Names of the plugins at work that implement what a socket wants.
pub(crate) fn providers<'a>(
    plugins: &BTreeMap<&'a str, (String, &Entry)>,
    interface: &str,
    socket: &Socket,
) -> Vec<&'a str> {
    let fits = |entry: &Entry| plug_for(entry, interface).is_some_and(|plug| misfit(socket, plug).is_none());
    plugins.iter().filter(|(_, (_, entry))| fits(entry)).map(|(name, _)| *name).collect()
}

/// Plugins at work that lead to `name` through their sockets, itself not among them.
pub(crate) fn users(index: &Index, name: &str) -> Vec<(String, String)> {
    let plugins = at_work(index);
    let mut found: BTreeSet<&str> = BTreeSet::from([name]);
    loop {
        let more: Vec<&str> = plugins
            .iter()
            .filter(|(user, _)| !found.contains(*user))
            .filter(|(_, (_, entry))| {
                let sockets = entry.links.sockets.iter();
                let mut provided = sockets.flat_map(|(interface, socket)| providers(&plugins, interface, socket));
                provided.any(|provider| found.contains(provider))
            })
            .map(|(user, _)| *user)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.remove(name);
    found
        .into_iter()
        .filter_map(|user| plugins.get(user).map(|(version, _)| (user.to_owned(), version.clone())))
        .collect()
}

/// Everything among the versions at work that does not fit together.
pub(crate) fn faults(index: &Index) -> BTreeSet<String> {
    let plugins = at_work(index);
    let mut faults = BTreeSet::new();
    for (name, (version, entry)) in &plugins {
        for (interface, socket) in &entry.links.sockets {
            let found = providers(&plugins, interface, socket);
            if !socket.cardinality.admits(found.len()) {
                let wanted = socket.cardinality.name();
                let mut fault = format!("{name} {version}: socket {interface} wants {wanted}, {} fit", found.len());
                for (other, (_, entry)) in &plugins {
                    let plug = plug_for(entry, interface);
                    if let Some(reason) = plug.and_then(|plug| misfit(socket, plug)) {
                        fault += &format!(" ({other} {reason})");
                    }
                }
                if found.len() > 1 {
                    fault += &format!(" ({})", found.join(", "));
                }
                faults.insert(fault);
            }
        }
        if let Some(path) = cycle(&plugins, &mut vec![name]) {
            faults.insert(format!("{name} {version}: cycle {}", path.join(" -> ")));
        }
    }
    faults
}

/// The way from the first plugin of `path` back to itself.
fn cycle<'a>(plugins: &BTreeMap<&'a str, (String, &Entry)>, path: &mut Vec<&'a str>) -> Option<Vec<&'a str>> {
    let (_, entry) = plugins.get(path.last()?)?;
    for (interface, socket) in &entry.links.sockets {
        for next in providers(plugins, interface, socket) {
            if path[0] == next {
                return Some(path.iter().copied().chain([next]).collect());
            }
            // A round that does not come by the first plugin is another plugin's fault.
            if !path.contains(&next) {
                path.push(next);
                let found = cycle(plugins, path);
                path.pop();
                if found.is_some() {
                    return found;
                }
            }
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::Index;
    use shipote_plugin_abi::metadata::Metadata;

    /// Name, plugs, sockets.
    type Given<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, Cardinality)]);

    /// An index with these plugins at work.
    pub(crate) fn index(plugins: &[Given<'_>]) -> Index {
        let mut index = Index::default();
        let functions: Face = BTreeMap::from([("value".to_owned(), "func(u32) -> u32".to_owned())]);
        for (name, plugs, sockets) in plugins {
            let socket = |cardinality: &Cardinality| Socket { cardinality: *cardinality, functions: functions.clone() };
            let links = Links {
                plugs: plugs.iter().map(|plug| ((*plug).to_owned(), functions.clone())).collect(),
                sockets: sockets.iter().map(|(name, wanted)| ((*name).to_owned(), socket(wanted))).collect(),
            };
            let metadata = Metadata {
                name: (*name).to_owned(),
                version: "1.0.0".to_owned(),
                abi_version: "0.1.0".to_owned(),
                exports: Vec::new(),
            };
            let entry = Entry {
                digest: format!("sha256:{name}"),
                size: 1,
                added: 1,
                kind: Default::default(),
                metadata,
                signature: None,
                links,
            };
            let version = Version::new(1, 0, 0);
            index.add(name, &version, entry).unwrap();
            index.activate(name, &version).unwrap();
        }
        index
    }

    #[test]
    fn cardinalities_count_what_is_at_work_and_fits() {
        use Cardinality::{Any, AtLeastOne, AtMostOne, ExactlyOne};
        let table = [
            (ExactlyOne, [false, true, false]),
            (AtMostOne, [true, true, false]),
            (AtLeastOne, [false, true, true]),
            (Any, [true, true, true]),
        ];
        for (cardinality, fits) in table {
            for (count, fits) in fits.into_iter().enumerate() {
                let wanted = [("a:b/c", cardinality)];
                let mut plugins: Vec<Given<'_>> = vec![("edge", &[], &wanted)];
                plugins.extend(
                    [("one", &["a:b/c"][..], &[][..]), ("two", &["a:b/c"][..], &[][..])].into_iter().take(count),
                );
                let faults = faults(&index(&plugins));
                assert_eq!(faults.is_empty(), fits, "{cardinality:?} {count}: {faults:?}");
            }
        }
    }

    #[test]
    fn a_later_compatible_version_of_an_interface_will_do_and_no_other() {
        for (wanted, offered, fits) in [
            ("a:b/c@1.0.0", &["a:b/c@1.0.0"][..], true),
            ("a:b/c@1.0.0", &["a:b/c@1.2.0"], true),
            ("a:b/c@1.2.0", &["a:b/c@1.0.0"], false),
            ("a:b/c@1.0.0", &["a:b/c@2.0.0"], false),
            ("a:b/c@1.0.0", &["a:b/d@1.2.0"], false),
            ("a:b/c@0.2.0", &["a:b/c@0.2.7"], true),
            ("a:b/c@0.2.0", &["a:b/c@0.3.0"], false),
            ("a:b/c@1.0.0", &["a:b/c@2.0.0", "a:b/c@1.5.0"], true),
            ("a:b/c@1.0.0", &["a:b/c"], false),
            ("a:b/c", &["a:b/c@1.0.0"], false),
        ] {
            let faults = faults(&index(&[("leaf", offered, &[]), ("edge", &[], &[(wanted, Cardinality::ExactlyOne)])]));
            assert_eq!(faults.is_empty(), fits, "{wanted} {offered:?}: {faults:?}");
        }
    }

    #[test]
    fn a_plug_of_other_types_does_not_count_and_says_so() {
        let mut index = index(&[("edge", &[], &[("a:b/c", Cardinality::ExactlyOne)])]);
        let version = Version::new(1, 0, 0);
        let other = BTreeMap::from([("value".to_owned(), "func(string) -> u32".to_owned())]);
        let links = Links { plugs: BTreeMap::from([("a:b/c".to_owned(), other)]), ..Links::default() };
        let (_, _, entry, _) = index.all().next().unwrap();
        let entry = Entry { links, digest: "sha256:odd".to_owned(), ..entry.clone() };
        index.add("odd", &version, entry).unwrap();
        index.activate("odd", &version).unwrap();
        let faults = faults(&index);
        let fault = faults.first().unwrap();
        assert!(fault.contains("0 fit") && fault.contains("odd has value as func(string) -> u32"), "{fault}");
    }

    #[test]
    fn a_round_is_named_and_users_are_found_through_others() {
        use Cardinality::ExactlyOne;
        let index = index(&[
            ("a", &["x:y/a"], &[("x:y/b", ExactlyOne)]),
            ("b", &["x:y/b"], &[("x:y/a", ExactlyOne)]),
            ("edge", &[], &[("x:y/a", ExactlyOne)]),
        ]);
        let faults: Vec<String> = faults(&index).into_iter().collect();
        assert_eq!(faults, ["a 1.0.0: cycle a -> b -> a", "b 1.0.0: cycle b -> a -> b"]);
        let users: Vec<String> = users(&index, "b").into_iter().map(|(name, _)| name).collect();
        assert_eq!(users, ["a", "edge"]);
    }
}
