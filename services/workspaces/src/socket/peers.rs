//! Who may connect, how often at once, and how fast they may ask.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests a second that one user may ask in the long run; as many at once after a pause.
const RATE: f64 = 5000.0;
/// Connections of one user at once.
const CONNECTIONS_MAX: usize = 512;
/// The group whose members may use the socket.
const GROUP: &str = "shipote";

/// Requests of one user: a bucket that holds one second of the rate and starts full. Who takes more than there is
/// waits the debt off.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Bucket { level: RATE, at: now }
    }

    /// Takes one and says how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        self.level = (self.level + now.saturating_duration_since(self.at).as_secs_f64() * RATE).min(RATE) - 1.0;
        self.at = now;
        if self.level >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.level / RATE) }
    }
}

#[derive(Debug)]
struct Peer {
    bucket: Bucket,
    connections: usize,
}

/// Everybody who is connected.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    own: u32,
    embedded: bool,
    table: Arc<Mutex<HashMap<u32, Peer>>>,
}

impl Peers {
    pub(super) fn new(embedded: bool) -> Self {
        Peers { own: rustix::process::getuid().as_raw(), embedded, table: Arc::default() }
    }

    /// A place for one more connection of this user, or why there is none.
    pub(super) fn admit(&self, uid: u32, gid: u32) -> Result<Seat, String> {
        if uid != 0 && uid != self.own {
            if self.embedded {
                return Err(format!("connect: uid {uid} may not; this appliance belongs to uid {}", self.own));
            }
            if !is_member(uid, gid) {
                return Err(format!(
                    "connect: uid {uid} may not; become a member of the group {GROUP}, or ask as root"
                ));
            }
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = table.entry(uid).or_insert_with(|| Peer { bucket: Bucket::new(Instant::now()), connections: 0 });
        if peer.connections >= CONNECTIONS_MAX {
            return Err(format!("connect: uid {uid} has {CONNECTIONS_MAX} connections open; close one first"));
        }
        peer.connections += 1;
        Ok(Seat { uid, table: Arc::clone(&self.table) })
    }
}

/// A connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) uid: u32,
    table: Arc<Mutex<HashMap<u32, Peer>>>,
}

impl Seat {
    /// How long the next request has to wait.
    pub(super) fn wait(&self) -> Duration {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.get_mut(&self.uid).map_or(Duration::ZERO, |peer| peer.bucket.take(Instant::now()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = table.get_mut(&self.uid) {
            // the entry stays with its bucket: a debt is not paid by connecting anew. Users are few
            peer.connections -= 1;
        }
    }
}

/// The group's number, where the host has the group.
pub(super) fn shipote_group() -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    find_group(&groups).map(|(gid, _)| gid)
}

/// Number and members.
fn find_group(groups: &str) -> Option<(u32, Vec<&str>)> {
    // group(5): name:password:gid:members
    let mut fields = groups.lines().map(|l| l.split(':')).find(|f| f.clone().next() == Some(GROUP))?.skip(2);
    let gid = fields.next()?.parse().ok()?;
    Some((gid, fields.next().unwrap_or_default().split(',').filter(|m| !m.is_empty()).collect()))
}

/// By the files of the host: reading them needs neither a name service nor the network.
fn is_member(uid: u32, gid: u32) -> bool {
    let Ok(groups) = std::fs::read_to_string("/etc/group") else { return false };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    member(&groups, &users, uid, gid)
}

fn member(groups: &str, users: &str, uid: u32, gid: u32) -> bool {
    let Some((group, members)) = find_group(groups) else { return false };
    // passwd(5): name:password:uid:gid:...
    let mut names = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    gid == group || names.any(|name| members.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_is_waited_off_and_a_pause_fills_one_second_of_rate() {
        let begun = Instant::now();
        let mut bucket = Bucket::new(begun);
        for _ in 0..RATE as usize {
            assert_eq!(bucket.take(begun), Duration::ZERO);
        }
        let wait = bucket.take(begun);
        assert!(wait > Duration::ZERO && wait < Duration::from_millis(1), "{wait:?}");
        let later = begun + Duration::from_secs(3600);
        for _ in 0..RATE as usize {
            assert_eq!(bucket.take(later), Duration::ZERO);
        }
        assert!(bucket.take(later) > Duration::ZERO);
    }

    #[test]
    fn members() {
        let groups = "root:x:0:\nshipote:x:990:anna,ben\nshipotes:x:991:carl\n";
        let users = "root:x:0:0::/:\nanna:x:1000:1000::/:\nben:x:1001:1001::/:\ncarl:x:1002:1002::/:\n";
        for (uid, gid, is) in
            [(1000, 1000, true), (1001, 7, true), (1002, 1002, false), (1003, 990, true), (990, 1, false)]
        {
            assert_eq!(member(groups, users, uid, gid), is, "{uid} {gid}");
        }
        assert!(!member("root:x:0:anna\n", users, 1000, 1000));
    }

    #[test]
    fn seats_are_limited_and_given_back() {
        let peers = Peers::new(true);
        let mut seats: Vec<Seat> = (0..CONNECTIONS_MAX).map(|_| peers.admit(0, 0).unwrap()).collect();
        assert!(peers.admit(0, 0).is_err());
        seats.pop();
        assert!(peers.admit(0, 0).is_ok());
        assert!(peers.admit(peers.own + 1, 0).is_err());
    }
}
