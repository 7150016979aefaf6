//! `shipote-runner`: stands in for a program where a command of a workspace is none: a WASI component, a filter component
//! or a command in a machine.
//!
//! The workspaces service has it started inside the workspace as every other command is, so that namespaces, landlock,
//! seccomp and limits hold for it, and its end is the command's end. It is not for running by hand, has no compiler (code
//! comes compiled from the registry) and opens nothing but the folders that its job names.
//!
//! Exit status: the component's or the command's own; 125 where it could not be run, 134 (128 + SIGABRT) where a component
//! trapped, 141 (128 + SIGPIPE) where the reader of its output has gone.

mod component;
mod filter;
mod given;
mod machine;
mod watchdog;

use std::process::ExitCode;

use shipote_agent_protocol::session::STATUS_FAILED;
use shipote_node::Job;

/// A component that trapped: 128 + SIGABRT, as a program that aborts.
const STATUS_TRAPPED: u8 = 134;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (Some(argument), None) = (words.next(), words.next()) else {
        eprintln!("shipote-runner: it is started by the workspaces service; see `shipote run --wasm`");
        return ExitCode::from(2);
    };
    let job = match Job::from_argument(&argument) {
        Ok(job) => job,
        Err(error) => {
            eprintln!("shipote-runner: the job is malformed: {error}");
            return ExitCode::from(2);
        }
    };
    let outcome = given::Given::take().and_then(|given| match job {
        Job::Component(job) => component::run(&job, given),
        Job::Filter(job) => filter::run(&job, given),
        Job::Machine(job) => machine::run(&job, given),
    });
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("shipote: {error:#}");
            ExitCode::from(STATUS_FAILED)
        }
    }
}
