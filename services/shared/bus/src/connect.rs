//! Finding the bus: `SHIPOTE_BUS_ADDRESS`, else the embedded bus of the runtime
//! folder where it answers, else the system bus.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode;
use zbus::address::Transport;
use zbus::address::transport::{Unix, UnixSocket};

use crate::paths;

/// A connection could not be made; says which bus was tried and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address of the environment or of the embedded bus does not answer.
    #[error("connect to the bus at {address}: {cause}; is the appliance running? start it with `shipote up`")]
    Address {
        /// D-Bus address that was tried.
        address: String,
        /// What the bus library said.
        cause: zbus::Error,
    },
    /// Neither an embedded bus nor the system bus answers.
    #[error(
        "connect to the appliance: no embedded bus at {embedded} and the system bus does not answer ({cause}); \
         start the appliance with `shipote up`, or name a bus in SHIPOTE_BUS_ADDRESS"
    )]
    Nowhere {
        /// Where the embedded bus would be.
        embedded: String,
        /// What the system bus said.
        cause: zbus::Error,
    },
}

/// Reads a D-Bus address. zbus 6.2 takes the path of a Unix address as it stands, escapes and
/// all, where the specification has it decoded ("Server Addresses").
///
/// # Errors
/// The text is no address.
pub fn parse(text: &str) -> zbus::Result<zbus::Address> {
    let address: zbus::Address = text.parse()?;
    if let Transport::Unix(unix) = address.transport()
        && let UnixSocket::File(path) = unix.path()
        && path.as_os_str().as_bytes().contains(&b'%')
    {
        let decoded = percent_decode(path.as_os_str().as_bytes()).collect();
        return Ok(Transport::Unix(Unix::new(UnixSocket::File(OsString::from_vec(decoded).into()))).into());
    }
    Ok(address)
}

/// A client call that has no answer after this long has failed.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Which bus a client uses, by the rule at the top of this module.
#[must_use]
pub fn address() -> Option<String> {
    if let Ok(address) = std::env::var(paths::BUS_ADDRESS_ENV) {
        return Some(address);
    }
    let runtime = paths::embedded_runtime();
    runtime.join("bus").exists().then(|| paths::embedded_bus_address(&runtime))
}

/// Runtime folder of the embedded appliance that clients use: where the bus at [`address`] is, else where one would be.
#[must_use]
pub fn embedded_runtime() -> PathBuf {
    address().as_deref().and_then(folder_of).unwrap_or_else(paths::embedded_runtime)
}

/// The folder of the socket at a D-Bus address.
fn folder_of(address: &str) -> Option<PathBuf> {
    let address = parse(address).ok()?;
    let Transport::Unix(unix) = address.transport() else { return None };
    let UnixSocket::File(path) = unix.path() else { return None };
    path.parent().map(Path::to_path_buf)
}

/// Connects a client.
///
/// # Errors
/// [`ConnectError`], with the address that was tried.
pub async fn client() -> Result<zbus::Connection, ConnectError> {
    patient_client(CALL_TIMEOUT).await
}

/// Connects a client whose calls may take up to `timeout`.
///
/// # Errors
/// [`ConnectError`], with the address that was tried.
pub async fn patient_client(timeout: Duration) -> Result<zbus::Connection, ConnectError> {
    match address() {
        Some(address) => {
            async { zbus::connection::Builder::address(parse(&address)?).method_timeout(timeout).build().await }
                .await
                .map_err(|cause| ConnectError::Address { address, cause })
        }
        None => zbus::connection::Builder::system().method_timeout(timeout).build().await.map_err(|cause| {
            ConnectError::Nowhere { embedded: paths::embedded_bus_address(&paths::embedded_runtime()), cause }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_bus_is_found() {
        for (address, want) in [
            ("unix:path=/tmp/s/bus", Some("/tmp/s")),
            ("unix:path=/tmp/a%20b/bus,guid=0123456789abcdef0123456789abcdef", Some("/tmp/a b")),
            ("unix:abstract=bus", None),
            ("tcp:host=localhost,port=1", None),
            ("nonsense", None),
        ] {
            assert_eq!(folder_of(address).as_deref(), want.map(Path::new), "{address}");
        }
    }
}
