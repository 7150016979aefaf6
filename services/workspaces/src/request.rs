//! What both doors check before they ask for a command.

use std::path::Path;

use shipote_bus::spec::{FurtherFlows, NodeCommand, Soma, check_label};
use ulid::Ulid;

use crate::error::Error;
use crate::state::NewCommand;

/// Most arguments of one command, and most bytes of them together (half of what the kernel
/// takes, execve(2), so that the environment has room).
const ARGUMENTS_MAX: usize = 4096;
const ARGUMENT_BYTES_MAX: usize = 1024 * 1024;

/// A command as it can be started; called `label`, or like its program.
pub(crate) fn new_command(command: NodeCommand, label: Option<String>) -> Result<NewCommand, Error> {
    let bad = |text: String| Err(Error::InvalidArgument(format!("run: {text}")));
    let NodeCommand { exec, argv, envp } = &command;
    if exec.is_empty() {
        return bad("no program is named".to_owned());
    }
    let count = argv.len() + 1;
    let bytes: usize = argv.iter().chain([exec]).map(|a| a.len() + 1).sum();
    if count > ARGUMENTS_MAX || bytes > ARGUMENT_BYTES_MAX {
        return bad(format!(
            "{count} arguments of {bytes} bytes; at most {ARGUMENTS_MAX} of {ARGUMENT_BYTES_MAX} bytes are taken"
        ));
    }
    if let Some((key, _)) = envp.iter().find(|(key, _)| key.is_empty() || key.contains('=')) {
        return bad(format!("{key:?} cannot be the name of a variable of the environment"));
    }
    let pairs = envp.iter().flat_map(|(key, value)| [key, value]);
    if argv.iter().chain([exec]).chain(pairs).any(|text| text.contains('\0')) {
        return bad("a NUL byte stands in an argument or in the environment, which no program can be given".to_owned());
    }
    let label = label.unwrap_or_else(|| {
        let name = Path::new(exec).file_name().map_or_else(|| exec.clone(), |n| n.to_string_lossy().into_owned());
        name.chars().take(64).collect()
    });
    check_label("label", &label).map_err(|e| Error::InvalidArgument(format!("run: {e}")))?;
    let (soma, further) = (Soma::default(), FurtherFlows::default());
    let (id, foreign, cwd, terminal) = (Ulid::generate(), None, None, None);
    let (timeout, restart, attachable, foreground) = (None, None, false, false);
    Ok(NewCommand {
        id,
        label,
        command,
        foreign,
        further,
        soma,
        cwd,
        terminal,
        timeout,
        restart,
        attachable,
        foreground,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let command = |exec: &str, argv: &[&str], envp: &[(&str, &str)]| NodeCommand {
            exec: exec.to_owned(),
            argv: argv.iter().map(ToString::to_string).collect(),
            envp: envp.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        };
        assert_eq!(new_command(command("/bin/true", &[], &[("A", "b=c")]), None).unwrap().label, "true");
        for (bad, want) in [
            (command("", &[], &[]), "no program"),
            (command("a", &vec!["x"; ARGUMENTS_MAX], &[]), "4097 arguments"),
            (command("a", &["x\0y"], &[]), "NUL"),
            (command("a", &[], &[("A=B", "c")]), "cannot be the name"),
            (command("a", &[], &[("", "c")]), "cannot be the name"),
        ] {
            let refused = new_command(bad, None).unwrap_err().to_string();
            assert!(refused.contains(want), "{refused}");
        }
    }
}
