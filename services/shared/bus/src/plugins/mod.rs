//! `org.shipote.Plugins1`: wire types, errors and the client's proxy.

mod info;

use std::collections::BTreeMap;

use zbus::OwnedFd;

pub use info::{AddOptions, LinkInfo, OpenInfo, PlanInfo, PluginInfo, PluginReport, RefusalInfo};

/// Options of a method that may gain some.
pub type Options<'a> = BTreeMap<&'a str, zbus::Variant<'a>>;

/// All calls of a plugin, in the unit of a canary's share: hundredths of a percent.
pub const WHOLE: u32 = 10_000;

/// Interface of the root object.
pub const MANAGER_INTERFACE: &str = "org.shipote.Plugins1.Manager";

/// Errors of `org.shipote.Plugins1`. The text is the whole reason, fit to be shown as it is.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.shipote.Plugins1.Error")]
pub enum PluginsError {
    /// The bus itself failed.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// No plugin or version fits the reference.
    NoSuchPlugin(String),
    /// The component breaks rules; the text names each.
    Refused(String),
    /// The name has this version already, with another content.
    VersionTaken(String),
    /// The version is active.
    InUse(String),
    /// There is no version to go back to.
    NothingBefore(String),
    /// The plugin has no canary.
    NoCanary(String),
    /// An argument is out of range.
    InvalidArgument(String),
    /// The caller may not do this.
    NotAuthorized(String),
    /// The audit record cannot be taken and is required.
    AuditUnavailable(String),
    /// Something inside the service failed.
    Failed(String),
}

/// Client of the root object. A `reference` is a name (its active version), `name@requirement` (the highest version that
/// fits, semantic versioning) or `sha256:<hex>`.
#[zbus::proxy(
    interface = "org.shipote.Plugins1.Manager",
    default_service = "org.shipote.Plugins1",
    default_path = "/org/shipote/Plugins1"
)]
pub trait PluginManager {
    /// See the interface.
    fn add(&self, component: zbus::Fd<'_>, options: &AddOptions) -> Result<PluginInfo, PluginsError>;
    /// See the interface.
    fn check(&self, component: zbus::Fd<'_>, options: &AddOptions) -> Result<PluginReport, PluginsError>;
    /// See the interface.
    fn list(&self, options: Options<'_>) -> Result<Vec<PluginInfo>, PluginsError>;
    /// See the interface.
    fn show(&self, reference: &str) -> Result<OpenInfo, PluginsError>;
    /// See the interface.
    fn activate(&self, reference: &str, options: Options<'_>) -> Result<PluginInfo, PluginsError>;
    /// See the interface.
    fn rollback(&self, name: &str, options: Options<'_>) -> Result<PluginInfo, PluginsError>;
    /// See the interface.
    fn canary(&self, reference: &str, share: u32, options: Options<'_>) -> Result<PluginInfo, PluginsError>;
    /// See the interface.
    fn promote(&self, name: &str, options: Options<'_>) -> Result<PluginInfo, PluginsError>;
    /// See the interface.
    fn abort(&self, name: &str, options: Options<'_>) -> Result<PluginInfo, PluginsError>;
    /// See the interface.
    fn canary_failed(&self, name: &str, since: u64, reason: &str) -> Result<bool, PluginsError>;
    /// See the interface.
    fn remove(&self, reference: &str, options: Options<'_>) -> Result<Vec<String>, PluginsError>;
    /// See the interface.
    fn open(&self, reference: &str, options: Options<'_>) -> Result<(OwnedFd, OpenInfo), PluginsError>;
    /// See the interface.
    fn policy(&self, reference: &str) -> Result<String, PluginsError>;
    /// See the interface.
    fn plan(&self, action: &str, reference: &str, options: Options<'_>) -> Result<PlanInfo, PluginsError>;
    /// See the interface.
    fn graph(&self, format: &str) -> Result<String, PluginsError>;
    /// The active version of a plugin is another one, or its policy or what it is linked to; empty: the plugin is gone.
    #[zbus(signal)]
    fn changed(&self, name: String, version: String) -> zbus::Result<()>;
    /// See the interface.
    #[zbus(signal)]
    fn canary_changed(&self, name: String, version: String, share: u32, why: String) -> zbus::Result<()>;
}
