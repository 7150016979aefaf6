//! One connection: the greeting, then requests one after another.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::{
    AgentRequest, AgentResponse, Hello, MAX_FRAME, codes, read_body, read_length, write_message,
};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::exec::{self, Command};
use crate::files::{self, Upload};
use crate::images;
use crate::inbox::{self, Event, Peer};
use crate::outbox::{Gone, Outbox};
use crate::requests;

/// How long the greeting may take, and how large it may be: a connection that hasn't shown the secret gets no more.
const HELLO_TIME: Duration = Duration::from_secs(10);
const HELLO_MAX: u32 = 4096;
/// How long the host may take to read the answer to `Shutdown`.
const LAST_WORD: Duration = Duration::from_millis(300);

/// Serves a connection to its end. Whatever ran for it, other than in the background, has ended when this returns.
pub(crate) async fn serve(mut stream: UnixStream, agent: Arc<Agent>) {
    if !greeted(&mut stream, &agent).await {
        return;
    }
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let peer = Arc::new(Peer::new(socket));
    let (reader, writer) = stream.into_split();
    let (sender, events) = mpsc::channel(1);
    let reading = tokio::spawn(inbox::run(reader, Arc::clone(&agent.bodies), sender, Arc::clone(&peer)));
    let (outbox, mut writing) = Outbox::new(writer, Arc::clone(&peer));
    let mut connection = Connection { agent, events, outbox, peer, upload: None, last: false };
    // Gone is the ordinary end of a connection, not a fault.
    let _ = connection.run().await;
    let Connection { agent, outbox, peer, last, .. } = connection;
    drop(outbox);
    tokio::select! {
        _ = &mut writing => {}
        () = peer.gone() => writing.abort(),
    }
    if last {
        // The answer has been written but may not have left the machine: the host closes once it has read it.
        let _ = tokio::time::timeout(LAST_WORD, peer.gone()).await;
        agent.power.off();
    }
    reading.abort();
}

/// Whether a connection shows the machine's secret, where it has one; it has been told so.
pub(crate) async fn greeted(stream: &mut UnixStream, agent: &Agent) -> bool {
    let Some(secret) = &agent.secret else { return true };
    let known = tokio::time::timeout(HELLO_TIME, greeting(stream, secret)).await.unwrap_or(false);
    let answer = if known {
        AgentResponse::ok()
    } else {
        AgentResponse::error(codes::UNAUTHENTICATED, "the connection does not begin with the machine's secret")
    };
    write_message(stream, &answer).await.is_ok() && known
}

async fn greeting(stream: &mut UnixStream, secret: &str) -> bool {
    let Ok(Some(length @ ..=HELLO_MAX)) = read_length(stream).await else { return false };
    let Ok(body) = read_body(stream, length).await else { return false };
    let Ok(hello) = serde_json::from_slice::<Hello>(&body) else { return false };
    // Compared in full, so that the time taken tells nothing of where they differ.
    let differing = hello.secret.bytes().zip(secret.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    differing == 0 && hello.secret.len() == secret.len()
}

pub(crate) struct Connection {
    pub(crate) agent: Arc<Agent>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) outbox: Outbox,
    pub(crate) peer: Arc<Peer>,
    upload: Option<Upload>,
    /// The machine ends with this connection.
    last: bool,
}

impl Connection {
    async fn run(&mut self) -> Result<(), Gone> {
        while let Some(event) = self.events.recv().await {
            match event {
                Event::Request(request, memory) => {
                    self.handle(*request).await?;
                    drop(memory);
                    if self.last {
                        break;
                    }
                }
                Event::EndOfInput => break,
                Event::FarTooLarge(_) => {
                    self.outbox.send(&refusal(&event)).await?;
                    break;
                }
                Event::Invalid(_) | Event::TooLarge(_) => self.outbox.send(&refusal(&event)).await?,
            }
        }
        Ok(())
    }

    async fn handle(&mut self, request: AgentRequest) -> Result<(), Gone> {
        let answer = match request {
            AgentRequest::VmExec { command, env, workdir, timeout_ms, interactive, tty, background } => {
                let timeout = timeout_ms.map(Duration::from_millis);
                let command = Command { argv: command, env, workdir, timeout, ..Command::default() };
                return exec::run(self, command, exec::Mode::of(interactive, tty, background)).await;
            }
            AgentRequest::Run { .. } | AgentRequest::Pull { .. } | AgentRequest::ExportLayer { .. }
                if self.agent.images.is_some() =>
            {
                return self.image(request).await;
            }
            AgentRequest::FileRead { path } => return files::read(&self.agent.tree, &self.outbox, path).await,
            AgentRequest::FileWrite { path, data, mode } => files::write(&self.agent.tree, path, data, mode).await,
            AgentRequest::FileWriteBegin { path, mode, total_size } => {
                // A new upload takes the place of one that was not finished; its temporary file goes with it.
                self.upload = None;
                match files::begin(&self.agent.tree, path, mode, total_size).await {
                    Ok(upload) => {
                        self.upload = Some(upload);
                        AgentResponse::ok()
                    }
                    Err(error) => error.into(),
                }
            }
            AgentRequest::FileWriteChunk { data, done } => files::chunk(&mut self.upload, data, done).await,
            AgentRequest::Stdin { .. } | AgentRequest::Resize { .. } => {
                AgentResponse::error(codes::INVALID_REQUEST, "no session runs on this connection")
            }
            AgentRequest::Shutdown => {
                self.agent.power.sync();
                self.last = true;
                AgentResponse::ok_with(serde_json::json!({"shutdown": true}))
            }
            other => requests::answer(&self.agent, other).await,
        };
        self.outbox.send(&answer).await
    }
}

impl Connection {
    /// What a machine's image store is asked for at length.
    async fn image(&mut self, request: AgentRequest) -> Result<(), Gone> {
        let Some(store) = self.agent.images.clone() else { return Err(Gone) };
        store.is_open().await;
        match request {
            AgentRequest::Pull { image, oci_platform, auth } => {
                images::pull(&store, &self.outbox, image, oci_platform, auth).await
            }
            AgentRequest::ExportLayer { image_digest, layer_index } => {
                images::export(&store, &self.outbox, &image_digest, layer_index).await
            }
            AgentRequest::Run {
                image,
                command,
                env,
                workdir,
                user,
                mounts,
                timeout_ms,
                interactive,
                tty,
                detached,
                persistent_overlay_id,
                background,
            } => {
                let timeout = timeout_ms.map(Duration::from_millis);
                let command = Command { argv: command, env, workdir, timeout, ..Command::default() };
                let session = interactive || tty;
                let mode = exec::Mode::of(interactive, tty, background || detached);
                let detached = detached && !session;
                let request = images::Request {
                    image,
                    command,
                    user,
                    mounts,
                    overlay: persistent_overlay_id,
                    mode,
                    detached,
                    features: self.agent.features,
                    volumes: Arc::clone(&self.agent.volumes),
                };
                images::run(self, &store, request).await
            }
            _ => Ok(()),
        }
    }
}

/// The answer to a frame that is no request.
pub(crate) fn refusal(event: &Event) -> AgentResponse {
    match event {
        Event::Invalid(reason) => AgentResponse::error(codes::INVALID_REQUEST, reason),
        Event::TooLarge(size) | Event::FarTooLarge(size) => AgentResponse::error(
            codes::MESSAGE_TOO_LARGE,
            format_args!("a frame of {size} bytes; the limit is {MAX_FRAME}"),
        ),
        Event::Request(..) | Event::EndOfInput => AgentResponse::error(codes::INTERNAL_ERROR, "not a refusal"),
    }
}
