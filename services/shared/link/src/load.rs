//! Loading a tree: from the leaves up, each interface and each plugin once.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentExportIndex, Linker};

use crate::dispatch::Head;
#[cfg(feature = "async")]
use crate::dispatch_async::AsyncHead;
use crate::error::{LoadError, PartialResult};
use crate::instance::{Loaded, Mode, Parts};
use crate::interface::Interface;
use crate::plugin::{Plugin, SourceError};
use crate::provider::Provider;
use crate::runtime::Runtime;
use crate::signature::{Signature, resources_of};
use crate::socket::{self, Reach};
use crate::state::State;
use crate::tree::Tree;

type Loading<T> = Result<Arc<Provider<T>>, LoadError>;

struct Loader<'a, T: Send + 'static> {
    tree: Tree<T>,
    mode: Mode,
    runtime: &'a Runtime,
    linker: &'a Linker<State<T>>,
    /// What became of each interface that was reached.
    done: BTreeMap<String, Loading<T>>,
    /// How many sockets lead to each interface.
    callers: BTreeMap<String, usize>,
    errors: Vec<LoadError>,
    kinds: u32,
}

impl<T: Send + 'static> Tree<T> {
    /// Loads what the root reaches. `linker` offers what every plugin may import from the host.
    ///
    /// # Errors
    /// Why the root did not load, with everything that contributed.
    #[allow(clippy::result_large_err, reason = "happens once a tree, and is to be taken apart")]
    pub fn load(self, runtime: &Runtime, linker: &Linker<State<T>>) -> PartialResult<Head<T>, LoadError> {
        let loaded = pin!(self.load_as(Mode::Blocking, runtime, linker));
        match loaded.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(loaded) => loaded.map(|(provider, errors)| (Head::new(provider), errors)),
            Poll::Pending => unreachable!("only plugins whose calls yield are awaited"),
        }
    }

    /// Loads what the root reaches, for calls that yield instead of holding up their thread: see [`AsyncHead`]. The
    /// functions that `linker` offers may be asynchronous.
    ///
    /// # Errors
    /// As [`Tree::load`].
    ///
    /// # Panics
    /// Outside a tokio runtime with time.
    #[cfg(feature = "async")]
    #[allow(clippy::result_large_err, reason = "happens once a tree, and is to be taken apart")]
    pub async fn load_async(
        self,
        runtime: &Runtime,
        linker: &Linker<State<T>>,
    ) -> PartialResult<AsyncHead<T>, LoadError> {
        let loaded = self.load_as(Mode::Yielding, runtime, linker).await;
        loaded.map(|(provider, errors)| (AsyncHead::new(provider), errors))
    }

    #[allow(clippy::result_large_err, reason = "happens once a tree, and is to be taken apart")]
    async fn load_as(
        self,
        mode: Mode,
        runtime: &Runtime,
        linker: &Linker<State<T>>,
    ) -> PartialResult<Arc<Provider<T>>, LoadError> {
        let root = self.root.clone();
        let (done, errors) = (BTreeMap::new(), Vec::new());
        let mut callers = BTreeMap::new();
        for socket in self.plugins.values().flat_map(|plugin| &plugin.sockets) {
            *callers.entry(socket.clone()).or_default() += 1;
        }
        let mut loader = Loader { tree: self, mode, runtime, linker, done, callers, errors, kinds: 0 };
        match loader.interface(&root).await {
            Ok(provider) => Ok((provider, loader.errors)),
            Err(error) => {
                loader.errors.retain(|other| *other != error);
                Err((error, loader.errors))
            }
        }
    }
}

impl<T: Send + 'static> Loader<'_, T> {
    /// Loads an interface, unless that was done already. Boxed, as it leads back here.
    fn interface<'a>(&'a mut self, id: &'a str) -> Pin<Box<dyn Future<Output = Loading<T>> + Send + 'a>> {
        Box::pin(self.interface_once(id))
    }

    async fn interface_once(&mut self, id: &str) -> Loading<T> {
        if let Some(done) = self.done.get(id) {
            return done.clone();
        }
        let outcome = self.interface_anew(id).await;
        if let Err(error) = &outcome {
            self.errors.push(error.clone());
        }
        self.done.insert(id.to_owned(), outcome.clone());
        outcome
    }

