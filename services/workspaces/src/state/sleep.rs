//! Workspaces that nobody needs sleep, and are woken by whoever does.
//!
//! ```text
//! awake --idle for as long as its spec says--> looked at --nothing goes on--> asleep
//!   ^                                             | something does            |
//!   \---------------------------------------------/                           |
//!   \------------- a connection, a command, a signal, its end ----------------/
//! ```
//!
//! What counts as activity: commands that are started, end or are signalled; a command in the foreground, whose input
//! and output are its caller's, for as long as it runs; connections that are asked for; and, looked at when the time is
//! over, connections that are open and processor time.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{CommandPhase, Effect, Outcome, RequestId, State, Timer, Usec, WorkspacePhase};
use crate::error::Error;

/// How a workspace sleeps.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sleep {
    /// Now.
    pub(crate) asleep: bool,
    /// How often it has fallen asleep.
    pub(crate) times: u64,
    /// What the last waking took, microseconds.
    pub(crate) wake_usec: u64,
    /// Bytes of memory that it gave back when it fell asleep last.
    pub(crate) given_back: u64,
    /// When something happened last.
    pub(super) active: Usec,
    /// Who waits until it is awake.
    #[serde(skip)]
    pub(super) wakers: Vec<RequestId>,
}

impl State {
    /// Something happened in a workspace: it is awake, and not idle.
    pub(super) fn stir(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        // Without a rule there is nothing to remember; with one, a change every second is enough.
        let Some(workspace) = self.workspaces.get_mut(&id).filter(|w| w.spec.idle.is_some()) else { return };
        let since = now.saturating_sub(workspace.sleep.active);
        workspace.sleep.active = now;
        if workspace.sleep.asleep {
            workspace.sleep.asleep = false;
            out.push(Effect::Thaw { workspace: id });
            out.push(Effect::WorkspaceChanged { workspace: id });
            self.arm(id, now, out);
        } else if since < 1_000_000 {
            return;
        }
        self.touched.insert(super::Key::Workspace(id));
    }

    /// Something happened to a command.
    pub(super) fn stir_of(&mut self, command: Ulid, now: Usec, out: &mut Vec<Effect>) {
        if let Some(workspace) = self.commands.get(&command).map(|c| c.workspace) {
            self.stir(workspace, now, out);
        }
    }

    /// Looks again when it may have been idle for long enough.
    pub(super) fn arm(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let Some(workspace) = self.workspaces.get(&id) else { return };
        let Some(idle) = workspace.spec.idle else { return };
        let due = workspace.sleep.active.saturating_add(idle.saturating_mul(1000));
        let delay = Duration::from_micros(due.saturating_sub(now)).max(Duration::from_millis(10));
        out.push(Effect::After { delay, input: Timer::Idle(id) });
    }

    /// The time is over: unless something happened meanwhile, it is looked at.
    pub(super) fn idle_due(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let Some(workspace) = self.workspaces.get(&id) else { return };
        let Some(idle) = workspace.spec.idle else { return };
        if workspace.phase != WorkspacePhase::Running || workspace.sleep.asleep {
            return;
        }
        let busy = |c: &super::Command| c.what.foreground || c.phase != CommandPhase::Running;
        if self.living_in(id).any(busy) {
            self.stir(id, now, out);
            return self.arm(id, now, out);
        }
        if now.saturating_sub(workspace.sleep.active) < idle.saturating_mul(1000) {
            return self.arm(id, now, out);
        }
        out.push(Effect::Look { workspace: id, since: workspace.sleep.active });
    }

    /// What was seen: whether something goes on that the state does not know of.
    pub(super) fn looked(&mut self, id: Ulid, busy: bool, since: Usec, now: Usec, out: &mut Vec<Effect>) {
        let Some(workspace) = self.workspaces.get(&id) else { return };
        let still = workspace.phase == WorkspacePhase::Running && !workspace.sleep.asleep;
        if !still {
            return;
        }
        if busy || workspace.sleep.active != since {
            if busy {
                self.stir(id, now, out);
            }
            return self.arm(id, now, out);
        }
        let Some(workspace) = self.workspace_mut(id) else { return };
        workspace.sleep.asleep = true;
        workspace.sleep.times += 1;
        out.push(Effect::Freeze { workspace: id });
        out.push(Effect::WorkspaceChanged { workspace: id });
    }

