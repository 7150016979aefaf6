//! What a machine publishes: ports and sockets of the guest, on ports of the host's loopback or by name alone.
//!
//! Not for: anybody beyond this host; what comes from elsewhere passes through the proxy, which asks for connections by
//! the machine's name.
//!
//! Bytes pass as they are; of what a guest sends only the lengths of its records are looked at here.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shipote_agent_protocol::Reach;
use shipote_agent_protocol::reach::relay;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::Error;
use crate::guest::Guest;

/// Most that one machine publishes.
pub const PUBLISHED_MAX: usize = 64;
/// Connections through one door at once; more wait in its socket's queue.
const CONNECTIONS: usize = 128;
/// How long a client is held while its machine wakes.
const WAKE_TIME: Duration = Duration::from_secs(30);
/// Between two lines in the log about connections that fail.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// `HOST:GUEST` or `GUEST`, where `GUEST` is a TCP port or the absolute path of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Port of the host's loopback; without one it is reached by the machine's name only.
    pub host: Option<u16>,
    /// What it leads to.
    pub guest: Reach,
}

impl Published {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("publish {text:?}: give HOST:GUEST or GUEST: ports from 1 to 65535, GUEST also /a/socket");
        let port = |text: &str| text.parse().ok().filter(|&port: &u16| port > 0);
        let (host, guest) = match text.split_once(':') {
            Some((host, guest)) if !host.starts_with('/') => (Some(port(host).ok_or_else(wrong)?), guest),
            _ => (None, text),
        };
        let guest = match port(guest) {
            Some(port) => Reach::Tcp { port },
            None if guest.starts_with('/') && guest.len() <= 107 => Reach::Unix { path: guest.into() },
            None => return Err(wrong()),
        };
        if host.is_none() && matches!(guest, Reach::Unix { .. }) {
            return Err(format!("publish {text:?}: a socket needs a port of the host, as in 8080:{text}"));
        }
        Ok(Self { host, guest })
    }
}

/// A port of the host that is listened on.
pub(crate) struct Door {
    listener: TcpListener,
    port: u16,
    guest: Reach,
}

impl Door {
    /// Listens on every port that is published.
    pub(crate) async fn open(published: &[String]) -> Result<Vec<Self>, Error> {
        let mut doors = Vec::new();
        for text in published {
            let Ok(Published { host: Some(port), guest }) = Published::parse(text) else { continue };
            let address = (Ipv4Addr::LOCALHOST, port);
            let failed = Error::io("publish on", format!("127.0.0.1:{port} (is another program there?)"));
            doors.push(Self { listener: TcpListener::bind(address).await.map_err(failed)?, port, guest });
        }
        Ok(doors)
    }

    /// Passes connections on to the guest until dropped.
    pub(crate) async fn serve(self, guest: Guest, awake: Awake) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let failures = Arc::new(std::sync::Mutex::new(Failures::default()));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let Ok((client, _)) = self.listener.accept().await else {
                // Out of descriptors: the connections that there are end some time.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (guest, target, port, failures) = (guest.clone(), self.guest.clone(), self.port, Arc::clone(&failures));
            let awake = awake.clone();
            tokio::spawn(async move {
                awake.wait().await;
                if let Err(error) = pass(client, &guest, &target).await {
                    let said = failures.lock().ok().and_then(|mut failures| failures.count(Instant::now()));
                    if let Some(count) = said {
                        tracing::warn!("published port {port}: {error} ({count} such since the last line)");
                    }
                }
                drop(permit);
            });
        }
    }
}

/// Has a machine that sleeps woken for a connection.
#[derive(Clone)]
pub(crate) struct Awake {
    /// That somebody wants it; what waits there already stands for all.
    pub(crate) wanted: mpsc::Sender<()>,
    pub(crate) paused: watch::Receiver<bool>,
}

impl Awake {
    /// One that does not go on in time is found out by the connection that follows.
    async fn wait(mut self) {
        let _ = self.wanted.try_send(());
        let _ = tokio::time::timeout(WAKE_TIME, self.paused.wait_for(|paused| !paused)).await;
    }
}

/// Whoever may connect must not be able to fill the log with it.
#[derive(Default)]
struct Failures {
    said: Option<Instant>,
    count: u64,
}

impl Failures {
    /// One more; how many there were where it is time to say so.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.said.is_some_and(|said| now.duration_since(said) < SAY_EVERY) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

async fn pass(mut client: TcpStream, guest: &Guest, target: &Reach) -> Result<(), Error> {
    let connected = async {
        client.set_nodelay(true).map_err(Error::io("serve", "a published port's client"))?;
        guest.reach(target).await
    };
    let mut stream = match connected.await {
        Ok(stream) => stream,
        Err(error) => {
            // A reset, not an end: nobody has answered.
            let _ = client.set_zero_linger();
            return Err(error);
        }
    };
    if relay(&mut stream, &mut client).await.is_err() {
        // Either side broke off, and the other must not take that for an end.
        let _ = client.set_zero_linger();
    }
    Ok(())
}

/// A connection to what a machine publishes, as a plain socket that can be handed to anyone.
///
/// # Errors
/// [`Error::Connect`]: nobody listens there, or the guest doesn't answer.
pub async fn connect(guest: &Guest, target: &Reach) -> Result<std::os::unix::net::UnixStream, Error> {
    let mut stream = guest.reach(target).await?;
    let failed = || Error::io("hand over the connection to", &guest.name);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed())?;
    ours.set_nonblocking(true).map_err(failed())?;
    let mut ours = UnixStream::from_std(ours).map_err(failed())?;
    // A side that breaks off ends the other with it.
    tokio::spawn(async move { relay(&mut stream, &mut ours).await });
    Ok(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_published() {
        let parse = |text| Published::parse(text).unwrap();
        assert_eq!(parse("8080:80"), Published { host: Some(8080), guest: Reach::Tcp { port: 80 } });
        assert_eq!(parse("80"), Published { host: None, guest: Reach::Tcp { port: 80 } });
        assert_eq!(parse("80:/run/a:b"), Published { host: Some(80), guest: Reach::Unix { path: "/run/a:b".into() } });
        for bad in [
            "",
            "0",
            "0:1",
            "1:0",
            "65536",
            "a:80",
            "80:",
            ":80",
            "1:2:3",
            "80:run",
            "/run/a",
            "-1:80",
            "127.0.0.1:1:2",
        ] {
            assert!(Published::parse(bad).unwrap_err().contains("publish"), "{bad}");
        }
        assert!(Published::parse(&format!("80:/{}", "x".repeat(107))).is_err());
    }

    #[test]
    fn failures_are_counted_and_said_now_and_then() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        assert_eq!(failures.count(now), Some(1));
        assert_eq!(failures.count(now), None);
        assert_eq!(failures.count(now + SAY_EVERY), Some(2));
    }
}
