//! Which host ids a workspace gets (user_namespaces(7)).

use std::collections::HashSet;
use std::fs;
use std::io;

use rustix::thread::CapabilitySet;

use crate::keeper::WORK;

/// How the spawner gives out ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpawnerConfig {
    /// First host uid and gid of the ranges that workspaces get where the caller may set ids.
    pub first_id: u32,
    /// How many ranges of 65,536 ids there are from there on.
    pub id_ranges: u32,
}

impl Default for SpawnerConfig {
    fn default() -> Self {
        // Above what useradd, systemd's DynamicUser and nsresourced, and subuid files use.
        Self { first_id: 0x6000_0000, id_ranges: 8192 }
    }
}

/// Ids in one range.
const RANGE: u32 = 65_536;

/// Who the keeper and its commands are on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A range of host ids of its own, from this one.
    Range(u32),
    /// One id only: the caller's.
    Caller { uid: u32, gid: u32 },
}

/// What the spawner gives ids from.
pub(crate) struct Ids {
    config: SpawnerConfig,
    ranged: bool,
    next: u32,
    /// Ranges of workspaces that another spawner made and that live on.
    taken: HashSet<u32>,
}

impl Ids {
    pub(crate) fn new(config: &SpawnerConfig) -> Self {
        let wanted = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let ranged = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
            && holds(config, "/proc/self/uid_map")
            && holds(config, "/proc/self/gid_map");
        // Another spawner on this host should not begin with the same range.
        let next = std::process::id().wrapping_mul(0x9e37_79b1) % config.id_ranges.max(1);
        let taken = if ranged { ranges_in_use(config) } else { HashSet::new() };
        Self { config: config.clone(), ranged, next, taken }
    }

    /// Whether each workspace gets ids of its own.
    pub(crate) fn ranged(&self) -> bool {
        self.ranged
    }

    /// Ids for one more workspace, beside those of the ranges in use.
    pub(crate) fn take(&mut self, in_use: &[Option<u32>]) -> io::Result<Identity> {
        if !self.ranged {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            // Root outside must not be the user inside.
            if uid == 0 {
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
            return Ok(Identity::Caller { uid, gid });
        }
        for _ in 0..self.config.id_ranges {
            let index = self.next;
            self.next = (index + 1) % self.config.id_ranges;
            if !self.taken.contains(&index) && !in_use.contains(&Some(index)) {
                return Ok(Identity::Range(self.config.first_id + index * RANGE));
            }
        }
        Err(io::Error::from_raw_os_error(libc::EUSERS))
    }

    /// The number of the range, to be told to `take`.
    pub(crate) fn index(&self, identity: Identity) -> Option<u32> {
        if let Identity::Range(base) = identity { Some((base - self.config.first_id) / RANGE) } else { None }
    }
}

/// The ranges that user namespaces of living processes have.
fn ranges_in_use(config: &SpawnerConfig) -> HashSet<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return HashSet::new() };
    processes
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        .filter_map(|entry| fs::read_to_string(entry.path().join("uid_map")).ok())
        .filter_map(|map| map.split_whitespace().nth(1)?.parse::<u32>().ok()?.checked_sub(config.first_id))
        .map(|offset| offset / RANGE)
        .filter(|index| *index < config.id_ranges)
        .collect()
}

/// Whether this process's own user namespace has the ids that are to be given out.
fn holds(config: &SpawnerConfig, map: &str) -> bool {
    let Some(end) = config.id_ranges.checked_mul(RANGE).and_then(|count| config.first_id.checked_add(count)) else {
        return false;
    };
    fs::read_to_string(map).is_ok_and(|text| {
        text.lines().any(|line| {
            let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
            let (first, _, count) = (fields.next(), fields.next(), fields.next());
            match (first, count) {
                (Some(first), Some(count)) => first <= u64::from(config.first_id) && u64::from(end) <= first + count,
                _ => false,
            }
        })
    })
}

/// Writes the id maps of a new user namespace (user_namespaces(7)).
pub(crate) fn map_ids(pid: i32, identity: Identity) -> io::Result<()> {
    let write = |file: &str, text: String| fs::write(format!("/proc/{pid}/{file}"), text);
    match identity {
        Identity::Range(base) => {
            write("uid_map", format!("0 {base} {RANGE}"))?;
            write("gid_map", format!("0 {base} {RANGE}"))
        }
        Identity::Caller { uid, gid } => map_one(pid, (WORK, uid), (WORK, gid)),
    }
}

/// Maps one user and one group, each inside to outside: what an ordinary user may do with its own.
pub(crate) fn map_one(pid: i32, user: (u32, u32), group: (u32, u32)) -> io::Result<()> {
    let write = |file: &str, text: String| fs::write(format!("/proc/{pid}/{file}"), text);
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{} {} 1", user.0, user.1))?;
    write("gid_map", format!("{} {} 1", group.0, group.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(taken: &[u32]) -> Ids {
        let config = SpawnerConfig { first_id: 100_000, id_ranges: 4 };
        Ids { config, ranged: true, next: 2, taken: taken.iter().copied().collect() }
    }

    #[test]
    fn ranges_go_round_and_leave_out_what_is_in_use() {
        let mut all = ids(&[]);
        let bases: Vec<u32> = (0..5)
            .map(|_| match all.take(&[]).unwrap() {
                Identity::Range(base) => base,
                Identity::Caller { .. } => panic!("one id"),
            })
            .collect();
        assert_eq!(bases, [2, 3, 0, 1, 2].map(|index| 100_000 + index * RANGE));
        let mut some = ids(&[3]);
        let taken = some.take(&[Some(2), None, Some(0)]).unwrap();
        assert_eq!((taken, some.index(taken)), (Identity::Range(100_000 + RANGE), Some(1)));
        assert_eq!(ids(&[1, 3]).take(&[Some(0), Some(2)]).unwrap_err().raw_os_error(), Some(libc::EUSERS));
    }

    #[test]
    fn a_configuration_past_the_last_id_is_not_held() {
        for (first_id, id_ranges) in [(u32::MAX, 1), (0, 65_536), (0xffff_0000, 2)] {
            assert!(!holds(&SpawnerConfig { first_id, id_ranges }, "/proc/self/uid_map"));
        }
    }
}
