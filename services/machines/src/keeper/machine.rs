//! A machine in processes: the vsock device, what serves its volumes, QEMU, and how they ended.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::Signal;
use shipote_confinement::seccomp::{Sockets, machine_filter};
use shipote_confinement::{CapabilitySet, Mechanism, drop_capabilities};

use super::connects::{self, Dialled};
use super::process::{self, Of, Process, Reach};
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
    /// Memory that the guest has, bytes, as its monitor said last; all of it until it says anything.
    pub(super) memory: Option<u64>,
    /// Why the guest ended, as its monitor said.
    shutdown: Option<String>,
    /// Until the guest has unpacked it.
    initramfs: Option<OwnedFd>,
    /// The sockets that its guest may dial.
    dialled: Dialled,
}

impl Machine {
    /// Confines the keeper and starts the processes.
    pub(super) fn start(launch: &Launch) -> Result<Self, Error> {
        let image = launch.image.kernel.parent().unwrap_or(Path::new("/"));
        let programs = process::programs(image);
        let devices = ["/dev/null", "/dev/urandom", "/dev/kvm"].map(PathBuf::from);
        let touch: Vec<PathBuf> = devices.iter().cloned().chain(launch.disk.clone()).collect();
        let folders: Vec<Shared<'_>> = launch.volumes.iter().map(Shared::open).collect::<Result<_, _>>()?;
        // Opened before landlock: the groups are none of what the keeper reaches.
        let group = (launch.group.as_ref())
            .map(|path| File::options().write(true).open(path).map_err(Error::io("open", path.display())))
            .transpose()?;
        let of = Of { folder: &launch.folder, group: group.as_ref() };
        let mut confinement = confine(launch, &programs, &touch, &folders)?;
        let initramfs = initramfs(launch).map_err(Error::io("write", "the machine's initramfs"))?;

        let sockets = launch.folder.join(qemu::VSOCK_FOLDER);
        let (device, vsock) = start_device(launch, &of, &programs, &devices[..2], &sockets)?;
        confinement.push(match &device.asks {
            Some(_) => Mechanism::enforced("sockets", "the vsock device reaches only what its guest may dial"),
            None => {
                Mechanism::degraded("sockets", "the kernel does not let the vsock device's connections be asked for")
            }
        });

        let (ours, theirs) = UnixStream::pair().map_err(Error::io("make", "the monitor's control connection"))?;
        let mut descriptors: Vec<(OwnedFd, i32)> = vec![
            (vsock.into(), qemu::VSOCK_DESCRIPTOR),
            (theirs.into(), qemu::QMP_DESCRIPTOR),
            (named(&launch.image.kernel)?, qemu::KERNEL_DESCRIPTOR),
            (initramfs.try_clone().map_err(Error::io("hand over", "the initramfs"))?, qemu::INITRAMFS_DESCRIPTOR),
        ];
        if let Some(disk) = &launch.disk {
            for (number, write) in qemu::DISK_DESCRIPTORS.into_iter().zip([true, false]) {
                let file = File::options().read(true).write(write).open(disk);
                descriptors.push((file.map_err(Error::io("open", disk.display()))?.into(), number));
            }
        }
        let mut volumes = Vec::new();
        for (shared, number) in folders.into_iter().zip(qemu::VOLUME_DESCRIPTORS..) {
            let socket = launch.folder.join(volumes::tag(volumes.len()));
            let (server, connection) = shared.serve(launch, &of, &programs, &socket)?;
            volumes.push(server);
            descriptors.push((connection.into(), number));
        }
        let mut command = Command::new(qemu::PROGRAM);
        command.args(&launch.arguments);
        let cpus = Path::new("/sys/devices/system");
        let reach = Reach {
            execute: &programs,
            read: &[linker(), cpus],
            touch: &devices,
            write: &[],
            listen: &[],
            folders: &[],
            sockets: Sockets::None,
            asks: false,
        };
        let qemu = process::start(&mut command, &reach, own_user(launch), &of, descriptors)?;
        let qmp = Some(Qmp::new(ours).map_err(Error::io("speak to", "the monitor"))?);
        let dialled = Dialled {
            named: sockets_folder().join(qemu::VSOCK_SOCKET),
            found: sockets.join(qemu::VSOCK_SOCKET),
            user: own_user(launch),
        };
        let (console, initramfs, memory) = (Console::default(), Some(initramfs), None);
        Ok(Self { qemu, device, volumes, qmp, console, confinement, memory, shutdown: None, initramfs, dialled })
    }

