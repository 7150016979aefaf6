//! A command can ask for less than its workspace has, never for more.
//!
//! The kernel would hold the workspace's limits all the same; who asks for more is told so instead of being given
//! something else than was asked for. Weights are not limits: they share among a workspace's own commands.

use super::{CgroupLimits, ResourceLimits, Soma, SpecError};

impl Soma {
    /// Refuses what these limits, a command's, would have above `workspace`'s; `field` is the key path of this table.
    ///
    /// # Errors
    /// The first value above the workspace's, by its key path.
    pub fn check_within(&self, workspace: &Soma, field: &str) -> Result<(), SpecError> {
        let Soma { rlimits, cgroup, cpu_affinity } = self;
        let above = |name: String, asked: String, has: String| {
            let problem = format!("is {asked}, but the workspace has {has}; a command can ask for less, not for more");
            Err(SpecError::new(format!("{field}.{name}"), problem))
        };
        for (name, asked, has) in numbers(rlimits, cgroup)
            .into_iter()
            .zip(numbers(&workspace.rlimits, &workspace.cgroup))
            .filter_map(|((name, asked), (_, has))| Some((name, asked?, has?)))
        {
            if asked > has {
                return above(name.to_owned(), asked.to_string(), has.to_string());
            }
        }
        if let (Some(asked), Some(has)) = (cpu_affinity, &workspace.cpu_affinity)
            && let Some(cpu) = asked.iter().find(|cpu| !has.contains(cpu))
        {
            return above("cpu_affinity".to_owned(), format!("CPU {cpu}"), format!("{has:?}"));
        }
        for (i, asked) in cgroup.io_max.iter().enumerate() {
            let Some(has) = workspace.cgroup.io_max.iter().find(|has| has.numbers() == asked.numbers()) else {
                continue;
            };
            for (name, asked, has) in [
                ("rbps", asked.rbps, has.rbps),
                ("wbps", asked.wbps, has.wbps),
                ("riops", asked.riops, has.riops),
                ("wiops", asked.wiops, has.wiops),
            ] {
                if let (Some(asked), Some(has)) = (asked, has)
                    && asked > has
                {
                    return above(format!("cgroup.io_max[{i}].{name}"), asked.to_string(), has.to_string());
                }
            }
        }
        Ok(())
    }
}

/// Every limit that is one number, by its name.
fn numbers(rlimits: &ResourceLimits, cgroup: &CgroupLimits) -> [(&'static str, Option<u64>); 7] {
    let ResourceLimits { mem_bytes, nproc, nofile } = rlimits;
    // every field is named, so that a new one is not forgotten here
    let CgroupLimits { memory_max, memory_high, pids_max, cpu_max, cpu_weight: _, io_weight: _, io_max: _ } = cgroup;
    [
        ("rlimits.mem_bytes", *mem_bytes),
        ("rlimits.nproc", nproc.map(u64::from)),
        ("rlimits.nofile", nofile.map(u64::from)),
        ("cgroup.memory_max", *memory_max),
        ("cgroup.memory_high", *memory_high),
        ("cgroup.pids_max", pids_max.map(u64::from)),
        ("cgroup.cpu_max", cpu_max.map(u64::from)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKSPACE: &str = "cpu_affinity=[0,1]\n[rlimits]\nmem_bytes=1000\nnproc=10\nnofile=100\n\
        [cgroup]\nmemory_max=9000000\nmemory_high=8000000\npids_max=20\ncpu_max=150\ncpu_weight=100\nio_weight=100\n\
        [[cgroup.io_max]]\ndevice='8:0'\nrbps=10\nwbps=10\nriops=10\nwiops=10\n";

    fn soma(text: &str) -> Soma {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn each_field_that_is_loosened_is_refused_by_its_key_path() {
        let workspace = soma(WORKSPACE);
        let io = |key: &str, value: u32| format!("[[cgroup.io_max]]\ndevice='8:0'\n{key}={value}");
        let table = [
            ("rlimits.mem_bytes", "rlimits.mem_bytes=1001".to_owned(), "rlimits.mem_bytes=1000".to_owned()),
            ("rlimits.nproc", "rlimits.nproc=11".to_owned(), "rlimits.nproc=10".to_owned()),
            ("rlimits.nofile", "rlimits.nofile=101".to_owned(), "rlimits.nofile=99".to_owned()),
            ("cgroup.memory_max", "cgroup.memory_max=9000001".to_owned(), "cgroup.memory_max=9000000".to_owned()),
            ("cgroup.memory_high", "cgroup.memory_high=8000001".to_owned(), "cgroup.memory_high=5000000".to_owned()),
            ("cgroup.pids_max", "cgroup.pids_max=21".to_owned(), "cgroup.pids_max=1".to_owned()),
            ("cgroup.cpu_max", "cgroup.cpu_max=151".to_owned(), "cgroup.cpu_max=150".to_owned()),
            ("cpu_affinity", "cpu_affinity=[1,2]".to_owned(), "cpu_affinity=[1]".to_owned()),
            ("cgroup.io_max[0].rbps", io("rbps", 11), io("rbps", 10)),
            ("cgroup.io_max[0].wbps", io("wbps", 11), io("wbps", 9)),
            ("cgroup.io_max[0].riops", io("riops", 11), io("riops", 1)),
            ("cgroup.io_max[0].wiops", io("wiops", 11), io("wiops", 10)),
        ];
        for (field, loose, tight) in table {
            let refused = soma(&loose).check_within(&workspace, "soma").unwrap_err();
            assert_eq!(refused.field, format!("soma.{field}"), "{loose}");
            assert!(refused.problem.contains("less, not for more"), "{refused}");
            assert_eq!(soma(&tight).check_within(&workspace, "soma"), Ok(()), "{tight}");
            // without a limit of the workspace's there is nothing to loosen
            assert_eq!(soma(&loose).check_within(&Soma::default(), "soma"), Ok(()), "{loose}");
        }
        for text in ["", "cgroup.cpu_weight=10000", "cgroup.io_weight=10000", WORKSPACE] {
            assert_eq!(soma(text).check_within(&workspace, "soma"), Ok(()), "{text}");
        }
    }
}
