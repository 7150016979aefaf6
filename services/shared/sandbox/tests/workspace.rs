//! What a workspace is for: commands run in it, with what they were given and nothing else.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use common::{Workspace, command, perl, pipe, shell, spawner};
use shipote_sandbox::{Access, Event, Network, PathGrant, Rlimits, SandboxSpec, Stdio, Step, Terminal};

#[tokio::test]
async fn a_command_runs_and_its_exit_is_reported() {
    let mut workspace = Workspace::new().await;
    let outcome = workspace.run(&shell("echo out; echo err >&2; exit 7")).await;
    assert_eq!((outcome.code, outcome.signal), (Some(7), None));
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    let outcome = workspace.run(&shell("kill -9 $$")).await;
    assert_eq!((outcome.code, outcome.signal), (None, Some(9)));
}

#[tokio::test]
async fn environment_directory_and_user_are_exactly_what_was_asked_for() {
    let mut workspace = Workspace::new().await;
    assert_eq!(workspace.output("pwd; id -un; hostname; echo $HOME").await, "/work\nwork\nworkspace");
    let mut spec = command("/usr/bin/env", &[]);
    spec.env = vec![("ONLY".to_owned(), "this one".to_owned())];
    assert_eq!(workspace.run(&spec).await.stdout, "ONLY=this one\n");
    let mut spec = shell("pwd");
    spec.cwd = "/tmp".into();
    assert_eq!(workspace.run(&spec).await.stdout, "/tmp\n");
}

#[tokio::test]
async fn a_failure_names_the_step_and_the_error_number() {
    let mut workspace = Workspace::new().await;
    workspace.output("echo '#!/no/such/shell' > /work/bad; touch /work/plain; chmod +x /work/bad").await;
    let mut no_directory = shell("true");
    no_directory.cwd = "/no/such/directory".into();
    let table = [
        (command("no-such-program", &[]), Step::Exec, libc::ENOENT),
        (command("/work/absent", &[]), Step::Exec, libc::ENOENT),
        (command("/work/bad", &[]), Step::Exec, libc::ENOENT),
        (command("/work/plain", &[]), Step::Exec, libc::EACCES),
        (command("/usr", &[]), Step::Exec, libc::EACCES),
        (no_directory, Step::Directory, libc::ENOENT),
    ];
    for (spec, step, errno) in table {
        let error = workspace.try_run(&spec).await.unwrap_err();
        assert_eq!((error.step(), error.errno()), (Some(step), Some(errno)), "{}: {error}", spec.exec);
    }
    assert_eq!(workspace.output("echo still here").await, "still here");
}

#[tokio::test]
async fn only_the_descriptors_given_are_open() {
    let mut workspace = Workspace::new().await;
    // The last is ls's own, of the directory it lists.
    assert_eq!(workspace.output("ls /proc/self/fd | tr '\\n' ' '").await, "0 1 2 3");
    let (mut read, write) = pipe();
    let mut spec = shell("echo through >&7; ls /proc/self/fd | tr '\\n' ' '");
    spec.descriptors = vec![(7, Arc::new(write))];
    assert_eq!(workspace.run(&spec).await.stdout, "0 1 2 3 7 ");
    drop(spec);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through\n");
}

#[tokio::test]
async fn a_terminal_is_its_controlling_one_and_is_resized_from_outside() {
    let workspace = Workspace::new().await;
    let mut spec = shell("test -t 0 && tty && stty size; read line; stty size; echo got $line >/dev/tty");
    spec.terminal = Some(Terminal { cols: 80, rows: 25 });
    let spawned = workspace.keeper.spawn(1, &spec, Stdio::default()).await.unwrap();
    let mut terminal = std::fs::File::from(spawned.terminal.unwrap());
    let output = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let mut resized = false;
        let mut buffer = [0; 256];
        // The end of the last process on it reads as an error.
        while let Ok(count @ 1..) = terminal.read(&mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if !resized && text.contains("25 80") {
                resized = true;
                let size = rustix::termios::Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
                rustix::termios::tcsetwinsize(terminal.as_fd(), size).unwrap();
                terminal.write_all(b"hello\n").unwrap();
            }
        }
        text
    })
    .await
    .unwrap();
    for part in ["/dev/pts/0", "25 80", "50 132", "got hello"] {
        assert!(output.contains(part), "{part}: {output}");
    }
}

