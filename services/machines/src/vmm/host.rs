//! What guests can run on, found out once.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;

use super::process;
use crate::image::Image;

/// Where the guests' processors come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's own.
    Kvm,
    /// Emulation; the reason.
    Tcg(String),
}

/// What was found out.
#[derive(Debug, Clone)]
pub struct Host {
    /// Accelerator.
    pub accelerator: Accelerator,
    /// Frequency of the time-stamp counter in kHz.
    pub tsc_khz: u64,
}

impl Host {
    /// Finds out. That `/dev/kvm` can be opened proves little (there are hosts where it exists and guests hang), so
    /// that a guest is really started on it, which has the time of `trial` to come up and end.
    pub async fn probe(image: &Image, trial: Duration) -> Self {
        let accelerator = accelerator(image, trial).await;
        tracing::info!("guests run on {accelerator:?}");
        Self { accelerator, tsc_khz: tsc_khz().await }
    }
}

async fn accelerator(image: &Image, time: Duration) -> Accelerator {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Accelerator::Tcg(format!("open /dev/kvm: {error}"));
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| cpuinfo.lines().any(|l| l.starts_with("flags") && l.split_whitespace().any(|f| f == flag));
    if !has("vmx") && !has("svm") {
        return Accelerator::Tcg("the processor shows neither VMX nor SVM".to_owned());
    }
    // Without a root the guest's kernel panics, reboots, and with -no-reboot QEMU exits.
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm,accel=kvm", "-cpu", "host", "-m", "128", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-append", "panic=-1 quiet", "-kernel"])
        .arg(&image.kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let trial = async { process::spawn(&mut command)?.wait().await };
    match tokio::time::timeout(time, trial).await {
        Ok(Ok(status)) if status.success() => Accelerator::Kvm,
        Ok(Ok(status)) => Accelerator::Tcg(format!("a guest under KVM ended with {status}")),
        Ok(Err(error)) => Accelerator::Tcg(format!("run qemu-system-x86_64: {error}")),
        Err(_) => Accelerator::Tcg(format!("a guest under KVM did not come up within {time:?}")),
    }
}

/// Measured: what `/proc/cpuinfo` shows may be the core's present clock.
async fn tsc_khz() -> u64 {
    let (start, first) = (Instant::now(), timestamp());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (ticks, elapsed) = (timestamp().wrapping_sub(first), start.elapsed());
    u64::try_from(u128::from(ticks) * 1_000_000 / elapsed.as_nanos().max(1)).unwrap_or(u64::MAX)
}

#[cfg(target_arch = "x86_64")]
fn timestamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it only reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}
