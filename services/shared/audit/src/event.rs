//! The kinds of event: one table, from which everything else follows.
//!
//! An id, once released, names its kind for ever: dashboards and alerts match on it. New kinds get new random ids
//! (`journalctl --new-id128`), retired ones keep their row. `shipote.catalog` has a text for each; a test compares.

use std::fmt;

macro_rules! events {
    ($(($name:ident, $action:literal, $id:literal, $what:literal),)*) => {
        /// What was done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Event {
            $(#[doc = concat!("`", $action, "`: ", $what, ".")] $name,)*
        }

        impl Event {
            /// Every kind there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The value of `SHIPOTE_ACTION`: `SUBJECT.VERB`.
            #[must_use]
            pub const fn action(self) -> &'static str {
                match self { $(Self::$name => $action,)* }
            }

            /// The value of `MESSAGE_ID`.
            #[must_use]
            pub const fn message_id(self) -> MessageId {
                match self { $(Self::$name => MessageId($id),)* }
            }

            /// What happened, in a few words.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }
        }
    };
}

events! {
    (ServiceStart, "service.start", 0x4181b3813351459fa653549639dfbffa, "a service started"),
    (ServiceStop, "service.stop", 0x27f6f53f2e8242ed9de265b454d083b6, "a service stopped"),
    (AccessRefused, "access.refused", 0x92a6c2c8936b4f9d92694fb6ce81d174, "a caller was refused what it asked for"),
    (WorkspaceCreate, "workspace.create", 0x2a4219e04bb04e2d87e37f299518f0c1, "a workspace was created"),
    (WorkspaceChange, "workspace.change", 0x03a2bac88f2e4cec861009d1a5674359, "the limits or settings of a workspace were changed"),
    (WorkspaceFreeze, "workspace.freeze", 0x71a1c29117af46f1baca63013085e94e, "a workspace was frozen"),
    (WorkspaceThaw, "workspace.thaw", 0x1d23375ada984be68cd774c30dd0f8ae, "a workspace was thawed"),
    (WorkspacePublish, "workspace.publish", 0xc1aa721e50cd48ba93f8a8b2f1986abf, "a workspace published an endpoint"),
    (WorkspaceUnpublish, "workspace.unpublish", 0x409ec0821693416f8009e2cff4ec5c98, "a workspace withdrew an endpoint"),
    (WorkspaceStop, "workspace.stop", 0x4b56d9b61bf54ecc96ab75bab60edffd, "a workspace was stopped"),
    (CommandRun, "command.run", 0xc08efbaf1d3540f19bf4dd8d4ad336fc, "a command was started in a workspace"),
    (CommandSignal, "command.signal", 0xaf0a813dbf2b43ad8593cb77f2fd4333, "a signal was sent to a command"),
    (CommandAttach, "command.attach", 0x6d0f5b8a37c2449e8f1be0a4d9c7253e, "somebody attached to a command"),
    (PipelineRun, "pipeline.run", 0x5189332f2d0347dcbd94d6b3880e8421, "a pipeline was started"),
    (PipelineStop, "pipeline.stop", 0xbef39ea53b45474290059e5e0484eb21, "a pipeline was stopped"),
    (PipelineSave, "pipeline.save", 0x14b566825b8943d181b49ec11a592edd, "a pipeline was saved under a name"),
    (PipelineDrop, "pipeline.drop", 0x65381399eecb4a82b171590f8f0ff990, "a saved pipeline was dropped"),
    (FlowDrop, "flow.drop", 0x52fc055ea53649ae8b060a58f985ea6c, "a tapped flow was closed"),
    (MachineCreate, "machine.create", 0x9175f09717564f0593ac2a209898766b, "a machine was defined"),
    (MachineChange, "machine.change", 0x4f74add2ca914d74b82db7a837dc3885, "the settings of a machine were changed"),
    (MachineStart, "machine.start", 0xb3c53d58ba354dbb8b3b611de2a6f594, "a machine was started"),
    (MachineRun, "machine.run", 0xcd8299a63e7b47e888e719fd994010a4, "a command was started in a machine"),
    (MachineSignal, "machine.signal", 0x4d46eb0816704af8bf62a737c0be71f2, "a signal was sent to a command in a machine"),
    (MachinePause, "machine.pause", 0x48acd0f8a0614786bdcd1473d31b4967, "a machine was paused"),
    (MachineResume, "machine.resume", 0xf80cd590a0e946caa16f637e15f68d63, "a paused machine went on"),
    (MachinePublish, "machine.publish", 0xd8af647a581e4a31a2dfbd241a06cd66, "a machine published an endpoint"),
    (MachineUnpublish, "machine.unpublish", 0xd8174eeba76c4d87a64604d6b89bc506, "a machine withdrew an endpoint"),
    (MachineStop, "machine.stop", 0x1be570c52883423d927b0313fced8b5c, "a machine was stopped"),
    (MachineDelete, "machine.delete", 0x596cb1e91914429cba07fb97939b1794, "a machine and its disk were deleted"),
    (MachineSnapshot, "machine.snapshot", 0x81c33ad3b9b34544be4a54807d3fda82, "a snapshot of a machine was taken"),
    (MachineSnapshotDelete, "machine.snapshot-delete", 0x619ed7a8a85e478fa6993249c34b08c2, "a snapshot of a machine was deleted"),
    (ImagePull, "image.pull", 0x646587e8ce804dc1bdb60f43eb654bb5, "an image was pulled"),
    (ImageDrop, "image.drop", 0x153b0f5ce046482d837463372b04ee62, "an image was dropped"),
    (PluginAdd, "plugin.add", 0xe9e968a2a01c4aa7bca08094d8635336, "a plugin was added to the registry"),
    (PluginRemove, "plugin.remove", 0x2e77feaa22f541c58a364004735fc384, "a plugin was removed from the registry"),
    (PluginLink, "plugin.link", 0x2c04c93976074b92a17a96e703c3f754, "plugins were linked"),
    (PluginUnlink, "plugin.unlink", 0x1d027332b23845ae89a8c71584fd1112, "a link between plugins was undone"),
    (PluginActivate, "plugin.activate", 0x2b78996c56304c14a7ef6aab064bb369, "a plugin was put to work"),
    (PluginCanary, "plugin.canary", 0x022b46d34eb24032a471b1a6974898d0, "a share of a plugin's calls was given to another version"),
    (PluginCanaryEnd, "plugin.canary-end", 0x75d0819b0baf452587d696253ee46fee, "a plugin's canary was taken back"),
    (PluginDeactivate, "plugin.deactivate", 0x23dd4c26ba6648908b65b81e01559983, "a plugin was taken out of work"),
    (PolicyChange, "policy.change", 0x835609f9b8b64bb0942b5be96a312817, "a policy was changed"),
    (ProxyReload, "proxy.reload", 0x2d7aa70af88743bcb497924f4b8328a2, "the proxy took over a new configuration"),
    (ProxyCertificate, "proxy.certificate", 0x7cbf840b9ba74a38b3bb6d9fb46579dd, "a certificate by ACME was taken over, or a challenge for one answered"),
    (EgressChange, "egress.change", 0x6c4dfceab6f04acb9897d470b8f3ca36, "the hosts that a workspace or machine may reach were changed"),
    (SessionOpen, "session.open", 0x8b77f6031a564930ab6049a4e5ada14b, "a session was opened"),
    (SessionClose, "session.close", 0xef23b68c6cd74e20bb7dcc2cb337359b, "a session was closed"),
}

