//! The policy files that are installed: each is valid, and does in a process of its own what it says.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use shipote_confinement::{Enforcement, Policy};

fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../policies/landlock")
}

#[test]
fn every_installed_policy_is_valid() {
    let mut seen = Vec::new();
    for entry in fs::read_dir(policies()).unwrap() {
        let path = entry.unwrap().path();
        Policy::load(&path).unwrap();
        seen.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["acme", "machines", "plugins", "proxy", "workspaces"]);
}

/// Confinement is for good, so each policy is tried in a process of its own: this test binary again.
#[test]
fn each_installed_policy_holds() {
    for service in ["acme", "machines", "plugins", "proxy", "workspaces"] {
        // Made here: who is confined can no longer remove it.
        let directory = tempfile::tempdir().unwrap();
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "confined_child", "--ignored", "--nocapture"])
            .env("CONFINED_SERVICE", service)
            .env("CONFINED_FOLDER", directory.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{service}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

#[test]
#[ignore = "the child of each_installed_policy_holds"]
fn confined_child() {
    let Ok(service) = std::env::var("CONFINED_SERVICE") else { return };
    let directory = PathBuf::from(std::env::var_os("CONFINED_FOLDER").unwrap());
    let [state, runtime, config, other] = ["state", "runtime", "config", "other"].map(|name| {
        let path = directory.join(name);
        fs::create_dir(&path).unwrap();
        path
    });
    fs::write(other.join("secret"), "s").unwrap();
    let policy = Policy::load(&policies().join(format!("{service}.toml"))).unwrap();
    // The test runs on a thread of the harness; only this thread is confined, which is enough here.
    let own = std::env::current_exe().unwrap();
    let variables = [
        ("STATE", &state),
        ("ACME", &state),
        ("RUNTIME", &runtime),
        ("CONFIG", &config),
        ("IMAGE", &config),
        ("EXE", &own),
        ("CGROUP", &state),
    ];
    let report = policy.apply(&variables.map(|(name, path)| (name, path.as_path()))).unwrap();
    let landlock = report.iter().find(|mechanism| mechanism.name == "landlock").unwrap();
    if landlock.state != Enforcement::Missing {
        // The one that ends by itself keeps no socket.
        let own = if service == "acme" { &state } else { &runtime };
        fs::write(own.join("socket"), "x").unwrap();
        assert_eq!(fs::read(other.join("secret")).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(fs::write(config.join("x"), "x").unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let kept = u64::from_str_radix(&field("CapEff:"), 16).unwrap();
    let allowed = match service.as_str() {
        "proxy" => 1 << 10,
        // Only where the appliance is root's: to become the owner of a shared folder, and to end what did.
        "machines" => 1 << 5 | 1 << 6 | 1 << 7,
        _ => 0,
    };
    assert_eq!(kept & !allowed, 0);
    // SAFETY: unshare has no memory arguments.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWUSER) }, -1);
}
