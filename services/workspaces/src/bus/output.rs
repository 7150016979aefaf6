//! What `OpenLog`, `OpenInput` and `ResizeTerminal` of the manager do: a command's output, and the way into it.

use shipote_audit::{Door, Event};
use shipote_service::Caller;
use ulid::Ulid;

use super::manager::{Manager, Options};
use super::parse::{flag, wrong_type};
use crate::audited::{By, audited};
use crate::effects::Selection;
use crate::error::Error;
use crate::state::CommandPhase;

impl Manager {
    /// A pipe with what is kept of a command's output.
    pub(super) async fn log(&self, command: &str, stream: &str, options: &Options) -> Result<zbus::OwnedFd, Error> {
        const OPTIONS: &[&str] = &["follow", "framed", "since_stderr", "since_stdout", "tail"];
        let (follow, framed) = (flag(options, "follow", OPTIONS)?, flag(options, "framed", OPTIONS)?);
        let number = |name: &str| match options.get(name) {
            Some(value) => u64::try_from(value).map_err(|_| wrong_type(name, "t")),
            None => Ok(0),
        };
        let tail = number("tail")?;
        let since = [number("since_stdout")?, number("since_stderr")?];
        let (stdout, stderr) = match stream {
            "both" | "" => (true, true),
            "stdout" => (true, false),
            "stderr" => (false, true),
            other => {
                let text = format!("read a log: stream {other:?} does not exist; there are stdout, stderr and both");
                return Err(Error::InvalidArgument(text));
            }
        };
        let wanted = command.to_owned();
        let found = self.doors.actor.ask(move |state, _| state.find_command(&wanted).map(|c| c.what.id)).await?;
        // an earlier instance's commands are known by their whole id only
        let id = match (found, Ulid::from_string(command)) {
            (Ok(id), _) | (Err(_), Ok(id)) => id,
            (Err(error), Err(_)) => return Err(error),
        };
        match self.logs.read(id, Selection { stdout, stderr, tail, follow, since, framed }) {
            Ok(Some(fd)) => Ok(fd.into()),
            Ok(None) => Err(Error::NoSuchCommand(format!(
                "{command} (with a log: the output of a command that was handed descriptors is not kept)"
            ))),
            Err(error) => Err(Error::Failed(format!("read the log of command {command}: {error}"))),
        }
    }

    /// A pipe into a command, or to its terminal; on record.
    pub(super) async fn input(
        &self,
        caller: Caller,
        command: &str,
        last: bool,
    ) -> Result<(zbus::OwnedFd, bool), Error> {
        let by = By { uid: caller.uid, door: Door::Bus };
        let open = async {
            let id = self.living(command).await?;
            let opened = self.attachments.open(id);
            let opened = opened.map_err(|e| Error::Failed(format!("attach to command {command}: {e}")))?;
            let opened = opened.ok_or_else(|| {
                Error::WrongState(format!(
                    "attach to command {command}: its input is not kept; run it with `--detach` and `--interactive` or \
                     `--tty`, or attach with `--no-stdin` to follow its output"
                ))
            })?;
            if last {
                self.attachments.close(id).await;
            }
            Ok(opened)
        };
        let (input, terminal) = audited(&self.doors.audit, Event::CommandAttach, command, by, open).await?;
        Ok((input.into(), terminal))
    }

    pub(super) async fn resize(&self, command: &str, columns: u16, rows: u16) -> Result<(), Error> {
        let id = self.living(command).await?;
        match self.attachments.resize(id, columns, rows) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let text = format!("resize the terminal of command {command}: none is kept for it");
                Err(Error::WrongState(text))
            }
            Err(error) => Err(Error::Failed(format!("resize the terminal of command {command}: {error}"))),
        }
    }

    /// A command that lives.
    async fn living(&self, command: &str) -> Result<Ulid, Error> {
        let name = command.to_owned();
        let found = self.doors.actor.ask(move |state, _| state.find_command(&name).map(|c| (c.what.id, c.phase)));
        match found.await?? {
            (_, CommandPhase::Ended) => Err(Error::WrongState(format!(
                "attach to command {command}: it has ended; `shipote logs` has its output"
            ))),
            (id, _) => Ok(id),
        }
    }
}
