//! What a plugin is told.

use shipote_plugin_abi::handlers::{
    BytesRef, BytesView, ContextEntry, ContextValue, Header, HeaderRef, L7RequestRef, L7ResponseInput,
};

use super::Site;
use crate::http::reply::Reply;
use crate::http1::request::RequestHead;
use crate::walk::{Held, Peer};

/// The texts of a request as plugins see them, all in one block.
#[derive(Debug)]
pub(crate) struct Texts {
    /// Method, path with query, then each header's name and value.
    text: String,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Texts {
    pub(crate) fn of(head: &RequestHead, bytes: &[u8]) -> Self {
        let lines = &head.lines;
        let mut texts =
            Self { text: String::with_capacity(lines.length), ends: Vec::with_capacity(2 + 2 * lines.lines.len()) };
        texts.push(head.method(bytes));
        push_text(&mut texts.text, head.path(bytes));
        if let Some(query) = head.query(bytes) {
            texts.text.push('?');
            push_text(&mut texts.text, query);
        }
        texts.ends.push(texts.text.len());
        for (_, name, value) in lines.iter(bytes) {
            let start = texts.text.len();
            texts.push(name);
            texts.text[start..].make_ascii_lowercase();
            texts.push(value);
        }
        texts
    }

    fn push(&mut self, bytes: &[u8]) {
        push_text(&mut self.text, bytes);
        self.ends.push(self.text.len());
    }

    /// The request as a plugin sees it. `held` is its body where the plugin needs it.
    pub(crate) fn request<'a>(&'a self, site: &Site, peer: &Peer, held: Option<&'a Held>) -> L7RequestRef<'a> {
        let body = held.filter(|_| site.needs_body).map(|held| beginning(held, site.limits.request_body as usize));
        self.lend(body, context_of(&site.inspects, peer))
    }

    fn lend<'a>(&'a self, body: Option<BytesRef<'a>>, context: Vec<ContextEntry>) -> L7RequestRef<'a> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let mut parts = starts.zip(&self.ends).map(|(start, &end)| &self.text[start..end]);
        let (method, uri) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let mut headers = Vec::with_capacity((self.ends.len() / 2).saturating_sub(1));
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            headers.push(HeaderRef { name, value });
        }
        L7RequestRef { method, uri, headers, body, context }
    }
}

/// As much of a body as a plugin may see.
fn beginning(held: &Held, limit: usize) -> BytesRef<'_> {
    let data = &held.bytes[..held.bytes.len().min(limit)];
    BytesRef { data, truncated: held.truncated || data.len() < held.bytes.len() }
}

/// An answer as a plugin sees it. `body` is its beginning, and whether there is more.
pub(crate) fn response(site: &Site, peer: &Peer, reply: &Reply, body: Option<(Vec<u8>, bool)>) -> L7ResponseInput {
    let limit = site.limits.response_body as usize;
    let body = body.filter(|_| site.needs_body).map(|(mut data, mut truncated)| {
        truncated |= data.len() > limit;
        data.truncate(limit);
        (data, truncated)
    });
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| Header {
        name: name.to_string(),
        value: text(value.as_bytes()),
    };
    L7ResponseInput {
        status: reply.status,
        headers: reply.headers.iter().map(header).collect(),
        body: body.map(|(data, truncated)| BytesView { data, truncated }),
        context: context_of(&site.inspects, peer),
    }
}

/// Text as the ABI wants it: what is not UTF-8 is written `\x{HH}`.
fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    push_text(&mut text, bytes);
    text
}

fn push_text(text: &mut String, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(valid) => text.push_str(valid),
        Err(_) => {
            for chunk in bytes.utf8_chunks() {
                text.push_str(chunk.valid());
                chunk.invalid().iter().for_each(|b| text.push_str(&format!("\\x{{{b:02X}}}")));
            }
        }
    }
}

/// What a plugin asked to be told about the connection.
pub(super) fn context_of(inspects: &[String], peer: &Peer) -> Vec<ContextEntry> {
    inspects.iter().filter_map(|path| context(path, peer)).collect()
}