#[tokio::test]
async fn a_signal_reaches_the_whole_process_group() {
    let mut workspace = Workspace::new().await;
    let (mut read, write) = pipe();
    let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
    workspace.keeper.spawn(5, &shell("sleep 1000 & sleep 1000 & echo up; wait"), stdio).await.unwrap();
    let mut line = [0; 3];
    read.read_exact(&mut line).unwrap();
    workspace.keeper.signal(5, libc::SIGTERM).await.unwrap();
    let Some(Event::Exited { id: 5, code: None, signal: Some(libc::SIGTERM), .. }) = workspace.events.next().await
    else {
        panic!("another event");
    };
    // All writers are gone only when the children are too.
    assert_eq!(read.read(&mut line).unwrap(), 0);
    assert!(workspace.keeper.signal(5, 0).await.is_err());
}

#[tokio::test]
async fn granted_paths_are_seen_at_their_targets_and_hidden_ones_are_empty() {
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir(host.path().join("in")).unwrap();
    std::fs::create_dir(host.path().join("out")).unwrap();
    std::fs::write(host.path().join("in/file"), "content").unwrap();
    for path in [host.path().to_owned(), host.path().join("out")] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let grant = |name: &str, target: &str, access| PathGrant {
        path: host.path().join(name),
        target: Some(target.into()),
        access,
    };
    let spec = SandboxSpec {
        paths: vec![
            grant("in", "/data/in", Access::Read),
            grant("in/file", "/data/single", Access::Read),
            grant("out", "/data/out", Access::Write),
        ],
        hidden: vec!["/usr/share/doc".into(), "/etc/passwd".into()],
        ..SandboxSpec::default()
    };
    let mut workspace = Workspace::with(&spec).await;
    assert_eq!(workspace.output("cat /data/in/file /data/single").await, "contentcontent");
    assert_ne!(workspace.run(&shell("echo x > /data/in/other")).await.code, Some(0));
    workspace.output("echo made > /data/out/file").await;
    assert_eq!(std::fs::read_to_string(host.path().join("out/file")).unwrap(), "made\n");
    assert_eq!(workspace.output("ls -A /usr/share/doc; cat /etc/passwd").await, "");
}

