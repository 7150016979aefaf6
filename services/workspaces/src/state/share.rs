//! What one user may have of what all share, so that none keeps the others out.

use super::{COMMANDS_MAX, State, WORKSPACES_MAX};
use crate::error::Error;

/// Living commands of one user.
pub(crate) const COMMANDS_SHARE: usize = COMMANDS_MAX / 4;
/// Living workspaces of one user.
pub(crate) const WORKSPACES_SHARE: usize = WORKSPACES_MAX / 4;

/// Whether the service is this user's own to use up: root, and the user that it runs as, whose appliance it is.
pub(crate) fn manages(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

impl State {
    /// Refuses `more` commands to a user who would have more than a share of them. Root has no share, nor has the
    /// service's own user: that one, in tests as in an embedded appliance, is everybody.
    pub(super) fn check_share_of_commands(&self, uid: u32, more: usize) -> Result<(), Error> {
        // nobody has more than there are: counting is for a service that is busy
        if manages(uid) || self.living() + more <= COMMANDS_SHARE {
            return Ok(());
        }
        let living = self.living.iter().filter_map(|(_, command)| self.commands.get(command));
        if living.filter(|c| c.uid == uid).count() + more <= COMMANDS_SHARE {
            return Ok(());
        }
        Err(Error::LimitReached(format!(
            "run: {COMMANDS_SHARE} commands of user {uid} are living, which is one user's share; wait for one to end or \
             end one"
        )))
    }

    /// As for commands.
    pub(super) fn check_share_of_workspaces(&self, uid: u32, name: &str) -> Result<(), Error> {
        if manages(uid) || self.workspaces.len() < WORKSPACES_SHARE {
            return Ok(());
        }
        if self.workspaces.values().filter(|w| w.uid == uid).count() < WORKSPACES_SHARE {
            return Ok(());
        }
        Err(Error::LimitReached(format!(
            "create workspace {name:?}: {WORKSPACES_SHARE} workspaces of user {uid} are living, which is one user's \
             share; stop one first"
        )))
    }
}

#[cfg(test)]
mod tests {
    use shipote_bus::spec::{NodeCommand, WorkspaceSpec};
    use ulid::Ulid;

    use super::super::{NewCommand, RequestId, Target};
    use super::*;

    #[test]
    fn one_user_does_not_keep_the_others_out() {
        let (greedy, other) = (rustix::process::geteuid().as_raw() + 4321, rustix::process::geteuid().as_raw() + 4322);
        let mut state = State::default();
        let create = |state: &mut State, uid, name: String| {
            state.create(Ulid::generate(), name, WorkspaceSpec::default(), false, uid, false, 0, &mut Vec::new())
        };
        for number in 0..WORKSPACES_SHARE {
            create(&mut state, greedy, format!("w{number}")).unwrap();
        }
        let refused = create(&mut state, greedy, "more".to_owned()).unwrap_err().to_string();
        assert!(refused.contains(&format!("of user {greedy} are living")), "{refused}");
        create(&mut state, other, "other".to_owned()).unwrap();
        create(&mut state, 0, "root".to_owned()).unwrap();

        let run = |state: &mut State, uid, count| {
            let command = || NewCommand {
                id: Ulid::generate(),
                label: "c".to_owned(),
                command: NodeCommand { exec: "true".into(), argv: vec![], envp: vec![] },
                soma: Default::default(),
                cwd: None,
                terminal: None,
                timeout: None,
                restart: None,
                attachable: false,
                foreground: false,
                foreign: None,
                further: Default::default(),
            };
            let commands = std::iter::repeat_with(command).take(count).collect();
            let target = Target::Existing("w0".to_owned());
            state.run(RequestId(1), target, false, uid, commands, None, 0, &mut Vec::new())
        };
        run(&mut state, greedy, COMMANDS_SHARE).unwrap();
        let refused = run(&mut state, greedy, 1).unwrap_err().to_string();
        assert!(refused.contains("one user's share"), "{refused}");
        run(&mut state, other, 2).unwrap();
        run(&mut state, 0, COMMANDS_SHARE + 1).unwrap();
    }
}