    async fn interface_anew(&mut self, id: &str) -> Loading<T> {
        let missing = || LoadError::MissingInterface { interface: id.to_owned() };
        let interface = Arc::clone(self.tree.interfaces.get(id).ok_or_else(missing)?);
        self.can_call(&interface)?;
        let mut kinds = Vec::new();
        for resource in &interface.resources {
            self.kinds += 1;
            kinds.push((resource.clone(), self.kinds));
        }
        let mut plugins = Vec::new();
        for plugin in self.tree.plugged_into(id) {
            let Some(plugin) = self.tree.plugins.remove(&plugin) else { continue };
            match self.plugin(&interface, &kinds, plugin).await {
                Ok(loaded) => plugins.push(Arc::new(loaded)),
                Err(error) => self.errors.push(error),
            }
        }
        if !interface.cardinality.admits(plugins.len()) {
            let (expected, found) = (interface.cardinality, plugins.len());
            return Err(LoadError::Cardinality { interface: id.to_owned(), expected, found });
        }
        Ok(Arc::new(Provider { interface, plugins, kinds }))
    }

    /// That this tree can call functions which WIT calls `async`, where the interface has some.
    fn can_call(&self, interface: &Interface) -> Result<(), LoadError> {
        let Some(function) = interface.functions.iter().find(|function| function.signature.asynchronous) else {
            return Ok(());
        };
        let reason = if !self.runtime.has_async_functions() {
            "make the runtime with `Runtime::with_async_functions` (feature `async-functions`)"
        } else if self.mode == Mode::Blocking {
            "a thread cannot wait for it; load the tree with `Tree::load_async`"
        } else {
            return Ok(());
        };
        let (interface, function) = (interface.id.clone(), function.name.clone());
        Err(LoadError::Asynchronous { interface, function, reason })
    }

    async fn plugin(
        &mut self,
        interface: &Arc<Interface>,
        kinds: &[(String, u32)],
        plugin: Plugin<T>,
    ) -> Result<Loaded<T>, LoadError> {
        let about = About { plugin: plugin.id.clone(), interface: interface.id.clone() };
        if let Some(path) = self.tree.loops.get(&plugin.id) {
            let About { plugin, interface } = about;
            return Err(LoadError::Loop { plugin, interface, path: path.clone() });
        }
        let mut providers = Vec::new();
        for socket in &plugin.sockets {
            let provider = self.interface(socket).await;
            providers.push(provider.map_err(|error| about.socket(socket, &error))?);
        }
        let component = (plugin.source)(self.runtime.engine()).map_err(|error| about.source(error))?;
        let path = plugin.export.clone().unwrap_or_else(|| exported_path(&component, &interface.path));
        let functions = about.functions(interface, &path, &component)?;
        let resources = about.resources(&path, kinds, &component)?;
        let mut linker = self.linker.clone();
        let mut exclusive = Vec::new();
        for provider in &providers {
            let place = self.is_exclusive(&provider.interface).then_some(exclusive.len());
            if place.is_some() {
                exclusive.extend(provider.plugins.iter().cloned());
            }
            socket::offer(&mut linker, &component, provider, &self.tree.wires, Reach { mode: self.mode, place })
                .map_err(|(import, reason)| about.import(import, reason))?;
        }
        let pre = linker.instantiate_pre(&component).map_err(|error| {
            let import = self.undeclared(&component, &providers);
            about.import(import, format!("{error:#}"))
        })?;
        let parts = Parts {
            mode: self.mode,
            id: plugin.id.into(),
            interface: Arc::clone(interface),
            runtime: self.runtime.clone(),
            pre,
            functions,
            resources,
            data: plugin.data,
            limits: plugin.limits,
            exclusive,
        };
        let started = match self.mode {
            Mode::Blocking => Loaded::start(parts),
            #[cfg(feature = "async")]
            Mode::Yielding => Loaded::start_yielding(parts).await,
        };
        started.map_err(|reason| {
            let About { plugin, interface } = about;
            LoadError::Start { plugin, interface, reason }
        })
    }

    /// Whether a single plugin calls those of an interface, and nobody else has to do with them.
    fn is_exclusive(&self, interface: &Interface) -> bool {
        self.mode == Mode::Blocking
            && interface.id != self.tree.root
            && self.callers.get(&interface.id) == Some(&1)
            && interface.resources.is_empty()
            && interface.functions.iter().all(|function| function.plain)
    }

