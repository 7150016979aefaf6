//! What happens at the limits: a full disk, requests that fail for reasons within the guest, a guest that is an enemy.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use shipote_agent_protocol::ports;
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use smolvm_protocol_0::{AgentRequest, AgentResponse};
use support::{ask, image, in_image, machines, machines_with, processes, pull, refused, run};

#[tokio::test]
async fn a_full_disk_is_said_and_survived_and_every_failure_has_its_code() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    machines.handle.create("full", Spec { memory_mib: 160, disk_mib: 64, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("full").await.unwrap();
    machines.until(State::Running).await;
    let guest = machines.handle.guest("full").await.unwrap();
    let mut connection = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    let control = &mut connection;
    run(control, "mkdir -p /tmp/r/bin; cp /bin/busybox /tmp/r/bin/sh; tar -C /tmp/r -cf /tmp/r.tar .").await;

    // A disk that is in use is never formatted anew: what is there stays.
    run(control, "echo kept > /storage/kept").await;
    assert!(matches!(ask(control, &AgentRequest::FormatStorage).await, AgentResponse::Ok { .. }));
    assert_eq!(run(control, "cat /storage/kept").await, "kept\n");

    run(control, "dd if=/dev/zero of=/storage/fill bs=64k 2>/dev/null; sync; df /storage | grep -q '100%'").await;
    let write = AgentRequest::FileWrite { path: "/storage/more".into(), data: vec![1; 500_000], mode: None };
    match ask(control, &write).await {
        AgentResponse::Error { message, code } => {
            assert_eq!(code.as_deref(), Some("FILE_IO_FAILED"));
            assert!(message.contains("/storage/more") && message.contains("No space left"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    match pull(control, "rootfs:/tmp/r.tar").await {
        AgentResponse::Error { message, code } => {
            assert_eq!(code.as_deref(), Some("PULL_FAILED"));
            assert!(message.contains("No space left"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    let AgentResponse::Ok { data: Some(status) } = ask(control, &AgentRequest::StorageStatus).await else { panic!() };
    assert_eq!((status["ready"].as_bool(), status["image_count"].as_u64()), (Some(true), Some(0)));
    // Nothing is left behind that would keep it full, and once there is room all goes on.
    run(control, "rm /storage/fill; [ ! -e /storage/more ]").await;
    assert!(matches!(ask(control, &write).await, AgentResponse::Ok { .. }));
    assert!(matches!(pull(control, "rootfs:/tmp/r.tar").await, AgentResponse::Ok { .. }));
    let request = in_image("rootfs:/tmp/r.tar", &["/bin/sh", "-c", "echo runs"], None, None, false);
    let AgentResponse::Completed { exit_code: 0, stdout, .. } = ask(control, &request).await else { panic!() };
    assert_eq!(stdout, b"runs\n");

    // What stands in the way within the guest.
    run(control, "mkdir -p /storage/overlays/busy/x /storage/layers/busy; echo > /storage/overlays/blocked").await;
    run(control, "mount -t tmpfs none /storage/overlays/busy/x; mount -t tmpfs none /storage/layers/busy").await;
    let prepare = AgentRequest::PrepareOverlay { image: "rootfs:/tmp/r.tar".into(), workload_id: "blocked".into() };
    assert_eq!(refused(control, &prepare).await, "OVERLAY_FAILED");
    assert_eq!(refused(control, &AgentRequest::CleanupOverlay { workload_id: "busy".into() }).await, "CLEANUP_FAILED");
    let collect = AgentRequest::GarbageCollect { dry_run: false, purge_all: false };
    assert_eq!(refused(control, &collect).await, "GC_FAILED");
    run(control, "umount /storage/layers/busy /storage/overlays/busy/x").await;
    assert!(matches!(ask(control, &collect).await, AgentResponse::Ok { .. }));
    assert!(matches!(
        ask(control, &AgentRequest::CleanupOverlay { workload_id: "busy".into() }).await,
        AgentResponse::Ok { .. }
    ));
    machines.handle.stop("full", Duration::from_secs(60)).await.unwrap();
    machines.until(State::Stopped).await;
}

/// A file of an archive that the kernel unpacks behind the initramfs, in the place of the one of that name there.
fn archived(name: &str, data: &[u8]) -> Vec<u8> {
    let mut archive = shipote_machines::image::archive_of(name, data);
    // The mode is the second number; programs can be run.
    archive[14..22].copy_from_slice(b"000081ed");
    archive
}

/// The image with another program in the place of the agent.
fn with_init(image: &Path, to: &Path, init: &[u8]) {
    std::fs::create_dir(to).unwrap();
    for name in ["vmlinux", "vhost-device-vsock", "virtiofsd"] {
        std::fs::hard_link(image.join(name), to.join(name))
            .or_else(|_| std::fs::copy(image.join(name), to.join(name)).map(drop))
            .unwrap();
    }
    let mut initramfs = std::fs::read(image.join("initramfs.cpio")).unwrap();
    initramfs.extend(archived("init", init));
    initramfs.extend(archived("ready-port", format!("{}\n", ports::AGENT_READY).as_bytes()));
    std::fs::write(to.join("initramfs.cpio"), initramfs).unwrap();
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_agent_that_is_an_enemy_costs_the_service_nothing_and_others_go_on() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let init = dir.path().join("init");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/init.c");
    let compiled = Command::new("cc").args(["-O1", "-static", "-o"]).arg(&init).arg(source).status().unwrap();
    assert!(compiled.success(), "cc: {compiled}");
    let hostile = dir.path().join("image");
    with_init(&image, &hostile, &std::fs::read(&init).unwrap());

    let mut good = machines(image);
    good.handle.create("good", Spec { memory_mib: 128, ..Spec::default() }).await.unwrap();
    good.handle.start_machine("good").await.unwrap();
    good.until(State::Running).await;
    let guest = good.handle.guest("good").await.unwrap();

    let mut bad = machines_with(hostile, dir.path(), Duration::from_secs(30), None);
    bad.handle.create("bad", Spec { memory_mib: 128, ..Spec::default() }).await.unwrap();
    bad.handle.start_machine("bad").await.unwrap();
    bad.until(State::Starting).await;
    let said = || async { String::from_utf8_lossy(&bad.handle.console("bad").await.unwrap()).into_owned() };
    while !said().await.contains("knock") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = resident();
    for _ in 0..5 {
        let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
        assert_eq!(run(&mut control, "hostname").await, "good\n");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // It never becomes ready, whatever it says; what it sends is not kept.
    let shown = bad.handle.inspect("bad").await.unwrap().shown;
    assert_eq!(shown.state, State::Starting, "{}", shown.reason);
    assert!(bad.handle.guest("bad").await.is_err());
    assert!(bad.handle.console("bad").await.unwrap().len() <= shipote_machines::console::KEPT);
    assert!(resident() < before + 16 * 1024, "from {before} to {} KiB", resident());
    // Asked to end while it starts it is killed, and nothing of it stays.
    bad.handle.stop("bad", Duration::from_secs(10)).await.unwrap();
    bad.until_again(State::Stopped).await;
    assert_eq!(processes(&dir.path().join("run")), 0);
    good.handle.shut_down().await;
}