impl Event {
    /// The kind whose action is `action`.
    #[must_use]
    pub fn from_action(action: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|event| event.action() == action)
    }
}

/// A 128-bit id; displayed as the journal writes it: 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId(pub(crate) u128);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Whether `pattern` takes in `action`: with `*` (any run of characters) and `?` (any one) as a glob, else the action
/// itself or the part before its dot (`workspace` takes in `workspace.create`).
#[must_use]
pub fn action_matches(pattern: &str, action: &str) -> bool {
    if pattern.contains(['*', '?']) {
        return glob(pattern.as_bytes(), action.as_bytes());
    }
    action.strip_prefix(pattern.trim_end_matches('.')).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Without recursion: remembers the last `*` and what it has swallowed, so a pattern of many stars stays cheap.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((star_at, swallowed)) = star else { return false };
                star = Some((star_at, swallowed + 1));
                at = star_at + 1;
                from = swallowed + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_and_actions_are_unique() {
        let ids: HashSet<_> = Event::ALL.iter().map(|event| event.message_id()).collect();
        let actions: HashSet<_> = Event::ALL.iter().map(|event| event.action()).collect();
        assert_eq!((ids.len(), actions.len()), (Event::ALL.len(), Event::ALL.len()));
        for event in Event::ALL {
            assert_eq!(Event::from_action(event.action()), Some(*event));
            assert_eq!(event.message_id().to_string().len(), 32);
        }
    }

    #[test]
    fn patterns() {
        for (pattern, action, expected) in [
            ("workspace.create", "workspace.create", true),
            ("workspace", "workspace.create", true),
            ("workspace.", "workspace.create", true),
            ("work", "workspace.create", false),
            ("work*", "workspace.create", true),
            ("*.stop", "pipeline.stop", true),
            ("*.stop", "pipeline.run", false),
            ("*", "flow.drop", true),
            ("f?ow.*p", "flow.drop", true),
            ("*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(action_matches(pattern, action), expected, "{pattern} {action}");
        }
    }
}
