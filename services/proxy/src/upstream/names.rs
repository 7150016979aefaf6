//! Upstreams that are known by name on the bus: a port of a workspace or of a machine.
//!
//! A worker asks for a connection and is handed a socket that is connected already, made inside the workspace's own
//! network or the machine by the service that owns it. So the proxy needs no way into anybody's network, and a name
//! always means what it means now: a workspace that was made anew, a machine that was started again is reached by the
//! next connection. One that sleeps is woken for it.

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;

use rustix::net::AddressFamily;
use shipote_rules::UpstreamAddress;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::io::Stream;

/// Connections that are being asked for at once; more wait for their turn, within their time limit.
const ASKED_MAX: usize = 256;

/// One worker's question: a connected stream socket to this address.
#[derive(Debug)]
pub struct Ask {
    /// [`UpstreamAddress::Workspace`] or [`UpstreamAddress::Machine`].
    pub address: UpstreamAddress,
    /// One that sleeps is woken for it.
    pub wake: bool,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<OwnedFd, Unreached>>,
}

/// Why there is no connection, in words for whoever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreached {
    /// It sleeps, and was not to be woken.
    Asleep,
    /// It is there, and nobody listens at the port.
    Refused(String),
    /// It is not there, is not published, or could not be woken.
    Unavailable(String),
}

/// The workers' end.
pub(crate) type Names = mpsc::Sender<Ask>;

pub(crate) fn channel() -> (Names, mpsc::Receiver<Ask>) {
    mpsc::channel(ASKED_MAX)
}

/// Whether an upstream is known by name on the bus.
pub(crate) fn is_name(address: &UpstreamAddress) -> bool {
    matches!(address, UpstreamAddress::Workspace { .. } | UpstreamAddress::Machine { .. })
}

/// Asks for a connection and takes it over.
pub(crate) async fn connect(names: &Names, address: &UpstreamAddress, wake: bool) -> Result<Stream, Unreached> {
    let nobody = || Unreached::Unavailable("nobody here knows workspaces and machines by name".to_owned());
    let (answer, told) = oneshot::channel();
    names.send(Ask { address: address.clone(), wake, answer }).await.map_err(|_| nobody())?;
    let socket = told.await.map_err(|_| nobody())??;
    take_over(socket).map_err(|error| Unreached::Unavailable(format!("take over the connection: {error}")))
}

fn take_over(socket: OwnedFd) -> io::Result<Stream> {
    let family = rustix::net::getsockname(&socket)?.address_family();
    if family == AddressFamily::UNIX {
        let stream = StdUnixStream::from(socket);
        stream.set_nonblocking(true)?;
        return UnixStream::from_std(stream).map(Stream::Unix);
    }
    let stream = StdTcpStream::from(socket);
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    TcpStream::from_std(stream).map(Stream::Tcp)
}
