//! The folders of the appliance: found, created for this user alone, checked, locked.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};
use shipote_bus::{Service, paths};

/// The address of a Unix socket has room for 107 bytes (unix(7)); the longest socket path below the runtime folder
/// must fit.
const RUNTIME_PATH_MAX: usize = 107 - "/workspaces/flows/01ARZ3NDEKTSV4RRFFQ69G5FAV-255.sock".len();

/// Where everything is. While this value lives, no other appliance can have the same folders.
#[derive(Debug)]
pub(super) struct Folders {
    pub(super) state: PathBuf,
    pub(super) runtime: PathBuf,
    pub(super) config: PathBuf,
    pub(super) policy: PathBuf,
    _locks: [File; 2],
}

impl Folders {
    /// Finds, creates, checks and locks the folders, and removes what a dead predecessor left in the runtime folder.
    pub(super) fn prepare(state: Option<PathBuf>, runtime: Option<PathBuf>) -> Result<Self> {
        let runtime = absolute(&runtime.unwrap_or_else(paths::embedded_runtime))?;
        let state = absolute(&state.unwrap_or_else(paths::embedded_state))?;
        ensure!(
            runtime.as_os_str().len() <= RUNTIME_PATH_MAX,
            "use runtime folder {}: its path is longer than {RUNTIME_PATH_MAX} bytes, too long for the sockets in it; \
             name a shorter one with --runtime",
            runtime.display()
        );
        ensure!(runtime != state, "use {} for runtime and state: name two folders", runtime.display());
        private(&runtime)?;
        let runtime_lock = lock(&runtime)?;
        private(&state)?;
        let state_lock = lock(&state)?;
        sweep(&runtime)?;
        for service in Service::ALL {
            private(&state.join(service.name()))?;
            private(&runtime.join(service.name()))?;
        }
        private(&state.join("log"))?;
        let config = config_folder();
        // What the services may read is what is there when they start: a folder that its owner makes later would be closed
        // to them. Where it cannot be made, nobody else can either, and the configuration is the default one.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(&config);
        let policy = policy_folder();
        Ok(Self { state, runtime, config, policy, _locks: [runtime_lock, state_lock] })
    }

    /// Removes what only a running appliance needs.
    pub(super) fn clear(&self) {
        if let Err(error) = sweep(&self.runtime) {
            eprintln!("shipote: {error:#}");
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("find folder {}", path.display()))
}

/// Creates a folder that nobody else can look into, or makes sure that an existing one is such.
fn private(path: &Path) -> Result<()> {
    let shown = path.display();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create folder {}", parent.display()))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("create folder {shown}")),
    }
    // Not followed: in /tmp a link could lead anywhere.
    let found = fs::symlink_metadata(path).with_context(|| format!("look at folder {shown}"))?;
    ensure!(found.is_dir(), "use folder {shown}: it is not a folder; remove it or name another");
    let own = rustix::process::geteuid().as_raw();
    ensure!(found.uid() == own, "use folder {shown}: it belongs to uid {}; name another", found.uid());
    if found.mode() & 0o077 != 0 {
        let empty = fs::read_dir(path).with_context(|| format!("read folder {shown}"))?.next().is_none();
        ensure!(empty, "use folder {shown}: others may look into it; `chmod 700 {shown}` or name another");
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("close folder {shown}"))?;
    }
    Ok(())
}

/// One appliance per folder. The lock ends with the process, however it ends.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .with_context(|| format!("open lock {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            bail!(
                "start the appliance in {}: one runs there already, process {holder}; use it, stop it with \
                 `kill {holder}`, or name other folders with --runtime and --state",
                folder.display()
            );
        }
        Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("write lock {}", path.display()))?;
    Ok(file)
}

