//! A command in a machine: its standard descriptors are ours, over the agent's protocol.
//!
//! ```text
//!   stdin ──▶ Stdin frames ──▶ agent      end of file: an empty one
//!   stdout, stderr ◀── frames ◀── agent   a reader that has gone ends the connection, with it the command, then us
//! ```

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};
use shipote_agent_protocol::session::{self, Session, ShowError};
use shipote_agent_protocol::{AgentRequest, AgentResponse, read_message, write_message};
use shipote_node::MachineCommand as Job;
use tokio::net::UnixStream as Stream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::given::Given;

/// How long the agent may take to end a command whose output nobody reads any more.
const PARTING: Duration = Duration::from_secs(2);

/// Runs it to its end; gives its exit status.
pub(crate) fn run(job: &Job, given: Given) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    // A reader that has gone is heard of by the write that fails: there is the command to be ended first.
    // SAFETY: no handler of ours is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let status = runtime.block_on(attend(job, given.into_fd()))?;
    // A thread may still wait for input that nobody reads any more.
    std::process::exit(status.into())
}

async fn attend(job: &Job, connection: OwnedFd) -> anyhow::Result<u8> {
    let machine = &job.machine;
    let stream = UnixStream::from(connection);
    stream.set_nonblocking(true).context("use the machine's connection")?;
    let (mut reader, mut writer) = Stream::from_std(stream).context("use the machine's connection")?.into_split();
    let at = || format!("run {:?} in machine {machine}", job.command.first().map_or("", String::as_str));
    let (command, image, env) = (job.command.clone(), job.image.clone(), job.env.clone());
    let request = Session { command, image, env, ..Session::default() }.request();
    write_message(&mut writer, &request).await.with_context(at)?;
    match read_message(&mut reader).await.with_context(at)? {
        Some(AgentResponse::Started) => {}
        Some(AgentResponse::Error { message, code }) => {
            eprintln!("shipote: {}: {message}", at());
            return Ok(session::status_of_refusal(code.as_deref(), &message));
        }
        _ => bail!("{}: its agent went away", at()),
    }
    let feeding = tokio::spawn(feed(writer));
    let outcome = session::show(&mut reader, std::io::stdout().lock(), std::io::stderr()).await;
    feeding.abort();
    let _ = feeding.await;
    if outcome.as_ref().is_err_and(reader_has_gone) {
        part(&mut reader).await;
    }
    outcome.with_context(at)
}

fn reader_has_gone(error: &ShowError) -> bool {
    matches!(error, ShowError::Write(_, error) if error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Ends the connection whose writing end is closed already, and dies as programs do whose output nobody reads.
///
/// What still comes is read: vhost-device-vsock hears of no end on a socket that is closed with bytes unread in it, and
/// the command would go on in the machine.
async fn part(reader: &mut OwnedReadHalf) {
    let rest = async { while let Ok(Some(_)) = read_message::<AgentResponse, _>(reader).await {} };
    let _ = tokio::time::timeout(PARTING, rest).await;
    // SAFETY: no handler of ours is involved, and this process has nothing more to do.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::raise(libc::SIGPIPE);
    }
}

/// Passes on standard input. The connection stays open behind it: closing it would end the command.
async fn feed(mut writer: OwnedWriteHalf) -> anyhow::Result<()> {
    let mut input = session::input()?;
    while let Some(data) = input.recv().await {
        write_message(&mut writer, &AgentRequest::Stdin { data }).await?;
    }
    std::future::pending().await
}
