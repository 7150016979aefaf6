//! Dictionaries of `org.shipote.Plugins1`. Every one may gain keys.

use serde::{Deserialize, Serialize};
use zbus::{DeserializeDict, SerializeDict, Type};

/// Options of `Add` and `Check`.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct AddOptions {
    /// The name that the plugin must give itself; absent: whatever it says.
    pub name: Option<String>,
    /// File name without its ending, under which a policy may be found before the plugin has said its name.
    pub stem: Option<String>,
    /// Version of a command or filter, which says none of itself; absent: 1.0.0.
    pub version: Option<String>,
    /// Put it to work at once; absent: yes.
    pub activate: Option<bool>,
    /// The component's signature: the text of minisign's file.
    pub signature: Option<String>,
}

/// A version of a plugin, in lists.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for: `plugin`, `command` or `filter`.
    pub kind: String,
    /// `sha256:<hex>` of the component.
    pub digest: String,
    /// Bytes of the component.
    pub size: u64,
    /// When it was added, microseconds since the epoch.
    pub added: u64,
    /// It is the version that a bare name stands for.
    pub active: bool,
    /// As a canary: its share of the calls, in hundredths of a percent; 0: it is none.
    pub share: u32,
    /// Each export as `name (kind)`.
    pub exports: Vec<String>,
    /// The version of its name that is at work; empty: none.
    pub at_work: Option<String>,
    /// In the answer of `Add`: it was there already, and what is at work was left as it was.
    pub known: Option<bool>,
}

/// What `Check` found.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct PluginReport {
    /// Whether it would be taken.
    pub ok: bool,
    /// `sha256:<hex>` of the component.
    pub digest: String,
    /// The plugin's metadata as JSON; empty where it could not be asked.
    pub metadata: String,
    /// What is wrong.
    pub refusals: Vec<RefusalInfo>,
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct RefusalInfo {
    /// Which rule.
    pub rule: String,
    /// What is wrong and the way out.
    pub reason: String,
}

/// All there is to know of a version; beside the descriptor of `Open`, what it takes to use it.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct OpenInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for: `plugin`, `command` or `filter`.
    pub kind: String,
    /// `sha256:<hex>` of the component.
    pub digest: String,
    /// Bytes of the component.
    pub size: u64,
    /// When it was added, microseconds since the epoch.
    pub added: u64,
    /// It is the version that a bare name stands for.
    pub active: bool,
    /// The version of the name that is its canary; empty: none.
    pub canary: String,
    /// The canary's share of the calls, in hundredths of a percent.
    pub share: u32,
    /// When the canary began, microseconds since the epoch.
    pub canary_since: u64,
    /// The engine configuration that the compiled code fits: wasmtime's compatibility hash.
    pub engine: String,
    /// The plugin's metadata as JSON.
    pub metadata: String,
    /// The policy that applies to it, as JSON.
    pub policy: String,
    /// All versions of the name, lowest first.
    pub versions: Vec<String>,
    /// What its sockets are linked to.
    pub links: Vec<LinkInfo>,
}

/// A socket and the plugins at work that implement its interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct LinkInfo {
    /// The interface, such as `my:package/example@1.0.0`.
    pub interface: String,
    /// `exactly-one`, `at-most-one`, `at-least-one` or `any`.
    pub cardinality: String,
    /// Their names.
    pub plugins: Vec<String>,
}

/// What a change would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct PlanInfo {
    /// The plugin.
    pub name: String,
    /// The version at work; empty: none.
    pub from: String,
    /// The version that would be; empty: none.
    pub to: String,
    /// The version that would be the canary; empty: none.
    pub canary: String,
    /// The canary's share of the calls, in hundredths of a percent.
    pub share: u32,
    /// The version that would be removed; absent where none would be.
    pub removed: Option<String>,
    /// Exports that only the other version has, as `name (kind)`.
    pub exports_added: Vec<String>,
    /// Exports that only the present version has.
    pub exports_removed: Vec<String>,
    /// Plugins at work that call this one, be it through others.
    pub used_by: Vec<String>,
    /// Why the change would be refused; empty: it would be done.
    pub refused: String,
}
