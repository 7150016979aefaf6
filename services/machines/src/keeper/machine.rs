//! A machine in processes: the vsock device, QEMU, and how both ended.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::Signal;
use shipote_confinement::seccomp::{Sockets, machine_filter};
use shipote_confinement::{CapabilitySet, Mechanism, drop_capabilities};

use super::process::{self, Process, Reach};
use super::qmp::Qmp;
use super::wire::Launch;
use crate::Error;
use crate::console::Console;
use crate::image::archive_of;
use crate::vmm::qemu;

/// The file in which the guest's agent finds what is said to it at boot.
const SETTINGS: &str = "shipote-machine.json";
/// The file in which it finds certificates.
const CERTIFICATES: &str = "etc/ca-certificates.crt";

/// The processes of a machine. Dropped, they are killed.
pub(super) struct Machine {
    pub(super) qemu: Process,
    pub(super) device: Process,
    /// `None` once it was of no further use.
    pub(super) qmp: Option<Qmp>,
    pub(super) console: Console,
    pub(super) confinement: Vec<Mechanism>,
    /// Why the guest ended, as its monitor said.
    shutdown: Option<String>,
    initramfs: PathBuf,
}

impl Machine {
    /// Confines the keeper and starts the processes.
    pub(super) fn start(launch: &Launch) -> Result<Self, Error> {
        let image = launch.image.kernel.parent().unwrap_or(Path::new("/"));
        let programs = process::programs(image);
        let devices = ["/dev/null", "/dev/urandom", "/dev/kvm"].map(PathBuf::from);
        let touch: Vec<PathBuf> = devices.iter().cloned().chain(launch.disks.iter().cloned()).collect();
        let confinement = confine(launch, &programs, &touch)?;

        let initramfs = launch.folder.join(qemu::INITRAMFS);
        write_initramfs(launch, &initramfs)?;

        let sockets = launch.folder.join(qemu::VSOCK_FOLDER);
        let socket = sockets.join("device");
        let mut command = Command::new(&launch.image.vsock_device);
        command
            .args(["--guest-cid", "3", "--tx-buffer-size", "262144", "--socket"])
            .arg(&socket)
            .arg("--uds-path")
            .arg(sockets.join(qemu::VSOCK_SOCKET));
        let linker = Path::new("/etc/ld.so.cache");
        let reach = Reach {
            execute: &programs,
            read: &[linker],
            touch: &devices[..2],
            write: &[&sockets],
            sockets: Sockets::Unix,
        };
        let mut device = process::start(&mut command, &reach, vec![])?;
        device.listens_on(&socket)?;

        let vsock = UnixStream::connect(&socket).map_err(Error::io("connect to", socket.display()))?;
        let (ours, theirs) = UnixStream::pair().map_err(Error::io("make", "the monitor's control connection"))?;
        let mut command = Command::new(qemu::PROGRAM);
        command.args(&launch.arguments);
        let cpus = Path::new("/sys/devices/system");
        let reach = Reach {
            execute: &programs,
            read: &[linker, cpus, &initramfs],
            touch: &touch,
            write: &[],
            sockets: Sockets::None,
        };
        let descriptors: Vec<(OwnedFd, i32)> =
            vec![(vsock.into(), qemu::VSOCK_DESCRIPTOR), (theirs.into(), qemu::QMP_DESCRIPTOR)];
        let qemu = process::start(&mut command, &reach, descriptors)?;
        let qmp = Some(Qmp::new(ours).map_err(Error::io("speak to", "the monitor"))?);
        Ok(Self { qemu, device, qmp, console: Console::default(), confinement, shutdown: None, initramfs })
    }

    /// The guest has unpacked its initramfs: with it goes the one copy of the secret outside of our memory.
    pub(super) fn unpacked(&self) {
        // It may have gone in an earlier life of the service.
        let _ = std::fs::remove_file(&self.initramfs);
    }

    /// Takes in what the processes wrote.
    pub(super) fn listen(&mut self) {
        let console = &self.console;
        self.qemu.output(|piece| console.push(piece));
        self.device.output(|piece| console.push(piece));
    }

