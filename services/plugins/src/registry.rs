//! What the service does, apart from the bus.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use shipote_bus::plugins::{LinkInfo, PlanInfo};
use shipote_plugin_abi::check::{Refusal, check_given};
use shipote_plugin_abi::kind::Kind;
use shipote_plugin_abi::metadata::Metadata;
use shipote_plugin_abi::policy::{Policy, PolicyError};
use shipote_plugin_abi::reference::Reference;
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::examine::{Engines, Report};
use crate::forge::{self, Bounds};
use crate::plan::Change;
use crate::policy::Policies;
use crate::store::{Canary, Entry, Incoming, Index, Store, Version};
use crate::{graph, links, signature};

/// The registry. Its lock is held for looks and short writes, never while a component is examined.
#[derive(Debug)]
pub(crate) struct Registry {
    store: Arc<Mutex<Store>>,
    policies: Mutex<Policies>,
    /// One examination at a time: it takes a processor and gigabytes of address space.
    turn: Semaphore,
    bounds: Bounds,
    engines: Engines,
}

/// A version with its name.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) version: Version,
    pub(crate) entry: Entry,
    pub(crate) active: bool,
    /// The active version of its name.
    pub(crate) at_work: Option<Version>,
    /// It was there before it was added.
    pub(crate) known: bool,
    /// The canary of its name.
    pub(crate) canary: Option<Canary>,
}

impl Found {
    /// Its share of the calls as a canary, in hundredths of a percent.
    pub(crate) fn share(&self) -> u32 {
        self.canary.as_ref().filter(|canary| canary.version == self.version).map_or(0, |canary| canary.share)
    }
}

/// What to know about an addition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    pub(crate) name: Option<String>,
    pub(crate) stem: Option<String>,
    /// Version of a component that says none of itself.
    pub(crate) version: Option<String>,
    pub(crate) activate: bool,
    pub(crate) signature: Option<String>,
}

/// Version of a command or filter that is given none.
const FIRST_VERSION: &str = "1.0.0";

