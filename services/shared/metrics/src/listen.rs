//! Where the page is offered.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An address of the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix stream socket; who may open it decides its mode, 0660.
    Unix(PathBuf),
    /// A port of the loopback interface.
    Tcp(SocketAddr),
    /// Nowhere.
    Off,
}

/// The page cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no address.
    #[error("{0:?} is no address of the admin page; write unix:/PATH, 127.0.0.1:PORT, [::1]:PORT or off")]
    Address(String),
    /// An address that others reach.
    #[error("{0} is reached by others than this host; the admin page is offered on loopback only")]
    NotLoopback(SocketAddr),
    /// The kernel refuses.
    #[error("listen on {address}: {source}")]
    Bind {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
}

impl FromStr for Listen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "off" {
            return Ok(Listen::Off);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            return if path.is_absolute() { Ok(Listen::Unix(path.into())) } else { Err(Error::Address(text.into())) };
        }
        let address: SocketAddr = text.parse().map_err(|_| Error::Address(text.to_owned()))?;
        if address.ip().is_loopback() { Ok(Listen::Tcp(address)) } else { Err(Error::NotLoopback(address)) }
    }
}

/// An address that is held: bind before a service confines itself, serve afterwards.
#[derive(Debug)]
pub enum Bound {
    /// See [`Listen::Unix`].
    Unix(UnixListener),
    /// See [`Listen::Tcp`].
    Tcp(TcpListener),
}

impl Listen {
    /// Takes the address, a Unix socket in place of one that an earlier run left; `None`: it is off.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub fn bind(&self) -> Result<Option<Bound>, Error> {
        match self {
            Listen::Off => Ok(None),
            Listen::Unix(path) => unix(path)
                .map(|listener| Some(Bound::Unix(listener)))
                .map_err(|source| Error::Bind { address: format!("unix:{}", path.display()), source }),
            Listen::Tcp(address) => TcpListener::bind(address)
                .and_then(|listener| listener.set_nonblocking(true).map(|()| Some(Bound::Tcp(listener))))
                .map_err(|source| Error::Bind { address: address.to_string(), source }),
        }
    }
}

fn unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, want) in [
            ("off", Listen::Off),
            ("unix:/run/x.sock", Listen::Unix("/run/x.sock".into())),
            ("127.0.0.1:9464", Listen::Tcp(([127, 0, 0, 1], 9464).into())),
            ("[::1]:1", Listen::Tcp("[::1]:1".parse().unwrap())),
        ] {
            assert_eq!(text.parse::<Listen>().unwrap(), want);
        }
        for (text, want) in [
            ("", "is no address"),
            ("unix:x", "is no address"),
            ("localhost:1", "is no address"),
            ("0.0.0.0:1", "loopback only"),
        ] {
            let refused = text.parse::<Listen>().unwrap_err().to_string();
            assert!(refused.contains(want), "{refused}");
        }
    }

    #[test]
    fn a_socket_that_was_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(folder.path().join("s"));
        drop(listen.bind().unwrap());
        assert!(matches!(listen.bind(), Ok(Some(Bound::Unix(_)))));
        assert!(Listen::Unix("/no/such/folder/s".into()).bind().is_err());
        assert!(matches!(Listen::Off.bind(), Ok(None)));
    }
}
