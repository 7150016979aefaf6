//! Control groups of workspaces and commands.
//!
//! ```text
//! <folder of this instance>/u<uid>/<workspace>/keeper       the workspace's first process
//!                          │                  /<command>    one leaf for each command, which ends as a whole
//!                          bound of all that one user has
//! ```
//!
//! Where the host gives no group, or one without controllers, limits are held as far as `setrlimit(2)` can, and what
//! is not held is said.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shipote_bus::spec::Soma;
use shipote_cgroup::{Cgroup, Controller, Controllers, Error, Events, IoLimit, Limits, Notice, Tree, Unmet};
use shipote_confinement::Mechanism;
use shipote_sandbox::Rlimits;
use tokio::task::{AbortHandle, JoinHandle};
use ulid::Ulid;

use crate::state::{LimitNote, manages};

/// Processes of a workspace whose spec names no number: enough for any build, too few to harm the host.
const PROCESSES: u32 = 4096;
/// Leaf of a workspace's first process.
const KEEPER: &str = "keeper";

/// What bounds all workspaces of one user.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) uid: u32,
    pub(crate) cgroup: Cgroup,
    /// Bytes of memory; None: no bound.
    pub(crate) memory: Option<u64>,
}

/// A workspace's group.
#[derive(Debug)]
struct Group {
    cgroup: Cgroup,
    /// None: an earlier version of this service made it, without.
    share: Option<Share>,
    soma: Soma,
    commands: HashMap<Ulid, Leaf>,
    watch: Option<AbortHandle>,
}

/// A command's group.
#[derive(Debug, Clone)]
struct Leaf {
    cgroup: Cgroup,
    soma: Soma,
    /// Processes that its workspace had been refused when it began.
    refused: u64,
    /// How often its user's memory had run out then.
    ran_out: u64,
}

/// A workspace's group that has just been made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) keeper: PathBuf,
    pub(crate) unmet: Vec<Unmet>,
}

/// All groups of this instance.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tree: Result<Tree, Mechanism>,
    /// Bytes of memory of all workspaces of one user who has no right to manage.
    user_memory: Option<u64>,
    /// Held where shares are made and removed.
    shares: Mutex<()>,
    groups: Mutex<HashMap<Ulid, Group>>,
    /// Limits of living commands that this host does not hold, for a person.
    notes: Mutex<HashMap<Ulid, String>>,
}

impl Cgroups {
    /// Makes this instance's folder. Call it first of all: the process may be moved, and its children with it.
    pub(crate) fn open(runtime: &Path, user_memory: Option<u64>) -> Self {
        let tree = Tree::open(&Tree::name(runtime))
            .map_err(|error| Mechanism::missing("cgroup", format!("{error}; figures come from /proc")));
        let (shares, groups, notes) = Default::default();
        Cgroups(Arc::new(Inner { tree, user_memory, shares, groups, notes }))
    }

    /// How far resources can be limited.
    pub(crate) fn mechanism(&self) -> Mechanism {
        match &self.0.tree {
            Ok(tree) => tree.mechanism(),
            Err(mechanism) => mechanism.clone(),
        }
    }

    /// What can be limited.
    pub(crate) fn controllers(&self) -> Controllers {
        self.0.tree.as_ref().map(Tree::controllers).unwrap_or_default()
    }

    /// Ends and removes what an earlier instance left, except the groups of workspaces that go on. The one place where
    /// that is decided. Blocks.
    pub(crate) fn clear_except(&self, living: &HashSet<Ulid>) {
        let Ok(tree) = &self.0.tree else { return };
        for name in tree.groups() {
            if is_living(&name, living) {
                continue;
            }
            let Some(group) = tree.existing(&name) else { continue };
            let ended = if name.starts_with('u') && Ulid::from_string(&name).is_err() {
                let gone = group.children().into_iter().filter(|name| !is_living(name, living));
                let ended = gone.filter_map(|name| group.existing(&name)).try_for_each(|group| group.end());
                ended.and_then(|()| group.discard().map(drop))
            } else {
                group.end()
            };
            if let Err(error) = ended {
                tracing::warn!("remove the control group of an earlier instance: {error}");
            }
        }
    }

