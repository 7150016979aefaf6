//! A machine that really boots, through the actor, talked to by the public release of the protocol crate.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use shipote_agent_protocol::{encode, ports, read_message, write_message};
use shipote_machines::keeper::wire::Order;
use shipote_machines::lifeline::Lifeline;
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use smolvm_protocol_0::{AgentRequest, AgentResponse};
use support::{ask, image, in_image, machines, machines_at, machines_with, processes, pull, refused, run, shell};

#[tokio::test]
async fn a_machine_boots_runs_commands_moves_files_and_powers_off() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    let begun = Instant::now();
    machines.handle.create("demo", Spec { memory_mib: 128, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("demo").await.unwrap();
    machines.until(State::Running).await;
    eprintln!("from start to the agent's answer: {:.1?}", begun.elapsed());
    let guest = machines.handle.guest("demo").await.unwrap();

    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    assert_eq!(run(&mut control, "hostname; echo $$; cat /proc/1/comm").await.lines().next(), Some("demo"));
    let resident = run(&mut control, "awk '/VmRSS/ {print $2}' /proc/1/status").await;
    eprintln!("the agent's memory: {} KiB", resident.trim());
    assert!(resident.trim().parse::<u32>().unwrap() <= 8 * 1024);

    // The secret is nowhere in the guest, and the greeting is needed even there.
    assert_eq!(
        run(&mut control, "ls /shipote-machine.json 2>/dev/null; cat /proc/cmdline | grep -c secret; true").await,
        "0\n"
    );
    let strange = guest_without_secret(&guest).connect(ports::AGENT_CONTROL).await;
    assert!(strange.is_err(), "a connection without the secret was let in");

    // Two connections at once, and what a command leaves behind ends with it: here in a session of its own.
    let mut other = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    write_message(&mut other, &shell("setsid sleep 4242 & echo; sleep 0.2")).await.unwrap();
    run(&mut control, "until pidof sleep; do :; done").await;
    assert!(matches!(read_message(&mut other).await.unwrap(), Some(AgentResponse::Completed { exit_code: 0, .. })));
    run(&mut control, "while pidof sleep; do :; done").await;

    let data: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    let write = AgentRequest::FileWrite { path: "/tmp/data".into(), data: data.clone(), mode: Some(0o600) };
    assert!(matches!(ask(&mut control, &write).await, AgentResponse::Ok { .. }));
    assert_eq!(run(&mut control, "wc -c < /tmp/data").await.trim(), "700000");
    write_message(&mut control, &AgentRequest::FileRead { path: "/tmp/data".into() }).await.unwrap();
    let mut back = Vec::new();
    while let Some(AgentResponse::DataChunk { data, done: false }) = read_message(&mut control).await.unwrap() {
        back.extend(data);
    }
    assert!(back == data, "the file came back changed");

    machines.handle.stop("demo", Duration::from_secs(60)).await.unwrap();
    let shown = machines.until(State::Stopped).await;
    assert_eq!(shown.reason, "the guest powered off");
    assert_eq!(processes(machines.path()), 0);
    assert!(!machines.path().join("run/demo").exists());
}

fn guest_without_secret(guest: &shipote_machines::guest::Guest) -> shipote_machines::guest::Guest {
    shipote_machines::guest::Guest { secret: "guess".into(), ..guest.clone() }
}

#[tokio::test]
async fn the_end_of_the_service_ends_a_machine_that_only_starts() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    machines.handle.create("killed", Spec { memory_mib: 128, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("killed").await.unwrap();
    machines.until(State::Starting).await;
    while processes(machines.path()) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    machines.handle.shut_down().await;
    assert_eq!(processes(machines.path()), 0);
}

/// Makes, in the guest, what `docker save` would: two layers, the second (gzip) hiding some of the first.
const SAVE: &str = r#"
set -e; mkdir /tmp/save; cd /tmp/save
mkdir -p 1/bin 1/etc 1/data 1/opaque 2/data 2/opaque
cp /bin/busybox 1/bin; for name in sh cat ls id; do ln -s busybox 1/bin/$name; done
echo 'web:x:33:34::/srv:/bin/sh' > 1/etc/passwd
echo gone > 1/data/gone; echo kept > 1/data/kept; echo old > 1/opaque/old
touch 2/data/.wh.gone 2/opaque/.wh..wh..opq; echo new > 2/opaque/new
for n in 1 2; do tar -C $n -cf $n.tar .; done
first=$(sha256sum 1.tar | cut -c1-64); second=$(sha256sum 2.tar | cut -c1-64); gzip 2.tar
printf '{"architecture":"amd64","os":"linux","config":{"Env":["FROM=image"],"Entrypoint":["/bin/sh","-c"],"Cmd":["id -u; pwd; cat kept; ls /data /opaque; echo $FROM"],"WorkingDir":"/data","User":"web"},"rootfs":{"diff_ids":["sha256:%s","sha256:%s"]}}' $first $second > config
digest=$(sha256sum config | cut -c1-64); mv config $digest.json
printf '[{"Config":"%s.json","RepoTags":["demo:1"],"Layers":["1.tar","2.tar.gz"]}]' $digest > manifest.json
tar -cf ../good.tar manifest.json $digest.json 1.tar 2.tar.gz
printf x >> 2/opaque/new; tar -C 2 -czf 2.tar.gz .
tar -cf ../bad.tar manifest.json $digest.json 1.tar 2.tar.gz
echo $digest
"#;

#[tokio::test]
async fn an_image_is_verified_and_runs_under_overlays() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    machines.handle.create("images", Spec { memory_mib: 192, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("images").await.unwrap();
    machines.until(State::Running).await;
    let guest = machines.handle.guest("images").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    let digest = run(&mut control, SAVE).await;

    assert_eq!(refused(&mut control, &in_image("demo:1", &[], None, None, false)).await, "RUN_FAILED");
    match pull(&mut control, "docker-archive:/tmp/bad.tar").await {
        AgentResponse::Error { message, code } => {
            assert_eq!(code.as_deref(), Some("PULL_FAILED"));
            assert!(message.contains("digest"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    let AgentResponse::Ok { data: Some(info) } = pull(&mut control, "docker-archive:/tmp/good.tar").await else {
        panic!()
    };
    assert_eq!(info["digest"], format!("sha256:{}", digest.trim()));
    let info: smolvm_protocol_0::ImageInfo = serde_json::from_value(info).unwrap();
    assert_eq!((info.layer_count, info.reference.as_str(), info.user.as_deref()), (2, "demo:1", Some("web")));

    let stdout = |response| match response {
        AgentResponse::Completed { exit_code: 0, stdout, .. } => String::from_utf8(stdout).unwrap(),
        other => panic!("{other:?}"),
    };
    let own = stdout(ask(&mut control, &in_image("demo:1", &[], None, None, false)).await);
    assert_eq!(own, "33\n/data\nkept\n/data:\nkept\n\n/opaque:\nnew\nimage\n");

    // What is written is gone with the command, unless its overlay stays.
    let write = &["sh", "-c", "echo more > /data/more; id -u"];
    for overlay in [None, Some("stays")] {
        assert_eq!(stdout(ask(&mut control, &in_image("demo:1", write, Some("0"), overlay, false)).await), "0\n");
        let ls = stdout(ask(&mut control, &in_image("demo:1", &["ls", "/data"], None, overlay, false)).await);
        assert_eq!(ls.contains("more"), overlay.is_some());
    }
    let detached = in_image("demo:1", &["sh", "-c", "echo > /data/detached"], Some("0"), Some("stays"), true);
    assert_eq!(stdout(ask(&mut control, &detached).await), "container-stays");
    run(&mut control, "until [ -e /storage/overlays/stays/merged/data/detached ]; do :; done").await;
    let nowhere = in_image("demo:1", &["ls"], None, None, true);
    assert_eq!(refused(&mut control, &nowhere).await, "INVALID_REQUEST");
    assert_eq!(refused(&mut control, &in_image("demo:1", &["ls"], None, Some(".."), false)).await, "INVALID_REQUEST");
    assert_eq!(refused(&mut control, &in_image("demo:1", &["ls"], Some("nobody"), None, false)).await, "RUN_FAILED");
    let cleanup = AgentRequest::CleanupOverlay { workload_id: "stays".into() };
    for _ in 0..2 {
        assert!(matches!(ask(&mut control, &cleanup).await, AgentResponse::Ok { .. }));
    }
    assert_eq!(
        run(&mut control, "ls /storage/overlays /storage/temporary; grep -c overlay /proc/mounts || true")
            .await
            .trim()
            .lines()
            .last(),
        Some("0")
    );
    machines.handle.stop("images", Duration::ZERO).await.unwrap();
    machines.until(State::Stopped).await;
}

/// Names the folder in which the child of the tests below keeps its machine.
const CHILD: &str = "SHIPOTE_TEST_MACHINES_IN";
/// How long that machine goes on without it, in seconds.
const LEASE: &str = "SHIPOTE_TEST_LEASE";

/// A service of its own, which can be killed: this program again.
fn service(dir: &Path, image: &Path, lease: u32) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_service_that_is_killed", "--ignored", "--nocapture"])
        .env(CHILD, dir)
        .env(LEASE, lease.to_string())
        .env("SHIPOTE_MACHINE_IMAGE", image)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
#[ignore = "the child of the tests below"]
async fn the_service_that_is_killed() {
    let (Some(dir), Some(image)) = (std::env::var_os(CHILD), image()) else { return };
    let lease = Duration::from_secs(std::env::var(LEASE).unwrap().parse().unwrap());
    let mut machines = machines_at(image, &Path::new(&dir).join("m"), lease);
    machines.handle.create("orphan", Spec { memory_mib: 128, disk_mib: 64, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("orphan").await.unwrap();
    machines.until(State::Starting).await;
    println!("starting");
    machines.until(State::Running).await;
    println!("running");
    std::future::pending::<()>().await;
}

fn wait_for(service: &mut std::process::Child, word: &str) {
    let lines = std::io::BufRead::lines(std::io::BufReader::new(service.stdout.take().unwrap()));
    assert!(lines.map(Result::unwrap).any(|line| line.ends_with(word)), "the service ended before {word}");
}

async fn until_gone(folder: &Path) {
    while processes(folder) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_machine_outlives_its_service_and_is_taken_over() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut service = service(dir.path(), &image, 600);
    wait_for(&mut service, "running");
    service.kill().unwrap();
    service.wait().unwrap();

    let known = dir.path().join("m");
    // Whoever finds the keeper's socket and doesn't know the token learns nothing, and ends nothing.
    for order in [Order::Adopt { token: "guess".into() }, Order::Kill, Order::Pause { paused: true }] {
        let mut keeper = std::os::unix::net::UnixStream::connect(known.join("run/orphan/keeper")).unwrap();
        keeper.write_all(&encode(&order).unwrap()).unwrap();
        let mut said = Vec::new();
        keeper.read_to_end(&mut said).unwrap();
        assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }
    let mut machines = machines_at(image, &known, Duration::from_secs(600));
    machines.until(State::Running).await;
    let inspected = machines.handle.inspect("orphan").await.unwrap();
    let [qemu, device] = inspected.pids[..] else { panic!("{inspected:?}") };
    let guest = machines.handle.guest("orphan").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    assert_eq!(run(&mut control, "hostname").await, "orphan\n");
    // The same processes as ever, with nothing of what they could be given.
    for pid in [qemu, device] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line} in {status}");
        }
    }
    assert!(inspected.confinement.iter().any(|m| m.name == "landlock"), "{:?}", inspected.confinement);
    // Where the service is root they are a user that nothing else is, and that has none of root's files to read.
    let own = inspected.confinement.iter().find(|m| m.name == "own-user").unwrap();
    if rustix::process::geteuid().is_root() {
        assert!(own.is_enforced(), "{own:?}");
        let user = |pid: i32| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}")).unwrap());
        assert_eq!(user(qemu), user(device));
        assert!(user(qemu) > 65_535, "{}", user(qemu));
        let others = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.metadata().ok());
        let same = others.filter(|other| std::os::unix::fs::MetadataExt::uid(other) == user(qemu)).count();
        assert_eq!(same, 2, "nobody else is that user");
    } else {
        assert!(!own.is_enforced() && !own.reason.is_empty(), "{own:?}");
    }

    machines.handle.pause("orphan", true).await.unwrap();
    machines.until(State::Paused).await;
    assert!(machines.handle.guest("orphan").await.is_err(), "a machine that stands still answers nobody");
    machines.handle.pause("orphan", false).await.unwrap();
    machines.until(State::Running).await;
    assert_eq!(run(&mut control, "hostname").await, "orphan\n");
    assert!(matches!(
        machines.handle.create("orphan", Spec::default()).await,
        Err(shipote_machines::Error::NameTaken(_))
    ));

    // Left and taken over once more, as when the service is restarted in order.
    machines.handle.leave().await;
    let mut machines = machines_at(PathBuf::from("/nowhere"), &known, Duration::from_secs(600));
    machines.until(State::Running).await;

    rustix::process::kill_process(rustix::process::Pid::from_raw(qemu).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let shown = machines.until_again(State::Failed).await;
    assert!(shown.reason.contains("signal: 9"), "{}", shown.reason);
    until_gone(dir.path()).await;
    assert!(!known.join("run/orphan").exists());
}

#[tokio::test]
async fn a_machine_on_the_other_board_has_its_devices_on_pci() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    let spec = Spec::parse("pc", "memory_mib = 128\nboard = \"q35\"\ndisk_mib = 64").unwrap();
    machines.handle.create("pc", spec).await.unwrap();
    machines.handle.start_machine("pc").await.unwrap();
    machines.until(State::Running).await;
    let guest = machines.handle.guest("pc").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    // vsock, disk and balloon
    assert_eq!(run(&mut control, "ls -l /sys/bus/pci/devices/*/driver | grep -c virtio-pci").await, "3\n");
    assert_eq!(
        run(&mut control, "awk '$2 == \"/storage\" {print $1, $3}' /proc/mounts | tail -1").await,
        "/dev/vda ext4\n"
    );
    machines.handle.stop("pc", Duration::from_secs(20)).await.unwrap();
    let shown = machines.until_again(State::Stopped).await;
    assert!(shown.reason.contains("powered off"), "{}", shown.reason);
}

#[tokio::test]
async fn a_machine_goes_on_through_a_restart_and_ends_where_the_manager_lets_go() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lifeline = std::sync::Arc::new(Lifeline::new().unwrap());
    let held = Some(std::sync::Arc::clone(&lifeline));
    let lease = Duration::from_secs(600);
    let mut machines = machines_with(image, dir.path(), lease, held);
    machines.handle.create("held", Spec { memory_mib: 128, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("held").await.unwrap();
    machines.until(State::Running).await;
    let pids = machines.handle.inspect("held").await.unwrap().pids;
    machines.handle.leave().await;
    drop(machines);

    let mut machines = machines_at(PathBuf::from("/nowhere"), dir.path(), lease);
    machines.until(State::Running).await;
    assert_eq!(machines.handle.inspect("held").await.unwrap().pids, pids, "the same machine");
    machines.handle.leave().await;
    drop(machines);
    // The lease is long, and yet.
    drop(lifeline);
    until_gone(dir.path()).await;
    assert!(!dir.path().join("run/held").exists());
}

#[tokio::test]
async fn a_machine_whose_service_is_gone_for_good_is_ended() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut service = service(dir.path(), &image, 1);
    wait_for(&mut service, "starting");
    let keeper = dir.path().join("m/run/orphan/keeper");
    while !keeper.exists() {
        assert!(service.try_wait().unwrap().is_none(), "it ended before its machine had a keeper");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    service.kill().unwrap();
    service.wait().unwrap();
    until_gone(dir.path()).await;
    assert!(!keeper.parent().unwrap().exists(), "it left its folder behind");
}
