//! The folder of groups that belongs to one instance of a service.
//!
//! ```text
//! <delegated>/           made by the service manager, owned by the service's user
//!   service/             the service itself, and what it starts for itself
//!   <name>/              the folder: all that this crate makes is below it
//!     <share>/           limits of several together, where the caller wants that: of one user's
//!       <group>/         limits of a whole, here or right below the folder
//!         <leaf>/        processes: no group has both processes and groups with controllers below it
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use shipote_confinement::Mechanism;

use crate::{Cgroup, Controller, Controllers, Error, Place};

/// Where a service without a leaf of its own is moved to.
const OWN_LEAF: &str = "service";

/// Longest part of a path in a folder's name; names have 255 bytes.
const NAME_MAX: usize = 200;

/// The groups of one instance of a service.
#[derive(Debug, Clone)]
pub struct Tree {
    folder: Cgroup,
    delegated: bool,
    /// Why a controller that the host has is not to be had.
    refused: Option<String>,
}

impl Tree {
    /// The name of an instance's folder: its runtime folder's path, escaped as systemd does, so that two instances in
    /// one group never meet and an instance finds again what it made.
    #[must_use]
    pub fn name(runtime: &Path) -> String {
        let path = runtime.to_string_lossy().trim_matches('/').replace('-', "\\x2d").replace('/', "-");
        let start = (path.len().saturating_sub(NAME_MAX)..path.len()).find(|&at| path.is_char_boundary(at));
        format!("shipote:{}", &path[start.unwrap_or_default()..])
    }

    /// Where the folder called `name` lies or would lie; nothing is made.
    #[must_use]
    pub fn path(name: &str) -> Option<PathBuf> {
        Some(Place::find().ok()?.root().join(name))
    }

    /// Makes the folder called `name`, or takes over the one that an earlier instance left, with every controller
    /// that can be had. Call it before the process has children or confines itself: a process that sits in the
    /// delegated group itself is moved to a leaf.
    ///
    /// # Errors
    /// There is no hierarchy, or no group can be made in it.
    pub fn open(name: &str) -> Result<Self, Error> {
        Self::open_at(&Place::find()?, name)
    }

    fn open_at(place: &Place, name: &str) -> Result<Self, Error> {
        let root = place.root();
        if place.delegated.as_ref() == Some(&place.own) {
            let leaf = root.join(OWN_LEAF);
            make(&leaf)?;
            let procs = leaf.join("cgroup.procs");
            fs::write(&procs, "0").map_err(Error::io("move this process by", &procs))?;
        }
        let (_, refused) = enable(root);
        let path = root.join(name);
        make(&path)?;
        let (controllers, further) = enable(&path);
        let folder = Cgroup::at(path, controllers);
        Ok(Tree { folder, delegated: place.delegated.is_some(), refused: refused.or(further) })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What groups in it can limit.
    #[must_use]
    pub fn controllers(&self) -> Controllers {
        self.folder.controllers()
    }

    /// Makes a group that bounds several together, or finds it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn share(&self, name: &str) -> Result<Cgroup, Error> {
        let path = self.folder().join(name);
        make(&path)?;
        let (controllers, _) = enable(&path);
        Ok(Cgroup::at(path, controllers))
    }

    /// Makes a group in a share, with every controller for the groups below it.
    ///
    /// # Errors
    /// The kernel refuses; there may be a group of that name already.
    pub fn group(&self, share: &Cgroup, name: &str) -> Result<Cgroup, Error> {
        let group = share.child(name)?;
        // It is new: it has what the share gives, and gives nothing yet.
        let (controllers, _) = give(group.path(), share.controllers(), Controllers::default());
        Ok(Cgroup::at(group.path().to_owned(), controllers))
    }

    /// A group that an earlier instance made, by its path below the folder.
    #[must_use]
    pub fn existing(&self, name: &str) -> Option<Cgroup> {
        let path = self.folder().join(name);
        path.is_dir().then(|| Cgroup::at(path, self.controllers()))
    }

    /// Names of the groups that are there.
    #[must_use]
    pub fn groups(&self) -> Vec<String> {
        self.folder.children()
    }

    /// Removes the folder called `name` with all groups in it, where no process is in any of them: the service itself, once confined, may not.
    pub fn discard(name: &str) {
        if let Some(path) = Self::path(name) {
            // what is still in use is found by the next instance
            let _ = Cgroup::at(path, Controllers::default()).remove();
        }
    }

