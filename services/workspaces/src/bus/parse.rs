//! What callers of the bus write, and what it means: specs, options, descriptors.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use shipote_bus::spec::{ExitPolicy, Foreign, NodeCommand, RestartPolicy, WorkspaceSpec};
use shipote_bus::workspaces::{RunOptions, SPEC_MAX};
use ulid::Ulid;

use super::manager::Options;
use crate::error::Error;
use crate::state::{NewCommand, Target};

pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::Failed(format!("make a pipe: {e}")))
}

pub(super) fn three(stdio: Vec<zbus::OwnedFd>) -> Result<Option<[OwnedFd; 3]>, Error> {
    let count = stdio.len();
    let owned: Vec<OwnedFd> = stdio.into_iter().map(Into::into).collect();
    match <[OwnedFd; 3]>::try_from(owned) {
        Ok(three) => Ok(Some(three)),
        Err(_) if count == 0 => Ok(None),
        Err(_) => Err(Error::InvalidArgument(format!(
            "run: {count} descriptors were handed over; hand over three (input, output, error) or none"
        ))),
    }
}

pub(super) fn check_size(spec: &str) -> Result<(), Error> {
    if spec.len() > SPEC_MAX {
        return Err(Error::InvalidSpec(format!("the spec has {} bytes; at most {SPEC_MAX} are read", spec.len())));
    }
    Ok(())
}

pub(super) fn parse_workspace(text: &str) -> Result<WorkspaceSpec, Error> {
    check_size(text)?;
    shipote_config::parse(text, "workspace").map_err(|e| Error::InvalidSpec(format!("create workspace: {e}")))
}

/// The workspace to run in: a living one, or one of its own.
pub(super) fn target(workspace: String, spec: &str) -> Result<Target, Error> {
    if !workspace.is_empty() {
        if !spec.is_empty() {
            let text = "run: a spec goes with a workspace of the command's own; leave out one of the two";
            return Err(Error::InvalidArgument(text.to_owned()));
        }
        return Ok(Target::Existing(workspace));
    }
    let id = Ulid::generate();
    let mut spec = parse_workspace(spec)?;
    if spec.on_exit != ExitPolicy::Reap {
        let text = "run: workspace: on_exit: a workspace that is made for one command goes with all it holds; create one with a name";
        return Err(Error::InvalidSpec(text.to_owned()));
    }
    spec.label = format!("run-{}", id.to_string().to_ascii_lowercase());
    spec.validate().map_err(|e| Error::InvalidSpec(format!("run: workspace: {e}")))?;
    Ok(Target::Ephemeral { id, spec: Box::new(spec) })
}

pub(super) fn new_command(argv: Vec<String>, options: &RunOptions) -> Result<NewCommand, Error> {
    let bad = |text: String| Err(Error::InvalidArgument(format!("run: {text}")));
    let foreign = component(options)?;
    let mut words = options.wasm.clone().into_iter().chain(argv);
    let Some(exec) = words.next().filter(|w| !w.is_empty()) else {
        return bad("no program is named".to_owned());
    };
    let argv: Vec<String> = words.collect();
    let mut envp = Vec::new();
    for entry in options.env.iter().flatten() {
        match entry.split_once('=') {
            Some((key, value)) if !key.is_empty() => envp.push((key.to_owned(), value.to_owned())),
            _ => return bad(format!("environment entry {entry:?} is not KEY=VALUE")),
        }
    }
    if let Some(cwd) = &options.cwd
        && !cwd.starts_with('/')
    {
        return bad(format!("working folder {cwd:?} is not absolute"));
    }
    let mut command = crate::request::new_command(NodeCommand { exec, argv, envp }, options.label.clone())?;
    command.foreign = foreign;
    command.cwd.clone_from(&options.cwd);
    command.terminal = options.terminal;
    command.attachable = options.attachable.unwrap_or(false);
    command.timeout = options.timeout_ms.map(Duration::from_millis);
    if let Some(text) = &options.soma {
        check_size(text)?;
        command.soma = shipote_config::parse(text, "soma").map_err(|e| Error::InvalidSpec(format!("run: {e}")))?;
        command.soma.validate("soma").map_err(|e| Error::InvalidSpec(format!("run: {e}")))?;
    }
    if let Some(text) = &options.restart {
        let invalid = |e: &dyn std::fmt::Display| Error::InvalidSpec(format!("run: {e}"));
        check_size(text)?;
        let policy: RestartPolicy = shipote_config::parse(text, "restart").map_err(|e| invalid(&e))?;
        policy.validate("restart").map_err(|e| invalid(&e))?;
        command.restart = Some(policy);
    }
    if command.restart.is_some() && command.terminal.is_some() {
        return bad("a command with a terminal cannot be started again on it; leave out one of the two".to_owned());
    }
    Ok(command)
}

/// The component that is asked for instead of a program.
fn component(options: &RunOptions) -> Result<Option<Foreign>, Error> {
    let bad = |text: &str| Err(Error::InvalidArgument(format!("run: {text}")));
    let Some(reference) = options.wasm.clone() else {
        return match &options.dirs {
            Some(_) => bad("folders are given to a component; name one, or leave them out"),
            None => Ok(None),
        };
    };
    if options.cwd.is_some() || options.terminal.is_some() {
        return bad("a component has neither a working folder nor a terminal; leave them out, and give it folders");
    }
    let foreign = Foreign::Component { reference, dirs: options.dirs.clone().unwrap_or_default() };
    foreign.validate("run").map_err(|e| Error::InvalidArgument(e.to_string()))?;
    Ok(Some(foreign))
}

/// Refuses options that are not known, naming those that are.
pub(super) fn known(options: &Options, names: &[&str]) -> Result<(), Error> {
    match options.keys().find(|k| !names.contains(&k.as_str())) {
        None => Ok(()),
        Some(key) if names.is_empty() => {
            Err(Error::InvalidArgument(format!("option {key:?} is not known; this method has no options")))
        }
        Some(key) => {
            Err(Error::InvalidArgument(format!("option {key:?} is not known; there are {}", names.join(", "))))
        }
    }
}

pub(super) fn flag(options: &Options, name: &str, names: &[&str]) -> Result<bool, Error> {
    known(options, names)?;
    match options.get(name) {
        Some(value) => bool::try_from(value).map_err(|_| wrong_type(name, "b")),
        None => Ok(false),
    }
}

pub(super) fn text(options: &Options, name: &str, names: &[&str]) -> Result<Option<String>, Error> {
    known(options, names)?;
    options.get(name).map(|value| value.clone().try_into().map_err(|_| wrong_type(name, "s"))).transpose()
}

pub(super) fn wrong_type(name: &str, signature: &str) -> Error {
    Error::InvalidArgument(format!("option {name:?} has the wrong type; it is a {signature:?}"))
}
