//! Which accelerator QEMU gets. A `/dev/kvm` that can be opened is no proof: on a processor without VMX or SVM it exists
//! and guests hang. So a guest is booted on it, once per image and boot of the host.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::image::Image;

/// How long the trial guest has to reach user space. Under KVM it takes about a second.
const TRIAL: Duration = Duration::from_secs(10);

/// How guests' processors come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accel {
    /// The host's processor.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Tries KVM with a real guest; answers from the cache where this host and image have been tried.
pub(super) fn choose(image: &Image) -> anyhow::Result<Accel> {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accel::Tcg);
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let verdict = image.dir().join(format!("kvm-{}", boot_id.trim()));
    if let Ok(text) = fs::read_to_string(&verdict) {
        return Ok(if text == "yes" { Accel::Kvm } else { Accel::Tcg });
    }
    eprintln!("vm: does a guest boot under KVM? (at most {TRIAL:?})");
    let works = boots_under_kvm(image)?;
    eprintln!("vm: {}", if works { "yes" } else { "no: guests are emulated" });
    fs::write(&verdict, if works { "yes" } else { "no" }).with_context(|| format!("write {}", verdict.display()))?;
    Ok(if works { Accel::Kvm } else { Accel::Tcg })
}

fn boots_under_kvm(image: &Image) -> anyhow::Result<bool> {
    // `true` as PID 1 ends at once: the kernel panics, reboots, and with -no-reboot QEMU exits
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args([
            "-M",
            "q35",
            "-accel",
            "kvm",
            "-cpu",
            "max",
            "-m",
            "512",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ])
        .args(["-display", "none", "-kernel"])
        .arg(image.kernel())
        .args(["-append", "root=/dev/nvme0n1 ro rootfstype=ext4 init=/bin/true panic=-1 quiet"])
        .arg("-drive")
        .arg(format!("file={},if=none,id=d0,format=raw,snapshot=on", image.disk().display()))
        .args(["-device", "nvme,drive=d0,serial=r"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("run qemu-system-x86_64")?;
    let end = Instant::now() + TRIAL;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        super::pause(Duration::from_millis(50));
    }
}
