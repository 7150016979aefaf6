//! What the relay does, in its own process.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::thread::CapabilitySet;
use shipote_bus::spec::DiscernPolicy;
use shipote_confinement::PathAccess;
use shipote_flow::{Allow, EdgeId, EdgeSink, FlowEvent, Junction, Tap, TapSpec};
use shipote_sandbox::{Channel, Message};
use tokio::sync::mpsc;

use super::inlet::Inlet;
use super::{Audience, Figures, FromRelay, Known, Sampled, ToRelay};
use crate::helper;

/// Most subscribers of one edge.
const SUBSCRIBERS_MAX: usize = 64;

/// Serves until the service and all that hold its end are gone.
pub(crate) fn carry(channel: Channel) {
    let channel = Arc::new(channel);
    // It reads what untrusted commands write, to tell what it is: it may do nothing but carry. Pipes may be larger than an
    // ordinary user's.
    let failure = helper::confine(CapabilitySet::SYS_RESOURCE, Path::new("/dev/null"), PathAccess::Use).err();
    let known = Arc::<Mutex<BTreeMap<usize, Known>>>::default();
    let (events, mut receiver) = mpsc::unbounded_channel();
    let (to, table) = (Arc::clone(&channel), Arc::clone(&known));
    let telling = std::thread::Builder::new().name("relay".to_owned()).stack_size(128 * 1024).spawn(move || {
        while let Some(event) = receiver.blocking_recv() {
            // a service that is gone for good ends the other thread, and with it the process
            let _ = tell(&to, &table, event);
        }
    });
    let (edges, junctions, inlets, also) = (Vec::new(), Vec::new(), Vec::new(), Arc::default());
    let mut relay = Relay { channel, known, events, edges, junctions, inlets, also, failure };
    relay.failure = relay.failure.take().or(telling.err().map(|error| error.to_string()));
    while let Ok(Some(message)) = relay.channel.receive::<ToRelay>() {
        if relay.obey(message).is_err() {
            return;
        }
    }
}

struct Relay {
    channel: Arc<Channel>,
    known: Arc<Mutex<BTreeMap<usize, Known>>>,
    events: mpsc::UnboundedSender<FlowEvent>,
    /// Of the junction that is not complete yet.
    edges: Vec<EdgeSink>,
    junctions: Vec<(Vec<usize>, Junction)>,
    inlets: Vec<Inlet>,
    /// Users beside those of an audience.
    also: Arc<Mutex<Vec<u32>>>,
    failure: Option<String>,
}

impl Relay {
    fn obey(&mut self, message: Message<ToRelay>) -> std::io::Result<()> {
        let mut descriptors = message.descriptors.into_iter();
        match message.body {
            ToRelay::Edge { number, tap } => {
                let sink = descriptors.next();
                let tap = tap.map(|plan| {
                    let allow = allow(plan.audience, &self.also);
                    (plan.policy, allow, descriptors.next())
                });
                match edge(number, sink, tap) {
                    Some(edge) => self.edges.push(edge),
                    None => self.fail(format!("edge {number} came without its descriptors")),
                }
            }
            ToRelay::Junction => {
                let edges = std::mem::take(&mut self.edges);
                let numbers: Vec<usize> = edges.iter().filter_map(|edge| usize::try_from(edge.id.0).ok()).collect();
                // where something failed already, dropping them ends both sides
                let Some(source) = descriptors.next().filter(|_| self.failure.is_none()) else { return Ok(()) };
                for number in &numbers {
                    lock(&self.known).insert(*number, Known::default());
                }
                match Junction::start(source, edges, self.events.clone()) {
                    Ok(junction) => self.junctions.push((numbers, junction)),
                    Err(error) => self.fail(error.to_string()),
                }
            }
            ToRelay::Begin => self.channel.send(&FromRelay::Begun { failure: self.failure.clone() }, &[])?,
            ToRelay::Tell => {
                let known = lock(&self.known).clone();
                for (edge, known) in known {
                    self.channel.send(&FromRelay::Known { edge, known }, &[])?;
                }
            }
            ToRelay::Measure { sequence } => {
                for (numbers, junction) in &self.junctions {
                    for &edge in numbers {
                        if let Some(message) = cut_off(junction, edge) {
                            self.channel.send(&message, &[])?;
                        }
                    }
                }
                let edges = self.junctions.iter().flat_map(|(numbers, junction)| {
                    numbers.iter().filter_map(|number| Some((*number, figures(junction, *number)?)))
                });
                let edges = edges.collect();
                self.channel.send(&FromRelay::Figures { sequence, edges }, &[])?;
            }
            ToRelay::CloseTaps => {
                self.junctions.iter().for_each(|(_, junction)| junction.close_taps());
                // dropped, they let nobody in any more
                self.inlets.clear();
            }
            ToRelay::Allow { uid } => self.also.lock().unwrap_or_else(PoisonError::into_inner).push(uid),
            ToRelay::Inlet { number, audience } => {
                let allow = allow(audience, &self.also);
                let (Some(listener), Some(pipe)) = (descriptors.next(), descriptors.next()) else {
                    self.fail(format!("inlet {number} came without its descriptors"));
                    return Ok(());
                };
                match Inlet::open(listener.into(), pipe, allow) {
                    Ok(inlet) => self.inlets.push(inlet),
                    Err(error) => self.fail(format!("open inlet {number}: {error}")),
                }
            }
        }
        Ok(())
    }

