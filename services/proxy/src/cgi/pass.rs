//! One request to a program, and its answer back.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use shipote_bus::words::counted;
use shipote_rules::{CgiSpec, NodeId};
use tokio::sync::{Semaphore, oneshot};

use super::answer::{self, Answer};
use super::environment::{About, variables};
use super::program::{End, Ends, Output, Said, describe, pipes};
use super::{Start, Starts};
use crate::http::body::within;
use crate::http::exchange::{Failed, Progress, both, deliver, send_body, taken_back};
use crate::http::general::Request;
use crate::http::reply::Reply;
use crate::http::sink::Sink;
use crate::http::{Body, Client, Source};
use crate::http1::body::Coding;
use crate::http1::compose;
use crate::http1::exchange::{Ended, broken_body};
use crate::http1::{Framing, Refusal};
use crate::io::{Buf, Io, IoError};
use crate::walk::Edits;

/// A body whose length its client does not say is read up to this many bytes first, since a program must be told.
const HELD: u64 = 1 << 20;
/// How long is waited to hear why a program that wrote no answer ended.
const WHY: Duration = Duration::from_secs(1);

/// What clients are told of a program that could not be started; why is for the flow log, which those who run it read.
const NOT_STARTED: &str = "the program could not be started";
/// What clients are told of one that ended before it answered.
const NO_ANSWER: &str = "the program ended without an answer";

/// Which program a request goes to.
pub(crate) struct Way<'p> {
    pub(crate) spec: &'p CgiSpec,
    pub(crate) rule: &'p str,
    /// Runs that it may have at once.
    pub(crate) places: &'p Arc<Semaphore>,
    pub(crate) response: Option<NodeId>,
}

/// Runs the program for the request, and sends its answer to the client.
pub(crate) async fn pass(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    edits: &Edits<'_>,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Ended {
    let Ok(_place) = way.places.try_acquire() else {
        let at_once = way.spec.at_once;
        let error = format_args!("the program answers {} already (at_once)", counted(at_once, "request"));
        return Ended::owed(503, &error, "the program answers as many requests as it may at once");
    };
    let mut answer = request.worker.pool.body();
    let ended = run(request, way, edits, body, client, &mut answer).await;
    request.worker.pool.give(answer);
    let mut ended = ended.unwrap_or_else(|ended| ended);
    ended.bytes_in = body.bytes;
    ended.unread = !body.is_read();
    ended
}

async fn run(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    edits: &Edits<'_>,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
    answer: &mut Buf,
) -> Result<Ended, Ended> {
    let Way { spec, rule, response, .. } = way;
    let facts = request.head.facts;
    let refused = |e: Refusal| Ended::refuse(e.status, &e);
    let length = length(request, body).await?;
    let mut text = Vec::with_capacity(1024);
    compose::request(&mut text, request.head, request.bytes, edits, request.peer, None, false);
    let target = request.bytes.split(|b| *b == b' ').nth(1).unwrap_or_default();
    let about = About { peer: request.peer, target, protocol: client.protocol(), length };
    let env = variables(spec, &text, &about).map_err(refused)?;
    let Ends { stream, said, theirs } =
        pipes(rule).map_err(|e| Ended::owed(502, &format_args!("make pipes for a program: {e}"), NOT_STARTED))?;
    let io = Io::new(stream, Rc::clone(request.slot));
    request.slot.set(spec.limits.connect);
    let started = start(&request.worker.shared.starts, spec, env, theirs);
    let mut end = match client.unless_gone(within(request.slot, started)).await {
        None => return Err(taken_back()),
        Some(Ok(Ok(end))) => end,
        Some(Ok(Err(reason))) => return Err(Ended::owed(502, &reason, NOT_STARTED)),
        Some(Err(e)) => return Err(Ended::owed(504, &format_args!("start the program: {e}"), NOT_STARTED)),
    };
    request.slot.set(if body.is_over() { spec.limits.response } else { request.worker.settings.body_time });
    let progress = Progress::default();
    let sending = async {
        let mut sink = Sink::One { io: &io, coding: Coding::Plain, before: Vec::new() };
        let sent = send_body(body, &mut sink).await;
        // Its end is all that tells a program which reads to the end; one that does not read may have closed it.
        let _ = io.shutdown().await;
        sent
    };
    let receiving = async {
        let (found, rest) = match client.unless_gone(head(&io, answer, &mut end, &said)).await {
            None => return Err(Failed::For(taken_back())),
            Some(found) => found.map_err(Failed::For)?,
        };
        answer.consume(rest);
        let reply = match found {
            Answer::Reply(reply) => reply,
            Answer::Local(path) => return Err(Failed::For(Ended { elsewhere: Some(path), ..Ended::default() })),
        };
        progress.started.set(true);
        let source = source(&io, answer, &mut end, &reply, facts.is_head);
        Ok(deliver(request, (*response, spec.limits.idle), edits, reply, source, client, progress.sent.get()).await)
    };
    both(request, spec.limits.response, sending, receiving, &progress).await.map_err(Failed::ended)
}

