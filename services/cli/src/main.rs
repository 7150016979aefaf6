//! `shipote`: `run`, and the way to all other commands, which are in a program of their own (see the library).
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// The program that has all commands, beside this one.
const COMMANDS: &str = "shipote-commands";

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_else(|| "shipote".into());
    let args: Vec<_> = args.collect();
    if args.first().is_some_and(|first| first == "run") {
        return shipote_cli::run_alone();
    }
    let program = std::env::current_exe().map_or_else(|_| PathBuf::from(COMMANDS), |own| own.with_file_name(COMMANDS));
    let error = Command::new(&program).arg0(name).args(args).exec();
    eprintln!("shipote: start {}: {error}; put it there, from the same installation as `shipote`", program.display());
    ExitCode::FAILURE
}
