//! The way out for workspaces and machines, which have no network of their own: each client has a socket, and a list
//! of the hosts that it may reach.
//!
//! On a client's socket three protocols are understood, told apart by the first byte: HTTP with `CONNECT`, HTTP with
//! whole addresses, and SOCKS5. What is asked for is compared with the client's list; then the name is resolved here,
//! the addresses are looked at (a name that leads to this host, to a private network or to a cloud's metadata is
//! refused unless the list has that address), and the connection goes to exactly an address that was looked at.
//!
//! It runs on a thread of its own, so that no client of the listeners waits for what goes out.

mod ask;
mod policy;
mod serve;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use crate::flows::{Flow, Flows};
pub use policy::EntryError;
use policy::{Denial, Policy};

/// Denials that are kept with their reasons, for each client.
const DENIALS: usize = 32;
/// Clients at most.
const CLIENTS: usize = 4096;

/// Why a client was not given its way out.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The client's name is none.
    #[error("{0:?} is no client; write \"workspace:NAME\" or \"machine:NAME\"")]
    Client(String),
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
    /// `workspace:NAME` or `machine:NAME`.
    pub client: String,
    /// Its socket.
    pub socket: PathBuf,
    /// The address that it has besides, if any.
    pub listen: Option<SocketAddr>,
    /// What it may reach, as it was given.
    pub allow: Vec<String>,
    /// Connections that were let out.
    pub allowed: u64,
    /// Those that were not.
    pub denied: u64,
    /// Connections open now.
    pub open: u64,
    /// The last denials, oldest first: milliseconds since the epoch, and the reason.
    pub denials: Vec<(u64, String)>,
}

/// What the thread keeps of a client.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    socket: PathBuf,
    listen: Option<SocketAddr>,
    list: Mutex<(Vec<String>, Arc<Policy>)>,
    allowed: AtomicU64,
    denied: AtomicU64,
    open: AtomicUsize,
    denials: Mutex<VecDeque<(u64, String)>>,
}

impl Client {
    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.list.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    fn deny(&self, denial: &Denial) {
        self.denied.fetch_add(1, Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        if denials.len() >= DENIALS {
            denials.pop_front();
        }
        denials.push_back((u64::try_from(now).unwrap_or(u64::MAX), denial.0.clone()));
    }

    fn info(&self) -> EgressInfo {
        EgressInfo {
            client: self.name.clone(),
            socket: self.socket.clone(),
            listen: self.listen,
            allow: self.list.lock().unwrap_or_else(PoisonError::into_inner).0.clone(),
            allowed: self.allowed.load(Relaxed),
            denied: self.denied.load(Relaxed),
            open: self.open.load(Relaxed) as u64,
            denials: self.denials.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect(),
        }
    }
}

enum Command {
    Open(Arc<Client>, std::os::unix::net::UnixListener, Option<std::net::TcpListener>),
    Close(String),
}

/// The ways out.
#[derive(Debug)]
pub struct Egress {
    dir: PathBuf,
    commands: mpsc::UnboundedSender<Command>,
    clients: Mutex<BTreeMap<String, Arc<Client>>>,
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
    /// remembered.
    ///
    /// # Errors
    /// The folder or the thread could not be made.
    pub fn start(dir: &Path, flows: usize) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        // Nobody has to list the sockets, but whoever is handed one must be able to reach it.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))?;
        let (commands, receiver) = mpsc::unbounded_channel();
        let flows = Arc::new(Flows::new(flows));
        let theirs = Arc::clone(&flows);
        std::thread::Builder::new().name("egress".to_owned()).spawn(move || serve::run(receiver, theirs))?;
        Ok(Self { dir: dir.to_path_buf(), commands, clients: Mutex::default(), flows })
    }

    /// Gives a client its way out, or another list. Open connections go on. Returns the client's socket.
    ///
    /// # Errors
    /// [`EgressError`]; nothing was changed.
    pub fn set(&self, name: &str, allow: &[String], listen: Option<SocketAddr>) -> Result<PathBuf, EgressError> {
        let file = file_name(name).ok_or_else(|| EgressError::Client(name.to_owned()))?;
        let policy = Arc::new(Policy::parse(allow)?);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(name)
            && (listen.is_none() || client.listen == listen)
        {
            *client.list.lock().unwrap_or_else(PoisonError::into_inner) = (allow.to_vec(), policy);
            return Ok(client.socket.clone());
        }
        if clients.len() >= CLIENTS {
            return Err(EgressError::TooMany);
        }
        let socket = self.dir.join(file);
        let failed = |what: String| move |source| EgressError::Listen { what, source };
        let tcp = listen
            .map(|address| {
                let bound = std::net::TcpListener::bind(address);
                bound.and_then(|l| l.set_nonblocking(true).map(|()| l)).map_err(failed(address.to_string()))
            })
            .transpose()?;
        let unix = bind(&socket).map_err(failed(socket.display().to_string()))?;
        let listen = tcp.as_ref().and_then(|l| l.local_addr().ok());
        if clients.remove(name).is_some() {
            let _ = self.commands.send(Command::Close(name.to_owned()));
        }
        let client = Arc::new(Client {
            name: name.to_owned(),
            socket: socket.clone(),
            listen,
            list: Mutex::new((allow.to_vec(), policy)),
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            denials: Mutex::default(),
        });
        clients.insert(name.to_owned(), Arc::clone(&client));
        // The thread lives as long as this does.
        let _ = self.commands.send(Command::Open(client, unix, tcp));
        Ok(socket)
    }

    /// Takes a client's way out away, with all of its connections; whether it had one.
    pub fn remove(&self, name: &str) -> bool {
        let removed = self.clients.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let Some(client) = removed else { return false };
        let _ = self.commands.send(Command::Close(name.to_owned()));
        if let Err(e) = std::fs::remove_file(&client.socket) {
            tracing::warn!("remove {}: {e}", client.socket.display());
        }
        true
    }

    /// The clients, by name.
    #[must_use]
    pub fn list(&self) -> Vec<EgressInfo> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).values().map(|c| c.info()).collect()
    }

    /// The last connections, oldest first.
    #[must_use]
    pub fn flows(&self, count: usize) -> Vec<Flow> {
        self.flows.last(count)
    }
}

/// Binds in place of a socket that an earlier run left. Whoever can reach it may use it.
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
