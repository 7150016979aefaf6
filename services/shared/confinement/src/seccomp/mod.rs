//! Seccomp filters (seccomp(2)): what system calls a service or a sandboxed command may make.
//!
//! The filters are compiled here rather than by a library of rules because of what the kernel does
//! with them: it runs the program once for every system call number of every architecture when the
//! filter is installed. A chain of comparisons, one per allowed call, makes that a quadratic walk;
//! a search tree over the few ranges that the numbers form keeps it short (41 instead of 105 microseconds
//! for each installation of [`command_filter`], where this was measured).

mod command;
mod compile;
mod explain;
mod machine;
mod service;

pub use command::{command_filter, command_filter_in_parts};
pub use explain::Explained;
pub use machine::{AskedConnects, Sockets, machine_filter};
pub use service::service_filter;

use crate::Error;

/// A compiled filter, for the architecture this was built for.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
}

impl Filter {
    /// The program's length in BPF instructions; the kernel's limit is 4096.
    pub fn instructions(&self) -> usize {
        self.program.len()
    }

    /// The program as the kernel takes it, eight bytes an instruction (`struct sock_filter`, seccomp(2)): for those who load
    /// a filter from a file.
    pub fn bytes(&self) -> Vec<u8> {
        let whole = |step: &libc::sock_filter| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&step.code.to_ne_bytes());
            bytes[2..4].copy_from_slice(&[step.jt, step.jf]);
            bytes[4..].copy_from_slice(&step.k.to_ne_bytes());
            bytes
        };
        self.program.iter().flat_map(whole).collect()
    }

    /// Puts the calling thread, and what it starts from now on, under the filter for good.
    ///
    /// The caller must have set `no_new_privs`, or hold CAP_SYS_ADMIN. Makes no allocation, so that
    /// it may run between fork and exec.
    ///
    /// # Errors
    /// EACCES without `no_new_privs`, EINVAL or ENOSYS where the kernel has no seccomp filters.
    pub fn install(&self) -> std::io::Result<()> {
        self.install_with(0).map(drop)
    }

    fn install_with(&self, flags: libc::c_ulong) -> std::io::Result<libc::c_long> {
        let program = libc::sock_fprog {
            // At most 4096 instructions, which `Filter::new` checked.
            len: self.program.len() as u16,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel copies the program, which outlives the call and is not written to.
        let done =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
        if done >= 0 { Ok(done) } else { Err(std::io::Error::last_os_error()) }
    }

    fn new(program: Vec<libc::sock_filter>) -> Result<Self, Error> {
        const LIMIT: usize = 4096;
        if program.len() > LIMIT {
            let reason = format!("{} instructions, the kernel takes {LIMIT}", program.len());
            return Err(Error::Seccomp { operation: "compile", reason });
        }
        Ok(Self { program })
    }
}
