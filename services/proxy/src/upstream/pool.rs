//! A worker's idle connections, and how new ones are made.
//!
//! A server may close an idle connection at any moment, so one that is taken out again is looked at first, and a
//! request that cannot be repeated gets only one that was in use a moment ago or a new one.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use shipote_rules::UpstreamAddress;
use tokio::net::{TcpStream, UnixStream};

use super::Target;
use crate::io::{Clock, Stream};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcquireError {
    #[error("connect to {0}: {1}")]
    Connect(String, io::Error),
    #[error("connect to {0}: no answer within the time limit")]
    TimedOut(String),
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
#[derive(Debug)]
pub(crate) struct Pools {
    idle: RefCell<Vec<Vec<Idle>>>,
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
        Self { idle: RefCell::default(), clock, most, keep: keep.as_millis() as u64 }
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
            let Idle { used, .. } = pool.remove(at);
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

    /// Closes what was idle for too long.
    pub(crate) fn sweep(&self) {
        let now = self.clock.coarse();
        for pool in self.idle.borrow_mut().iter_mut() {
            pool.retain(|idle| now.saturating_sub(idle.since) <= self.keep);
        }
    }
}

/// Makes a connection.
pub(crate) async fn connect(target: &Target, limit: Duration) -> Result<Stream, AcquireError> {
    let connecting = async {
        match &target.address {
            UpstreamAddress::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            UpstreamAddress::Tcp { host, port } => {
                let stream = match target.ip {
                    Some(ip) => TcpStream::connect((ip, *port)).await?,
                    None => TcpStream::connect((host.as_str(), *port)).await?,
                };
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            other => Err(io::Error::other(format!("{other} cannot be reached by address"))),
        }
    };
    match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(stream)) => {
            target.worked();
            Ok(stream)
        }
        Ok(Err(e)) => {
            target.failed();
            Err(AcquireError::Connect(target.name.clone(), e))
        }
        Err(_) => {
            target.failed();
            Err(AcquireError::TimedOut(target.name.clone()))
        }
    }
}
