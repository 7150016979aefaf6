//! Live instances, and calls.
//!
//! A stateless export has one instance for each worker, which calls it on its own thread without a lock. A stateful
//! one, and one that may fetch, has a pool for its call site that all workers share: its instances keep what they
//! know, and a call that fetches runs apart from the workers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use shipote_link::Head;
use shipote_plugin_abi::handlers::{
    BytesView, Header, L4BytesDecision, L4BytesInput, L4PeekDecision, L4PeekInput, L7RequestDecision, L7RequestInput,
    L7RequestRef, L7ResponseDecision, L7ResponseInput, ModifiedResponse, SynthResponse,
};
use shipote_plugin_abi::metadata::{ErrorHint, MiddlewareKind, PluginError};
use shipote_rules::Response;
use wasmtime::component::TypedFunc;
use wasmtime::{Store, Trap, UpdateDeadline};

use super::host::State;
use super::input::context_of;
use super::{Place, Site, Turn, linked};
use crate::walk::Peer;

/// A handler: the export's name and its input, to an answer. Where it says `'static` a call may be lent what lives no longer
/// than the call (wasmtime has it so: nothing is kept).
type Func<In, Out> = TypedFunc<(&'static str, In), (Result<Out, PluginError>,)>;

enum Handle {
    Peek(Func<L4PeekInput, L4PeekDecision>),
    Bytes(Func<L4BytesInput, L4BytesDecision>),
    Request(Func<L7RequestRef<'static>, L7RequestDecision>),
    Response(Func<L7ResponseInput, L7ResponseDecision>),
    /// It calls other plugins; each has a store of its own, and the one beside this stays empty.
    Linked(Head<State>),
}

pub(super) struct Live {
    store: Store<State>,
    handle: Handle,
}

/// The instances of one worker, one for each call site that it has come by.
#[derive(Default)]
pub(crate) struct Instances {
    live: RefCell<HashMap<*const Site, (Arc<Site>, Live)>>,
    drawn: Cell<u32>,
}

/// What a call of a request's handler came to.
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
    /// The same, as the plugin is broken: it gave no answer, or none that the ABI allows.
    Broken(String),
    /// As to an internal error, whatever the rule says.
    Internal(String),
}

/// What a call of a response's handler came to.
#[derive(Debug)]
pub(crate) enum Answered {
    /// The answer goes on as it is.
    On,
    /// It is changed: status, headers, body.
    Changed { status: Option<u16>, headers: Option<Vec<(String, String)>>, body: Option<Vec<u8>> },
    /// The client gets nothing.
    Close,
    /// The rule's `on_error` applies.
    Failed(String),
    /// The same, as the plugin is broken.
    Broken(String),
    /// As to an internal error, whatever the rule says.
    Internal(String),
}

/// What a call of a handler of connections came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    On,
    /// The rest of the chain is passed by.
    Tunnel,
    Close,
    Failed(String),
    /// It failed as it is broken.
    Broken(String),
}

/// What a call came to, of any kind.
trait Outcome: Sized {
    fn broken(&self) -> Option<&str>;
}

impl Outcome for Called {
    fn broken(&self) -> Option<&str> {
        if let Self::Broken(text) = self { Some(text) } else { None }
    }
}

impl Outcome for Answered {
    fn broken(&self) -> Option<&str> {
        if let Self::Broken(text) = self { Some(text) } else { None }
    }
}

impl Outcome for Passed {
    fn broken(&self) -> Option<&str> {
        if let Self::Broken(text) = self { Some(text) } else { None }
    }
}

/// Lets the one call whose turn it is, and after a canary that broke the one in its place.
fn in_turn<O: Outcome>(turn: Turn<'_>, mut call: impl FnMut(&Arc<Site>) -> O) -> O {
    if turn.trial.is_none() {
        return call(turn.site);
    }
    let begun = Instant::now();
    let outcome = call(turn.site);
    turn.note(begun.elapsed(), outcome.broken());
    match turn.spare {
        Some(spare) if outcome.broken().is_some() => call(spare),
        _ => outcome,
    }
}

