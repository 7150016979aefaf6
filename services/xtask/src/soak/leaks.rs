//! What the appliance holds: processes, descriptors, memory, mounts, control groups, sockets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::appliance::Appliance;

/// Descriptors by which a service may differ: connections of the bus, files that are just being read.
const DESCRIPTORS: usize = 12;
/// Memory by which a process may have grown, KiB, beside a half of what it had.
const MEMORY_KIB: u64 = 16 * 1024;

/// What was seen.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Held {
    /// Processes by name.
    processes: BTreeMap<String, usize>,
    /// Those that have ended and nobody has waited for.
    zombies: usize,
    /// Of each process that there is one of: open descriptors.
    descriptors: BTreeMap<String, usize>,
    /// And resident memory, KiB.
    memory_kib: BTreeMap<String, u64>,
    /// Mounts of this namespace in the appliance's folder.
    mounts: usize,
    /// Control groups below the appliance's own; none where it has none of its own.
    cgroups: Option<usize>,
    /// Sockets and files in the runtime folder.
    runtime_files: usize,
}

/// Looks at everything.
pub(super) fn look(appliance: &Appliance) -> anyhow::Result<Held> {
    let folder = appliance.folder().context("an appliance without a folder of its own")?;
    let mut held = Held::default();
    let up = PathBuf::from(format!("/proc/{}", appliance.pid()));
    let mut named: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").context("read /proc")?.flatten() {
        let path = entry.path();
        if entry.file_name().to_str().is_none_or(|name| name.parse::<u32>().is_err()) || !belongs(&path, folder, &up) {
            continue;
        }
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        let Some((name, state)) = name_and_state(&stat) else { continue };
        if state == 'Z' {
            held.zombies += 1;
            continue;
        }
        *held.processes.entry(name.clone()).or_default() += 1;
        named.entry(name).or_default().push(path);
    }
    for (name, paths) in named {
        let [path] = &paths[..] else { continue };
        held.descriptors.insert(name.clone(), std::fs::read_dir(path.join("fd")).map_or(0, Iterator::count));
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        held.memory_kib.insert(name, kib);
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let folder_text = folder.display().to_string();
    held.mounts = mounts.lines().filter(|line| line.contains(&folder_text)).count();
    held.cgroups = own_cgroup(&up).map(|group| count(&group, true));
    held.runtime_files = count(&folder.join("run"), false);
    Ok(held)
}

/// Processes of the appliance: those that were told of its folder, and what has them as its parents.
fn belongs(path: &Path, folder: &Path, up: &Path) -> bool {
    let needle = folder.as_os_str().as_encoded_bytes();
    let told = |file: &str| {
        let text = std::fs::read(path.join(file)).unwrap_or_default();
        text.windows(needle.len()).any(|piece| piece == needle)
    };
    if path == up || told("cmdline") || told("environ") {
        return true;
    }
    let parent = std::fs::read_to_string(path.join("stat")).ok().and_then(|stat| parent_of(&stat));
    parent.filter(|pid| *pid > 1).is_some_and(|pid| belongs(&PathBuf::from(format!("/proc/{pid}")), folder, up))
}

/// Fields of proc_pid_stat(5); the name may hold anything, so that others count from its last bracket.
fn name_and_state(stat: &str) -> Option<(String, char)> {
    let (head, rest) = stat.rsplit_once(')')?;
    Some((head.split_once('(')?.1.to_owned(), rest.trim_start().chars().next()?))
}

fn parent_of(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The control group of the appliance, where it is not everybody's.
fn own_cgroup(up: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(up.join("cgroup")).ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|root| Path::new(root).join(group));
    path.into_iter().find(|path| !group.is_empty() && path.join("cgroup.procs").exists())
}

/// Entries below a folder; only folders where that is asked for.
fn count(folder: &Path, folders: bool) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let one = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => usize::from(folders) + count(&entry.path(), folders),
        Ok(_) => usize::from(!folders),
        Err(_) => 0,
    };
    entries.map(one).sum()
}

/// What is more than it was, in words.
pub(super) fn compare(before: &Held, after: &Held) -> Vec<String> {
    let mut faults = Vec::new();
    let names = before.processes.keys().chain(after.processes.keys()).collect::<std::collections::BTreeSet<_>>();
    for name in names {
        let of = |held: &Held| held.processes.get(name).copied().unwrap_or(0);
        if of(before) != of(after) {
            faults.push(format!("processes: {} {name} before, {} after", of(before), of(after)));
        }
    }
    if after.zombies > 0 {
        faults.push(format!("processes: {} have ended and are not waited for", after.zombies));
    }
    for (name, after) in &after.descriptors {
        let before = before.descriptors.get(name).copied().unwrap_or(0);
        if *after > before + DESCRIPTORS {
            faults.push(format!("descriptors of {name}: {before} before, {after} after"));
        }
    }
    for (name, after) in &after.memory_kib {
        let before = before.memory_kib.get(name).copied().unwrap_or(0);
        if *after > before + MEMORY_KIB.max(before / 2) {
            faults.push(format!("memory of {name}: {before} KiB before, {after} KiB after"));
        }
    }
    for (what, before, after) in [
        ("mounts", before.mounts, after.mounts),
        ("control groups", before.cgroups.unwrap_or(0), after.cgroups.unwrap_or(0)),
        ("files in the runtime folder", before.runtime_files, after.runtime_files),
    ] {
        if after > before {
            faults.push(format!("{what}: {before} before, {after} after"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_of_anything_is_a_leak() {
        let one = |name: &str, n| BTreeMap::from([(name.to_owned(), n)]);
        let before = Held {
            processes: one("keeper", 1),
            descriptors: one("proxy", 20),
            memory_kib: BTreeMap::from([("proxy".to_owned(), 40_000)]),
            mounts: 1,
            cgroups: Some(3),
            runtime_files: 9,
            ..Held::default()
        };
        assert!(compare(&before, &before).is_empty());
        let less = Held { mounts: 0, cgroups: Some(1), runtime_files: 1, ..before.clone() };
        assert!(compare(&before, &less).is_empty());
        let after = Held {
            processes: one("keeper", 2),
            zombies: 1,
            descriptors: one("proxy", 33),
            memory_kib: BTreeMap::from([("proxy".to_owned(), 60_001)]),
            mounts: 2,
            cgroups: Some(4),
            runtime_files: 10,
        };
        assert_eq!(compare(&before, &after).len(), 7, "{:?}", compare(&before, &after));
    }

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        assert_eq!(name_and_state("7 (a) b) Z 3 7"), Some(("a) b".to_owned(), 'Z')));
        assert_eq!(parent_of("7 (a) b) Z 3 7"), Some(3));
        assert_eq!(name_and_state(""), None);
    }
}
