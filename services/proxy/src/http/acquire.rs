//! A connection to one of a rule's upstreams.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use shipote_rules::{HashOn, ProxySpec, TerminatorId};

use crate::http1::exchange::Ended;
use crate::http1::request::RequestHead;
use crate::io::{Io, Slot};
use crate::plan::Plan;
use crate::upstream::{
    AcquireError, Connected, How, Key, Multiplexed, Requests, Shared, Speak, Target, Used, connect, pick,
};
use crate::walk::Peer;
use crate::worker::Worker;

/// What is asked for.
pub(crate) struct Want<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) plan: &'a Plan,
    pub(crate) spec: &'a ProxySpec,
    pub(crate) terminator: TerminatorId,
    pub(crate) slot: &'a Rc<Slot>,
    pub(crate) key: Key<'a>,
    /// Upstreams that failed this request already.
    pub(crate) avoid: &'a [usize],
    /// Sending the request twice does no harm.
    pub(crate) repeatable: bool,
    /// No connection that carried a request before.
    pub(crate) fresh: bool,
    /// HTTP/1.1 only.
    pub(crate) only_one: bool,
}

/// A connection that carries this request.
pub(crate) enum Link {
    One {
        io: Io,
        target: Arc<Target>,
        /// How many requests it carried before this one.
        served: u32,
    },
    Two {
        place: Multiplexed<h2::client::SendRequest<Bytes>>,
        target: Arc<Target>,
    },
    Three {
        place: Multiplexed<Requests>,
        target: Arc<Target>,
    },
}

impl Link {
    pub(crate) fn target(&self) -> &Arc<Target> {
        match self {
            Self::One { target, .. } | Self::Two { target, .. } | Self::Three { target, .. } => target,
        }
    }
}

/// A connection to one of the rule's upstreams; another one is tried if one cannot be reached.
pub(crate) async fn acquire(want: &Want<'_>) -> Result<Link, Ended> {
    let Want { worker, spec, slot, .. } = want;
    let targets = &want.plan.targets[want.terminator.index()];
    let turn = worker.turn();
    let mut tried = want.avoid.to_vec();
    let mut last: Option<AcquireError> = None;
    while let Some(target) = pick(targets, spec.balance, turn, want.key, &tried) {
        if let Some(link) = idle(want, target) {
            worker.figures.reused.add(1);
            return Ok(link);
        }
        let patience = target.patience(&spec.limits);
        slot.set(patience * 2);
        if target.speak == Speak::Three {
            match three(want, target).await {
                Ok(link) => return Ok(link),
                Err(failed) => {
                    worker.figures.connect_failures.add(1);
                    tried.push(target.id);
                    last = Some(failed);
                    continue;
                }
            }
        }
        let how = How { only_one: want.only_one, ..How::default() };
        let failed = match connect(target, patience, how).await {
            Ok(Connected { stream, two: false }) => {
                worker.figures.connects.add(1);
                let io = Io::new(stream, Rc::clone(slot));
                return Ok(Link::One { io, target: Arc::clone(target), served: 0 });
            }
            Ok(Connected { stream, two: true }) => {
                worker.figures.connects.add(1);
                match Shared::start(stream).await {
                    Ok(shared) => match worker.pools.two.add(target, shared, worker.pools.now()) {
                        Some(place) => return Ok(Link::Two { place, target: Arc::clone(target) }),
                        None => AcquireError::NotTwo(target.name.clone()),
                    },
                    Err(e) => AcquireError::Connect(target.name.clone(), std::io::Error::other(e)),
                }
            }
            Err(e) => e,
        };
        worker.figures.connect_failures.add(1);
        tried.push(target.id);
        last = Some(failed);
    }
    Err(match last {
        Some(e @ AcquireError::TimedOut(_)) => Ended::owed(504, &e, &e.told()),
        Some(e @ AcquireError::Unavailable(..)) => Ended::owed(503, &e, &e.told()),
        Some(e) => Ended::owed(502, &e, &e.told()),
        None => Ended::fault(502, &"the rule has no upstream"),
    })
}

fn idle(want: &Want<'_>, target: &Arc<Target>) -> Option<Link> {
    if want.fresh {
        return None;
    }
    let pools = &want.worker.pools;
    if !want.only_one
        && matches!(target.speak, Speak::Two | Speak::Either)
        && let Some(place) = pools.two.share(target, pools.now())
    {
        return Some(Link::Two { place, target: Arc::clone(target) });
    }
    if target.speak == Speak::Three {
        let place = pools.three.share(target, pools.now())?;
        return Some(Link::Three { place, target: Arc::clone(target) });
    }
    let Used { stream, served } = pools.take(target, want.repeatable)?;
    let io = Io::new(stream, Rc::clone(want.slot));
    Some(Link::One { io, target: Arc::clone(target), served })
}

/// A new connection of HTTP/3.
async fn three(want: &Want<'_>, target: &Arc<Target>) -> Result<Link, AcquireError> {
    let Want { worker, spec, .. } = want;
    let shared = worker.dialer.connect(target, spec.limits.connect).await?;
    worker.figures.connects.add(1);
    let place = worker.pools.three.add(target, shared, worker.pools.now());
    let place = place.ok_or_else(|| AcquireError::Full(target.name.clone()))?;
    Ok(Link::Three { place, target: Arc::clone(target) })
}

/// What a consistent hash of this rule is taken of.
pub(crate) fn key<'a>(spec: &ProxySpec, peer: &Peer, head: &'a RequestHead, bytes: &'a [u8]) -> Key<'a> {
    let by_address = Key::Address(peer.remote.ip());
    match &spec.hash_on {
        HashOn::RemoteIp => by_address,
        HashOn::Path => Key::Bytes(head.path(bytes)),
        HashOn::Header(name) => {
            let mut values = head.lines.iter(bytes).filter(|(_, n, _)| n.eq_ignore_ascii_case(name.as_bytes()));
            values.next().map_or(by_address, |(_, _, value)| Key::Bytes(value))
        }
    }
}