/// Why a call has no answer.
#[derive(Debug)]
enum Trouble {
    /// Of the site: it was counted there.
    Own(String),
    /// The plugin said so.
    Said(PluginError),
}

impl Instances {
    /// A number for the next request, by which it is known whether a canary has it. They follow each other so that any
    /// share of them comes as evenly as can be (the golden ratio's fractions).
    pub(crate) fn draw(&self) -> u32 {
        let next = self.drawn.get().wrapping_add(0x9E37_79B9);
        self.drawn.set(next);
        next
    }

    /// Calls a handler of first bytes.
    pub(crate) fn connection(&self, turn: Turn<'_>, peer: &Peer) -> Passed {
        in_turn(turn, |site| self.pass(site, peer))
    }

    fn pass(&self, site: &Arc<Site>, peer: &Peer) -> Passed {
        let context = context_of(&site.inspects, peer);
        let cut = |limit: u32| &peer.peeked[..peer.peeked.len().min(limit as usize)];
        if site.kind == MiddlewareKind::L4Peek {
            let input = L4PeekInput { peek: cut(site.limits.peek).to_vec(), context };
            let answer = self.call(site, |live| match &live.handle {
                Handle::Peek(f) => run(f, &mut live.store, site, input),
                Handle::Linked(head) => linked::call(head, site, input),
                _ => Err(mixed_up()),
            });
            return match answer {
                Ok(L4PeekDecision::Continue) => Passed::On,
                Ok(L4PeekDecision::Close) => Passed::Close,
                Err(trouble) => refused(site, trouble),
            };
        }
        let data = cut(site.limits.l4_bytes).to_vec();
        let truncated = data.len() < peer.peeked.len();
        let input = L4BytesInput { bytes: BytesView { data, truncated }, context };
        let answer = self.call(site, |live| match &live.handle {
            Handle::Bytes(f) => run(f, &mut live.store, site, input),
            Handle::Linked(head) => linked::call(head, site, input),
            _ => Err(mixed_up()),
        });
        match answer {
            Ok(L4BytesDecision::Continue) => Passed::On,
            Ok(L4BytesDecision::Tunnel) => Passed::Tunnel,
            Ok(L4BytesDecision::Close) => Passed::Close,
            Err(trouble) => refused(site, trouble),
        }
    }

    /// Calls a request's handler.
    pub(crate) fn request<'t>(&self, turn: Turn<'_>, input: impl Fn(&Site) -> L7RequestRef<'t>) -> Called {
        in_turn(turn, |site| decide(site, self.call(site, |live| ask(live, site, input(site)))))
    }

    /// Calls a response's handler.
    pub(crate) fn response(&self, turn: Turn<'_>, mut input: impl FnMut(&Site) -> L7ResponseInput) -> Answered {
        in_turn(turn, |site| judge(site, self.call(site, |live| tell(live, site, input(site)))))
    }

    fn call<T>(
        &self,
        site: &Arc<Site>,
        f: impl FnOnce(&mut Live) -> wasmtime::Result<Result<T, PluginError>>,
    ) -> Result<T, Trouble> {
        if site.is_shared() {
            return call_shared(site, f);
        }
        let key = Arc::as_ptr(site);
        let taken = self.live.borrow_mut().remove(&key);
        let mut live = match taken {
            Some((_, live)) => live,
            None => start(site)?,
        };
        let (answer, whole) = guarded(site, &mut live, f);
        if whole {
            self.live.borrow_mut().insert(key, (Arc::clone(site), live));
        } else {
            site.alive.fetch_sub(1, Relaxed);
        }
        answer
    }

    /// Ends the instances of sites that are at none of `places`, those of the plan that holds. (Other workers may still
    /// have theirs, so that how many hold a site says nothing.)
    pub(crate) fn sweep(&self, places: &[Option<Place>]) {
        self.live.borrow_mut().retain(|_, (site, _)| {
            let stays = places.iter().flatten().any(|place| place.has(site));
            if !stays {
                site.alive.fetch_sub(1, Relaxed);
            }
            stays
        });
    }
}

