//! A program that runs: its pipes, what it says on the side, and how it ended.

use std::cell::RefCell;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use shipote_bus::workspaces::Completion;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use crate::http::body::One;
use crate::http1::body::SourceError;
use crate::io::{IoError, Pipes, Stream};
use crate::plugin::said;

/// Bytes of standard error that go to the log; the rest is read and thrown away.
const SAID_MAX: usize = 4 << 10;
/// Bytes of a line that says how a program ended.
const COMPLETION_MAX: u64 = 8 << 10;
/// How long a program that has closed its output may take to end before its answer counts as whole.
const END: Duration = Duration::from_secs(1);

/// The proxy's ends of a program's pipes, and the program's.
pub(super) struct Ends {
    pub(super) stream: Stream,
    pub(super) said: Said,
    pub(super) theirs: [OwnedFd; 3],
}

/// Makes the pipes of a program. Has to be called on a worker.
pub(super) fn pipes(rule: &str) -> io::Result<Ends> {
    let (their_input, input): (PipeReader, PipeWriter) = io::pipe()?;
    let (output, their_output) = io::pipe()?;
    let (error, their_error) = io::pipe()?;
    let input = pipe::Sender::from_owned_fd(input.into())?;
    let output = pipe::Receiver::from_owned_fd(output.into())?;
    let error = pipe::Receiver::from_owned_fd(error.into())?;
    let said = Said::default();
    tokio::task::spawn_local(listen(error, said.clone(), rule.to_owned()));
    Ok(Ends {
        stream: Stream::Pipes(Box::new(Pipes { input: Some(input), output })),
        said,
        theirs: [their_input.into(), their_output.into(), their_error.into()],
    })
}

/// What a program wrote to standard error.
#[derive(Debug, Clone, Default)]
pub(super) struct Said(Rc<RefCell<Vec<u8>>>);

impl Said {
    /// The first line, as far as it is there.
    pub(super) fn first_line(&self) -> String {
        let bytes = self.0.borrow();
        let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        String::from_utf8_lossy(&line[..line.len().min(200)]).trim().to_owned()
    }
}

/// Reads standard error to its end, so that no program waits for a reader, and logs it.
async fn listen(mut error: pipe::Receiver, said: Said, rule: String) {
    let mut piece = vec![0; 4096];
    let mut thrown = 0;
    loop {
        match error.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                let mut kept = said.0.borrow_mut();
                let room = SAID_MAX.saturating_sub(kept.len()).min(n);
                kept.extend_from_slice(&piece[..room]);
                thrown += n - room;
            }
        }
    }
    let kept = said.0.borrow();
    if !kept.is_empty() {
        let text = said::line(String::from_utf8_lossy(&kept).trim_end(), &[]);
        tracing::warn!(rule, thrown, "a program of the rule said: {text}");
    }
}

/// How a program ends.
#[derive(Debug)]
pub(crate) struct End(pipe::Receiver);

impl End {
    pub(super) fn new(completion: OwnedFd) -> io::Result<Self> {
        pipe::Receiver::from_owned_fd(completion).map(Self)
    }

    /// How it ended; the error says so where nobody knows.
    pub(super) async fn wait(&mut self) -> Result<Completion, String> {
        let mut line = Vec::new();
        let read = (&mut self.0).take(COMPLETION_MAX).read_to_end(&mut line).await;
        read.map_err(|e| format!("hear how the program ended: {e}"))?;
        // Who takes over a service that was killed may say it a second time.
        let first = line.split(|b| *b == b'\n').next().unwrap_or_default();
        serde_json::from_slice(first).map_err(|_| "nobody says how the program ended".to_owned())
    }

    /// Why an answer that has come to its end may not be whole.
    async fn broken(&mut self) -> Option<String> {
        match tokio::time::timeout(END, self.wait()).await {
            // It closed its output and goes on: that is its right.
            Err(_) => None,
            Ok(Ok(Completion { exit_status: 0..=123, reason, .. })) if reason == "exited" => None,
            Ok(Ok(completion)) => Some(describe(&completion)),
            Ok(Err(reason)) => Some(reason),
        }
    }
}

/// How a program ended, in words.
pub(super) fn describe(completion: &Completion) -> String {
    let Completion { exit_status, reason, message, .. } = completion;
    let colon = if message.is_empty() { "" } else { ": " };
    format!("the program ended with status {exit_status} ({reason}){colon}{message}")
}

/// What a program writes, where nothing but its end says how long it is: whole only if the program was not ended by a
/// signal or a limit.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    one: One<'a>,
    end: Option<&'a mut End>,
}

impl<'a> Output<'a> {
    pub(super) fn new(one: One<'a>, end: &'a mut End) -> Self {
        Self { one, end: Some(end) }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        if let Some(piece) = self.one.next().await? {
            return Ok(Some(piece));
        }
        if let Some(end) = self.end.take()
            && let Some(reason) = end.broken().await
        {
            return Err(IoError::System(io::Error::other(reason)).into());
        }
        Ok(None)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.end.is_none()
    }
}
