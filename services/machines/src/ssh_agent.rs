//! Whether the SSH agent that a spec names can be had: asked when the machine is defined, and said again where it has gone
//! since. A machine without it does everything else, so that neither its start nor its restarts depend on it.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use tokio::net::UnixStream;

use crate::Error;
use crate::spec::Spec;

/// What to do about it.
const WAY_OUT: &str = "start the agent, or name the socket of one that runs ($SSH_AUTH_SOCK has it)";

/// Refuses a spec whose agent takes no connection now.
///
/// # Errors
/// [`Error::InvalidSpec`], with the socket.
pub async fn check(name: &str, spec: &Spec) -> Result<(), Error> {
    let Some(socket) = &spec.ssh_agent else { return Ok(()) };
    let problem = match problem(socket) {
        Some(problem) => problem,
        // A socket of an agent that is gone stays in its folder.
        None => match UnixStream::connect(socket).await {
            Ok(_) => return Ok(()),
            Err(error) => told(socket, &format!("connect to it: {error}")),
        },
    };
    Err(Error::InvalidSpec { name: name.to_owned(), problem })
}

/// Why the agent at this socket cannot be used, if that shows without a connection to it.
#[must_use]
pub fn problem(socket: &Path) -> Option<String> {
    match std::fs::metadata(socket) {
        Ok(found) if found.file_type().is_socket() => None,
        Ok(_) => Some(told(socket, "it is no socket")),
        // The unit's view of the host is narrower than its users': no /home, no /tmp.
        Err(error) => Some(told(socket, &format!("this service finds no such socket: {error}"))),
    }
}

fn told(socket: &Path, what: &str) -> String {
    format!("ssh_agent = {:?}: {what}; {WAY_OUT}", socket.display().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn an_agent_that_cannot_be_had_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Spec { ssh_agent: Some(folder.path().join(name)), ..Spec::default() };
        std::fs::write(folder.path().join("file"), "").unwrap();
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("left")).unwrap());
        let _agent = std::os::unix::net::UnixListener::bind(folder.path().join("agent")).unwrap();
        for (name, want) in [("none", "no such socket"), ("file", "it is no socket"), ("left", "connect to it")] {
            let refused = check("m", &at(name)).await.unwrap_err().to_string();
            assert!(refused.starts_with("machine m: ssh_agent = ") && refused.contains(want), "{refused}");
            assert!(refused.contains("SSH_AUTH_SOCK"), "{refused}");
        }
        check("m", &at("agent")).await.unwrap();
        check("m", &Spec::default()).await.unwrap();
    }
}
