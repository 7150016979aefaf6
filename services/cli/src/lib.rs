//! The command line of Shipote, and the embedded appliance (`shipote up`).
//!
//! For: turning a command line into calls on the bus and their answers into text or JSON. Not for: holding state;
//! whatever outlives a command belongs to one of the services. Invariant: a command prints its result on stdout and
//! nothing else there, one line on stderr if it fails, and leaves with 0 (done), 1 (refused or failed) or 2 (wrong
//! usage); only `run` passes on other statuses.
//!
//! One file per command, each with its arguments and `run(args) -> anyhow::Result<ExitCode>`.
//!
//! There are two programs: `shipote-commands` has every command; `shipote` has the one that scripts start by the
//! thousand, `run`, and becomes the other for all the rest. What a program links is paid for at each start: the tables of
//! addresses in all that the commands take together are a hundred pages that the dynamic linker has to write to.

mod attach;
mod audit;
mod capabilities;
mod discern;
mod doctor;
mod egress;
mod embedded;
mod events;
mod explain;
mod figures;
mod flow;
mod generate;
mod health;
mod image;
mod kill;
mod logs;
mod machine;
mod output;
mod pipeline;
mod plugin;
mod proxy;
mod ps;
mod publish;
mod run;
mod session;
mod signals;
mod spec;
mod status;
mod top;
mod units;
mod up;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sandboxed workspaces, microVMs and a programmable proxy over D-Bus.
#[derive(Debug, Parser)]
#[command(name = "shipote", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the embedded appliance in the foreground: a private bus and the services
    Up(up::UpArgs),
    /// Compile proxy rules, and ask the running proxy
    Proxy(proxy::ProxyArgs),
    /// Say which hosts workspaces and machines may reach, and what they were refused
    Egress(egress::EgressArgs),
    /// Add, check, list, activate and remove plugins
    Plugin(plugin::PluginArgs),
    /// Show what runs, since when, and how it is confined
    Status(status::StatusArgs),
    /// Create, list, show and stop workspaces, and see what they use
    Workspace(workspace::WorkspaceArgs),
    /// Run a command in a workspace
    Run(run::RunArgs),
    /// List commands
    Ps(ps::PsArgs),
    /// Show the kept output of a command
    Logs(logs::LogsArgs),
    /// Join the output and input of a detached command
    Attach(attach::AttachArgs),
    /// Show what a command was refused, and why
    Explain(explain::ExplainArgs),
    /// Send a signal to a command
    Kill(kill::KillArgs),
    /// Run, list and stop pipelines
    Pipeline(pipeline::PipelineArgs),
    /// List and read the tapped edges of pipelines
    Flow(flow::FlowArgs),
    /// Watch what workspaces and flows use, live
    Top(top::TopArgs),
    /// Make sessions from templates: a workspace with files, commands, snapshots
    Session(session::SessionArgs),
    /// Say what kind of data a file is
    Discern(discern::DiscernArgs),
    /// Start microVMs, run commands in them, copy files
    Machine(machine::MachineArgs),
    /// Pull, list and remove the images of a machine
    Image(image::ImageArgs),
    /// Ask every service how it is
    Health(health::HealthArgs),
    /// Show what this host lets Shipote enforce
    Capabilities(capabilities::CapabilitiesArgs),
    /// Follow everything that happens
    Events(events::EventsArgs),
    /// Find what is wrong with this host, and say how to mend it
    Doctor(doctor::DoctorArgs),
    /// Show who changed what
    Audit(audit::AuditArgs),
    /// Write completions for a shell to standard output
    Completions(generate::CompletionsArgs),
    /// Write the manual pages to a folder
    Man(generate::ManArgs),
}

/// [`Cli`] with no command but `run`.
#[derive(Debug, Parser)]
#[command(name = "shipote", version, about, max_term_width = 100)]
struct Short {
    #[command(subcommand)]
    command: ShortCommand,
}

#[derive(Debug, Subcommand)]
enum ShortCommand {
    /// Run a command in a workspace
    Run(run::RunArgs),
}

/// The program `shipote-commands`: every command.
#[must_use]
pub fn commands() -> ExitCode {
    leave_when_nobody_reads();
    finish(dispatch(Cli::parse().command))
}

/// `shipote run`, and nothing else.
#[must_use]
pub fn run_alone() -> ExitCode {
    leave_when_nobody_reads();
    let ShortCommand::Run(args) = Short::parse().command;
    finish(run::run(args))
}

