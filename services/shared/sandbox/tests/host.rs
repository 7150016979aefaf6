//! What a workspace shares with the host where its spec asks for it, and what it does not even then.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Workspace, perl, shell};
use shipote_sandbox::{Access, Enforcement, HostFiles, Network, PathGrant, SandboxSpec};

/// A folder that every user of the host may reach; not under `/tmp`, which a workspace has of its own.
fn folder() -> tempfile::TempDir {
    let place = ["/var/tmp", "/opt", "/srv"].iter().find(|p| tempfile::tempdir_in(p).is_ok()).unwrap();
    let folder = tempfile::tempdir_in(place).unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    folder
}

fn write(path: PathBuf, mode: u32) {
    std::fs::write(&path, "host").unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn reason(workspace: &Workspace, name: &str) -> (Enforcement, String) {
    let found = workspace.keeper.mechanisms().iter().find(|m| m.name == name).unwrap();
    (found.state, found.reason.clone())
}

#[tokio::test]
async fn read_only_files_of_the_host_are_read_and_not_written() {
    let host = folder();
    write(host.path().join("open"), 0o666);
    std::fs::create_dir(host.path().join("hidden")).unwrap();
    write(host.path().join("hidden/secret"), 0o666);
    std::fs::create_dir(host.path().join("protected")).unwrap();
    write(host.path().join("protected/secret"), 0o666);
    let spec = SandboxSpec {
        host_files: HostFiles::Read,
        hidden: vec![host.path().join("hidden")],
        protected: vec![host.path().join("protected"), "/nowhere/at/all".into()],
        ..SandboxSpec::default()
    };
    let mut workspace = Workspace::with(&spec).await;
    let at = host.path().display();
    assert_eq!(
        workspace.output(&format!("cat {at}/open; ls -A {at}/hidden {at}/protected | grep -c secret || true")).await,
        "host0"
    );
    let write = format!(
        "for f in {at}/open {at}/new /etc/new /usr/new /opt/new /new; do (echo x > $f) 2>/dev/null && echo wrote $f; done; true"
    );
    assert_eq!(workspace.output(&write).await, "");
    assert_eq!(std::fs::read_to_string(host.path().join("open")).unwrap(), "host");
    // What is of its own stays so, and there is no door to the host's services.
    assert_eq!(
        workspace
            .output("touch /tmp/mine /work/mine && ls -A /tmp /sys /run/dbus /run/systemd 2>/dev/null; true")
            .await,
        "/tmp:\nmine"
    );
    assert_eq!(reason(&workspace, "host-files").0, Enforcement::Enforced);
    if rustix::process::geteuid().is_root() {
        // The workspace's user is nobody's there.
        assert_eq!(workspace.output("cat /etc/shadow 2>/dev/null; ls -A /root 2>/dev/null; true").await, "");
    }
}

#[tokio::test]
async fn writable_files_of_the_host_are_written_but_not_the_system() {
    let host = folder();
    write(host.path().join("open"), 0o666);
    let closed = host.path().join("closed");
    write(closed.clone(), 0o444);
    let spec = SandboxSpec { host_files: HostFiles::Write, ..SandboxSpec::default() };
    let mut workspace = Workspace::with(&spec).await;
    let at = host.path().display();
    let script = format!(
        "echo new > {at}/open; echo new > {at}/made; \
         for f in {at}/closed /etc/new /usr/new /boot/new /new; do (echo x > $f) 2>/dev/null && echo wrote $f; done; true"
    );
    assert_eq!(workspace.output(&script).await, "");
    assert_eq!(std::fs::read_to_string(host.path().join("open")).unwrap(), "new\n");
    assert!(host.path().join("made").exists());
    assert_eq!(std::fs::read_to_string(closed).unwrap(), "host");
}

#[tokio::test]
async fn a_granted_socket_is_reached_and_nothing_else_is_taken_for_one() {
    let host = folder();
    let socket = host.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    let grant = |path: &Path| PathGrant { path: path.to_owned(), target: None, access: Access::Socket };
    let connect = format!(
        "use Socket; socket(S,PF_UNIX,SOCK_STREAM,0) or die; \
         print connect(S,pack_sockaddr_un('{}')) ? 'connected' : $!+0",
        socket.display()
    );
    let mut without = Workspace::new().await;
    assert_eq!(without.run(&perl(&connect)).await.stdout, libc::ENOENT.to_string());
    let mut with = Workspace::with(&SandboxSpec { paths: vec![grant(&socket)], ..SandboxSpec::default() }).await;
    assert_eq!(with.run(&perl(&connect)).await.stdout, "connected");
    write(host.path().join("file"), 0o666);
    for path in [host.path().join("file"), host.path().to_owned()] {
        let spec = SandboxSpec { paths: vec![grant(&path)], ..SandboxSpec::default() };
        let error = with.spawner.workspace(&spec).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTSOCK), "{error}");
    }
}

