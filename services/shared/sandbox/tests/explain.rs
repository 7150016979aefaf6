//! What a workspace that explains says of the refusals of its commands, and that it changes none of them.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::{Workspace, command, perl, shell};
use shipote_sandbox::{Access, Event, HostFiles, Network, PathGrant, SandboxSpec, Stdio, Why};

fn explaining() -> SandboxSpec {
    SandboxSpec { explain: true, ..SandboxSpec::default() }
}

/// What was refused to a script: call, why, error, object.
async fn refused(workspace: &mut Workspace, script: &str) -> Vec<(String, &'static str, String, String)> {
    workspace.refused.clear();
    workspace.run(&shell(script)).await;
    let all = std::mem::take(&mut workspace.refused);
    all.into_iter().map(|r| (r.system_call(), r.why.as_str(), r.error(), r.object)).collect()
}

#[tokio::test]
async fn paths_that_are_refused_are_named_with_the_reason() {
    let mut workspace = Workspace::with(&explaining()).await;
    let table = [
        ("echo x > /usr/new", "read-only", "EROFS", "/usr/new"),
        ("cd /usr && echo x > new", "read-only", "EROFS", "/usr/new"),
        ("mkdir /usr/new", "read-only", "EROFS", "/usr/new"),
        ("rm -f /usr/bin/env", "read-only", "EROFS", "/usr/bin/env"),
        ("chmod 777 /usr/bin/env", "read-only", "EROFS", "/usr/bin/env"),
        ("cat /root/secret", "absent", "ENOENT", "/root/secret"),
        ("cat /etc/shadow", "absent", "ENOENT", "/etc/shadow"),
        ("test -e /var/lib/dpkg", "absent", "ENOENT", "/var/lib/dpkg"),
        ("ls /sys", "absent", "ENOENT", "/sys"),
        ("echo x > /home/me/file", "absent", "ENOENT", "/home/me/file"),
        ("touch /tmp/f; chmod 0 /tmp/f; cat /tmp/f", "permission", "EACCES", "/tmp/f"),
    ];
    for (script, why, error, object) in table {
        let found = refused(&mut workspace, script).await;
        assert!(found.iter().any(|r| (r.1, r.2.as_str(), r.3.as_str()) == (why, error, object)), "{script}: {found:?}");
    }
}

#[tokio::test]
async fn what_is_not_refused_is_not_told() {
    let mut workspace = Workspace::with(&SandboxSpec { network: Network::Loopback, ..explaining() }).await;
    let quiet = "echo x > /tmp/a; cat /tmp/a /tmp/none /usr/none; mkdir -p /usr /tmp/d/e; ls -R /tmp /work /usr/share/doc/base-files; \
                 mv /tmp/a /tmp/b; rm -r /tmp/d; ls /proc/self/fd; cat /etc/passwd; sleep 0; test -e /work/none; : > /dev/null";
    let found = refused(&mut workspace, quiet).await;
    assert!(found.is_empty(), "{found:?}");
    let outcome = workspace
        .run(&perl(
            "use Socket; socket(S,PF_INET,SOCK_STREAM,0); connect(S,sockaddr_in(9,inet_aton('127.0.0.1'))); print $!+0",
        ))
        .await;
    assert_eq!(outcome.stdout, libc::ECONNREFUSED.to_string());
    assert!(workspace.refused.iter().all(|r| r.why == Why::Absent), "{:?}", workspace.refused);
}

