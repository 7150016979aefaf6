//! A machine in processes: the vsock device, what serves its volumes, QEMU, and how they ended.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use shipote_confinement::seccomp::{Sockets, machine_filter};
use shipote_confinement::{CapabilitySet, Mechanism, drop_capabilities};

use super::connects;
use super::process::{self, Process, Reach};
use super::qmp::Qmp;
use super::wire::Launch;
use crate::Error;
use crate::console::Console;
use crate::image::archive_of;
use crate::vmm::qemu;
use crate::volumes::{self, Owner, Volume};

/// The file in which the guest's agent finds what is said to it at boot.
const SETTINGS: &str = "shipote-machine.json";
/// The file in which it finds certificates.
const CERTIFICATES: &str = "etc/ca-certificates.crt";

/// The processes of a machine. Dropped, they are killed.
pub(super) struct Machine {
    pub(super) qemu: Process,
    pub(super) device: Process,
    /// What serves the volumes, in their order.
    pub(super) volumes: Vec<Process>,
    /// `None` once it was of no further use.
    pub(super) qmp: Option<Qmp>,
    pub(super) console: Console,
    pub(super) confinement: Vec<Mechanism>,
    /// Why the guest ended, as its monitor said.
    shutdown: Option<String>,
    initramfs: PathBuf,
    /// What the sockets that its guest may dial are called by, before `_PORT`.
    dialled: PathBuf,
}

impl Machine {
    /// Confines the keeper and starts the processes.
    pub(super) fn start(launch: &Launch) -> Result<Self, Error> {
        let image = launch.image.kernel.parent().unwrap_or(Path::new("/"));
        let programs = process::programs(image);
        let devices = ["/dev/null", "/dev/urandom", "/dev/kvm"].map(PathBuf::from);
        let touch: Vec<PathBuf> = devices.iter().cloned().chain(launch.disks.iter().cloned()).collect();
        let folders: Vec<Shared<'_>> = launch.volumes.iter().map(Shared::open).collect::<Result<_, _>>()?;
        // Opened before landlock: the groups are none of what the keeper reaches.
        let group = (launch.group.as_ref())
            .map(|path| File::options().write(true).open(path).map_err(Error::io("open", path.display())))
            .transpose()?;
        let group = group.as_ref();
        let mut confinement = confine(launch, &programs, &touch, &folders)?;

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
            folders: &[],
            sockets: Sockets::Unix,
            asks: true,
        };
        let mut device = process::start(&mut command, &reach, None, group, vec![])?;
        confinement.push(match &device.asks {
            Some(_) => Mechanism::enforced("sockets", "the vsock device reaches only what its guest may dial"),
            None => {
                Mechanism::degraded("sockets", "the kernel does not let the vsock device's connections be asked for")
            }
        });
        device.listens_on(&socket)?;

        let vsock = UnixStream::connect(&socket).map_err(Error::io("connect to", socket.display()))?;
        let (ours, theirs) = UnixStream::pair().map_err(Error::io("make", "the monitor's control connection"))?;
        let mut descriptors: Vec<(OwnedFd, i32)> =
            vec![(vsock.into(), qemu::VSOCK_DESCRIPTOR), (theirs.into(), qemu::QMP_DESCRIPTOR)];
        let mut volumes = Vec::new();
        for (shared, number) in folders.into_iter().zip(qemu::VOLUME_DESCRIPTORS..) {
            let socket = launch.folder.join(volumes::tag(volumes.len()));
            let (server, connection) = shared.serve(launch, &programs, group, &socket)?;
            volumes.push(server);
            descriptors.push((connection.into(), number));
        }
        let mut command = Command::new(qemu::PROGRAM);
        command.args(&launch.arguments);
        let cpus = Path::new("/sys/devices/system");
        let reach = Reach {
            execute: &programs,
            read: &[linker, cpus, &initramfs],
            touch: &touch,
            write: &[],
            folders: &[],
            sockets: Sockets::None,
            asks: false,
        };
        let qemu = process::start(&mut command, &reach, None, group, descriptors)?;
        let qmp = Some(Qmp::new(ours).map_err(Error::io("speak to", "the monitor"))?);
        let console = Console::default();
        let dialled = sockets.join(qemu::VSOCK_SOCKET);
        Ok(Self { qemu, device, volumes, qmp, console, confinement, shutdown: None, initramfs, dialled })
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
        for server in &mut self.volumes {
            server.output(|piece| console.push(piece));
        }
    }

    /// The vsock device wants to connect to something.
    pub(super) fn connect(&mut self) {
        if let Some(asks) = &self.device.asks
            && !connects::answer(asks, &self.dialled)
        {
            self.device.asks = None;
        }
    }

    /// Everything that runs for it.
    pub(super) fn processes(&self) -> impl Iterator<Item = &Process> {
        [&self.qemu, &self.device].into_iter().chain(&self.volumes)
    }

    /// Stops the monitor's process, and with it the processors, or has it go on. Returns when it stands still.
    pub(super) fn pause(&self, paused: bool) {
        self.qemu.signal(if paused { Signal::STOP } else { Signal::CONT });
        if paused {
            self.qemu.has_stopped();
        }
    }

    /// Listens to the monitor's words no more; what it said of the end is kept.
    pub(super) fn mute(&mut self) {
        if let Some(qmp) = self.qmp.take() {
            self.shutdown = qmp.shutdown;
        }
    }

    /// Ends what still runs; how it ended, and why.
    pub(super) fn end(&mut self, was_ready: bool, killed: Option<&str>) -> (bool, String) {
        let lost = if self.qemu.has_ended() {
            None
        } else if self.device.has_ended() {
            Some("its vsock device ended")
        } else {
            self.volumes.iter_mut().any(Process::has_ended).then_some("what serves a volume of it ended")
        };
        let status = self.qemu.end();
        let _ = self.device.end();
        for server in &mut self.volumes {
            let _ = server.end();
        }
        self.listen();
        if let Some(qmp) = &mut self.qmp {
            // Up to its end, which is an error.
            let _ = qmp.listen();
        }
        self.mute();
        match killed {
            Some(reason) => (false, reason.to_owned()),
            None if lost.is_some() => (false, lost.unwrap_or_default().to_owned()),
            None => verdict(&self.console, status, self.shutdown.as_deref(), was_ready),
        }
    }
}

