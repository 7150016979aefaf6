//! The host: kernel, users, programs, disks. Reads only.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Finding;

/// What is looked at, so that a test can put another host in its place.
pub(super) struct Host {
    root: PathBuf,
    path: Vec<PathBuf>,
    landlock_abi: u32,
}

/// Programs, what needs each, and whether nothing works without it.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("dbus-daemon", "the embedded appliance (`shipote up`) runs a bus of its own", "dbus-daemon"),
    ("qemu-system-x86_64", "machines run in QEMU", "qemu-system-x86"),
    ("newuidmap", "workspaces of an ordinary user get host ids of their own with it", "uidmap"),
];

/// Landlock ABI that has everything we ask for: signals and abstract sockets are scoped from 6 on (Linux 6.12).
const LANDLOCK_WANTED: u32 = 6;

/// Controllers of cgroup v2 that limits are made of.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

impl Host {
    pub(super) fn here() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut path: Vec<PathBuf> = std::env::split_paths(&path).collect();
        path.extend(["/usr/sbin".into(), "/sbin".into()]);
        Self { root: "/".into(), path, landlock_abi: shipote_confinement::landlock_abi() }
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }
}

/// Looks at everything; `state` is where the appliance keeps its own.
pub(super) fn look(host: &Host, state: &Path) -> Vec<Finding> {
    let mut findings = vec![kernel(host), user_namespaces(host), landlock(host), seccomp(host), cgroups(host)];
    findings.extend(PROGRAMS.iter().map(|(name, why, package)| program(host, name, why, package)));
    findings.push(kvm(host));
    findings.push(journal(host, state));
    findings.push(space(host, state));
    findings
}

fn kernel(host: &Host) -> Finding {
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // clone3 with CLONE_INTO_CGROUP came with 5.7, mount_setattr with 5.12, landlock with 5.13, cgroup.kill with 5.14.
    match version {
        (0, _) => Finding::warning("kernel", "its release cannot be read", "mount /proc"),
        version if version < (5, 14) => {
            Finding::failed("kernel", release, "use Linux 5.14 or newer; workspaces are made with what came with it")
        }
        version if version < (6, 12) => Finding::warning(
            "kernel",
            release,
            "Linux 6.12 or newer keeps workspaces apart where they share a user (landlock scopes)",
        ),
        _ => Finding::ok("kernel", release),
    }
}

fn user_namespaces(host: &Host) -> Finding {
    const SUBJECT: &str = "user namespaces";
    if host.number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Finding::failed(SUBJECT, "none may be made", "sysctl -w user.max_user_namespaces=15000");
    }
    if host.number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        return Finding::failed(
            SUBJECT,
            "only root may make them, and no service is root",
            "sysctl -w kernel.unprivileged_userns_clone=1",
        );
    }
    if host.number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return Finding::failed(
            SUBJECT,
            "AppArmor takes their rights away",
            "give the services an AppArmor profile with `userns,`, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        );
    }
    Finding::ok(SUBJECT, "may be made")
}

fn landlock(host: &Host) -> Finding {
    match host.landlock_abi {
        0 => Finding::failed(
            "landlock",
            "not there",
            "boot with lsm=landlock,… (and a kernel with CONFIG_SECURITY_LANDLOCK)",
        ),
        abi if abi < LANDLOCK_WANTED => Finding::warning(
            "landlock",
            format!("ABI {abi}"),
            format!("ABI {LANDLOCK_WANTED} (Linux 6.12) also scopes signals and abstract sockets"),
        ),
        abi => Finding::ok("landlock", format!("ABI {abi}")),
    }
}

