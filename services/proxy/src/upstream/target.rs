//! What is known about an upstream, whichever rules name it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shipote_rules::{Balance, HttpVersion, Passive, ProxyProtocol, TimeLimits, Upstream, UpstreamAddress};
use tokio::sync::mpsc;

use super::names::{self, Ask, Names};
use super::secure::Secure;

/// How long an upstream that could not be reached is passed by, while there is another one.
const PASSED_BY: Duration = Duration::from_secs(2);

/// What is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Speak {
    /// Whatever the client says.
    Bytes,
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
    /// HTTP/3.
    Three,
    /// Either, as the handshake settles.
    Either,
}

/// An upstream.
#[derive(Debug)]
pub(crate) struct Target {
    /// Index into each worker's pools; never used for another upstream.
    pub(crate) id: usize,
    pub(crate) address: UpstreamAddress,
    /// The address as text, for logs and as `Host`.
    pub(crate) name: String,
    /// Where it is, if it takes no resolver to know.
    pub(crate) ip: Option<IpAddr>,
    pub(crate) speak: Speak,
    /// It is told who the client is.
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    /// How it is encrypted to; made anew with every plan, so that changed files take effect.
    secure: Mutex<Option<Arc<Secure>>>,
    /// Requests and tunnels open now.
    pub(crate) open: AtomicUsize,
    /// Requests and tunnels in all.
    pub(crate) total: AtomicU64,
    /// Connections that could not be made.
    pub(crate) failures: AtomicU64,
    /// Until when it is passed by, milliseconds since the registry was made.
    down_until: AtomicU64,
    /// Until when requests that failed in a row keep it out; a connection that can be made is no cure for that.
    paused_until: AtomicU64,
    /// Failures in a row, for those who watch.
    streak: AtomicU32,
    /// It did not answer well when it was asked.
    unwell: AtomicBool,
    epoch: Instant,
    /// Whom to ask for a connection, where the address is a name.
    pub(super) names: Names,
}

impl Target {
    /// How to encrypt to it, where that is asked for.
    pub(crate) fn secure(&self) -> Option<Arc<Secure>> {
        self.secure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// How long a connection to it may take.
    pub(crate) fn patience(&self, limits: &TimeLimits) -> Duration {
        if names::is_name(&self.address) { limits.wake } else { limits.connect }
    }

    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
        self.down_until.store(self.now() + millis(PASSED_BY), Relaxed);
    }

    /// What became of a request, to who watches.
    pub(crate) fn outcome(&self, good: bool, passive: Option<&Passive>) {
        let Some(passive) = passive else { return };
        if good {
            self.streak.store(0, Relaxed);
        } else if self.streak.fetch_add(1, Relaxed) + 1 >= passive.failures {
            self.streak.store(0, Relaxed);
            self.paused_until.store(self.now() + millis(passive.pause), Relaxed);
        }
    }

    /// What it answered when it was asked how it is.
    pub(crate) fn set_well(&self, well: bool) {
        self.unwell.store(!well, Relaxed);
        if well {
            self.paused_until.store(0, Relaxed);
            self.worked();
        }
    }

    pub(crate) fn worked(&self) {
        if self.down_until.load(Relaxed) != 0 {
            self.down_until.store(0, Relaxed);
        }
    }

    pub(crate) fn is_down(&self) -> bool {
        let until = self.down_until.load(Relaxed).max(self.paused_until.load(Relaxed));
        self.unwell.load(Relaxed) || until != 0 && until > self.now()
    }

