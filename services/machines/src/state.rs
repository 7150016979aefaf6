//! A machine's life, without any of its effects.
//!
//! ```text
//!                Start               Ready
//!   Stopped ───────────▶ Starting ───────────▶ Running
//!      ▲                  │  │  │ Exited        │  │ Exited
//!      │             Stop │  │  └────────┐ Stop │  │ (clean: Stopped, else: Failed)
//!      │ Exited           ▼  │ Expired   ▼      │  ▼
//!      └──────────── Stopping ◀────── Failed ◀──┼───
//!                      │  ▲  │          ▲       │
//!                Expired  │  ▼          │ Exited│
//!                 (kill)  └──────── Failing     │
//!                         ▲                     │
//!                         └─────────────────────┘
//! ```
//!
//! `Failed` starts again like `Stopped`. A machine has a virtual machine monitor exactly in the states between. A running
//! one may be `Paused` and go on; it ends from there as it does from `Running`. One that an earlier service started comes
//! back by `Adopt`, as `Starting`, and is `Ready` at once where its agent had answered before.

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Never started, or ended as it should.
    Stopped,
    /// The monitor was started; the agent has not answered yet.
    Starting,
    /// The agent answers.
    Running,
    /// Its processors stand still.
    Paused,
    /// Asked to end.
    Stopping,
    /// Did not get ready in time and is being killed.
    Failing,
    /// Ended otherwise than it should.
    Failed,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Somebody wants it to run.
    Start,
    /// It runs already, from before this service began.
    Adopt,
    /// Somebody wants its processors to stop.
    Pause,
    /// Somebody wants them to go on.
    Resume,
    /// They have stopped, or went on.
    Paused(bool),
    /// Its agent has answered.
    Ready,
    /// Somebody wants it to end.
    Stop,
    /// The time that it had (to get ready, or to end) is over.
    Expired,
    /// Its monitor is gone; `clean` where the guest ended by itself.
    Exited {
        /// The guest powered off.
        clean: bool,
    },
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Start the monitor, and the time that the machine has to get ready.
    Launch,
    /// Ask the guest to power off, and start the time that it has for it.
    AskToEnd,
    /// Kill the monitor.
    Kill,
    /// The time that an adopted machine has to answer.
    Expect,
    /// Stop the processors.
    Pause,
    /// Have them go on.
    Resume,
}

/// The input makes no sense in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub State);

impl State {
    /// The state after an input, and what is to be done.
    ///
    /// # Errors
    /// [`Refused`]: the machine stays as it is.
    pub fn step(self, input: Input) -> Result<(Self, Option<Effect>), Refused> {
        use Input as I;
        Ok(match (self, input) {
            (Self::Stopped | Self::Failed, I::Start) => (Self::Starting, Some(Effect::Launch)),
            (Self::Stopped | Self::Failed, I::Adopt) => (Self::Starting, Some(Effect::Expect)),
            (Self::Starting, I::Ready) => (Self::Running, None),
            (Self::Running, I::Pause) => (Self::Running, Some(Effect::Pause)),
            (Self::Paused, I::Resume) => (Self::Paused, Some(Effect::Resume)),
            (Self::Running, I::Paused(true)) => (Self::Paused, None),
            (Self::Paused, I::Paused(false)) => (Self::Running, None),
            (Self::Paused, I::Stop) => (Self::Stopping, Some(Effect::AskToEnd)),
            (Self::Paused, I::Exited { .. }) => (Self::Failed, None),
            // A second wish for the same thing is granted already.
            (Self::Paused, I::Pause) | (Self::Running, I::Resume) => (self, None),
            // An agent that doesn't answer yet cannot be asked.
            (Self::Starting, I::Stop) => (Self::Stopping, Some(Effect::Kill)),
            (Self::Starting, I::Expired) => (Self::Failing, Some(Effect::Kill)),
            (Self::Running, I::Stop) => (Self::Stopping, Some(Effect::AskToEnd)),
            (Self::Running, I::Exited { clean: true }) => (Self::Stopped, None),
            (Self::Stopping, I::Expired) => (Self::Stopping, Some(Effect::Kill)),
            (Self::Stopping, I::Exited { .. }) => (Self::Stopped, None),
            (Self::Starting | Self::Running | Self::Failing, I::Exited { .. }) => (Self::Failed, None),
            (Self::Failing, I::Stop) => (Self::Stopping, None),
            (Self::Stopping, I::Stop) => (Self::Stopping, None),
            // What was on its way when the state changed.
            (state, I::Ready | I::Expired | I::Paused(_)) => (state, None),
            (state, I::Start | I::Adopt | I::Pause | I::Resume | I::Stop | I::Exited { .. }) => {
                return Err(Refused(state));
            }
        })
    }

