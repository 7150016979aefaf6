//! Connections to the ports of a guest.

use std::path::PathBuf;
use std::time::Duration;

use shipote_agent_protocol::{AgentRequest, AgentResponse, Hello, ports, read_message, write_message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::Error;

/// How long a guest may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Longest answer of the vsock device to `CONNECT`.
const ANSWER_MAX: usize = 32;

/// How to reach a running guest.
#[derive(Clone)]
pub struct Guest {
    /// Machine's name.
    pub name: String,
    /// Socket of the vsock device.
    pub socket: PathBuf,
    /// What the agent's connections begin with.
    pub secret: String,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("name", &self.name).field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Guest {
    /// Connects to a port. On the agent's port the machine's secret has been shown already: what comes next is the plain
    /// protocol, and the connection can be handed to anyone who may use the machine.
    ///
    /// # Errors
    /// [`Error::Connect`]: nobody listens there, or the guest doesn't answer.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, Error> {
        let failed = |reason: String| Error::Connect { name: self.name.clone(), port, reason };
        match tokio::time::timeout(CONNECT_TIME, self.dial(port)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(reason)) => Err(failed(reason)),
            Err(_) => Err(failed(format!("no answer within {CONNECT_TIME:?}"))),
        }
    }

    async fn dial(&self, port: u32) -> Result<UnixStream, String> {
        let mut stream = connect_unlinked(&self.socket).await.map_err(|error| format!("its vsock device: {error}"))?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(|error| error.to_string())?;
        read_ok(&mut stream).await?;
        if port == ports::AGENT_CONTROL {
            let hello = Hello { secret: self.secret.clone() };
            write_message(&mut stream, &hello).await.map_err(|error| error.to_string())?;
            match read_message(&mut stream).await.map_err(|error| error.to_string())? {
                Some(AgentResponse::Ok { .. }) => {}
                Some(AgentResponse::Error { message, .. }) => return Err(message),
                _ => return Err("its agent ends the connection".to_owned()),
            }
        }
        Ok(stream)
    }

    /// One request with one answer on a connection of its own.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub async fn ask(&self, request: &AgentRequest) -> Result<AgentResponse, Error> {
        let port = ports::AGENT_CONTROL;
        let failed = |reason: String| Error::Connect { name: self.name.clone(), port, reason };
        let mut stream = self.connect(port).await?;
        write_message(&mut stream, request).await.map_err(|error| failed(error.to_string()))?;
        let answer = tokio::time::timeout(CONNECT_TIME, read_message(&mut stream)).await;
        match answer.map_err(|_| failed("no answer".to_owned()))?.map_err(|error| failed(error.to_string()))? {
            Some(answer) => Ok(answer),
            None => Err(failed("the connection ended".to_owned())),
        }
    }
}

/// Connects to a socket that is really where its path says. A guest that owns its vsock device could put a link there,
/// and have us speak to somebody else.
async fn connect_unlinked(path: &std::path::Path) -> std::io::Result<UnixStream> {
    use rustix::fs::{FileType, Mode, OFlags, fstat, open};
    use std::os::fd::AsRawFd as _;
    let socket = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&socket)?.st_mode) != FileType::Socket {
        return Err(std::io::Error::other("no socket lies there"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

/// Reads the vsock device's `OK PORT` line and not a byte more: the rest is the guest's.
async fn read_ok(stream: &mut UnixStream) -> Result<(), String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if line.len() < ANSWER_MAX => line.push(byte),
            Ok(_) => return Err("its vsock device answers with nonsense".to_owned()),
            Err(_) => return Err("nobody listens there".to_owned()),
        }
    }
    if line.starts_with(b"OK ") { Ok(()) } else { Err("its vsock device refuses".to_owned()) }
}