    fn now(&self) -> u64 {
        millis(self.epoch.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// All upstreams that any plan ever named.
#[derive(Debug)]
pub(crate) struct Registry {
    known: Mutex<HashMap<String, Arc<Target>>>,
    epoch: Instant,
    names: Names,
    /// What the workers ask for by name, until somebody takes it.
    asked: Mutex<Option<mpsc::Receiver<Ask>>>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        let (names, asked) = names::channel();
        Self { known: Mutex::default(), epoch: Instant::now(), names, asked: Mutex::new(Some(asked)) }
    }

    /// What the workers ask for by name; whoever takes it answers. None when it was taken.
    pub(crate) fn take_asked(&self) -> Option<mpsc::Receiver<Ask>> {
        self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// The upstream as a rule names it. `version` is `None` where bytes are forwarded. The error names a file.
    pub(crate) fn target(&self, upstream: &Upstream, version: Option<HttpVersion>) -> Result<Arc<Target>, String> {
        let speak = match version {
            None => Speak::Bytes,
            Some(HttpVersion::H2) => Speak::Two,
            Some(HttpVersion::H3) => Speak::Three,
            Some(HttpVersion::Auto) if upstream.tls.is_some() => Speak::Either,
            Some(_) => Speak::One,
        };
        if names::is_name(&upstream.address)
            && self.asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some()
        {
            return Err(format!("{}: nobody here knows it by name; that needs the bus", upstream.address));
        }
        let secure = Secure::new(upstream, speak)?.map(Arc::new);
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let name = upstream.address.to_string();
        let id = known.len();
        // Connections of different kinds to one address are kept apart.
        let key = format!("{name} {speak:?} {:?} {:?}", upstream.tls, upstream.proxy_protocol);
        let target = known.entry(key).or_insert_with(|| {
            let ip = match &upstream.address {
                UpstreamAddress::Tcp { host, .. } => host.parse().ok(),
                _ => None,
            };
            Arc::new(Target {
                id,
                address: upstream.address.clone(),
                name,
                ip,
                speak,
                proxy_protocol: upstream.proxy_protocol,
                secure: Mutex::default(),
                open: AtomicUsize::new(0),
                total: AtomicU64::new(0),
                failures: AtomicU64::new(0),
                down_until: AtomicU64::new(0),
                paused_until: AtomicU64::new(0),
                streak: AtomicU32::new(0),
                unwell: AtomicBool::new(false),
                epoch: self.epoch,
                names: self.names.clone(),
            })
        });
        *target.secure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = secure;
        Ok(Arc::clone(target))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Target>> {
        let known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut all: Vec<_> = known.values().cloned().collect();
        all.sort_by_key(|t| t.id);
        all
    }
}

/// What a consistent hash is taken of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Key<'k> {
    Address(IpAddr),
    Bytes(&'k [u8]),
}

/// Picks one of `targets`, leaving out those in `tried` and, while there is another, those that are down. The last one
/// is never left out for being down: it may be back, and an attempt is how one finds out.
pub(crate) fn pick<'t>(
    targets: &'t [Arc<Target>],
    balance: Balance,
    turn: usize,
    key: Key<'_>,
    tried: &[usize],
) -> Option<&'t Arc<Target>> {
    if let [only] = targets {
        return (!tried.contains(&only.id)).then_some(only);
    }
    let choose = |fit: &dyn Fn(&Target) -> bool| {
        let fitting = || targets.iter().filter(|t| !tried.contains(&t.id) && fit(t));
        match balance {
            Balance::RoundRobin => {
                let count = fitting().count();
                (count > 0).then(|| fitting().nth(turn % count)).flatten()
            }
            Balance::LeastRequests => {
                let least = fitting().map(|t| t.open.load(Relaxed)).min()?;
                let mut equal = fitting().filter(|t| t.open.load(Relaxed) == least);
                let count = equal.clone().count();
                equal.nth(turn % count.max(1))
            }
            // Rendezvous hashing: each client has an order of all upstreams, and losing one moves only its clients.
            Balance::ConsistentHash => fitting().max_by_key(|t| weigh(key, &t.name)),
        }
    };
    choose(&|t| !t.is_down()).or_else(|| choose(&|_| true))
}

/// FNV-1a over both: stable across processes, which a client's stickiness needs and `RandomState` is not.
fn weigh(key: Key<'_>, name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    match key {
        Key::Address(IpAddr::V4(v4)) => v4.octets().into_iter().for_each(&mut eat),
        Key::Address(IpAddr::V6(v6)) => v6.octets().into_iter().for_each(&mut eat),
        Key::Bytes(bytes) => bytes.iter().copied().for_each(&mut eat),
    }
    name.bytes().for_each(&mut eat);
    // The last bytes hardly reach the high bits by multiplication alone.
    hash ^= hash >> 32;
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(n: u16) -> Vec<Arc<Target>> {
        let registry = Registry::new();
        (0..n)
            .map(|i| {
                let address = UpstreamAddress::Tcp { host: "10.0.0.1".into(), port: 1000 + i };
                registry.target(&Upstream { address, tls: None, proxy_protocol: None }, Some(HttpVersion::H1)).unwrap()
            })
            .collect()
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn id(targets: &[Arc<Target>], balance: Balance, turn: usize, client: IpAddr, tried: &[usize]) -> Option<usize> {
        pick(targets, balance, turn, Key::Address(client), tried).map(|t| t.id)
    }

    #[test]
    fn turns_go_round_and_pass_by_what_is_down() {
        let all = targets(3);
        let order: Vec<_> = (0..4).filter_map(|t| id(&all, Balance::RoundRobin, t, CLIENT, &[])).collect();
        assert_eq!(order, [0, 1, 2, 0]);
        all[1].failed();
        assert!((0..6).all(|t| id(&all, Balance::RoundRobin, t, CLIENT, &[]) != Some(1)));
        all[0].failed();
        all[2].failed();
        assert!(id(&all, Balance::RoundRobin, 0, CLIENT, &[]).is_some(), "never all are left out");
        assert_eq!(id(&all, Balance::RoundRobin, 0, CLIENT, &[0, 1, 2]), None);
    }

    #[test]
    fn failures_in_a_row_take_it_out_for_a_while_but_never_the_last_one() {
        let all = targets(2);
        let passive = Passive { failures: 3, pause: Duration::from_secs(60) };
        for good in [false, false, true, false, false] {
            all[0].outcome(good, Some(&passive));
        }
        assert!(!all[0].is_down(), "never three in a row");
        all[0].outcome(false, Some(&passive));
        all[0].worked();
        assert!(all[0].is_down(), "a connection that was made does not undo it");
        assert!((0..4).all(|t| id(&all, Balance::RoundRobin, t, CLIENT, &[]) == Some(1)));
        all[1].set_well(false);
        assert!(id(&all, Balance::RoundRobin, 0, CLIENT, &[]).is_some());
        all[0].set_well(true);
        assert_eq!(id(&all, Balance::RoundRobin, 1, CLIENT, &[]), Some(0), "an answer brings it back");
    }

    #[test]
    fn the_least_busy_one_is_picked() {
        let all = targets(3);
        all[0].open.store(2, Relaxed);
        all[1].open.store(1, Relaxed);
        all[2].open.store(3, Relaxed);
        assert_eq!(id(&all, Balance::LeastRequests, 7, CLIENT, &[]), Some(1));
    }

    #[test]
    fn losing_one_moves_only_its_clients() {
        let all = targets(4);
        let client = |i: u32| IpAddr::V4((0x0a00_0000 + i).into());
        let before: Vec<_> = (0..400).map(|i| id(&all, Balance::ConsistentHash, 0, client(i), &[])).collect();
        all[2].failed();
        for (i, before) in before.iter().enumerate() {
            let after = id(&all, Balance::ConsistentHash, 0, client(i as u32), &[]);
            assert!(after == *before || *before == Some(2), "{i}");
        }
        for target in 0..4 {
            let share = before.iter().filter(|b| **b == Some(target)).count();
            assert!((40..=180).contains(&share), "{target}: {share} of 400");
        }
    }
}
