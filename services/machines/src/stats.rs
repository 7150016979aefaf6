//! What a machine's processes take of the host, from proc_pid_stat(5) and proc_pid_statm(5).

use crate::groups::Group;

/// Use of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory, bytes. Without a control group that counts it: resident, what the processes share once for each.
    pub memory_bytes: u64,
    /// Processor time, microseconds.
    pub cpu_usec: u64,
}

/// Of a machine: as its control group counts, which counts each page once, else of its processes.
#[must_use]
pub fn of_machine(pids: &[i32], group: Option<&Group>) -> Stats {
    let (own, figures) = (of(pids), group.map(Group::figures).unwrap_or_default());
    Stats {
        memory_bytes: figures.memory.unwrap_or(own.memory_bytes),
        // Of a group it is known without any controller.
        cpu_usec: figures.cpu_usec.unwrap_or(own.cpu_usec),
    }
}

/// Of all these processes together; one that has ended counts nothing.
#[must_use]
pub fn of(pids: &[i32]) -> Stats {
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    let read = |pid: i32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    pids.iter().fold(Stats::default(), |sum, &pid| Stats {
        memory_bytes: sum.memory_bytes + resident(&read(pid, "statm")) * page,
        cpu_usec: sum.cpu_usec + processor(&read(pid, "stat")) * 1_000_000 / ticks,
    })
}

fn resident(statm: &str) -> u64 {
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

/// User and system time in clock ticks. The name may hold anything, so that fields count from its last bracket.
fn processor(stat: &str) -> u64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_count_from_the_last_bracket() {
        assert_eq!(processor("7 (a) 9 b) S 1 7 7 0 -1 4 1 2 3 4 50 7 0 0 20 0 1"), 57);
        assert_eq!(processor(""), 0);
        assert_eq!(resident("900 45 3 1 0 1 0"), 45);
    }

    #[test]
    fn this_process_takes_something() {
        let own = of(&[std::process::id().cast_signed()]);
        assert!(own.memory_bytes > 0);
        assert_eq!(of(&[]), Stats::default());
    }
}