    /// It sleeps, or could not be put to sleep.
    pub(super) fn slept(&mut self, id: Ulid, given_back: Result<u64, String>, now: Usec, out: &mut Vec<Effect>) {
        let Some(workspace) = self.workspace_mut(id).filter(|w| w.sleep.asleep) else { return };
        match given_back {
            Ok(bytes) => workspace.sleep.given_back = bytes,
            Err(reason) => {
                tracing::warn!("put workspace {:?} to sleep: {reason}", workspace.name);
                self.stir(id, now, out);
            }
        }
        out.push(Effect::WorkspaceChanged { workspace: id });
    }

    /// Answers once the workspace is awake.
    pub(super) fn wake(
        &mut self,
        request: RequestId,
        name: &str,
        now: Usec,
        out: &mut Vec<Effect>,
    ) -> Result<Option<Outcome>, Error> {
        let workspace = self.find_workspace(name)?;
        let (id, slept) = (workspace.id, workspace.sleep.asleep);
        let waking = !workspace.sleep.wakers.is_empty();
        self.stir(id, now, out);
        if !slept && !waking {
            return Ok(Some(Outcome::Awake));
        }
        if let Some(workspace) = self.workspaces.get_mut(&id) {
            workspace.sleep.wakers.push(request);
        }
        Ok(None)
    }

    /// It is awake, or could not be woken.
    pub(super) fn woken(&mut self, id: Ulid, usec: u64, failed: Option<&str>, out: &mut Vec<Effect>) {
        let Some(workspace) = self.workspace_mut(id) else { return };
        let name = workspace.name.clone();
        match failed {
            None => workspace.sleep.wake_usec = usec,
            Some(_) => workspace.sleep.asleep = true,
        }
        for request in std::mem::take(&mut workspace.sleep.wakers) {
            let result = match failed {
                None => Ok(Outcome::Awake),
                Some(reason) => Err(Error::WrongState(format!("wake workspace {name:?}: {reason}"))),
            };
            out.push(Effect::Reply { request, result });
        }
        out.push(Effect::WorkspaceChanged { workspace: id });
    }
}

#[cfg(test)]
mod tests {
    use shipote_bus::spec::WorkspaceSpec;

    use super::super::Input;
    use super::*;

    const SECOND: Usec = 1_000_000;

    /// A workspace that may sleep after ten seconds, standing at the time 0.
    fn standing() -> (State, Ulid) {
        let (mut state, id) = (State::default(), Ulid::generate());
        let spec = WorkspaceSpec { label: "web".to_owned(), idle: Some(10_000), ..WorkspaceSpec::default() };
        let request = RequestId(1);
        state.handle(Input::Create { request, id, spec: Box::new(spec), strict: false, uid: 0, numbered: false }, 0);
        let effects = state.handle(Input::KeeperReady { workspace: id, mechanisms: Vec::new() }, 0);
        assert_eq!(armed(&effects), Some(Duration::from_secs(10)));
        (state, id)
    }

    fn armed(effects: &[Effect]) -> Option<Duration> {
        effects.iter().find_map(|effect| match effect {
            Effect::After { delay, input: Timer::Idle(_) } => Some(*delay),
            _ => None,
        })
    }

    fn asleep() -> (State, Ulid) {
        let (mut state, id) = standing();
        let effects = state.handle(Input::IdleDue { workspace: id }, 10 * SECOND);
        let [Effect::Look { since, .. }] = effects[..] else { panic!("{effects:?}") };
        let effects = state.handle(Input::Looked { workspace: id, busy: false, since }, 10 * SECOND);
        assert!(matches!(effects[..], [Effect::Freeze { .. }, Effect::WorkspaceChanged { .. }]), "{effects:?}");
        state.handle(Input::Slept { workspace: id, given_back: Ok(4096) }, 11 * SECOND);
        let workspace = &state.workspaces[&id];
        assert_eq!((workspace.state(), workspace.sleep.times, workspace.sleep.given_back), ("sleeping", 1, 4096));
        (state, id)
    }

