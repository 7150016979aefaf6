//! One client: its list, its figures, what it was refused, and which names it was told.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shipote_egress::{Denial, EntryError, Policy};

use super::{DenialInfo, EgressInfo};

/// Denials that are kept with their reasons, for each client.
const DENIALS: usize = 32;
/// Addresses that a client may use because it was told them for a name, and for how long after it was.
const TOLD: usize = 1024;
const TOLD_TIME: Duration = Duration::from_secs(600);

/// How a client comes here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// By a socket that was made for it, and perhaps an address.
    Socket { path: PathBuf, listen: Option<SocketAddr> },
    /// By the doors of the workspace or machine that has this id, which nobody else reaches.
    Doors { id: String },
}

#[derive(Debug)]
struct Rules {
    allow: Vec<String>,
    policy: Arc<Policy>,
    /// What is not on the list is asked about.
    ask: bool,
    /// Who may use its socket, besides root and the proxy's own user.
    users: Vec<u32>,
}

/// What the thread keeps of a client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) name: String,
    pub(super) way: Way,
    rules: Mutex<Rules>,
    pub(super) allowed: AtomicU64,
    denied: AtomicU64,
    pub(super) open: AtomicUsize,
    denials: Mutex<VecDeque<(u64, String)>>,
    told: Mutex<BTreeMap<IpAddr, (String, Instant)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since the epoch.
pub(super) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    u64::try_from(now).unwrap_or(u64::MAX)
}

impl Client {
    pub(super) fn new(name: &str, way: Way, allow: &[String], ask: bool) -> Result<Self, EntryError> {
        let rules = Rules { allow: allow.to_vec(), policy: Arc::new(Policy::parse(allow)?), ask, users: Vec::new() };
        Ok(Self {
            name: name.to_owned(),
            way,
            rules: Mutex::new(rules),
            allowed: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            denials: Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// Another list, from the next connection on.
    pub(super) fn change(&self, allow: &[String], ask: bool) -> Result<(), EntryError> {
        let policy = Arc::new(Policy::parse(allow)?);
        let mut rules = lock(&self.rules);
        (rules.allow, rules.policy, rules.ask) = (allow.to_vec(), policy, ask);
        Ok(())
    }

    /// Who may use the client's socket.
    pub(super) fn users(&self) -> Vec<u32> {
        lock(&self.rules).users.clone()
    }

    pub(super) fn set_users(&self, users: &[u32]) {
        lock(&self.rules).users = users.to_vec();
    }

    pub(super) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&lock(&self.rules).policy)
    }

    pub(super) fn asks(&self) -> bool {
        lock(&self.rules).ask
    }

    /// The list with one entry more, for one connection.
    pub(super) fn policy_with(&self, entry: &str) -> Result<Policy, EntryError> {
        let mut allow = lock(&self.rules).allow.clone();
        allow.push(entry.to_owned());
        Policy::parse(&allow)
    }

    /// Whether a user of this host may use the client's socket.
    pub(super) fn is_for(&self, uid: u32) -> bool {
        match &self.way {
            Way::Socket { .. } => {
                uid == 0 || uid == rustix::process::getuid().as_raw() || lock(&self.rules).users.contains(&uid)
            }
            Way::Doors { .. } => true,
        }
    }

    pub(super) fn deny(&self, denial: &Denial) {
        self.denied.fetch_add(1, Relaxed);
        let mut denials = lock(&self.denials);
        // A program that tries again and again says nothing new.
        if let Some(last) = denials.back_mut().filter(|(_, text)| *text == denial.text) {
            last.0 = unix_ms();
            return;
        }
        if denials.len() >= DENIALS {
            denials.pop_front();
        }
        denials.push_back((unix_ms(), denial.text.clone()));
    }

    /// What a person can do about a denial.
    pub(super) fn way_out(&self, denial: &Denial) -> String {
        match &self.way {
            Way::Doors { .. } if !denial.entry.is_empty() => {
                format!("; on the host: shipote egress allow {} {}", self.name, denial.entry)
            }
            _ => String::new(),
        }
    }

    /// The client learns that a name has these addresses: it may connect to them as it may to the name.
    pub(super) fn tell(&self, name: &str, addresses: &[IpAddr]) {
        let mut told = lock(&self.told);
        let now = Instant::now();
        if told.len() + addresses.len() > TOLD {
            told.retain(|_, (_, until)| *until > now);
        }
        for address in addresses {
            if told.len() < TOLD || told.contains_key(address) {
                told.insert(*address, (name.to_owned(), now + TOLD_TIME));
            }
        }
    }

    /// The name that the client was told this address for.
    pub(super) fn told(&self, host: &str) -> Option<String> {
        let ip: IpAddr = host.parse().ok()?;
        let told = lock(&self.told);
        told.get(&ip.to_canonical()).filter(|(_, until)| *until > Instant::now()).map(|(name, _)| name.clone())
    }

    pub(super) fn denials(&self) -> Vec<DenialInfo> {
        let denials = lock(&self.denials);
        let info = |(unix_ms, reason): &(u64, String)| DenialInfo {
            unix_ms: *unix_ms,
            client: self.name.clone(),
            reason: reason.clone(),
        };
        denials.iter().map(info).collect()
    }

    pub(super) fn info(&self) -> EgressInfo {
        let (socket, listen) = match &self.way {
            Way::Socket { path, listen } => (path.clone(), *listen),
            Way::Doors { .. } => (PathBuf::new(), None),
        };
        EgressInfo {
            client: self.name.clone(),
            socket,
            listen,
            allow: lock(&self.rules).allow.clone(),
            allowed: self.allowed.load(Relaxed),
            denied: self.denied.load(Relaxed),
            open: self.open.load(Relaxed) as u64,
            denials: lock(&self.denials).iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        Client::new("workspace:web", Way::Doors { id: "1".to_owned() }, &["a.example".to_owned()], false).unwrap()
    }

    #[test]
    fn an_address_that_was_told_for_a_name_stands_for_it() {
        let client = client();
        assert_eq!(client.told("1.1.1.1"), None);
        client.tell("a.example", &[[1, 1, 1, 1].into()]);
        assert_eq!(client.told("1.1.1.1").as_deref(), Some("a.example"));
        assert_eq!(client.told("::ffff:1.1.1.1").as_deref(), Some("a.example"));
        assert_eq!((client.told("1.1.1.2"), client.told("a.example")), (None, None));
        // however many it asks for, few are remembered
        for n in 0..=u16::MAX {
            client.tell("b.example", &[IpAddr::from([2, 2, (n >> 8) as u8, n as u8])]);
        }
        assert_eq!(lock(&client.told).len(), TOLD);
    }

    #[test]
    fn what_is_refused_again_and_again_is_counted_and_told_once() {
        let client = client();
        for _ in 0..5 {
            client.deny(&client.policy().allows("b.example", 80).unwrap_err());
        }
        for n in 0..100 {
            client.deny(&Denial::other(n.to_string()));
        }
        assert_eq!((client.info().denied, client.denials().len()), (105, DENIALS));
        let denial = client.policy().allows("b.example", 80).unwrap_err();
        assert_eq!(client.way_out(&denial), "; on the host: shipote egress allow workspace:web b.example:80");
    }
}
