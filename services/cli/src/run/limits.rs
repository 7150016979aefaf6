//! Limits of one command, as options.

use serde::Serialize;

/// Limits that come on top of the workspace's, and so can only tighten them.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Most memory: 512M, 2G, or bytes
    #[arg(long, value_name = "SIZE", value_parser = crate::units::bytes)]
    memory: Option<u64>,
    /// Most processes and threads
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// Most processor time, in processors: 0.5, 2
    #[arg(long, value_name = "N", value_parser = percent)]
    cpus: Option<u32>,
    /// Share of processor time among those that want it, 1 to 10000 [default: 100]
    #[arg(long, value_name = "WEIGHT")]
    cpu_weight: Option<u32>,
    /// Share of disk traffic among those that want it, 1 to 10000 [default: 100]
    #[arg(long, value_name = "WEIGHT")]
    io_weight: Option<u32>,
    /// Processors it may use, by number: 0,2
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cpu_affinity: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
struct Cgroup {
    memory_max: Option<u64>,
    pids_max: Option<u32>,
    cpu_max: Option<u32>,
    cpu_weight: Option<u32>,
    io_weight: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Soma<'a> {
    cpu_affinity: Option<&'a [u32]>,
    cgroup: Cgroup,
}

impl LimitArgs {
    /// As the service takes them; none where nothing is limited.
    pub(crate) fn soma(&self) -> anyhow::Result<Option<String>> {
        let cgroup = Cgroup {
            memory_max: self.memory,
            pids_max: self.pids,
            cpu_max: self.cpus,
            cpu_weight: self.cpu_weight,
            io_weight: self.io_weight,
        };
        let text = toml::to_string(&Soma { cpu_affinity: self.cpu_affinity.as_deref(), cgroup })?;
        Ok((text.trim() != "[cgroup]").then_some(text))
    }
}

/// Processors, as percent of one.
fn percent(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.01..=4096.0).contains(&cpus) => Ok((cpus * 100.0).round() as u32),
        _ => Err(format!("{text:?} is no number of processors from 0.01 to 4096")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!((percent("0.5"), percent("2")), (Ok(50), Ok(200)));
        assert!(percent("0").is_err() && percent("NaN").is_err() && percent("x").is_err());
    }

    #[test]
    fn what_the_service_is_told() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            limits: LimitArgs,
        }
        let soma = |words: &[&str]| Line::parse_from([&["x"], words].concat()).limits.soma().unwrap();
        assert_eq!(soma(&[]), None);
        let text = soma(&["--memory", "64M", "--cpus", "0.5", "--cpu-affinity", "0,2"]).unwrap();
        assert_eq!(text, "cpu_affinity = [0, 2]\n\n[cgroup]\nmemory_max = 67108864\ncpu_max = 50\n");
    }
}
