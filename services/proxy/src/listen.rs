//! The sockets that the workers listen on: where they come from, and who else holds them.
//!
//! A socket unit's are handed over by the service manager and stay open for good. The proxy's own are opened here, one
//! for each worker, and a duplicate of each is left with a [`Keeper`]: a proxy that is killed or restarted leaves
//! sockets that still listen, the kernel queues who connects meanwhile, and the next instance takes them up.
//!
//! Invariant: no socket listens that no worker takes from, but for the time when no instance runs. What was kept and is
//! not wanted any more is let go of as soon as rules hold that do not name it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use shipote_rules::{ListenSpec, Transport};
use socket2::{Domain, Protocol, Socket, Type};

/// Who keeps sockets for the next instance.
pub trait Keeper: Send + Sync {
    /// Keeps a duplicate under a name of its own, until it is forgotten. False: it has no room, or no store at all.
    fn keep(&self, name: &str, socket: BorrowedFd<'_>) -> bool;

    /// Closes what it keeps under this name.
    fn forget(&self, name: &str);
}

/// A socket that somebody else opened.
#[derive(Debug)]
pub struct Handed {
    /// The socket: a TCP listener, or one for datagrams.
    pub socket: OwnedFd,
    /// The name under which an earlier instance had it kept; none for one of a socket unit.
    pub kept: Option<String>,
}

/// What the engine begins with.
#[derive(Default)]
pub struct Inherited {
    /// Sockets of a socket unit, and those that an earlier instance left.
    pub sockets: Vec<Handed>,
    /// Who keeps them for the next one.
    pub keeper: Option<Box<dyn Keeper>>,
}

/// A socket for a worker.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) worker: usize,
    pub(crate) socket: Socket,
    /// The name under which it is kept already.
    kept: Option<String>,
}

#[derive(Default)]
pub(crate) struct Listeners {
    keeper: Option<Box<dyn Keeper>>,
    /// Of socket units, by address.
    units: BTreeMap<ListenSpec, Vec<Socket>>,
    /// Left by the instance before, until rules hold.
    left: BTreeMap<ListenSpec, Vec<(String, Socket)>>,
    /// What is kept now, by address.
    kept: BTreeMap<ListenSpec, Vec<String>>,
    /// The number of the next name.
    next: u64,
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").field("units", &self.units).field("left", &self.left).finish_non_exhaustive()
    }
}

/// What the names of kept sockets begin with; a number follows.
const PREFIX: &str = "listen.";

