//! Taking the socket: from the service manager where a socket unit listens for us; else never from a living instance,
//! always from a dead one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use shipote_bus::paths::SOCKET_NAME;

use super::peers;

/// The socket, ours as long as this lives.
#[derive(Debug)]
pub(crate) struct Taken {
    listener: Option<UnixListener>,
    /// What we made, and remove.
    path: Option<PathBuf>,
    /// Locked: of two instances that start at once, one gets it. The kernel lets go of it however we end.
    _lock: File,
}

impl Taken {
    /// Takes the socket in the folder `runtime`, or the one that a socket unit has there and `handed` over: then who gets in
    /// is the unit's to say, and it stays when we end. On an appliance of one user (`embedded`) nobody else gets in; else
    /// members of the group `shipote` do, too.
    ///
    /// # Errors
    /// Another instance is living, or the folder cannot be written.
    pub(crate) fn take(runtime: &Path, embedded: bool, handed: Option<OwnedFd>) -> io::Result<Self> {
        let path = runtime.join(SOCKET_NAME);
        let living = || {
            let text = format!("another shipote-workspaces serves {}; stop it first", path.display());
            io::Error::new(io::ErrorKind::AddrInUse, text)
        };
        let named = |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{what} {}: {e}", path.display()));
        let lock = path.with_extension("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(lock).map_err(|e| named("lock", e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| living())?;
        if let Some(socket) = handed {
            let listener = UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            return Ok(Taken { listener: Some(listener), path: None, _lock: lock });
        }
        // an instance that does not know of the lock is seen by its answering
        match UnixStream::connect(&path) {
            Ok(_) => return Err(living()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path).map_err(|e| named("remove the dead", e))?;
            }
            Err(e) => return Err(named("probe", e)),
        }
        let listener = UnixListener::bind(&path).map_err(|e| named("listen on", e))?;
        let mut mode = 0o600;
        if !embedded && let Some(gid) = peers::shipote_group() {
            match std::os::unix::fs::chown(&path, None, Some(gid)) {
                Ok(()) => mode = 0o660,
                Err(error) => tracing::warn!(
                    "give {} to the group shipote: {error}; only root and this service's user get in",
                    path.display()
                ),
            }
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).map_err(|e| named("protect", e))?;
        listener.set_nonblocking(true)?;
        Ok(Taken { listener: Some(listener), path: Some(path), _lock: lock })
    }

    /// The listener, for the one who serves it.
    pub(crate) fn listener(&mut self) -> io::Result<tokio::net::UnixListener> {
        let listener = self.listener.take().ok_or_else(|| io::Error::other("the socket is served already"))?;
        tokio::net::UnixListener::from_std(listener)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!("remove {}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_socket_is_left_alone_and_a_dead_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET_NAME);
        let first = Taken::take(folder.path(), true, None).unwrap();
        assert_eq!(Taken::take(folder.path(), true, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(first);
        assert!(!path.exists());
        // somebody who knows nothing of our lock
        let stranger = UnixListener::bind(&path).unwrap();
        assert_eq!(Taken::take(folder.path(), true, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(stranger);
        Taken::take(folder.path(), true, None).unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_is_handed_over_is_served_and_left_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET_NAME);
        let unit = UnixListener::bind(&path).unwrap();
        // who came before the service waits
        let waiting = UnixStream::connect(&path).unwrap();
        let handed = || Some(unit.try_clone().unwrap().into());
        let mut taken = Taken::take(folder.path(), false, handed()).unwrap();
        assert_eq!(Taken::take(folder.path(), false, handed()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        taken.listener().unwrap().accept().await.unwrap();
        drop((taken, waiting));
        assert!(path.exists());
        UnixStream::connect(&path).unwrap();
        Taken::take(folder.path(), false, handed()).unwrap();
    }
}
