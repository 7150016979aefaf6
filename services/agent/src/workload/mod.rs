//! Ports 5000 and 5001: many commands at once on one connection, told apart by `request_id`, and a stream of what all of
//! them say.
//!
//! Every connection begins with `Auth`. Output is passed on as the other side takes it, so that nothing is cut on port
//! 5000; port 5001 keeps up with all commands at once and says `truncated` where it could not.
//!
//! Invariant: a command ends with its connection, and all of them end before the machine does.

mod command;
mod logs;

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shipote_agent_protocol::{
    GuestMessage, HostMessage, MAX_DRAIN, MAX_FRAME, PROTOCOL_VERSION, read_body, read_length, skip_body,
    workload_token, write_message,
};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::inbox::Peer;
use crate::outbox::{Gone, Outbox};

pub(crate) use logs::serve as serve_logs;

/// How long `Auth` may take, and how large it may be.
const AUTH_TIME: Duration = Duration::from_secs(10);
const AUTH_MAX: u32 = 4096;
/// Commands of one connection at once.
const COMMANDS: usize = 64;
/// Messages that port 5001 may be behind.
const BEHIND: usize = 64;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(60);
/// How long ended commands may take to be gone after they were killed.
const KILL_TIME: Duration = Duration::from_secs(2);
/// How long the host may take to read the last words.
const LAST_WORD: Duration = Duration::from_millis(300);
/// Bodies up to this size need no share of the common budget.
const SMALL: u32 = 64 * 1024;

/// What all connections of both ports share.
pub(crate) struct Workload {
    /// Processes of all commands that run.
    running: Mutex<HashMap<i32, ()>>,
    /// Told when one has ended.
    ended: Notify,
    said: broadcast::Sender<Arc<GuestMessage>>,
}

impl Default for Workload {
    fn default() -> Self {
        Self { running: Mutex::default(), ended: Notify::new(), said: broadcast::channel(BEHIND).0 }
    }
}

impl Workload {
    fn running(&self) -> MutexGuard<'_, HashMap<i32, ()>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no command runs any more.
    async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Before looking, so that an end in between is not missed.
            ended.as_mut().enable();
            if self.running().is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn signal_all(&self, agent: &Agent, signal: i32) {
        for pid in self.running().keys() {
            agent.reaper.signal(*pid, signal);
        }
    }
}

/// Checks the first message of a connection; `false` where it is no use any more.
async fn admitted(stream: &mut UnixStream, agent: &Agent) -> bool {
    let first = async {
        match read_length(stream).await {
            Ok(Some(length @ ..=AUTH_MAX)) => serde_json::from_slice(&read_body(stream, length).await.ok()?).ok(),
            _ => None,
        }
    };
    let first: Option<HostMessage> = tokio::time::timeout(AUTH_TIME, first).await.unwrap_or_default();
    let good = match first {
        Some(HostMessage::Auth { token, protocol_version }) if protocol_version == PROTOCOL_VERSION => {
            // A process without a secret is guarded by its socket's mode alone.
            agent.secret.as_ref().is_none_or(|secret| same(&token, &workload_token(secret)))
        }
        Some(HostMessage::Auth { protocol_version, .. }) => {
            let message = format!("protocol version {protocol_version}; this agent speaks {PROTOCOL_VERSION}");
            let _ = write_message(stream, &GuestMessage::Error { request_id: None, message }).await;
            false
        }
        _ => false,
    };
    let answers: &[GuestMessage] =
        if good { &[GuestMessage::AuthOk, GuestMessage::Ready] } else { &[GuestMessage::AuthFailed] };
    for answer in answers {
        if write_message(stream, answer).await.is_err() {
            return false;
        }
    }
    good
}

/// Compared in full, so that the time taken tells nothing of where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// Serves a connection to port 5000 to its end.
pub(crate) async fn serve(mut stream: UnixStream, agent: Arc<Agent>) {
    if !admitted(&mut stream, &agent).await {
        return;
    }
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let peer = Arc::new(Peer::new(socket));
    let (reader, writer) = stream.into_split();
    let (outbox, mut writing) = Outbox::new(writer, Arc::clone(&peer));
    let mut connection = Connection { agent: Arc::clone(&agent), outbox, commands: HashMap::new() };
    // Commands that are dropped are killed.
    let mut tasks = JoinSet::new();
    let stop = tokio::select! {
        stop = connection.run(reader, &mut tasks) => stop,
        () = peer.gone() => None,
    };
    drop(tasks);
    drop(connection);
    tokio::select! {
        _ = &mut writing => {}
        () = peer.gone() => writing.abort(),
    }
    if stop.is_some() {
        // What was written may not have left the machine: the host closes once it has read it.
        let _ = tokio::time::timeout(LAST_WORD, peer.gone()).await;
        agent.power.off();
    }
}

struct Connection {
    agent: Arc<Agent>,
    outbox: Outbox,
    /// Processes of this connection's commands, by request.
    commands: HashMap<u64, i32>,
}

/// The machine is to end.
struct Stop;

