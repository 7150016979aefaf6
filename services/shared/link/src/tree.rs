//! The tree of what depends on what, before anything is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use crate::error::TreeError;
use crate::interface::Interface;
use crate::plugin::Plugin;
use crate::wire::Wire;

/// Interfaces and plugins, seen from a root interface. Nothing of it is loaded.
pub struct Tree<T: 'static> {
    pub(crate) root: String,
    pub(crate) interfaces: BTreeMap<String, Arc<Interface>>,
    pub(crate) plugins: BTreeMap<String, Plugin<T>>,
    /// Plugins whose sockets lead back to themselves, with the way there.
    pub(crate) loops: BTreeMap<String, Vec<String>>,
    /// Functions whose types are known, by interface and name.
    pub(crate) wires: BTreeMap<(String, String), Arc<dyn Wire<T>>>,
}

impl<T> std::fmt::Debug for Tree<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("root", &self.root).finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Tree<T> {
    /// Builds the tree that hangs from the interface `root`. An `Err` among the inputs stands for one that the host could
    /// not read, and says which. What is wrong is listed; what is left is kept.
    #[must_use]
    pub fn new(
        root: impl Into<String>,
        interfaces: impl IntoIterator<Item = Result<Interface, (String, String)>>,
        plugins: impl IntoIterator<Item = Result<Plugin<T>, (String, String)>>,
    ) -> (Self, Vec<TreeError>) {
        let mut errors = Vec::new();
        let mut known: BTreeMap<String, Arc<Interface>> = BTreeMap::new();
        for interface in interfaces {
            match interface {
                Err((what, reason)) => errors.push(TreeError::Unreadable { what, reason }),
                Ok(interface) if known.contains_key(&interface.id) => {
                    errors.push(TreeError::DuplicateInterface { interface: interface.id });
                }
                Ok(interface) => drop(known.insert(interface.id.clone(), Arc::new(interface))),
            }
        }
        let mut kept: BTreeMap<String, Plugin<T>> = BTreeMap::new();
        for plugin in plugins {
            match plugin {
                Err((what, reason)) => errors.push(TreeError::Unreadable { what, reason }),
                Ok(plugin) if kept.contains_key(&plugin.id) => {
                    errors.push(TreeError::DuplicatePlugin { plugin: plugin.id });
                }
                Ok(plugin) => drop(kept.insert(plugin.id.clone(), plugin)),
            }
        }
        let mut tree = Self {
            root: root.into(),
            interfaces: known,
            plugins: kept,
            loops: BTreeMap::new(),
            wires: BTreeMap::new(),
        };
        tree.find_missing(&mut errors);
        tree.find_cycles(&mut errors);
        (tree, errors)
    }

    /// Says that a function's types are known: calls of it through sockets then skip the detour over untyped values.
    /// `P` is the tuple of parameters, `R` the result. Types that don't match the interface show as an unsatisfied import
    /// at load. A function that passes handles stays untyped.
    #[must_use]
    pub fn typed<P, R>(mut self, interface: &str, function: &str) -> Self
    where
        P: 'static,
        R: 'static,
        crate::wire::TypedWire<P, R>: Wire<T>,
    {
        let wire: Arc<dyn Wire<T>> = Arc::new(crate::wire::TypedWire::<P, R>::new());
        self.wires.insert((interface.to_owned(), function.to_owned()), wire);
        self
    }

    /// Plugins that plug into `interface`, by id.
    pub(crate) fn plugged_into(&self, interface: &str) -> Vec<String> {
        self.plugins.values().filter(|plugin| plugin.plug == interface).map(|plugin| plugin.id.clone()).collect()
    }

    fn find_missing(&self, errors: &mut Vec<TreeError>) {
        let mut wanted = vec![(&self.root, "the root".to_owned())];
        for plugin in self.plugins.values() {
            let sockets = plugin.sockets.iter().chain([&plugin.plug]);
            wanted.extend(sockets.map(|name| (name, format!("plugin {:?}", plugin.id))));
        }
        for (interface, wanted_by) in wanted {
            if !self.interfaces.contains_key(interface) {
                errors.push(TreeError::MissingInterface { interface: interface.clone(), wanted_by });
            }
        }
    }

    fn find_cycles(&mut self, errors: &mut Vec<TreeError>) {
        let mut done = BTreeSet::new();
        let mut loops = BTreeMap::new();
        self.walk(&self.root.clone(), &mut Vec::new(), &mut done, &mut loops);
        errors.extend(loops.values().map(|path| TreeError::Cycle { path: Vec::clone(path) }));
        self.loops = loops;
    }

    /// Depth first. The path holds interfaces and plugins in turn.
    fn walk(
        &self,
        interface: &str,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
        loops: &mut BTreeMap<String, Vec<String>>,
    ) {
        if done.contains(interface) {
            return;
        }
        if let Some(start) = path.iter().step_by(2).position(|seen| seen == interface) {
            let closing = path[path.len() - 1].clone();
            let mut round = path[start * 2..].to_vec();
            round.push(interface.to_owned());
            loops.entry(closing).or_insert(round);
            return;
        }
        path.push(interface.to_owned());
        for id in self.plugged_into(interface) {
            path.push(id.clone());
            for socket in &self.plugins[&id].sockets {
                self.walk(socket, path, done, loops);
            }
            path.pop();
        }
        path.pop();
        done.insert(interface.to_owned());
    }

    /// The tree as a Mermaid flow chart: interfaces are rounded, plugins square.
    #[must_use]
    pub fn mermaid(&self) -> String {
        let mut chart = "flowchart TD\n".to_owned();
        let mut seen = BTreeSet::new();
        let mut open = vec![self.root.clone()];
        while let Some(id) = open.pop() {
            let Some(interface) = self.interfaces.get(&id).filter(|_| seen.insert(id.clone())) else { continue };
            let _ = writeln!(chart, "  i_{id}([\"{} ({})\"])", interface.path, interface.cardinality);
            for plugin in self.plugged_into(&id) {
                let _ = writeln!(chart, "  p_{plugin}[\"{plugin}\"]\n  i_{id} --> p_{plugin}");
                for socket in &self.plugins[&plugin].sockets {
                    let _ = writeln!(chart, "  p_{plugin} -.-> i_{socket}");
                    open.push(socket.clone());
                }
            }
        }
        chart
    }
}
