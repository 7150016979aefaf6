//! Real programs that try to get out, each beside the same program outside of a workspace, where it succeeds: so that
//! a refusal is the workspace's doing and no accident of the program's.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use common::{Workspace, perl, shell};
use shipote_sandbox::{Access, Network, PathGrant, Rlimits, SandboxSpec, Stdio};

/// What a script prints outside.
fn outside(program: &str, script: &str) -> String {
    let output = Command::new(program).arg(if program == "perl" { "-e" } else { "-c" }).arg(script).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Perl that makes a call and prints `ok` or the error's number.
fn call(number: i64, arguments: &str) -> String {
    format!("my $r = syscall({number}, {arguments}); print $r == -1 ? $!+0 : 'ok'")
}

fn errno(number: i32) -> String {
    number.to_string()
}

#[tokio::test]
async fn a_descriptor_bomb_fills_its_own_table_only() {
    let bomb = "my @all; while (1) { open(my $f, '<', '/dev/null') or last; push @all, $f; last if @all > 5000 } print scalar @all";
    let unbounded: u32 = outside("perl", bomb).parse().unwrap();
    assert!(unbounded > 200, "{unbounded}");
    let rlimits = Rlimits { nofile: Some(64), ..Rlimits::default() };
    let mut workspace = Workspace::with(&SandboxSpec { rlimits, ..SandboxSpec::default() }).await;
    let mut neighbour = Workspace::new().await;
    let opened: u32 = workspace.run(&perl(bomb)).await.stdout.parse().unwrap();
    assert!((50..64).contains(&opened), "{opened}");
    // Passing them around keeps them alive, and counts against the sender's limit (unix(7)).
    let flight = "use Socket; socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, 0); my @all; \
                  while (1) { socketpair(my $x, my $y, AF_UNIX, SOCK_STREAM, 0) or last; push @all, $x, $y } print scalar @all";
    let pairs: u32 = workspace.run(&perl(flight)).await.stdout.parse().unwrap();
    assert!(pairs < 64, "{pairs}");
    assert_eq!(neighbour.output("echo unharmed").await, "unharmed");
}

#[tokio::test]
async fn a_memory_bomb_ends_at_its_limit_and_harms_nobody() {
    // What is allocated is written to, so that it is really there.
    let bomb = "my @all; for (1..64) { push @all, 'x' x (4 << 20) } print scalar @all";
    assert_eq!(outside("perl", bomb), "64");
    let rlimits = Rlimits { mem_bytes: Some(96 << 20), ..Rlimits::default() };
    let mut workspace = Workspace::with(&SandboxSpec { rlimits, ..SandboxSpec::default() }).await;
    let mut neighbour = Workspace::new().await;
    let outcome = workspace.run(&perl(bomb)).await;
    assert_eq!((outcome.stdout.as_str(), outcome.code == Some(0)), ("", false), "{outcome:?}");
    // By mmap and without the interpreter's help: the call is refused, nothing is killed.
    let map = format!(
        "my $n = 0; while ($n < 64) {{ my $r = syscall({}, 0, 4 << 20, 3, 0x8022, -1, 0); last if $r == -1; $n++ }} print $n",
        libc::SYS_mmap
    );
    let mapped: u32 = workspace.run(&perl(&map)).await.stdout.parse().unwrap();
    assert!((1..24).contains(&mapped), "{mapped}");
    assert_eq!(neighbour.output("echo unharmed").await, "unharmed");
    assert_eq!(workspace.output("echo goes on").await, "goes on");
}

#[tokio::test]
async fn a_disk_filler_fills_its_scratch_only() {
    let fill = |at: &str| format!("dd if=/dev/zero of={at}/fill bs=64k count=64 2>/dev/null; stat -c %s {at}/fill");
    let host = tempfile::tempdir().unwrap();
    assert_eq!(outside("sh", &fill(&host.path().display().to_string())), (4 << 20).to_string());
    let scratch_bytes = 1 << 20;
    let mut workspace = Workspace::with(&SandboxSpec { scratch_bytes, ..SandboxSpec::default() }).await;
    let mut neighbour = Workspace::with(&SandboxSpec { scratch_bytes, ..SandboxSpec::default() }).await;
    let size: u64 = workspace.output(&fill("/work")).await.parse().unwrap();
    assert!(size <= scratch_bytes, "{size}");
    // The three places are one space.
    let more = "for d in /tmp /dev/shm; do echo x > $d/more 2>/dev/null && cat $d/more; done; true";
    assert_eq!(workspace.output(more).await, "");
    // Empty files cost memory as well.
    let files =
        "unlink '/work/fill'; my $n = 0; while ($n < 100000) { open(my $f, '>', qq(/work/$n)) or last; $n++ } print $n";
    let count: u64 = workspace.run(&perl(files)).await.stdout.parse().unwrap();
    assert!((500..2000).contains(&count), "{count}");
    for place in ["/", "/dev", "/etc", "/run", "/usr"] {
        assert_eq!(
            neighbour.output(&format!("(echo x > {place}/x) 2>/dev/null && echo wrote; true")).await,
            "",
            "{place}"
        );
    }
    assert_eq!(neighbour.output("echo fits > /work/x && cat /work/x").await, "fits");
}

#[tokio::test]
async fn links_lead_nowhere_but_inside() {
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(host.path(), PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::create_dir(host.path().join("given")).unwrap();
    std::fs::write(host.path().join("secret"), "secret").unwrap();
    std::fs::set_permissions(host.path().join("given"), PermissionsExt::from_mode(0o777)).unwrap();
    let secret = host.path().join("secret");
    for (link, target) in
        [("up", "../secret".to_owned()), ("whole", secret.display().to_string()), ("root", "/".to_owned())]
    {
        std::os::unix::fs::symlink(target, host.path().join("given").join(link)).unwrap();
    }
    let grant = PathGrant { path: host.path().join("given"), target: Some("/data".into()), access: Access::Write };
    let mut workspace = Workspace::with(&SandboxSpec { paths: vec![grant], ..SandboxSpec::default() }).await;
    let read = |at: &str, whole: &str| {
        format!(
            "for l in up whole root/{whole} ../secret ../../../../../..{whole}; do cat {at}/$l 2>/dev/null; done; \
             ln -s {whole} {at}/new; cat {at}/new 2>/dev/null; cat {at}/../secret 2>/dev/null; true"
        )
    };
    let whole = secret.display().to_string();
    let found = outside("sh", &read(&host.path().join("given").display().to_string(), &whole));
    assert!(found.contains("secretsecret"), "{found}");
    std::fs::remove_file(host.path().join("given/new")).unwrap();
    assert_eq!(workspace.output(&read("/data", &whole)).await, "");
    // A link that a command leaves is a link on the host, which is not followed when something is granted again.
    for path in ["given/root/etc", "given/up", "given/root"] {
        let trap = PathGrant { path: host.path().join(path), target: Some("/data2".into()), access: Access::Read };
        let made = workspace.spawner.workspace(&SandboxSpec { paths: vec![trap], ..SandboxSpec::default() }).await;
        let error = made.err().unwrap_or_else(|| panic!("{path} was followed"));
        assert_eq!(error.errno(), Some(libc::ELOOP), "{path}: {error}");
    }
}

#[tokio::test]
async fn a_link_that_is_swapped_in_while_a_path_is_granted_is_not_followed() {
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    for (name, text) in [("given", "plain"), ("elsewhere", "secret")] {
        std::fs::create_dir(host.path().join(name)).unwrap();
        std::fs::write(host.path().join(name).join("text"), text).unwrap();
    }
    for name in [".", "given", "elsewhere"] {
        std::fs::set_permissions(host.path().join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::os::unix::fs::symlink("elsewhere", host.path().join("link")).unwrap();
    // started before there is a thread
    let spawner = common::spawner();
    let (given, link) = (host.path().join("given"), host.path().join("link"));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let swapping = std::thread::spawn({
        let (stop, given, link) = (std::sync::Arc::clone(&stop), given.clone(), link.clone());
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &given, rustix::fs::CWD, &link, exchange).unwrap();
            }
        }
    });
    let grant = PathGrant { path: given, target: Some("/data".into()), access: Access::Read };
    let spec = SandboxSpec { paths: vec![grant], ..SandboxSpec::default() };
    let (mut plain, mut refused) = (0, 0);
    // Which of the two a moment is, is the scheduler's choice: until there were some of each.
    for _ in 0..5000 {
        if plain >= 10 && refused >= 10 {
            break;
        }
        match spawner.workspace(&spec).await {
            Ok((keeper, mut events)) => {
                let (mut text, stdout) = common::pipe();
                let stdio = shipote_sandbox::Stdio { stdout: Some(stdout), ..Default::default() };
                keeper.spawn(1, &common::command("cat", &["/data/text"]), stdio).await.unwrap();
                while !matches!(events.next().await, Some(shipote_sandbox::Event::Exited { .. })) {}
                let mut seen = String::new();
                std::io::Read::read_to_string(&mut text, &mut seen).unwrap();
                assert_eq!(seen, "plain");
                plain += 1;
            }
            Err(error) => {
                assert_eq!(error.errno(), Some(libc::ELOOP), "{error}");
                refused += 1;
            }
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapping.join().unwrap();
    assert!(plain >= 10 && refused >= 10, "nothing was swapped: {plain} and {refused}");
}

#[tokio::test]
async fn proc_leads_nowhere() {
    let mut workspace = Workspace::new().await;
    assert!(outside("sh", "ls -d /proc/self/root/var").contains("var"));
    let script = "for p in /proc/self/root /proc/self/cwd /proc/1/root /proc/1/cwd /proc/self/task/$$/root /proc/thread-self/root; do \
                  ls -d $p/var $p/home $p/root 2>/dev/null; cat $p/etc/shadow 2>/dev/null; done; \
                  for f in /proc/self/fd/*; do readlink $f; done | grep -v -e pipe: -e null -e /proc -e socket:; \
                  for f in /proc/1/fd/* /proc/1/map_files/*; do readlink $f; done 2>/dev/null; \
                  cat /proc/1/environ /proc/1/maps /proc/1/stack /proc/1/syscall 2>/dev/null; true";
    assert_eq!(workspace.output(script).await, "");
    // Writing through /proc to one's own memory is one's own business; to read-only mounts it is no way.
    let reopen = "exec 9< /usr/bin/env; (echo x > /proc/self/fd/9) 2>/dev/null && echo wrote; true";
    assert_eq!(workspace.output(reopen).await, "");
    for file in ["core_pattern", "modprobe", "hotplug", "randomize_va_space", "unprivileged_userns_clone"] {
        let write = format!("(echo '|/work/x' > /proc/sys/kernel/{file}) 2>/dev/null && echo wrote; true");
        assert_eq!(workspace.output(&write).await, "", "{file}");
    }
}

#[tokio::test]
async fn neighbours_cannot_be_traced_read_or_signalled() {
    let mut one = Workspace::new().await;
    let mut other = Workspace::new().await;
    let victim = one.keeper.spawn(70, &common::command("sleep", &["1000"]), Stdio::default()).await.unwrap();
    // Outside (as root, or the same user) the pid can be signalled and looked into.
    let probe = |pid: i32| format!("print kill(0, {pid}) ? 'signalled' : $!+0");
    if is_root() {
        assert_eq!(outside("perl", &probe(victim.pid)), "signalled");
    }
    assert_eq!(other.run(&perl(&probe(victim.pid))).await.stdout, errno(libc::ESRCH));
    let pid = victim.pid;
    for (what, number, arguments, refused) in [
        ("ptrace", libc::SYS_ptrace, format!("16, {pid}, 0, 0"), libc::EPERM),
        ("process_vm_readv", libc::SYS_process_vm_readv, format!("{pid}, 0, 0, 0, 0, 0"), libc::EPERM),
        ("pidfd_open", libc::SYS_pidfd_open, format!("{pid}, 0"), libc::ESRCH),
        ("kcmp", libc::SYS_kcmp, format!("{pid}, {pid}, 0, 0, 0"), libc::EPERM),
        ("tgkill", libc::SYS_tgkill, format!("{pid}, {pid}, 9"), libc::ESRCH),
        ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, format!("{pid}, 9, 0"), libc::EFAULT),
        ("process_madvise", libc::SYS_process_madvise, "-1, 0, 0, 0, 0".to_owned(), libc::EPERM),
        ("setpriority", libc::SYS_setpriority, format!("0, {pid}, 19"), libc::ESRCH),
        ("sched_setaffinity", libc::SYS_sched_setaffinity, format!("{pid}, 8, (my $s = pack('Q', 1))"), libc::ESRCH),
        ("prlimit64", libc::SYS_prlimit64, format!("{pid}, 7, 0, 0"), libc::ESRCH),
    ] {
        assert_eq!(other.run(&perl(&call(number, &arguments))).await.stdout, errno(refused), "{what}");
    }
    // Everybody at once: its own workspace is all that it means.
    other.run(&shell("kill -9 -1")).await;
    one.keeper.signal(70, 0).await.unwrap();
    // System V and POSIX names are its own, too.
    assert_eq!(one.output("ipcmk -M 4096 >/dev/null && ipcs -m | grep -c 0x").await, "1");
    assert_eq!(other.output("ipcs -m | grep -c 0x || true").await, "0");
}

#[tokio::test]
async fn set_user_id_programs_of_root_do_not_make_root() {
    if !is_root() {
        return;
    }
    // A copy of a program, root's and with the bit: outside, an ordinary user becomes root by it.
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    let copy = host.path().join("perl");
    std::fs::copy("/usr/bin/perl", &copy).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::set_permissions(host.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let script = "print qq($<:$>)";
    let mut other = Command::new(&copy);
    std::os::unix::process::CommandExt::uid(&mut other, 65534);
    let output = other.arg("-e").arg(script).output().unwrap();
    let outside = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(outside.ends_with(":0"), "{outside} {}", String::from_utf8_lossy(&output.stderr));
    let grant = PathGrant { path: host.path().to_owned(), target: Some("/data".into()), access: Access::Read };
    let mut workspace = Workspace::with(&SandboxSpec { paths: vec![grant], ..SandboxSpec::default() }).await;
    assert_eq!(workspace.run(&common::command("/data/perl", &["-e", script])).await.stdout, "1000:1000");
    let own = "cp /data/perl /work/p && chmod 6755 /work/p && /work/p -e 'print qq($<:$>)'";
    assert_eq!(workspace.output(own).await, "1000:1000");
}

#[tokio::test]
async fn namespaces_do_not_nest() {
    if is_root() {
        assert_eq!(outside("sh", "unshare -Urm sh -c 'mount -t tmpfs t /mnt && echo nested'"), "nested");
    }
    let mut workspace = Workspace::new().await;
    for flags in ["-U", "-Ur", "-m", "-n", "-p --fork", "-i", "-u", "-C", "-T"] {
        let script = format!("unshare {flags} true 2>/dev/null && echo made {flags}; true");
        assert_eq!(workspace.output(&script).await, "");
    }
    let enter = "for n in /proc/1/ns/* /proc/self/ns/*; do nsenter --net=$n true 2>/dev/null && echo $n; done; true";
    assert_eq!(workspace.output(enter).await, "");
}

#[tokio::test]
async fn mounts_cannot_be_made_moved_or_remounted() {
    let mut workspace = Workspace::new().await;
    let table = [
        "mount -t tmpfs t /tmp",
        "mount -o remount,rw /usr",
        "mount -o bind,remount,rw /usr",
        "mount --bind /tmp /etc",
        "mount --move /proc /tmp",
        "umount -l /proc/sys",
        "umount /proc/keys",
        "mount -t proc p /tmp",
        "mount -t overlay o -o lowerdir=/usr,upperdir=/tmp,workdir=/work /tmp",
        "chroot /usr true",
        "pivot_root /tmp /tmp",
    ];
    for script in table {
        let outcome = workspace.run(&shell(&format!("{script} 2>/dev/null"))).await;
        assert_ne!(outcome.code, Some(0), "{script}");
    }
    // The calls that mount(8) has come to use, one by one.
    for (what, number, arguments) in [
        ("fsopen", libc::SYS_fsopen, "(my $a = 'tmpfs'), 0"),
        ("fspick", libc::SYS_fspick, "-100, (my $a = '/usr'), 0"),
        ("open_tree", libc::SYS_open_tree, "-100, (my $a = '/usr'), 1"),
        ("move_mount", libc::SYS_move_mount, "-100, (my $a = '/usr'), -100, (my $b = '/tmp'), 0"),
        ("mount_setattr", libc::SYS_mount_setattr, "-100, (my $a = '/usr'), 0, (my $b = pack('QQQQ', 0, 1, 0, 0)), 32"),
        ("quotactl", libc::SYS_quotactl, "0, 0, 0, 0"),
        ("swapon", libc::SYS_swapon, "(my $a = '/tmp/x'), 0"),
    ] {
        assert_eq!(workspace.run(&perl(&call(number, arguments))).await.stdout, errno(libc::EPERM), "{what}");
    }
}

#[tokio::test]
async fn the_kernels_side_doors_open_outside_and_not_inside() {
    let mut workspace = Workspace::new().await;
    // What works for an ordinary program outside, where the kernel has it at all.
    for (what, number, arguments) in [
        ("io_uring_setup", libc::SYS_io_uring_setup, "1, (my $p = chr(0) x 120)"),
        ("keyctl", libc::SYS_keyctl, "0, -3, 0"),
        ("add_key", libc::SYS_add_key, "(my $a = 'user'), (my $b = 'shipote-test'), (my $c = 'y'), 1, -1"),
        ("userfaultfd", libc::SYS_userfaultfd, "1"),
        ("personality", libc::SYS_personality, "0x0040000"),
        (
            "name_to_handle_at",
            libc::SYS_name_to_handle_at,
            "-100, (my $a = '/'), (my $h = pack('II', 128, 0) . chr(0) x 128), (my $m = chr(0) x 8), 0",
        ),
        ("kcmp", libc::SYS_kcmp, "$$+0, $$+0, 0, 0, 0"),
        ("get_mempolicy", libc::SYS_get_mempolicy, "0, 0, 0, 0, 0"),
    ] {
        let out = outside("perl", &call(number, arguments));
        let inside = workspace.run(&perl(&call(number, arguments))).await.stdout;
        assert_eq!(inside, errno(libc::EPERM), "{what}; outside it is {out}");
        let absent = [libc::ENOSYS, libc::EPERM, libc::EINVAL, libc::EOPNOTSUPP].map(errno);
        assert!(out == "ok" || absent.contains(&out), "{what} is {out} outside");
    }
    for (what, number, arguments) in [
        ("bpf", libc::SYS_bpf, "0, (my $a = chr(0) x 64), 64"),
        ("perf_event_open", libc::SYS_perf_event_open, "(my $a = chr(0) x 128), 0, -1, -1, 0"),
        ("fanotify_init", libc::SYS_fanotify_init, "0, 0"),
        ("syslog", libc::SYS_syslog, "10, 0, 0"),
        ("acct", libc::SYS_acct, "0"),
        ("init_module", libc::SYS_init_module, "0, 0, 0"),
        ("kexec_load", libc::SYS_kexec_load, "0, 0, 0, 0"),
        ("reboot", libc::SYS_reboot, "0, 0, 0, 0"),
        ("clock_settime", libc::SYS_clock_settime, "0, 0"),
        ("sethostname", libc::SYS_sethostname, "(my $a = 'x'), 1"),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, "0, 0, 0"),
        ("iopl-like ioctl TIOCSTI", libc::SYS_ioctl, "0, 0x5412, (my $a = 'x')"),
    ] {
        assert_eq!(workspace.run(&perl(&call(number, arguments))).await.stdout, errno(libc::EPERM), "{what}");
    }
}

#[tokio::test]
async fn devices_are_the_harmless_ones() {
    let mut workspace = Workspace::new().await;
    let nodes = workspace.output("find /dev -type b -o -type c | sort | tr '\\n' ' '").await;
    for node in nodes.split(' ').filter(|node| !node.starts_with("/dev/pts/")) {
        let harmless = ["/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"];
        assert!(harmless.contains(&node), "{node}");
    }
    let make = "for d in '1 1 mem' '1 11 kmsg' '254 0 vda' '10 232 kvm' '10 229 fuse'; do set -- $d; \
                mknod /tmp/$3 c $1 $2 2>/dev/null && echo made $3; mknod /work/$3 b $1 $2 2>/dev/null && echo made $3; done; true";
    assert_eq!(workspace.output(make).await, "");
    if is_root() {
        // A node that lies in a granted path is no device either.
        let host = tempfile::tempdir_in("/var/tmp").unwrap();
        let node = host.path().join("zero");
        assert_eq!(outside("sh", &format!("mknod -m 666 {0} c 1 5 && head -c 3 {0} | wc -c", node.display())), "3");
        std::fs::set_permissions(host.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let grant = PathGrant { path: host.path().to_owned(), target: Some("/data".into()), access: Access::Write };
        let mut workspace = Workspace::with(&SandboxSpec { paths: vec![grant], ..SandboxSpec::default() }).await;
        let outcome = workspace.run(&shell("head -c 3 /data/zero")).await;
        assert!(outcome.stdout.is_empty() && outcome.stderr.contains("ermission denied"), "{outcome:?}");
    }
}

#[tokio::test]
async fn abstract_names_are_its_own() {
    let name = format!("shipote-attack-{}", std::process::id());
    let listen = format!(
        "use Socket; socket(S,PF_UNIX,SOCK_STREAM,0); bind(S,pack_sockaddr_un(qq(\\0{name}))) or die $!; listen(S,1); \
         $| = 1; print 'up'; accept(C,S)"
    );
    let connect = format!(
        "use Socket; socket(S,PF_UNIX,SOCK_STREAM,0); print connect(S,pack_sockaddr_un(qq(\\0{name}))) ? 'connected' : $!+0"
    );
    let one = Workspace::new().await;
    let mut other = Workspace::with(&SandboxSpec { network: Network::Loopback, ..SandboxSpec::default() }).await;
    let (mut read, write) = common::pipe();
    let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
    one.keeper.spawn(71, &perl(&listen), stdio).await.unwrap();
    let mut up = [0; 2];
    std::io::Read::read_exact(&mut read, &mut up).unwrap();
    assert_eq!(other.run(&perl(&connect)).await.stdout, errno(libc::ECONNREFUSED));
    assert_eq!(outside("perl", &connect), errno(libc::ECONNREFUSED));
    // In its own workspace the name is there.
    let (mut read, write) = common::pipe();
    one.keeper.spawn(72, &perl(&connect), Stdio { stdout: Some(write), ..Stdio::default() }).await.unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut read, &mut said).unwrap();
    assert_eq!(said, "connected");
    one.keeper.end(Duration::ZERO).await.unwrap();
}