impl Connection {
    async fn run(&mut self, mut reader: OwnedReadHalf, tasks: &mut JoinSet<u64>) -> Option<Stop> {
        let mut open = true;
        loop {
            // A message is read in one go, in a future that lives as long as it takes: it is never begun twice.
            let message = {
                let reading = next(&mut reader, &self.agent);
                tokio::pin!(reading);
                loop {
                    tokio::select! {
                        message = &mut reading, if open => break message,
                        Some(ended) = tasks.join_next() => drop(self.commands.remove(&ended.unwrap_or(u64::MAX))),
                        else => return None,
                    }
                }
            };
            let handled = match message {
                Next::Message(message) => match *message {
                    HostMessage::Stop { timeout_ms } => {
                        self.stop(Duration::from_millis(timeout_ms), tasks).await;
                        return Some(Stop);
                    }
                    message => self.handle(message, tasks).await,
                },
                Next::Refused(message) => self.refuse(None, message).await,
                // Commands go on: their output still has a reader.
                Next::EndOfInput => {
                    open = false;
                    if tasks.is_empty() {
                        return None;
                    }
                    Ok(())
                }
                Next::Broken => return None,
            };
            if handled.is_err() {
                return None;
            }
            if !open {
                while tasks.join_next().await.is_some() {}
                return None;
            }
        }
    }

    async fn refuse(&self, request_id: Option<u64>, message: String) -> Result<(), Gone> {
        self.outbox.send_any(&GuestMessage::Error { request_id, message }).await
    }

    async fn handle(&mut self, message: HostMessage, tasks: &mut JoinSet<u64>) -> Result<(), Gone> {
        let (request, wanted) = match message {
            HostMessage::Run { request_id, command, env, workdir } => {
                (request_id, command::Wanted { argv: command, env, workdir, tty: false })
            }
            HostMessage::Exec { request_id, command, tty } => {
                (request_id, command::Wanted { argv: command, env: vec![], workdir: None, tty })
            }
            HostMessage::Signal { request_id, signal } => {
                return match self.commands.get(&request_id) {
                    None => self.refuse(Some(request_id), "no command of this request runs".to_owned()).await,
                    Some(_) if !(1..=64).contains(&signal) => {
                        self.refuse(Some(request_id), format!("{signal} is no signal")).await
                    }
                    Some(pid) => {
                        self.agent.reaper.signal(*pid, signal);
                        Ok(())
                    }
                };
            }
            HostMessage::Auth { .. } => return self.refuse(None, "the connection is authenticated".to_owned()).await,
            HostMessage::Stop { .. } => return Ok(()),
        };
        if self.commands.contains_key(&request) {
            return self.refuse(Some(request), "a command of this request runs already".to_owned()).await;
        }
        if self.commands.len() >= COMMANDS {
            return self
                .refuse(Some(request), format!("{COMMANDS} commands run on this connection; wait for one"))
                .await;
        }
        match command::start(&self.agent, request, &wanted, self.outbox.clone()) {
            Ok((pid, running)) => {
                self.commands.insert(request, pid);
                self.agent.workload.running().insert(pid, ());
                self.outbox.send_any(&GuestMessage::Started { request_id: request }).await?;
                tasks.spawn(running);
                Ok(())
            }
            Err(reason) => self.refuse(Some(request), reason).await,
        }
    }

    /// Ends every command of every connection, the gentle way first.
    async fn stop(&mut self, time: Duration, tasks: &mut JoinSet<u64>) {
        let (agent, workload) = (&self.agent, &self.agent.workload);
        let ending = async {
            workload.signal_all(agent, libc_signal(nix::sys::signal::Signal::SIGTERM));
            if tokio::time::timeout(time, workload.idle()).await.is_err() {
                workload.signal_all(agent, libc_signal(nix::sys::signal::Signal::SIGKILL));
                let _ = tokio::time::timeout(KILL_TIME, workload.idle()).await;
            }
        };
        tokio::join!(ending, async { while tasks.join_next().await.is_some() {} });
        agent.power.sync();
    }
}

fn libc_signal(signal: nix::sys::signal::Signal) -> i32 {
    signal as i32
}

/// What came in.
enum Next {
    Message(Box<HostMessage>),
    /// A frame that is no message; why.
    Refused(String),
    EndOfInput,
    /// The stream is of no further use.
    Broken,
}

async fn next(reader: &mut OwnedReadHalf, agent: &Agent) -> Next {
    let length = match read_length(reader).await {
        Ok(Some(length)) => length,
        Ok(None) => return Next::EndOfInput,
        Err(_) => return Next::Broken,
    };
    if length > MAX_DRAIN {
        return Next::Broken;
    }
    if length > MAX_FRAME {
        return match skip_body(reader, length).await {
            Ok(()) => Next::Refused(format!("a frame of {length} bytes; the limit is {MAX_FRAME}")),
            Err(_) => Next::Broken,
        };
    }
    let share = if length > SMALL { length.div_ceil(1024) } else { 0 };
    let Ok(_memory) = agent.bodies.acquire_many(share).await else { return Next::Broken };
    let Ok(Ok(body)) = tokio::time::timeout(BODY_TIME, read_body(reader, length)).await else { return Next::Broken };
    match serde_json::from_slice(&body) {
        Ok(message) => Next::Message(Box::new(message)),
        Err(error) => Next::Refused(error.to_string()),
    }
}
