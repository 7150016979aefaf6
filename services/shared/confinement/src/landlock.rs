//! Building one landlock domain (landlock(7)) and saying how much of it the kernel enforces.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};

use crate::{Error, Mechanism};

/// File rights are those of ABI 8: ABI 9 adds the connecting to Unix sockets by path, which every
/// service needs for the bus and the journal.
const FILES: ABI = ABI::V8;

/// What may be done beneath one path. Each right says all that it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathAccess {
    /// List directories, nothing else.
    List,
    /// Read files and list directories.
    Read,
    /// [`PathAccess::Read`] and execute.
    Execute,
    /// [`PathAccess::Read`], write and truncate what exists, ioctl on devices. Nothing is created.
    Use,
    /// [`PathAccess::Use`] and create, rename, link, remove. Nothing is executed, no device is made.
    Write,
    /// List directories, make sockets in them and remove what is no directory. No other file is made.
    Sockets,
    /// [`PathAccess::Write`] and execute.
    All,
}

impl PathAccess {
    fn bits(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let touch = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
        let devices = AccessFs::MakeChar | AccessFs::MakeBlock;
        let write = AccessFs::from_write(FILES) & !devices;
        match self {
            Self::List => AccessFs::ReadDir.into(),
            Self::Read => read,
            Self::Execute => read | AccessFs::Execute,
            Self::Use => read | touch,
            Self::Write => read | write,
            Self::Sockets => AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile,
            Self::All => read | write | AccessFs::Execute,
        }
    }
}

/// What a domain takes charge of besides files. What it takes charge of is denied unless allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handled {
    /// Outgoing TCP connections, by port.
    pub connect_tcp: bool,
    /// Listening on TCP ports.
    pub bind_tcp: bool,
    /// Signals to processes outside of the domain.
    pub signals: bool,
    /// Abstract Unix sockets made outside of the domain.
    pub abstract_unix: bool,
}

impl Handled {
    /// All of it.
    pub const ALL: Self = Self { connect_tcp: true, bind_tcp: true, signals: true, abstract_unix: true };
}

/// A landlock domain being built. Files are always handled: what no rule allows is denied.
#[derive(Debug)]
pub struct Domain {
    ruleset: RulesetCreated,
    handled: Handled,
}

