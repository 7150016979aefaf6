//! `shipote attach`: the output of a detached command from here on, and what is typed goes to it.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use shipote_bus::workspaces::{ManagerProxy, WorkspacesError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::logs::{self, Wanted};
use crate::output;
use crate::run::terminal;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  id=$(shipote run --detach -t -- bash)\n  shipote attach $id\n  \
    id=$(shipote run --detach -i -- sort)\n  shipote attach --end-input $id < names.txt\n  \
    shipote attach --no-stdin $id\n\n\
    Several may be attached at a time: each sees all of the output, and what each types goes in.\n\
    Detaching, by the keys or by ending this command, leaves the command running. A restart of the\n\
    service is waited for.\n\n\
    Exit status: the command's own, as of `shipote run`; 0 after detaching.")]
pub(crate) struct AttachArgs {
    /// Command's id, or the last six characters or more of it
    id: String,
    /// Only show its output; for commands that were not started with --detach and -i or -t
    #[arg(long)]
    no_stdin: bool,
    /// The end of our input is the end of the command's: nobody can give it more afterwards
    #[arg(long, conflicts_with = "no_stdin")]
    end_input: bool,
    /// Begin with so much of the end of its output: 64K, or bytes; 0 for all that is kept
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = crate::units::bytes)]
    tail: u64,
    /// Keys that detach, typed one after the other: letters, or ctrl- and a letter; empty: none
    #[arg(long, value_name = "KEY,KEY", default_value = "ctrl-p,ctrl-q", value_parser = Keys::parse)]
    detach_keys: Keys,
    /// Print one JSON object a chunk, as `shipote logs` does, and one when it has ended
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: AttachArgs) -> anyhow::Result<ExitCode> {
    let manager = output::workspaces().await?;
    let input = Input::default();
    let mut is_terminal = false;
    let detached = Arc::new(Notify::new());
    let mut raw = None;
    if !args.no_stdin {
        is_terminal = open(&manager, &args, &input).await.map_err(|e| output::refusal(&e))?;
        if is_terminal {
            raw = terminal::Raw::enter()?;
        }
        let (input, keys, detached) = (input.clone(), args.detach_keys.clone(), Arc::clone(&detached));
        // this thread ends with the process: it may sit in a read of standard input
        std::thread::spawn(move || feed(&input, keys, &detached));
    }
    let mut window = signal(SignalKind::window_change()).context("wait for SIGWINCH")?;
    let sized = is_terminal && io::stdout().is_terminal();
    let wanted = Wanted {
        id: args.id.clone(),
        stream: "both".to_owned(),
        follow: true,
        tail: args.tail,
        since: [0, 0],
        json: args.json,
    };
    let again = async || {
        // the pipe into a terminal was the service's, the one into a command is its own
        if is_terminal { open(&manager, &args, &input).await.map(drop) } else { Ok(()) }
    };
    let outcome = {
        let shown = logs::show(&manager, wanted, again);
        tokio::pin!(shown);
        if sized {
            resize(&manager, &args.id).await;
        }
        loop {
            tokio::select! {
                shown = &mut shown => break shown.map(|()| true),
                () = detached.notified() => break Ok(false),
                _ = window.recv(), if sized => resize(&manager, &args.id).await,
            }
        }
    };
    drop(raw);
    let status = match outcome? {
        true => Some(ended(&manager, &args.id).await?),
        false => None,
    };
    if args.json {
        output::json(&json!({"id": args.id, "detached": status.is_none(), "exit_status": status}))?;
    } else if status.is_none() {
        eprintln!("shipote: detached; `shipote attach {}` attaches again", args.id);
    }
    // tokio would wait for a thread that reads the log or standard input
    std::process::exit(status.unwrap_or_default() & 0xff)
}

/// Opens the way in; whether it leads to a terminal.
async fn open(manager: &ManagerProxy<'_>, args: &AttachArgs, input: &Input) -> Result<bool, WorkspacesError> {
    let options = [("last", args.end_input.into())].into();
    let (descriptor, is_terminal) = manager.open_input(&args.id, options).await?;
    input.put(OwnedFd::from(descriptor));
    Ok(is_terminal)
}

async fn resize(manager: &ManagerProxy<'_>, id: &str) {
    let (cols, rows) = terminal::size();
    // a command that has ended has no size, which its output tells
    let _ = manager.resize_terminal(id, cols, rows).await;
}