    /// The guest has unpacked its initramfs: of the secret in it there is no copy any more but the monitor's.
    pub(super) fn unpacked(&mut self) {
        self.initramfs = None;
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

    /// Has the guest make do with so much memory: it gives the rest back in its own time, or takes it again.
    pub(super) fn make_do_with(&mut self, mib: u32) -> std::io::Result<()> {
        let gone = || std::io::Error::other("its monitor says nothing that could be understood any more");
        self.qmp.as_mut().ok_or_else(gone)?.give(u64::from(mib) << 20)
    }

    /// What the monitor tells; one that talks nonsense is not listened to any more.
    pub(super) fn monitor(&mut self) {
        let Some(qmp) = &mut self.qmp else { return };
        let understood = qmp.listen();
        self.memory = qmp.memory;
        if let Some(problem) = qmp.refused.take() {
            eprintln!("shipote-machines: keeper: change a guest's memory: {problem}");
        }
        if understood.is_err() {
            self.mute();
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
        of: &Of<'_>,
        programs: &[PathBuf],
        socket: &Path,
    ) -> Result<(Process, UnixStream), Error> {
        let failed = || Error::io("listen on", socket.display());
        let listener = UnixListener::bind(socket).map_err(failed())?;
        let connection = UnixStream::connect(socket).map_err(failed())?;
        std::fs::remove_file(socket).map_err(failed())?;
        let (Some(program), read_only) = (&launch.image.volume_server, self.volume.read_only) else {
            return Err(Error::NoImage(launch.image.kernel.with_file_name(crate::image::VOLUME_SERVER)));
        };
        let file = named(program)?;
        let mut command = by_descriptor(program);
        command.args(volumes::arguments(self.owner, read_only));
        let reach = Reach {
            execute: programs,
            read: &[linker(), Path::new("/proc")],
            touch: &["/dev/null", "/dev/urandom"].map(PathBuf::from),
            write: &[],
            listen: &[],
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
        Ok((process::start(&mut command, &reach, user, of, descriptors)?, connection))
    }
}

/// The socket of the vsock device that the monitor connects to, beside those of the guest.
const DEVICE_SOCKET: &str = "device";

/// The folder of its sockets, as the vsock device knows it.
fn sockets_folder() -> PathBuf {
    format!("/proc/self/fd/{}", volumes::FOLDER_DESCRIPTOR).into()
}

/// Starts the vsock device; gives the monitor's connection to it.
fn start_device(
    launch: &Launch,
    of: &Of<'_>,
    programs: &[PathBuf],
    devices: &[PathBuf],
    sockets: &Path,
) -> Result<(Process, UnixStream), Error> {
    let user = own_user(launch);
    if user.is_some() {
        // Nobody else gets here: the folder above is our own.
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(sockets, all).map_err(Error::io("open to the vsock device", sockets.display()))?;
    }
    let program = &launch.image.vsock_device;
    let mut command = by_descriptor(program);
    command
        .args(["--guest-cid", "3", "--tx-buffer-size", "262144", "--socket"])
        .arg(sockets_folder().join(DEVICE_SOCKET))
        .arg("--uds-path")
        .arg(sockets_folder().join(qemu::VSOCK_SOCKET));
    let reach = Reach {
        execute: programs,
        read: &[linker()],
        touch: devices,
        write: &[],
        listen: &[sockets],
        folders: &[],
        sockets: Sockets::Unix,
        asks: true,
    };
    let descriptors =
        vec![(named(sockets)?, volumes::FOLDER_DESCRIPTOR), (named(program)?, volumes::PROGRAM_DESCRIPTOR)];
    let mut device = process::start(&mut command, &reach, user, of, descriptors)?;
    let connection = device.connect(&sockets.join(DEVICE_SOCKET))?;
    Ok((device, connection))
}

/// What programs find their libraries by.
fn linker() -> &'static Path {
    Path::new("/etc/ld.so.cache")
}

/// The user that the machine's own processes become.
fn own_user(launch: &Launch) -> Option<Owner> {
    launch.user.as_ref().ok().copied()
}

/// A descriptor that stands for a path, for those who could not go there.
fn named(path: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::io("open", path.display())(error.into()))
}

/// A program that is started by its descriptor, under its own name.
fn by_descriptor(program: &Path) -> Command {
    let mut command = Command::new(format!("/proc/self/fd/{}", volumes::PROGRAM_DESCRIPTOR));
    command.arg0(program);
    command
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
        listen: &[],
        folders: &shared.iter().map(|shared| (shared.folder.as_fd(), shared.volume.read_only)).collect::<Vec<_>>(),
        sockets: Sockets::Unix,
        asks: false,
    };
    // Where this is root the processes are other users; the keeper must be able to become and to end them.
    let others = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
    let needs = launch.user.is_ok() || shared.iter().any(|shared| shared.owner.other);
    let kept = if needs { others } else { CapabilitySet::empty() };
    let capabilities = drop_capabilities(kept).map_err(refused)?;
    let landlock = process::domain(&reach)?.restrict().map_err(refused)?;
    let seccomp = match machine_filter(Sockets::Unix).map_err(refused)?.install() {
        Ok(()) => Mechanism::enforced("seccomp", "no network; no sockets at all for QEMU"),
        Err(error) => Mechanism::missing("seccomp", error.to_string()),
    };
    let user = match &launch.user {
        Ok(user) => Mechanism::enforced("own-user", format!("user {} of the host", user.uid)),
        Err(reason) => Mechanism::degraded("own-user", reason.clone()),
    };
    Ok(vec![capabilities, landlock, seccomp, user])
}

/// The image's initramfs with the machine's settings behind it, in memory: it lies on no disk, and belongs to nobody.
fn initramfs(launch: &Launch) -> std::io::Result<OwnedFd> {
    use std::io::Write as _;
    let mut file = File::from(rustix::fs::memfd_create(c"initramfs", MemfdFlags::CLOEXEC)?);
    std::io::copy(&mut File::open(&launch.image.initramfs)?, &mut file)?;
    if let Some(certificates) = &launch.certificates {
        file.write_all(&archive_of(CERTIFICATES, &std::fs::read(certificates)?))?;
    }
    file.write_all(&archive_of(SETTINGS, launch.settings.as_bytes()))?;
    Ok(file.into())
}