/// Whether this name is one under which the engine has a socket kept.
#[must_use]
pub fn is_kept_name(name: &str) -> bool {
    number(name).is_some()
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

impl Listeners {
    pub(crate) fn new(inherited: Inherited) -> io::Result<Self> {
        let mut this = Self { keeper: inherited.keeper, ..Self::default() };
        for Handed { socket, kept } in inherited.sockets {
            let socket = Socket::from(socket);
            socket.set_nonblocking(true)?;
            let spec = spec_of(&socket)?;
            match kept {
                None => this.units.entry(spec).or_default().push(socket),
                Some(name) => {
                    this.next = this.next.max(number(&name).map_or(0, |n| n.saturating_add(1)));
                    this.left.entry(spec).or_default().push((name, socket));
                }
            }
        }
        Ok(this)
    }

    /// Which sockets these addresses need. A socket unit's `ListenStream=443` takes both families, so that it stands
    /// for `0.0.0.0:443` as well.
    pub(crate) fn physical(&self, wanted: &[ListenSpec]) -> Vec<ListenSpec> {
        let both = |spec: &ListenSpec| {
            let six =
                ListenSpec { address: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), spec.address.port()), ..*spec };
            let unit = self.units.get(&six.socket())?.first()?;
            let own = self.units.contains_key(&spec.socket());
            let any = spec.address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && !own;
            (any && !unit.only_v6().unwrap_or(true)).then_some(six)
        };
        let all: BTreeSet<ListenSpec> = wanted.iter().map(|spec| both(spec).unwrap_or(*spec)).collect();
        all.into_iter().collect()
    }

    /// The sockets of an address for so many workers. None is left over: a socket that listens has a worker.
    pub(crate) fn open(&mut self, spec: ListenSpec, workers: usize) -> io::Result<Vec<Opened>> {
        if let Some(unit) = self.units.get(&spec.socket()) {
            // Connections can be taken by anybody; the datagrams of a client belong to one worker.
            let count = if spec.transport == Transport::Tcp { workers.max(unit.len()) } else { unit.len() };
            let each = (0..count).map(|i| {
                let socket = unit[i % unit.len()].try_clone()?;
                Ok(Opened { worker: i % workers, socket, kept: None })
            });
            return each.collect();
        }
        let left = self.left.remove(&spec.socket()).unwrap_or_default().into_iter();
        let mut opened: Vec<Opened> = left
            .enumerate()
            .map(|(i, (name, socket))| Opened { worker: i % workers, socket, kept: Some(name) })
            .collect();
        while opened.len() < workers {
            match bind(spec) {
                Ok(socket) => opened.push(Opened { worker: opened.len(), socket, kept: None }),
                Err(e) => {
                    self.give_back(spec, opened);
                    return Err(e);
                }
            }
        }
        Ok(opened)
    }

    /// The rules that these were opened for do not hold: what the instance before left goes on waiting.
    pub(crate) fn give_back(&mut self, spec: ListenSpec, opened: Vec<Opened>) {
        let named = opened.into_iter().filter_map(|o| Some((o.kept?, o.socket)));
        self.left.entry(spec.socket()).or_default().extend(named);
    }

    /// The rules hold that these were opened for: from now on the keeper has them, too.
    pub(crate) fn keep(&mut self, spec: ListenSpec, opened: &[Opened]) {
        if self.units.contains_key(&spec.socket()) {
            return;
        }
        let mut names: Vec<String> = Vec::with_capacity(opened.len());
        for one in opened {
            let Some(keeper) = &self.keeper else { return };
            let name = one.kept.clone().unwrap_or_else(|| format!("{PREFIX}{}", self.next));
            if one.kept.is_none() && !keeper.keep(&name, one.socket.as_fd()) {
                let address = spec.address;
                tracing::warn!("{address} is not kept for the next instance, which refuses connections until it is up");
                continue;
            }
            self.next = self.next.max(number(&name).map_or(0, |n| n.saturating_add(1)));
            names.push(name);
        }
        self.kept.insert(spec, names);
    }

    /// No rule listens there any more.
    pub(crate) fn close(&mut self, spec: &ListenSpec) {
        let names = self.kept.remove(spec).unwrap_or_default();
        self.forget(names);
    }

    /// Rules hold: what the instance before left and nobody listens on is closed, and units without rules are named.
    pub(crate) fn settle(&mut self, listening: &[ListenSpec]) {
        let left = std::mem::take(&mut self.left);
        self.forget(left.into_values().flatten().map(|(name, _)| name));
        for spec in self.units.keys().filter(|unit| !listening.iter().any(|spec| spec.socket() == **unit)) {
            let (kind, address) = (spec.transport.name(), spec.address);
            tracing::warn!(
                "the service manager listens on {kind} {address}, which no rule names: who connects there waits"
            );
        }
    }

    fn forget(&self, names: impl IntoIterator<Item = String>) {
        if let Some(keeper) = &self.keeper {
            names.into_iter().for_each(|name| keeper.forget(&name));
        }
    }
}

/// The address by which rules know what came in on a socket that takes both families.
pub(crate) fn logical(listener: SocketAddr, remote: SocketAddr) -> SocketAddr {
    match (listener.ip(), remote.ip()) {
        (IpAddr::V6(any), IpAddr::V6(from)) if any.is_unspecified() && from.to_ipv4_mapped().is_some() => {
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listener.port())
        }
        _ => listener,
    }
}

fn spec_of(socket: &Socket) -> io::Result<ListenSpec> {
    let transport = if socket.r#type()? == Type::DGRAM { Transport::Udp } else { Transport::Tcp };
    let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("a socket without an address"))?;
    Ok(ListenSpec { transport, address })
}

