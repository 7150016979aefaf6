//! A workspace: what its commands may see, use and reach.

use std::collections::BTreeMap;
use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};

use super::slot::{FlowSlot, check_slots};
use super::{QuotaEnforcement, Soma, SpecError, check_label};

/// A workspace as a person writes it.
///
/// ```toml
/// label = "build"
/// [permissions]
/// networking = "none"
/// [[paths]]
/// path = "/srv/source"
/// access = "read"
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkspaceSpec {
    /// Name; the command line's argument wins over it.
    pub label: String,
    /// Limits of the processes.
    pub soma: Soma,
    /// What the commands may reach.
    pub permissions: Permissions,
    /// Milliseconds after which the workspace ends; none: it stays until stopped.
    #[serde(deserialize_with = "shipote_units::millis_opt")]
    pub ttl: Option<u64>,
    /// Milliseconds, at least 1000, after which a workspace that nobody needs sleeps: what runs in it is frozen until a
    /// connection to what it publishes, a command or a signal wakes it; none: it stays awake.
    #[serde(deserialize_with = "shipote_units::millis_opt")]
    pub idle: Option<u64>,
    /// Host paths that are visible inside, beside the read-only system.
    pub paths: Vec<PathGrant>,
    /// Paths of the read-only system that are hidden.
    pub hidden: Vec<PathBuf>,
    /// Size of the private writable scratch (`/tmp`, `/work`, layers of overlays) in bytes, at least 1 MiB; default 256
    /// MiB. With `on_exit` also of what is kept, where the default is 4 GiB.
    #[serde(deserialize_with = "shipote_units::size_opt")]
    pub scratch_bytes: Option<u64>,
    /// What happens where its limit on memory or processes is reached.
    pub quota_enforce: QuotaEnforcement,
    /// What becomes of the files in `/work`.
    pub on_exit: ExitPolicy,
    /// Say what commands are refused, and why; each of their calls that names a path is looked at first.
    pub explain: bool,
    /// TCP ports inside that others may reach by the workspace's name, through the proxy (`workspace:NAME:PORT`).
    pub publish: Vec<u16>,
    /// Programs inside that others may have run for a request, by absolute path: through the proxy, by rules that say `cgi`.
    /// Their arguments and environment are the rule's and the request's.
    pub serve: Vec<PathBuf>,
    /// What it may reach through the proxy, with `permissions.networking = "outbound"`: `example.com`,
    /// `*.example.org:8443`, `10.0.0.0/8:5432`, `host:*`; without a port 80 and 443. Nothing else is reached.
    pub egress: Vec<String>,
    /// Ask about what is not in `egress`: the connection waits a while for `shipote egress approve`.
    pub egress_ask: bool,
    /// Flows that it shares: a descriptor in each command, a Unix socket at `/run/flows/NAME` inside and one outside.
    pub flow_dirs: Vec<FlowSlot>,
    /// Environment of every command, beside `PATH`, `HOME`, `USER`, `LANG` and `TERM`.
    pub env: BTreeMap<String, String>,
    /// What whoever made it wants to remember of it; shown in lists, and nothing else comes of it.
    pub labels: BTreeMap<String, String>,
}

/// Most labels of a workspace, and most bytes of a label's name and of its value.
const LABELS_MAX: usize = 16;
const LABEL_BYTES_MAX: usize = 256;

/// What the commands of a workspace may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permissions {
    /// Network.
    pub networking: Networking,
    /// Files of the host beside the read-only system.
    pub filesystem: Filesystem,
    /// Inter-process communication with the outside.
    pub ipc: IpcPolicy,
    /// Sees the host's processes in `/proc`. None of them can be signalled or traced.
    pub processes: bool,
}

/// What becomes of the files in `/work` when the workspace ends. `/tmp` and `/dev/shm` always go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitPolicy {
    /// They go: `/work` is memory, and `scratch_bytes` bounds it.
    #[default]
    Reap,
    /// They stay in the service's state folder, for whoever looks after it, as do the layers of overlays. `/work` begins
    /// empty. All of it is on disk, and is measured: once it has more than `scratch_bytes`, commands are ended.
    Keep,
    /// They are there again at the next start of the same user's workspace of the same name, and so is what was changed
    /// in overlays. On disk, as with `keep`; a start with more than `scratch_bytes` is refused.
    Snapshot,
}