    fn share(&self, tree: &Tree, uid: u32) -> Result<Share, Error> {
        let cgroup = tree.share(&share_name(uid))?;
        let memory = self.0.user_memory.filter(|_| !manages(uid));
        let limits = Limits { memory_max: memory, ..Limits::default() };
        // what is asked for and cannot be held is said of each workspace: its own limits need the same
        cgroup.limit(&limits, tree.controllers())?;
        Ok(Share { uid, cgroup, memory })
    }

    /// Takes over the group of a workspace that an earlier instance made, with the commands in it.
    pub(crate) fn adopt(&self, workspace: Ulid, uid: u32, soma: &Soma) {
        let Ok(tree) = &self.0.tree else { return };
        let shared = tree.existing(&format!("{}/{workspace}", share_name(uid)));
        let share = shared.as_ref().and_then(|_| self.share(tree, uid).ok());
        let Some(cgroup) = shared.or_else(|| tree.existing(&workspace.to_string())) else { return };
        let refused = cgroup.refused();
        let ran_out = share.as_ref().map_or(0, |share| share.cgroup.ran_out());
        let leaf = |name: String| {
            let leaf = Leaf { cgroup: cgroup.existing(&name)?, soma: Soma::default(), refused, ran_out };
            Some((Ulid::from_string(name.split_once('.').map_or(name.as_str(), |(id, _)| id)).ok()?, leaf))
        };
        let mut names = cgroup.children();
        // the last launch of a command is the one that counts
        names.sort_by_key(|name| (name.len(), name.clone()));
        let commands = names.into_iter().filter_map(leaf).collect();
        self.lock().insert(workspace, Group { cgroup, share, soma: soma.clone(), commands, watch: None });
    }

    /// Makes a workspace's group; `None`: the host gives none. Blocks.
    pub(crate) fn make(&self, workspace: Ulid, uid: u32, soma: &Soma) -> Result<Option<Made>, Error> {
        let Ok(tree) = &self.0.tree else { return Ok(None) };
        let (share, cgroup) = {
            // one that has just been left empty is not removed in between
            let _shares = self.0.shares.lock().unwrap_or_else(PoisonError::into_inner);
            // it stands as long as a group is in it
            let known =
                self.lock().values().find_map(|group| group.share.as_ref().filter(|share| share.uid == uid).cloned());
            let share = known.map_or_else(|| self.share(tree, uid), Ok)?;
            let cgroup = tree.group(&share.cgroup, &workspace.to_string())?;
            (Some(share), cgroup)
        };
        // from here on it is removed with the workspace, whatever fails
        let (soma_of, commands) = (soma.clone(), HashMap::new());
        let group = Group { cgroup: cgroup.clone(), share, soma: soma_of, commands, watch: None };
        self.lock().insert(workspace, group);
        let mut limits = limits(soma);
        // the first process is not the workspace's
        limits.pids_max = Some(u64::from(soma.processes().unwrap_or(PROCESSES)) + 1);
        let mut unmet = cgroup.limit(&limits, tree.controllers())?;
        // nobody asked for the number of processes that holds where none is named
        unmet.retain(|u| u.controller != Controller::Pids || soma.processes().is_some());
        let keeper = cgroup.child(KEEPER)?.path().to_owned();
        Ok(Some(Made { keeper, unmet }))
    }

    /// What a spec asks for and this host cannot hold.
    pub(crate) fn unmet(&self, soma: &Soma) -> Vec<Unmet> {
        limits(soma).unmet(self.controllers())
    }

    /// Has `task` ended with the workspace's group.
    pub(crate) fn attend(&self, workspace: Ulid, task: AbortHandle) {
        match self.lock().get_mut(&workspace) {
            Some(group) => group.watch = Some(task),
            None => task.abort(),
        }
    }

