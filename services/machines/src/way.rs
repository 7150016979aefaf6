//! A machine's way out: the two sockets at the host's end of its vsock that its guest dials for connections and for names.
//!
//! The proxy serves them, by the machine's list; here they are only made, handed over, and answered where there is no proxy.
//! Nothing that a guest sends on them is read here.
//!
//! Invariant: a guest that has a way out gets an answer on it, from the proxy or that it is away, and never waits for ever.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener as Listener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::ports;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

/// How long the proxy may be away before guests are told so: it may only be restarting.
pub(crate) const AWAY: Duration = Duration::from_secs(10);
/// Guests that are told so at once.
const TOLD: usize = 64;
/// How long one may take to hear it.
const TELL_TIME: Duration = Duration::from_secs(5);
/// What a guest asks ends with this, or is longer than is waited for.
const HEAD_END: &[u8] = b"\r\n\r\n";
const HEAD_MAX: usize = 16 * 1024;
/// After a connection could not be accepted: out of descriptors, mostly.
const PAUSE: Duration = Duration::from_millis(50);

/// What a guest is told that has nobody to let it out. Its agent shows the reason.
const ANSWER: &str = "HTTP/1.1 503 Service Unavailable\r\nx-reason: the proxy, which alone lets machines out, is not \
                      running; start shipote-proxy.service on the host\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A machine's way out.
#[derive(Debug)]
pub struct Way {
    /// Tells these sockets from those of every other life, and of every other machine.
    id: String,
    proxy: Listener,
    names: Listener,
}

impl Way {
    /// Makes the sockets, in the place of what an earlier service left of them.
    ///
    /// # Errors
    /// They cannot be made in this folder.
    pub(crate) fn open(folder: &Path) -> std::io::Result<Self> {
        let listen = |port| crate::launch::listener(folder, port)?.into_std();
        Self::of(listen(ports::EGRESS)?, listen(ports::DNS_FILTER)?)
    }

    /// The sockets of an earlier service, which lie where they lay.
    ///
    /// # Errors
    /// They are no sockets.
    pub(crate) fn inherited(proxy: OwnedFd, names: OwnedFd) -> std::io::Result<Self> {
        Self::of(proxy.into(), names.into())
    }

    fn of(proxy: Listener, names: Listener) -> std::io::Result<Self> {
        // No two sockets that anybody has open have the same number.
        let id = rustix::fs::fstat(&proxy)?.st_ino.to_string();
        Ok(Self { id, proxy, names })
    }

    /// Whether an earlier service made one here.
    pub(crate) fn was_in(folder: &Path) -> bool {
        crate::launch::dialled(folder, ports::EGRESS).exists()
    }

    /// What tells it from others.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The sockets, as they are kept: for connections, and for queries.
    pub(crate) fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.proxy.as_fd(), self.names.as_fd()]
    }

    /// The sockets for whoever serves them: for connections, and for queries, which come one a connection.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn doors(&self) -> std::io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.proxy.as_fd().try_clone_to_owned()?, self.names.as_fd().try_clone_to_owned()?))
    }
}

/// Answers a machine's guest while the proxy has been away for longer than this. `there` says whether it is there.
pub(crate) async fn stand_in(way: Arc<Way>, name: String, mut there: watch::Receiver<bool>, away: Duration) {
    loop {
        if there.wait_for(|there| !there).await.is_err() {
            return;
        }
        if let Ok(back) = tokio::time::timeout(away, there.wait_for(|there| *there)).await {
            if back.is_err() {
                return;
            }
            continue;
        }
        tracing::warn!("machine {name} reaches nothing: the proxy is away");
        let back = tokio::select! {
            back = there.wait_for(|there| *there) => back.is_ok(),
            error = refuse(&way) => {
                tracing::error!("machine {name}: tell it that the proxy is away: {error}");
                false
            }
        };
        if !back {
            return;
        }
    }
}

