//! Every command of `shipote`, which starts this.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    shipote_cli::commands()
}
