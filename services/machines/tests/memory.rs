//! Memory between a machine that really boots and its host.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use shipote_agent_protocol::ports;
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use shipote_machines::stats;
use support::{Machines, image, machines, machines_at, run};
use tokio::net::UnixStream;

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn what_a_guest_has_freed_is_the_hosts_again() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    machines.handle.create("memory", Spec { memory_mib: 256, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("memory").await.unwrap();
    machines.until(State::Running).await;
    let pids = machines.handle.inspect("memory").await.unwrap().pids;
    let guest = machines.handle.guest("memory").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    let taken = || stats::of(&pids).memory_bytes;
    run(
        &mut control,
        "mount -t tmpfs -o size=200m none /mnt; dd if=/dev/zero of=/mnt/fill bs=1M count=120 2>/dev/null",
    )
    .await;
    let full = taken();
    assert!(full > 120 * MIB, "{} MiB", full / MIB);
    run(&mut control, "rm /mnt/fill").await;
    // The guest's kernel tells of it in its own time, some seconds.
    let begun = Instant::now();
    while taken() > full - 90 * MIB {
        assert!(begun.elapsed() < Duration::from_secs(120), "from {} to {} MiB", full / MIB, taken() / MIB);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // And has it again when it needs it.
    run(&mut control, "dd if=/dev/urandom of=/mnt/fill bs=1M count=120 2>/dev/null").await;
    assert!(taken() > 120 * MIB);
    machines.handle.shut_down().await;
}

#[tokio::test]
async fn a_guest_makes_do_with_less_and_the_host_has_the_rest_until_it_may_have_it_again() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lease = Duration::from_secs(60);
    let mut machines = machines_at(image.clone(), dir.path(), lease);
    machines.handle.create("memory", Spec { memory_mib: 256, disk_mib: 256, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("memory").await.unwrap();
    machines.until(State::Running).await;
    let pids = machines.handle.inspect("memory").await.unwrap().pids;
    assert_eq!(machines.handle.inspect("memory").await.unwrap().guest_memory, 256 * MIB, "all of it");
    let guest = machines.handle.guest("memory").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    let taken = || stats::of(&pids).memory_bytes;

    // What a guest keeps of a disk is not free, and so by itself goes back to nobody.
    run(&mut control, "dd if=/dev/vda of=/dev/null bs=1M count=140 2>/dev/null").await;
    let (full, whole) = (taken(), total(&mut control).await);
    assert!(full > 140 * MIB, "{} MiB", full / MIB);

    // As little as it may be given: it lives, and the host has the rest.
    machines.handle.set_memory("memory", 104 * MIB).await.unwrap();
    until("the guest has what it is to have", || has(&machines, 104 * MIB)).await;
    let left = total(&mut control).await;
    assert_eq!(whole - left, 152 * 1024, "KiB that the guest knows it has not any more");
    assert!(taken() < full - 60 * MIB, "from {} to {} MiB", full / MIB, taken() / MIB);
    assert_eq!(run(&mut control, "seq 1000 | tail -n 1").await, "1000\n");

    // The next service knows what it has, and what it is to have.
    machines.handle.leave().await;
    let mut machines = machines_at(image, dir.path(), lease);
    machines.until(State::Running).await;
    let inspected = machines.handle.inspect("memory").await.unwrap();
    assert_eq!((inspected.guest_memory, inspected.shown.spec.memory_now_mib()), (104 * MIB, 104));
    machines.handle.set_memory("memory", 0).await.unwrap();
    until("it has all of it again", || has(&machines, 256 * MIB)).await;
    assert_eq!(total(&mut control).await, whole);
    machines.handle.set_memory("memory", 128 * MIB).await.unwrap();
    machines.handle.stop("memory", Duration::from_secs(30)).await.unwrap();
    machines.until(State::Stopped).await;
    assert_eq!(machines.handle.inspect("memory").await.unwrap().guest_memory, 0);

    // It holds for the next life.
    machines.handle.start_machine("memory").await.unwrap();
    machines.until(State::Running).await;
    until("the guest has what it is to have", || has(&machines, 128 * MIB)).await;
    machines.handle.shut_down().await;
}

async fn has(machines: &Machines, bytes: u64) -> bool {
    machines.handle.inspect("memory").await.unwrap().guest_memory == bytes
}

/// KiB of memory that a guest's kernel says it has.
async fn total(control: &mut UnixStream) -> u64 {
    let said = run(control, "while read key n _; do [ $key = MemTotal: ] && echo $n; done < /proc/meminfo || :").await;
    said.trim().parse().unwrap()
}

async fn until<F: Future<Output = bool>>(what: &str, is: impl Fn() -> F) {
    let begun = Instant::now();
    while !is().await {
        assert!(begun.elapsed() < Duration::from_secs(120), "{what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