/// Tells everybody who connects that there is no proxy; queries for names just end, which the guest takes for no answer.
async fn refuse(way: &Way) -> std::io::Error {
    let own = || -> std::io::Result<_> {
        let (proxy, names) = way.doors()?;
        Ok((UnixListener::from_std(proxy.into())?, UnixListener::from_std(names.into())?))
    };
    let (proxy, names) = match own() {
        Ok(own) => own,
        Err(error) => return error,
    };
    let room = Arc::new(Semaphore::new(TOLD));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return std::io::ErrorKind::Other.into() };
        let accepted = tokio::select! {
            accepted = proxy.accept() => accepted.map(|(guest, _)| Some(guest)),
            accepted = names.accept() => accepted.map(|_| None),
        };
        match accepted {
            Ok(Some(guest)) => {
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(TELL_TIME, tell(guest)).await;
                    drop(permit);
                });
            }
            Ok(None) => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn tell(mut guest: UnixStream) -> std::io::Result<()> {
    // It speaks first, and to the end: a connection that is shut before is one that broke, for whatever passes its bytes
    // on. What it says is thrown away.
    let mut head = Vec::new();
    while head.len() < HEAD_MAX && !head.windows(HEAD_END.len()).any(|end| end == HEAD_END) {
        if guest.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    guest.write_all(ANSWER.as_bytes()).await?;
    guest.shutdown().await?;
    tokio::io::copy(&mut guest.take(64 * 1024), &mut tokio::io::sink()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::dialled;

    async fn asked(folder: &Path) -> String {
        let mut guest = UnixStream::connect(dialled(folder, ports::EGRESS)).await.unwrap();
        guest.write_all(b"CONNECT a.example:443 HTTP/1.1\r\n\r\n").await.unwrap();
        let mut text = Vec::new();
        guest.read_to_end(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    /// A way out, with somebody who stands in after this time; whether the proxy is there is the sender's to say.
    fn way(away: Duration) -> (tempfile::TempDir, Arc<Way>, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(crate::vmm::qemu::VSOCK_FOLDER)).unwrap();
        let way = Arc::new(Way::open(dir.path()).unwrap());
        let (proxy, there) = watch::channel(false);
        let task = tokio::spawn(stand_in(Arc::clone(&way), "m".into(), there, away));
        (dir, way, proxy, task)
    }

    /// Takes the next guest as the proxy does, and says this to it.
    async fn serve(way: &Way, word: &str) {
        let (served, _) = way.doors().unwrap();
        let served = UnixListener::from_std(served.into()).unwrap();
        let mut guest = served.accept().await.unwrap().0;
        let _some = guest.read(&mut [0; 64]).await.unwrap();
        guest.write_all(word.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn while_the_proxy_is_away_guests_are_told_so_and_once_it_is_back_it_gets_them() {
        let (dir, way, proxy, task) = way(Duration::ZERO);
        for _ in 0..3 {
            let said = asked(dir.path()).await;
            assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("x-reason: the proxy"), "{said}");
        }
        let mut slow = UnixStream::connect(dialled(dir.path(), ports::EGRESS)).await.unwrap();
        slow.write_all(b"CONNECT a.example:443 HTTP/1.1\r\n").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(100), slow.read(&mut [0])).await;
        assert!(early.is_err(), "it has not asked yet: {early:?}");
        slow.write_all(b"\r\n").await.unwrap();
        assert_eq!(slow.read(&mut [0]).await.unwrap(), 1);
        let mut query = UnixStream::connect(dialled(dir.path(), ports::DNS_FILTER)).await.unwrap();
        assert_eq!(query.read(&mut [0]).await.unwrap(), 0, "a query has no answer");
        proxy.send(true).unwrap();
        // Whoever stands in hears of it before the guest that comes next, on this one thread.
        tokio::task::yield_now().await;
        let (said, ()) = tokio::join!(asked(dir.path()), serve(&way, "served"));
        assert_eq!(said, "served");
        drop(proxy);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn while_the_proxy_may_only_be_restarting_guests_wait_for_it() {
        let (dir, way, proxy, task) = way(Duration::from_secs(3600));
        let guest = tokio::spawn({
            let folder = dir.path().to_owned();
            async move { asked(&folder).await }
        });
        tokio::task::yield_now().await;
        proxy.send(true).unwrap();
        serve(&way, "served").await;
        assert_eq!(guest.await.unwrap(), "served");
        drop(proxy);
        task.await.unwrap();
    }
}
