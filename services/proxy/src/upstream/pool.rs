//! A worker's idle connections, and how new ones are made.
//!
//! A server may close an idle connection at any moment, so one that is taken out again is looked at first, and a
//! request that cannot be repeated gets only one that was in use a moment ago or a new one.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shipote_rules::UpstreamAddress;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::names::{Unreached, is_name};
use super::streams::{Carrier, Shared};
use super::{Multiplexed, Requests, Speak, Target};
use crate::io::{Clock, Stream};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcquireError {
    #[error("connect to {0}: {1}")]
    Connect(String, io::Error),
    #[error("connect to {0}: no answer within the time limit")]
    TimedOut(String),
    #[error("{0} is not available: {1}")]
    Unavailable(String, String),
    #[error("{0} sleeps")]
    Asleep(String),
    #[error("{0} does not speak HTTP/2")]
    NotTwo(String),
    #[error("{0} takes no request")]
    Full(String),
}

impl AcquireError {
    /// The same for clients, who are not told where the upstream is. The name of a workspace or a machine is in the rules'
    /// own words, and says no address.
    pub(crate) fn told(&self) -> String {
        let what = match self {
            Self::Connect(_, error) => match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => "nobody listens there",
                io::ErrorKind::InvalidData => "TLS could not be agreed on with it",
                io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => "it closed the connection",
                _ => "no connection could be made",
            },
            Self::TimedOut(_) => "it did not take the connection within the time limit",
            Self::Unavailable(..) => return self.to_string(),
            Self::Asleep(_) => "it sleeps",
            Self::NotTwo(_) => "it does not speak HTTP/2",
            Self::Full(_) => "it takes no request",
        };
        format!("the upstream cannot be reached: {what}")
    }
}

/// A connection, and how many requests it carried.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) stream: Stream,
    pub(crate) served: u32,
}

#[derive(Debug)]
struct Idle {
    used: Used,
    since: u64,
}

/// Idle connections of one worker, by upstream; the one used last is taken first.
pub(crate) struct Pools {
    idle: RefCell<Vec<Vec<Idle>>>,
    /// Connections of HTTP/2.
    pub(crate) two: Many<h2::client::SendRequest<Bytes>>,
    /// Connections of HTTP/3.
    pub(crate) three: Many<Requests>,
    clock: Rc<Clock>,
    most: usize,
    keep: u64,
}

/// How long ago a connection may have been used to carry a request that cannot be repeated, milliseconds.
const FRESH: u64 = 1000;
/// After how long a server that closes after each answer, without saying so, has done it, milliseconds.
const SETTLED: u64 = 200;

impl Pools {
    pub(crate) fn new(clock: Rc<Clock>, most: usize, keep: Duration) -> Self {
        let (two, three) = (Many::default(), Many::default());
        Self { idle: RefCell::default(), two, three, clock, most, keep: keep.as_millis() as u64 }
    }

