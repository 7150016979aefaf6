//! Limits: of each process by `setrlimit(2)`, of all together by a control group. The same form serves a workspace and
//! a single command; a command's limits come on top of its workspace's and so can only tighten them.

use serde::{Deserialize, Serialize};

use super::SpecError;

/// Limits of a workspace's processes, or of a command's.
///
/// ```toml
/// [soma]
/// cpu_affinity = [0, 1]
/// [soma.rlimits]
/// nofile = 256
/// [soma.cgroup]
/// memory_max = 536870912
/// pids_max = 128
/// cpu_max = 150
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Soma {
    /// Limits by `setrlimit(2)`.
    pub rlimits: ResourceLimits,
    /// Limits by the control group.
    pub cgroup: CgroupLimits,
    /// CPUs that may be used, by number; none: all.
    pub cpu_affinity: Option<Vec<u32>>,
}

/// Limits by `setrlimit(2)`, soft and hard alike. Where control groups are delegated, `mem_bytes` and `nproc` also
/// hold for all processes of the workspace, or of the command, together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourceLimits {
    /// `RLIMIT_AS`: address space of each process, bytes.
    #[serde(deserialize_with = "shipote_units::size_opt")]
    pub mem_bytes: Option<u64>,
    /// `RLIMIT_NPROC`: processes and threads of the workspace's user.
    pub nproc: Option<u32>,
    /// `RLIMIT_NOFILE`: open descriptors of each process.
    pub nofile: Option<u32>,
}

/// Limits of all processes together, by the control group (version 2).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupLimits {
    /// Bytes of memory, the private scratch and the file cache included; swap is not used then.
    #[serde(deserialize_with = "shipote_units::size_opt")]
    pub memory_max: Option<u64>,
    /// Bytes of memory from which on the processes are slowed down.
    #[serde(deserialize_with = "shipote_units::size_opt")]
    pub memory_high: Option<u64>,
    /// Processes and threads.
    pub pids_max: Option<u32>,
    /// Processor time in percent of one processor: 150 is one and a half.
    pub cpu_max: Option<u32>,
    /// Share of processor time among those that want it, 1 to 10,000; 100 where absent.
    pub cpu_weight: Option<u32>,
    /// Share of disk traffic among those that want it, 1 to 10,000; 100 where absent.
    pub io_weight: Option<u32>,
    /// Most disk traffic, by device.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_max: Vec<IoMax>,
}

/// Most traffic with one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IoMax {
    /// Major and minor number of a whole disk, as `lsblk` prints them: `259:0`.
    pub device: String,
    /// Bytes read a second.
    #[serde(deserialize_with = "shipote_units::size_opt")]
    pub rbps: Option<u64>,
    /// Bytes written a second.
    #[serde(deserialize_with = "shipote_units::size_opt")]
    pub wbps: Option<u64>,
    /// Reads a second.
    pub riops: Option<u64>,
    /// Writes a second.
    pub wiops: Option<u64>,
}

/// What happens where a limit on memory or processes is reached, beside the kernel holding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaEnforcement {
    /// Memory.
    pub mem: QuotaAction,
    /// Processes.
    pub nproc: QuotaAction,
}

/// What happens where one limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuotaAction {
    /// Nothing.
    #[default]
    None,
    /// It is logged.
    Log,
    /// The living commands of the workspace are ended.
    Kill,
}

/// Least memory in which a shell starts.
const MEMORY_MIN: u64 = 1024 * 1024;
/// Weights of cgroup v2.
const WEIGHT_MAX: u32 = 10_000;