    /// The group of a workspace.
    pub(crate) fn of(&self, workspace: Ulid) -> Option<Cgroup> {
        self.lock().get(&workspace).map(|group| group.cgroup.clone())
    }

    /// What bounds all workspaces of the user of a workspace.
    pub(crate) fn share_of(&self, workspace: Ulid) -> Option<Share> {
        self.lock().get(&workspace).and_then(|group| group.share.clone())
    }

    /// The groups of a workspace's commands.
    pub(crate) fn leaves(&self, workspace: Ulid) -> Vec<Cgroup> {
        let groups = self.lock();
        let all = groups.get(&workspace).map(|group| group.commands.values().map(|leaf| leaf.cgroup.clone()).collect());
        all.unwrap_or_default()
    }

    /// Makes a command's leaf, to be started in; `None`: its workspace has no group. Blocks.
    pub(crate) fn command(&self, workspace: Ulid, command: Ulid, soma: &Soma) -> Result<Option<Arc<OwnedFd>>, Error> {
        let Some(group) = self.of(workspace) else {
            self.note(command, &self.unmet(soma));
            return Ok(None);
        };
        let cgroup = self.leaf(&group, command)?;
        let refused = if group.controllers().has(Controller::Pids) { group.refused() } else { 0 };
        let bounded = self.share_of(workspace).filter(|share| share.memory.is_some());
        let ran_out = bounded.map_or(0, |share| share.cgroup.ran_out());
        let leaf = Leaf { cgroup: cgroup.clone(), soma: soma.clone(), refused, ran_out };
        if let Some(group) = self.lock().get_mut(&workspace) {
            group.commands.insert(command, leaf);
        }
        let limits = Limits { oom_group: true, ..limits(soma) };
        let unmet = cgroup.limit(&limits, group.controllers())?;
        self.note(command, &unmet);
        Ok(Some(Arc::new(cgroup.open()?)))
    }

    /// Remembers what a command asked for in vain, to be said with its end.
    fn note(&self, command: Ulid, unmet: &[Unmet]) {
        if !unmet.is_empty() {
            self.notes().insert(command, describe(unmet));
        }
    }