    fn fail(&mut self, reason: String) {
        self.failure.get_or_insert(reason);
    }
}

fn lock(known: &Mutex<BTreeMap<usize, Known>>) -> std::sync::MutexGuard<'_, BTreeMap<usize, Known>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn allow(audience: Audience, also: &Arc<Mutex<Vec<u32>>>) -> Allow {
    let also = Arc::clone(also);
    match audience {
        Audience::Everyone => Arc::new(|_| true),
        Audience::Users(users) => Arc::new(move |uid| {
            uid == 0 || users.contains(&uid) || also.lock().unwrap_or_else(PoisonError::into_inner).contains(&uid)
        }),
    }
}

fn edge(
    number: usize,
    sink: Option<OwnedFd>,
    tap: Option<(DiscernPolicy, Allow, Option<OwnedFd>)>,
) -> Option<EdgeSink> {
    let tap = match tap {
        None => None,
        Some((policy, allow, listener)) => {
            Some(Tap { spec: tap_spec(&policy), listener: UnixListener::from(listener?), allow })
        }
    };
    Some(EdgeSink { id: EdgeId(number as u64), sink: sink?, tap })
}

fn figures(junction: &Junction, number: usize) -> Option<Figures> {
    let stats = junction.stats(EdgeId(number as u64))?;
    Some(Figures {
        bytes_total: stats.bytes_total,
        bytes_per_sec: stats.bytes_per_sec,
        subscribers: stats.subscribers,
        dropped: stats.dropped_subscribers,
    })
}

/// What is to be told of the subscribers that an edge has cut off, if there were any.
fn cut_off(junction: &Junction, edge: usize) -> Option<FromRelay> {
    let id = EdgeId(edge as u64);
    let lost_bytes = junction.stats(id).filter(|stats| stats.dropped_subscribers > 0)?.dropped_bytes;
    let pid = |pid: Option<i32>| pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default();
    let last = junction.cut_off(id).into_iter().map(|one| (pid(one.pid), one.lost)).collect();
    Some(FromRelay::CutOff { edge, lost_bytes, last })
}

fn tell(channel: &Channel, table: &Mutex<BTreeMap<usize, Known>>, event: FlowEvent) -> std::io::Result<()> {
    let change = |id: EdgeId, change: &dyn Fn(&mut Known)| {
        let edge = usize::try_from(id.0).unwrap_or(usize::MAX);
        let mut table = lock(table);
        let known = table.entry(edge).or_default();
        change(known);
        FromRelay::Known { edge, known: known.clone() }
    };
    let note = |id: EdgeId, text: String, failed| FromRelay::Note {
        edge: usize::try_from(id.0).unwrap_or(usize::MAX),
        text,
        failed,
    };
    let message = match event {
        FlowEvent::Sampled { id, discernment } => {
            let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
            let sampled = Sampled {
                ty: discernment.ty.to_string(),
                mime: text(discernment.mime),
                lens: text(discernment.lens),
                confidence: discernment.confidence,
            };
            change(id, &|known| known.sampled = Some(sampled.clone()))
        }
        FlowEvent::Ended { id, .. } => change(id, &|known| known.ended = true),
        FlowEvent::Failed { id, reason, .. } => note(id, reason, true),
        FlowEvent::SubscriberDropped { id, .. }
        | FlowEvent::SubscriberRefused { id, .. }
        | FlowEvent::Copied { id, .. }
        | FlowEvent::Degraded { id, .. } => note(id, format!("{event:?}"), false),
        _ => return Ok(()),
    };
    channel.send(&message, &[])
}

fn tap_spec(policy: &DiscernPolicy) -> TapSpec {
    TapSpec {
        sample_bytes: policy.sample_bytes,
        replay_chunks: policy.replay_chunks,
        replay_bytes: policy.replay_bytes,
        max_bytes_per_sec: policy.max_bytes_per_sec,
        lossless: policy.lossless,
        max_subscribers: SUBSCRIBERS_MAX,
    }
}