impl Wish {
    /// Commands and filters say nothing of themselves: name and version are those that they are given.
    fn name_it(&self, report: &mut Report) {
        if report.kind == Kind::Plugin {
            if let (Some(wanted), Some(metadata)) = (&self.version, &report.metadata)
                && metadata.version != *wanted
            {
                let said = &metadata.version;
                let reason = format!("the plugin says it is version {said:?}, not {wanted:?}; leave the version out");
                report.refusals.push(Refusal::new("version", reason));
            }
            return;
        }
        if !report.refusals.is_empty() {
            return;
        }
        let name = self.name.clone().or_else(|| self.stem.clone()).unwrap_or_default();
        let version = self.version.clone().unwrap_or_else(|| FIRST_VERSION.to_owned());
        let metadata = Metadata { name, version, abi_version: String::new(), exports: Vec::new() };
        report.refusals = check_given(&metadata);
        report.metadata = Some(metadata);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held left the data as it was: changes are made on a copy.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Opens the store and reads the policies. Says what it had to put right.
    pub(crate) fn open(store: &Path, policies: &Path) -> Result<(Self, Vec<String>), Error> {
        let engines = Engines::of_this_machine().map_err(|error| Error::Examine(format!("{error:#}")))?;
        let (store, warnings) = Store::open(store, engines.names())?;
        let this = Self {
            store: Arc::new(Mutex::new(store)),
            policies: Mutex::new(Policies::load(policies)?),
            turn: Semaphore::new(1),
            bounds: Bounds::default(),
            engines,
        };
        Ok((this, warnings))
    }

    /// The engine configuration that a version's compiled code fits under its policy.
    pub(crate) fn engine_of(&self, found: &Found) -> &str {
        self.engines.under(&self.policy_of(found))
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        lock(&self.store).index().counts()
    }

    /// Takes over what the policies say now. Returns the plugins at work, with their versions, for which they say
    /// something else: of the version itself, of its canary, or of one that it calls.
    pub(crate) fn reload_policy(&self) -> Result<Vec<(String, String)>, PolicyError> {
        let all = self.list();
        let policies = || all.iter().map(|found| self.policy_of(found)).collect::<Vec<_>>();
        let before = policies();
        lock(&self.policies).reload()?;
        let differs = all.iter().zip(before.iter().zip(policies())).filter(|(_, (before, now))| *before != now);
        let names: BTreeSet<&str> = differs.map(|(found, _)| found.name.as_str()).collect();
        let mut changed = BTreeSet::new();
        for name in names {
            changed.extend(self.users(name));
            let at_work = all.iter().find(|found| found.active && found.name == name);
            changed.extend(at_work.map(|found| (found.name.clone(), found.version.to_string())));
        }
        Ok(changed.into_iter().collect())
    }

    pub(crate) fn policy_of(&self, found: &Found) -> Policy {
        lock(&self.policies).of(&found.entry.digest, &[&found.name])
    }

    pub(crate) fn list(&self) -> Vec<Found> {
        let store = lock(&self.store);
        store.index().all().map(|one| found(store.index(), one)).collect()
    }

    pub(crate) fn versions(&self, name: &str) -> Vec<String> {
        lock(&self.store).index().versions(name)
    }

    pub(crate) fn find(&self, reference: &str) -> Result<Found, Error> {
        let parsed: Reference = reference.parse()?;
        let store = lock(&self.store);
        look_up(&store, &parsed).ok_or_else(|| Error::NoSuchPlugin(reference.to_owned()))
    }

    /// What a change would do. `action` is one of `activate`, `rollback`, `canary` (with a share), `promote`, `abort` and
    /// `remove` (which may be forced).
    pub(crate) async fn plan(
        &self,
        action: &str,
        reference: &str,
        share: Option<u32>,
        force: Option<bool>,
    ) -> Result<PlanInfo, Error> {
        let version = || self.find(reference).map(|found| (found.name, found.version));
        if share.is_some() != (action == "canary") {
            return Err(Error::InvalidArgument(format!(
                "plan {action:?}: the option share goes with canary, and only with it"
            )));
        }
        if force.is_some() && action != "remove" {
            return Err(Error::InvalidArgument(format!("plan {action:?}: the option force goes with remove only")));
        }
        let change = match action {
            "activate" => version().map(|(name, version)| Change::Activate(name, version))?,
            "rollback" => Change::RollBack(reference.to_owned()),
            "canary" => {
                let (name, version) = version()?;
                Change::Canary { name, version, share: share.unwrap_or_default() }
            }
            "promote" => Change::Promote(reference.to_owned()),
            "abort" => Change::Abort(reference.to_owned()),
            "remove" => {
                version().map(|(name, version)| Change::Remove { name, version, force: force.unwrap_or_default() })?
            }
            other => {
                let known = "activate, rollback, canary, promote, abort and remove";
                return Err(Error::InvalidArgument(format!("plan {other:?}: no such action; there are {known}")));
            }
        };
        let unsigned = self.vouch(&change).await.err();
        Ok(change.plan(lock(&self.store).index(), unsigned))
    }

    /// The versions at work and how they are linked, as `text`, `mermaid`, `dot` or `json`.
    pub(crate) fn graph(&self, format: &str) -> Result<String, Error> {
        graph::draw(lock(&self.store).index(), format)
    }

    /// Plugins at work, with their versions, that call `name`, be it through others or as a canary.
    pub(crate) fn users(&self, name: &str) -> Vec<(String, String)> {
        let store = lock(&self.store);
        let mut users = links::users(store.index(), name);
        let plugins = links::at_work(store.index());
        for (user, _) in links::users(&store.index().with_canaries(), name) {
            if let Some((version, _)) = plugins.get(user.as_str())
                && !users.iter().any(|(known, _)| *known == user)
            {
                users.push((user, version.clone()));
            }
        }
        users
    }

    /// What a version's sockets are linked to now.
    pub(crate) fn links_of(&self, entry: &Entry) -> Vec<LinkInfo> {
        let store = lock(&self.store);
        let plugins = links::at_work(store.index());
        let link = |(interface, socket): (&String, &links::Socket)| LinkInfo {
            interface: interface.clone(),
            cardinality: socket.cardinality.name().to_owned(),
            plugins: links::providers(&plugins, interface, socket).into_iter().map(str::to_owned).collect(),
        };
        entry.links.sockets.iter().map(link).collect()
    }

    /// Runs blocking work with the store off the runtime's thread.
    async fn with_store<A: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<A, Error> + Send + 'static,
    ) -> Result<A, Error> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || work(&mut lock(&store)))
            .await
            .map_err(|error| Error::Examine(format!("the work broke off: {error}")))?
    }

    async fn receive(&self, component: File) -> Result<Incoming, Error> {
        let (folder, most) = (lock(&self.store).incoming(), self.bounds.size);
        tokio::task::spawn_blocking(move || Incoming::copy(component, &folder, most))
            .await
            .map_err(|error| Error::Examine(format!("the work broke off: {error}")))?
    }

    async fn examine(
        &self,
        component: File,
        digest: &str,
        wish: &Wish,
        compile: bool,
    ) -> Result<(Report, File), Error> {
        let names: Vec<&str> = [&wish.name, &wish.stem].into_iter().flatten().map(String::as_str).collect();
        let policy = lock(&self.policies).of(digest, &names);
        if wish.signature.as_ref().is_some_and(|text| text.len() > signature::SIGNATURE_MAX) {
            let most = signature::SIGNATURE_MAX;
            return Err(Error::InvalidArgument(format!(
                "the signature has more than {most} bytes; give minisign's file"
            )));
        }
        let again = component.try_clone().map_err(Error::io("clone", "the component's descriptor"))?;
        let signed = component.try_clone().map_err(Error::io("clone", "the component's descriptor"))?;
        // What nobody vouches for is not even examined.
        if let Err(refusal) = signed_by(policy.signed_by.clone(), wish.signature.clone(), signed).await? {
            let none = forge::memfd("none").map_err(|error| Error::io("create", "a memfd")(error.into()))?;
            return Ok((Report { refusals: vec![refusal], ..Report::default() }, none));
        }
        let _turn = self.turn.acquire().await.map_err(|_| Error::Examine("the registry is stopping".to_owned()))?;
        let (mut report, code) = forge::examine(component, &policy, compile, self.bounds).await?;
        wish.name_it(&mut report);
        if let (Some(metadata), Some(name)) = (&report.metadata, &wish.name)
            && metadata.name != *name
        {
            let said = &metadata.name;
            let reason = format!("the plugin calls itself {said:?}, not {name:?}; correct its metadata, or the name");
            report.refusals.push(Refusal::new("name", reason));
        }
        // Given under another name, or none, it was not held to the policy of the name that it has.
        if let Some(metadata) = &report.metadata {
            let keys = lock(&self.policies).of(digest, &[&metadata.name]).signed_by;
            report.refusals.extend(signed_by(keys, wish.signature.clone(), again).await?.err());
        }
        Ok((report, code))
    }

    /// Judges a component.
    pub(crate) async fn check(&self, component: File, wish: &Wish) -> Result<(String, Report), Error> {
        let incoming = self.receive(component).await?;
        let (report, _) = self.examine(incoming.open()?, &incoming.digest, wish, false).await?;
        Ok((incoming.digest.clone(), report))
    }

    /// Judges, compiles and keeps a component.
    pub(crate) async fn add(&self, component: File, wish: Wish) -> Result<Found, Error> {
        let incoming = self.receive(component).await?;
        let what = wish.name.clone().or_else(|| wish.stem.clone()).unwrap_or_else(|| incoming.digest.clone());
        let (report, code) = self.examine(incoming.open()?, &incoming.digest, &wish, true).await?;
        let metadata = match report.metadata {
            Some(metadata) if report.refusals.is_empty() => metadata,
            _ => return Err(Error::Refused { action: "add", what, refusals: report.refusals }),
        };
        let version = Version::parse(&metadata.version)
            .map_err(|error| Error::Examine(format!("version {:?}: {error}", metadata.version)))?;
        let name = metadata.name.clone();
        let (digest, kind, links) = (incoming.digest.clone(), report.kind, report.links);
        let entry =
            Entry { digest, size: incoming.size, added: now(), kind, metadata, signature: wish.signature, links };
        let engine = report.engine;
        // Where the policy wants a signature, the one that came along is good: else it were refused by now.
        let vouched = !lock(&self.policies).of(&entry.digest, &[&name]).signed_by.is_empty();
        self.with_store(move |store| {
            let add = |index: &mut Index| {
                let is_new = index.add(&name, &version, entry.clone())?;
                // Signed since it was added, or by another key.
                if let Some(signature) = &entry.signature {
                    index.sign(&name, &version, signature, vouched);
                }
                let activate = Change::Activate(name.clone(), version.clone());
                if !is_new {
                    // Whoever hands in once more what was replaced long ago need not mean to go back to it.
                } else if wish.activate {
                    activate.apply(index)?;
                } else if index.active(&name).is_none() {
                    // A first version goes to work unasked, but only where it fits.
                    let mut fits = index.clone();
                    if activate.apply(&mut fits).is_ok() {
                        *index = fits;
                    }
                }
                Ok(is_new)
            };
            // Refused before anything is kept; and once more below, where the index is changed.
            let known = !add(&mut store.index().clone())?;
            let digest = entry.digest.clone();
            store.keep(incoming)?;
            match forge::content(&code)
                .map_err(|error| error.to_string())
                .and_then(|code| store.cache(&digest, &engine, &code).map_err(|error| error.to_string()))
            {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!("keep compiled code of {name} {version}: {error}; it is compiled when it is needed");
                }
            }
            store.change(|index| add(index).map(drop))?;
            let found = look_up(store, &exactly(&name, &version)).ok_or(Error::NoSuchPlugin(name))?;
            Ok(Found { known, ..found })
        })
        .await
    }

    /// Carries out a change, and shows the version that `reference` stands for then.
    async fn change(&self, change: Change, reference: Reference) -> Result<Found, Error> {
        self.vouch(&change).await?;
        self.with_store(move |store| {
            store.change(|index| change.apply(index))?;
            look_up(store, &reference).ok_or_else(|| Error::NoSuchPlugin(format!("{reference:?}")))
        })
        .await
    }

    /// Makes a version the active one.
    pub(crate) async fn activate(&self, reference: &str) -> Result<Found, Error> {
        let Found { name, version, .. } = self.find(reference)?;
        let reference = exactly(&name, &version);
        self.change(Change::Activate(name, version), reference).await
    }

    /// Goes back to the version that was active before.
    pub(crate) async fn roll_back(&self, name: &str) -> Result<Found, Error> {
        self.change(Change::RollBack(name.to_owned()), Reference::Active(name.to_owned())).await
    }

    /// Gives a version a share of the calls, in hundredths of a percent.
    pub(crate) async fn begin_canary(&self, reference: &str, share: u32) -> Result<Found, Error> {
        let Found { name, version, .. } = self.find(reference)?;
        let reference = exactly(&name, &version);
        self.change(Change::Canary { name, version, share }, reference).await
    }

    /// Puts the canary to work.
    pub(crate) async fn promote(&self, name: &str) -> Result<Found, Error> {
        self.change(Change::Promote(name.to_owned()), Reference::Active(name.to_owned())).await
    }

    /// Whether the canary that began at `since` still has its share.
    pub(crate) fn has_canary(&self, name: &str, since: u64) -> bool {
        lock(&self.store).index().canary(name).is_some_and(|canary| canary.since == since)
    }

    /// Takes the canary's share away, if it is still the one that began at `since`. Returns the canary that was.
    pub(crate) async fn end_canary(&self, name: &str, since: Option<u64>) -> Result<Found, Error> {
        let name = name.to_owned();
        self.with_store(move |store| {
            let canary = store.index().canary(&name).filter(|canary| since.is_none_or(|since| canary.since == since));
            let version = canary.ok_or_else(|| Error::NoCanary(name.clone()))?.version.clone();
            store.change(|index| Change::Abort(name.clone()).apply(index))?;
            look_up(store, &exactly(&name, &version)).ok_or(Error::NoSuchPlugin(name))
        })
        .await
    }

    /// Removes a version, and its files if nothing else names them.
    pub(crate) async fn remove(&self, reference: &str, force: bool) -> Result<Found, Error> {
        let gone = self.find(reference)?;
        let (name, version) = (gone.name.clone(), gone.version.clone());
        self.with_store(move |store| {
            store.change(|index| Change::Remove { name, version, force }.apply(index))?;
            let mut warnings = Vec::new();
            store.sweep(&mut warnings)?;
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            Ok(())
        })
        .await?;
        Ok(gone)
    }

    /// Refuses a change that puts a version to work whose code would not be handed over: what rules call would go on with
    /// the version from before, or fail, long after whoever made the change was told that it is done.
    async fn vouch(&self, change: &Change) -> Result<(), Error> {
        let found = {
            let store = lock(&self.store);
            change.puts_to_work(store.index()).and_then(|(name, version)| look_up(&store, &exactly(&name, &version)))
        };
        match found {
            Some(found) => self.still_signed(change.verb(), &found).await,
            None => Ok(()),
        }
    }

    /// The policy may have come to want a signature, or another one, since the version was added.
    async fn still_signed(&self, action: &'static str, found: &Found) -> Result<(), Error> {
        let keys = self.policy_of(found).signed_by;
        if keys.is_empty() {
            return Ok(());
        }
        let Entry { digest, signature, .. } = found.entry.clone();
        let checked = self
            .with_store(move |store| Ok(signature::check(&keys, signature.as_deref(), &mut store.component(&digest)?)))
            .await?;
        checked.map_err(|Refusal { rule, reason }| Error::Refused {
            action,
            what: format!("{} {}", found.name, found.version),
            refusals: vec![Refusal {
                rule,
                reason: format!("{reason} (`shipote plugin add FILE` once more takes it along)"),
            }],
        })
    }

    /// A version's compiled code in a sealed memfd; from the cache, or compiled anew.
    pub(crate) async fn open_code(&self, reference: &str) -> Result<(File, Found), Error> {
        let found = self.find(reference)?;
        self.still_signed("hand over", &found).await?;
        let engine = self.engine_of(&found).to_owned();
        let (digest, wanted) = (found.entry.digest.clone(), engine.clone());
        if let Some(code) = self.with_store(move |store| Ok(store.cached(&digest, &wanted))).await? {
            return Ok((code, found));
        }
        let digest = found.entry.digest.clone();
        let component = self.with_store(move |store| store.component(&digest)).await?;
        let signature = found.entry.signature.clone();
        let wish = Wish { name: Some(found.name.clone()), signature, ..Wish::default() };
        let (report, code) = self.examine(component, &found.entry.digest, &wish, true).await?;
        if !report.refusals.is_empty() {
            return Err(Error::Refused {
                action: "hand over",
                what: format!("{} {}", found.name, found.version),
                refusals: report.refusals,
            });
        }
        let digest = found.entry.digest.clone();
        let code = self
            .with_store(move |store| {
                let bytes = forge::content(&code).map_err(Error::io("read", "compiled code"))?;
                if let Err(error) = store.cache(&digest, &engine, &bytes) {
                    tracing::warn!("keep compiled code: {error}; it is compiled anew next time");
                }
                forge::seal(&code).map_err(|error| Error::io("seal", "compiled code")(error.into()))?;
                Ok(code)
            })
            .await?;
        Ok((code, found))
    }
}

/// Whether one of `keys` signed a component; hashing it takes its time.
async fn signed_by(keys: Vec<String>, text: Option<String>, mut component: File) -> Result<Result<(), Refusal>, Error> {
    tokio::task::spawn_blocking(move || signature::check(&keys, text.as_deref(), &mut component))
        .await
        .map_err(|error| Error::Examine(format!("the work broke off: {error}")))
}

fn found(index: &Index, (name, version, entry, active): (&str, &Version, &Entry, bool)) -> Found {
    let canary = index.canary(name).cloned();
    let at_work = index.active(name).cloned();
    Found {
        name: name.to_owned(),
        version: version.clone(),
        entry: entry.clone(),
        active,
        at_work,
        known: false,
        canary,
    }
}

fn look_up(store: &Store, reference: &Reference) -> Option<Found> {
    store.index().find(reference).map(|one| found(store.index(), one))
}

fn exactly(name: &str, version: &Version) -> Reference {
    Reference::Exact(name.to_owned(), version.clone())
}

/// Microseconds since the epoch.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
