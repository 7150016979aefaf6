//! What a command in a workspace cannot do, one test a sentence.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Workspace, command, perl, shell};
use shipote_sandbox::{Access, Network, PathGrant, Rlimits, SandboxSpec, Stdio};

/// A perl script that makes one system call and prints `ok` or its error number.
fn syscall(number: i64, arguments: &str) -> shipote_sandbox::CommandSpec {
    // Perl wants strings that the kernel could write to.
    let quoted = arguments.split('\'').enumerate().map(|(index, part)| match index % 2 {
        0 => part.to_owned(),
        _ => format!("(my $s{index} = '{part}')"),
    });
    let arguments = quoted.collect::<String>();
    perl(&format!("$r = syscall({number}, {arguments}); print $r == -1 ? $!+0 : 'ok'"))
}

async fn assert_refused(workspace: &mut Workspace, what: &str, number: i64, arguments: &str, errnos: &[i32]) {
    let outcome = workspace.run(&syscall(number, arguments)).await;
    let errno = outcome.stdout.parse::<i32>().unwrap_or(0);
    assert!(errnos.contains(&errno), "{what}: {outcome:?}");
}

#[tokio::test]
async fn it_sees_no_process_but_its_workspaces() {
    let mut one = Workspace::new().await;
    let mut other = Workspace::new().await;
    one.keeper.spawn(77, &command("sleep", &["1000"]), Stdio::default()).await.unwrap();
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
    let seen = other.output(script).await;
    assert!(!seen.contains("sleep 1000"), "{seen}");
    let count = other.output("ls -d /proc/[0-9]* | wc -l").await;
    assert!(count.parse::<u32>().unwrap() <= 5, "{count}");
    assert!(one.output(script).await.contains("sleep 1000"));
}

#[tokio::test]
async fn it_sees_no_file_of_another_workspace() {
    let mut one = Workspace::new().await;
    let mut other = Workspace::new().await;
    one.output("echo s > /tmp/secret; echo s > /work/secret; echo s > /dev/shm/secret").await;
    assert_eq!(other.output("ls -A /tmp /work /dev/shm | grep -c secret || true").await, "0");
}

#[tokio::test]
async fn it_sees_nothing_of_the_host_but_the_system() {
    let mut workspace = Workspace::new().await;
    let absent = "/home /root /var /etc/shadow /etc/gshadow /etc/sudoers /etc/ssh /boot /mnt /media /opt /srv /sys \
                  /run/systemd /run/dbus /dev/vda /dev/sda /dev/mem /dev/kmsg /dev/kvm /dev/fuse /dev/net";
    let script = format!("for p in {absent}; do test -e $p && echo $p; done; true");
    assert_eq!(workspace.output(&script).await, "");
    let names = workspace.output("ls -A /").await;
    for name in names.lines() {
        let expected = [
            "bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "nix", "proc", "run", "sbin", "tmp", "usr", "work",
        ];
        assert!(expected.contains(&name), "/{name}");
    }
    assert_eq!(workspace.output("cut -d: -f1 /etc/passwd | grep -v -e root -e work -e nobody || true").await, "");
}

#[tokio::test]
async fn no_mount_leads_back_to_the_host() {
    let mut workspace = Workspace::new().await;
    let mounts = workspace.output("cat /proc/self/mountinfo").await;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (point, options) = (fields[4], fields[5]);
        let writable = ["/work", "/tmp", "/dev/shm", "/dev/pts", "/proc"].contains(&point);
        let device =
            ["full", "null", "random", "tty", "urandom", "zero"].iter().any(|name| point == format!("/dev/{name}"))
                || line.contains("/null ");
        assert!(writable || device || options.starts_with("ro"), "{line}");
        assert!(device || options.contains("nosuid"), "{line}");
    }
    assert!(!mounts.contains("shared:") && !mounts.contains("master:"), "{mounts}");
}

