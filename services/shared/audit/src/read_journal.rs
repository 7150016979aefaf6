//! Reading records back from the journal, by `journalctl`: the one reader of its file format that is kept up with it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::entry::Entry;
use crate::error::AuditError;
use crate::event::{Event, action_matches};
use crate::query::{Entries, Query, Source};

/// Entries from a running `journalctl`, which ends with this value.
#[derive(Debug)]
pub(crate) struct JournalEntries {
    program: PathBuf,
    child: Child,
    lines: BufReader<ChildStdout>,
    /// Where its complaints go: a file, so that it can never be stopped by a full pipe.
    complaints: File,
    damaged: u64,
    ended: bool,
}

/// As [`read`](crate::read) of the journal, with this `journalctl`.
///
/// # Errors
/// It cannot be run. That it failed comes as the last item of the entries.
pub fn read_journal(journalctl: &Path, query: &Query) -> Result<Entries, AuditError> {
    let failed =
        |error: std::io::Error| AuditError::Journalctl { program: journalctl.to_owned(), reason: error.to_string() };
    let complaints = memfd_create("journalctl-stderr", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let complaints = File::from(complaints);
    let mut child = Command::new(journalctl)
        .args(arguments(query))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints.try_clone().map_err(failed)?)
        .spawn()
        .map_err(failed)?;
    let Some(stdout) = child.stdout.take() else {
        return Err(failed(std::io::Error::other("it has no standard output")));
    };
    let lines = BufReader::new(stdout);
    let program = journalctl.to_owned();
    Ok(Entries(Source::Journal(JournalEntries { program, child, lines, complaints, damaged: 0, ended: false })))
}

/// The arguments by which `journalctl` does the whole of the selection, so that a limit counts what is asked for.
fn arguments(query: &Query) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--output=json", "--all", "--quiet", "--no-pager"].map(str::to_owned).into_iter().collect();
    let at = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("@{}.{:06}", since.as_secs(), since.subsec_micros())
    };
    arguments.extend(query.since.map(|time| format!("--since={}", at(time))));
    arguments.extend(query.until.map(|time| format!("--until={}", at(time))));
    arguments.extend(query.limit.map(|limit| format!("--lines={limit}")));
    if query.follow {
        // By itself `--follow` means this boot only (since systemd 251). Only `--merge` undoes that in every release,
        // and where the two are at odds (251 to 253), `--boot=all` reconciles them. `--merge` in turn would bring in
        // what other machines have sent here: hence the match.
        arguments.extend(["--follow", "--merge", "--boot=all"].map(str::to_owned));
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        if !machine.trim().is_empty() {
            arguments.push(format!("_MACHINE_ID={}", machine.trim()));
        }
        if query.limit.is_none() {
            arguments.push("--no-tail".to_owned());
        }
    }
    // Matches of one field are alternatives, those of different fields must all hold (journalctl(1)).
    let pattern = query.action.as_deref();
    let wanted = |event: &&Event| pattern.is_none_or(|pattern| action_matches(pattern, event.action()));
    let mut events = Event::ALL.iter().filter(wanted).peekable();
    if events.peek().is_none() {
        // No kind of ours: ask for what was asked for, which finds nothing or an older release's records.
        arguments.extend(pattern.map(|pattern| format!("SHIPOTE_ACTION={pattern}")));
    }
    arguments.extend(events.map(|event| format!("MESSAGE_ID={}", event.message_id())));
    arguments.extend(query.user.map(|user| format!("SHIPOTE_UID={user}")));
    arguments.extend(query.object.as_ref().map(|object| format!("SHIPOTE_OBJECT={object}")));
    arguments.extend(query.units.iter().map(|unit| format!("_SYSTEMD_UNIT={unit}")));
    arguments
}

impl JournalEntries {
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged
    }

    fn error(&self, reason: String) -> AuditError {
        AuditError::Journalctl { program: self.program.clone(), reason }
    }

    /// What to say when its output has ended: nothing, if it went well.
    fn end(&mut self) -> Option<AuditError> {
        self.ended = true;
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(error) => return Some(self.error(error.to_string())),
        };
        let mut said = String::new();
        let _ = self.complaints.rewind();
        let _ = (&self.complaints).take(4096).read_to_string(&mut said);
        // It also ends with status 1 when nothing matched, and then says nothing.
        if status.success() || (status.code() == Some(1) && said.trim().is_empty()) {
            return None;
        }
        let reason = said.lines().next().map_or_else(|| status.to_string(), str::to_owned);
        Some(self.error(reason))
    }
}

impl Iterator for JournalEntries {
    type Item = Result<Entry, AuditError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let mut line = Vec::new();
            match self.lines.read_until(b'\n', &mut line) {
                Ok(0) => return self.end().map(Err),
                Ok(_) => match Entry::from_json(&line) {
                    Some(entry) => return Some(Ok(entry)),
                    None => self.damaged += 1,
                },
                Err(error) => {
                    self.ended = true;
                    return Some(Err(self.error(error.to_string())));
                }
            }
        }
        None
    }
}

impl Drop for JournalEntries {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_query_becomes_matches() {
        let query = Query {
            user: Some(1000),
            action: Some("*.drop".to_owned()),
            object: Some("web".to_owned()),
            since: Some(UNIX_EPOCH + Duration::from_micros(5_000_007)),
            limit: Some(3),
            units: vec!["shipote-proxy.service".to_owned()],
            ..Query::default()
        };
        let id = |event: Event| format!("MESSAGE_ID={}", event.message_id());
        let expected = [
            "--output=json".to_owned(),
            "--all".to_owned(),
            "--quiet".to_owned(),
            "--no-pager".to_owned(),
            "--since=@5.000007".to_owned(),
            "--lines=3".to_owned(),
            id(Event::PipelineDrop),
            id(Event::FlowDrop),
            id(Event::ImageDrop),
            "SHIPOTE_UID=1000".to_owned(),
            "SHIPOTE_OBJECT=web".to_owned(),
            "_SYSTEMD_UNIT=shipote-proxy.service".to_owned(),
        ];
        assert_eq!(arguments(&query), expected);
        let following = arguments(&Query { follow: true, ..Query::default() });
        for option in ["--follow", "--merge", "--boot=all", "--no-tail"] {
            assert!(following.iter().any(|argument| argument == option), "{option}");
        }
        assert!(
            !arguments(&Query { follow: true, limit: Some(1), ..Query::default() }).contains(&"--no-tail".to_owned())
        );
        let unknown = Query { action: Some("nonsense".to_owned()), ..Query::default() };
        assert_eq!(arguments(&unknown).last().map(String::as_str), Some("SHIPOTE_ACTION=nonsense"));
    }
}
