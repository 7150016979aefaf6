//! `org.shipote.Plugins1.Manager`, at the root object.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd as StdFd;
use std::sync::Arc;

use shipote_audit::{Audit, Door, Event, Record};
use shipote_bus::plugins::{AddOptions, OpenInfo, PlanInfo, PluginInfo, PluginReport, PluginsError, RefusalInfo};
use shipote_service::{Authority, Caller};
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{OwnedFd, OwnedVariant};

use crate::error::Error;
use crate::registry::{Found, Registry, Wish};

/// polkit: everything that changes the registry, or has it work.
const ACTION_MANAGE: &str = "org.shipote.plugins.manage";
/// polkit: take compiled code of versions that are there, as the proxy does.
const ACTION_OPEN: &str = "org.shipote.plugins.open";

type Options = HashMap<String, OwnedVariant>;

/// The root object.
pub(crate) struct Manager {
    pub(crate) registry: Arc<Registry>,
    pub(crate) authority: Authority,
    pub(crate) audit: Arc<Audit>,
}

impl Manager {
    async fn allowed(&self, header: &Header<'_>) -> Result<Caller, Error> {
        Ok(self.authority.check(header, ACTION_MANAGE).await?)
    }

    /// Tells the proxy of the version at work of `name` (empty: none), and of the plugins that call it, which are linked
    /// to another one now.
    async fn announce(&self, emitter: &SignalEmitter<'_>, name: &str, version: String) -> zbus::Result<()> {
        emitter.changed(name.to_owned(), version).await?;
        for (user, version) in self.registry.users(name) {
            emitter.changed(user, version).await?;
        }
        Ok(())
    }

    /// A change with its record: not begun where records are required and cannot be taken.
    async fn audited(
        &self,
        header: &Header<'_>,
        event: Event,
        object: &str,
        change: impl Future<Output = Result<Found, Error>>,
    ) -> Result<Found, Error> {
        let caller = match self.allowed(header).await {
            Ok(caller) => caller,
            Err(Error::NotAuthorized(refused)) => {
                self.record(&Record::new(event, object, refused.uid, Door::Bus).failed(&refused));
                return Err(refused.into());
            }
            Err(other) => return Err(other),
        };
        self.audit.ready().map_err(|error| Error::Audit(error.to_string()))?;
        let outcome = change.await;
        let object = match &outcome {
            Ok(found) => format!("{}@{}", found.name, found.version),
            Err(_) => object.to_owned(),
        };
        let mut record = Record::new(event, object, caller.uid, Door::Bus).outcome(&outcome);
        if let Ok(found) = &outcome {
            record = record.field("DIGEST", &found.entry.digest);
        }
        self.record(&record);
        outcome
    }

    fn record(&self, record: &Record) {
        if let Err(error) = self.audit.record(record) {
            tracing::error!("record a change: {error}");
        }
    }

    fn open_info(&self, found: &Found) -> Result<OpenInfo, Error> {
        let json = |outcome: Result<String, serde_json::Error>| {
            outcome.map_err(|error| Error::Examine(format!("write JSON: {error}")))
        };
        let Found { name, version, entry, active } = found.clone();
        Ok(OpenInfo {
            versions: self.registry.versions(&name),
            links: self.registry.links_of(&entry),
            engine: self.registry.engine().to_owned(),
            policy: json(serde_json::to_string(&self.registry.policy_of(found)))?,
            metadata: json(serde_json::to_string(&entry.metadata))?,
            name,
            version: version.to_string(),
            digest: entry.digest,
            size: entry.size,
            added: entry.added,
            active,
        })
    }
}

#[zbus::interface(name = "org.shipote.Plugins1.Manager")]
impl Manager {
    /// Adds a component: judged, compiled and kept, and put to work unless `activate` says no (a name's first version always
    /// is). `component` is a regular file or memfd, read from its beginning. Answers when it is done, which takes as long
    /// as compiling does.
    #[zbus(out_args("plugin"))]
    async fn add(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        component: OwnedFd,
        options: AddOptions,
    ) -> Result<PluginInfo, PluginsError> {
        let object = options.name.clone().or_else(|| options.stem.clone()).unwrap_or_else(|| "component".to_owned());
        let wish = wish(options);
        let add = self.registry.add(file(component), wish);
        let found = self.audited(&header, Event::PluginAdd, &object, add).await?;
        if found.active {
            self.announce(&emitter, &found.name, found.version.to_string()).await?;
        }
        Ok(info(found))
    }

    /// Judges a component as `Add` would, and keeps nothing.
    #[zbus(out_args("report"))]
    async fn check(
        &self,
        #[zbus(header)] header: Header<'_>,
        component: OwnedFd,
        options: AddOptions,
    ) -> Result<PluginReport, PluginsError> {
        self.allowed(&header).await?;
        let (digest, report) = self.registry.check(file(component), &wish(options)).await?;
        let metadata = report.metadata.as_ref().and_then(|metadata| serde_json::to_string(metadata).ok());
        let refusals = report.refusals.into_iter();
        Ok(PluginReport {
            ok: refusals.len() == 0,
            digest,
            metadata: metadata.unwrap_or_default(),
            refusals: refusals.map(|refusal| RefusalInfo { rule: refusal.rule, reason: refusal.reason }).collect(),
        })
    }