impl Domain {
    /// An empty domain: no path, no port.
    ///
    /// # Errors
    /// When the kernel refuses the ruleset for another reason than not knowing landlock.
    pub fn new(handled: Handled) -> Result<Self, Error> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(FILES))
            .map_err(failed("handle files"))?;
        let mut net = BitFlags::<AccessNet>::empty();
        if handled.connect_tcp {
            net |= AccessNet::ConnectTcp;
        }
        if handled.bind_tcp {
            net |= AccessNet::BindTcp;
        }
        if !net.is_empty() {
            ruleset = ruleset.handle_access(net).map_err(failed("handle TCP"))?;
        }
        let mut scope = BitFlags::<Scope>::empty();
        if handled.signals {
            scope |= Scope::Signal;
        }
        if handled.abstract_unix {
            scope |= Scope::AbstractUnixSocket;
        }
        if !scope.is_empty() {
            ruleset = ruleset.scope(scope).map_err(failed("scope"))?;
        }
        Ok(Self { ruleset: ruleset.create().map_err(failed("create ruleset"))?, handled })
    }

    /// Allows `access` beneath `path`, which is opened now: later renames do not move the grant.
    ///
    /// # Errors
    /// [`Error::Path`] when it cannot be opened.
    pub fn allow_path(self, path: &Path, access: PathAccess) -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
            .open(path)
            .map_err(|source| Error::Path { path: path.to_owned(), source })?;
        let is_dir = file.metadata().map_err(|source| Error::Path { path: path.to_owned(), source })?.is_dir();
        self.allow_fd(file.as_fd(), is_dir, access)
    }

    /// Allows `access` beneath the file or directory that `fd` (O_PATH will do) refers to.
    ///
    /// # Errors
    /// When the kernel refuses the rule.
    pub fn allow_fd(self, fd: BorrowedFd<'_>, is_dir: bool, access: PathAccess) -> Result<Self, Error> {
        // Directory rights on a file would be refused; dropping them here keeps the report exact.
        let bits = if is_dir { access.bits() } else { access.bits() & AccessFs::from_file(FILES) };
        let ruleset = self.ruleset.add_rule(PathBeneath::new(fd, bits)).map_err(failed("add path rule"))?;
        Ok(Self { ruleset, ..self })
    }

    /// Allows TCP connections to `port`.
    ///
    /// # Errors
    /// When connections are not handled by this domain.
    pub fn allow_connect(self, port: u16) -> Result<Self, Error> {
        self.allow_port(port, AccessNet::ConnectTcp)
    }

    /// Allows listening on TCP `port`; 0 stands for the ports the kernel picks.
    ///
    /// # Errors
    /// When binding is not handled by this domain.
    pub fn allow_bind(self, port: u16) -> Result<Self, Error> {
        self.allow_port(port, AccessNet::BindTcp)
    }

    fn allow_port(self, port: u16, access: AccessNet) -> Result<Self, Error> {
        let ruleset = self.ruleset.add_rule(NetPort::new(port, access)).map_err(failed("add port rule"))?;
        Ok(Self { ruleset, ..self })
    }

    /// Puts the calling thread, and what it starts from now on, into the domain for good. Sets
    /// `no_new_privs`, without which the kernel refuses.
    ///
    /// # Errors
    /// When a kernel with landlock refuses; a kernel without it is reported, not an error.
    pub fn restrict(self) -> Result<Mechanism, Error> {
        let status = self.ruleset.restrict_self().map_err(failed("restrict self"))?;
        Ok(report(status.landlock, self.handled))
    }
}

/// The kernel's landlock ABI level, 0 where it is absent or switched off.
pub fn landlock_abi() -> u32 {
    const VERSION: libc::c_ulong = 1;
    // SAFETY: with LANDLOCK_CREATE_RULESET_VERSION the kernel reads no attributes and makes no descriptor.
    let level = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(level).unwrap_or(0)
}

fn report(status: LandlockStatus, handled: Handled) -> Mechanism {
    let abi = match status {
        LandlockStatus::NotEnabled => return Mechanism::missing("landlock", "not enabled; boot with lsm=landlock,..."),
        LandlockStatus::NotImplemented => return Mechanism::missing("landlock", "the kernel has none (needs 5.13)"),
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
    };
    let mut lacking = Vec::new();
    for (needed, wanted, what) in [
        (3, true, "truncation"),
        (4, handled.connect_tcp || handled.bind_tcp, "TCP ports"),
        (5, true, "ioctl on devices"),
        (6, handled.signals, "signals"),
        (6, handled.abstract_unix, "abstract sockets"),
    ] {
        if wanted && abi < needed {
            lacking.push(what);
        }
    }
    if lacking.is_empty() {
        Mechanism::enforced("landlock", format!("ABI {abi}"))
    } else {
        Mechanism::degraded("landlock", format!("ABI {abi} does not cover {}", lacking.join(", ")))
    }
}

fn failed<E: std::fmt::Display>(operation: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Landlock { operation, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_what_an_older_kernel_lacks() {
        let at = |abi| report(LandlockStatus::Available { effective_abi: abi, kernel_abi: None }, Handled::ALL);
        assert_eq!(at(ABI::V7), Mechanism::enforced("landlock", "ABI 7"));
        assert_eq!(
            at(ABI::V4),
            Mechanism::degraded("landlock", "ABI 4 does not cover ioctl on devices, signals, abstract sockets")
        );
        let files = Handled::default();
        let status = LandlockStatus::Available { effective_abi: ABI::V5, kernel_abi: None };
        assert!(report(status, files).is_enforced());
        assert_eq!(report(LandlockStatus::NotEnabled, files).state, crate::Enforcement::Missing);
    }
}
