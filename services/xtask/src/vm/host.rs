//! What the host must have: tools from its packages, and where its Debian mirror is.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

/// Tool and the Debian package that has it.
const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("python3", "python3"),
];

/// Keys that Debian 13's archive is signed with; also on Ubuntu in the package of this name.
const KEYRING: (&str, &str) = ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring");

const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// What the machine needs; the machine is x86-64 and so must be the host.
pub(super) fn require_tools() -> anyhow::Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("vm: the machine is x86-64 and so must be the host");
    }
    let keyring = (!Path::new(KEYRING.0).exists()).then_some(KEYRING.1);
    require("vm", TOOLS, keyring)
}

/// Installs the packages of missing tools (and those of `more`) where that is possible without asking (root and apt),
/// else says what to run.
pub(crate) fn require(task: &str, tools: &[(&str, &str)], more: Option<&str>) -> anyhow::Result<()> {
    let mut missing: Vec<&str> =
        tools.iter().filter(|(tool, _)| find(tool).is_none()).map(|(_, package)| *package).collect();
    missing.extend(more);
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !nix::unistd::geteuid().is_root() || find("apt-get").is_none() {
        bail!("{task}: {} missing; run (as root): {install}", missing.join(", "));
    }
    eprintln!("{task}: install {}", missing.join(", "));
    run(Command::new("apt-get").args(["-q", "update"]))?;
    run(Command::new("apt-get")
        .args(["-q", "-y", "install", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Where `tool` lies: `PATH`, then the administrator's folders, which a user's `PATH` on Debian lacks.
pub(crate) fn find(tool: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(tool))
        .find(|candidate| candidate.is_file())
}

/// Runs a command to its end, its output going where ours goes; standard output is kept free for results.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stdout(std::io::stderr()).status().with_context(|| format!("run {name}"))?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}

/// The Debian mirror that this machine's apt uses, else the public one.
pub(crate) fn mirror() -> String {
    let mut files = vec![Path::new("/etc/apt/sources.list").to_path_buf()];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(
            entries
                .flatten()
                .map(|e| e.path())
                .filter(|p| p.extension().is_some_and(|e| e == "list" || e == "sources")),
        );
    }
    files.sort();
    files
        .iter()
        .filter_map(|f| std::fs::read_to_string(f).ok())
        .find_map(|text| mirror_in(&text))
        .unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

/// First URI of a sources file (either format) that is a Debian archive, not its security or a third party's.
fn mirror_in(sources: &str) -> Option<String> {
    sources
        .lines()
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

/// What of this machine's apt configuration a bootstrap must share to reach the mirror: proxies, and for snapshot mirrors
/// the leave to use an archive whose date has passed.
pub(crate) fn apt_options() -> Vec<String> {
    const KEYS: &[&str] =
        &["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date"];
    let Ok(output) = Command::new("apt-config").arg("dump").output() else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| KEYS.iter().any(|key| line.starts_with(&format!("{key} "))))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::mirror_in;

    #[test]
    fn the_mirror_is_read_from_either_format() {
        let deb822 = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n";
        let one_line = "# deb http://old.example/debian bookworm main\ndeb [signed-by=/k.gpg] https://m.example/debian/ bookworm main\n";
        let other = "Types: deb\nURIs: http://security.debian.org/debian-security\n\ndeb https://apt.example/tool stable main\n";
        assert_eq!(mirror_in(deb822).as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(mirror_in(one_line).as_deref(), Some("https://m.example/debian/"));
        assert_eq!(mirror_in(other), None);
    }
}
