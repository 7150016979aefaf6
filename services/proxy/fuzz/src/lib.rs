//! What the proxy reads of strangers, with what has to hold for any bytes.
//!
//! The parsers are private to the proxy and are taken here by path, file by file: the fuzzers are then built without the
//! rest of it (the engine of plugins above all), in seconds instead of many minutes.
#![allow(dead_code, reason = "of each file that is taken, the fuzzers use the parser")]

#[path = "../../src/proxy_protocol/ends.rs"]
mod ends;
#[path = "../../src/peek.rs"]
mod peek;
#[path = "../../src/egress/socks.rs"]
mod socks;

#[path = "../../src/http1"]
mod http1 {
    pub(crate) mod chunked;
    pub(crate) mod head;
    pub(crate) mod request;
    pub(crate) mod response;

    pub(crate) use head::{Framing, Lines, Refusal};
}

use http1::chunked::{Chunks, Step};
use http1::head::Known;
use http1::request::RequestHead;
use http1::response::ResponseHead;
use http1::{Framing, Refusal};

/// No byte of a head that was taken can end a line early, and every part lies within it.
fn clean(bytes: &[u8], lines: &http1::Lines) {
    let head = &bytes[..lines.length];
    assert!(head.ends_with(b"\r\n\r\n"));
    for (_, name, value) in lines.iter(head) {
        assert!(!name.is_empty() && name.iter().all(|b| b.is_ascii_graphic() && *b != b':'), "{name:?}");
        assert!(!value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)), "{value:?}");
    }
}

fn count(bytes: &[u8], lines: &http1::Lines, wanted: Known) -> usize {
    lines.iter(bytes).filter(|(known, ..)| *known == wanted).count()
}

/// A request's head: one meaning or none, and the same in however many pieces it comes.
pub fn request(bytes: &[u8]) {
    let mut head = RequestHead::default();
    let Ok(true) = head.parse(bytes) else { return };
    clean(bytes, &head.lines);
    let length = head.lines.length;
    assert!(matches!(RequestHead::default().parse(&bytes[..length - 1]), Ok(false)), "whole before its end");
    let mut again = RequestHead::default();
    assert!(matches!(again.parse(&bytes[..length]), Ok(true)), "what follows changes nothing");
    assert_eq!(again.facts.framing, head.facts.framing);
    let (lengths, codings) =
        (count(bytes, &head.lines, Known::ContentLength), count(bytes, &head.lines, Known::TransferEncoding));
    match head.facts.framing {
        Framing::Chunked => assert_eq!((lengths, codings), (0, 1)),
        Framing::Length(n) => assert_eq!((lengths, codings, n > 0), (1, 0, true)),
        Framing::Empty => assert!(lengths <= 1 && codings == 0),
        Framing::UntilClose => panic!("a request has no end"),
    }
    assert!(count(bytes, &head.lines, Known::Host) <= 1);
    let path = head.path(bytes);
    assert!(path.starts_with(b"/") || path == b"*", "{path:?}");
    assert!(path.iter().chain(head.query(bytes).unwrap_or_default()).all(|b| b.is_ascii_graphic() && *b != b'#'));
    assert!(!head.method(bytes).is_empty());
    if let Some(host) = head.host(bytes) {
        assert!(!host.is_empty() && !host.iter().any(|b| b"/\\@?# ".contains(b)), "{host:?}");
    }
    let _ = head.location(bytes, Some(8443));
}

/// A response's head.
pub fn response(bytes: &[u8], to_head: bool) {
    let mut head = ResponseHead::default();
    let Ok(true) = head.parse(bytes, to_head) else { return };
    clean(bytes, &head.lines);
    assert!((100..=999).contains(&head.status));
    assert!(!head.reason(bytes).iter().any(|b| matches!(b, b'\r' | b'\n')));
    let framing = head.framing.expect("a whole head says where its body ends");
    if to_head || matches!(head.status, 100..=199 | 204 | 304) {
        assert_eq!(framing, Framing::Empty);
    }
    assert!(!(head.keep_alive && framing == Framing::UntilClose), "its end is the connection's");
}

/// A body in chunks, all at once or in pieces: the same data, and it ends at the same place, or is refused alike.
pub fn chunks(bytes: &[u8], piece: u8) {
    let whole = read(bytes, usize::MAX);
    let pieces = read(bytes, usize::from(piece).max(1));
    assert_eq!(whole, pieces);
}

/// The data, and where the coding ends, if it does.
fn read(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, Option<usize>), u16> {
    let mut chunks = Chunks::new();
    let (mut data, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let here = &bytes[at..bytes.len().min(at.saturating_add(piece))];
        let n = match chunks.step(here).map_err(|Refusal { status, .. }| status)? {
            Step::Skip(n) => n,
            Step::Data(n) => {
                data.extend_from_slice(&here[..n]);
                n
            }
            Step::End(n) => return Ok((data, Some(at + n))),
        };
        assert!(n > 0 && n <= here.len(), "a step goes on, and not past the end");
        at += n;
    }
    Ok((data, None))
}

/// The first bytes of a connection. What is clear stays so as more come.
pub fn peek(bytes: &[u8]) {
    use peek::First;
    let all = peek::look(bytes);
    if let First::Tls(Some(name)) = &all {
        assert!(!name.is_empty() && name.len() <= 255 && !name.bytes().any(|b| b.is_ascii_uppercase()), "{name:?}");
    }
    for n in 0..bytes.len().min(64) {
        let first = peek::look(&bytes[..n]);
        if matches!(first, First::Http | First::Other) && bytes[0] != 0x16 {
            assert_eq!(first, all, "{n}");
        }
    }
}

/// The header of the PROXY protocol: what is taken off is within what came, and means the same by itself.
pub fn proxy_protocol(bytes: &[u8]) {
    let Some((length, told)) = ends::ends(&ppp::HeaderResult::parse(bytes)) else { return };
    assert!(length > 0 && length <= bytes.len());
    assert_eq!(ends::ends(&ppp::HeaderResult::parse(&bytes[..length])), Some((length, told)));
}

/// Greeting and request of SOCKS5. What is whole needs all of its bytes.
pub fn socks(bytes: &[u8]) {
    use socks::Socks;
    if let Socks::Answer(n, answer) = socks::greeting(bytes) {
        assert!(n <= bytes.len() && answer.len() == 2);
        assert_eq!(socks::greeting(&bytes[..n - 1]), Socks::More);
    }
    if let Socks::Wanted(n, host, port) = socks::request(bytes) {
        assert!(n <= bytes.len() && port != 0 && !host.is_empty() && host.len() <= 255);
        assert!(host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b)), "{host:?}");
        assert_eq!(socks::request(&bytes[..n - 1]), Socks::More);
    }
}