#[tokio::test]
async fn an_owners_path_is_used_with_the_owners_rights() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let host = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(host.path(), open).unwrap();
    let path = host.path().join("home");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("private"), "read me").unwrap();
    // Root grants another user's path; an ordinary user has only its own.
    if rustix::process::geteuid().is_root() {
        chown(&path, Some(12345), Some(23456)).unwrap();
        chown(path.join("private"), Some(12345), Some(23456)).unwrap();
    }
    std::fs::set_permissions(path.join("private"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    let owner = std::fs::metadata(&path).unwrap();
    let grant = PathGrant { path: path.clone(), target: Some("/data".into()), access: Access::Owner };
    let spec = SandboxSpec { paths: vec![grant.clone()], ..SandboxSpec::default() };
    let mut workspace = Workspace::with(&spec).await;
    let script = "cat /data/private; echo made > /data/made; stat -c %U:%G /data/made";
    assert_eq!(workspace.output(script).await, "read mework:work");
    let made = std::fs::metadata(path.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (owner.uid(), owner.gid()));
    if rustix::process::geteuid().is_root() {
        chown(&path, Some(0), Some(0)).unwrap();
        let error = workspace.spawner.workspace(&spec).await.unwrap_err();
        assert_eq!((error.step(), error.errno()), (Some(Step::Path), Some(libc::EPERM)));
    }
}

#[tokio::test]
async fn loopback_works_where_it_is_given() {
    let try_it = "use Socket; socket(S,PF_INET,SOCK_STREAM,0) or die; \
                  bind(S,sockaddr_in(0,INADDR_LOOPBACK)) or die; listen(S,1) or die; \
                  ($p)=sockaddr_in(getsockname S); socket(C,PF_INET,SOCK_STREAM,0) or die; \
                  connect(C,sockaddr_in($p,INADDR_LOOPBACK)) or die qq(refused: $!); print qq(connected);";
    let spec = SandboxSpec { network: Network::Loopback, ..SandboxSpec::default() };
    assert_eq!(Workspace::with(&spec).await.run(&perl(try_it)).await.stdout, "connected");
    assert_ne!(Workspace::new().await.run(&perl(try_it)).await.code, Some(0));
}

#[tokio::test]
async fn limits_are_the_workspaces_and_a_command_can_only_tighten_them() {
    let rlimits = Rlimits { nofile: Some(100), mem_bytes: Some(1 << 30), ..Rlimits::default() };
    let mut workspace = Workspace::with(&SandboxSpec { rlimits, ..SandboxSpec::default() }).await;
    assert_eq!(workspace.output("ulimit -n; ulimit -v; ulimit -c").await, "100\n1048576\n0");
    let mut spec = shell("ulimit -n; ulimit -v");
    spec.rlimits = Rlimits { nofile: Some(50), mem_bytes: Some(1 << 40), ..Rlimits::default() };
    assert_eq!(workspace.run(&spec).await.stdout, "50\n1048576\n");
}

#[tokio::test]
async fn scratch_space_is_bounded() {
    let spec = SandboxSpec { scratch_bytes: 4 << 20, ..SandboxSpec::default() };
    let mut workspace = Workspace::with(&spec).await;
    let outcome = workspace.run(&shell("head -c 16m /dev/zero > /tmp/big; wc -c < /tmp/big")).await;
    let size: u64 = outcome.stdout.trim().parse().unwrap();
    assert!(size > 3 << 20 && size <= 4 << 20, "{size}");
    // The same space: what /tmp took, /work lacks.
    assert_ne!(workspace.run(&shell("head -c 2m /dev/zero > /work/big")).await.code, Some(0));
}

#[tokio::test]
async fn an_end_asks_first_and_kills_after_the_grace() {
    let workspace = Workspace::new().await;
    let (mut read, write) = pipe();
    let kind = shell("trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.01; done");
    let deaf = shell("trap '' TERM; echo up; while :; do sleep 0.01; done");
    for (id, spec) in [(1, &kind), (2, &deaf)] {
        let stdio = Stdio { stdout: Some(write.try_clone().unwrap()), ..Stdio::default() };
        workspace.keeper.spawn(id, spec, stdio).await.unwrap();
    }
    drop(write);
    let mut text = [0; 6];
    read.read_exact(&mut text).unwrap();
    let common::Workspace { keeper, mut events, spawner, .. } = workspace;
    let reaped = keeper.end(Duration::from_millis(300)).await.unwrap();
    assert!(reaped >= 2, "{reaped}");
    let mut seen = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Exited { id, code, signal, .. } => {
                seen.insert((id, code, signal));
            }
            Event::Refused { .. } => panic!("nothing is explained"),
            Event::KeeperGone => break,
        }
    }
    assert_eq!(seen, HashSet::from([(1, Some(3), None), (2, None, Some(libc::SIGKILL))]));
    let mut rest = String::new();
    read.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "asked\n");
    drop(spawner);
}

