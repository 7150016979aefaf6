//! Folders of the host in machines that really boot.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shipote_agent_protocol::ports;
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use smolvm_protocol_0::{AgentRequest, AgentResponse};
use support::{Machines, ask, image, in_image, machines, pull, refused, run, shell};
use tokio::net::UnixStream;

/// A user and a group of the host that own a folder where the tests are run by root, who may not.
const OWNER: (u32, u32) = (4321, 8765);

/// A folder below the machines' own, and who owns it.
fn folder(machines: &Machines, name: &str) -> (PathBuf, (u32, u32)) {
    let path = machines.path().canonicalize().unwrap().join(name);
    std::fs::create_dir(&path).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&path, Some(OWNER.0), Some(OWNER.1)).unwrap();
    }
    let metadata = path.metadata().unwrap();
    (path, (metadata.uid(), metadata.gid()))
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = path.symlink_metadata().unwrap();
    (metadata.uid(), metadata.gid())
}

/// What a script says, whether it succeeds or not, without the line's end.
async fn says(control: &mut UnixStream, script: &str) -> String {
    match ask(control, &shell(&format!("exec 2>&1; {script}"))).await {
        AgentResponse::Completed { stdout, .. } => String::from_utf8_lossy(&stdout).trim_end().to_owned(),
        other => panic!("{script}: {other:?}"),
    }
}

const IMAGE: &str = r#"
set -e; mkdir -p /tmp/root/bin /tmp/root/etc; cd /tmp/root
cp /bin/busybox bin; for name in sh cat ls id; do ln -s busybox bin/$name; done
echo 'web:x:33:34::/:/bin/sh' > etc/passwd
ln -s ../../../data/private etc/trap
tar -cf ../root.tar .
"#;