    /// Lists every version of every plugin, by name and version. No options yet.
    #[zbus(out_args("plugins"))]
    async fn list(&self, options: Options) -> Result<Vec<PluginInfo>, PluginsError> {
        known(&options, &[])?;
        Ok(self.registry.list().into_iter().map(info).collect())
    }

    /// Shows one version: metadata, policy, the other versions of its name.
    #[zbus(out_args("plugin"))]
    async fn show(&self, reference: &str) -> Result<OpenInfo, PluginsError> {
        Ok(self.open_info(&self.registry.find(reference)?)?)
    }

    /// Makes a version the active one of its name. No options yet.
    #[zbus(out_args("plugin"))]
    async fn activate(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        reference: &str,
        options: Options,
    ) -> Result<PluginInfo, PluginsError> {
        known(&options, &[])?;
        let change = self.registry.activate(reference);
        let found = self.audited(&header, Event::PluginActivate, reference, change).await?;
        self.announce(&emitter, &found.name, found.version.to_string()).await?;
        Ok(info(found))
    }

    /// Goes back to the version of `name` that was active before. No options yet.
    #[zbus(out_args("plugin"))]
    async fn rollback(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        name: &str,
        options: Options,
    ) -> Result<PluginInfo, PluginsError> {
        known(&options, &[])?;
        let found = self.audited(&header, Event::PluginActivate, name, self.registry.roll_back(name)).await?;
        self.announce(&emitter, &found.name, found.version.to_string()).await?;
        Ok(info(found))
    }

    /// Removes a version. Options: `force` (b): the active one, too. Returns its name, version and digest.
    #[zbus(out_args("removed"))]
    async fn remove(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        reference: &str,
        options: Options,
    ) -> Result<Vec<String>, PluginsError> {
        known(&options, &["force"])?;
        let force = match options.get("force") {
            None => false,
            Some(value) => bool::try_from(value)
                .map_err(|_| Error::InvalidArgument("option \"force\" is not a boolean (b)".to_owned()))?,
        };
        let users = self.registry.find(reference).map(|found| self.registry.users(&found.name)).unwrap_or_default();
        let change = self.registry.remove(reference, force);
        let gone = self.audited(&header, Event::PluginRemove, reference, change).await?;
        if gone.active {
            emitter.changed(gone.name.clone(), String::new()).await?;
            for (user, version) in users {
                emitter.changed(user, version).await?;
            }
        }
        Ok(vec![gone.name, gone.version.to_string(), gone.entry.digest])
    }

    /// Compiled code of a version, in a memfd sealed against every change, with what it takes to use it. It fits engines
    /// whose compatibility hash is `engine`. No options yet.
    #[zbus(out_args("code", "plugin"))]
    async fn open(
        &self,
        #[zbus(header)] header: Header<'_>,
        reference: &str,
        options: Options,
    ) -> Result<(OwnedFd, OpenInfo), PluginsError> {
        known(&options, &[])?;
        self.authority.check(&header, ACTION_OPEN).await.map_err(Error::from)?;
        let (code, found) = self.registry.open_code(reference).await?;
        Ok((OwnedFd::from(StdFd::from(code)), self.open_info(&found)?))
    }

    /// The policy that applies to a version, as JSON.
    #[zbus(out_args("policy"))]
    async fn policy(&self, reference: &str) -> Result<String, PluginsError> {
        Ok(self.open_info(&self.registry.find(reference)?)?.policy)
    }

    /// What `Activate`, `Rollback` or `Remove` (`action`: `activate`, `rollback`, `remove`) of `reference` would do, without
    /// doing it. No options yet.
    #[zbus(out_args("plan"))]
    async fn plan(&self, action: &str, reference: &str, options: Options) -> Result<PlanInfo, PluginsError> {
        known(&options, &[])?;
        Ok(self.registry.plan(action, reference)?)
    }

    /// The versions at work and how they are linked, as `text`, `mermaid`, `dot` or `json`.
    #[zbus(out_args("graph"))]
    async fn graph(&self, format: &str) -> Result<String, PluginsError> {
        Ok(self.registry.graph(format)?)
    }

    /// The active version of a plugin is another one, or what it is linked to is; empty: the plugin is gone.
    #[zbus(signal)]
    async fn changed(emitter: &SignalEmitter<'_>, name: String, version: String) -> zbus::Result<()>;
}

/// Refuses what no one would look at: a misspelt option must not be silent.
fn known(options: &Options, names: &[&str]) -> Result<(), Error> {
    match options.keys().find(|name| !names.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::InvalidArgument(format!("unknown option {name:?}; known: {names:?}"))),
    }
}

fn wish(options: AddOptions) -> Wish {
    let AddOptions { name, stem, activate, signature } = options;
    Wish { name, stem, activate: activate.unwrap_or(true), signature }
}

fn file(descriptor: OwnedFd) -> File {
    File::from(StdFd::from(descriptor))
}

fn info(found: Found) -> PluginInfo {
    let Found { name, version, entry, active } = found;
    let exports = entry.metadata.exports.iter();
    PluginInfo {
        exports: exports.map(|export| format!("{} ({})", export.name, export.kind)).collect(),
        name,
        version: version.to_string(),
        digest: entry.digest,
        size: entry.size,
        added: entry.added,
        active,
    }
}
