//! Starting the child that examines a component, and ending it when it takes too long.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use shipote_plugin_abi::check::Refusal;
use shipote_plugin_abi::policy::Policy;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::error::Error;
use crate::examine::{Job, MARK, Report};

/// What a child may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Processor time; also, twice over, time on the clock.
    pub(crate) cpu: Duration,
    /// Bytes of address space.
    pub(crate) address_space: u64,
    /// Time for `get-metadata`.
    pub(crate) metadata: Duration,
    /// Bytes of a component.
    pub(crate) size: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        // A 12 MB JavaScript component takes 80 s to compile on a slow machine.
        Self { cpu: Duration::from_secs(240), address_space: 4 << 30, metadata: Duration::from_secs(5), size: 64 << 20 }
    }
}

/// Most bytes of what a child says.
const REPORT_MAX: u64 = 4 << 20;

/// Has `component` examined and, if `compile`, compiled; the code lies in the second, unsealed.
pub(crate) async fn examine(
    mut component: File,
    policy: &Policy,
    compile: bool,
    bounds: Bounds,
) -> Result<(Report, File), Error> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Error::Examine(format!("{what}: {error}"));
    component.seek(SeekFrom::Start(0)).map_err(|error| failed("rewind it", &error))?;
    let code = memfd("compiled").map_err(|error| failed("make a memfd", &error))?;
    let job = Job {
        policy: policy.clone(),
        compile,
        cpu_seconds: bounds.cpu.as_secs().max(1),
        address_space: bounds.address_space,
        metadata_ms: u64::try_from(bounds.metadata.as_millis()).unwrap_or(u64::MAX),
        size: bounds.size,
    };
    let job = serde_json::to_string(&job).map_err(|error| failed("write the job", &error))?;
    // The running binary itself, even if the file at its path has been replaced since.
    let mut child = Command::new("/proc/self/exe")
        .arg0("shipote-plugins")
        .args(["examine", &job])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(component))
        .stdout(Stdio::from(code.try_clone().map_err(|error| failed("hand over the memfd", &error))?))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed("start the child", &error))?;
    let mut said = String::new();
    let pipe = child.stderr.take();
    let listen = async {
        if let Some(pipe) = pipe {
            let mut bytes = Vec::new();
            // What it says is not trusted: bounded, and read as text whatever it is.
            let _ = pipe.take(REPORT_MAX).read_to_end(&mut bytes).await;
            said = String::from_utf8_lossy(&bytes).into_owned();
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(bounds.cpu * 2, listen).await {
        Ok(status) => status.map_err(|error| failed("wait for the child", &error))?,
        Err(_) => {
            let _ = child.kill().await;
            return Ok((died(&format!("it took more than {} s", bounds.cpu.as_secs() * 2)), code));
        }
    };
    let report = said.lines().rev().find_map(|line| line.strip_prefix(MARK));
    let report = report.and_then(|text| serde_json::from_str::<Report>(text).ok());
    match report {
        Some(report) if status.success() => {
            for mechanism in &report.unconfined {
                tracing::warn!("the child that examines components is not confined in full: {mechanism}");
            }
            Ok((report, code))
        }
        _ => Ok((died(&ended(status, &said, bounds)), code)),
    }
}

/// Why a child that left no report ended, as far as its status tells.
fn ended(status: ExitStatus, said: &str, bounds: Bounds) -> String {
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let last: String = last.chars().take(200).collect();
    match status.signal().and_then(rustix::process::Signal::from_named_raw) {
        Some(rustix::process::Signal::XCPU | rustix::process::Signal::KILL) => {
            format!("it took more than {} s of processor time, or the system was out of memory", bounds.cpu.as_secs())
        }
        Some(rustix::process::Signal::ABORT) => {
            format!("it wanted more than {} bytes of memory ({last})", bounds.address_space)
        }
        _ => format!("the examination broke off ({status}; {last})"),
    }
}

fn died(reason: &str) -> Report {
    let refusal = Refusal::new("examine", format!("{reason}; build it smaller or simpler"));
    Report { refusals: vec![refusal], ..Report::default() }
}

/// An empty memfd that can be sealed.
pub(crate) fn memfd(name: &str) -> rustix::io::Result<File> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map(File::from)
}

/// Seals a memfd for good: whoever gets it can rely on its content and size.
pub(crate) fn seal(file: &File) -> rustix::io::Result<()> {
    rustix::fs::fcntl_add_seals(file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)
}

/// The whole content of a file, from its beginning.
pub(crate) fn content(mut file: &File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_child_ended_is_told_with_the_limit_that_it_met() {
        let bounds = Bounds { cpu: Duration::from_secs(7), address_space: 1 << 20, ..Bounds::default() };
        let table = [
            (24, "", "7 s of processor time"),
            (9, "", "7 s of processor time"),
            (6, "\nmemory allocation of 80 bytes failed\n", "1048576 bytes of memory (memory allocation of 80"),
            (11, "", "broke off (signal: 11"),
            (2 << 8, "the job is malformed\n", "broke off (exit status: 2; the job is malformed)"),
        ];
        for (raw, said, wanted) in table {
            let told = ended(ExitStatus::from_raw(raw), said, bounds);
            assert!(told.contains(wanted), "{raw}: {told}");
        }
        let report = died("it was too much");
        assert_eq!(report.refusals[0].rule, "examine");
    }
}