/// Each worker has a socket of its own. The kernel spreads connections, and sends a client's datagrams to the same one
/// each time.
fn bind(spec: ListenSpec) -> io::Result<Socket> {
    let address = spec.address;
    let (kind, protocol) = match spec.transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp | Transport::Quic => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if spec.transport == Transport::Tcp {
        socket.set_reuse_address(true)?;
    }
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if spec.transport == Transport::Tcp {
        socket.listen(4096)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A store of descriptors, as a service manager has one.
    #[derive(Clone, Default)]
    struct Store(Arc<Mutex<BTreeMap<String, OwnedFd>>>);

    impl Keeper for Store {
        fn keep(&self, name: &str, socket: BorrowedFd<'_>) -> bool {
            self.0.lock().unwrap().insert(name.to_owned(), socket.try_clone_to_owned().unwrap());
            true
        }

        fn forget(&self, name: &str) {
            self.0.lock().unwrap().remove(name);
        }
    }

    impl Store {
        fn next(&self) -> Listeners {
            let sockets = self.0.lock().unwrap();
            let sockets =
                sockets.iter().map(|(name, fd)| Handed { socket: fd.try_clone().unwrap(), kept: Some(name.clone()) });
            let keeper: Option<Box<dyn Keeper>> = Some(Box::new(self.clone()));
            Listeners::new(Inherited { sockets: sockets.collect(), keeper }).unwrap()
        }

        fn names(&self) -> Vec<String> {
            self.0.lock().unwrap().keys().cloned().collect()
        }
    }

    fn free() -> ListenSpec {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        ListenSpec { transport: Transport::Tcp, address }
    }

    /// Opens it for rules that hold; by which worker each socket is taken from.
    fn serve(listeners: &mut Listeners, spec: ListenSpec, workers: usize) -> Vec<usize> {
        let opened = listeners.open(spec, workers).unwrap();
        listeners.keep(spec, &opened);
        opened.iter().map(|o| o.worker).collect()
    }

    #[test]
    fn the_next_instance_takes_up_what_the_one_before_listened_on() {
        let (store, a, b) = (Store::default(), free(), free());
        let mut first = store.next();
        assert_eq!(serve(&mut first, a, 2), [0, 1]);
        serve(&mut first, b, 2);
        first.settle(&[a, b]);
        assert_eq!(store.names(), ["listen.0", "listen.1", "listen.2", "listen.3"]);
        drop(first);
        assert!(std::net::TcpStream::connect(a.address).is_ok(), "somebody still listens");

        let mut second = store.next();
        assert_eq!(serve(&mut second, a, 3), [0, 1, 2], "two are taken up, one is new");
        assert_eq!(store.names().len(), 5);
        second.settle(&[a]);
        assert_eq!(store.names(), ["listen.0", "listen.1", "listen.4"], "what nobody wants is let go of");
        assert!(std::net::TcpStream::connect(b.address).is_err());
        second.close(&a);
        assert!(store.names().is_empty());
    }

    #[test]
    fn fewer_workers_share_all_that_is_left() {
        let (store, a) = (Store::default(), free());
        serve(&mut store.next(), a, 3);
        assert_eq!(serve(&mut store.next(), a, 2), [0, 1, 0], "none listens without a worker");
    }

    #[test]
    fn a_units_socket_is_shared_and_stands_for_both_families() {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0).into()).unwrap();
        socket.listen(8).unwrap();
        let six = spec_of(&socket).unwrap();
        let port = six.address.port();
        let four = ListenSpec { address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), ..six };
        let sockets = vec![Handed { socket: socket.into(), kept: None }];
        let store = Store::default();
        let mut listeners = Listeners::new(Inherited { sockets, keeper: Some(Box::new(store.clone())) }).unwrap();
        assert_eq!(listeners.physical(&[four, six]), [six]);
        assert_eq!(listeners.physical(&[four]), [six]);
        assert_eq!(serve(&mut listeners, six, 2), [0, 1]);
        assert!(store.names().is_empty(), "the unit keeps its own");
        assert_eq!(logical(six.address, "[::ffff:10.0.0.1]:9".parse().unwrap()), four.address);
        assert_eq!(logical(six.address, "[2001:db8::1]:9".parse().unwrap()), six.address);
        assert_eq!(logical("127.0.0.1:80".parse().unwrap(), "127.0.0.1:9".parse().unwrap()).port(), 80);
    }

    #[test]
    fn rules_that_do_not_hold_cost_nothing_that_is_kept() {
        let (store, a) = (Store::default(), free());
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let other = ListenSpec { transport: Transport::Tcp, address: taken.local_addr().unwrap() };
        assert!(store.next().open(other, 1).is_err());
        assert!(store.names().is_empty());
        serve(&mut store.next(), a, 1);
        let mut next = store.next();
        let opened = next.open(a, 2).unwrap();
        next.give_back(a, opened);
        assert_eq!(store.names(), ["listen.0"], "it waits for rules that hold");
        assert_eq!(serve(&mut next, a, 1), [0]);
    }
}
