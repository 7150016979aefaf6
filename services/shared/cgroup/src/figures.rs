//! What a group uses.

use std::fs;
use std::path::Path;

use crate::events::value;

/// Figures of a group with all below it. Absent: the controller or the file is not there.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Figures {
    /// Bytes of memory now, file cache and kernel memory included.
    pub memory: Option<u64>,
    /// Most bytes of it so far (Linux 5.19).
    pub memory_peak: Option<u64>,
    /// Bytes of swap now.
    pub swap: Option<u64>,
    /// Processor time, microseconds.
    pub cpu_usec: Option<u64>,
    /// Of it in user mode, microseconds.
    pub cpu_user_usec: Option<u64>,
    /// Time that it was held back by `cpu.max`, microseconds, added up over processors.
    pub throttled_usec: Option<u64>,
    /// Bytes and operations of block devices.
    pub io: Option<Io>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// Most of them so far (Linux 6.6).
    pub pids_peak: Option<u64>,
    /// Waiting for a processor.
    pub cpu_pressure: Option<Pressure>,
    /// Waiting for memory.
    pub memory_pressure: Option<Pressure>,
    /// Waiting for block devices.
    pub io_pressure: Option<Pressure>,
}

/// Traffic with block devices, added up over all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct Io {
    pub rbytes: u64,
    pub wbytes: u64,
    pub rios: u64,
    pub wios: u64,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressure {
    /// At least one process waited.
    pub some: Stall,
    /// All that could run waited.
    pub full: Stall,
}

/// A share of time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stall {
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// Microseconds in all.
    pub total_usec: u64,
}

pub(crate) fn read(group: &Path) -> Figures {
    let file = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| file(name)?.trim().parse().ok();
    let cpu = file("cpu.stat");
    let of_cpu = |name: &str| value(cpu.as_deref()?, name);
    let pressure = |name: &str| pressure(&file(name)?);
    Figures {
        memory: number("memory.current"),
        memory_peak: number("memory.peak"),
        swap: number("memory.swap.current"),
        cpu_usec: of_cpu("usage_usec"),
        cpu_user_usec: of_cpu("user_usec"),
        throttled_usec: of_cpu("throttled_usec"),
        io: file("io.stat").map(|text| io(&text)),
        pids: number("pids.current"),
        pids_peak: number("pids.peak"),
        cpu_pressure: pressure("cpu.pressure"),
        memory_pressure: pressure("memory.pressure"),
        io_pressure: pressure("io.pressure"),
    }
}

/// `io.stat`: a line for each device, `8:0 rbytes=1 wbytes=2 …`.
fn io(text: &str) -> Io {
    let mut all = Io::default();
    for (name, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
        let Ok(value) = value.parse::<u64>() else { continue };
        match name {
            "rbytes" => all.rbytes = all.rbytes.saturating_add(value),
            "wbytes" => all.wbytes = all.wbytes.saturating_add(value),
            "rios" => all.rios = all.rios.saturating_add(value),
            "wios" => all.wios = all.wios.saturating_add(value),
            _ => {}
        }
    }
    all
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`.
fn pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let of = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        Some(Stall { avg10: of("avg10")?.parse().ok()?, total_usec: of("total")?.parse().ok()? })
    };
    Some(Pressure { some: stall("some")?, full: stall("full").unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_as_the_kernel_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("memory.current", "1048576\n"),
            ("memory.peak", "2097152\n"),
            ("cpu.stat", "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_periods 1\nthrottled_usec 5\n"),
            ("io.stat", "259:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n8:0 rbytes=10 wbytes=20\n8:16 \n"),
            ("pids.current", "3\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.25 avg60=0 total=9\n"),
            ("io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
            ("memory.pressure", "garbage\n"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let got = read(folder.path());
        let want = Figures {
            memory: Some(1 << 20),
            memory_peak: Some(2 << 20),
            cpu_usec: Some(30),
            cpu_user_usec: Some(10),
            throttled_usec: Some(5),
            io: Some(Io { rbytes: 11, wbytes: 22, rios: 3, wios: 4 }),
            pids: Some(3),
            cpu_pressure: Some(Pressure {
                some: Stall { avg10: 1.5, total_usec: 77 },
                full: Stall { avg10: 0.25, total_usec: 9 },
            }),
            io_pressure: Some(Pressure::default()),
            ..Figures::default()
        };
        assert_eq!(got, want);
        assert_eq!(read(Path::new("/no/such/group")), Figures::default());
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_text_it_is_read(text in ".*") {
            let _ = (io(&text), pressure(&text), value(&text, "a"));
        }
    }
}
