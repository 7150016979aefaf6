//! Guests that own what runs their machine: the monitor, the vsock device and what serves a volume are replaced by programs
//! that try what they should not be able to do. They run exactly as the real ones do, under the real keeper.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::ports;
use shipote_machines::actor::Handle;
use shipote_machines::groups::Groups;
use shipote_machines::kept::KeptWays;
use shipote_machines::launcher::Qemu;
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use shipote_machines::store::Store;
use shipote_machines::users::Users;
use shipote_machines::vmm::host::{Accelerator, Host};
use support::Machines;
use tokio::sync::{OnceCell, mpsc};

/// What each of them begins with: `attempt(name, whether it worked)`. What should work is called `own …`: it shows that the
/// others were tried in earnest.
const COMMON: &str = r#"#!/usr/bin/perl
use strict; use Socket; use Fcntl;
my ($image, $me) = ('IMAGE', 'NAME');
open(my $list, '<', "$image/targets") or die "targets: $!";
my %at = map { chomp; split / /, $_, 2 } <$list>;
sub attempt { my ($name, $worked) = @_; syswrite(STDOUT, "$me: $name: " . ($worked ? "DONE" : "refused") . "\n"); }
sub can_read { open(my $file, '<', $_[0]) }
sub can_write { open(my $file, '+<', $_[0]) }
sub can_make { open(my $file, '>', $_[0]) }
sub can_connect {
    socket(my $socket, AF_UNIX, $_[1] // SOCK_STREAM, 0) or return 0;
    connect($socket, pack_sockaddr_un($_[0]));
}
sub everywhere {
    attempt('read another disk', can_read($at{disk}));
    attempt('read the token', can_read($at{token}));
    attempt('read the state folder', opendir(my $folder, $at{state}));
    attempt('write another disk', can_write($at{disk}));
    attempt('read passwords', can_read('/etc/passwd'));
    attempt('change what machines are started with', can_make("$image/new"));
    attempt('make a file in the machine', can_make("$at{run}/new"));
    attempt('stop the keeper', kill('STOP', getppid()));
    attempt('use the network', socket(my $inet, AF_INET, SOCK_STREAM, 0));
    attempt('reach a socket of the host', can_connect($at{socket}));
    attempt('reach another keeper', can_connect($at{keeper}));
    attempt('reach its own keeper', can_connect("$at{run}/keeper"));
    attempt('reach an abstract socket', can_connect("\0$at{abstract}"));
    attempt('send to a socket of the host', can_connect($at{datagram}, SOCK_DGRAM));
    attempt('look into the service', can_read("/proc/$at{service}/mem"));
    attempt('become root', syscall(105, 0) == 0 && $< == 0 && can_read("$at{state}/other/disk.img"));
}
"#;

const QEMU: &str = r#"
everywhere();
attempt('own disk', open(my $disk, '+<&=', 104));
attempt('reach its disk by a path', can_write("$at{state}/hostile/disk.img"));
attempt('list processes', opendir(my $proc, '/proc'));
# Until the others have tried everything.
for my $number (100, 110) { open(my $other, '<&=', $number) or die "$number: $!"; sysread($other, my $byte, 1); }
attempt('own end', 1);
"#;

const DEVICE: &str = r#"
my %given; for my $n (0 .. $#ARGV - 1) { $given{$1} = $ARGV[$n + 1] if $ARGV[$n] =~ /^--(.*)/ }
socket(my $listener, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
bind($listener, pack_sockaddr_un($given{socket})) && listen($listener, 5)
    or die "listen: $!";
everywhere();
attempt('own knock', can_connect("$given{'uds-path'}_$at{port}"));
attempt('make a link among its sockets', symlink($at{socket}, "$given{'uds-path'}_7777"));
attempt('make a folder among its sockets', mkdir("$given{'uds-path'}_7778"));
attempt('make a file among its sockets', can_make("$given{'uds-path'}_7779"));
attempt('reach a socket by a link', can_connect("$given{'uds-path'}_7777"));
attempt('reach a socket by a longer path', can_connect("$given{'uds-path'}_7777/../../keeper"));
accept(my $monitor, $listener) or die "accept: $!";
syswrite($monitor, 'x');
sleep 1000;
"#;

const SERVER: &str = r#"
everywhere();
attempt('own folder', can_make('/proc/self/fd/100/made'));
attempt('leave the folder', can_read('/proc/self/fd/100/../secret'));
chdir('/proc/self/fd/100') or die "chdir: $!";
attempt('leave the folder by its working folder', can_read('../secret'));
attempt('a program with its rights', chmod(04755, 'made'));
attempt('a device', syscall(259, -100, my $path = "device", 0020666, 0x103) == 0);
attempt('make a socket', socket(my $socket, AF_UNIX, SOCK_STREAM, 0));
open(my $listener, '+<&=', 101) or die "101: $!";
accept(my $monitor, $listener) or die "accept: $!";
syswrite($monitor, 'x');
sleep 1000;
"#;

fn program(path: &Path, text: &str) {
    let (folder, name) = (path.parent().unwrap().display().to_string(), path.file_name().unwrap().to_str().unwrap());
    std::fs::write(path, text.replace("IMAGE", &folder).replace("NAME", name)).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_guest_that_owns_a_process_of_its_machine_gets_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = dir.path().canonicalize().unwrap();
    let (image, state, run) = (root.join("image"), root.join("state"), root.join("run"));
    for folder in [&image, &state, &state.join("other"), &root.join("shared")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(root.join("shared"), Some(4321), Some(4321)).unwrap();
    }
    for (name, content) in
        [("image/vmlinux", ""), ("image/initramfs.cpio", ""), ("state/other/disk.img", "other"), ("secret", "")]
    {
        std::fs::write(root.join(name), content).unwrap();
    }
    program(&image.join("qemu-system-x86_64"), &format!("{COMMON}{QEMU}"));
    program(&image.join("vhost-device-vsock"), &format!("{COMMON}{DEVICE}"));
    program(&image.join("virtiofsd"), &format!("{COMMON}{SERVER}"));
    let keeper = root.join("keeper");
    let own = env!("CARGO_BIN_EXE_shipote-machines");
    program(&keeper, &format!("#!/bin/sh\nPATH={}:$PATH exec {own} \"$@\"\n", image.display()));

    // What the host has that could be reached.
    let bind = |name: &str| {
        let listener = UnixListener::bind(root.join(name)).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let reached = bind("socket");
    let _datagram = std::os::unix::net::UnixDatagram::bind(root.join("datagram")).unwrap();
    let abstract_name = format!("shipote-hostile-{}", std::process::id());
    let abstract_address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let _abstract = UnixListener::bind_addr(&abstract_address).unwrap();
    let targets: BTreeMap<&str, String> = [
        ("disk", state.join("other/disk.img").display().to_string()),
        ("token", state.join("hostile/keeper-token").display().to_string()),
        ("state", state.display().to_string()),
        ("run", run.join("hostile").display().to_string()),
        ("socket", root.join("socket").display().to_string()),
        ("keeper", run.join("other/keeper").display().to_string()),
        ("datagram", root.join("datagram").display().to_string()),
        ("abstract", abstract_name),
        ("service", std::process::id().to_string()),
        ("port", ports::AGENT_READY.to_string()),
    ]
    .into();
    let lines: String = targets.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
    std::fs::write(image.join("targets"), lines).unwrap();

    let host = Host { accelerator: Accelerator::Tcg("a test".into()), tsc_khz: 1 };
    let launcher = Qemu {
        image,
        runtime: run.clone(),
        state: state.clone(),
        program: keeper,
        lease: Duration::from_secs(30),
        lifeline: None,
        shared: vec![root.join("shared")],
        groups: Groups::open(&run),
        users: Users::find(),
        trial: Duration::from_secs(1),
        host: Arc::new(OnceCell::new_with(Some(host))),
        proxy: tokio::sync::watch::channel(true).1,
        ways: KeptWays::default(),
    };
    let (sender, changes) = mpsc::unbounded_channel();
    let handle = Handle::start(Store::new(&state), launcher, sender).unwrap();
    // Only now: it would have been ended as one that nobody knows.
    std::fs::create_dir_all(run.join("other")).unwrap();
    let listeners = [reached, bind("run/other/keeper")];
    let mut machines = Machines { handle, changes, dir: Some(dir) };
    let volumes = vec![format!("{}:/data", root.join("shared").display())];
    machines.handle.create("hostile", Spec { disk_mib: 64, volumes, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("hostile").await.unwrap();
    let shown = machines.until_again(State::Failed).await;
    let console = String::from_utf8(machines.handle.console("hostile").await.unwrap()).unwrap();
    eprintln!("{console}");
    let (mut own, mut tried) = (0, 0);
    for line in console.lines().filter(|line| line.ends_with(": DONE") || line.ends_with(": refused")) {
        tried += 1;
        let should = line.contains(": own ");
        own += usize::from(should);
        assert_eq!(line.ends_with(": DONE"), should, "{line}\n{}", shown.reason);
    }
    assert_eq!((own, tried), (4, 3 * 16 + 4 + 6 + 6), "not all was tried: {}\n{console}", shown.reason);
    for listener in &listeners {
        assert!(listener.accept().is_err(), "somebody was reached");
    }
    assert_eq!(support::processes(&root), 0);
    assert_eq!(std::fs::read_to_string(state.join("other/disk.img")).unwrap(), "other");
}
