//! A WebSocket in a stream of HTTP/2 (RFC 8441), to an upstream of HTTP/1.1 (RFC 6455).
//!
//! The stream's request takes the way of every request, as the one that HTTP/1.1 would have made of it; the key that a
//! client of HTTP/1.1 sends is the proxy's own here, and so is the look at the answer to it.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Method};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::acquire::{Link, Want, acquire};
use super::client::Begun;
use super::exchange::{Way, deliver, taken_back};
use super::general::Request;
use super::reply::Reply;
use super::sink::{Sink, relay};
use super::{Body, Client, Source};
use crate::http1::body::{BodyError, Coding};
use crate::http1::exchange::{Ended, HeadError, InFlight, read_head};
use crate::http1::{Framing, Refusal};
use crate::io::{Buf, Io, IoError};
use crate::walk::{Edits, response_edits};

/// What a server adds to the key (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Makes an extended CONNECT the request that HTTP/1.1 has for it; whether it was one.
pub(crate) fn taken(parts: &mut http::request::Parts) -> Result<bool, Refusal> {
    let Some(protocol) = parts.extensions.remove::<h2::ext::Protocol>() else { return Ok(false) };
    if protocol.as_str() != "websocket" {
        return Err(Refusal { status: 501, reason: "a protocol other than websocket" });
    }
    let mut nonce = [0; 16];
    let random = SystemRandom::new().fill(&mut nonce);
    random.map_err(|_| Refusal { status: 500, reason: "the system gives no random bytes" })?;
    let key = HeaderValue::try_from(BASE64_STANDARD.encode(nonce)).map_err(|_| Refusal::bad("a key that is none"))?;
    parts.method = Method::GET;
    parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    parts.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    parts.headers.insert(SEC_WEBSOCKET_KEY, key);
    Ok(true)
}

/// What the upstream must answer to a key.
fn accept(key: &[u8]) -> String {
    BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat()))
}

/// Asks an upstream to switch, and passes bytes on both ways if it does.
pub(crate) async fn pass(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    edits: &Edits<'_>,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Ended {
    let text = way.text(request, edits, true);
    let want = Want { fresh: true, only_one: true, ..way.want(request) };
    let (io, target) = match client.unless_gone(acquire(&want)).await {
        None => return taken_back(),
        Some(Err(ended)) => return ended,
        Some(Ok(Link::One { io, target, .. })) => (io, target),
        Some(Ok(_)) => return Ended::fault(502, &"the upstream does not speak HTTP/1.1"),
    };
    let _open = InFlight::new(&target);
    request.slot.set(way.spec.limits.response);
    let ended = switch(request, way, edits, (&io, &text), body, client).await;
    target.outcome(!matches!(ended.status, 502..=504), way.spec.care.passive.as_ref());
    Ended { upstream: Some(Arc::clone(&target)), ..ended }
}

async fn switch(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    edits: &Edits<'_>,
    (io, text): (&Io, &[u8]),
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Ended {
    let mut head = request.worker.take_response_head();
    let mut answer = request.worker.pool.body();
    let asked = async {
        io.write(text).await.map_err(HeadError::Send)?;
        read_head(io, &mut answer, &mut head, false).await
    };
    match client.unless_gone(asked).await {
        None => return taken_back(),
        Some(Err(e)) => return e.ended(),
        Some(Ok(())) => {}
    }
    let reply = match Reply::one(&head, answer.filled()) {
        Ok(reply) => reply,
        Err(e) => return Ended::fault(e.status, &e),
    };
    answer.consume(head.lines.length);
    if head.status != 101 {
        if (200..300).contains(&head.status) {
            return Ended::fault(502, &"the upstream did not switch protocols");
        }
        let source = Source::one(io, &mut answer, head.framing.unwrap_or(Framing::Empty), false);
        let phase = (way.response, way.spec.limits.idle);
        return deliver(request, phase, edits, reply, source, client, false).await;
    }
    let key = request.head.lines.values(request.bytes, b"sec-websocket-key").next().unwrap_or_default();
    if reply.headers.get(SEC_WEBSOCKET_ACCEPT).is_none_or(|given| given.as_bytes() != accept(key).as_bytes()) {
        return Ended::fault(502, &"the upstream's answer does not fit the key that it got");
    }
    tunnel(request, way, io, Reply { status: 200, length: None, ..reply }, body, &mut answer, client).await
}

async fn tunnel(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    io: &Io,
    mut reply: Reply,
    up: &mut Body<'_>,
    early: &mut Buf,
    client: &mut Client<'_>,
) -> Ended {
    reply.headers.remove(SEC_WEBSOCKET_ACCEPT);
    reply.edit(&response_edits(request.plan, way.response));
    request.slot.set(way.spec.limits.idle);
    client.opens_tunnel();
    let Begun { mut sink, .. } = match client.begin(reply, false, false) {
        Ok(begun) => begun,
        Err(e) => return Ended::broken(0, &e),
    };
    let mut down = Body::new(Source::one(io, early, Framing::UntilClose, false));
    let result = {
        let upwards = async {
            let mut to = Sink::One { io, coding: Coding::Plain, before: Vec::new() };
            relay(up, &mut to, None).await?;
            // The other way may go on: only this half ends.
            match io.shutdown().await {
                Err(IoError::System(e)) if e.kind() == std::io::ErrorKind::NotConnected => Ok(()),
                Err(e) => Err(BodyError::Sink(e)),
                Ok(()) => Ok(()),
            }
        };
        let downwards = async { relay(&mut down, &mut sink, None).await.map(|_| ()) };
        tokio::try_join!(upwards, downwards)
    };
    if result.is_err() {
        sink.tear();
    }
    let error = result.err().map(|e| e.to_string());
    Ended { status: 200, bytes_in: up.bytes, bytes_out: down.bytes, error, ..Ended::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_answer() {
        // RFC 6455, section 1.3.
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn an_extended_connect_becomes_an_upgrade_with_a_key_of_its_own() {
        let parts = |protocol: Option<&'static str>| {
            let (mut parts, ()) = http::Request::connect("https://a/chat").body(()).unwrap().into_parts();
            if let Some(name) = protocol {
                parts.extensions.insert(h2::ext::Protocol::from_static(name));
            }
            parts
        };
        let (mut a, mut b) = (parts(Some("websocket")), parts(Some("websocket")));
        assert_eq!((taken(&mut a), taken(&mut b)), (Ok(true), Ok(true)));
        assert_eq!(a.method, Method::GET);
        assert_ne!(a.headers[SEC_WEBSOCKET_KEY], b.headers[SEC_WEBSOCKET_KEY]);
        assert_eq!(taken(&mut parts(None)), Ok(false));
        assert_eq!(taken(&mut parts(Some("connect-ip"))).unwrap_err().status, 501);
    }
}
