//! Workspaces and commands start in the cgroups they are given. Needs a cgroup v2 that the caller may
//! write to; without one the tests say so and pass.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{Workspace, command, shell};
use shipote_sandbox::{SandboxSpec, Stdio};

/// Cgroups for one test, removed with it.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?.to_owned();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        let path = Path::new(&mount).join(own).join(format!("shipote-test-{}-{name}", std::process::id()));
        if fs::create_dir(&path).is_err() {
            eprintln!("not tested: no cgroup can be made at {}", path.display());
            return None;
        }
        for leaf in ["keeper", "command"] {
            fs::create_dir(path.join(leaf)).unwrap();
        }
        Some(Self(path))
    }

    fn processes(&self, leaf: &str) -> Vec<i32> {
        let text = fs::read_to_string(self.0.join(leaf).join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn spec(&self) -> SandboxSpec {
        SandboxSpec { cgroup: Some(self.0.join("keeper")), ..SandboxSpec::default() }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for leaf in ["keeper", "command", ""] {
            let _ = fs::remove_dir(self.0.join(leaf));
        }
    }
}

#[tokio::test]
async fn keeper_and_command_start_in_their_cgroups() {
    let Some(tree) = Tree::new("place") else { return };
    let mut workspace = Workspace::with(&tree.spec()).await;
    assert_eq!(tree.processes("keeper"), [workspace.keeper.pid()]);
    let directory: OwnedFd = File::open(tree.0.join("command")).unwrap().into();
    let mut spec = command("sleep", &["1000"]);
    spec.cgroup = Some(Arc::new(directory));
    let spawned = workspace.keeper.spawn(100, &spec, Stdio::default()).await.unwrap();
    assert_eq!(tree.processes("command"), [spawned.pid]);
    // What it sees is the root of its own namespace.
    let mut spec = shell("grep ^0: /proc/self/cgroup");
    spec.cgroup = Some(Arc::new(File::open(tree.0.join("command")).unwrap().into()));
    assert_eq!(workspace.run(&spec).await.stdout, "0::/\n");
    fs::write(tree.0.join("command/cgroup.kill"), "1").unwrap();
    let Some(shipote_sandbox::Event::Exited { id: 100, signal: Some(9), .. }) = workspace.events.next().await else {
        panic!("another event");
    };
    workspace.keeper.end(Duration::ZERO).await.unwrap();
    while workspace.events.next().await.is_some() {}
}

#[tokio::test]
async fn a_frozen_workspace_can_be_killed() {
    let Some(tree) = Tree::new("frozen") else { return };
    let mut workspace = Workspace::with(&tree.spec()).await;
    workspace.keeper.spawn(1, &command("sleep", &["1000"]), Stdio::default()).await.unwrap();
    fs::write(tree.0.join("keeper/cgroup.freeze"), "1").unwrap();
    fs::write(tree.0.join("keeper/cgroup.kill"), "1").unwrap();
    while workspace.events.next().await.is_some() {}
    assert!(tree.processes("keeper").is_empty());
}
