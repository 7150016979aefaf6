//! What a command was refused, as it is told to a person.

use serde::{Deserialize, Serialize};

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Why {
    /// The system call is not among those that a sandboxed command may make.
    SystemCall,
    /// The path is not part of the workspace.
    Absent,
    /// The path is on a read-only mount.
    ReadOnly,
    /// File modes or landlock do not allow it to the workspace's user.
    Permission,
    /// The workspace has no network that leads there.
    Network,
    /// More was refused than is told.
    More,
    /// The process that looks at refusals has ended: none of this command's is told.
    Unseen,
}

impl Why {
    /// One word with hyphens.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SystemCall => "system-call",
            Self::Absent => "absent",
            Self::ReadOnly => "read-only",
            Self::Permission => "permission",
            Self::Network => "network",
            Self::More => "more",
            Self::Unseen => "unseen",
        }
    }
}

/// One thing that a command was refused, told the first time it happens.
///
/// The object is read from the command's memory while the call waits. A command that changes it meanwhile is
/// told something else than it is refused; an explanation is all that it changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Refusal {
    /// Number of the system call.
    pub number: i32,
    /// The error number that the command sees.
    pub errno: i32,
    /// A path inside the workspace, or a network address; empty where there is neither.
    pub object: String,
    /// Why.
    pub why: Why,
}

impl Refusal {
    /// What says that something is not told, and why.
    pub(crate) fn untold(why: Why) -> Self {
        Self { number: 0, errno: 0, object: String::new(), why }
    }

    /// The system call's name, or its number where this build does not know it.
    pub fn system_call(&self) -> String {
        let number = usize::try_from(self.number).ok();
        let known = number.and_then(syscalls::Sysno::new);
        known.map_or_else(|| self.number.to_string(), |known| known.name().to_owned())
    }

    /// The error's name, as in errno(3).
    pub fn error(&self) -> String {
        let known = syscalls::Errno::new(self.errno).name();
        known.map_or_else(|| self.errno.to_string(), str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_manual() {
        let refusal =
            |number: i64, errno| Refusal { number: number as i32, errno, object: String::new(), why: Why::SystemCall };
        let ptrace = refusal(libc::SYS_ptrace, libc::EPERM);
        assert_eq!((ptrace.system_call().as_str(), ptrace.error().as_str()), ("ptrace", "EPERM"));
        let unknown = refusal(100_000, 100_000);
        assert_eq!((unknown.system_call().as_str(), unknown.error().as_str()), ("100000", "100000"));
        assert_eq!(refusal(-1, 1).system_call(), "-1");
    }
}
