//! Where things lie, in both ways to run: under systemd the unit's directories
//! (`STATE_DIRECTORY` and its kin, see systemd.exec(5)), embedded the calling user's
//! (XDG Base Directory Specification 0.8). `shipote up` gives its services the very
//! same variables as systemd would, so a service never asks which way it runs.

use std::env;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Environment variable that overrides the discovery of the bus.
pub const BUS_ADDRESS_ENV: &str = "SHIPOTE_BUS_ADDRESS";
/// Environment variable that names the folder of policies (`landlock/<service>.toml`, …).
pub const POLICY_DIR_ENV: &str = "SHIPOTE_POLICY_DIR";
/// Environment variable with the number of a pipe that reaches end of file when the
/// embedded appliance's supervisor is gone.
pub const LIFELINE_ENV: &str = "SHIPOTE_LIFELINE_FD";
/// Environment variable with the names of the descriptors that the service manager kept for a service, joined by
/// colons (sd_listen_fds(3)).
pub const STORE_NAMES_ENV: &str = "LISTEN_FDNAMES";
/// Environment variable with the numbers of those descriptors, in the same order, joined by colons. `shipote up` sets
/// it; systemd begins at 3.
pub const STORE_NUMBERS_ENV: &str = "SHIPOTE_LISTEN_NUMBERS";
/// Environment variable that names the folder of what machines are started with.
pub const MACHINE_IMAGE_ENV: &str = "SHIPOTE_MACHINE_IMAGE";
/// Folder of the installed kernel, initramfs and vsock device of machines.
pub const MACHINE_IMAGE_DIR: &str = "/usr/lib/shipote/machine";
/// Folder of the installed policies.
pub const POLICY_DIR: &str = "/usr/share/shipote/policies";
/// Folder of the configuration of the appliance.
pub const CONFIG_DIR: &str = "/etc/shipote";
/// Name of the workspace protocol's socket in the runtime folder of the workspaces service.
pub const SOCKET_NAME: &str = "shipote.sock";
/// File in the embedded runtime folder that says how to reach the appliance.
pub const APPLIANCE_FILE: &str = "appliance.json";

/// State, runtime and configuration folder of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePaths {
    /// What must survive a restart and a reboot.
    pub state: PathBuf,
    /// Sockets and what may vanish at reboot.
    pub runtime: PathBuf,
    /// Configuration; may be absent.
    pub config: PathBuf,
    /// Policies.
    pub policy: PathBuf,
}

impl ServicePaths {
    /// Reads the variables that systemd or `shipote up` set; what is missing falls
    /// back to the system's folders for the service `name`.
    #[must_use]
    pub fn from_env(name: &str) -> Self {
        let folder = |key: &str, fallback: PathBuf| {
            // systemd joins several directories with colons: the first one is ours
            env::var(key).ok().and_then(|v| v.split(':').next().map(PathBuf::from)).unwrap_or(fallback)
        };
        ServicePaths {
            state: folder("STATE_DIRECTORY", Path::new("/var/lib/shipote").join(name)),
            runtime: folder("RUNTIME_DIRECTORY", Path::new("/run/shipote").join(name)),
            config: folder("CONFIGURATION_DIRECTORY", PathBuf::from(CONFIG_DIR)),
            policy: env::var_os(POLICY_DIR_ENV).map_or_else(|| PathBuf::from(POLICY_DIR), PathBuf::from),
        }
    }
}

/// Folder of what machines are started with: `SHIPOTE_MACHINE_IMAGE`, else the installed one.
/// Links are followed, because a confined service may reach only the folder itself.
#[must_use]
pub fn machine_image() -> PathBuf {
    let named = env::var_os(MACHINE_IMAGE_ENV).map_or_else(|| PathBuf::from(MACHINE_IMAGE_DIR), PathBuf::from);
    std::fs::canonicalize(&named).unwrap_or(named)
}

/// Runtime folder of the embedded appliance: `$XDG_RUNTIME_DIR/shipote`, else
/// `/run/user/UID/shipote` where that exists, else `/tmp/shipote-UID`.
#[must_use]
pub fn embedded_runtime() -> PathBuf {
    if let Some(dir) = absolute("XDG_RUNTIME_DIR") {
        return dir.join("shipote");
    }
    let uid = own_uid();
    let run = PathBuf::from(format!("/run/user/{uid}"));
    if std::fs::metadata(&run).is_ok_and(|m| m.uid() == uid) {
        return run.join("shipote");
    }
    PathBuf::from(format!("/tmp/shipote-{uid}"))
}

/// State folder of the embedded appliance: `$XDG_STATE_HOME/shipote`, else
/// `~/.local/state/shipote`, else the runtime folder's `state`.
#[must_use]
pub fn embedded_state() -> PathBuf {
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|h| h.join(".local/state")))
        .map_or_else(|| embedded_runtime().join("state"), |d| d.join("shipote"))
}

/// D-Bus address of the embedded bus in a runtime folder.
#[must_use]
pub fn embedded_bus_address(runtime: &Path) -> String {
    let path = runtime.join("bus");
    // D-Bus specification, "Server Addresses": all but these bytes are escaped
    let escaped: String = path.as_os_str().as_bytes().iter().fold(String::new(), |mut out, &b| {
        if b.is_ascii_alphanumeric() || b"-_/.\\*".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02x}"));
        }
        out
    });
    format!("unix:path={escaped}")
}

/// The workspace protocol's socket of the embedded appliance in a runtime folder.
#[must_use]
pub fn embedded_socket(runtime: &Path) -> PathBuf {
    runtime.join("workspaces").join(SOCKET_NAME)
}

/// The XDG specification has relative paths ignored.
fn absolute(key: &str) -> Option<PathBuf> {
    env::var_os(key).map(PathBuf::from).filter(|p| p.is_absolute())
}

fn own_uid() -> u32 {
    // the owner of our own /proc entry: no libc call needed, so this crate stays free of unsafe
    std::fs::metadata("/proc/self").map_or(0, |m| m.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_escaped() {
        for (folder, address) in [
            ("/run/user/1000/shipote", "unix:path=/run/user/1000/shipote/bus"),
            ("/tmp/a b,c", "unix:path=/tmp/a%20b%2cc/bus"),
            ("/tmp/\u{fc}", "unix:path=/tmp/%c3%bc/bus"),
        ] {
            let made = embedded_bus_address(Path::new(folder));
            assert_eq!(made, address);
            let parsed = crate::connect::parse(&made).unwrap();
            let zbus::address::Transport::Unix(unix) = parsed.transport() else { panic!("{parsed:?}") };
            let zbus::address::transport::UnixSocket::File(path) = unix.path() else { panic!("{unix:?}") };
            assert_eq!(path, &Path::new(folder).join("bus"));
        }
    }
}