/// What a path is on this connection; nothing where the connection does not have it.
fn context(path: &str, peer: &Peer) -> Option<ContextEntry> {
    let tls = peer.tls.as_ref();
    let value = match path {
        "conn.peer_ip" => ContextValue::Text(peer.remote_text.clone()),
        "conn.peer_port" => ContextValue::Uint64(peer.remote.port().into()),
        "conn.local_ip" => ContextValue::Text(crate::walk::canonical(peer.local.ip()).to_string()),
        "conn.local_port" => ContextValue::Uint64(peer.local.port().into()),
        "conn.transport" => ContextValue::Text(peer.carrier().to_owned()),
        "conn.alpn" => ContextValue::Text(text(tls?.alpn.as_deref()?)),
        "conn.id" => ContextValue::Text(peer.id.to_string()),
        "conn.accept_unix_ms" => ContextValue::Uint64(peer.accepted_unix_ms),
        "conn.tls.version" => ContextValue::Text(tls?.version.to_owned()),
        "conn.tls.sni" => ContextValue::Text(peer.sni.clone()?),
        "conn.tls.peer_cert.present" => ContextValue::Boolean(tls?.fingerprint.is_some()),
        "conn.tls.peer_cert.fingerprint_sha256" => ContextValue::Text(tls?.fingerprint.clone()?),
        "conn.tls.peer_cert" => ContextValue::Bytes(peer.cert()?.der.clone()),
        "conn.tls.peer_cert.subject_cn" => ContextValue::Text(peer.cert()?.subject_cn.clone()?),
        "conn.tls.peer_cert.issuer_cn" => ContextValue::Text(peer.cert()?.issuer_cn.clone()?),
        "conn.tls.peer_cert.san_dns" => ContextValue::ListText(peer.cert()?.san_dns.clone()),
        "conn.tls.peer_cert.spki_sha256" => ContextValue::Text(peer.cert()?.spki.clone()),
        "conn.tls.peer_cert.serial" => ContextValue::Text(peer.cert()?.serial.clone()),
        _ => return None,
    };
    Some(ContextEntry { path: path.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use shipote_plugin_abi::handlers::L7RequestInput;

    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        assert_eq!(text(b"a\xffb"), "a\\x{FF}b");
    }

    #[test]
    fn a_body_is_cut_where_the_plugin_may_see_no_more() {
        let held = |truncated| Held { bytes: b"abc".to_vec(), truncated, limit: 3 };
        for (limit, data, truncated) in [(2, &b"ab"[..], true), (3, b"abc", false), (4, b"abc", false)] {
            assert_eq!(beginning(&held(false), limit), BytesRef { data, truncated }, "{limit}");
            assert!(beginning(&held(true), limit).truncated, "there was more than is held");
        }
    }

    #[test]
    fn a_request_keeps_its_order_its_repeats_and_what_is_empty() {
        let bytes =
            b"PUT /a%20b?c=d&e HTTP/1.1\r\nHost: h\r\nX-Two:  One \r\nx-two:\r\nUser-Agent: \xe9t\xc3\xa9\r\n\r\nbody";
        let mut head = RequestHead::default();
        assert!(head.parse(bytes).unwrap());
        let texts = Texts::of(&head, bytes);
        let body = BytesRef { data: b"bo", truncated: true };
        let lent = texts.lend(Some(body), Vec::new());
        assert_eq!((lent.method, lent.uri, lent.body), ("PUT", "/a%20b?c=d&e", Some(body)));
        let headers: Vec<_> = lent.headers.iter().map(|h| (h.name, h.value)).collect();
        assert_eq!(headers, [("host", "h"), ("x-two", "One"), ("x-two", ""), ("user-agent", "\\x{E9}té")]);
        let owned = L7RequestInput::from(lent.clone());
        assert_eq!(L7RequestRef::from(&owned), lent);
    }
}
