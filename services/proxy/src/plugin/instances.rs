//! A worker's live instances, and calls.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use shipote_plugin_abi::handlers::{
    ContextEntry, ContextValue, Header, L7RequestDecision, L7RequestInput, SynthResponse,
};
use shipote_plugin_abi::metadata::{ErrorHint, PluginError};
use shipote_rules::Response;
use wasmtime::component::TypedFunc;
use wasmtime::{Store, Trap};

use super::Site;
use super::host::State;
use crate::http1::request::RequestHead;
use crate::walk::Peer;

type Handle = TypedFunc<(String, L7RequestInput), (Result<L7RequestDecision, PluginError>,)>;

struct Live {
    site: Arc<Site>,
    store: Store<State>,
    handle: Handle,
}

/// The instances of one worker, one for each call site that it has come by.
#[derive(Default)]
pub(crate) struct Instances {
    live: RefCell<HashMap<*const Site, Live>>,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) enum Called {
    /// The request goes on.
    On,
    /// The plugin answers.
    Answer(Box<Response>),
    /// The connection is closed.
    Close,
    /// The rule's `on_error` applies.
    Failed(String),
    /// As to an internal error, whatever the rule says.
    Internal(String),
}

impl Instances {
    /// Calls a request handler.
    pub(crate) fn request(&self, site: &Arc<Site>, peer: &Peer, head: &RequestHead, bytes: &[u8]) -> Called {
        site.calls.fetch_add(1, Relaxed);
        site.ticker.begin();
        let key = Arc::as_ptr(site);
        let taken = self.live.borrow_mut().remove(&key);
        let mut live = match taken.map_or_else(|| start(site), Ok) {
            Ok(live) => live,
            Err(e) => {
                site.failures.fetch_add(1, Relaxed);
                return Called::Failed(format!("start {}: {e:#}", site.plugin));
            }
        };
        // The epoch may move on at once, so one tick more is what makes it at least the deadline.
        live.store.set_epoch_deadline(site.deadline + 1);
        let input = input(site, peer, head, bytes);
        match live.handle.call(&mut live.store, (site.export.clone(), input)) {
            Ok((answer,)) => {
                let called = decide(site, answer);
                self.live.borrow_mut().insert(key, live);
                called
            }
            // The instance stopped somewhere in the middle: it goes with the store.
            Err(e) if e.downcast_ref::<Trap>() == Some(&Trap::Interrupt) => {
                site.timeouts.fetch_add(1, Relaxed);
                Called::Failed(format!("{}:{} took more than {} ms", site.plugin, site.export, site.deadline))
            }
            Err(e) => {
                site.traps.fetch_add(1, Relaxed);
                Called::Failed(format!("{}:{} trapped: {}", site.plugin, site.export, e.root_cause()))
            }
        }
    }

    /// Ends the instances of sites that no plan has any more.
    pub(crate) fn sweep(&self) {
        self.live.borrow_mut().retain(|_, live| Arc::strong_count(&live.site) > 1);
    }
}

fn start(site: &Arc<Site>) -> wasmtime::Result<Live> {
    let state = State {
        plugin: site.plugin.clone(),
        args: site.args.clone(),
        memory: site.memory,
        series: Arc::clone(&site.series),
    };
    let mut store = Store::new(site.pre.engine(), state);
    store.limiter(|state| state);
    store.set_epoch_deadline(site.deadline + 1);
    let instance = site.pre.instantiate(&mut store)?;
    let handle = instance.get_typed_func(&mut store, site.handle)?;
    Ok(Live { site: Arc::clone(site), store, handle })
}

fn decide(site: &Site, answer: Result<L7RequestDecision, PluginError>) -> Called {
    let malformed = |what: &str| {
        site.traps.fetch_add(1, Relaxed);
        Called::Failed(format!("{}:{}: {what}", site.plugin, site.export))
    };
    match answer {
        Ok(L7RequestDecision::Continue) => Called::On,
        Ok(L7RequestDecision::Close) => Called::Close,
        Ok(L7RequestDecision::Short(made)) => match response(made) {
            Ok(response) => Called::Answer(Box::new(response)),
            Err(what) => malformed(what),
        },
        Err(error) => {
            site.failures.fetch_add(1, Relaxed);
            let text = format!("{}:{}: {error}", site.plugin, site.export);
            match error.hint() {
                Some(ErrorHint::Rule) => Called::Failed(text),
                Some(ErrorHint::ForceClose) => Called::Close,
                Some(ErrorHint::Internal) => Called::Internal(text),
                None => malformed("an unknown on-error-hint"),
            }
        }
    }
}