#[tokio::test]
async fn the_hosts_network_is_shared_where_asked_for_and_said_to_be() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = format!(
        "use Socket; socket(S,PF_INET,SOCK_STREAM,0) or die; \
         print connect(S,sockaddr_in({},inet_aton('127.0.0.1'))) ? 'connected' : $!+0",
        listener.local_addr().unwrap().port()
    );
    for (network, expected, state) in [
        (Network::None, libc::ENETUNREACH.to_string(), Enforcement::Enforced),
        (Network::Loopback, libc::ECONNREFUSED.to_string(), Enforcement::Enforced),
        (Network::Host, "connected".to_owned(), Enforcement::Missing),
    ] {
        let mut workspace = Workspace::with(&SandboxSpec { network, ..SandboxSpec::default() }).await;
        assert_eq!(workspace.run(&perl(&connect)).await.stdout, expected, "{network:?}");
        assert_eq!(reason(&workspace, "network-namespace").0, state, "{network:?}");
    }
}

#[tokio::test]
async fn abstract_sockets_stay_shut_with_the_hosts_network() {
    let name = format!("shipote-test-host-{}", std::process::id());
    let address = <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name);
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address.unwrap()).unwrap();
    let mut workspace = Workspace::with(&SandboxSpec { network: Network::Host, ..SandboxSpec::default() }).await;
    let (landlock, detail) = reason(&workspace, "landlock");
    let connect = format!(
        "use Socket; socket(S,PF_UNIX,SOCK_STREAM,0) or die; print connect(S,pack_sockaddr_un(qq(\\0{name}))) ? 'connected' : $!+0"
    );
    let outcome = workspace.run(&perl(&connect)).await.stdout;
    if landlock == Enforcement::Enforced {
        assert_eq!(outcome, libc::EPERM.to_string());
    } else {
        assert!(!detail.is_empty());
    }
}

#[tokio::test]
async fn the_hosts_processes_are_seen_and_not_touched() {
    let spec = SandboxSpec { host_processes: true, ..SandboxSpec::default() };
    let mut workspace = Workspace::with(&spec).await;
    let host = std::process::id();
    let name = std::fs::read_to_string(format!("/proc/{host}/comm")).unwrap();
    assert_eq!(workspace.output(&format!("cat /proc/{host}/comm")).await, name.trim_end());
    let reach = format!(
        "for f in environ mem maps cwd ns/mnt root/etc fd/0; do head -c 1 /proc/{host}/$f 2>/dev/null; \
         readlink /proc/{host}/$f; ls -d /proc/{host}/$f/ 2>/dev/null; done; kill -0 {host} 2>/dev/null && echo signalled; \
         (echo x > /proc/sys/kernel/hostname) 2>/dev/null && echo wrote; cat /proc/kcore /proc/keys 2>/dev/null | wc -c"
    );
    assert_eq!(workspace.output(&reach).await, "0");
    assert_eq!(reason(&workspace, "own-proc").0, Enforcement::Missing);
    let strict = SandboxSpec { strict: true, ..spec };
    // What was asked for is no lack; others may be, and are named.
    if let Err(error) = workspace.spawner.workspace(&strict).await {
        assert!(!error.to_string().contains("own-proc"), "{error}");
    }
    assert_eq!(workspace.run(&shell("exit 3")).await.code, Some(3));
}
