//! cargo, called by a task that cargo itself runs.

use std::process::Command;

use crate::vm::repository;

/// Variables by which cargo tells a program about its package.
const ABOUT_US: &[&str] = &["CARGO_MANIFEST_", "CARGO_PKG_"];

/// The cargo that runs this program, in the source tree, without what it told us about ourselves: some build scripts are run
/// again when one of these variables is another (ring's), and all that depends on them is compiled again. So would be, in
/// turns, what a developer builds and what tasks do.
pub(crate) fn cargo() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository()?);
    for (name, _) in std::env::vars_os() {
        if ABOUT_US.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
            command.env_remove(name);
        }
    }
    Ok(command)
}