/// Bytes of the body. One that does not say so is held in memory to be measured.
async fn length(request: &Request<'_, '_>, body: &mut Body<'_>) -> Result<u64, Ended> {
    match request.head.facts.framing {
        Framing::Empty => Ok(0),
        Framing::Length(n) => Ok(n),
        Framing::Chunked | Framing::UntilClose => {
            request.slot.set(request.worker.settings.body_time);
            match body.hold(HELD).await {
                Ok(true) => Ok(body.bytes),
                Ok(false) => Err(Ended::refuse(411, &"a program is told the length of a body, which is not said here")),
                Err(e) => Err(broken_body(&e, false)),
            }
        }
    }
}

async fn start(
    starts: &Starts,
    spec: &CgiSpec,
    env: Vec<String>,
    stdio: [std::os::fd::OwnedFd; 3],
) -> Result<End, String> {
    let nobody = || "nobody here runs programs".to_owned();
    let (answer, told) = oneshot::channel();
    let start = Start {
        workspace: spec.workspace.clone(),
        argv: spec.command.clone(),
        env,
        cwd: spec.working_dir.clone(),
        memory_bytes: spec.memory_bytes,
        processes: spec.processes,
        time_limit: spec.time_limit,
        stdio,
        answer,
    };
    starts.send(start).await.map_err(|_| nobody())?;
    let completion = told.await.map_err(|_| nobody())??;
    End::new(completion).map_err(|e| format!("hear of the program: {e}"))
}

/// Reads the head of an answer, and how long it is.
async fn head(io: &Io, buf: &mut Buf, end: &mut End, said: &Said) -> Result<(Answer, usize), Ended> {
    loop {
        match answer::parse(buf.filled()) {
            Ok(Some((length, found))) => return Ok((found, length)),
            Ok(None) if buf.spare().is_empty() => {
                return Err(Ended::fault(502, &"the head of the program's answer is too large"));
            }
            Ok(None) => {}
            Err(refusal) => return Err(Ended::fault(502, &refusal)),
        }
        match io.fill(buf).await {
            Ok(1..) => {}
            Ok(0) => return Err(Ended::owed(502, &why(end, said, buf.is_empty()).await, NO_ANSWER)),
            Err(IoError::TimedOut) => {
                return Err(Ended::fault(504, &"the program did not begin to answer within its time limit"));
            }
            Err(e) => return Err(Ended::owed(502, &format_args!("read the program's answer: {e}"), NO_ANSWER)),
        }
    }
}

/// Why there is no answer.
async fn why(end: &mut End, said: &Said, nothing: bool) -> String {
    let how = match tokio::time::timeout(WHY, end.wait()).await {
        Ok(Ok(completion)) => describe(&completion),
        Ok(Err(reason)) => reason,
        Err(_) => "the program closed its output".to_owned(),
    };
    let what = if nothing { "no answer" } else { "half a head" };
    let said = said.first_line();
    let colon = if said.is_empty() { "" } else { "; it said: " };
    format!("{how} and wrote {what}{colon}{said}")
}

fn source<'a>(io: &'a Io, buf: &'a mut Buf, end: &'a mut End, reply: &Reply, is_head: bool) -> Source<'a> {
    match reply.length {
        _ if is_head || matches!(reply.status, 204 | 304) => Source::Empty,
        Some(n) => Source::one(io, buf, Framing::Length(n), false),
        None => match Source::one(io, buf, Framing::UntilClose, false) {
            Source::One(one) => Source::Program(Box::new(Output::new(one, end))),
            other => other,
        },
    }
}
