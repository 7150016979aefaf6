//! Flows that a workspace shares (`flow_dirs`): its commands have one end, the other is a flow socket.
//!
//! ```text
//!   output   command ── SHIPOTE_FLOW_NAME ─▶ pipe ─▶ relay ─▶ flow socket ─▶ whoever subscribes
//!   input    whoever writes ─▶ flow socket ─▶ relay ─▶ pipe ─▶ SHIPOTE_FLOW_NAME ── command
//! ```
//!
//! All commands share the ends: what they write interleaves, what is written to them goes to whoever reads first. The
//! ends are open as long as the workspace lives, whoever has closed theirs; its keeper holds them for the next instance
//! of the service, and the relay outlives it, too.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use shipote_bus::spec::{DiscernPolicy, FlowDirection, FlowScope, FlowSlot, flow_variable};
use shipote_sandbox::{Access, CommandSpec, Keeper, PathGrant};
use ulid::Ulid;

use super::flows::{Flows, Load};
use super::numbers;
use crate::relay::{Audience, TapPlan};

/// First number of the descriptors that flows have in a command: a POSIX shell need not know those above 9.
const FIRST: i32 = 3;
/// Where the sockets are inside.
const INSIDE: &str = "/run/flows";
/// How long those who are connected still get what a workspace that has ended has written.
const LINGER: Duration = Duration::from_secs(5);

/// Ends of the flows of a workspace, by number.
type Ends = Vec<Option<Arc<OwnedFd>>>;

/// The ends that commands are given, by workspace. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots(Arc<Mutex<HashMap<Ulid, Ends>>>);

impl Slots {
    /// Makes pipes and sockets of a workspace that is about to start, and has a relay carry them. What it is to see of
    /// them.
    pub(super) async fn open(
        &self,
        flows: &Flows,
        (id, name, uid): (Ulid, &str, u32),
        slots: &[FlowSlot],
    ) -> io::Result<Vec<PathGrant>> {
        if slots.is_empty() {
            return Ok(Vec::new());
        }
        let (mut load, mut ends, mut grants) = (Load::default(), Vec::new(), Vec::new());
        for (number, slot) in slots.iter().enumerate() {
            let socket = flows.socket(id, number);
            let listener = flows.listen(&socket)?;
            let audience = match slot.scope {
                FlowScope::Workspace => Audience::Users(vec![flows.own_uid, uid]),
                FlowScope::Public => Audience::Everyone,
            };
            load.plans.push(TapPlan { policy: DiscernPolicy::default(), audience: audience.clone() });
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            match slot.direction {
                FlowDirection::Output => {
                    let nowhere = std::fs::File::options().write(true).open("/dev/null")?;
                    load.junctions.push((read, vec![(number, nowhere.into(), Some(listener))]));
                    ends.push(Some(Arc::new(write)));
                }
                FlowDirection::Input => {
                    // a junction in between counts what passes
                    let (collected, collect) = pipe_with(PipeFlags::CLOEXEC)?;
                    load.inlets.push((number, listener, collect, audience));
                    load.junctions.push((collected, vec![(number, write, None)]));
                    ends.push(Some(Arc::new(read)));
                }
            }
            enter(flows, id, name, number, slot);
            grants.push(PathGrant { path: socket, target: Some(inside(slot)), access: Access::Socket });
        }
        self.lock().insert(id, ends);
        flows.clone().carry(id, load).await.map_err(io::Error::other)?;
        Ok(grants)
    }

    /// Has the keeper hold the ends, and lets the workspace's own commands connect.
    pub(super) async fn settle(&self, flows: &Flows, id: Ulid, keeper: &Keeper) {
        let Some(ends) = self.lock().get(&id).cloned() else { return };
        let held: Vec<(u8, BorrowedFd<'_>)> =
            (numbers::TAG_SLOT..).zip(&ends).filter_map(|(tag, end)| Some((tag, end.as_ref()?.as_fd()))).collect();
        if let Err(error) = keeper.hold(numbers::number(id), &held).await {
            tracing::warn!("hold the flows of workspace {id}: {error}; they end with this service");
        }
        match keeper.user() {
            Ok(uid) => flows.allow(id, uid).await,
            // one whose processes cannot be looked at is another user's only where it is the service's own
            Err(error) => tracing::debug!("the user of workspace {id}: {error}"),
        }
    }

    /// Takes back an end that a keeper has held.
    pub(super) fn take_back(&self, id: Ulid, number: usize, end: OwnedFd) {
        let mut all = self.lock();
        let ends = all.entry(id).or_default();
        if ends.len() <= number {
            ends.resize(number + 1, None);
        }
        ends[number] = Some(Arc::new(end));
    }

    /// Gives a command the ends of its workspace's flows, and says their numbers.
    pub(super) fn give(&self, id: Ulid, slots: &[FlowSlot], spec: &mut CommandSpec) {
        let all = self.lock();
        let ends = all.get(&id).map(Vec::as_slice).unwrap_or_default();
        for (slot, end) in slots.iter().zip(ends) {
            if let Some(end) = end {
                give(spec, &slot.name, Arc::clone(end));
            }
        }
    }

    /// The workspace has ended: the last writers are gone, and readers see the end.
    pub(super) fn close(&self, flows: &Flows, id: Ulid) {
        let had = self.lock().remove(&id).is_some();
        // of one that did not live on there may be nothing left but its relay
        if !had && !flows.carries(id) {
            return;
        }
        let flows = flows.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            flows.forget(id);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ulid, Ends>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes on with what an earlier instance's relay carries for a workspace.
pub(super) fn adopt(flows: &Flows, (id, name): (Ulid, &str), slots: &[FlowSlot], channel: OwnedFd) -> io::Result<()> {
    for (number, slot) in slots.iter().enumerate() {
        enter(flows, id, name, number, slot);
    }
    flows.go_on(id, channel)
}

fn enter(flows: &Flows, id: Ulid, name: &str, number: usize, slot: &FlowSlot) {
    let (own, other) = ((name.to_owned(), slot.name.clone()), Default::default());
    let (from, to) = if slot.direction == FlowDirection::Output { (own, other) } else { (other, own) };
    flows.enter(id, number, from, to, Some(flows.socket(id, number)));
}

fn inside(slot: &FlowSlot) -> PathBuf {
    PathBuf::from(INSIDE).join(&slot.name)
}

/// Gives a command one more flow, under the next free number; one of the same name comes instead of an earlier one.
pub(super) fn give(spec: &mut CommandSpec, name: &str, end: Arc<OwnedFd>) {
    let variable = flow_variable(name);
    let number = spec.descriptors.iter().map(|(number, _)| number + 1).max().unwrap_or(FIRST).max(FIRST);
    spec.descriptors.push((number, end));
    spec.env.retain(|(key, _)| *key != variable);
    spec.env.push((variable, number.to_string()));
}
