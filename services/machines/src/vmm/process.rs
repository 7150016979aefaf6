//! Processes that end with this one.

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use tokio::process::{Child, Command};

/// Starts a process that the kernel kills when this one is gone, however that happens. Must be called on the main
/// thread (the runtime has no other): the kernel means the thread that forked.
///
/// # Errors
/// Those of starting a process.
pub fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let parent: Pid = getpid();
    // A group of its own: a Ctrl-C at the service's terminal is for the service, which ends machines in order.
    command.kill_on_drop(true).process_group(0);
    // SAFETY: between fork and exec the closure makes two system calls on values computed before.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Had the parent died before that call, no signal would come any more.
            if getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
        });
    }
    command.spawn()
}