#[tokio::test]
async fn a_volume_is_shared_with_its_owner_and_a_hostile_guest_gets_nothing_else() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    let (shared, owns) = folder(&machines, "shared");
    let (read, _) = folder(&machines, "read");
    std::fs::write(shared.join("from-host"), "host\n").unwrap();
    chown(shared.join("from-host"), Some(owns.0), Some(owns.1)).unwrap();
    std::fs::set_permissions(shared.join("from-host"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::write(read.join("text"), "only read\n").unwrap();
    // Secrets beside the folders, and links of the host that lead to them.
    let secret = machines.path().canonicalize().unwrap().join("secret");
    std::fs::write(&secret, "secret\n").unwrap();
    symlink("../secret", shared.join("link")).unwrap();

    let volumes = vec![format!("{}:/data", shared.display()), format!("{}:/mnt/read:ro", read.display())];
    let spec = Spec { memory_mib: 192, volumes, ..Spec::default() };
    machines.handle.create("volumes", spec).await.unwrap();
    machines.handle.start_machine("volumes").await.unwrap();
    machines.until(State::Running).await;
    let guest = machines.handle.guest("volumes").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    let control = &mut control;

    // Both ways, with owners and modes.
    assert_eq!(run(control, "cat /data/from-host; stat -c '%u %g %a' /data/from-host").await, "host\n0 0 640\n");
    run(control, "mkdir -p /data/a/b; echo guest > /data/a/b/c; chmod 600 /data/a/b/c; mv /data/a/b/c /data/c").await;
    assert_eq!(std::fs::read_to_string(shared.join("c")).unwrap(), "guest\n");
    assert_eq!(owner(&shared.join("c")), owns);
    assert_eq!(shared.join("c").metadata().unwrap().mode() & 0o7777, 0o600);
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(shared.join("large"), &data).unwrap();
    chown(shared.join("large"), Some(owns.0), Some(owns.1)).unwrap();
    run(control, "cp /data/large /data/copy; cmp /data/large /data/copy; rm /data/large").await;
    assert!(std::fs::read(shared.join("copy")).unwrap() == data, "the copy differs");

    // What is only read stays as it is, and a second mount makes no difference.
    assert_eq!(run(control, "cat /mnt/read/text").await, "only read\n");
    for attempt in [
        "echo x > /mnt/read/new",
        "rm /mnt/read/text",
        "mount -o remount,rw /mnt/read; echo x > /mnt/read/new",
        "mkdir /tmp/again; mount -t virtiofs volume1 /tmp/again; echo x > /tmp/again/text; umount /tmp/again",
    ] {
        let said = says(control, attempt).await;
        assert!(said.contains("Read-only") || said.contains("denied"), "{attempt}: {said}");
    }
    assert_eq!(std::fs::read_dir(&read).unwrap().count(), 1);

    // Paths and links lead nowhere but into the guest itself.
    for attempt in
        ["cat /data/link", "cat /data/../secret", "cd /data; cat ../secret", "ln /data/link /data/hard; cat /data/hard"]
    {
        assert!(!says(control, attempt).await.contains("secret\n"), "{attempt}");
        assert!(!says(control, attempt).await.starts_with("secret"), "{attempt}");
    }
    run(control, "ln -s /etc/passwd /data/passwd; ln -s /data/c /data/there; cat /data/there").await;
    assert!(shared.join("passwd").symlink_metadata().unwrap().is_symlink(), "a link is text, and stays one");
    // No device, no program with another's rights, no file of root's.
    for attempt in [
        "mknod /data/device b 254 0",
        "mknod /data/device c 1 3",
        "chmod 4755 /data/c",
        "chmod 2755 /data/c",
        "chown 1 /data/c",
    ] {
        let said = says(control, attempt).await;
        assert!(
            said.contains("not permitted") || said.contains("denied") || attempt.starts_with("chown"),
            "{attempt}: {said}"
        );
    }
    run(control, "mkfifo /data/pipe").await;
    assert!(shared.join("pipe").metadata().unwrap().file_type().is_fifo());
    assert!(!shared.join("device").exists());
    assert_eq!(shared.join("c").metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!(owner(&shared.join("c")), owns);
    assert!(run(control, "grep ' /data ' /proc/mounts").await.contains("nosuid,nodev"));

    // Processes that serve it have nothing of what they could be given, and are not root.
    let inspected = machines.handle.inspect("volumes").await.unwrap();
    assert_eq!(inspected.pids.len(), 4, "{inspected:?}");
    for pid in &inspected.pids[2..] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line} in {status}");
        }
        assert!(!status.contains("Uid:\t0"), "{status}");
    }

    // Commands of images have it too, as any user, and an image's links lead no volume out of its root. A user other than
    // root is one of the others there.
    std::fs::set_permissions(shared.join("from-host"), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    run(control, IMAGE).await;
    assert!(matches!(pull(control, "rootfs:/tmp/root.tar").await, AgentResponse::Ok { .. }));
    let script = &["sh", "-c", "id -u; cat /data/from-host; echo web > /data/web; cat /mnt/read/text"];
    let request = in_image("rootfs:/tmp/root.tar", script, Some("web"), Some("stays"), false);
    for _ in 0..2 {
        let AgentResponse::Completed { exit_code: 0, stdout, .. } = ask(control, &request).await else { panic!() };
        assert_eq!(String::from_utf8(stdout).unwrap(), "33\nhost\nonly read\n");
    }
    assert_eq!(owner(&shared.join("web")), owns);
    assert_eq!(run(control, "grep -c virtiofs /proc/mounts").await, "4\n", "mounted once in the overlay that stays");
    let with = |mounts: &[(&str, &str, bool)]| {
        let AgentRequest::Run { image, command, env, workdir, user, .. } = in_image(
            "rootfs:/tmp/root.tar",
            &["sh", "-c", "cat /more/text /more/c; echo x > /more/x"],
            None,
            None,
            false,
        ) else {
            panic!()
        };
        let mounts = mounts.iter().map(|(tag, at, ro)| ((*tag).to_owned(), (*at).to_owned(), *ro)).collect();
        AgentRequest::Run {
            image,
            command,
            env,
            workdir,
            user,
            mounts,
            timeout_ms: None,
            interactive: false,
            tty: false,
            detached: false,
            persistent_overlay_id: None,
            background: false,
        }
    };
    let AgentResponse::Completed { exit_code, stdout, .. } = ask(control, &with(&[("volume0", "/more", true)])).await
    else {
        panic!()
    };
    assert_eq!((exit_code, stdout.as_slice()), (1, &b"guest\n"[..]));
    assert!(!shared.join("x").exists(), "mounted as read-only");
    assert_eq!(refused(control, &with(&[("volume7", "/more", false)])).await, "MOUNT_FAILED");
    assert_eq!(refused(control, &with(&[("volume0", "/etc/trap/x", false)])).await, "MOUNT_FAILED");
    assert!(!shared.join("private").exists());

    // What serves a volume ends: so does the machine, and says why.
    let server = rustix::process::Pid::from_raw(inspected.pids[2]).unwrap();
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    let shown = machines.until_again(State::Failed).await;
    assert!(shown.reason.contains("volume"), "{}", shown.reason);
    assert_eq!(support::processes(machines.path()), 0);
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret\n");
}

#[tokio::test]
async fn a_folder_that_may_not_be_had_fails_the_start_with_the_reason() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    let (folder, _) = folder(&machines, "folder");
    symlink(&folder, folder.with_file_name("link")).unwrap();
    let root = folder.parent().unwrap().display();
    for (n, (volume, what)) in [
        ("/etc:/x".to_owned(), "no machine may have it"),
        (format!("{root}/none:/x"), "No such file"),
        (format!("{root}/link:/x"), "a link is on the way"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("refused-{n}");
        let spec = Spec { memory_mib: 128, volumes: vec![volume], ..Spec::default() };
        machines.handle.create(&name, spec).await.unwrap();
        machines.handle.start_machine(&name).await.unwrap();
        let shown = machines.until_again(State::Failed).await;
        assert!(shown.reason.contains(what), "{}", shown.reason);
        assert!(!machines.path().join("run").join(name).exists(), "it left its folder behind");
    }
    machines.handle.stop("refused-0", Duration::ZERO).await.unwrap_err();
}