#[tokio::test]
async fn system_calls_that_are_refused_are_named_and_stay_refused() {
    let mut workspace = Workspace::with(&explaining()).await;
    for (number, arguments, name, errno) in [
        (libc::SYS_ptrace, "16, 1, 0, 0", "ptrace", libc::EPERM),
        (libc::SYS_mount, "(my $a = 't'), (my $b = '/tmp'), (my $c = 'tmpfs'), 0, 0", "mount", libc::EPERM),
        (libc::SYS_unshare, "0x10000000", "unshare", libc::EPERM),
        (libc::SYS_io_uring_setup, "1, 0", "io_uring_setup", libc::EPERM),
        (libc::SYS_keyctl, "0, 0, 0", "keyctl", libc::EPERM),
        (libc::SYS_ioctl, "0, 0x5412, (my $a = 'x')", "ioctl", libc::EPERM),
        (libc::SYS_socket, "16, 3, 9", "socket", libc::EAFNOSUPPORT),
        (libc::SYS_bpf, "0, 0, 0", "bpf", libc::EPERM),
        (1_000_000, "0", "1000000", libc::ENOSYS),
    ] {
        workspace.refused.clear();
        let outcome = workspace.run(&perl(&format!("syscall({number}, {arguments}); print $!+0"))).await;
        assert_eq!(outcome.stdout, errno.to_string(), "{name}");
        let told = workspace.refused.iter().find(|r| r.why == Why::SystemCall).unwrap_or_else(|| panic!("{name}"));
        assert_eq!((told.system_call().as_str(), told.errno), (name, errno));
    }
    // As everywhere: its first answer is ENOSYS, and nobody need be told.
    workspace.refused.clear();
    let outcome = workspace.run(&perl(&format!("syscall({}, 0, 0); print $!+0", libc::SYS_clone3))).await;
    assert_eq!(outcome.stdout, libc::ENOSYS.to_string());
    assert!(workspace.refused.iter().all(|r| r.why != Why::SystemCall), "{:?}", workspace.refused);
}

#[tokio::test]
async fn addresses_out_of_reach_are_named() {
    let mut workspace = Workspace::with(&explaining()).await;
    workspace
        .run(&perl("use Socket; socket(S,PF_INET,SOCK_STREAM,0); connect(S,sockaddr_in(53,inet_aton('192.0.2.1')))"))
        .await;
    let told: Vec<_> = workspace.refused.iter().filter(|r| r.why == Why::Network).collect();
    assert_eq!(told.len(), 1, "{:?}", workspace.refused);
    assert_eq!((told[0].object.as_str(), told[0].errno), ("192.0.2.1:53", libc::ENETUNREACH));
    workspace.refused.clear();
    workspace
        .run(&perl(
            "use Socket; socket(S,PF_UNIX,SOCK_STREAM,0); connect(S,pack_sockaddr_un('/run/dbus/system_bus_socket'))",
        ))
        .await;
    assert!(workspace.refused.iter().any(|r| r.object == "/run/dbus/system_bus_socket" && r.why == Why::Absent));
}

#[tokio::test]
async fn landlock_is_explained_where_a_mount_would_allow_it() {
    let host = tempfile::tempdir().unwrap();
    std::fs::set_permissions(host.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let grant = PathGrant { path: host.path().to_owned(), target: Some("/data".into()), access: Access::Read };
    let spec = SandboxSpec { paths: vec![grant], host_files: HostFiles::None, ..explaining() };
    let mut workspace = Workspace::with(&spec).await;
    let found = refused(&mut workspace, "echo x > /data/new").await;
    assert!(found.iter().any(|r| r.3 == "/data/new" && r.1 == "read-only"), "{found:?}");
}

#[tokio::test]
async fn one_refusal_is_told_once_and_too_many_are_counted_as_more() {
    let mut workspace = Workspace::with(&explaining()).await;
    let found = refused(&mut workspace, "for i in 1 2 3 4 5; do (echo x > /usr/new) 2>/dev/null; done").await;
    assert_eq!(found.iter().filter(|r| r.3 == "/usr/new").count(), 1, "{found:?}");
    workspace.run(&perl("for (1..2000) { open(F, '>', qq(/usr/new$_)) }")).await;
    assert_eq!(workspace.refused.last().unwrap().why, Why::More);
    assert!(workspace.refused.len() <= 257);
}

#[tokio::test]
async fn what_a_slow_service_is_not_told_is_said_before_the_command_has_ended() {
    let mut workspace = Workspace::with(&explaining()).await;
    let (mut done, stdout) = common::pipe();
    let script = "for (1..250) { open(F, '>', '/usr/' . ('n' x 240) . $_) } close(STDOUT);";
    let stdio = Stdio { stdout: Some(stdout), ..Stdio::default() };
    workspace.keeper.spawn(7, &perl(script), stdio).await.unwrap();
    // This thread is the runtime's only one: nothing of the workspace's is read until the command is done.
    std::io::Read::read_to_end(&mut done, &mut Vec::new()).unwrap();
    let mut told = Vec::new();
    loop {
        match workspace.events.next().await.unwrap() {
            Event::Refused { id: 7, refusal } => told.push(refusal.why),
            Event::Exited { id: 7, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(told.len() > 10 && told.len() < 250, "the socket was not filled: {}", told.len());
    assert_eq!(told.iter().filter(|why| **why == Why::More).count(), 1, "{told:?}");
}

#[tokio::test]
async fn commands_start_without_the_supervisor_and_are_said_to_be_unseen() {
    let mut workspace = Workspace::with(&explaining()).await;
    // once it has answered it is there under its name
    workspace.run(&shell("true")).await;
    let keeper = workspace.keeper.pid();
    let of_keeper = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains("Name:\tshipote-explain") && status.contains(&format!("PPid:\t{keeper}\n"))
    };
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let supervisor = all.into_iter().find(of_keeper).unwrap();
    let process = rustix::process::Pid::from_raw(supervisor).unwrap();
    let watched = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    rustix::event::poll(&mut [rustix::event::PollFd::new(&watched, rustix::event::PollFlags::IN)], None).unwrap();
    for _ in 0..2 {
        workspace.refused.clear();
        let script = format!("syscall({}, 0x10000000); print $!+0; open(F, '>', '/usr/new')", libc::SYS_unshare);
        let outcome = workspace.run(&perl(&script)).await;
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), "1"), "refused as ever: {outcome:?}");
        assert_eq!(workspace.refused.iter().map(|r| r.why).collect::<Vec<_>>(), [Why::Unseen]);
    }
}

