//! Nothing outlives its owner, and nothing is left behind.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio as ProcessStdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Workspace, command, shell, spawner};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shipote_sandbox::{Adopted, Event, Keeper, SandboxError, SandboxSpec, SpawnerConfig, Stdio, probe};

fn pidfd(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap()
}

/// Waits until the process has ended; ten seconds are as good as never.
fn await_end(pidfd: &OwnedFd, what: &str) {
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "{what} lives on");
}

/// Open descriptors, mounts, and children that are not reaped.
fn holdings() -> (usize, usize, usize) {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let children = fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default())
        .map(|children| children.split_whitespace().count())
        .sum();
    (descriptors, mounts, children)
}

/// Counting what a process holds needs a process of its own: this test binary again.
fn in_a_process(test: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .stdout(ProcessStdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn killing_the_service_leaves_no_process_behind() {
    let mut service = in_a_process("service_to_be_killed");
    let mut lines = BufReader::new(service.stdout.take().unwrap()).lines();
    let pids: Vec<i32> = lines
        .by_ref()
        .map(Result::unwrap)
        .find_map(|line| line.split_once("pids ").map(|(_, pids)| pids.to_owned()))
        .unwrap()
        .split(' ')
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert_eq!(pids.len(), 7);
    let pidfds: Vec<OwnedFd> = pids.into_iter().map(pidfd).collect();
    service.kill().unwrap();
    service.wait().unwrap();
    for (pidfd, what) in pidfds.iter().zip(["spawner", "keeper", "keeper", "command", "command", "child", "child"]) {
        await_end(pidfd, what);
    }
}

#[tokio::test]
#[ignore = "the process of killing_the_service_leaves_no_process_behind"]
async fn service_to_be_killed() {
    let spawner = spawner();
    let mut pids = vec![spawner.pid()];
    let (one, _events) = spawner.workspace(&SandboxSpec::default()).await.unwrap();
    let (two, _events) = spawner.workspace(&SandboxSpec::default()).await.unwrap();
    pids.extend([one.pid(), two.pid()]);
    let mut children: Vec<i32> = Vec::new();
    for keeper in [&one, &two] {
        // Deaf to all that can be ignored, and with a child in a session of its own.
        let spec = shell("trap '' TERM HUP INT; setsid sleep 1000 & echo up; wait; sleep 1000");
        let (mut read, write) = common::pipe();
        let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
        let pid = keeper.spawn(1, &spec, stdio).await.unwrap().pid;
        read.read_exact(&mut [0; 3]).unwrap();
        let child = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        pids.push(pid);
        children.push(child.split_whitespace().next().unwrap().parse().unwrap());
    }
    pids.extend(children);
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    println!("pids {}", pids.join(" "));
    std::future::pending::<()>().await;
}

#[test]
fn hundreds_of_workspaces_and_commands_leave_nothing_behind() {
    assert!(in_a_process("holdings_do_not_grow").wait().unwrap().success());
}

#[tokio::test]
#[ignore = "the process of hundreds_of_workspaces_and_commands_leave_nothing_behind"]
async fn holdings_do_not_grow() {
    let before_spawner = holdings();
    let spawner = spawner();
    let spec = SandboxSpec { scratch_bytes: 1 << 20, ..SandboxSpec::default() };
    // Once, so that what is made on first use is there.
    let (keeper, _) = spawner.workspace(&spec).await.unwrap();
    keeper.end(Duration::ZERO).await.unwrap();
    let before = holdings();
    for round in 0..300 {
        let (keeper, mut events) = spawner.workspace(&spec).await.unwrap();
        if round % 3 == 0 {
            keeper.spawn(1, &command("true", &[]), Stdio::default()).await.unwrap();
        }
        // Ended in each of the ways there are.
        match round % 4 {
            0 => drop(keeper),
            1 => {
                keeper.end(Duration::ZERO).await.unwrap();
            }
            2 => rustix::process::pidfd_send_signal(keeper.pidfd(), rustix::process::Signal::KILL).unwrap(),
            _ => {
                keeper.spawn(2, &command("sleep", &["1000"]), Stdio::default()).await.unwrap();
                keeper.end(Duration::from_millis(10)).await.unwrap();
            }
        }
        while let Some(event) = events.next().await {
            if event == Event::KeeperGone {
                break;
            }
        }
    }
    let (keeper, mut events) = spawner.workspace(&spec).await.unwrap();
    for id in 0..300 {
        let spec = command(if id % 3 == 0 { "no-such-program" } else { "true" }, &[]);
        let spawned = keeper.spawn(id, &spec, Stdio::default()).await;
        assert_eq!(spawned.is_ok(), id % 3 != 0);
        if spawned.is_ok() {
            events.next().await.unwrap();
        }
    }
    let descriptors = fs::read_dir(format!("/proc/{}/fd", keeper.pid())).map(Iterator::count);
    // As root its descriptors can be counted: three standard ones, its socket, the signal descriptor.
    if let Ok(descriptors) = descriptors {
        assert_eq!(descriptors, 5, "the keeper holds more than its own");
    }
    drop(keeper);
    while events.next().await.is_some() {}
    drop(events);
    assert_eq!(holdings(), before);
    drop(spawner);
    assert_eq!(holdings().2, before_spawner.2);
}

#[tokio::test]
async fn a_killed_keeper_is_told_and_takes_its_commands_along() {
    let mut workspace = Workspace::new().await;
    let spawned = workspace.keeper.spawn(1, &command("sleep", &["1000"]), Stdio::default()).await.unwrap();
    rustix::process::pidfd_send_signal(workspace.keeper.pidfd(), rustix::process::Signal::KILL).unwrap();
    assert_eq!(workspace.events.next().await, Some(Event::KeeperGone));
    assert_eq!(workspace.events.next().await, None);
    await_end(&spawned.pidfd, "command");
    let again = workspace.keeper.spawn(2, &command("true", &[]), Stdio::default()).await;
    assert!(matches!(again, Err(SandboxError::Ended)));
    assert!(matches!(workspace.keeper.signal(1, 15).await, Err(SandboxError::Ended)));
}

#[tokio::test]
async fn without_a_spawner_workspaces_live_on_and_new_ones_are_refused() {
    let mut workspace = Workspace::new().await;
    let ended = pidfd(workspace.spawner.pid());
    rustix::process::pidfd_send_signal(&ended, rustix::process::Signal::KILL).unwrap();
    await_end(&ended, "spawner");
    let refused = workspace.spawner.workspace(&SandboxSpec::default()).await.unwrap_err();
    assert!(matches!(refused, SandboxError::SpawnerGone(_)), "{refused}");
    assert_eq!(workspace.output("echo works").await, "works");
}

#[tokio::test]
async fn workspaces_are_made_side_by_side() {
    let spawner = Arc::new(spawner());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let spawner = Arc::clone(&spawner);
        tasks.spawn(async move {
            let (keeper, mut events) = spawner.workspace(&SandboxSpec::default()).await.unwrap();
            keeper.spawn(1, &shell("exit 3"), Stdio::default()).await.unwrap();
            assert!(matches!(events.next().await, Some(Event::Exited { id: 1, code: Some(3), .. })));
            let ids = keeper.mechanisms().iter().find(|mechanism| mechanism.name == "host-ids").unwrap().clone();
            (keeper, ids)
        });
    }
    let all = tasks.join_all().await;
    // Where workspaces have host ids of their own, no two have the same.
    let ids: std::collections::HashSet<_> = all.iter().map(|(_, ids)| ids.reason.clone()).collect();
    assert_eq!(ids.len(), if all[0].1.is_enforced() { 50 } else { 1 });
}

#[tokio::test]
async fn a_large_environment_passes_and_one_too_large_is_an_error() {
    let mut workspace = Workspace::new().await;
    let mut spec = shell("echo ${#BIG} ${#BIG2}");
    spec.env.push(("BIG".to_owned(), "x".repeat(100_000)));
    spec.env.push(("BIG2".to_owned(), "x".repeat(100_000)));
    assert_eq!(workspace.run(&spec).await.stdout, "100000 100000\n");
    for length in [200_000, 20 << 20] {
        let mut spec = shell("true");
        spec.env.push(("BIG".to_owned(), "x".repeat(length)));
        assert!(workspace.try_run(&spec).await.is_err(), "{length}");
    }
    assert_eq!(workspace.output("echo works").await, "works");
}

#[tokio::test]
async fn ending_an_idle_workspace_does_not_wait_for_the_grace() {
    let workspace = Workspace::new().await;
    let ended = tokio::time::timeout(Duration::from_secs(60), workspace.keeper.end(Duration::from_secs(3600))).await;
    assert_eq!(ended.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_workspace_is_taken_over_with_what_lives_and_what_has_ended() {
    let mut workspace = Workspace::new().await;
    workspace.run(&shell("exit 1")).await;
    workspace.keeper.acknowledge(1).await.unwrap();
    workspace.run(&shell("exit 2")).await;
    let spawned = workspace.keeper.spawn(30, &command("sleep", &["1000"]), Stdio::default()).await.unwrap();
    let (mut read, write) = common::pipe();
    let dies = Stdio { stdin: Some(write), ..Stdio::default() };
    workspace.keeper.spawn(31, &shell("exit 3"), dies).await.unwrap();
    // What a descriptor store would hold.
    let socket = workspace.keeper.socket().try_clone_to_owned().unwrap();
    let pid = workspace.keeper.pid();
    workspace.keeper.leave();
    drop((workspace.events, workspace.spawner));
    // It ends while there is no service: nobody is told.
    let mut nothing = String::new();
    read.read_to_string(&mut nothing).unwrap();

    let Adopted { keeper, mut events, running, held, .. } = Keeper::adopt(socket).await.unwrap();
    assert!(held.is_empty());
    assert_eq!(keeper.pid(), pid);
    assert!(!keeper.mechanisms().is_empty());
    assert_eq!(running.iter().filter(|command| command.id == 30).map(|command| command.pid).next(), Some(spawned.pid));
    let mut ended = Vec::new();
    while ended.last() != Some(&(31, Some(3))) {
        let Some(Event::Exited { id, code, .. }) = events.next().await else { panic!("gone") };
        ended.push((id, code));
    }
    // The acknowledged one is not told again.
    assert_eq!(ended, [(2, Some(2)), (31, Some(3))]);
    keeper.spawn(40, &command("true", &[]), Stdio::default()).await.unwrap();
    assert!(matches!(events.next().await, Some(Event::Exited { id: 40, code: Some(0), .. })));
    keeper.signal(30, libc::SIGKILL).await.unwrap();
    assert!(matches!(events.next().await, Some(Event::Exited { id: 30, signal: Some(9), .. })));
    keeper.end(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn what_is_held_is_given_to_the_next_service_and_kept_until_it_is_acknowledged() {
    let spec = SandboxSpec { handover_ms: Some(10), ..SandboxSpec::default() };
    let mut workspace = Workspace::with(&spec).await;
    let ((mut a, a_end), (mut b, b_end)) = (common::pipe(), common::pipe());
    let mut held = shell("exit 4");
    held.held = vec![(7, 1, Arc::new(a_end)), (7, 2, Arc::new(b_end))];
    workspace.keeper.spawn(7, &held, Stdio::default()).await.unwrap();
    drop(held);
    let socket = workspace.keeper.socket().try_clone_to_owned().unwrap();
    assert!(matches!(workspace.events.next().await, Some(Event::Exited { id: 7, .. })));
    // Told to end while nobody listens: what has happened must still be heard.
    let ending = tokio::time::timeout(Duration::from_millis(1), workspace.keeper.end(Duration::ZERO)).await;
    drop(ending);
    workspace.keeper.leave();
    drop((workspace.events, workspace.spawner));

    let Adopted { keeper, mut events, held, .. } = Keeper::adopt(socket).await.unwrap();
    let tags: Vec<(u64, u8)> = held.iter().map(|held| (held.id, held.tag)).collect();
    assert_eq!(tags, [(7, 1), (7, 2)]);
    assert!(matches!(events.next().await, Some(Event::Exited { id: 7, code: Some(4), .. })));
    drop(held);
    let mut nothing = String::new();
    keeper.release(7, 1).await.unwrap();
    a.read_to_string(&mut nothing).unwrap();
    let end = keeper.end(Duration::ZERO);
    tokio::pin!(end);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut end).await.is_err(), "it waits for us");
    keeper.acknowledge(7).await.unwrap();
    b.read_to_string(&mut nothing).unwrap();
    end.await.unwrap();
    assert_eq!(events.next().await, Some(Event::KeeperGone));
}

#[tokio::test]
async fn a_workspace_whose_last_connection_closes_ends_with_the_agreed_grace() {
    let spec = SandboxSpec { handover_ms: Some(60_000), ..SandboxSpec::default() };
    let workspace = Workspace::with(&spec).await;
    let (mut read, write) = common::pipe();
    let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
    let polite = shell("trap 'echo bye; exit' TERM; echo up; while :; do sleep 0.1; done");
    workspace.keeper.spawn(1, &polite, stdio).await.unwrap();
    read.read_exact(&mut [0; 3]).unwrap();
    let keeper = pidfd(workspace.keeper.pid());
    workspace.keeper.leave();
    drop((workspace.events, workspace.spawner));
    let last = tokio::task::spawn_blocking(move || {
        let mut last = String::new();
        read.read_to_string(&mut last).unwrap();
        await_end(&keeper, "keeper");
        last
    });
    assert_eq!(last.await.unwrap(), "bye\n");
}

#[tokio::test]
async fn a_second_shorter_grace_holds() {
    let workspace = Workspace::new().await;
    let (mut read, write) = common::pipe();
    let deaf = Stdio { stdout: Some(write), ..Stdio::default() };
    workspace.keeper.spawn(1, &shell("trap '' TERM; echo up; while :; do sleep 0.1; done"), deaf).await.unwrap();
    read.read_exact(&mut [0; 3]).unwrap();
    let (long, short, longer) = tokio::join!(
        workspace.keeper.end(Duration::from_secs(3600)),
        workspace.keeper.end(Duration::from_millis(1)),
        workspace.keeper.end(Duration::from_secs(3600)),
    );
    assert!(long.is_ok() && short.is_ok() && longer.is_ok());
}

#[tokio::test]
async fn a_helper_is_a_process_of_its_own() {
    fn echo(channel: shipote_sandbox::Channel) {
        while let Ok(Some(message)) = channel.receive::<String>() {
            let descriptors: Vec<_> = message.descriptors.iter().map(std::os::fd::AsFd::as_fd).collect();
            let _ = channel.send(&(message.body, std::process::id()), &descriptors);
        }
        drop(channel);
    }
    let spawner = shipote_sandbox::Spawner::start_with(SpawnerConfig::default(), echo).unwrap();
    let helper = spawner.helper().await.unwrap();
    let (_, given) = common::pipe();
    helper.send(&"hello".to_owned(), &[std::os::fd::AsFd::as_fd(&given)]).unwrap();
    let back = helper.receive::<(String, u32)>().unwrap().unwrap();
    assert_eq!((back.body.0.as_str(), back.descriptors.len()), ("hello", 1));
    assert_ne!(back.body.1, std::process::id());
    // It goes on without the spawner.
    drop(spawner);
    helper.send(&"again".to_owned(), &[]).unwrap();
    assert_eq!(helper.receive::<(String, u32)>().unwrap().unwrap().body.0, "again");
    let process = pidfd(back.body.1.cast_signed());
    drop(helper);
    await_end(&process, "helper");
}

#[test]
fn probing_names_every_mechanism() {
    let report = probe(SpawnerConfig::default()).unwrap();
    let names: Vec<&str> = report.iter().map(|mechanism| mechanism.name.as_str()).collect();
    for name in [
        "user-namespace",
        "mount-namespace",
        "pid-namespace",
        "ipc-namespace",
        "uts-namespace",
        "network-namespace",
        "cgroup-namespace",
        "pivoted-root",
        "own-proc",
        "devpts",
        "landlock",
        "seccomp",
        "no-new-privileges",
        "capabilities",
        "rlimits",
        "host-ids",
        "cgroup",
    ] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert!(report.iter().all(|mechanism| mechanism.is_enforced() || !mechanism.reason.is_empty()));
}

#[test]
fn a_pipe_from_a_command_ends_when_it_does() {
    // The keeper and its other commands must not keep copies of what one was given.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let workspace = Workspace::new().await;
        let (mut read, write) = common::pipe();
        workspace
            .keeper
            .spawn(1, &command("true", &[]), Stdio { stdout: Some(write), ..Stdio::default() })
            .await
            .unwrap();
        workspace.keeper.spawn(2, &command("sleep", &["1000"]), Stdio::default()).await.unwrap();
        let mut text = String::new();
        File::read_to_string(&mut read, &mut text).unwrap();
        assert_eq!(text, "");
    });
}