    /// The first import that no socket offers, for an error message.
    fn undeclared(&self, component: &Component, providers: &[Arc<Provider<T>>]) -> String {
        let ty = component.component_type();
        let paths = |path: &str| self.tree.interfaces.values().find(|known| known.path == path);
        let name = ty
            .imports(self.runtime.engine())
            .map(|(name, _)| name)
            .find(|name| paths(name).is_some() && !providers.iter().any(|provider| provider.interface.path == **name));
        name.map_or_else(
            || "from the host".to_owned(),
            |name| format!("{name:?}, which the plugin does not declare as a socket"),
        )
    }
}

/// The name by which a component exports an interface: its own, or else that of the highest version which is compatible
/// with it and not older, as semantic versioning has it.
fn exported_path(component: &Component, path: &str) -> String {
    let own = || path.to_owned();
    let Some((package, wanted)) = path.split_once('@') else { return own() };
    let Ok(wanted) = semver::VersionReq::parse(&format!("^{wanted}")) else { return own() };
    let ty = component.component_type();
    let mut later: Option<(semver::Version, &str)> = None;
    for (name, _) in ty.exports(component.engine()) {
        if name == path {
            return own();
        }
        let version = name.split_once('@').filter(|(known, _)| *known == package);
        if let Some(version) = version.and_then(|(_, version)| semver::Version::parse(version).ok())
            && wanted.matches(&version)
            && later.as_ref().is_none_or(|(known, _)| *known < version)
        {
            later = Some((version, name));
        }
    }
    later.map_or_else(own, |(_, name)| name.to_owned())
}

/// Names for error messages.
struct About {
    plugin: String,
    interface: String,
}

impl About {
    fn socket(&self, socket: &str, error: &LoadError) -> LoadError {
        let (plugin, interface) = (self.plugin.clone(), self.interface.clone());
        LoadError::InvalidSocket { plugin, interface, socket: socket.to_owned(), reason: error.to_string() }
    }

    fn source(&self, error: SourceError) -> LoadError {
        let (plugin, interface) = (self.plugin.clone(), self.interface.clone());
        match error {
            SourceError::Read(reason) => LoadError::Read { plugin, interface, reason },
            SourceError::Invalid(reason) => LoadError::InvalidComponent { plugin, interface, reason },
        }
    }

    fn import(&self, import: String, reason: String) -> LoadError {
        let (plugin, interface) = (self.plugin.clone(), self.interface.clone());
        LoadError::ImportNotSatisfied { plugin, interface, import, reason }
    }

    fn missing(&self, export: String) -> LoadError {
        let (plugin, interface) = (self.plugin.clone(), self.interface.clone());
        LoadError::ExportMissing { plugin, interface, export }
    }

    /// Where the component exports the interface's functions as `path`, each of the type that the interface says.
    fn functions(
        &self,
        interface: &Interface,
        path: &str,
        component: &Component,
    ) -> Result<Vec<ComponentExportIndex>, LoadError> {
        let engine = component.engine();
        let ty = component.component_type();
        let Some(ComponentItem::ComponentInstance(exported)) = ty.get_export(engine, path).map(|item| item.ty) else {
            return Err(self.missing(path.to_owned()));
        };
        let resources = resources_of(&exported, engine);
        let outer = component.get_export_index(None, path);
        let mut indices = Vec::new();
        for function in &interface.functions {
            let export = format!("{path}#{}", function.name);
            let Some(ComponentItem::ComponentFunc(func)) =
                exported.get_export(engine, &function.name).map(|item| item.ty)
            else {
                return Err(self.missing(export));
            };
            let found = Signature::of(&func, &resources);
            if found != function.signature {
                let (expected, found) = (function.signature.to_string(), found.to_string());
                let (plugin, interface) = (self.plugin.clone(), self.interface.clone());
                return Err(LoadError::ExportType { plugin, interface, export, expected, found });
            }
            let index = outer.as_ref().and_then(|outer| component.get_export_index(Some(outer), &function.name));
            indices.push(index.ok_or_else(|| self.missing(export))?);
        }
        Ok(indices)
    }

    fn resources(
        &self,
        path: &str,
        kinds: &[(String, u32)],
        component: &Component,
    ) -> Result<Vec<(ComponentExportIndex, u32)>, LoadError> {
        let outer = component.get_export_index(None, path);
        kinds
            .iter()
            .map(|(name, kind)| {
                let index = outer.as_ref().and_then(|outer| component.get_export_index(Some(outer), name));
                Ok((index.ok_or_else(|| self.missing(format!("{path}#{name}")))?, *kind))
            })
            .collect()
    }
}
