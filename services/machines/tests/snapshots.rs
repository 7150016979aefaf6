//! Snapshots of machines that really boot, and machines made of them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use shipote_agent_protocol::ports;
use shipote_machines::Error;
use shipote_machines::actor::Handle;
use shipote_machines::snapshots::{Consistency, Snapshots};
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use shipote_machines::take;
use smolvm_protocol_0::{AgentRequest, AgentResponse};
use support::{Machines, ask, image, machines, run, shell};
use tokio::net::UnixStream;

async fn control(handle: &Handle, name: &str) -> UnixStream {
    handle.guest(name).await.unwrap().connect(ports::AGENT_CONTROL).await.unwrap()
}

async fn stop(machines: &mut Machines, name: &str) {
    machines.handle.stop(name, Duration::from_secs(60)).await.unwrap();
    machines.until(State::Stopped).await;
}

async fn start(machines: &mut Machines, name: &str) -> UnixStream {
    machines.handle.start_machine(name).await.unwrap();
    machines.until(State::Running).await;
    control(&machines.handle, name).await
}

#[tokio::test]
async fn a_snapshot_of_a_running_machine_has_what_was_written_and_nothing_later() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    let state = machines.path().join("state");
    let snapshots = Snapshots::new(&state);
    let spec = Spec { memory_mib: 128, disk_mib: 64, ..Spec::default() };
    machines.handle.create("first", spec.clone()).await.unwrap();
    machines.until(State::Stopped).await;
    // There is nothing yet that could be kept.
    let never = take::snapshot(&machines.handle, &snapshots, "first", "never").await.unwrap_err();
    assert!(never.to_string().contains("no disk"), "{never}");

    let mut guest = start(&mut machines, "first").await;
    run(&mut guest, "echo before > /storage/file; echo memory > /tmp/file").await;
    // Something that never stands still by itself.
    let AgentRequest::VmExec { command, env, workdir, timeout_ms, interactive, tty, .. } =
        shell("while sleep 0.01; do echo x >> /storage/log; done")
    else {
        panic!()
    };
    let request = AgentRequest::VmExec { command, env, workdir, timeout_ms, interactive, tty, background: true };
    assert!(matches!(ask(&mut guest, &request).await, AgentResponse::Completed { exit_code: 0, .. }));
    let taken = take::snapshot(&machines.handle, &snapshots, "first", "warm").await.unwrap();
    assert_eq!((taken.consistency, &taken.spec, taken.machine.as_str()), (Consistency::Synced, &spec, "first"));
    // It went on: it answers, and what follows is its own.
    run(&mut guest, "echo after > /storage/file").await;
    assert!(matches!(
        take::snapshot(&machines.handle, &snapshots, "first", "warm").await,
        Err(Error::SnapshotTaken(_))
    ));

    machines.handle.pause("first", true).await.unwrap();
    machines.until(State::Paused).await;
    let paused = take::snapshot(&machines.handle, &snapshots, "first", "paused").await.unwrap();
    assert_eq!(paused.consistency, Consistency::Cut);
    assert!(machines.handle.guest("first").await.is_err(), "it stands still as before");
    machines.handle.pause("first", false).await.unwrap();
    machines.until(State::Running).await;
    assert_eq!(run(&mut guest, "cat /storage/file").await, "after\n");
    stop(&mut machines, "first").await;
    let cold = take::snapshot(&machines.handle, &snapshots, "first", "cold").await.unwrap();
    assert_eq!(cold.consistency, Consistency::Stopped);

    for (name, from, content) in [("second", "warm", "before\n"), ("third", "cold", "after\n")] {
        take::create(&machines.handle, &snapshots, &state, name, "memory_mib = 160", from).await.unwrap();
        machines.until(State::Stopped).await;
        let mut guest = start(&mut machines, name).await;
        assert_eq!(run(&mut guest, "cat /storage/file; ls /tmp").await, content);
        assert_eq!(run(&mut guest, "mount | grep -c '/dev/vda.*ext4'").await, "1\n", "the disk was mounted");
        run(&mut guest, "echo own > /storage/file").await;
        stop(&mut machines, name).await;
    }
    // The snapshot is nobody's to change, and each machine has a disk of its own.
    let mut guest = start(&mut machines, "first").await;
    assert_eq!(run(&mut guest, "cat /storage/file").await, "after\n");
    snapshots.remove("warm").unwrap();
    let gone = take::create(&machines.handle, &snapshots, &state, "fourth", "", "warm").await.unwrap_err();
    assert!(matches!(gone, Error::NoSuchSnapshot(_)));
    let taken = take::create(&machines.handle, &snapshots, &state, "third", "", "cold").await.unwrap_err();
    assert!(matches!(taken, Error::NameTaken(_)));
    let left: Vec<_> = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".new")), "{left:?}");
}

#[tokio::test]
async fn what_a_service_held_goes_on_when_the_service_does_not() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    machines.handle.create("held", Spec { memory_mib: 128, disk_mib: 64, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("held").await.unwrap();
    machines.until(State::Running).await;
    let qemu = machines.handle.inspect("held").await.unwrap().pids[0];
    let process = || std::fs::read_to_string(format!("/proc/{qemu}/stat")).unwrap();
    let stands = || process().rsplit_once(") ").unwrap().1.starts_with('T');

    let taking = machines.handle.take("held").await.unwrap();
    machines.handle.hold("held").await.unwrap();
    assert!(stands(), "{}", process());
    for refused in [machines.handle.remove("held").await, machines.handle.take("held").await.map(drop)] {
        assert!(matches!(refused, Err(Error::WrongState { .. })), "{refused:?}");
    }
    drop(taking);
    let mut guest = control(&machines.handle, "held").await;
    assert_eq!(run(&mut guest, "hostname").await, "held\n");

    let taking = machines.handle.take("held").await.unwrap();
    machines.handle.hold("held").await.unwrap();
    assert!(stands());
    machines.handle.leave().await;
    while stands() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(taking);
    let mut machines = support::machines_at("/nowhere".into(), machines.path(), Duration::from_secs(30));
    machines.until(State::Running).await;
    assert_eq!(run(&mut control(&machines.handle, "held").await, "hostname").await, "held\n");
    machines.handle.shut_down().await;
}