#[tokio::test]
async fn it_has_no_network() {
    let mut workspace = Workspace::new().await;
    let devices = workspace.output("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '").await;
    assert!(devices.lines().all(|name| ["lo", "sit0", "ip6tnl0", "tunl0", "gre0"].contains(&name)), "{devices}");
    assert_eq!(workspace.output("tail -n +2 /proc/net/route").await, "");
    let connect = "use Socket; socket(S,PF_INET,SOCK_STREAM,0) or die; \
                   connect(S,sockaddr_in(53,inet_aton('1.1.1.1'))) and print 'connected'; print $!+0";
    assert_eq!(workspace.run(&perl(connect)).await.stdout, libc::ENETUNREACH.to_string());
}

#[tokio::test]
async fn it_does_not_reach_the_hosts_sockets() {
    let host = tempfile::tempdir().unwrap();
    let _path = std::os::unix::net::UnixListener::bind(host.path().join("socket")).unwrap();
    let name = format!("shipote-test-{}", std::process::id());
    let address = <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name);
    let _abstract = std::os::unix::net::UnixListener::bind_addr(&address.unwrap()).unwrap();
    let spec = SandboxSpec { network: Network::Loopback, ..SandboxSpec::default() };
    let mut workspace = Workspace::with(&spec).await;
    for address in [format!("'{}/socket'", host.path().display()), format!("qq(\\0{name})")] {
        let connect = format!(
            "use Socket; socket(S,PF_UNIX,SOCK_STREAM,0) or die; \
             connect(S,pack_sockaddr_un({address})) and print 'connected'"
        );
        assert_eq!(workspace.run(&perl(&connect)).await.stdout, "", "{address}");
    }
}

#[tokio::test]
async fn it_cannot_signal_out() {
    let mut workspace = Workspace::new().await;
    // The service's pid names nothing inside; PID 1 is the keeper, which nothing inside can hurt.
    let outside = std::process::id();
    let script = format!("kill -9 {outside} 2>&1; kill -9 1; kill -TERM 1; kill -STOP 1; kill -9 -1; true");
    workspace.run(&shell(&script)).await;
    assert_eq!(workspace.output("echo alive").await, "alive");
}

#[tokio::test]
async fn it_has_no_capability_and_can_gain_none() {
    let mut workspace = Workspace::new().await;
    let status = workspace.output("grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status").await;
    for line in status.lines() {
        let (name, value) = line.split_once(':').unwrap();
        let expected: &[&str] = match name {
            "NoNewPrivs" => &["1"],
            "Seccomp" => &["2"],
            "Uid" | "Gid" => &["1000\t1000\t1000\t1000"],
            // An ordinary user's groups cannot be dropped, and are nobody inside.
            "Groups" => continue,
            _ => &["0000000000000000"],
        };
        assert!(expected.contains(&value.trim()), "{line}");
    }
}

#[tokio::test]
async fn set_user_id_programs_gain_nothing() {
    let host = tempfile::tempdir().unwrap();
    let copy = host.path().join("id");
    std::fs::copy("/usr/bin/id", &copy).unwrap();
    for path in [host.path(), &copy] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o6755)).unwrap();
    }
    let grant = PathGrant { path: host.path().to_owned(), target: Some("/data".into()), access: Access::Read };
    let mut workspace = Workspace::with(&SandboxSpec { paths: vec![grant], ..SandboxSpec::default() }).await;
    assert_eq!(workspace.output("/data/id -u; /data/id -ru").await, "1000\n1000");
}