/// A plugin's response as one that can be sent: nothing in it can end a head early or frame the body.
fn response(made: SynthResponse) -> Result<Response, &'static str> {
    // An interim status would leave the client waiting for the final one.
    if !(200..=599).contains(&made.status) {
        return Err("a status that is no final one");
    }
    let mut headers = Vec::with_capacity(made.headers.len());
    for Header { name, value } in made.headers {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return Err("a header name that is none");
        }
        if value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
            return Err("a header value with a line end");
        }
        let name = name.to_ascii_lowercase();
        if !matches!(name.as_str(), "connection" | "content-length" | "keep-alive" | "transfer-encoding" | "upgrade") {
            headers.push((name, value));
        }
    }
    let body = if matches!(made.status, 204 | 304) { Vec::new() } else { made.body };
    Ok(Response { status: made.status, headers, body })
}

fn input(site: &Site, peer: &Peer, head: &RequestHead, bytes: &[u8]) -> L7RequestInput {
    let mut uri = text(head.path(bytes));
    if let Some(query) = head.query(bytes) {
        uri.push('?');
        uri.push_str(&text(query));
    }
    let header =
        |(_, name, value): (_, &[u8], &[u8])| Header { name: text(name).to_ascii_lowercase(), value: text(value) };
    L7RequestInput {
        method: text(head.method(bytes)),
        uri,
        headers: head.lines.iter(bytes).map(header).collect(),
        body: None,
        context: site.inspects.iter().filter_map(|path| context(path, peer)).collect(),
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

/// What a path is on this connection; nothing where the connection does not have it.
fn context(path: &str, peer: &Peer) -> Option<ContextEntry> {
    let tls = peer.tls.as_ref();
    let value = match path {
        "conn.peer_ip" => ContextValue::Text(peer.remote_text.clone()),
        "conn.peer_port" => ContextValue::Uint64(peer.remote.port().into()),
        "conn.local_ip" => ContextValue::Text(crate::walk::canonical(peer.local.ip()).to_string()),
        "conn.local_port" => ContextValue::Uint64(peer.local.port().into()),
        "conn.transport" => ContextValue::Text("tcp".to_owned()),
        "conn.alpn" => ContextValue::Text(text(tls?.alpn.as_deref()?)),
        "conn.id" => ContextValue::Text(peer.id.to_string()),
        "conn.accept_unix_ms" => ContextValue::Uint64(peer.accepted_unix_ms),
        "conn.tls.version" => ContextValue::Text(tls?.version.to_owned()),
        "conn.tls.sni" => ContextValue::Text(peer.sni.clone()?),
        "conn.tls.peer_cert.present" => ContextValue::Boolean(tls?.fingerprint.is_some()),
        "conn.tls.peer_cert.fingerprint_sha256" => ContextValue::Text(tls?.fingerprint.clone()?),
        _ => return None,
    };
    Some(ContextEntry { path: path.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(status: u16, name: &str, value: &str) -> SynthResponse {
        let header = Header { name: name.to_owned(), value: value.to_owned() };
        SynthResponse { status, headers: vec![header], body: b"x".to_vec() }
    }

    #[test]
    fn a_response_that_could_split_is_refused_and_framing_is_ours() {
        for (status, name, value) in [
            (99, "a", "b"),
            (100, "a", "b"),
            (600, "a", "b"),
            (200, "a b", "c"),
            (200, "", "c"),
            (200, "a", "b\r\nc: d"),
            (200, "a", "\0"),
        ] {
            assert!(response(made(status, name, value)).is_err(), "{status} {name:?} {value:?}");
        }
        assert!(response(made(200, "Content-Length", "99")).unwrap().headers.is_empty());
        assert!(response(made(204, "a", "b")).unwrap().body.is_empty());
    }

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        assert_eq!(text(b"a\xffb"), "a\\x{FF}b");
    }
}