/// How a command ended whose output has. The output may end before: a command may close it and live on, and a service
/// that was restarted hears of the exit a moment after it.
async fn ended(manager: &ManagerProxy<'_>, id: &str) -> anyhow::Result<i32> {
    let wanted = id.to_ascii_uppercase();
    let mut pause = Duration::from_millis(20);
    loop {
        let all = manager.list_commands("", [].into()).await.map_err(|e| output::refusal(&e))?;
        let command = all.iter().find(|command| command.id.ends_with(&wanted));
        match command.map(|command| command.exit_status) {
            Some(Some(status)) => return Ok(status),
            Some(None) => tokio::time::sleep(pause).await,
            None => anyhow::bail!("attach {id}: its output has ended, how it ended is not known any more"),
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// The descriptor that is written to, which may come to be another one.
#[derive(Debug, Clone, Default)]
struct Input(Arc<(Mutex<Option<Arc<File>>>, Condvar)>);

impl Input {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, descriptor: OwnedFd) {
        *self.lock() = Some(Arc::new(File::from(descriptor)));
        self.0.1.notify_all();
    }

    /// The present one; waits for the next where it was given up.
    fn get(&self) -> Arc<File> {
        let mut now = self.lock();
        loop {
            match &*now {
                Some(file) => return Arc::clone(file),
                None => now = self.0.1.wait(now).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// It is broken, or nothing more will be written.
    fn give_up(&self, file: &Arc<File>) {
        let mut now = self.lock();
        if now.as_ref().is_some_and(|now| Arc::ptr_eq(now, file)) {
            *now = None;
        }
    }

    fn write(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let file = self.get();
            match (&*file).write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.give_up(&file),
            }
        }
    }
}

/// Copies standard input to the command, until its end or until the keys are typed.
fn feed(input: &Input, mut keys: Keys, detached: &Notify) {
    let mut buffer = [0; 4096];
    let mut stdin = io::stdin().lock();
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) | Err(_) => {
                let file = input.get();
                return input.give_up(&file);
            }
            Ok(n) => {
                let (bytes, detach) = keys.take(&buffer[..n]);
                input.write(&bytes);
                if detach {
                    return detached.notify_one();
                }
            }
        }
    }
}

/// Keys that detach when they are typed one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Keys {
    sequence: Vec<u8>,
    /// So many of them were typed; they are kept back until it is clear whether the rest comes.
    typed: usize,
}

impl Keys {
    fn parse(text: &str) -> Result<Self, String> {
        let key = |name: &str| match (name.strip_prefix("ctrl-"), name.as_bytes()) {
            (Some(letter), _) => match letter.as_bytes() {
                [letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => Ok(letter & 0x1f),
                _ => Err(format!("{name:?} is no key; after ctrl- comes a small letter or one of @ [ \\ ] ^ _")),
            },
            (None, [key @ 0x21..=0x7e]) => Ok(*key),
            _ => Err(format!("{name:?} is no key; give a character, or ctrl- and a letter, as in ctrl-p,ctrl-q")),
        };
        let sequence = if text.is_empty() { Vec::new() } else { text.split(',').map(key).collect::<Result<_, _>>()? };
        Ok(Keys { sequence, typed: 0 })
    }

    /// What of these bytes goes to the command, and whether the keys were typed.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut through = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.sequence.get(self.typed) != Some(&byte) {
                through.extend_from_slice(&self.sequence[..self.typed]);
                self.typed = 0;
            }
            if self.sequence.get(self.typed) == Some(&byte) {
                self.typed += 1;
                if self.typed == self.sequence.len() {
                    return (through, true);
                }
            } else {
                through.push(byte);
            }
        }
        (through, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_detach_only_as_a_whole_and_the_rest_goes_through() {
        /// Keys, what is typed piece by piece, what goes through, and whether it detaches.
        type Row<'a> = (&'a str, &'a [&'a [u8]], &'a [u8], bool);
        let table: &[Row<'_>] = &[
            ("ctrl-p,ctrl-q", &[b"ab\x10\x11cd"], b"ab", true),
            ("ctrl-p,ctrl-q", &[b"a\x10", b"\x11"], b"a", true),
            ("ctrl-p,ctrl-q", &[b"a\x10b\x11", b"c"], b"a\x10b\x11c", false),
            ("ctrl-p,ctrl-q", &[b"\x10\x10\x11"], b"\x10", true),
            ("~,.", &[b"x~~."], b"x~", true),
            ("ctrl-]", &[b"a\x1db"], b"a", true),
            ("", &[b"\x10\x11"], b"\x10\x11", false),
        ];
        for (keys, typed, through, detach) in table {
            let mut keys = Keys::parse(keys).unwrap();
            let mut all = Vec::new();
            let mut found = false;
            for bytes in *typed {
                let (some, detached) = keys.take(bytes);
                all.extend(some);
                found |= detached;
            }
            assert_eq!((all.as_slice(), found), (*through, *detach), "{keys:?}");
        }
        for bad in ["ctrl-", "ctrl-P", "pq", "ctrl-p,", "ä"] {
            assert!(Keys::parse(bad).is_err(), "{bad}");
        }
    }
}