    /// Whether a monitor runs.
    #[must_use]
    pub fn has_monitor(self) -> bool {
        !matches!(self, Self::Stopped | Self::Failed)
    }

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Failing => "failing",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ordinary_life() {
        let mut state = State::Stopped;
        for (input, next, effect) in [
            (Input::Start, State::Starting, Some(Effect::Launch)),
            (Input::Ready, State::Running, None),
            (Input::Expired, State::Running, None),
            (Input::Stop, State::Stopping, Some(Effect::AskToEnd)),
            (Input::Stop, State::Stopping, None),
            (Input::Expired, State::Stopping, Some(Effect::Kill)),
            (Input::Exited { clean: false }, State::Stopped, None),
        ] {
            let (after, what) = state.step(input).unwrap();
            assert_eq!((after, what), (next, effect), "{state:?} {input:?}");
            state = after;
        }
        for (state, input, next, effect) in [
            (State::Running, Input::Pause, State::Running, Some(Effect::Pause)),
            (State::Running, Input::Paused(true), State::Paused, None),
            (State::Paused, Input::Resume, State::Paused, Some(Effect::Resume)),
            (State::Paused, Input::Paused(false), State::Running, None),
            (State::Paused, Input::Stop, State::Stopping, Some(Effect::AskToEnd)),
            (State::Stopped, Input::Adopt, State::Starting, Some(Effect::Expect)),
        ] {
            assert_eq!(state.step(input), Ok((next, effect)), "{state:?} {input:?}");
        }
        assert_eq!(State::Stopped.step(Input::Pause), Err(Refused(State::Stopped)));
        assert_eq!(State::Running.step(Input::Start), Err(Refused(State::Running)));
        assert_eq!(State::Stopped.step(Input::Stop), Err(Refused(State::Stopped)));
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Start),
            Just(Input::Adopt),
            Just(Input::Pause),
            Just(Input::Resume),
            any::<bool>().prop_map(Input::Paused),
            Just(Input::Ready),
            Just(Input::Stop),
            Just(Input::Expired),
            any::<bool>().prop_map(|clean| Input::Exited { clean }),
        ]
    }

    proptest! {
        /// Against a world that has a monitor from `Launch` to `Exited`.
        #[test]
        fn a_monitor_is_started_only_where_none_runs_and_none_is_forgotten(inputs in proptest::collection::vec(input(), 0..64)) {
            let (mut state, mut monitor) = (State::Stopped, false);
            for input in inputs {
                if matches!(input, Input::Exited { .. } | Input::Ready | Input::Paused(_)) && !monitor {
                    continue; // nobody is there to say it
                }
                let Ok((next, effect)) = state.step(input) else { continue };
                if matches!(input, Input::Exited { .. }) {
                    monitor = false;
                }
                match effect {
                    Some(Effect::Launch | Effect::Expect) => {
                        prop_assert!(!monitor);
                        monitor = true;
                    }
                    Some(Effect::AskToEnd | Effect::Kill | Effect::Pause | Effect::Resume) => prop_assert!(monitor),
                    None => {}
                }
                state = next;
                prop_assert_eq!(state.has_monitor(), monitor);
            }
            // From anywhere it can be ended.
            if monitor {
                prop_assert!(state.step(Input::Stop).is_ok());
                let end = state.step(Input::Exited { clean: false });
                prop_assert!(end.is_ok());
            }
        }
    }
}
