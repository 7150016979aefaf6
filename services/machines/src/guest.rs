//! Connections to the ports of a guest.

use std::path::PathBuf;
use std::time::Duration;

use shipote_agent_protocol::{AgentRequest, AgentResponse, Hello, Reach, ports, read_body, read_length, write_message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::Error;

/// How long a guest may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Longest answer of the vsock device to `CONNECT`.
const ANSWER_MAX: usize = 32;
/// Longest answer of a guest that is looked at here.
const MESSAGE_MAX: u32 = 64 * 1024;

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
        if matches!(port, ports::AGENT_CONTROL | ports::REACH | ports::FILES) {
            let hello = Hello { secret: self.secret.clone() };
            write_message(&mut stream, &hello).await.map_err(|error| error.to_string())?;
            granted(answer(&mut stream).await?, "the greeting")?;
        }
        Ok(stream)
    }

    /// Connects to what listens inside. What comes next are records; see [`shipote_agent_protocol::reach`].
    ///
    /// # Errors
    /// [`Error::Connect`]: nobody listens there, or the guest doesn't answer.
    pub async fn reach(&self, target: &Reach) -> Result<UnixStream, Error> {
        let port = match target {
            Reach::Tcp { port } => u32::from(*port),
            Reach::Unix { .. } => ports::REACH,
        };
        let failed = |reason: String| Error::Connect { name: self.name.clone(), port, reason };
        let reaching = async {
            let mut stream = self.dial(ports::REACH).await?;
            write_message(&mut stream, target).await.map_err(|error| error.to_string())?;
            granted(answer(&mut stream).await?, "the wish to reach something")?;
            Ok(stream)
        };
        let reached = tokio::time::timeout(CONNECT_TIME, reaching).await;
        reached.map_err(|_| failed(format!("no answer within {CONNECT_TIME:?}")))?.map_err(failed)
    }

    /// One request with one answer on a connection of its own.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub async fn ask(&self, request: &AgentRequest) -> Result<AgentResponse, Error> {
        self.ask_within(request, CONNECT_TIME).await
    }

    /// The same, with the time that the answer may take.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub async fn ask_within(&self, request: &AgentRequest, time: Duration) -> Result<AgentResponse, Error> {
        let port = ports::AGENT_CONTROL;
        let failed = |reason: String| Error::Connect { name: self.name.clone(), port, reason };
        let mut stream = self.connect(port).await?;
        write_message(&mut stream, request).await.map_err(|error| failed(error.to_string()))?;
        let answer = tokio::time::timeout(time, answer(&mut stream)).await;
        answer.map_err(|_| failed("no answer".to_owned()))?.map_err(failed)
    }
}

/// Whether a guest says yes.
fn granted(answer: AgentResponse, asked: &str) -> Result<(), String> {
    match answer {
        AgentResponse::Ok { .. } => Ok(()),
        AgentResponse::Error { message, .. } => Err(shown(&message)),
        _ => Err(format!("its agent answers {asked} with something else")),
    }
}

/// A guest's answer. It may say anything, but not much.
async fn answer(stream: &mut UnixStream) -> Result<AgentResponse, String> {
    let length = read_length(stream).await.map_err(|error| error.to_string())?;
    let length = length.ok_or_else(|| "its agent ends the connection".to_owned())?;
    if length > MESSAGE_MAX {
        return Err(format!("its agent answers with {length} bytes; the limit is {MESSAGE_MAX}"));
    }
    let body = read_body(stream, length).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| format!("its agent is not understood: {error}"))
}

/// A guest's words, fit to be shown.
pub(crate) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
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

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// What is made of a guest that, once connected to, sends these bytes and then holds or closes.
    async fn against(bytes: &'static [u8], hold: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("v");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // As long as the other side listens.
            let mut rest = bytes.iter().cycle().copied();
            let _ = stream.write_all(&bytes[..bytes.len().min(64)]).await;
            while bytes.len() > 64 {
                let piece: Vec<u8> = rest.by_ref().take(4096).collect();
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
            }
            if hold {
                std::future::pending::<()>().await;
            }
        });
        let guest = Guest { name: "hostile".into(), socket, secret: "s".into() };
        guest.connect(ports::AGENT_CONTROL).await.unwrap_err().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn a_hostile_guest_costs_nothing_but_its_own_connection() {
        for (bytes, hold, what) in [
            (&b""[..], false, "nobody listens"),
            (b"", true, "no answer within"),
            (b"NO 6000\n", false, "refuses"),
            (&[b'x'; 4096], true, "nonsense"),
            (b"OK 1\n", false, ""),
            (b"OK 1\n", true, "no answer within"),
            (b"OK 1\n\xff\xff\xff\xff", true, "4294967295 bytes"),
            (b"OK 1\n\x00\x01\x00\x01", true, "65537 bytes"),
            (b"OK 1\n\x00\x00\x00\x40{}", false, ""),
            (b"OK 1\n\x00\x00\x00\x40{}", true, "no answer within"),
            (b"OK 1\n\x00\x00\x00\x02{}", true, "not understood"),
            (b"OK 1\n\x00\x00\x00\x11{\"status\":\"pong\"}", true, "not understood"),
            (b"OK 1\n\x00\x00\x00\x14{\"status\":\"started\"}", true, "something else"),
        ] {
            let said = against(bytes, hold).await;
            assert!(said.contains(what), "{said} for {:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn a_link_in_the_place_of_the_socket_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        let _listener = UnixListener::bind(&elsewhere).unwrap();
        let socket = dir.path().join("v");
        std::os::unix::fs::symlink(&elsewhere, &socket).unwrap();
        let guest = Guest { name: "hostile".into(), socket, secret: "s".into() };
        let said = guest.connect(1).await.unwrap_err().to_string();
        assert!(said.contains("vsock device"), "{said}");
    }
}
