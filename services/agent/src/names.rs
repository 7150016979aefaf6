//! Names, for the guest's programs: a resolver on the guest's loopback that asks the host, one connection a query.
//!
//! The host's end (`ports::DNS_FILTER`) answers for the names that the machine's rules allow. Queries are passed on as they
//! are: a `u16` length, big-endian, and the message (RFC 1035, 4.2.2).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::ports;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use crate::listen;

/// What programs read to find it.
pub(crate) const RESOLV_CONF: &str = "nameserver 127.0.0.1\noptions edns0\n";
/// Queries at once; more are dropped, as a resolver may.
const QUERIES: usize = 64;
/// Longest message that is passed on.
const MESSAGE_MAX: usize = 4096;
/// How long the host may take.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Answers queries until the machine ends.
pub(crate) async fn serve() -> std::io::Result<()> {
    let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).await?);
    let room = Arc::new(Semaphore::new(QUERIES));
    let mut query = vec![0; MESSAGE_MAX];
    loop {
        let (length, from) = socket.recv_from(&mut query).await?;
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let (socket, query) = (Arc::clone(&socket), query[..length].to_vec());
        tokio::spawn(async move {
            // One that gets no answer asks again.
            let _ = tokio::time::timeout(ANSWER_TIME, answer(&socket, from, &query)).await;
            drop(permit);
        });
    }
}

async fn answer(socket: &UdpSocket, from: SocketAddr, query: &[u8]) -> std::io::Result<()> {
    let mut host = listen::dial(ports::DNS_FILTER).await?;
    host.write_u16(u16::try_from(query.len()).map_err(std::io::Error::other)?).await?;
    host.write_all(query).await?;
    let length = host.read_u16().await?;
    let mut reply = vec![0; usize::from(length).min(MESSAGE_MAX)];
    host.read_exact(&mut reply).await?;
    socket.send_to(&reply, from).await?;
    Ok(())
}
