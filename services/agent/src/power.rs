//! The end of the machine.

use rustix::system::{RebootCommand, reboot};

/// What `Shutdown` ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Power {
    /// This is PID 1 of a machine: it powers off.
    Machine,
    /// An ordinary process: it exits.
    Process,
}

impl Power {
    /// Writes everything to disk; to be called before the answer is sent.
    pub(crate) fn sync(self) {
        if matches!(self, Self::Machine) {
            rustix::fs::sync();
        }
    }

    /// Ends the machine or the process.
    pub(crate) fn off(self) -> ! {
        if matches!(self, Self::Machine) {
            rustix::fs::sync();
            if let Err(error) = reboot(RebootCommand::PowerOff) {
                eprintln!("shipote-agent: power off: {error}");
            }
        }
        // PID 1 that exits panics the kernel, which `panic=-1` turns into the machine's end.
        std::process::exit(0)
    }
}
