//! How the machine is started, written down for `vm-tests/driver`, which starts it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::accel::Accel;
use super::image::Image;
use super::stage::Stage;

/// Name of the virtio-serial port that the agent listens on.
pub(super) const CONTROL_PORT: &str = "shipote.control";

/// Names another QEMU than the installed one.
const PROGRAM: &str = "SHIPOTE_VM_QEMU";

/// Processors of an emulated machine that others run beside. Two, emulated beside those of another, take half as much of the
/// host again for the same work, and a kernel that patches its own code under the other's feet now and then dies of it.
pub(super) const BESIDE_OTHERS: u32 = 1;

/// Processors of a machine that has the host to itself, as for a measurement.
pub(super) const ALONE: u32 = 2;

/// Modules that an emulated machine is spared: checksums and ciphers in instructions that are emulated as well.
const NOT_LOADED: &[&str] = &[
    "aesni_intel",
    "crc32_pclmul",
    "crct10dif_pclmul",
    "ghash_clmulni_intel",
    "sha1_ssse3",
    "sha256_ssse3",
    "sha512_ssse3",
];

/// A machine's description. In `argv`, `{run}` stands for the folder of one machine's disk, socket and log.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    argv: Vec<String>,
    /// Copied to `{run}/root.img` before the first start.
    root_disk: PathBuf,
    control_socket: String,
    console_log: String,
    /// Seconds to wait for the agent. Generous where the processor is emulated and shared.
    boot_timeout: u64,
    /// Command that installs the project in the machine; run once, after the first start.
    provision: Option<String>,
    /// Added to the niceness of QEMU.
    nice: i32,
    /// Folder of the second disk; removed with the machine.
    stage: PathBuf,
}

impl Machine {
    /// A machine with this image and stage; emulated, with so many processors.
    pub(super) fn describe(image: &Image, stage: &Stage, accel: Accel, emulated: u32) -> anyhow::Result<Self> {
        let mut append = vec![
            "console=ttyS0 root=/dev/nvme0n1 rw rootfstype=ext4 panic=-1 quiet".to_owned(),
            "systemd.show_status=0 systemd.firstboot=no lsm=landlock,yama,bpf".to_owned(),
        ];
        let (cpu, processors) = match accel {
            Accel::Kvm => ("host", ALONE),
            Accel::Tcg => {
                // A kernel under load gives up calibrating its clock against an emulated timer and hangs.
                append.push(format!("tsc_early_khz={}", tsc_khz()?));
                // Nor should it judge the timer's interrupt by when it comes: on a busy host it then hangs for good.
                append.push("no_timer_check".to_owned());
                append.push(format!("modprobe.blacklist={}", NOT_LOADED.join(",")));
                // As for machines: QEMU 7.2 emulates CMPXCHG16B with a fault, and copies of bytes step by step.
                ("max,-cx16,-erms,-fsrm", emulated)
            }
        };
        let accel_option = match accel {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi,tb-size=512",
        };
        // A killed QEMU is a loss of power to the guest: what lay in its memory is gone, what it had handed to the disk is
        // in the host's page cache, which stays. So `unsafe`, which passes no flush on to the host's disk, takes nothing
        // from that. Not shown by it: a disk that loses what its own cache had taken.
        let root = "file={run}/root.img,if=none,id=root,format=raw,cache=unsafe,discard=unmap";
        let host = format!("file={},if=none,id=host,format=raw,readonly=on", path(stage.disk()));
        let control = format!("virtserialport,chardev=control,name={CONTROL_PORT}");
        let (kernel, append, processors) = (path(&image.kernel()), append.join(" "), processors.to_string());
        let options: &[(&str, &str)] = &[
            ("-M", "q35,sata=off"),
            ("-accel", accel_option),
            ("-cpu", cpu),
            ("-smp", &processors),
            ("-m", "1536"),
            ("-display", "none"),
            ("-serial", "file:{run}/console.log"),
            ("-kernel", &kernel),
            ("-append", &append),
            // the root is the only NVMe disk: several are numbered in the order in which their scans happen to end
            ("-drive", root),
            ("-device", "nvme,drive=root,serial=root"),
            ("-drive", &host),
            ("-device", "virtio-blk-pci,drive=host"),
            ("-object", "rng-random,filename=/dev/urandom,id=rng0"),
            ("-device", "virtio-rng-pci,rng=rng0"),
            ("-device", "virtio-serial-pci"),
            ("-chardev", "socket,id=control,path={run}/control.sock,server=on,wait=off"),
            ("-device", &control),
        ];
        let program = std::env::var(PROGRAM).ok().filter(|program| !program.is_empty());
        let program = program.as_deref().unwrap_or("qemu-system-x86_64");
        let argv = [program, "-nodefaults", "-no-user-config", "-no-reboot"]
            .into_iter()
            .chain(options.iter().flat_map(|(name, value)| [*name, *value]))
            .map(str::to_owned)
            .collect();
        Ok(Machine {
            argv,
            root_disk: image.disk(),
            control_socket: "{run}/control.sock".to_owned(),
            console_log: "{run}/console.log".to_owned(),
            boot_timeout: if accel == Accel::Kvm { 60 } else { 240 },
            provision: stage.provision().map(str::to_owned),
            nice: 5,
            stage: stage.dir().to_path_buf(),
        })
    }
}

impl Machine {
    /// Writes the description where the driver finds it; gives the path.
    pub(super) fn write(&self) -> anyhow::Result<PathBuf> {
        let file = self.stage.join("machine.json");
        std::fs::write(&file, serde_json::to_vec_pretty(self)?).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }
}

fn path(path: &Path) -> String {
    // QEMU's option parser takes a doubled comma for one
    path.display().to_string().replace(',', ",,")
}

/// Frequency of the time-stamp counter in kHz, measured: what `/proc/cpuinfo` shows may be the core's present clock.
fn tsc_khz() -> anyhow::Result<u64> {
    let (start, first) = (Instant::now(), timestamp());
    super::pause(Duration::from_millis(100));
    let (ticks, elapsed) = (timestamp() - first, start.elapsed());
    let khz = u128::from(ticks) * 1_000_000 / elapsed.as_nanos();
    Ok(u64::try_from(khz)?)
}

#[cfg(target_arch = "x86_64")]
fn timestamp() -> u64 {
    // SAFETY: RDTSC has no precondition; where it is disabled (prctl PR_SET_TSC) the process gets SIGSEGV, nothing worse.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn timestamp() -> u64 {
    // not reached: host::require_tools refuses other processors
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_runs_at_a_plausible_frequency() {
        let khz = tsc_khz().unwrap();
        assert!((500_000..10_000_000).contains(&khz), "{khz} kHz");
    }

    #[test]
    fn commas_survive_the_option_parser() {
        assert_eq!(path(Path::new("/a,b/c")), "/a,,b/c");
    }
}