/// Calls a request's handler that may take its time; not on a worker's thread. `inputs` holds one for each who may be
/// called.
pub(crate) fn request_apart(turn: Turn<'_>, mut inputs: Vec<L7RequestInput>) -> Called {
    in_turn(turn, |site| match next(&mut inputs) {
        Ok(input) => decide(site, call_shared(site, |live| ask(live, site, (&input).into()))),
        Err(text) => Called::Failed(text),
    })
}

/// Calls a response's handler that may take its time; not on a worker's thread.
pub(crate) fn response_apart(turn: Turn<'_>, mut inputs: Vec<L7ResponseInput>) -> Answered {
    in_turn(turn, |site| match next(&mut inputs) {
        Ok(input) => judge(site, call_shared(site, |live| tell(live, site, input))),
        Err(text) => Answered::Failed(text),
    })
}

fn next<I>(inputs: &mut Vec<I>) -> Result<I, String> {
    if inputs.is_empty() { Err("the plugin's input is gone".to_owned()) } else { Ok(inputs.remove(0)) }
}

fn mixed_up() -> wasmtime::Error {
    wasmtime::Error::msg("the handler is of another kind")
}

fn run<'s, In, Out>(
    f: &TypedFunc<(&'s str, In), (Result<Out, PluginError>,)>,
    store: &mut Store<State>,
    site: &'s Site,
    input: In,
) -> wasmtime::Result<Result<Out, PluginError>>
where
    (&'s str, In): wasmtime::component::ComponentNamedList + wasmtime::component::Lower,
    (Result<Out, PluginError>,): wasmtime::component::ComponentNamedList + wasmtime::component::Lift,
{
    f.call(store, (&site.export, input)).map(|(answer,)| answer)
}

fn ask(
    live: &mut Live,
    site: &Site,
    input: L7RequestRef<'_>,
) -> wasmtime::Result<Result<L7RequestDecision, PluginError>> {
    match &live.handle {
        Handle::Request(f) => run(f, &mut live.store, site, input),
        Handle::Linked(head) => linked::call(head, site, L7RequestInput::from(input)),
        _ => Err(mixed_up()),
    }
}

fn tell(
    live: &mut Live,
    site: &Site,
    input: L7ResponseInput,
) -> wasmtime::Result<Result<L7ResponseDecision, PluginError>> {
    match &live.handle {
        Handle::Response(f) => run(f, &mut live.store, site, input),
        Handle::Linked(head) => linked::call(head, site, input),
        _ => Err(mixed_up()),
    }
}

/// One call; the second is whether the instance is still whole.
fn guarded<T>(
    site: &Arc<Site>,
    live: &mut Live,
    f: impl FnOnce(&mut Live) -> wasmtime::Result<Result<T, PluginError>>,
) -> (Result<T, Trouble>, bool) {
    site.calls.fetch_add(1, Relaxed);
    let _running = site.ticker.begin();
    let begun = Instant::now();
    live.store.data_mut().begin(begun);
    // The first tick has it ask how much of its time is left.
    live.store.set_epoch_deadline(1);
    site.busy.fetch_add(1, Relaxed);
    let answer = refuel(site, &mut live.store).and_then(|()| f(live));
    site.busy.fetch_sub(1, Relaxed);
    site.latencies.add(begun.elapsed());
    site.fuel.fetch_add(site.policy.fuel.saturating_sub(live.store.get_fuel().unwrap_or(site.policy.fuel)), Relaxed);
    match answer {
        Ok(Ok(answer)) => (Ok(answer), true),
        Ok(Err(error)) => {
            site.errors.fetch_add(1, Relaxed);
            (Err(Trouble::Said(error)), true)
        }
        // The instance stopped somewhere in the middle: it goes with the store.
        Err(e) if e.downcast_ref::<Trap>() == Some(&Trap::Interrupt) => {
            site.timeouts.fetch_add(1, Relaxed);
            let text = format!("{}:{} took more than {} ms", site.plugin, site.export, site.deadline);
            (Err(Trouble::Own(text)), false)
        }
        Err(e) if e.downcast_ref::<Trap>() == Some(&Trap::OutOfFuel) => {
            site.out_of_fuel.fetch_add(1, Relaxed);
            let text = format!("{}:{} used up its {} units of fuel", site.plugin, site.export, site.policy.fuel);
            (Err(Trouble::Own(text)), false)
        }
        Err(e) => {
            site.traps.fetch_add(1, Relaxed);
            (Err(Trouble::Own(format!("{}:{} trapped: {}", site.plugin, site.export, e.root_cause()))), false)
        }
    }
}

/// Gives a plugin the fuel for one call, where its policy has it counted.
fn refuel(site: &Site, store: &mut Store<State>) -> wasmtime::Result<()> {
    if site.policy.fuel == 0 || site.linked.is_some() { Ok(()) } else { store.set_fuel(site.policy.fuel) }
}

/// A call on an instance of the site's pool.
fn call_shared<T>(
    site: &Arc<Site>,
    f: impl FnOnce(&mut Live) -> wasmtime::Result<Result<T, PluginError>>,
) -> Result<T, Trouble> {
    let taken = site.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut live = match taken {
        Some(live) => live,
        None => {
            let more = |n: usize| (n < site.capacity).then_some(n + 1);
            if site.alive.fetch_update(Relaxed, Relaxed, more).is_err() {
                site.exhausted.fetch_add(1, Relaxed);
                let text = format!("{}:{}: all {} instances are in use", site.plugin, site.export, site.capacity);
                return Err(Trouble::Own(text));
            }
            // Starting counts it once more.
            site.alive.fetch_sub(1, Relaxed);
            start(site)?
        }
    };
    let (answer, whole) = guarded(site, &mut live, f);
    if whole {
        site.pool.lock().unwrap_or_else(PoisonError::into_inner).push(live);
    } else {
        site.alive.fetch_sub(1, Relaxed);
    }
    answer
}

/// Fills a stateful site's pool; the error is the first instance's that did not start.
pub(super) fn fill(site: &Arc<Site>) -> Result<(), String> {
    for _ in 0..site.capacity {
        match start(site) {
            Ok(live) => site.pool.lock().unwrap_or_else(PoisonError::into_inner).push(live),
            Err(Trouble::Own(text)) => return Err(text),
            Err(Trouble::Said(error)) => return Err(error.to_string()),
        }
    }
    Ok(())
}

fn start(site: &Arc<Site>) -> Result<Live, Trouble> {
    let failed = |e: wasmtime::Error| {
        site.failures.fetch_add(1, Relaxed);
        Trouble::Own(format!("start {}: {e:#}", site.plugin))
    };
    let _running = site.ticker.begin();
    let state = State::new(site);
    let mut store = Store::new(site.pre.engine(), state);
    store.limiter(|state| state);
    // What a plugin waits for is not its own time, nor is what the kernel gives to others meanwhile.
    let deadline = site.deadline;
    store.epoch_deadline_callback(move |store| match store.data().left(deadline) {
        0 => Ok(UpdateDeadline::Interrupt),
        // A tick takes a millisecond or more, and the more of them the more is that: so it is asked again half-way.
        ticks => Ok(UpdateDeadline::Continue(ticks.div_ceil(2))),
    });
    store.set_epoch_deadline(1);
    refuel(site, &mut store).map_err(failed)?;
    if let Some(linked) = &site.linked {
        let head = linked.load(site).map_err(|e| failed(wasmtime::Error::msg(e)))?;
        site.alive.fetch_add(1, Relaxed);
        site.allocations.fetch_add(1, Relaxed);
        return Ok(Live { store, handle: Handle::Linked(head) });
    }
    let instance = site.pre.instantiate(&mut store).map_err(failed)?;
    let index = site.handle;
    let handle = match site.kind {
        MiddlewareKind::L4Peek => instance.get_typed_func(&mut store, index).map(Handle::Peek),
        MiddlewareKind::L4Bytes => instance.get_typed_func(&mut store, index).map(Handle::Bytes),
        MiddlewareKind::L7Request => instance.get_typed_func(&mut store, index).map(Handle::Request),
        MiddlewareKind::L7Response => instance.get_typed_func(&mut store, index).map(Handle::Response),
    };
    let handle = handle.map_err(failed)?;
    site.alive.fetch_add(1, Relaxed);
    site.allocations.fetch_add(1, Relaxed);
    Ok(Live { store, handle })
}

/// What an error of the plugin's own asks for.
enum Wish {
    Rule(String),
    Broken(String),
    Close,
    Internal(String),
}

fn wish(site: &Site, trouble: Trouble) -> Wish {
    match trouble {
        Trouble::Own(text) => Wish::Broken(text),
        Trouble::Said(error) => {
            let text = format!("{}:{}: {error}", site.plugin, site.export);
            match error.hint() {
                Some(ErrorHint::Rule) => Wish::Rule(text),
                Some(ErrorHint::ForceClose) => Wish::Close,
                Some(ErrorHint::Internal) => Wish::Internal(text),
                None => Wish::Broken(malformed(site, "an unknown on-error-hint")),
            }
        }
    }
}

/// Counts output that the ABI does not allow: it is as bad as a trap.
fn malformed(site: &Site, what: &str) -> String {
    site.traps.fetch_add(1, Relaxed);
    format!("{}:{}: {what}", site.plugin, site.export)
}

fn refused(site: &Site, trouble: Trouble) -> Passed {
    match wish(site, trouble) {
        Wish::Close => Passed::Close,
        Wish::Broken(text) => Passed::Broken(text),
        Wish::Rule(text) | Wish::Internal(text) => Passed::Failed(text),
    }
}

fn decide(site: &Site, answer: Result<L7RequestDecision, Trouble>) -> Called {
    match answer {
        Ok(L7RequestDecision::Continue) => Called::On,
        Ok(L7RequestDecision::Close) => Called::Close,
        Ok(L7RequestDecision::Short(made)) => match response(made) {
            Ok(response) => Called::Answer(Box::new(response)),
            Err(what) => Called::Broken(malformed(site, what)),
        },
        Err(trouble) => match wish(site, trouble) {
            Wish::Rule(text) => Called::Failed(text),
            Wish::Broken(text) => Called::Broken(text),
            Wish::Close => Called::Close,
            Wish::Internal(text) => Called::Internal(text),
        },
    }
}

fn judge(site: &Site, answer: Result<L7ResponseDecision, Trouble>) -> Answered {
    match answer {
        Ok(L7ResponseDecision::Continue) => Answered::On,
        Ok(L7ResponseDecision::Abort) => Answered::Close,
        Ok(L7ResponseDecision::Modify(ModifiedResponse { status, headers: new, body })) => {
            if status.is_some_and(|s| !(200..=599).contains(&s)) {
                return Answered::Broken(malformed(site, "a status that is no final one"));
            }
            match new.map(headers).transpose() {
                Ok(headers) => Answered::Changed { status, headers, body },
                Err(what) => Answered::Broken(malformed(site, what)),
            }
        }
        Err(trouble) => match wish(site, trouble) {
            Wish::Rule(text) => Answered::Failed(text),
            Wish::Broken(text) => Answered::Broken(text),
            Wish::Close => Answered::Close,
            Wish::Internal(text) => Answered::Internal(text),
        },
    }
}

/// A plugin's headers as ones that can be sent: nothing in them can end a head early or frame the body.
fn headers(made: Vec<Header>) -> Result<Vec<(String, String)>, &'static str> {
    let mut headers = Vec::with_capacity(made.len());
    for Header { name, value } in made {
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
    Ok(headers)
}

/// A plugin's response as one that can be sent.
fn response(made: SynthResponse) -> Result<Response, &'static str> {
    // An interim status would leave the client waiting for the final one.
    if !(200..=599).contains(&made.status) {
        return Err("a status that is no final one");
    }
    let headers = headers(made.headers)?;
    let body = if matches!(made.status, 204 | 304) { Vec::new() } else { made.body };
    Ok(Response { status: made.status, headers, body })
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
}