/// Removes all but the lock from the runtime folder; the lock is held, so whoever made it is gone.
fn sweep(runtime: &Path) -> Result<()> {
    for file in ["bus", "bus.conf", "notify", paths::APPLIANCE_FILE] {
        remove(&runtime.join(file), |p| fs::remove_file(p))?;
    }
    for service in Service::ALL {
        remove(&runtime.join(service.name()), |p| fs::remove_dir_all(p))?;
    }
    Ok(())
}

fn remove(path: &Path, remove: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    match remove(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove stale {}", path.display()))
        }
        _ => Ok(()),
    }
}

pub(crate) fn config_folder() -> PathBuf {
    let absolute = |key: &str| std::env::var_os(key).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|h| h.join(".config")))
        .map_or_else(|| PathBuf::from(paths::CONFIG_DIR), |d| d.join("shipote"))
}

/// `SHIPOTE_POLICY_DIR`, else beside an installation's `bin`, else in the tree that the binary was built in, else the
/// system's.
fn policy_folder() -> PathBuf {
    if let Some(named) = std::env::var_os(paths::POLICY_DIR_ENV) {
        return PathBuf::from(named);
    }
    let program = std::env::current_exe().unwrap_or_default();
    let installed = program.ancestors().nth(2).map(|prefix| prefix.join("share/shipote/policies"));
    // A debug build runs beside its source; a release build must not remember where it was made.
    let source = cfg!(debug_assertions).then(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies"));
    let built = program.ancestors().skip(2).map(|folder| folder.join("policies"));
    installed
        .into_iter()
        .chain(built)
        .chain(source)
        .find(|p| p.join("landlock").is_dir())
        .unwrap_or_else(|| PathBuf::from(paths::POLICY_DIR))
}

/// The binaries of the services: beside this one, else on the search path.
pub(super) fn binaries(services: &[Service]) -> Result<Vec<(Service, PathBuf)>> {
    let own = std::env::current_exe().context("find the path of this program")?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    services
        .iter()
        .map(|&service| {
            let local = beside.join(service.binary());
            let found = if local.is_file() { Some(local) } else { search(service.binary()) };
            let path = found.ok_or_else(|| {
                anyhow!(
                    "find service {service}: there is no {} in {} or on the PATH; install it there, or name the \
                     services you have with --services",
                    service.binary(),
                    beside.display()
                )
            })?;
            Ok((service, path))
        })
        .collect()
}

/// A program on the search path.
pub(super) fn search(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").filter(|p| !p.is_empty()).unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .filter(|folder| folder.as_os_str().as_bytes().first() == Some(&b'/'))
        .map(|folder| folder.join(name))
        .find(|p| fs::metadata(p).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_private_or_refused() {
        let root = tempfile::tempdir().unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().mode() & 0o777;
        let fresh = root.path().join("a/b");
        private(&fresh).unwrap();
        assert_eq!(mode(&fresh), 0o700);

        let wide = root.path().join("wide");
        fs::create_dir(&wide).unwrap();
        fs::set_permissions(&wide, fs::Permissions::from_mode(0o755)).unwrap();
        private(&wide).unwrap();
        assert_eq!(mode(&wide), 0o700, "an empty one is closed");

        fs::write(wide.join("file"), "").unwrap();
        fs::set_permissions(&wide, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(private(&wide).unwrap_err().to_string().contains("chmod 700"), "one with something in it is not");

        let link = root.path().join("link");
        std::os::unix::fs::symlink(&fresh, &link).unwrap();
        assert!(private(&link).unwrap_err().to_string().contains("not a folder"));
        if rustix::process::geteuid().is_root() {
            let foreign = root.path().join("foreign");
            fs::create_dir(&foreign).unwrap();
            std::os::unix::fs::chown(&foreign, Some(65534), None).unwrap();
            assert!(private(&foreign).unwrap_err().to_string().contains("uid 65534"));
        }
    }

    #[test]
    fn a_second_appliance_learns_who_holds_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let first = lock(root.path()).unwrap();
        let refusal = lock(root.path()).unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        drop(first);
        lock(root.path()).unwrap();
    }
}
