//! The way out for workspaces and machines, which have no network of their own: each client has a list of
//! the hosts that it may reach, and a way to here: a socket of its own, or the two doors of a workspace or a machine.
//!
//! On it three protocols are understood, told apart by the first byte: HTTP with `CONNECT`, HTTP with
//! whole addresses, and SOCKS5. What is asked for is compared with the client's list; then the name is resolved here,
//! the addresses are looked at (a name that leads to this host, to a private network or to a cloud's metadata is
//! refused unless the list has that address), and the connection goes to exactly an address that was looked at.
//!
//! What is on no list may be asked about, where the client's owner wants that ([`Question`]).
//!
//! It runs on a thread of its own, so that no client of the listeners waits for what goes out.

mod ask;
mod client;
mod names;
mod questions;
mod serve;
mod socks;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use shipote_egress::EntryError;
use tokio::sync::mpsc;

use crate::flow_log::FlowLog;
use crate::flows::{Flow, Flows};
use client::{Client, Way};
pub use questions::{ASK_TIME, Question};
use questions::{Questions, Verdict};

/// Clients at most.
const CLIENTS: usize = 4096;
/// Denials that are kept of clients that are gone.
const OF_GONE: usize = 256;

/// Why a client was not given its way out.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The client's name is none.
    #[error("{0:?} is no client; write \"workspace:NAME\" or \"machine:NAME\"")]
    Client(String),
    /// Its list is kept by the service of workspaces or of machines.
    #[error("{0} goes out by doors of its own; change its list with `shipote egress allow` and `shipote egress deny`")]
    Doors(String),
    /// The list is none.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// There are too many.
    #[error("there are {CLIENTS} clients already; remove one")]
    TooMany,
    /// The socket could not be made.
    #[error("listen on {what}: {source}")]
    Listen {
        /// The path or address.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

/// A client and how it fared.
#[derive(Debug, Clone)]
pub struct EgressInfo {
    /// `workspace:NAME`, `machine:NAME` or `session:NAME`.
    pub client: String,
    /// Its socket; empty: it comes by doors of its own.
    pub socket: PathBuf,
    /// The address that it has besides, if any.
    pub listen: Option<SocketAddr>,
    /// What it may reach, as it was given.
    pub allow: Vec<String>,
    /// Connections that were let out.
    pub allowed: u64,
    /// What was refused: connections, and queries for names.
    pub denied: u64,
    /// Connections open now.
    pub open: u64,
    /// The last denials, oldest first: milliseconds since the epoch, and the reason.
    pub denials: Vec<(u64, String)>,
}

/// Something that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenialInfo {
    /// When, milliseconds since the epoch; where the same was refused again and again, the last time.
    pub unix_ms: u64,
    /// To whom.
    pub client: String,
    /// Why, and what to allow.
    pub reason: String,
}

/// How a client comes to its socket.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// An address besides the socket, for whoever reaches it.
    pub listen: Option<SocketAddr>,
    /// Users of this host that may use the socket, besides root and the proxy's own.
    pub users: Vec<u32>,
}

/// What a workspace that goes out has in its own network, or a machine at the host's end of its vsock.
#[derive(Debug)]
pub struct Doors {
    /// Listens for connections to a proxy, by TCP or as a Unix socket.
    pub proxy: OwnedFd,
    /// Of the same family. Gets queries for names: by UDP, or one a connection, with its length before it.
    pub names: OwnedFd,
}

/// How queries for names come.
#[derive(Debug)]
enum Queries {
    Datagrams(std::net::UdpSocket),
    Connections(std::os::unix::net::UnixListener),
}

#[derive(Debug, Default)]
struct Listeners {
    unix: Option<std::os::unix::net::UnixListener>,
    tcp: Option<std::net::TcpListener>,
    names: Option<Queries>,
}

enum Command {
    Open(Arc<Client>, Listeners),
    Close(String),
}

/// The ways out.
#[derive(Debug)]
pub struct Egress {
    dir: PathBuf,
    commands: mpsc::UnboundedSender<Command>,
    clients: Mutex<BTreeMap<String, Arc<Client>>>,
    gone: Mutex<VecDeque<DenialInfo>>,
    questions: Arc<Questions>,
    news: Mutex<Option<mpsc::Receiver<Question>>>,
    flows: Arc<Flows>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open(client, ..) => write!(f, "Open({})", client.name),
            Self::Close(name) => write!(f, "Close({name})"),
        }
    }
}