/// Network of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Networking {
    /// No interface at all.
    #[default]
    None,
    /// A loopback of its own.
    Loopback,
    /// A loopback of its own, on which the egress proxy lets out to what `egress` lists.
    Outbound,
    /// The host's as it is, its loopback and its abstract sockets' names too: no isolation of the network. Who may
    /// ask for it has the right to manage workspaces.
    Full,
}

/// Files of the host that a workspace sees beside the read-only system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filesystem {
    /// None.
    #[default]
    None,
    /// All but devices, processes, `/run`, `/sys`, `/tmp` and the protected paths, read-only, as far as file modes
    /// let the workspace's user read.
    ReadOnly,
    /// As `read-only`, but what is not the system's (`/usr`, `/etc`, `/boot`) is writable, as far as file modes
    /// let the workspace's user write.
    ReadWrite,
}

/// Sockets and buses outside that a workspace may use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IpcPolicy {
    /// Absolute paths of Unix sockets of the host; each is in the workspace at the same path.
    pub allow: Vec<String>,
}

/// A path of the host that is visible inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathGrant {
    /// Absolute path on the host.
    pub path: PathBuf,
    /// Absolute path inside; the same where absent.
    #[serde(default)]
    pub target: Option<PathBuf>,
    /// Read-only or writable.
    #[serde(default)]
    pub access: Access,
}

/// Access to a granted path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read-only.
    #[default]
    Read,
    /// Readable and writable.
    Write,
    /// A directory that is read as with `read` and written to in a layer of the workspace's own: what lies there on the
    /// host stays as it is. The layer is in the scratch, or with `on_exit` beside `/work`.
    Overlay,
}

/// Smallest scratch that a shell can work with.
const SCRATCH_MIN: u64 = 1024 * 1024;

/// Most ports that a workspace publishes.
const PUBLISHED_MAX: usize = 32;

/// Most programs that a workspace serves.
const SERVED_MAX: usize = 256;

impl WorkspaceSpec {
    /// Checks everything that can be checked before anything starts.
    ///
    /// # Errors
    /// The first field that cannot be honoured, by its key path.
    pub fn validate(&self) -> Result<(), SpecError> {
        check_label("label", &self.label)?;
        self.soma.validate("soma")?;
        self.check_egress()?;
        check_slots(&self.flow_dirs)?;
        for (i, socket) in self.permissions.ipc.allow.iter().enumerate() {
            check_path(&format!("permissions.ipc.allow[{i}]"), std::path::Path::new(socket))?;
        }
        self.check_published()?;
        if self.serve.len() > SERVED_MAX {
            let problem = format!("names {} programs; {SERVED_MAX} are allowed", self.serve.len());
            return Err(SpecError::new("serve", problem));
        }
        for (i, program) in self.serve.iter().enumerate() {
            check_path(&format!("serve[{i}]"), program)?;
        }
        if self.scratch_bytes.is_some_and(|b| b < SCRATCH_MIN) {
            return Err(SpecError::new("scratch_bytes", format!("is below the smallest scratch, {SCRATCH_MIN} bytes")));
        }
        if self.idle.is_some_and(|idle| idle < 1000) {
            return Err(SpecError::new("idle", "is below a second; leave it out for a workspace that stays awake"));
        }
        if self.ttl == Some(0) {
            return Err(SpecError::new("ttl", "is 0; leave it out for a workspace without an end"));
        }
        for (i, grant) in self.paths.iter().enumerate() {
            check_path(&format!("paths[{i}].path"), &grant.path)?;
            if let Some(target) = &grant.target {
                check_path(&format!("paths[{i}].target"), target)?;
            }
        }
        for (i, path) in self.hidden.iter().enumerate() {
            check_path(&format!("hidden[{i}]"), path)?;
        }
        for key in self.env.keys() {
            check_env_key("env", key)?;
        }
        if self.labels.len() > LABELS_MAX {
            let problem = format!("are {}; {LABELS_MAX} are allowed", self.labels.len());
            return Err(SpecError::new("labels", problem));
        }
        let long = |text: &String| text.len() > LABEL_BYTES_MAX;
        if let Some((key, _)) = self.labels.iter().find(|(key, value)| key.is_empty() || long(key) || long(value)) {
            let shown: String = key.chars().take(32).collect();
            let problem = format!("{shown:?} is empty or longer than {LABEL_BYTES_MAX} bytes, or its value is");
            return Err(SpecError::new("labels", problem));
        }
        Ok(())
    }
}

