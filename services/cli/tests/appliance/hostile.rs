//! What a command must not be able to do, tried through the whole path. The sandbox crate
//! tries much more, against itself.

use crate::support::{Appliance, text};

#[test]
fn a_command_sees_its_own_and_nothing_else() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "other"]);
    let secret = shipote.ok(&["run", "-w", "other", "-d", "--", "sleep", "600"]);
    shipote.ok(&["run", "-w", "other", "--", "touch", "/tmp/secret"]);
    assert!(!secret.is_empty());
    let table: &[(&str, &str)] = &[
        ("the host's home", "ls /home/* /root 2>/dev/null"),
        ("the shadow file", "cat /etc/shadow 2>/dev/null"),
        ("the package database", "ls /var/lib/dpkg 2>/dev/null"),
        ("another workspace's files", "ls /tmp/secret 2>/dev/null"),
        ("another workspace's processes", "grep -l sleep /proc/[0-9]*/comm 2>/dev/null"),
        ("a network", "tail -n +3 /proc/net/dev | grep -v lo:"),
        ("a capability", "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | grep -v 0000000000000000"),
        ("the appliance's sockets", "find / -name '*.sock' -not -path '/proc/*' 2>/dev/null"),
    ];
    for (what, script) in table {
        let output = shipote.run(&["run", "--", "sh", "-c", script]);
        assert_eq!(text(&output.stdout), "", "a command sees {what}");
    }
    let status = shipote.ok(&["run", "--", "cat", "/proc/self/status"]);
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} in\n{status}");
    }
}

#[test]
fn a_command_cannot_reach_out() {
    let shipote = Appliance::start();
    let table: &[(&str, &str)] = &[
        ("signal a process of the host", &format!("kill -0 {}", shipote.up.id())),
        ("mount", "mount -t tmpfs none /tmp"),
        ("make a namespace", "unshare -U true"),
        ("write the system", "touch /usr/x"),
        ("write the kernel's settings", "echo 1 > /proc/sys/kernel/hostname"),
        ("become root by a setuid program", "test \"$(su -c id 2>/dev/null)\""),
        ("make a device", "mknod /tmp/d c 1 3"),
    ];
    for (what, script) in table {
        let output = shipote.run(&["run", "--", "sh", "-c", script]);
        assert!(!output.status.success(), "a command can {what}: {}", text(&output.stdout));
    }
}
