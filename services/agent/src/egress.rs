//! The guest's way out: what programs send to a proxy on the guest's loopback goes over vsock to the host, which decides.
//!
//! A machine has no network device. The host's end (`ports::EGRESS`) speaks HTTP and SOCKS5 and allows what the machine's
//! list names; programs in the guest find the way by the usual variables (`http_proxy`).
//!
//! Not for: deciding anything. Bytes are passed on as they are.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use shipote_agent_protocol::ports;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use crate::listen;

/// Where the guest's programs find it.
pub(crate) const ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 3128));
/// The variables by which they do.
pub(crate) const ENVIRONMENT: [(&str, &str); 8] = [
    ("http_proxy", HTTP),
    ("HTTP_PROXY", HTTP),
    ("https_proxy", HTTP),
    ("HTTPS_PROXY", HTTP),
    ("all_proxy", ANY),
    ("ALL_PROXY", ANY),
    ("no_proxy", HERE),
    ("NO_PROXY", HERE),
];
const HTTP: &str = "http://127.0.0.1:3128";
/// Names are left to the host's end where a program can.
const ANY: &str = "socks5h://127.0.0.1:3128";
const HERE: &str = "localhost,127.0.0.1,::1";
/// Longest answer to CONNECT that is looked at.
const ANSWER_MAX: usize = 1024;

/// Passes connections on until the machine ends.
pub(crate) async fn serve() -> std::io::Result<()> {
    let listener = TcpListener::bind(ADDRESS).await?;
    loop {
        let Ok((mut program, _)) = listener.accept().await else {
            // Out of descriptors: the connections that there are end some time.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(async move {
            match listen::dial(ports::EGRESS).await {
                // Either side may break off, which ends both.
                Ok(mut host) => drop(tokio::io::copy_bidirectional(&mut program, &mut host).await),
                Err(error) => {
                    let text = format!("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nx-reason: {error}\r\n\r\n");
                    let _ = program.write_all(text.as_bytes()).await;
                }
            }
        });
    }
}

/// Whether somebody is reached at `HOST:PORT`; the host's reason where not.
pub(crate) async fn try_target(target: &str) -> std::io::Result<()> {
    if target.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(std::io::Error::other("no host and port"));
    }
    let mut host: UnixStream = listen::dial(ports::EGRESS).await?;
    host.write_all(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") && answer.len() < ANSWER_MAX {
        match host.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.lines().next().unwrap_or("no answer");
    if status.split_whitespace().nth(1) == Some("200") {
        return Ok(());
    }
    let reason = text.lines().find_map(|line| line.strip_prefix("x-reason: ")).unwrap_or(status);
    Err(std::io::Error::other(reason.to_owned()))
}