impl WorkspaceSpec {
    fn check_egress(&self) -> Result<(), SpecError> {
        let outbound = self.permissions.networking == Networking::Outbound;
        for (key, set) in [("egress", !self.egress.is_empty()), ("egress_ask", self.egress_ask)] {
            if set && !outbound {
                let problem =
                    "is for a workspace that goes out through the proxy; set permissions.networking to `outbound`";
                return Err(SpecError::new(key, problem));
            }
        }
        check_hosts(&self.egress).map_err(|(i, problem)| SpecError::new(format!("egress[{i}]"), problem))?;
        if self.egress.len() > EGRESS_MAX {
            return Err(SpecError::new("egress", too_many_hosts(self.egress.len())));
        }
        Ok(())
    }

    /// Whether it may publish what it does, which may change while it lives.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_published(&self) -> Result<(), SpecError> {
        let outbound = self.permissions.networking == Networking::Outbound;
        if !self.publish.is_empty() && !outbound && self.permissions.networking != Networking::Loopback {
            return Err(SpecError::new(
                "publish",
                "is for a workspace with a network of its own; set permissions.networking to `loopback` or `outbound`",
            ));
        }
        if self.publish.len() > PUBLISHED_MAX {
            let problem = format!("names {} ports; {PUBLISHED_MAX} are allowed", self.publish.len());
            return Err(SpecError::new("publish", problem));
        }
        for (i, port) in self.publish.iter().enumerate() {
            let problem = match *port {
                0 => "is 0, which is no port",
                EGRESS_PORT if outbound => "is the port of the way out; choose another",
                port if self.publish[..i].contains(&port) => "is named before",
                _ => continue,
            };
            return Err(SpecError::new(format!("publish[{i}]"), problem));
        }
        Ok(())
    }
}

/// Most entries of a list of hosts.
pub const EGRESS_MAX: usize = 256;

/// TCP port of a workspace's loopback at which the way out is: a proxy that speaks HTTP and SOCKS5.
pub const EGRESS_PORT: u16 = 3128;

/// What is wrong with a list that is too long.
#[must_use]
pub fn too_many_hosts(count: usize) -> String {
    format!("names {count} hosts; {EGRESS_MAX} are allowed")
}

/// The first entry of a list of hosts that is none, by number, with what is wrong.
///
/// # Errors
/// That.
pub fn check_hosts(hosts: &[String]) -> Result<(), (usize, String)> {
    for (i, host) in hosts.iter().enumerate() {
        if let Err(error) = shipote_egress::Policy::parse(std::slice::from_ref(host)) {
            return Err((i, error.to_string()));
        }
    }
    Ok(())
}

/// Why a list of hosts was not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostsRefused {
    /// An entry is none, or none of the list's.
    Wrong(String),
    /// It would be too long.
    TooMany(String),
}

/// A list of hosts with entries added, and others taken away.
///
/// # Errors
/// What is wrong; the list is then as it was.
pub fn change_hosts(list: &[String], allow: Vec<String>, deny: &[String]) -> Result<Vec<String>, HostsRefused> {
    check_hosts(&allow).map_err(|(_, problem)| HostsRefused::Wrong(problem))?;
    let mut list = list.to_vec();
    for entry in deny {
        let before = list.len();
        list.retain(|known| known != entry);
        if list.len() == before {
            let now = if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
            return Err(HostsRefused::Wrong(format!("{entry:?} is not on its list, which allows {now}")));
        }
    }
    for entry in allow {
        if !list.contains(&entry) {
            list.push(entry);
        }
    }
    if list.len() > EGRESS_MAX {
        return Err(HostsRefused::TooMany(too_many_hosts(list.len())));
    }
    Ok(list)
}