    /// An idle connection that is still good.
    ///
    /// A request that cannot be repeated gets only one that was in use a moment ago, so that no idle limit of the
    /// server is near, and that has shown to outlive an answer.
    pub(crate) fn take(&self, target: &Target, repeatable: bool) -> Option<Used> {
        let mut idle = self.idle.borrow_mut();
        let pool = idle.get_mut(target.id)?;
        let now = self.clock.coarse();
        let age = |idle: &Idle| now.saturating_sub(idle.since);
        let fit = |idle: &Idle| {
            let age = age(idle);
            age <= self.keep && (repeatable || (age <= FRESH && (idle.used.served > 1 || age >= SETTLED)))
        };
        while let Some(at) = pool.iter().rposition(fit) {
            let Idle { mut used, .. } = pool.remove(at);
            if if repeatable { used.stream.is_quiet() } else { used.stream.is_quiet_for_sure() } {
                return Some(used);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(crate) fn give(&self, target: &Target, used: Used) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() <= target.id {
            idle.resize_with(target.id + 1, Vec::new);
        }
        let pool = &mut idle[target.id];
        if pool.len() >= self.most {
            pool.remove(0);
        }
        pool.push(Idle { used, since: self.clock.coarse() });
    }

    /// The time, as connections are told it.
    pub(crate) fn now(&self) -> u64 {
        self.clock.coarse()
    }

    /// Closes what was idle for too long.
    pub(crate) fn sweep(&self) {
        let now = self.clock.coarse();
        let then = now.saturating_sub(self.keep);
        self.two.sweep(then);
        self.three.sweep(then);
        for pool in self.idle.borrow_mut().iter_mut() {
            pool.retain(|idle| now.saturating_sub(idle.since) <= self.keep);
        }
    }
}

/// Connections that carry many requests at once, by upstream.
pub(crate) struct Many<S>(RefCell<Vec<Vec<Shared<S>>>>);

impl<S> Default for Many<S> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<S: Carrier> Many<S> {
    /// A place on one of them.
    pub(crate) fn share(&self, target: &Target, now: u64) -> Option<Multiplexed<S>> {
        let mut shared = self.0.borrow_mut();
        let pool = shared.get_mut(target.id)?;
        pool.retain(|s| !s.is_gone());
        pool.iter().find_map(|s| s.join(now))
    }

    /// Keeps a new one, and takes a place on it.
    pub(crate) fn add(&self, target: &Target, new: Shared<S>, now: u64) -> Option<Multiplexed<S>> {
        let mut shared = self.0.borrow_mut();
        if shared.len() <= target.id {
            shared.resize_with(target.id + 1, Vec::new);
        }
        let place = new.join(now);
        shared[target.id].push(new);
        place
    }

    /// Closes those that nobody used since then.
    fn sweep(&self, then: u64) {
        for pool in self.0.borrow_mut().iter_mut() {
            pool.retain(|s| !s.is_gone() && !s.idle_since(then));
        }
    }
}

/// A new connection.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: Stream,
    /// It speaks HTTP/2, else HTTP/1.1 or bytes.
    pub(crate) two: bool,
}

/// The address of an upstream that takes datagrams.
pub(crate) async fn resolve(target: &Target, host: &str, port: u16) -> io::Result<SocketAddr> {
    match target.ip {
        Some(ip) => Ok(SocketAddr::new(ip, port)),
        None => tokio::net::lookup_host((host, port))
            .await?
            .next()
            .ok_or_else(|| io::Error::other("the name has no address")),
    }
}

/// How a connection is made.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    /// It does not settle on HTTP/2.
    pub(crate) only_one: bool,
    /// A workspace or a machine that sleeps is left asleep.
    pub(crate) let_sleep: bool,
}

/// Makes a connection, encrypted where that is asked for.
pub(crate) async fn connect(target: &Target, limit: Duration, how: How) -> Result<Connected, AcquireError> {
    match tokio::time::timeout(limit, make(target, how)).await {
        Ok(Ok(connected)) => {
            target.worked();
            if target.speak == Speak::Two && !connected.two {
                return Err(AcquireError::NotTwo(target.name.clone()));
            }
            Ok(connected)
        }
        Ok(Err(asleep @ AcquireError::Asleep(_))) => Err(asleep),
        Ok(Err(e)) => {
            target.failed();
            Err(e)
        }
        Err(_) => {
            target.failed();
            Err(if is_name(&target.address) {
                AcquireError::Unavailable(target.name.clone(), format!("not awake and connected within {limit:?}"))
            } else {
                AcquireError::TimedOut(target.name.clone())
            })
        }
    }
}

async fn make(target: &Target, how: How) -> Result<Connected, AcquireError> {
    let plain = |stream| Connected { stream, two: target.speak == Speak::Two };
    let failed = |e| AcquireError::Connect(target.name.clone(), e);
    match &target.address {
        UpstreamAddress::Unix(path) => UnixStream::connect(path).await.map(|s| plain(Stream::Unix(s))).map_err(failed),
        UpstreamAddress::Tcp { host, port } => dial(target, host, *port, how).await.map_err(failed),
        name @ (UpstreamAddress::Workspace { .. } | UpstreamAddress::Machine { .. }) => {
            match super::names::connect(&target.names, name, !how.let_sleep).await {
                Ok(stream) => Ok(plain(stream)),
                Err(Unreached::Asleep) => Err(AcquireError::Asleep(target.name.clone())),
                Err(Unreached::Refused(reason)) => Err(failed(io::Error::other(reason))),
                Err(Unreached::Unavailable(reason)) => Err(AcquireError::Unavailable(target.name.clone(), reason)),
            }
        }
    }
}

async fn dial(target: &Target, host: &str, port: u16, how: How) -> io::Result<Connected> {
    if target.speak == Speak::Three {
        return Err(io::Error::other("it speaks HTTP/3, which no stream carries"));
    }
    let tcp = match target.ip {
        Some(ip) => TcpStream::connect((ip, port)).await?,
        None => TcpStream::connect((host, port)).await?,
    };
    tcp.set_nodelay(true)?;
    let Some(secure) = target.secure() else {
        return Ok(Connected { stream: Stream::Tcp(tcp), two: target.speak == Speak::Two });
    };
    let config = if how.only_one { &secure.one } else { &secure.any };
    let stream = TlsConnector::from(Arc::clone(config)).connect(secure.name.clone(), tcp).await?;
    let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Connected { stream: Stream::Secure(Box::new(stream)), two })
}
