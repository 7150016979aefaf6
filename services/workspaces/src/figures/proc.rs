//! What trees of processes use, from `/proc`: for hosts that give no control group, or one that cannot count.
//!
//! Where the kernel or the service manager hides those processes from the service, figures are absent, never zero.

use std::collections::HashMap;

/// What a tree of processes uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    /// Resident bytes.
    pub(super) rss: u64,
    pub(super) cpu_usec: u64,
    pub(super) processes: u64,
}

/// One line of /proc/PID/stat, proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// User and system time, in clock ticks.
    ticks: u64,
    /// The same of children that have been waited for.
    reaped_ticks: u64,
    /// Resident pages.
    pages: u64,
}

fn parse(line: &str) -> Option<Stat> {
    // the name may contain anything, so the fields are counted from the last parenthesis
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        ticks: number(14)? + number(15)?,
        reaped_ticks: number(16)? + number(17)?,
        pages: number(24)?,
    })
}

/// What the descendants of each of `roots` use, in one pass; a root that cannot be seen is left out. Blocks.
pub(super) fn usage(roots: &[i32]) -> HashMap<i32, Usage> {
    if roots.is_empty() {
        return HashMap::new();
    }
    let mut all = HashMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    for entry in entries.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // it may have ended meanwhile
        if let Some(stat) = std::fs::read_to_string(entry.path().join("stat")).ok().as_deref().and_then(parse) {
            all.insert(pid, stat);
        }
    }
    add_up(&all, roots, rustix::param::page_size() as u64, rustix::param::clock_ticks_per_second())
}

fn add_up(all: &HashMap<i32, Stat>, roots: &[i32], page: u64, hertz: u64) -> HashMap<i32, Usage> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (&pid, stat) in all {
        children.entry(stat.parent).or_default().push(pid);
    }
    let mut one = |root: i32| {
        // the first process is ours, what it has reaped was the workspace's
        let mut ticks = all.get(&root)?.reaped_ticks;
        let (mut pages, mut processes) = (0, 0);
        let mut left = children.remove(&root).unwrap_or_default();
        while let Some(pid) = left.pop() {
            let stat = &all[&pid];
            ticks += stat.ticks + stat.reaped_ticks;
            pages += stat.pages;
            processes += 1;
            // taken out: a table read while processes come and go may hold a circle
            left.extend(children.remove(&pid).unwrap_or_default());
        }
        Some((root, Usage { rss: pages * page, cpu_usec: ticks * 1_000_000 / hertz.max(1), processes }))
    };
    roots.iter().filter_map(|&root| one(root)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_a_nasty_name() {
        let line = "42 (a) b ) S 7 42 42 0 -1 4194304 100 0 0 0 5 6 7 8 20 0 1 0 100 1000 99 18446744073709551615 1";
        assert_eq!(parse(line), Some(Stat { parent: 7, ticks: 11, reaped_ticks: 15, pages: 99 }));
        assert_eq!(parse("42 (short) S 7"), None);
    }

    #[test]
    fn a_tree_is_its_descendants_and_ends_even_if_it_is_none() {
        let stat = |parent| Stat { parent, ticks: 10, reaped_ticks: 1, pages: 2 };
        let mut all: HashMap<i32, Stat> =
            [(1, 0), (5, 1), (6, 5), (7, 6), (8, 5), (9, 1), (10, 9)].map(|(p, pp)| (p, stat(pp))).into();
        let five = Usage { rss: 6 * 4096, cpu_usec: (1 + 33) * 10_000, processes: 3 };
        let nine = Usage { rss: 2 * 4096, cpu_usec: (1 + 11) * 10_000, processes: 1 };
        assert_eq!(add_up(&all, &[5, 9, 4], 4096, 100), [(5, five), (9, nine)].into());
        all.insert(5, stat(7));
        assert!(add_up(&all, &[5], 4096, 100).contains_key(&5));
    }

    #[test]
    fn our_own_children_are_seen() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        // a process that has just begun has no pages yet
        let seen = (0..10_000).any(|_| {
            std::thread::yield_now();
            usage(&[own]).get(&own).is_some_and(|u| u.processes >= 1 && u.rss > 0)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen, "{:?}", usage(&[own]));
    }
}