fn check_path(field: &str, path: &std::path::Path) -> Result<(), SpecError> {
    if !path.is_absolute() {
        return Err(SpecError::new(field, format!("{} is not absolute", path.display())));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(SpecError::new(field, format!("{} contains `..`; name the path itself", path.display())));
    }
    if path == std::path::Path::new("/") {
        return Err(SpecError::new(field, "is the root; name the folders that are needed"));
    }
    Ok(())
}

/// A key of an environment is not empty and has neither `=` nor NUL.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_env_key(field: &str, key: &str) -> Result<(), SpecError> {
    if key.is_empty() || key.contains(['=', '\0']) {
        return Err(SpecError::new(field, format!("{key:?} cannot be the name of a variable")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<(), String> {
        let spec: WorkspaceSpec = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        spec.validate().map_err(|e| e.to_string())
    }

    #[test]
    fn table() {
        let good = [
            "label='a'",
            "label='a'\n[permissions]\nnetworking='loopback'",
            "label='a'\n[[paths]]\npath='/srv'",
            "label='a'\n[[paths]]\npath='/srv'\naccess='overlay'",
            "label='a'\negress=['a.example','*.b:8443','10.0.0.0/8:5432']\negress_ask=true\n[permissions]\nnetworking='outbound'",
            "label='a'\n[[flow_dirs]]\nname='in'\n[[flow_dirs]]\nname='out'\ndirection='output'\nscope='public'",
            "label='a'\nttl='1h30m'\nidle='5m'\nscratch_bytes='2G'",
            "label='a'\npublish=[80]\n[permissions]\nnetworking='outbound'",
            "label='a'\n[permissions]\nnetworking='full'\nfilesystem='read-write'\nprocesses=true\nipc={allow=['/run/x']}",
        ];
        for text in good {
            assert_eq!(spec(text), Ok(()), "{text}");
        }
        let bad = [
            ("", "label: is empty"),
            ("label='a'\ncolour='red'", "unknown field `colour`"),
            ("label='a'\negress=['a']", "egress: is for a workspace that goes out"),
            ("label='a'\negress_ask=true", "egress_ask: is for a workspace that goes out"),
            ("label='a'\negress=['a','http://b']\n[permissions]\nnetworking='outbound'", "egress[1]: \"http://b\""),
            (
                "label='a'\npublish=[3128]\n[permissions]\nnetworking='outbound'",
                "publish[0]: is the port of the way out",
            ),
            ("label='a'\n[permissions.ipc]\nallow=['bus']", "permissions.ipc.allow[0]: bus is not absolute"),
            ("label='a'\n[[paths]]\npath='srv'", "paths[0].path: srv is not absolute"),
            ("label='a'\n[[paths]]\npath='/srv/../etc'", "contains `..`"),
            ("label='a'\n[[paths]]\npath='/'", "is the root"),
            ("label='a'\n[[flow_dirs]]\nname='a/b'", "flow_dirs[0].name: \"a/b\" is no name"),
            ("label='a'\n[[flow_dirs]]\nname='a'\nscope='all'", "unknown variant `all`"),
            ("label='a'\nserve=['app']", "serve[0]: app is not absolute"),
            ("label='a'\nserve=['/srv/../app']", "serve[0]: /srv/../app contains `..`"),
            ("label='a'\nttl=0", "ttl: is 0"),
            ("label='a'\nttl='soon'", "\"soon\" is no time; write"),
            ("label='a'\nidle='500ms'", "idle: is below a second"),
            ("label='a'\nidle=999", "idle: is below a second"),
            ("label='a'\nscratch_bytes=1", "scratch_bytes"),
            ("label='a'\nenv={'A=B'='x'}", "cannot be the name of a variable"),
        ];
        for (text, want) in bad {
            let got = spec(text).unwrap_err();
            assert!(got.contains(want), "{text}: {got}");
        }
    }
}
