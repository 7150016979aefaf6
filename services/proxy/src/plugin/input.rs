//! What a plugin is told.

use shipote_plugin_abi::handlers::{BytesView, ContextEntry, ContextValue, Header, L7RequestInput, L7ResponseInput};

use super::Site;
use crate::http::reply::Reply;
use crate::http1::request::RequestHead;
use crate::walk::{Held, Peer};

/// A request as a plugin sees it. `held` is its body where the plugin needs it.
pub(crate) fn request(
    site: &Site,
    peer: &Peer,
    head: &RequestHead,
    bytes: &[u8],
    held: Option<&Held>,
) -> L7RequestInput {
    let mut uri = text(head.path(bytes));
    if let Some(query) = head.query(bytes) {
        uri.push('?');
        uri.push_str(&text(query));
    }
    let header =
        |(_, name, value): (_, &[u8], &[u8])| Header { name: text(name).to_ascii_lowercase(), value: text(value) };
    let limit = site.limits.request_body as usize;
    let body = held.filter(|_| site.needs_body).map(|held| BytesView {
        data: held.bytes[..held.bytes.len().min(limit)].to_vec(),
        truncated: held.truncated || held.bytes.len() > limit,
    });
    L7RequestInput {
        method: text(head.method(bytes)),
        uri,
        headers: head.lines.iter(bytes).map(header).collect(),
        body,
        context: context_of(&site.inspects, peer),
    }
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
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let mut out = String::with_capacity(bytes.len() + 16);
            for chunk in bytes.utf8_chunks() {
                out.push_str(chunk.valid());
                chunk.invalid().iter().for_each(|b| out.push_str(&format!("\\x{{{b:02X}}}")));
            }
            out
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
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        assert_eq!(text(b"a\xffb"), "a\\x{FF}b");
    }
}
