//! A command in a machine: its standard descriptors are ours, over the agent's protocol.
//!
//! ```text
//!   stdin ──▶ Stdin frames ──▶ agent      end of file: an empty one
//!   stdout, stderr ◀── frames ◀── agent   a reader that has gone ends the connection, with it the command, then us
//! ```

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};
use shipote_agent_protocol::{AgentRequest, AgentResponse, codes, read_message, write_message};
use shipote_node::MachineCommand as Job;
use tokio::net::UnixStream as Stream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::STATUS_FAILED;
use crate::given::Given;

/// Bytes of a frame of input.
const CHUNK: usize = 64 * 1024;
const STATUS_NOT_EXECUTABLE: u8 = 126;
const STATUS_NOT_FOUND: u8 = 127;
/// How long the agent may take to end a command whose output nobody reads any more.
const PARTING: Duration = Duration::from_secs(2);

/// Runs it to its end; gives its exit status.
pub(crate) fn run(job: &Job, given: Given) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    // A reader that has gone is heard of by the write that fails: there is the command to be ended first.
    // SAFETY: no handler of ours is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let status = runtime.block_on(session(job, given.into_fd()))?;
    // A thread may still wait for input that nobody reads any more.
    std::process::exit(status.into())
}

async fn session(job: &Job, connection: OwnedFd) -> anyhow::Result<u8> {
    let machine = &job.machine;
    let stream = UnixStream::from(connection);
    stream.set_nonblocking(true).context("use the machine's connection")?;
    let (mut reader, mut writer) = Stream::from_std(stream).context("use the machine's connection")?.into_split();
    let at = || format!("run {:?} in machine {machine}", job.command.first().map_or("", String::as_str));
    write_message(&mut writer, &request(job)).await.with_context(at)?;
    match read_message(&mut reader).await.with_context(at)? {
        Some(AgentResponse::Started) => {}
        Some(AgentResponse::Error { message, code }) => {
            eprintln!("shipote: {}: {message}", at());
            return Ok(status_of_refusal(code.as_deref(), &message));
        }
        _ => bail!("{}: its agent went away", at()),
    }
    let feeding = tokio::spawn(feed(writer));
    let outcome = show(&mut reader).await;
    feeding.abort();
    let _ = feeding.await;
    if outcome.as_ref().is_err_and(reader_has_gone) {
        part(&mut reader).await;
    }
    outcome.with_context(at)
}

fn reader_has_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
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

fn request(job: &Job) -> AgentRequest {
    let (command, env) = (job.command.clone(), job.env.clone());
    let (workdir, timeout_ms, interactive, tty, background) = (None, None, true, false, false);
    match job.image.clone() {
        None => AgentRequest::VmExec { command, env, workdir, timeout_ms, interactive, tty, background },
        Some(image) => AgentRequest::Run {
            image,
            command,
            env,
            workdir,
            user: None,
            mounts: vec![],
            timeout_ms,
            interactive,
            tty,
            detached: false,
            persistent_overlay_id: None,
            background,
        },
    }
}

/// What env(1) would leave with.
fn status_of_refusal(code: Option<&str>, message: &str) -> u8 {
    match code {
        Some(codes::SPAWN_FAILED) if message.contains("os error 2)") => STATUS_NOT_FOUND,
        Some(codes::SPAWN_FAILED) if message.contains("os error 13)") => STATUS_NOT_EXECUTABLE,
        _ => STATUS_FAILED,
    }
}

/// Writes what comes, up to the exit status.
async fn show(reader: &mut OwnedReadHalf) -> anyhow::Result<u8> {
    loop {
        match read_message(reader).await? {
            Some(AgentResponse::Stdout { data }) => {
                let mut out = std::io::stdout().lock();
                out.write_all(&data).and_then(|()| out.flush()).context("write to standard output")?;
            }
            Some(AgentResponse::Stderr { data }) => {
                std::io::stderr().write_all(&data).context("write to standard error")?;
            }
            Some(AgentResponse::Exited { exit_code }) => return Ok((exit_code & 0xff) as u8),
            Some(AgentResponse::Error { message, .. }) => eprintln!("shipote: {message}"),
            Some(_) => {}
            None => bail!("the machine went away"),
        }
    }
}

/// Passes on standard input. The connection stays open behind it: closing it would end the command.
async fn feed(mut writer: OwnedWriteHalf) -> anyhow::Result<()> {
    let (sender, mut input) = mpsc::channel::<Vec<u8>>(1);
    std::thread::Builder::new().name("input".to_owned()).spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = std::io::stdin().lock().read(&mut buffer).unwrap_or(0);
            if sender.blocking_send(buffer[..n].to_vec()).is_err() || n == 0 {
                return;
            }
        }
    })?;
    while let Some(data) = input.recv().await {
        write_message(&mut writer, &AgentRequest::Stdin { data }).await?;
    }
    std::future::pending().await
}