    /// Stops the monitor's process, and with it the processors, or has it go on.
    pub(super) fn pause(&self, paused: bool) {
        self.qemu.signal(if paused { Signal::STOP } else { Signal::CONT });
    }

    /// Listens to the monitor's words no more; what it said of the end is kept.
    pub(super) fn mute(&mut self) {
        if let Some(qmp) = self.qmp.take() {
            self.shutdown = qmp.shutdown;
        }
    }

    /// Ends what still runs; how it ended, and why.
    pub(super) fn end(&mut self, was_ready: bool, killed: Option<&str>) -> (bool, String) {
        let vsock_first = !self.qemu.has_ended() && self.device.has_ended();
        let status = self.qemu.end();
        let _ = self.device.end();
        self.listen();
        if let Some(qmp) = &mut self.qmp {
            // Up to its end, which is an error.
            let _ = qmp.listen();
        }
        self.mute();
        match killed {
            Some(reason) => (false, reason.to_owned()),
            None if vsock_first => (false, "its vsock device ended".to_owned()),
            None => verdict(&self.console, status, self.shutdown.as_deref(), was_ready),
        }
    }
}

/// Whether the guest ended by itself, and what there is to say of it. The console is the guest's: it is quoted, not
/// believed.
fn verdict(
    console: &Console,
    status: std::io::Result<ExitStatus>,
    shutdown: Option<&str>,
    was_ready: bool,
) -> (bool, String) {
    let said = console.last_line().map(|line| format!("; its console ends with: {line}")).unwrap_or_default();
    match (status, shutdown) {
        (Ok(status), Some("guest-shutdown")) if status.success() && was_ready => {
            (true, "the guest powered off".to_owned())
        }
        (Ok(status), Some("guest-shutdown")) if status.success() => {
            (false, format!("the guest powered off before its agent answered{said}"))
        }
        (Ok(status), Some("guest-reset" | "guest-panic")) if status.success() => {
            let what = if console.contains("Kernel panic") { "its kernel panicked" } else { "it reset itself" };
            (false, format!("the guest ended: {what}{said}"))
        }
        (Ok(status), _) => (false, format!("the monitor ended ({status}){said}")),
        (Err(error), _) => (false, format!("wait for the monitor: {error}")),
    }
}

/// The keeper's own domain: what its two processes may reach together, and the folder that it removes at the end.
fn confine(launch: &Launch, programs: &[PathBuf], touch: &[PathBuf]) -> Result<Vec<Mechanism>, Error> {
    let refused = |error: shipote_confinement::Error| {
        Error::io("confine", "the machine's processes")(std::io::Error::other(error))
    };
    let parent = launch.folder.parent().unwrap_or(&launch.folder);
    let reach = Reach {
        execute: programs,
        read: &[Path::new("/etc"), Path::new("/proc"), Path::new("/sys")],
        touch,
        write: &[parent],
        sockets: Sockets::Unix,
    };
    let capabilities = drop_capabilities(CapabilitySet::empty()).map_err(refused)?;
    let landlock = process::domain(&reach)?.restrict().map_err(refused)?;
    let seccomp = match machine_filter(Sockets::Unix).map_err(refused)?.install() {
        Ok(()) => Mechanism::enforced("seccomp", "no network; no sockets at all for QEMU"),
        Err(error) => Mechanism::missing("seccomp", error.to_string()),
    };
    let user = Mechanism::degraded("own-user", "the monitor runs as the service's user");
    Ok(vec![capabilities, landlock, seccomp, user])
}

/// The image's initramfs with the machine's settings behind it.
fn write_initramfs(launch: &Launch, to: &Path) -> Result<(), Error> {
    use std::io::Write as _;
    let copy = || {
        let mut file =
            std::os::unix::fs::OpenOptionsExt::mode(std::fs::File::options().write(true).create_new(true), 0o600)
                .open(to)?;
        std::io::copy(&mut std::fs::File::open(&launch.image.initramfs)?, &mut file)?;
        if let Some(certificates) = &launch.certificates {
            file.write_all(&archive_of(CERTIFICATES, &std::fs::read(certificates)?))?;
        }
        file.write_all(&archive_of(SETTINGS, launch.settings.as_bytes()))
    };
    copy().map_err(Error::io("write", to.display()))
}
