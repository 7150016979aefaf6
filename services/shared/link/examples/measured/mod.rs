//! The side of a measurement that does the work. For each name of a case on standard input it does a block of that
//! case and answers with a line: how many units, and their wall and CPU time in nanoseconds. Whoever asks decides on
//! turns and rounds: `cargo xtask bench plugins`.

use std::io::Write as _;
use std::time::Instant;

/// Something to measure.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// How often it is done in a block.
    pub(crate) times: u32,
    /// How many units it is, once done.
    pub(crate) units: u32,
    pub(crate) once: Box<dyn FnMut()>,
}

impl Case {
    /// A case that is a unit, once done.
    pub(crate) fn new(name: &'static str, times: u32, once: impl FnMut() + 'static) -> Self {
        Self { name, times, units: 1, once: Box::new(once) }
    }
}

/// Works until standard input ends.
pub(crate) fn serve(mut cases: Vec<Case>) {
    for line in std::io::stdin().lines() {
        let line = line.expect("read the name of a case");
        let known: Vec<_> = cases.iter().map(|case| case.name).collect();
        let case = cases.iter_mut().find(|case| case.name == line);
        let case = case.unwrap_or_else(|| panic!("no case {line:?}; there are {known:?}"));
        let (cpu, begun) = (cpu(), Instant::now());
        for _ in 0..case.times {
            (case.once)();
        }
        let wall = begun.elapsed().as_nanos();
        let units = u64::from(case.times) * u64::from(case.units);
        println!("{units} {wall} {}", self::cpu() - cpu);
        std::io::stdout().flush().expect("answer");
    }
}

/// Processor time of all threads, nanoseconds: the first field of each one's `schedstat`.
fn cpu() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("list the threads");
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()))
        .sum()
}