    fn replies(effects: &[Effect]) -> Vec<Result<(), String>> {
        let reply = |effect: &Effect| match effect {
            Effect::Reply { result, .. } => Some(result.as_ref().map(|_| ()).map_err(ToString::to_string)),
            _ => None,
        };
        effects.iter().filter_map(reply).collect()
    }

    fn wake(state: &mut State, request: u64) -> Vec<Effect> {
        let input = Input::Wake { request: RequestId(request), workspace: "web".to_owned() };
        state.handle(input, 20 * SECOND)
    }

    #[test]
    fn whoever_needs_one_that_sleeps_is_answered_when_it_is_awake() {
        let (mut state, id) = asleep();
        let effects = wake(&mut state, 2);
        assert!(effects.iter().any(|e| matches!(e, Effect::Thaw { .. })) && replies(&effects).is_empty());
        assert!(armed(&effects).is_some());
        let again = wake(&mut state, 3);
        assert!(!again.iter().any(|e| matches!(e, Effect::Thaw { .. })) && replies(&again).is_empty());
        let effects = state.handle(Input::Woken { workspace: id, usec: 70, failed: None }, 20 * SECOND);
        assert_eq!(replies(&effects), [Ok(()), Ok(())]);
        assert_eq!((state.workspaces[&id].state(), state.workspaces[&id].sleep.wake_usec), ("running", 70));
        assert_eq!(replies(&wake(&mut state, 4)), [Ok(())], "one that is awake answers at once");
    }

    #[test]
    fn a_waking_that_fails_says_why_and_may_be_tried_again() {
        let (mut state, id) = asleep();
        wake(&mut state, 2);
        let failed = Some("no such file".to_owned());
        let effects = state.handle(Input::Woken { workspace: id, usec: 1, failed }, 20 * SECOND);
        assert_eq!(replies(&effects), [Err("wake workspace \"web\": no such file".to_owned())]);
        assert!(wake(&mut state, 3).iter().any(|e| matches!(e, Effect::Thaw { .. })));
        // and one that ends meanwhile leaves nobody waiting
        let effects = state.handle(Input::KeeperGone { workspace: id }, 21 * SECOND);
        assert!(replies(&effects)[0].as_ref().is_err_and(|e| e.contains("it has ended")), "{effects:?}");
    }

    #[test]
    fn what_is_seen_or_happens_meanwhile_keeps_it_awake() {
        let (mut state, id) = standing();
        state.handle(Input::IdleDue { workspace: id }, 10 * SECOND);
        let effects = state.handle(Input::Looked { workspace: id, busy: true, since: 0 }, 10 * SECOND);
        assert_eq!(armed(&effects), Some(Duration::from_secs(10)));
        // it was needed between the look and its answer
        state.handle(Input::IdleDue { workspace: id }, 20 * SECOND);
        wake(&mut state, 2);
        let effects = state.handle(Input::Looked { workspace: id, busy: false, since: 10 * SECOND }, 20 * SECOND);
        assert_eq!((armed(&effects), state.workspaces[&id].sleep.asleep), (Some(Duration::from_secs(10)), false));
        // one without a rule is never looked at
        if let Some(workspace) = state.workspaces.get_mut(&id) {
            workspace.spec.idle = None;
        }
        assert!(state.handle(Input::IdleDue { workspace: id }, 99 * SECOND).is_empty());
    }

    #[test]
    fn one_that_sleeps_is_woken_to_end_and_restored_as_it_was() {
        let (mut state, id) = asleep();
        let mut restored = State::restore(state.all_records());
        assert_eq!(restored.workspaces[&id].state(), "sleeping");
        assert!(wake(&mut restored, 2).iter().any(|e| matches!(e, Effect::Thaw { .. })));
        let input = Input::StopWorkspace { request: RequestId(3), workspace: "web".to_owned(), grace: Duration::ZERO };
        let effects = state.handle(input, 12 * SECOND);
        assert!(matches!(effects[..2], [Effect::Thaw { .. }, Effect::EndKeeper { .. }]), "{effects:?}");
    }
}