impl Soma {
    /// Checks what can be checked before anything starts; `field` is the key path of this table.
    ///
    /// # Errors
    /// The first value that no kernel takes, by its key path.
    pub fn validate(&self, field: &str) -> Result<(), SpecError> {
        let bad = |name: &str, problem: String| Err(SpecError::new(format!("{field}.{name}"), problem));
        if self.cpu_affinity.as_ref().is_some_and(Vec::is_empty) {
            return bad("cpu_affinity", "names no processor; leave it out to use all of them".to_owned());
        }
        let cgroup = &self.cgroup;
        for (name, bytes) in [("memory_max", cgroup.memory_max), ("memory_high", cgroup.memory_high)] {
            if bytes.is_some_and(|b| b < MEMORY_MIN) {
                return bad(&format!("cgroup.{name}"), format!("is below {MEMORY_MIN} bytes, in which nothing starts"));
            }
        }
        for (name, zero) in [
            ("cgroup.pids_max", cgroup.pids_max == Some(0)),
            ("cgroup.cpu_max", cgroup.cpu_max == Some(0)),
            ("rlimits.mem_bytes", self.rlimits.mem_bytes == Some(0)),
            ("rlimits.nproc", self.rlimits.nproc == Some(0)),
        ] {
            if zero {
                return bad(name, "is 0, with which nothing starts; leave it out for no limit".to_owned());
            }
        }
        for (name, weight) in [("cpu_weight", cgroup.cpu_weight), ("io_weight", cgroup.io_weight)] {
            if weight.is_some_and(|w| !(1..=WEIGHT_MAX).contains(&w)) {
                return bad(&format!("cgroup.{name}"), format!("is not from 1 to {WEIGHT_MAX}"));
            }
        }
        for (i, limit) in cgroup.io_max.iter().enumerate() {
            if limit.numbers().is_none() {
                let problem = format!("{:?} is no MAJOR:MINOR as `lsblk` prints it", limit.device);
                return bad(&format!("cgroup.io_max[{i}].device"), problem);
            }
        }
        Ok(())
    }

    /// Whether it limits nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Soma::default()
    }

    /// Bytes of memory that all processes together may use: the least that is said.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        self.cgroup.memory_max.into_iter().chain(self.rlimits.mem_bytes).min()
    }

    /// Processes that may live together: the least that is said.
    #[must_use]
    pub fn processes(&self) -> Option<u32> {
        self.cgroup.pids_max.into_iter().chain(self.rlimits.nproc).min()
    }
}

impl IoMax {
    /// Major and minor number of the device.
    #[must_use]
    pub fn numbers(&self) -> Option<(u32, u32)> {
        let (major, minor) = self.device.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let check = |text: &str| {
            let soma: Soma = toml::from_str(text).map_err(|e| e.message().to_owned())?;
            soma.validate("soma").map_err(|e| e.to_string())
        };
        for good in [
            "",
            "rlimits.mem_bytes='64M'\n[cgroup]\nmemory_max='1G'\nmemory_high='768MiB'",
            "cpu_affinity=[0]",
            "[cgroup]\nmemory_max=67108864\npids_max=1\ncpu_max=50\ncpu_weight=1\nio_weight=10000",
            "[[cgroup.io_max]]\ndevice='8:0'\nrbps=1000",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, want) in [
            ("cpu_affinity=[]", "soma.cpu_affinity: names no processor"),
            ("[cgroup]\nmemory_max='4K'", "soma.cgroup.memory_max: is below"),
            ("[cgroup]\nmemory_max='much'", "\"much\" is no size; write"),
            ("[cgroup]\nmemory_max=4096", "soma.cgroup.memory_max: is below"),
            ("[cgroup]\npids_max=0", "soma.cgroup.pids_max: is 0"),
            ("[cgroup]\ncpu_weight=0", "soma.cgroup.cpu_weight: is not from 1"),
            ("[cgroup]\nio_weight=10001", "soma.cgroup.io_weight: is not from 1"),
            ("[[cgroup.io_max]]\ndevice='sda'", "soma.cgroup.io_max[0].device"),
            ("[cgroup]\npath='x'", "unknown field `path`"),
        ] {
            let got = check(bad).unwrap_err();
            assert!(got.contains(want), "{bad}: {got}");
        }
    }

    #[test]
    fn the_least_limit_counts() {
        let soma: Soma = toml::from_str("rlimits={mem_bytes=5,nproc=9}\ncgroup={memory_max=7,pids_max=8}").unwrap();
        assert_eq!((soma.memory(), soma.processes()), (Some(5), Some(8)));
        assert_eq!((Soma::default().memory(), Soma::default().processes()), (None, None));
        assert!(Soma::default().is_empty() && !soma.is_empty());
    }
}