#[tokio::test]
async fn it_cannot_mount_or_make_namespaces() {
    let mut workspace = Workspace::new().await;
    let refused = [libc::EPERM];
    let w = &mut workspace;
    assert_refused(w, "mount", libc::SYS_mount, "'t', '/tmp', 'tmpfs', 0, 0", &refused).await;
    assert_refused(w, "umount", libc::SYS_umount2, "'/proc', 2", &refused).await;
    assert_refused(w, "pivot_root", libc::SYS_pivot_root, "'/tmp', '/tmp'", &refused).await;
    assert_refused(w, "chroot", libc::SYS_chroot, "'/tmp'", &refused).await;
    assert_refused(w, "setns", libc::SYS_setns, "0, 0", &refused).await;
    assert_refused(w, "fsopen", libc::SYS_fsopen, "'tmpfs', 0", &refused).await;
    assert_refused(w, "open_tree", libc::SYS_open_tree, "-100, '/', 1", &refused).await;
    for flags in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
        assert_refused(w, "unshare", libc::SYS_unshare, &flags.to_string(), &refused).await;
        assert_refused(w, "clone", libc::SYS_clone, &format!("{flags} | 17, 0, 0, 0, 0"), &refused).await;
    }
    assert_refused(w, "clone3", libc::SYS_clone3, "0, 0", &[libc::ENOSYS]).await;
}

#[tokio::test]
async fn it_cannot_reach_into_its_keeper() {
    let mut workspace = Workspace::new().await;
    let refused = [libc::EPERM];
    let w = &mut workspace;
    // PTRACE_ATTACH and PTRACE_SEIZE.
    assert_refused(w, "ptrace", libc::SYS_ptrace, "16, 1, 0, 0", &refused).await;
    assert_refused(w, "ptrace", libc::SYS_ptrace, "0x4206, 1, 0, 0", &refused).await;
    assert_refused(w, "process_vm_readv", libc::SYS_process_vm_readv, "1, 0, 0, 0, 0, 0", &refused).await;
    let files = "for f in mem environ maps fd/0 root/etc cwd/etc ns/mnt; do \
                 head -c 1 /proc/1/$f >/dev/null 2>&1 && echo $f; done; ls /proc/1/fd 2>/dev/null; true";
    assert_eq!(workspace.output(files).await, "");
    let fd =
        "$p = syscall(434, 1, 0); die if $p == -1; for (0..20) { print qq(got $_) if syscall(438, $p, $_, 0) != -1 }";
    assert_eq!(workspace.run(&perl(fd)).await.stdout, "");
}

#[tokio::test]
async fn it_cannot_write_the_system_or_kernel_settings() {
    let mut workspace = Workspace::new().await;
    let script = "for f in /usr/x /bin/x /etc/x /x /proc/sys/kernel/hostname /proc/sys/kernel/core_pattern \
                  /proc/sysrq-trigger /proc/irq/default_smp_affinity /proc/1/oom_score_adj /proc/bus/x /dev/x; do \
                  (echo x > $f) 2>/dev/null && echo wrote $f; done; \
                  mv /usr/bin/env /usr/bin/env2 2>/dev/null && echo moved; \
                  touch /etc/passwd 2>/dev/null && echo touched; true";
    // Writing to the null device that covers one is no harm.
    assert_eq!(workspace.output(script).await.replace("wrote /proc/sysrq-trigger", ""), "");
    assert_eq!(workspace.output("cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c").await, "0");
}

#[tokio::test]
async fn it_cannot_raise_its_limits() {
    let rlimits = Rlimits { nofile: Some(64), nproc: Some(50), ..Rlimits::default() };
    let mut workspace = Workspace::with(&SandboxSpec { rlimits, ..SandboxSpec::default() }).await;
    let outcome = workspace.run(&shell("ulimit -n 65; ulimit -Hn 65; ulimit -n; ulimit -c 1; ulimit -c")).await;
    assert_eq!(outcome.stdout, "64\n0\n");
    // prlimit64 with new limits of 1000 for itself: soft and hard as two 64-bit numbers.
    let raise = format!(
        "$l = pack('QQ', 1000, 1000); $r = syscall({}, 0, {}, $l, 0); print $r == -1 ? $!+0 : 'ok'",
        libc::SYS_prlimit64,
        libc::RLIMIT_NOFILE
    );
    assert_eq!(workspace.run(&perl(&raise)).await.stdout, libc::EPERM.to_string());
}

