//! Names for a client that has a door for its queries: those on its list exist, others do not.
//!
//! A program that goes out by name needs no address; one that resolves first (`socks5://`) may connect to what it was
//! told here, for as long as the name is on the list.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UdpSocket, UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::client::Client;

/// Longest query, and queries of one client that are answered at once; more are dropped, and asked again.
const QUERY_MAX: usize = 1232;
const QUERIES: usize = 32;
/// For resolving.
const RESOLVE_TIME: Duration = Duration::from_secs(10);
/// For a query on a connection, with its answer.
const QUERY_TIME: Duration = Duration::from_secs(15);
/// After a connection could not be accepted: out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long an answer may be remembered, seconds: lists change.
const TTL: u32 = 30;
/// Addresses in one answer, so that it fits into 512 bytes.
const ADDRESSES: usize = 8;

/// Queries by UDP.
pub(super) async fn datagrams(client: Arc<Client>, socket: std::net::UdpSocket) {
    let socket = match UdpSocket::from_std(socket) {
        Ok(socket) => Rc::new(socket),
        Err(e) => return tracing::error!("answer queries of {}: {e}", client.name),
    };
    let mut queries = JoinSet::new();
    let mut bytes = [0; QUERY_MAX];
    loop {
        let (length, from) = tokio::select! {
            received = socket.recv_from(&mut bytes) => match received {
                Ok(received) => received,
                // Of an answer that nobody waited for.
                Err(e) => {
                    tracing::debug!("receive a query of {}: {e}", client.name);
                    continue;
                }
            },
            Some(_) = queries.join_next() => continue,
        };
        if queries.len() >= QUERIES {
            tracing::debug!("a query of {} is dropped: {QUERIES} are being answered", client.name);
            continue;
        }
        let (client, socket, query) = (Arc::clone(&client), Rc::clone(&socket), bytes[..length].to_vec());
        queries.spawn_local(async move { reply(&client, &socket, from, &query).await });
    }
}

/// Queries that come one a connection, with their length before them (RFC 1035, 4.2.2); more than are answered at once
/// wait.
pub(super) async fn connections(client: Arc<Client>, listener: std::os::unix::net::UnixListener) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => return tracing::error!("answer queries of {}: {e}", client.name),
    };
    let mut queries = JoinSet::new();
    loop {
        while queries.len() >= QUERIES {
            queries.join_next().await;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let client = Arc::clone(&client);
                    // One that sends less than it said, or does not listen, gets no answer.
                    queries.spawn_local(tokio::time::timeout(QUERY_TIME, async move { one(&client, stream).await }));
                }
                Err(e) => {
                    tracing::warn!("accept a query of {}: {e}", client.name);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = queries.join_next() => {}
        }
    }
}

async fn one(client: &Client, mut stream: UnixStream) -> std::io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    if length > QUERY_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    let reply = answer(client, &query).await;
    stream.write_u16(u16::try_from(reply.len()).map_err(std::io::Error::other)?).await?;
    stream.write_all(&reply).await
}

async fn reply(client: &Client, socket: &UdpSocket, from: SocketAddr, query: &[u8]) {
    let reply = answer(client, query).await;
    if let Err(e) = socket.send_to(&reply, from).await {
        tracing::debug!("answer a query of {}: {e}", client.name);
    }
}

/// The reply to a query, whatever it is.
async fn answer(client: &Client, query: &[u8]) -> Vec<u8> {
    let Ok(packet) = Packet::parse(query) else { return failure(query) };
    let [question] = &packet.questions[..] else { return failure(query) };
    let name = question.qname.to_string().to_ascii_lowercase();
    let mut reply = Packet::new_reply(packet.id());
    reply.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
    reply.questions.push(question.clone());
    match (client.policy().knows(&name), question.qtype) {
        (Err(denial), _) => {
            client.deny(&denial);
            *reply.rcode_mut() = RCODE::NameError;
        }
        (Ok(()), QTYPE::TYPE(kind @ (TYPE::A | TYPE::AAAA))) => {
            let Some(known) = resolve(client, &name, kind).await else { return failure(query) };
            client.tell(&name, &known);
            for address in known {
                let data = match address {
                    IpAddr::V4(address) => RData::A(A { address: address.into() }),
                    IpAddr::V6(address) => RData::AAAA(AAAA { address: address.into() }),
                };
                reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data));
            }
        }
        // The name exists, with nothing of this kind.
        (Ok(()), _) => {}
    }
    reply.build_bytes_vec().unwrap_or_else(|_| failure(query))
}

/// The addresses of one kind that a client may know; none: there was no answer.
async fn resolve(client: &Client, name: &str, kind: TYPE) -> Option<Vec<IpAddr>> {
    let found = tokio::time::timeout(RESOLVE_TIME, tokio::net::lookup_host((name, 0))).await.ok()?.ok()?;
    let policy = client.policy();
    let of_kind = |ip: &IpAddr| ip.is_ipv4() == (kind == TYPE::A);
    let mut known: Vec<IpAddr> = found.map(|a| a.ip().to_canonical()).filter(|ip| of_kind(ip)).collect();
    known.sort_unstable();
    known.dedup();
    known.retain(|ip| policy.tells(*ip));
    known.truncate(ADDRESSES);
    Some(known)
}

/// SERVFAIL, with what can be told of the query: its id.
fn failure(query: &[u8]) -> Vec<u8> {
    let id = query.first_chunk::<2>().copied().unwrap_or_default();
    // Response, recursion desired and available, SERVFAIL; nothing else.
    [id[0], id[1], 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0].to_vec()
}