impl Egress {
    /// Starts the thread; sockets will lie in `dir`, which is made if it is not there. `flows` is how many are
    /// remembered; they also go to `log`.
    ///
    /// # Errors
    /// The folder or the thread could not be made.
    pub fn start(dir: &Path, flows: usize, log: Option<FlowLog>) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        // Nobody has to list the sockets, but whoever is handed one must be able to reach it.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))?;
        let (commands, receiver) = mpsc::unbounded_channel();
        let (questions, news) = Questions::new();
        let (flows, questions) = (Arc::new(Flows::new(flows, log)), Arc::new(questions));
        let theirs = (Arc::clone(&flows), Arc::clone(&questions));
        std::thread::Builder::new().name("egress".to_owned()).spawn(move || serve::run(receiver, theirs))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            commands,
            clients: Mutex::default(),
            gone: Mutex::default(),
            questions,
            news: Mutex::new(Some(news)),
            flows,
        })
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges a client's name and list as [`Egress::set`] would, and changes nothing.
    ///
    /// # Errors
    /// [`EgressError::Client`], [`EgressError::Entry`].
    pub fn judge(name: &str, allow: &[String]) -> Result<(), EgressError> {
        file_name(name).ok_or_else(|| EgressError::Client(name.to_owned()))?;
        shipote_egress::Policy::parse(allow)?;
        Ok(())
    }

    /// Gives a client a socket as its way out, or changes its list. Open connections go on. Returns the socket.
    ///
    /// # Errors
    /// [`EgressError`]; nothing was changed.
    pub fn set(&self, name: &str, allow: &[String], access: &Access) -> Result<PathBuf, EgressError> {
        let file = file_name(name).ok_or_else(|| EgressError::Client(name.to_owned()))?;
        let mut clients = self.clients();
        match clients.get(name).map(|client| (client, &client.way)) {
            Some((_, Way::Doors { .. })) => return Err(EgressError::Doors(name.to_owned())),
            Some((client, Way::Socket { path, listen })) if access.listen.is_none() || *listen == access.listen => {
                client.change(allow, false)?;
                client.set_users(&access.users);
                return Ok(path.clone());
            }
            Some(_) => {}
            None if clients.len() >= CLIENTS => return Err(EgressError::TooMany),
            None => {}
        }
        let path = self.dir.join(file);
        // Before anything is bound: a list that is none must not cost a client its socket.
        shipote_egress::Policy::parse(allow)?;
        let failed = |what: String| move |source| EgressError::Listen { what, source };
        let tcp = access
            .listen
            .map(|address| {
                let bound = std::net::TcpListener::bind(address);
                bound.and_then(|l| l.set_nonblocking(true).map(|()| l)).map_err(failed(address.to_string()))
            })
            .transpose()?;
        let unix = bind(&path).map_err(failed(path.display().to_string()))?;
        let listen = tcp.as_ref().and_then(|l| l.local_addr().ok());
        let client = Client::new(name, Way::Socket { path: path.clone(), listen }, allow, false)?;
        client.set_users(&access.users);
        self.put(&mut clients, client, Listeners { unix: Some(unix), tcp, names: None });
        Ok(path)
    }

    /// Serves the doors of a workspace or a machine. One of the same name that was served before is gone.
    ///
    /// # Errors
    /// [`EgressError`]; nothing was changed.
    pub fn adopt(&self, name: &str, id: &str, doors: Doors, allow: &[String], ask: bool) -> Result<(), EgressError> {
        let client = Client::new(name, Way::Doors { id: id.to_owned() }, allow, ask)?;
        let failed = |source| EgressError::Listen { what: format!("the doors of {name}"), source };
        let listeners = listeners(doors).map_err(failed)?;
        self.remove(name);
        let mut clients = self.clients();
        if clients.len() >= CLIENTS {
            return Err(EgressError::TooMany);
        }
        self.put(&mut clients, client, listeners);
        Ok(())
    }

    /// The clients that come by sockets: name, list, and who may use it.
    #[must_use]
    pub fn sockets(&self) -> Vec<(String, Vec<String>, Access)> {
        let socket = |c: &Arc<Client>| match &c.way {
            Way::Socket { listen, .. } => {
                Some((c.name.clone(), c.info().allow, Access { listen: *listen, users: c.users() }))
            }
            Way::Doors { .. } => None,
        };
        self.clients().values().filter_map(socket).collect()
    }

    /// Another list for somebody whose doors are served; false: they are not.
    ///
    /// # Errors
    /// The list is none.
    pub fn change(&self, id: &str, allow: &[String], ask: bool) -> Result<bool, EgressError> {
        let is = |c: &&Arc<Client>| matches!(&c.way, Way::Doors { id: own } if own == id);
        let Some(client) = self.clients().values().find(is).cloned() else { return Ok(false) };
        client.change(allow, ask)?;
        self.questions.listed(&client.name, &client.policy());
        Ok(true)
    }

    /// Those whose doors are served: name as a client, and id.
    #[must_use]
    pub fn adopted(&self) -> Vec<(String, String)> {
        let doors = |c: &Arc<Client>| match &c.way {
            Way::Doors { id } => Some((c.name.clone(), id.clone())),
            Way::Socket { .. } => None,
        };
        self.clients().values().filter_map(doors).collect()
    }

    fn put(&self, clients: &mut BTreeMap<String, Arc<Client>>, client: Client, listeners: Listeners) {
        let client = Arc::new(client);
        if clients.insert(client.name.clone(), Arc::clone(&client)).is_some() {
            let _ = self.commands.send(Command::Close(client.name.clone()));
        }
        // The thread lives as long as this does.
        let _ = self.commands.send(Command::Open(client, listeners));
    }

    /// Takes a client's way out away, with all of its connections; whether it had one.
    pub fn remove(&self, name: &str) -> bool {
        let Some(client) = self.clients().remove(name) else { return false };
        let _ = self.commands.send(Command::Close(name.to_owned()));
        if let Way::Socket { path, .. } = &client.way
            && let Err(e) = std::fs::remove_file(path)
        {
            tracing::warn!("remove {}: {e}", path.display());
        }
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.extend(client.denials());
        let over = gone.len().saturating_sub(OF_GONE);
        gone.drain(..over);
        true
    }

    /// The clients, by name.
    #[must_use]
    pub fn list(&self) -> Vec<EgressInfo> {
        self.clients().values().map(|c| c.info()).collect()
    }

    /// The last denials, oldest first, also of clients that are gone.
    #[must_use]
    pub fn denials(&self) -> Vec<DenialInfo> {
        let mut all: Vec<DenialInfo> =
            self.gone.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        all.extend(self.clients().values().flat_map(|c| c.denials()));
        all.sort_by_key(|denial| denial.unix_ms);
        all
    }

    /// What connections are held for, oldest first.
    #[must_use]
    pub fn questions(&self) -> Vec<Question> {
        self.questions.list()
    }

    /// Lets the connections of a question out, or not; the question, if it was still open. Its client's list stays as
    /// it is.
    #[must_use]
    pub fn answer(&self, id: u64, allow: bool) -> Option<Question> {
        self.questions.answer(id, if allow { Verdict::Once } else { Verdict::Denied })
    }

    /// New questions as they are asked; once.
    #[must_use]
    pub fn take_news(&self) -> Option<mpsc::Receiver<Question>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The last connections, oldest first.
    #[must_use]
    pub fn flows(&self, count: usize) -> Vec<Flow> {
        self.flows.last(count)
    }
}

/// Doors as what they are by their family.
fn listeners(Doors { proxy, names }: Doors) -> io::Result<Listeners> {
    rustix::io::ioctl_fionbio(&proxy, true)?;
    rustix::io::ioctl_fionbio(&names, true)?;
    if rustix::net::sockopt::socket_domain(&proxy)? == rustix::net::AddressFamily::UNIX {
        return Ok(Listeners { unix: Some(proxy.into()), tcp: None, names: Some(Queries::Connections(names.into())) });
    }
    Ok(Listeners { unix: None, tcp: Some(proxy.into()), names: Some(Queries::Datagrams(names.into())) })
}

/// Binds in place of a socket that an earlier run left. Everybody may connect; who is served is looked at then.
fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// `workspace:web` lies at `workspace-web.sock`: kinds have no hyphen, so no two clients share a file.
fn file_name(name: &str) -> Option<String> {
    let (kind, rest) = name.split_once(':')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = matches!(kind, "workspace" | "machine" | "session")
        && !rest.is_empty()
        && rest.len() <= 64
        && rest.bytes().all(plain)
        && !rest.starts_with('.');
    good.then(|| format!("{kind}-{rest}.sock"))
}