#[tokio::test]
async fn a_fork_bomb_is_contained() {
    let rlimits = Rlimits { nproc: Some(40), ..Rlimits::default() };
    let mut workspace = Workspace::with(&SandboxSpec { rlimits, ..SandboxSpec::default() }).await;
    let mut neighbour = Workspace::new().await;
    let bomb = "my $n = 0; while (1) { my $p = fork; last unless defined $p; if ($p == 0) { sleep 1000; exit } $n++; \
                last if $n > 500 } print $n";
    let spec = perl(bomb);
    let (mut read, write) = common::pipe();
    let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
    workspace.keeper.spawn(500, &spec, stdio).await.unwrap();
    let Some(shipote_sandbox::Event::Exited { id: 500, .. }) = workspace.events.next().await else { panic!("gone") };
    // All of its children still hold the pipe: it is read as far as the parent wrote.
    let mut count = [0; 8];
    let length = std::io::Read::read(&mut read, &mut count).unwrap();
    let count: u32 = std::str::from_utf8(&count[..length]).unwrap().parse().unwrap();
    assert!((10..=40).contains(&count), "{count}");
    assert_eq!(neighbour.output("echo unharmed").await, "unharmed");
    let reaped = workspace.keeper.end(Duration::ZERO).await.unwrap();
    assert!(reaped >= count, "{reaped} of {count}");
}

