//! A client that stops reading while large signals are meant for it, once a minute for fifteen seconds.
//!
//! It speaks the wire protocol itself: the whole handshake and the first calls go out in one write, as sd-bus does
//! (authentication is pipelined), which a bus must take too.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, interval, timeout},
};
use zbus::Message;

use super::{
    Trial,
    service::{INTERFACE, NAME, PATH, Served, Trial as Interface},
};

const STALL: Duration = Duration::from_secs(15);
const REST: Duration = Duration::from_secs(45);

pub(super) async fn run(trial: &Trial, service: &Served) {
    // Early enough that its lasting effects, if any, lie before the first half of the memory's comparison.
    let mut next = Instant::now() + Duration::from_secs(2);
    while next + STALL < trial.until {
        tokio::time::sleep_until(next).await;
        trial.ledger.stalling(true);
        let outcome = stall(trial, service).await;
        // Let what was queued for the client be freed before memory counts again.
        tokio::time::sleep(Duration::from_secs(3)).await;
        trial.ledger.stalling(false);
        trial.ledger.check("stalled clients survived", outcome);
        next = Instant::now() + REST;
    }
    tokio::time::sleep_until(trial.until).await;
}

async fn stall(trial: &Trial, service: &Served) -> Result<()> {
    let mut socket = pipelined(&trial.address).await?;
    trial.ledger.count("handshakes in one write", 1);
    let emitter = zbus::object_server::SignalEmitter::new(&service.main, PATH)?;
    let blob = vec![0x5a_u8; 32 * 1024];
    let mut tick = interval(Duration::from_millis(20));
    let end = Instant::now() + STALL;
    while Instant::now() < end {
        tick.tick().await;
        Interface::blob(&emitter, &blob).await?;
        trial.ledger.count("signals meant for a stalled client", 1);
    }
    // Whether the bus kept the client or not is its own decision; worth knowing.
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_millis(500), socket.read_to_end(&mut rest)).await.is_ok();
    trial.ledger.note("a stalled client is", if ended { "disconnected" } else { "kept, within its limits" });
    Ok(())
}

/// Handshake, `Hello` and a match rule in one write; gives back the socket after the answer to `Hello`.
async fn pipelined(address: &str) -> Result<UnixStream> {
    let path =
        address.strip_prefix("unix:path=").and_then(|a| a.split(',').next()).context("no path in the address")?;
    let mut socket = UnixStream::connect(path).await?;
    let uid = rustix::process::getuid().as_raw().to_string();
    let hex: String = uid.bytes().map(|b| format!("{b:02x}")).collect();
    let call = |member: &'static str| {
        Message::method_call("/org/freedesktop/DBus", member)
            .destination("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
    };
    let mut bytes = format!("\0AUTH EXTERNAL {hex}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n").into_bytes();
    bytes.extend_from_slice(call("Hello").build(&())?.data());
    let rule = format!("type='signal',sender='{NAME}',interface='{INTERFACE}',member='Blob'");
    bytes.extend_from_slice(call("AddMatch").build(&rule)?.data());
    socket.write_all(&bytes).await?;
    let mut answer = Vec::new();
    while !answer.windows(12).any(|w| w == b"NameAcquired") {
        let read =
            timeout(Duration::from_secs(5), socket.read_buf(&mut answer)).await.context("no answer in 5 s")??;
        ensure!(read > 0, "hung up after {:?}", String::from_utf8_lossy(&answer));
    }
    Ok(socket)
}
