//! `forward_auth`: another server says whether a request may pass.
//!
//! It is asked by a `GET` with the request's headers and what it was for in `X-Forwarded-*`. An answer of 2xx lets the
//! request pass, with the headers that the rule takes over; any other goes to the client as it is.

use std::rc::Rc;

use shipote_rules::{HeaderEdit, Middleware, MiddlewareId, Response};

use super::Body;
use super::body::Source;
use super::general::Request;
use super::reply::Reply;
use crate::http1::Framing;
use crate::http1::exchange::{InFlight, read_head};
use crate::http1::head::{Known, nominated};
use crate::io::Io;
use crate::plugin::Called;
use crate::upstream::{Connected, How, connect};

/// Bytes of an answer that goes to the client.
const BODY: u64 = 64 << 10;

/// What the server says, and what the request takes over from it.
pub(super) async fn ask(request: &Request<'_, '_>, id: MiddlewareId) -> (Called, Option<HeaderEdit>) {
    match try_ask(request, id).await {
        Ok(said) => said,
        Err(error) => (Called::Failed(format!("forward_auth: {error}")), None),
    }
}

async fn try_ask(request: &Request<'_, '_>, id: MiddlewareId) -> Result<(Called, Option<HeaderEdit>), String> {
    let plan = request.plan;
    let Middleware::ForwardAuth { path, copy_headers, timeout, .. } = &plan.graph.middleware[id.index()].middleware
    else {
        return Err("the middleware is another one".to_owned());
    };
    let target = plan.auth[id.index()].as_ref().ok_or("it is not linked")?;
    request.slot.set(*timeout * 2);
    let how = How { only_one: true, ..How::default() };
    let Connected { stream, .. } = connect(target, *timeout, how).await.map_err(|e| e.to_string())?;
    let _open = InFlight::new(target);
    let io = Io::new(stream, Rc::clone(request.slot));
    let text = question(request, path, &target.name);
    request.slot.set(*timeout);
    io.write(&text).await.map_err(|e| e.to_string())?;
    let mut answer = request.worker.pool.body();
    let mut head = request.worker.take_response_head();
    let result = async {
        read_head(&io, &mut answer, &mut head, false).await.map_err(|e| e.to_string())?;
        let reply = Reply::one(&head, answer.filled()).map_err(|e| e.to_string())?;
        if (200..300).contains(&reply.status) {
            let value = |name: &String| {
                let value = reply.headers.get(name.as_str())?.to_str().ok()?;
                Some((name.clone(), value.to_owned()))
            };
            let set = copy_headers.iter().filter_map(value).collect();
            let edit = HeaderEdit { remove: copy_headers.clone(), set, add: Vec::new() };
            return Ok((Called::On, (!copy_headers.is_empty()).then_some(edit)));
        }
        answer.consume(head.lines.length);
        let mut body = Body::new(Source::one(&io, &mut answer, head.framing.unwrap_or(Framing::Empty), false));
        body.hold(BODY).await.map_err(|e| e.to_string())?;
        let (bytes, _) = body.view(BODY as usize);
        let headers = reply.headers.iter().filter_map(|(n, v)| Some((n.to_string(), v.to_str().ok()?.to_owned())));
        if reply.status < 200 {
            return Err("it switches protocols".to_owned());
        }
        let response = Response { status: reply.status, headers: headers.collect(), body: bytes };
        Ok((Called::Answer(Box::new(response)), None))
    }
    .await;
    request.worker.pool.give(answer);
    request.worker.give_response_head(head);
    result
}

fn question(request: &Request<'_, '_>, path: &str, host: &str) -> Vec<u8> {
    let Request { head, bytes, peer, .. } = request;
    let mut out = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n").into_bytes();
    let mut line = |name: &[u8], value: &[u8]| {
        for part in [name, b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    };
    for (known, name, value) in head.lines.iter(bytes) {
        let forwarded = name.get(..12).is_some_and(|n| n.eq_ignore_ascii_case(b"x-forwarded-"));
        match known {
            Known::Host
            | Known::ContentLength
            | Known::TransferEncoding
            | Known::Connection
            | Known::HopByHop
            | Known::Upgrade
            | Known::Expect => {}
            // What the client says about itself is not what the proxy knows.
            _ if forwarded || memchr::memchr(b'_', name).is_some() => {}
            _ if head.facts.nominates && nominated(&head.lines, bytes, name) => {}
            _ => line(name, value),
        }
    }
    line(b"X-Forwarded-Method", head.method(bytes));
    line(b"X-Forwarded-Proto", if peer.tls.is_some() { b"https" } else { b"http" });
    line(b"X-Forwarded-Host", head.host(bytes).unwrap_or_default());
    let uri = match head.query(bytes) {
        Some(query) => [head.path(bytes), b"?", query].concat(),
        None => head.path(bytes).to_vec(),
    };
    line(b"X-Forwarded-Uri", &uri);
    line(b"X-Forwarded-For", peer.remote_text.as_bytes());
    out.extend_from_slice(b"\r\n");
    out
}