    /// How far resources can be limited here.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        // cpuset is not in the list: the affinity of the processes does nearly the same
        let lacking: Vec<&str> =
            self.controllers().lacking().filter(|c| *c != Controller::Cpuset).map(Controller::as_str).collect();
        if lacking.is_empty() {
            let how = if self.delegated { "delegated" } else { "not delegated, made in the service's own group" };
            return Mechanism::enforced("cgroup", how);
        }
        let mut reason = format!("no controller for {}", lacking.join(", "));
        if let Some(why) = &self.refused {
            reason = format!("{reason}: {why}");
        }
        Mechanism::degraded("cgroup", format!("{reason}; figures come from /proc"))
    }
}

/// mkdir(2); one that is there is as good.
fn make(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::io("make", path)(error)),
        _ => Ok(()),
    }
}

/// Gives every controller that a group has to the groups below it: which they are, and why another is not.
fn enable(group: &Path) -> (Controllers, Option<String>) {
    let read = |name: &str| Controllers::parse(&fs::read_to_string(group.join(name)).unwrap_or_default());
    give(group, read("cgroup.controllers"), read("cgroup.subtree_control"))
}

/// The same for a group that has and gives these.
fn give(group: &Path, has: Controllers, mut given: Controllers) -> (Controllers, Option<String>) {
    let mut refused = None;
    let wanted: Vec<Controller> = has.iter().filter(|c| !given.has(*c)).collect();
    if wanted.is_empty() {
        return (given, None);
    }
    let file = group.join("cgroup.subtree_control");
    let text = |of: &[Controller]| of.iter().map(|c| format!("+{}", c.as_str())).collect::<Vec<_>>().join(" ");
    // one write for all is all or nothing
    if fs::write(&file, text(&wanted)).is_ok() {
        return (has, None);
    }
    for controller in wanted {
        match fs::write(&file, text(&[controller])) {
            Ok(()) => given = given.with(controller),
            Err(error) => refused = Some(format!("{}: {error}", file.display())),
        }
    }
    (given, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain files do for what the kernel's would answer.
    fn fake(controllers: &str) -> (tempfile::TempDir, Place) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(folder.path().join("cgroup.subtree_control"), "").unwrap();
        let place = Place { own: folder.path().join("service"), delegated: Some(folder.path().to_owned()) };
        (folder, place)
    }

    #[test]
    fn every_controller_is_asked_for_at_once() {
        let (folder, place) = fake("cpuset cpu io memory hugetlb pids\n");
        fs::create_dir(folder.path().join("x")).unwrap();
        fs::write(folder.path().join("x/cgroup.controllers"), "cpu memory pids io\n").unwrap();
        let tree = Tree::open_at(&place, "x").unwrap();
        let asked = fs::read_to_string(folder.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(asked, "+cpu +cpuset +io +memory +pids");
        assert_eq!(tree.controllers().to_string(), "cpu, io, memory, pids");
        assert_eq!(tree.mechanism(), Mechanism::enforced("cgroup", "delegated"));
    }

    #[test]
    fn what_is_lacking_is_said() {
        let (_folder, place) = fake("cpu\n");
        let tree = Tree::open_at(&place, "x").unwrap();
        let mechanism = tree.mechanism();
        assert!(!mechanism.is_enforced());
        assert!(mechanism.reason.starts_with("no controller for cpu, io, memory, pids;"), "{mechanism}");
    }

    #[test]
    fn a_process_in_the_delegated_group_is_moved_out_of_it() {
        let (folder, mut place) = fake("");
        place.own = folder.path().to_owned();
        fs::create_dir(folder.path().join("service")).unwrap();
        Tree::open_at(&place, "x").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("service/cgroup.procs")).unwrap(), "0");
    }

    #[test]
    fn names_tell_instances_apart() {
        assert_eq!(Tree::name(Path::new("/run/shipote/workspaces")), "shipote:run-shipote-workspaces");
        assert_ne!(Tree::name(Path::new("/a/b")), Tree::name(Path::new("/a-b")));
        assert!(Tree::name(Path::new(&"/\u{fc}".repeat(500))).len() <= 255);
    }

    #[test]
    fn groups_are_found_again() {
        let (_folder, place) = fake("");
        let tree = Tree::open_at(&place, "x").unwrap();
        let share = tree.share("u1").unwrap();
        tree.group(&share, "a").unwrap();
        assert!(tree.group(&tree.share("u1").unwrap(), "a").is_err());
        assert!(!share.discard().unwrap(), "one with a group in it stays");
        let again = Tree::open_at(&place, "x").unwrap();
        assert_eq!(again.groups(), ["u1"]);
        assert!(again.existing("u1/a").is_some() && again.existing("u1/b").is_none());
    }
}
