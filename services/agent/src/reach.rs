//! Port 6005: connections from the host to what listens inside the guest, each on one of its own.
//!
//! Not for: deciding what may be reached; the host asks for what the machine publishes.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::reach::relay;
use shipote_agent_protocol::{AgentResponse, Reach, codes, read_body, read_length, write_message};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixStream};

use crate::agent::Agent;
use crate::connection::greeted;

/// How long the host may take to say what is to be reached, and how large that may be.
const TARGET_TIME: Duration = Duration::from_secs(10);
const TARGET_MAX: u32 = 8 * 1024;
/// How long the host may take to close once both directions have ended.
const FAREWELL: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub(crate) async fn serve(mut host: UnixStream, agent: Arc<Agent>) {
    if !greeted(&mut host, &agent).await {
        return;
    }
    let target = match tokio::time::timeout(TARGET_TIME, target(&mut host)).await {
        Ok(Ok(target)) => target,
        Ok(Err(reason)) => return refuse(&mut host, codes::INVALID_REQUEST, reason).await,
        Err(_) => return refuse(&mut host, codes::INVALID_REQUEST, "what is to be reached was not said".into()).await,
    };
    let ended = match target {
        Reach::Tcp { port } => match dial(port).await {
            Ok(mut server) => {
                let ended = pass(&mut host, &mut server).await;
                if ended.is_err() {
                    // The server must not take a cut for an end.
                    let _ = server.set_zero_linger();
                }
                ended
            }
            Err(error) => return refuse(&mut host, codes::CONNECT_FAILED, format!("port {port}: {error}")).await,
        },
        Reach::Unix { path } => match UnixStream::connect(&path).await {
            Ok(mut server) => pass(&mut host, &mut server).await,
            Err(error) => {
                return refuse(&mut host, codes::CONNECT_FAILED, format!("{}: {error}", path.display())).await;
            }
        },
    };
    if ended.is_ok() {
        // See `shipote_agent_protocol::reach`: the host closes first.
        let _ = tokio::time::timeout(FAREWELL, host.read_u8()).await;
    }
}

async fn target(host: &mut UnixStream) -> Result<Reach, String> {
    let length = read_length(host).await.map_err(|error| error.to_string())?.ok_or("the connection ended")?;
    if length > TARGET_MAX {
        return Err(format!("a frame of {length} bytes; the limit is {TARGET_MAX}"));
    }
    let body = read_body(host, length).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// Whichever loopback the server listens on.
async fn dial(port: u16) -> std::io::Result<TcpStream> {
    let server = match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(server) => server,
        Err(error) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| error)?,
    };
    server.set_nodelay(true)?;
    Ok(server)
}

async fn pass<S>(host: &mut UnixStream, server: &mut S) -> std::io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    write_message(host, &AgentResponse::ok()).await.map_err(std::io::Error::other)?;
    relay(host, server).await
}

async fn refuse(host: &mut UnixStream, code: &str, reason: String) {
    let answer = AgentResponse::error(code, reason);
    let _ = tokio::time::timeout(TARGET_TIME, write_message(host, &answer)).await;
}
