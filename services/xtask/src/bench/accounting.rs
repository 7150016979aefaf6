//! CPU time as the kernel accounts for it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::resource::{UsageWho, getrusage};

/// CPU time of this process, all threads.
pub(crate) fn own() -> anyhow::Result<Duration> {
    usage(UsageWho::RUSAGE_SELF)
}

/// CPU time of those descendants that have ended and were waited for, getrusage(2).
pub(crate) fn ended_children() -> anyhow::Result<Duration> {
    usage(UsageWho::RUSAGE_CHILDREN)
}

/// Both.
pub(crate) fn own_and_ended() -> anyhow::Result<Duration> {
    Ok(own()? + ended_children()?)
}

fn usage(who: UsageWho) -> anyhow::Result<Duration> {
    let usage = getrusage(who).context("getrusage")?;
    let micros: i64 =
        [usage.user_time(), usage.system_time()].iter().map(|time| time.tv_sec() * 1_000_000 + time.tv_usec()).sum();
    Ok(Duration::from_micros(micros.try_into()?))
}

/// CPU time that all processors together have worked for anybody, proc_stat(5); in clock ticks.
pub(crate) fn machine() -> anyhow::Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let fields: Vec<u64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user, nice, system, then idle and waiting, then interrupts, of two kinds, and what the hypervisor took
    let [user, nice, system, _, _, hard, soft, ..] = fields[..] else { bail!("/proc/stat does not begin with cpu") };
    let hertz = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs(user + nice + system + hard + soft) / u32::try_from(hertz)?)
}

/// A living process and its descendants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Used by them and by what they waited for; in clock ticks, so a block of work should take many.
    pub(crate) cpu: Duration,
    pub(crate) processes: usize,
}

/// One line of `/proc/PID/stat`, proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    zombie: bool,
    ticks: u64,
}

fn parse(line: &str) -> Option<Stat> {
    let pid = line.split_whitespace().next()?.parse().ok()?;
    // the program's name stands in brackets and may have brackets and blanks of its own
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|f| f.parse::<u64>()).sum::<Result<u64, _>>().ok()?;
    Some(Stat { pid, parent: fields[1].parse().ok()?, zombie: fields[0] == "Z", ticks })
}

/// Looks at the process `root` and all below it.
pub(crate) fn tree(root: u32) -> anyhow::Result<Tree> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        if entry.file_name().as_encoded_bytes()[0].is_ascii_digit()
            && let Ok(line) = fs::read_to_string(Path::new(&entry.path()).join("stat"))
        {
            all.extend(parse(&line));
        }
    }
    let mut members = vec![root];
    let mut next = 0;
    while next < members.len() {
        let parent = members[next];
        members.extend(all.iter().filter(|p| p.parent == parent).map(|p| p.pid));
        next += 1;
    }
    let (mut ticks, mut processes) = (0, 0);
    for process in all.iter().filter(|p| members.contains(&p.pid)) {
        ticks += process.ticks;
        processes += usize::from(!process.zombie);
    }
    let hertz = rustix::param::clock_ticks_per_second();
    Ok(Tree { cpu: Duration::from_secs(ticks) / u32::try_from(hertz)?, processes })
}

/// Waits until there are no more processes than `processes` below `root`: only what has ended is accounted for whole.
pub(crate) fn settled(root: u32, processes: usize) -> anyhow::Result<Tree> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let begun = Instant::now();
    loop {
        let now = tree(root)?;
        if now.processes <= processes {
            return Ok(now);
        }
        if begun.elapsed() > PATIENCE {
            bail!("process {root} still has {} descendants, {processes} before; commands were left", now.processes);
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A process' share of memory in bytes, proc_pid_smaps(5): what it shares with its copies is counted by parts.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let Some(line) = text.lines().find_map(|l| l.strip_prefix("Pss:")) else { bail!("{path} has no Pss") };
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("read {path}"))?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_a_hostile_name_is_read() {
        let line = "42 (a) S 7 (b) Z 17 42 42 0 -1 4194560 1 0 0 0 100 20 3 4 20 0 1 0 999 0 0";
        assert_eq!(parse(line), Some(Stat { pid: 42, parent: 17, zombie: true, ticks: 127 }));
        assert_eq!(parse("42 (short) S 1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_child_is_in_the_tree_until_it_has_ended() {
        let me = std::process::id();
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert_eq!(tree(child.id()).unwrap().processes, 1);
        assert!(tree(me).unwrap().processes >= 2);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(tree(child.id()).unwrap().processes, 0);
    }
}