#[tokio::test]
async fn it_cannot_type_into_a_terminal_or_reach_the_kernels_side_doors() {
    let mut workspace = Workspace::new().await;
    let refused = [libc::EPERM];
    let w = &mut workspace;
    assert_refused(w, "TIOCSTI", libc::SYS_ioctl, "0, 0x5412, 'x'", &refused).await;
    assert_refused(w, "TIOCLINUX", libc::SYS_ioctl, "0, 0x541c, 'x'", &refused).await;
    assert_refused(w, "keyctl", libc::SYS_keyctl, "0, 0, 0", &refused).await;
    assert_refused(w, "add_key", libc::SYS_add_key, "'user', 'x', 'y', 1, -3", &refused).await;
    assert_refused(w, "io_uring_setup", libc::SYS_io_uring_setup, "1, 0", &refused).await;
    assert_refused(w, "bpf", libc::SYS_bpf, "0, 0, 0", &refused).await;
    assert_refused(w, "perf_event_open", libc::SYS_perf_event_open, "0, 0, -1, -1, 0", &refused).await;
    assert_refused(w, "userfaultfd", libc::SYS_userfaultfd, "1", &refused).await;
    assert_refused(w, "name_to_handle_at", libc::SYS_name_to_handle_at, "-100, '/', 0, 0, 0", &refused).await;
    assert_refused(w, "personality", libc::SYS_personality, "0x0040000", &refused).await;
    assert_refused(w, "kexec_load", libc::SYS_kexec_load, "0, 0, 0, 0", &refused).await;
    assert_refused(w, "settimeofday", libc::SYS_settimeofday, "0, 0", &refused).await;
    assert_refused(w, "reboot", libc::SYS_reboot, "0, 0, 0, 0", &refused).await;
    assert_refused(w, "an unknown call", 1_000_000, "0", &[libc::ENOSYS]).await;
    for family in [libc::AF_VSOCK, libc::AF_PACKET, libc::AF_ALG, libc::AF_BLUETOOTH] {
        assert_refused(w, "socket", libc::SYS_socket, &format!("{family}, 1, 0"), &[libc::EAFNOSUPPORT]).await;
    }
    // NETLINK_AUDIT and NETLINK_KOBJECT_UEVENT.
    for protocol in [9, 15] {
        assert_refused(w, "netlink", libc::SYS_socket, &format!("16, 3, {protocol}"), &[libc::EAFNOSUPPORT]).await;
    }
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn calls_of_another_architecture_kill_it() {
    let mut workspace = Workspace::new().await;
    // mov eax, 20 (getpid of i386); int 0x80; executed from an anonymous mapping.
    let script = format!(
        "$a = syscall({}, 0, 4096, 7, 34, -1, 0); $c = pack('C*', 0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xc3); \
         syscall({}, fileno(STDIN), 0, 0); open(M, '+<', '/proc/self/mem') or die; seek(M, $a, 0); syswrite(M, $c); \
         require DynaLoader; &{{DynaLoader::dl_install_xsub('main::go', $a)}}(); print 'survived'",
        libc::SYS_mmap,
        libc::SYS_lseek
    );
    let outcome = workspace.run(&perl(&script)).await;
    assert_eq!((outcome.signal, outcome.stdout.as_str()), (Some(libc::SIGSYS), ""), "{outcome:?}");
}

#[tokio::test]
async fn it_is_given_no_directory_of_the_host() {
    let workspace = Workspace::new().await;
    let root = || std::os::fd::OwnedFd::from(std::fs::File::open("/").unwrap());
    let mut further = shell("ls /proc/self/fd/5/");
    further.descriptors = vec![(5, std::sync::Arc::new(root()))];
    let stdin = Stdio { stdin: Some(root()), ..Stdio::default() };
    let mut cgroup = shell("true");
    cgroup.cgroup = Some(std::sync::Arc::new(root()));
    // a cgroup in any other place than the cgroup's is a directory like any other
    let mount = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mount.lines().find(|l| l.contains(" - cgroup2 ")).and_then(|l| l.split(' ').nth(4)).map(str::to_owned);
    let group = || mount.as_ref().map(|m| std::os::fd::OwnedFd::from(std::fs::File::open(m).unwrap()));
    let mut through = shell("true");
    through.cgroup = group().map(std::sync::Arc::new);
    let way_out = Stdio { stdin: Some(group().unwrap_or_else(root)), ..Stdio::default() };
    for (spec, stdio) in
        [(&further, Stdio::default()), (&shell("true"), stdin), (&cgroup, Stdio::default()), (&through, way_out)]
    {
        let error = workspace.keeper.spawn(1, spec, stdio).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EISDIR), "{error}");
    }
}

#[tokio::test]
async fn what_it_leaves_running_ends_with_the_workspace() {
    let mut workspace = Workspace::new().await;
    let (mut read, write) = common::pipe();
    let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
    // A daemon: its own session, its parent gone, deaf to SIGTERM.
    let spec = shell("(trap '' TERM HUP; setsid sh -c 'trap \"\" TERM; echo up; sleep 1000; sleep 1000' &) ; exit 0");
    workspace.keeper.spawn(9, &spec, stdio).await.unwrap();
    let mut line = [0; 3];
    std::io::Read::read_exact(&mut read, &mut line).unwrap();
    while !matches!(workspace.events.next().await, Some(shipote_sandbox::Event::Exited { id: 9, .. })) {}
    drop(workspace.keeper);
    // Every writer of the pipe is gone.
    assert_eq!(std::io::Read::read(&mut read, &mut line).unwrap(), 0);
}

#[tokio::test]
async fn a_strict_workspace_is_enforced_or_refused() {
    let workspace = Workspace::new().await;
    let lacking = workspace.keeper.mechanisms().iter().filter(|mechanism| !mechanism.is_enforced()).count();
    let strict = SandboxSpec { strict: true, ..SandboxSpec::default() };
    match workspace.spawner.workspace(&strict).await {
        Ok(_) => assert_eq!(lacking, 0),
        Err(shipote_sandbox::SandboxError::Strict(reason)) => assert!(lacking > 0 && !reason.is_empty()),
        Err(other) => panic!("{other}"),
    }
}
