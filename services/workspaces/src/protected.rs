//! Paths of the host that no workspace is given, whoever asks: the service's own folders, which
//! hold everyone's logs and sockets, and the doors by which a command would speak as the
//! service.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shipote_bus::paths::ServicePaths;
use shipote_bus::spec::WorkspaceSpec;
use shipote_sandbox::PathGrant as Grant;

use crate::error::Error;

/// Doors of the system: buses, the service manager, the journal, the kernel.
const SYSTEM: &[&str] = &["/run/dbus", "/run/systemd", "/proc", "/sys", "/dev"];

/// The protected paths, links resolved.
#[derive(Debug, Clone)]
pub(crate) struct Protected {
    all: Vec<PathBuf>,
    /// Those of the service itself.
    hidden: Arc<[PathBuf]>,
}

impl Protected {
    pub(crate) fn new(paths: &ServicePaths) -> Self {
        let own = [&paths.state, &paths.runtime, &paths.config].into_iter().map(PathBuf::from);
        // the embedded bus lies beside the services' folders
        let bus = paths.runtime.parent().map(|p| p.join("bus"));
        let resolve = |p: PathBuf| p.canonicalize().unwrap_or(p);
        // the folders of one appliance's services lie beside each other, and are one user's where it is embedded
        let siblings = [&paths.state, &paths.runtime]
            .into_iter()
            .filter(|path| path.file_name().is_some_and(|name| name == "workspaces"))
            .filter_map(|path| path.parent().map(PathBuf::from));
        let own: Vec<PathBuf> = own.chain(bus).chain(siblings).map(resolve).collect();
        let all = own.iter().cloned().chain(SYSTEM.iter().map(PathBuf::from).map(resolve)).collect();
        Protected { all, hidden: own.into() }
    }

    /// What is covered in a workspace that sees the host's files. The doors of the system are none of these.
    pub(crate) fn hidden(&self) -> Arc<[PathBuf]> {
        Arc::clone(&self.hidden)
    }

    /// Resolves the links of paths that are about to be granted, and looks at what they lead to by now. What is opened
    /// afterwards is what was looked at: the sandbox follows no link. Blocks.
    pub(crate) fn resolve(&self, grants: Vec<Grant>) -> Result<Vec<Grant>, Error> {
        let resolve = |grant: Grant| {
            // one that is not there is refused when it is opened
            let path = grant.path.canonicalize().unwrap_or_else(|_| grant.path.clone());
            self.refuse("path", &grant.path, &path)?;
            let target = Some(grant.target.unwrap_or(grant.path));
            Ok(Grant { path, target, access: grant.access })
        };
        grants.into_iter().map(resolve).collect()
    }

    fn refuse(&self, field: &str, granted: &Path, path: &Path) -> Result<(), Error> {
        match self.all.iter().find(|p| overlap(p, path)) {
            None => Ok(()),
            Some(protected) => Err(Error::InvalidSpec(format!(
                "create workspace: {field}: {} reaches {}, which no workspace is given; name a narrower path",
                granted.display(),
                protected.display()
            ))),
        }
    }

    /// Refuses a spec that grants a protected path, something beneath one, or a folder that
    /// holds one.
    pub(crate) fn check(&self, spec: &WorkspaceSpec) -> Result<(), Error> {
        let paths = spec.paths.iter().enumerate().map(|(i, grant)| (format!("paths[{i}].path"), grant.path.as_path()));
        let sockets = spec.permissions.ipc.allow.iter().enumerate();
        let sockets = sockets.map(|(i, socket)| (format!("permissions.ipc.allow[{i}]"), Path::new(socket)));
        for (field, granted) in paths.chain(sockets) {
            // a path that is not there is refused when it is opened
            let path = granted.canonicalize().unwrap_or_else(|_| granted.to_owned());
            self.refuse(&field, granted, &path)?;
        }
        Ok(())
    }
}

fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

#[cfg(test)]
mod tests {
    use shipote_bus::spec::{Access, IpcPolicy, PathGrant, Permissions};

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
        // the answer of a moment ago is not trusted
        let grant = |path| Grant { path, target: None, access: shipote_sandbox::Access::Write };
        std::os::unix::fs::symlink(folder.path().join("data"), folder.path().join("alias")).unwrap();
        let alias = folder.path().join("alias");
        let resolved = protected.resolve(vec![grant(alias.clone())]).unwrap().remove(0);
        let data = folder.path().join("data").canonicalize().unwrap();
        assert_eq!((resolved.path, resolved.target), (data, Some(alias.clone())));
        std::fs::remove_file(&alias).unwrap();
        std::os::unix::fs::symlink(folder.path().join("state"), &alias).unwrap();
        assert!(protected.resolve(vec![grant(alias)]).is_err());
        let allow = vec![folder.path().join("run/bus").display().to_string()];
        let permissions = Permissions { ipc: IpcPolicy { allow }, ..Permissions::default() };
        let refused = protected.check(&WorkspaceSpec { permissions, ..WorkspaceSpec::default() }).unwrap_err();
        assert!(refused.to_string().contains("permissions.ipc.allow[0]"), "{refused}");
    }
}