fn finish(command: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    // One thread for everything: the parent-death signal of the appliance's children follows the thread that
    // started them, and the command line itself only waits for answers.
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(command));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shipote: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// A reader of standard output that went away (`shipote … | head -1`) has what it wanted: no panic, and no error either.
fn leave_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        // Of `println!`, and of the library that writes completions.
        let print = said.starts_with("failed printing to stdout") && said.contains("Broken pipe");
        if print || said.starts_with("failed to write completion file") && said.contains("BrokenPipe") {
            std::process::exit(0);
        }
        usual(panic);
    }));
}

/// An error with its causes; a cause that the text before already tells is not told again.
fn one_line(error: &anyhow::Error) -> String {
    let text = error
        .chain()
        .map(ToString::to_string)
        .reduce(|text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") });
    output::readable(&text.unwrap_or_default())
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Proxy(args) => proxy::run(args).await,
        Command::Egress(args) => egress::run(args).await,
        Command::Plugin(args) => plugin::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Workspace(args) => workspace::run(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Ps(args) => ps::run(args).await,
        Command::Logs(args) => logs::run(args).await,
        Command::Attach(args) => attach::run(args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Kill(args) => kill::run(args).await,
        Command::Pipeline(args) => pipeline::run(args).await,
        Command::Flow(args) => flow::run(args).await,
        Command::Top(args) => top::run(args).await,
        Command::Session(args) => session::run(args).await,
        Command::Discern(args) => discern::run(args).await,
        Command::Machine(args) => machine::run(args).await,
        Command::Image(args) => image::run(args).await,
        Command::Health(args) => health::run(args).await,
        Command::Capabilities(args) => capabilities::run(args).await,
        Command::Events(args) => events::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Audit(args) => audit::run(args).await,
        Command::Completions(args) => Ok(generate::completions(&args)),
        Command::Man(args) => generate::man(&args),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_short_way_to_run_a_command_takes_what_the_long_one_does() {
        let help = |mut all: clap::Command| {
            all.build();
            all.find_subcommand_mut("run").unwrap().render_long_help().to_string()
        };
        assert_eq!(help(Short::command()), help(Cli::command()));
    }

    /// Who knows one noun knows all: `ls` or `list` shows what there is, and what can be removed is so by `rm` or `remove`.
    #[test]
    fn every_noun_is_listed_and_removed_by_the_same_words() {
        let removed = ["egress", "image", "machine", "pipeline", "plugin", "session", "snapshot", "workspace"];
        let listed = [&removed[..], &["flow", "proxy"]].concat();
        let mut all = Cli::command();
        all.build();
        let snapshot = all.find_subcommand("machine").unwrap().find_subcommand("snapshot").unwrap();
        for (nouns, words) in [(listed, ["ls", "list"]), (removed.to_vec(), ["rm", "remove"])] {
            for noun in nouns {
                let command = if noun == "snapshot" { snapshot } else { all.find_subcommand(noun).unwrap() };
                let [one, other] = words.map(|word| command.find_subcommand(word).map(clap::Command::get_name));
                assert!(one.is_some() && one == other, "{noun} {words:?}: {one:?}, {other:?}");
            }
        }
    }

    /// Workspaces and machines are named by different rules, for what is on disk and a host name: each help says its own.
    #[test]
    fn the_help_says_how_things_may_be_called() {
        let mut all = Cli::command();
        all.build();
        let mut help = |noun: &str| {
            let create = all.find_subcommand_mut(noun).unwrap().find_subcommand_mut("create").unwrap();
            create.render_long_help().to_string().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let (most, label) = (shipote_bus::spec::LABEL_MAX, shipote_bus::spec::check_label);
        assert!(
            help("workspace")
                .contains(&format!("at most {most} bytes of any text but control characters, `/` and `~`"))
        );
        assert!(label("label", &"x".repeat(most)).is_ok() && label("label", &"x".repeat(most + 1)).is_err());
        assert!(
            label("label", "A b.c_d:é").is_ok()
                && ["/", "~", "\n", "-a"].iter().all(|bad| label("label", bad).is_err())
        );
        // that the service's rule is this one its refusal says: tests/appliance/machines.rs
        assert!(help("machine").contains("1 to 48 of a-z, 0-9 and `-`, with no `-` at either end"));
    }
}
