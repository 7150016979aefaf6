//! Paths of the host that no workspace is given, whoever asks: the service's own folders, which
//! hold everyone's logs and sockets, and the doors by which a command would speak as the
//! service.

use std::path::{Path, PathBuf};

use shipote_bus::paths::ServicePaths;
use shipote_bus::spec::WorkspaceSpec;

use crate::error::Error;

/// Doors of the system: buses, the service manager, the journal, the kernel.
const SYSTEM: &[&str] = &["/run/dbus", "/run/systemd", "/proc", "/sys", "/dev"];

/// The protected paths, links resolved.
#[derive(Debug, Clone)]
pub(crate) struct Protected(Vec<PathBuf>);

impl Protected {
    pub(crate) fn new(paths: &ServicePaths) -> Self {
        let own = [&paths.state, &paths.runtime, &paths.config].into_iter().map(PathBuf::from);
        // the embedded bus lies beside the services' folders
        let bus = paths.runtime.parent().map(|p| p.join("bus"));
        let all = own.chain(bus).chain(SYSTEM.iter().map(PathBuf::from));
        Protected(all.map(|p| p.canonicalize().unwrap_or(p)).collect())
    }

    /// Refuses a spec that grants a protected path, something beneath one, or a folder that
    /// holds one.
    pub(super) fn check(&self, spec: &WorkspaceSpec) -> Result<(), Error> {
        for (i, grant) in spec.paths.iter().enumerate() {
            // a path that is not there is refused when it is opened
            let path = grant.path.canonicalize().unwrap_or_else(|_| grant.path.clone());
            if let Some(protected) = self.0.iter().find(|p| overlap(p, &path)) {
                return Err(Error::InvalidSpec(format!(
                    "create workspace: paths[{i}].path: {} reaches {}, which no workspace is given; name a narrower path",
                    grant.path.display(),
                    protected.display()
                )));
            }
        }
        Ok(())
    }
}

fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

#[cfg(test)]
mod tests {
    use shipote_bus::spec::{Access, PathGrant};

    use super::*;

    #[test]
    fn doors_are_not_given_away() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let paths =
            ServicePaths { state: at("state/ws"), runtime: at("run/ws"), config: at("etc"), policy: at("policy") };
        std::os::unix::fs::symlink(folder.path().join("state"), folder.path().join("link")).unwrap();
        let protected = Protected::new(&paths);
        let check = |path: PathBuf| {
            let grant = PathGrant { path, target: None, access: Access::Read };
            protected.check(&WorkspaceSpec { paths: vec![grant], ..WorkspaceSpec::default() })
        };
        for bad in ["state/ws", "state/ws/commands", "state", "link/ws", "run/ws/flows", "run/bus", "."] {
            assert!(check(folder.path().join(bad)).is_err(), "{bad}");
        }
        for bad in ["/run/dbus", "/run", "/proc/self", "/sys", "/dev/null"] {
            assert!(check(bad.into()).is_err(), "{bad}");
        }
        assert!(check(at("data")).is_ok());
    }
}