fn seccomp(host: &Host) -> Finding {
    match host.read("/proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) if actions.split_whitespace().any(|a| a == "errno") => Finding::ok("seccomp", "filters"),
        _ => Finding::failed("seccomp", "no filters", "use a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

fn cgroups(host: &Host) -> Finding {
    const SUBJECT: &str = "cgroup v2";
    let mounts = host.read("/proc/self/mountinfo").unwrap_or_default();
    let Some(mount) = mounts.lines().find(|l| l.contains(" - cgroup2 ")).and_then(|l| l.split(' ').nth(4)) else {
        return Finding::warning(
            SUBJECT,
            "not mounted: memory, processor and processes are limited per process only",
            "boot with systemd.unified_cgroup_hierarchy=1",
        );
    };
    let there = host.read(&format!("{mount}/cgroup.controllers")).unwrap_or_default();
    let lacking: Vec<_> = CONTROLLERS.into_iter().filter(|c| !there.split_whitespace().any(|t| t == *c)).collect();
    if lacking.is_empty() {
        Finding::ok(SUBJECT, format!("at {mount}, with {}", CONTROLLERS.join(", ")))
    } else {
        Finding::warning(
            SUBJECT,
            format!("at {mount}, without {}", lacking.join(", ")),
            "boot with systemd.unified_cgroup_hierarchy=1: version 1 holds the other controllers",
        )
    }
}

fn program(host: &Host, name: &str, why: &str, package: &str) -> Finding {
    match host.path.iter().map(|folder| folder.join(name)).find(|path| path.is_file()) {
        Some(path) => Finding::ok(name, path.display().to_string()),
        None => Finding::warning(name, format!("not installed; {why}"), format!("apt-get install {package}")),
    }
}

/// That the device is there says little: only a guest that ran on it does, and the machines service tries one.
fn kvm(host: &Host) -> Finding {
    let device = host.root.join("dev/kvm");
    let Ok(metadata) = fs::metadata(&device) else {
        return Finding::warning(
            "kvm",
            "no /dev/kvm: machines are emulated, some ten times slower",
            "switch virtualisation on in the firmware, or nested virtualisation in the hypervisor",
        );
    };
    let flags = host.read("/proc/cpuinfo").unwrap_or_default();
    let virtual_machines = flags
        .lines()
        .find(|l| l.starts_with("flags"))
        .is_some_and(|l| l.split_whitespace().any(|f| f == "vmx" || f == "svm"));
    if virtual_machines || !cfg!(target_arch = "x86_64") {
        Finding::ok("kvm", format!("/dev/kvm, group {}", metadata.gid()))
    } else {
        Finding::warning(
            "kvm",
            "/dev/kvm is there, but the processor shows neither vmx nor svm: guests may hang, and machines are emulated",
            "have the hypervisor pass hardware virtualisation on",
        )
    }
}

fn journal(host: &Host, state: &Path) -> Finding {
    if host.root.join("run/systemd/journal/socket").exists() {
        Finding::ok("journal", "takes records")
    } else {
        Finding::warning(
            "journal",
            format!("not there: audit records go to files, {}/*/audit.jsonl", state.display()),
            "run under systemd, or keep the files safe yourself",
        )
    }
}

fn space(host: &Host, folder: &Path) -> Finding {
    let mut at = folder.strip_prefix("/").unwrap_or(folder);
    let there = loop {
        let path = host.root.join(at);
        if path.exists() {
            break path;
        }
        match at.parent() {
            Some(parent) => at = parent,
            None => break host.root.clone(),
        }
    };
    match rustix::fs::statvfs(&there) {
        Ok(of) => {
            let free = of.f_bavail.saturating_mul(of.f_frsize);
            let found = format!("{} free for {}", crate::output::bytes(free as f64), folder.display());
            if free < 1 << 30 {
                Finding::warning("disk", found, "images and logs need room: free some, or mount a larger disk there")
            } else {
                Finding::ok("disk", found)
            }
        }
        Err(error) => Finding::warning("disk", format!("{}: {error}", there.display()), "look at that file system"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn host(files: &[(&str, &str)], landlock_abi: u32) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host { root: root.path().to_path_buf(), path: vec![root.path().join("bin")], landlock_abi };
        (root, host)
    }

    fn state(findings: &[Finding], subject: &str) -> State {
        findings.iter().find(|f| f.subject == subject).unwrap().state
    }

    #[test]
    fn a_good_host_is_found_good() {
        let (_root, host) = host(
            &[
                ("proc/sys/kernel/osrelease", "6.12.9-amd64\n"),
                ("proc/sys/user/max_user_namespaces", "15000\n"),
                ("proc/sys/kernel/seccomp/actions_avail", "kill_process trap errno user_notif log allow\n"),
                ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
                ("proc/cpuinfo", "flags\t: fpu svm\n"),
                ("dev/kvm", ""),
                ("run/systemd/journal/socket", ""),
                ("bin/dbus-daemon", ""),
                ("bin/qemu-system-x86_64", ""),
                ("bin/newuidmap", ""),
            ],
            7,
        );
        for finding in look(&host, Path::new("/s")) {
            assert!(finding.subject == "disk" || finding.state == State::Ok, "{finding:?}");
        }
    }

    #[test]
    fn each_fault_is_found_with_a_way_out() {
        let (_root, bad) = host(
            &[
                ("proc/sys/kernel/osrelease", "5.10.0\n"),
                ("proc/sys/user/max_user_namespaces", "0\n"),
                ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/unified/cgroup.controllers", "hugetlb\n"),
                ("dev/kvm", ""),
            ],
            0,
        );
        let findings = look(&bad, Path::new("/s"));
        for subject in ["kernel", "user namespaces", "landlock", "seccomp"] {
            assert_eq!(state(&findings, subject), State::Failed, "{subject}");
        }
        for subject in ["cgroup v2", "dbus-daemon", "qemu-system-x86_64", "newuidmap", "kvm", "journal"] {
            assert_eq!(state(&findings, subject), State::Warning, "{subject}");
        }
        assert!(findings.iter().all(|f| f.state == State::Ok || !f.remedy.is_empty()));
    }

    #[test]
    fn what_takes_user_namespaces_away_is_named() {
        for (file, value) in [("unprivileged_userns_clone", "0"), ("apparmor_restrict_unprivileged_userns", "1")] {
            let (_root, host) = host(&[(&format!("proc/sys/kernel/{file}"), value)], 7);
            let finding = user_namespaces(&host);
            assert!(finding.state == State::Failed && finding.remedy.contains(file), "{finding:?}");
        }
    }
}