#[tokio::test]
async fn threads_signals_and_an_end_do_not_stall() {
    let mut workspace = Workspace::with(&explaining()).await;
    // 3 milliseconds, again and again: an emulated processor, too, gets from one call to the next meanwhile.
    // setitimer(2) because not every perl has Time::HiRes; `safe` because perl may not allocate in a handler.
    let busy = format!(
        "use POSIX; my $act = POSIX::SigAction->new(sub {{ $n++ }}, POSIX::SigSet->new, SA_RESTART); \
         $act->safe(1); sigaction(SIGALRM, $act); \
         my $t = pack('qqqq', 0, 3000, 0, 3000); syscall({0}, 0, $t, 0) == 0 or die; \
         for (1..2000) {{ open(F, '<', '/etc/passwd') or die $!; close F }} \
         $t = pack('qqqq', 0, 0, 0, 0); syscall({0}, 0, $t, 0); print $n > 5 ? 'done' : qq(only $n)",
        libc::SYS_setitimer
    );
    let outcome = workspace.run(&perl(&busy)).await;
    assert_eq!(outcome.stdout, "done", "{outcome:?}");
    // Each is looked at while others wait.
    let many = "for i in $(seq 20); do (for j in $(seq 20); do cat /etc/hostname /root/x; done) & done >/dev/null 2>&1; wait; echo end";
    assert_eq!(workspace.output(many).await, "end");
    workspace.keeper.spawn(900, &command("sleep", &["1000"]), Stdio::default()).await.unwrap();
    let began = std::time::Instant::now();
    workspace.keeper.end(Duration::from_secs(60)).await.unwrap();
    // The supervisor, which no SIGTERM ends, is not waited for.
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn commands_cannot_reach_the_supervisor() {
    let mut workspace = Workspace::with(&explaining()).await;
    let find = "for p in /proc/[0-9]*; do test \"$(cat $p/comm 2>/dev/null)\" = shipote-explain && echo ${p#/proc/}; done; true";
    let pid = workspace.output(find).await;
    assert!(pid.parse::<u32>().is_ok(), "{pid:?}");
    let outcome = workspace.run(&shell(&format!("kill -9 {pid}; head -c 1 /proc/{pid}/mem; ls /proc/{pid}/fd"))).await;
    assert_eq!(outcome.stdout, "");
    assert_eq!(workspace.output(find).await, pid);
}
