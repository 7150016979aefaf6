//! `org.shipote.Plugins1.Manager`, at the root object.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd as StdFd;
use std::sync::Arc;

use shipote_audit::{Audit, Door, Event, Record};
use shipote_bus::plugins::{AddOptions, OpenInfo, PlanInfo, PluginInfo, PluginReport, PluginsError, RefusalInfo};
use shipote_service::{Authority, Caller, NotAuthorized};
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{OwnedFd, OwnedVariant};

use crate::error::Error;
use crate::registry::{Found, Registry, Wish};

/// polkit: everything that changes the registry, or has it work.
const ACTION_MANAGE: &str = "org.shipote.plugins.manage";
/// polkit: take compiled code of versions that are there, and say that a canary failed, as the proxy does.
const ACTION_OPEN: &str = "org.shipote.plugins.open";

/// Longest reason of a failed canary that is kept, characters.
const REASON_MAX: usize = 1000;

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

    /// Tells of a canary that began or ended, and the proxy that there is something to load anew.
    async fn announce_canary(&self, emitter: &SignalEmitter<'_>, canary: &Found, why: &str) -> zbus::Result<()> {
        let (name, version) = (canary.name.clone(), canary.version.to_string());
        emitter.canary_changed(name, version, canary.share(), why.to_owned()).await?;
        if let Ok(active) = self.registry.find(&canary.name) {
            emitter.changed(active.name, active.version.to_string()).await?;
        }
        Ok(())
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
        let rights = self.authority.check(header, ACTION_MANAGE).await;
        self.audited_with(rights, Record::new, (event, object), change).await
    }

    /// The same for whoever has these rights; `begin` makes the record.
    async fn audited_with(
        &self,
        rights: Result<Caller, NotAuthorized>,
        begin: impl FnOnce(Event, String, u32, Door) -> Record,
        (event, object): (Event, &str),
        change: impl Future<Output = Result<Found, Error>>,
    ) -> Result<Found, Error> {
        let caller = match rights {
            Ok(caller) => caller,
            Err(refused) => {
                self.record(&begin(event, object.to_owned(), refused.uid, Door::Bus).failed(&refused));
                return Err(refused.into());
            }
        };
        self.audit.ready().map_err(|error| Error::Audit(error.to_string()))?;
        let outcome = change.await;
        let object = match &outcome {
            Ok(found) => format!("{}@{}", found.name, found.version),
            Err(_) => object.to_owned(),
        };
        let mut record = begin(event, object, caller.uid, Door::Bus).outcome(&outcome);
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
        let Found { name, version, entry, active, canary, .. } = found.clone();
        Ok(OpenInfo {
            canary: canary.as_ref().map(|canary| canary.version.to_string()).unwrap_or_default(),
            share: canary.as_ref().map_or(0, |canary| canary.share),
            canary_since: canary.map_or(0, |canary| canary.since),
            versions: self.registry.versions(&name),
            links: self.registry.links_of(&entry),
            engine: self.registry.engine_of(found).to_owned(),
            policy: json(serde_json::to_string(&self.registry.policy_of(found)))?,
            metadata: json(serde_json::to_string(&entry.metadata))?,
            name,
            version: version.to_string(),
            kind: entry.kind.to_string(),
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
    /// is) or it is there already (`known`), which changes nothing of what is at work. `component` is a regular file or memfd, read from its beginning. Answers when it is done, which takes as long
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

    /// Gives a version a share of the calls of its name, in hundredths of a percent, in place of the canary that there
    /// was; the same version once more has its share changed. It goes back by itself when it fails, as its policy says.
    /// No options yet.
    #[zbus(out_args("plugin"))]
    async fn canary(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        reference: &str,
        share: u32,
        options: Options,
    ) -> Result<PluginInfo, PluginsError> {
        known(&options, &[])?;
        let rights = self.authority.check(&header, ACTION_MANAGE).await;
        let begin = |event, object, uid, door| Record::new(event, object, uid, door).field("SHARE", share.to_string());
        let change = self.registry.begin_canary(reference, share);
        let canary = self.audited_with(rights, begin, (Event::PluginCanary, reference), change).await?;
        self.announce_canary(&emitter, &canary, "").await?;
        Ok(info(canary))
    }

    /// Puts the canary of `name` to work. No options yet.
    #[zbus(out_args("plugin"))]
    async fn promote(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        name: &str,
        options: Options,
    ) -> Result<PluginInfo, PluginsError> {
        known(&options, &[])?;
        let found = self.audited(&header, Event::PluginActivate, name, self.registry.promote(name)).await?;
        emitter.canary_changed(found.name.clone(), found.version.to_string(), 0, "promoted".to_owned()).await?;
        self.announce(&emitter, &found.name, found.version.to_string()).await?;
        Ok(info(found))
    }

    /// Takes the share of the canary of `name` away; the version stays. No options yet.
    #[zbus(out_args("plugin"))]
    async fn abort(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        name: &str,
        options: Options,
    ) -> Result<PluginInfo, PluginsError> {
        known(&options, &[])?;
        let change = self.registry.end_canary(name, None);
        let canary = self.audited(&header, Event::PluginCanaryEnd, name, change).await?;
        self.announce_canary(&emitter, &canary, "aborted").await?;
        Ok(info(canary))
    }

    /// For the proxy: the canary of `name` that began at `since` failed, and gets no calls any more; its share is taken
    /// away. Returns whether it still had one.
    #[zbus(out_args("ended"))]
    async fn canary_failed(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        name: &str,
        since: u64,
        reason: &str,
    ) -> Result<bool, PluginsError> {
        let rights = self.authority.check(&header, ACTION_OPEN).await;
        // Another one may have begun meanwhile, or somebody ended it.
        if rights.is_ok() && !self.registry.has_canary(name, since) {
            return Ok(false);
        }
        let reason: String = reason.chars().take(REASON_MAX).collect();
        let begin = |event, object, uid, door| Record::new(event, object, uid, door).field("REASON", &reason);
        let change = self.registry.end_canary(name, Some(since));
        let canary = self.audited_with(rights, begin, (Event::PluginCanaryEnd, name), change).await?;
        tracing::warn!("the canary {} {} goes back: {reason}", canary.name, canary.version);
        self.announce_canary(&emitter, &canary, &reason).await?;
        Ok(true)
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

    /// What a change of `reference` would do, without doing it; `action` is `activate`, `rollback`, `canary`, `promote`,
    /// `abort` or `remove`. Options: `share` (u), with `canary`; `force` (b), with `remove`.
    #[zbus(out_args("plan"))]
    async fn plan(&self, action: &str, reference: &str, options: Options) -> Result<PlanInfo, PluginsError> {
        known(&options, &["share", "force"])?;
        let force = options.get("force").map(bool::try_from).transpose();
        let force =
            force.map_err(|_| Error::InvalidArgument("option \"force\" is not true or false (b)".to_owned()))?;
        let share = options.get("share").map(u32::try_from).transpose();
        let share = share.map_err(|_| Error::InvalidArgument("option \"share\" is not a number (u)".to_owned()))?;
        Ok(self.registry.plan(action, reference, share, force).await?)
    }

    /// The versions at work and how they are linked, as `text`, `mermaid`, `dot` or `json`.
    #[zbus(out_args("graph"))]
    async fn graph(&self, format: &str) -> Result<String, PluginsError> {
        Ok(self.registry.graph(format)?)
    }

    /// The active version of a plugin is another one, or what it is linked to, its canary or its policy is; empty: the
    /// plugin is gone.
    #[zbus(signal)]
    async fn changed(emitter: &SignalEmitter<'_>, name: String, version: String) -> zbus::Result<()>;

    /// A version has this share of its name's calls, in hundredths of a percent; 0: it has none any more, for `why`
    /// (`promoted`, `aborted`, or how it failed).
    #[zbus(signal)]
    async fn canary_changed(
        emitter: &SignalEmitter<'_>,
        name: String,
        version: String,
        share: u32,
        why: String,
    ) -> zbus::Result<()>;
}

/// Tells of plugins at work, with their versions, that are to be opened anew.
pub(crate) async fn tell(connection: &zbus::Connection, changed: Vec<(String, String)>) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, shipote_bus::Service::Plugins.path())?;
    for (name, version) in changed {
        emitter.changed(name, version).await?;
    }
    Ok(())
}

/// Refuses what no one would look at: a misspelt option must not be silent.
fn known(options: &Options, names: &[&str]) -> Result<(), Error> {
    match options.keys().find(|name| !names.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::InvalidArgument(format!("unknown option {name:?}; known: {names:?}"))),
    }
}

fn wish(options: AddOptions) -> Wish {
    let AddOptions { name, stem, version, activate, signature } = options;
    Wish { name, stem, version, activate: activate.unwrap_or(true), signature }
}

fn file(descriptor: OwnedFd) -> File {
    File::from(StdFd::from(descriptor))
}

fn info(found: Found) -> PluginInfo {
    let share = found.share();
    let Found { name, version, entry, active, at_work, known, .. } = found;
    let exports = entry.metadata.exports.iter();
    PluginInfo {
        exports: exports.map(|export| format!("{} ({})", export.name, export.kind)).collect(),
        name,
        version: version.to_string(),
        kind: entry.kind.to_string(),
        digest: entry.digest,
        size: entry.size,
        added: entry.added,
        active,
        share,
        known: Some(known),
        at_work: Some(at_work.map(|version| version.to_string()).unwrap_or_default()),
    }
}