/// A folder of the host that is to be served.
struct Shared<'a> {
    volume: &'a Volume,
    folder: OwnedFd,
    owner: Owner,
}

impl<'a> Shared<'a> {
    /// Opens the folder, while this process still reaches it by its path.
    fn open(volume: &'a Volume) -> Result<Self, Error> {
        let folder = volume.open()?;
        let owner = volume.owner(&folder)?;
        Ok(Self { volume, folder, owner })
    }

    /// Starts what serves it, and connects to that for the monitor. The socket is gone again when this returns.
    fn serve(
        self,
        launch: &Launch,
        programs: &[PathBuf],
        group: Option<&File>,
        socket: &Path,
    ) -> Result<(Process, UnixStream), Error> {
        let failed = || Error::io("listen on", socket.display());
        let listener = UnixListener::bind(socket).map_err(failed())?;
        let connection = UnixStream::connect(socket).map_err(failed())?;
        std::fs::remove_file(socket).map_err(failed())?;
        let (Some(program), read_only) = (&launch.image.volume_server, self.volume.read_only) else {
            return Err(Error::NoImage(launch.image.kernel.with_file_name(crate::image::VOLUME_SERVER)));
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open(program, flags, Mode::empty())
            .map_err(|error| Error::io("run", program.display())(error.into()))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", volumes::PROGRAM_DESCRIPTOR));
        command.arg0(program).args(volumes::arguments(self.owner, read_only));
        let reach = Reach {
            execute: programs,
            read: &[Path::new("/etc/ld.so.cache"), Path::new("/proc")],
            touch: &["/dev/null", "/dev/urandom"].map(PathBuf::from),
            write: &[],
            folders: &[(self.folder.as_fd(), read_only)],
            sockets: Sockets::Accept,
            asks: false,
        };
        let user = self.owner.other.then_some(self.owner);
        let folder = self.folder.try_clone().map_err(failed())?;
        let descriptors = vec![
            (folder, volumes::FOLDER_DESCRIPTOR),
            (listener.into(), volumes::SOCKET_DESCRIPTOR),
            (file, volumes::PROGRAM_DESCRIPTOR),
        ];
        Ok((process::start(&mut command, &reach, user, group, descriptors)?, connection))
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
fn confine(
    launch: &Launch,
    programs: &[PathBuf],
    touch: &[PathBuf],
    shared: &[Shared<'_>],
) -> Result<Vec<Mechanism>, Error> {
    let refused = |error: shipote_confinement::Error| {
        Error::io("confine", "the machine's processes")(std::io::Error::other(error))
    };
    let parent = launch.folder.parent().unwrap_or(&launch.folder);
    let reach = Reach {
        execute: programs,
        read: &[Path::new("/etc"), Path::new("/proc"), Path::new("/sys")],
        touch,
        write: &[parent],
        folders: &shared.iter().map(|shared| (shared.folder.as_fd(), shared.volume.read_only)).collect::<Vec<_>>(),
        sockets: Sockets::Unix,
        asks: false,
    };
    // What serves a volume is another user where this is root; the keeper must be able to become and to end it.
    let others = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
    let kept = if shared.iter().any(|shared| shared.owner.other) { others } else { CapabilitySet::empty() };
    let capabilities = drop_capabilities(kept).map_err(refused)?;
    let landlock = process::domain(&reach)?.restrict().map_err(refused)?;
    let seccomp = match machine_filter(Sockets::Unix).map_err(refused)?.install() {
        Ok(()) => Mechanism::enforced("seccomp", "no network; no sockets at all for QEMU"),
        Err(error) => Mechanism::missing("seccomp", error.to_string()),
    };
    let user = Mechanism::degraded("own-user", crate::launcher::OWN_USER);
    Ok(vec![capabilities, landlock, seccomp, user])
}

/// The image's initramfs with the machine's settings behind it.
fn write_initramfs(launch: &Launch, to: &Path) -> Result<(), Error> {
    use std::io::Write as _;
    let copy = || {
        let mut file =
            std::os::unix::fs::OpenOptionsExt::mode(File::options().write(true).create_new(true), 0o600).open(to)?;
        std::io::copy(&mut File::open(&launch.image.initramfs)?, &mut file)?;
        if let Some(certificates) = &launch.certificates {
            file.write_all(&archive_of(CERTIFICATES, &std::fs::read(certificates)?))?;
        }
        file.write_all(&archive_of(SETTINGS, launch.settings.as_bytes()))
    };
    copy().map_err(Error::io("write", to.display()))
}