    fn notes(&self) -> MutexGuard<'_, HashMap<Ulid, String>> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command that is started anew gets another leaf, and what the launch before left behind is ended.
    fn leaf(&self, group: &Cgroup, command: Ulid) -> Result<Cgroup, Error> {
        let mut launch = 0_u32;
        loop {
            let name = if launch == 0 { command.to_string() } else { format!("{command}.{launch}") };
            match group.child(&name) {
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                    if let Some(Err(error)) = group.existing(&name).map(|leaf| leaf.kill()) {
                        tracing::debug!("end what the command {command} left behind: {error}");
                    }
                    launch += 1;
                }
                made => return made,
            }
        }
    }

    /// What limits had to do with the end of a command. Its leaf goes once nothing is in it.
    pub(crate) fn ended(&self, workspace: Ulid, command: Ulid, status: i32) -> LimitNote {
        let mut note = self.reached(workspace, command, status);
        let in_vain = self.notes().remove(&command);
        if note.message.is_empty() {
            note.message = in_vain.unwrap_or_default();
        }
        note
    }

    fn reached(&self, workspace: Ulid, command: Ulid, status: i32) -> LimitNote {
        let found = {
            let groups = self.lock();
            groups.get(&workspace).and_then(|g| {
                Some((g.cgroup.clone(), g.share.clone(), g.soma.clone(), g.commands.get(&command)?.clone()))
            })
        };
        let Some((group, share, soma, leaf)) = found else { return LimitNote::default() };
        let note = if status == 0 || group.controllers().is_empty() {
            // one that bore a refusal has done its work
            LimitNote::default()
        } else {
            let bound = share.and_then(|share| {
                let limit = share.memory.filter(|_| share.cgroup.ran_out() > leaf.ran_out)?;
                Some((share.uid, limit))
            });
            let counts = Counts { own: leaf.cgroup.events(), all: group.events(), refused: leaf.refused, bound };
            explain(&leaf.soma, &soma, counts)
        };
        tokio::spawn(self.clone().retire(workspace, command, leaf.cgroup));
        note
    }

    /// Removes a leaf, at once or when the last process that the command left behind ends.
    async fn retire(self, workspace: Ulid, command: Ulid, leaf: Cgroup) {
        // whoever waits for the end is told first
        tokio::task::yield_now().await;
        // Nearly all leave nothing behind. What has to be waited for is watched before it is tried again, so that no end
        // falls in between.
        let mut watched: Option<Notice> = None;
        loop {
            let it = leaf.clone();
            match tokio::task::spawn_blocking(move || it.remove()).await {
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::warn!("the command {command} has ended: {error}");
                    break;
                }
                _ => break,
            }
            if let Some(notice) = watched.take()
                && notice.changed().await.is_err()
            {
                break;
            }
            watched = leaf.watch("cgroup.events").ok().and_then(|file| Notice::new(file).ok());
            if watched.is_none() {
                break;
            }
        }
        if let Some(group) = self.lock().get_mut(&workspace)
            && group.commands.get(&command).is_some_and(|known| known.cgroup.path() == leaf.path())
        {
            group.commands.remove(&command);
        }
    }

    /// Kills all that a command has started, also what has left its process group.
    pub(crate) fn kill(&self, workspace: Ulid, command: Ulid) {
        let leaf = self.lock().get(&workspace).and_then(|g| Some(g.commands.get(&command)?.cgroup.clone()));
        if let Some(Err(error)) = leaf.map(|leaf| leaf.kill()) {
            // it ended in the meantime
            tracing::debug!("kill the command {command}: {error}");
        }
    }

    /// Kills what any command of a workspace has started.
    pub(crate) fn kill_all(&self, workspace: Ulid) {
        let commands: Vec<Ulid> =
            self.lock().get(&workspace).map(|g| g.commands.keys().copied().collect()).unwrap_or_default();
        for command in commands {
            self.kill(workspace, command);
        }
    }

    /// The workspace is gone: ends and removes its group.
    pub(crate) fn remove(&self, workspace: Ulid) {
        // it goes on by itself
        drop(self.dismiss(workspace));
    }

    /// The same, to its end.
    pub(crate) async fn removed(&self, workspace: Ulid) {
        if let Some(dismissed) = self.dismiss(workspace) {
            let _ = dismissed.await;
        }
    }

    fn dismiss(&self, workspace: Ulid) -> Option<JoinHandle<()>> {
        let group = self.lock().remove(&workspace)?;
        if let Some(watch) = group.watch {
            watch.abort();
        }
        let it = self.clone();
        Some(tokio::task::spawn_blocking(move || {
            // most have nothing else left; what it does not do, the next line does or says
            let _ = group.cgroup.below(KEEPER).discard();
            if let Err(error) = group.cgroup.end() {
                tracing::warn!("the workspace {workspace} has ended: {error}");
            }
            let _shares = it.0.shares.lock().unwrap_or_else(PoisonError::into_inner);
            let others =
                |share: &Share| it.lock().values().any(|g| g.share.as_ref().is_some_and(|s| s.uid == share.uid));
            if let Some(Err(error)) = group.share.filter(|share| !others(share)).map(|share| share.cgroup.discard()) {
                tracing::warn!("the last workspace of a user has ended: {error}");
            }
        }))
    }

    /// The service ends: removes the groups that nothing lives on in. Blocks.
    pub(crate) fn close(&self) {
        let Ok(tree) = &self.0.tree else { return };
        for name in tree.groups() {
            // what lives on is found by the next instance
            let _ = tree.existing(&name).map(|group| group.remove());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ulid, Group>> {
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn share_name(uid: u32) -> String {
    format!("u{uid}")
}

/// Whether a group is that of a workspace that goes on.
fn is_living(name: &str, living: &HashSet<Ulid>) -> bool {
    Ulid::from_string(name).is_ok_and(|id| living.contains(&id))
}

/// Limits of a group, of a workspace or of a command.
fn limits(soma: &Soma) -> Limits {
    let cgroup = &soma.cgroup;
    let io = cgroup.io_max.iter().filter_map(|io| {
        let device = io.numbers()?;
        Some(IoLimit { device, rbps: io.rbps, wbps: io.wbps, riops: io.riops, wiops: io.wiops })
    });
    Limits {
        memory_max: soma.memory(),
        memory_high: cgroup.memory_high,
        pids_max: soma.processes().map(u64::from),
        cpu_max: cgroup.cpu_max,
        cpu_weight: cgroup.cpu_weight,
        io_weight: cgroup.io_weight,
        io_max: io.collect(),
        cpus: soma.cpu_affinity.clone().unwrap_or_default(),
        oom_group: false,
    }
}

/// Limits of each process. What the group cannot hold for all together is held for each, which is the most that is left.
pub(super) fn rlimits(soma: &Soma, available: Controllers) -> Rlimits {
    let lacks = |controller| !available.has(controller);
    let memory = if lacks(Controller::Memory) { soma.memory() } else { soma.rlimits.mem_bytes };
    let processes = if lacks(Controller::Pids) { soma.processes() } else { soma.rlimits.nproc };
    Rlimits {
        mem_bytes: memory,
        nproc: processes.map(u64::from),
        nofile: soma.rlimits.nofile.map(u64::from),
        ..Rlimits::default()
    }
}

/// The unmet limits, for a person.
pub(super) fn describe(unmet: &[Unmet]) -> String {
    let one = |u: &Unmet| {
        let instead = match u.limit {
            "memory_max" | "pids_max" => "held for each process only",
            "cpu_affinity" => "a command can change its own",
            _ => "not held",
        };
        format!("{} is {instead}, there is no controller for {}", u.limit, u.controller.as_str())
    };
    unmet.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// How often limits were reached: in a command's leaf and in its workspace, and processes refused there when it began.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    own: Events,
    all: Events,
    refused: u64,
    /// The user whose workspaces ran out of memory together meanwhile, and their limit.
    bound: Option<(u32, u64)>,
}

/// Why the kernel refused or ended processes of a command that failed.
fn explain(leaf: &Soma, workspace: &Soma, counts: Counts) -> LimitNote {
    let Counts { own, all, refused, bound } = counts;
    if own.oom_kill > 0 {
        let message = match (leaf.memory(), workspace.memory()) {
            (Some(limit), _) if own.oom > 0 => {
                format!("it was ended because its memory reached its limit of {limit} bytes; allow more with --memory")
            }
            (None, _) if own.oom > 0 => "it was ended because its memory reached its own limit".to_owned(),
            (_, Some(limit)) if all.oom_here > 0 => format!(
                "it was ended because the memory of its workspace reached the limit of {limit} bytes; allow more in \
                 soma.cgroup.memory_max of the workspace's spec"
            ),
            _ if bound.is_some() => {
                let (uid, limit) = bound.unwrap_or_default();
                format!(
                    "it was ended because the memory of all workspaces of user {uid} reached their limit of {limit} \
                     bytes; stop some, or allow more with user_memory_max of [workspaces] in the configuration"
                )
            }
            _ => "it was ended because the host's memory ran out; set soma.cgroup.memory_max to bound each workspace"
                .to_owned(),
        };
        return LimitNote { reason: "out-of-memory", message };
    }
    if own.pids_max > 0 || all.pids_max_here > refused {
        let message = match leaf.processes() {
            Some(limit) if own.pids_max > 0 => {
                format!("it was refused processes beyond its limit of {limit}; allow more with --pids")
            }
            // the kernel counts these with the workspace, whoever of it asked
            _ => format!(
                "processes beyond its workspace's limit of {} were refused while it ran; allow more in \
                 soma.cgroup.pids_max of the workspace's spec",
                workspace.processes().unwrap_or(PROCESSES)
            ),
        };
        return LimitNote { reason: "process-limit", message };
    }
    LimitNote::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soma(text: &str) -> Soma {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_note_names_the_limit_that_was_reached() {
        let none = Soma::default();
        let (tight, wide) =
            (soma("cgroup={memory_max=2000000,pids_max=3}"), soma("cgroup={memory_max=9000000,pids_max=9}"));
        let killed = |own_oom, all_oom| {
            let own = Events { oom_kill: 1, oom: own_oom, ..Events::default() };
            (own, Events { oom_kill: 1, oom: own_oom + all_oom, oom_here: all_oom, ..Events::default() })
        };
        let refused = |own, here| {
            (
                Events { pids_max: own, ..Events::default() },
                Events { pids_max: own + here, pids_max_here: here, ..Events::default() },
            )
        };
        for (leaf, workspace, (own, all), reason, text) in [
            (&tight, &wide, Default::default(), "", ""),
            (&tight, &wide, killed(1, 0), "out-of-memory", "its limit of 2000000"),
            (&tight, &wide, killed(0, 1), "out-of-memory", "workspace reached the limit of 9000000"),
            (&none, &wide, killed(0, 1), "out-of-memory", "workspace reached the limit of 9000000"),
            (&none, &none, killed(0, 0), "out-of-memory", "the host's memory"),
            // one that was taken over, whose own limits are not known any more
            (&none, &wide, killed(1, 0), "out-of-memory", "its own limit"),
            (&tight, &wide, refused(1, 0), "process-limit", "its limit of 3"),
            (&none, &wide, refused(0, 1), "process-limit", "workspace's limit of 9"),
            (&none, &none, refused(0, 1), "process-limit", "limit of 4096"),
        ] {
            let note = explain(leaf, workspace, Counts { own, all, refused: 0, bound: None });
            assert_eq!(note.reason, reason, "{note:?}");
            assert!(note.message.contains(text), "{note:?}");
        }
        // refused before it began, or to a neighbour that met its own limit: not its business
        for all in [Events { pids_max_here: 7, ..Events::default() }, Events { pids_max: 9, ..Events::default() }] {
            let counts = Counts { all, refused: 7, ..Counts::default() };
            assert_eq!(explain(&none, &none, counts), LimitNote::default());
        }
        // a neighbour met its own limit, and the host ended this one
        let neighbour = Counts { own: killed(0, 0).0, all: killed(1, 0).1, refused: 0, bound: None };
        assert!(explain(&none, &wide, neighbour).message.contains("the host's memory"));
        // its user's other workspaces had taken all that there was for the user
        let bounded = Counts { bound: Some((7, 5000)), ..neighbour };
        let note = explain(&none, &wide, bounded);
        assert!(note.message.contains("all workspaces of user 7 reached their limit of 5000"), "{note:?}");
        // its own limit, or its workspace's, is the nearer reason
        let own = Counts { own: killed(1, 0).0, ..bounded };
        assert!(explain(&tight, &wide, own).message.contains("its limit of 2000000"));
    }

    #[test]
    fn without_controllers_each_process_is_limited() {
        let asked = soma("rlimits={nproc=50}\ncgroup={memory_max=1048576,pids_max=5,cpu_max=50}");
        let every = Controllers::parse("cpu memory pids");
        assert_eq!(rlimits(&asked, every), Rlimits { nproc: Some(50), ..Rlimits::default() });
        let none = rlimits(&asked, Controllers::default());
        assert_eq!(none, Rlimits { mem_bytes: Some(1 << 20), nproc: Some(5), ..Rlimits::default() });
        let unmet = limits(&asked).unmet(Controllers::parse("memory"));
        assert_eq!(unmet.iter().map(|u| u.controller).collect::<Vec<_>>(), [Controller::Pids, Controller::Cpu]);
        assert_eq!(
            describe(&unmet),
            "pids_max is held for each process only, there is no controller for pids; cpu_max is not held, there is no \
             controller for cpu"
        );
    }
}
