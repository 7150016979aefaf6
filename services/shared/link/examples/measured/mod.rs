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

/// Processor time of this process, all threads, in nanoseconds: to the moment, also of the thread that runs now, where the
/// kernel's files in `/proc` tell what was true at the last tick of its clock.
fn cpu() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    u64::try_from(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)).expect("time goes forward")
}