#[tokio::test]
async fn hundreds_of_commands_at_once_all_run_and_are_all_reported() {
    let spawner = spawner();
    let (keeper, mut events) = spawner.workspace(&SandboxSpec::default()).await.unwrap();
    let keeper = Arc::new(keeper);
    let mut tasks = tokio::task::JoinSet::new();
    for id in 0..300 {
        let keeper = Arc::clone(&keeper);
        tasks.spawn(async move { keeper.spawn(id, &shell(&format!("exit {}", id % 200)), Stdio::default()).await });
    }
    let mut pids = HashSet::new();
    while let Some(done) = tasks.join_next().await {
        let pid = done.unwrap().unwrap().pid;
        assert!(pid > 1, "{pid}");
        pids.insert(pid);
    }
    assert_eq!(pids.len(), 300);
    let mut codes = std::collections::HashMap::new();
    while codes.len() < 300 {
        let Some(Event::Exited { id, code, .. }) = events.next().await else { panic!("gone") };
        codes.insert(id, code);
    }
    assert!(codes.iter().all(|(id, code)| *code == Some((id % 200) as i32)));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let spawner = spawner();
    let spec = SandboxSpec::default();
    let grant = |path: &str| PathGrant { path: path.into(), target: None, access: Access::Read };
    for bad in [
        SandboxSpec { hostname: String::new(), ..spec.clone() },
        SandboxSpec { hostname: "x".repeat(65), ..spec.clone() },
        SandboxSpec { scratch_bytes: 0, ..spec.clone() },
        SandboxSpec { paths: vec![grant("relative")], ..spec.clone() },
        SandboxSpec { paths: vec![grant("/")], ..spec.clone() },
        SandboxSpec { paths: vec![grant("/a/../b")], ..spec.clone() },
        SandboxSpec { paths: vec![grant("/no/such/path")], ..spec.clone() },
        SandboxSpec { hidden: vec!["/no/such/path".into()], ..spec.clone() },
        SandboxSpec { cpu_affinity: vec![100_000], ..spec.clone() },
        SandboxSpec { cgroup: Some("/no/such/cgroup".into()), ..spec.clone() },
    ] {
        let error = spawner.workspace(&bad).await.unwrap_err();
        assert!(!error.to_string().is_empty(), "{bad:?}");
    }
    assert!(spawner.workspace(&spec).await.is_ok());
}

#[tokio::test]
async fn the_doors_of_a_workspace_are_in_its_own_network() {
    let mut workspace = Workspace::with(&SandboxSpec { network: Network::Outbound, ..SandboxSpec::default() }).await;
    let doors = workspace.keeper.doors().await.unwrap();
    let listener = std::net::TcpListener::from(doors.proxy);
    let at = listener.local_addr().unwrap();
    assert_eq!((at.ip().is_loopback(), at.port()), (true, shipote_sandbox::DOOR_PROXY));
    let (socket, name_server) = (std::net::UdpSocket::from(doors.names), shipote_sandbox::DOOR_NAMES);
    assert_eq!(socket.local_addr().unwrap().port(), name_server);
    let script = "bash -c 'exec 3<>/dev/tcp/127.0.0.1/3128 && printf hello >&3 && cat <&3'";
    let greeted = workspace.output(script);
    let served = tokio::task::spawn_blocking(move || {
        listener.set_nonblocking(false).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; 5];
        std::io::Read::read_exact(&mut stream, &mut hello).unwrap();
        std::io::Write::write_all(&mut stream, b"served").unwrap();
        hello
    });
    let (output, hello) = tokio::join!(greeted, served);
    assert_eq!((output, hello.unwrap()), ("served".to_owned(), *b"hello"));
    let mut other = Workspace::with(&SandboxSpec { network: Network::Loopback, ..SandboxSpec::default() }).await;
    assert!(other.keeper.doors().await.is_err(), "one that was given none has none");
    let refused = other.output("bash -c '(exec 3<>/dev/tcp/127.0.0.1/3128) 2>&1 || true'").await;
    assert!(refused.contains("refused"), "{refused}");
}
