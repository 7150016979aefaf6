//! Memory between a machine that really boots and its host.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use shipote_agent_protocol::ports;
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use shipote_machines::stats;
use support::{image, machines, run};

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
