//! What a machine is for: a command that the service has the agent start each time the machine is started.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shipote_agent_protocol::{AgentRequest, AgentResponse};

use crate::guest::{Guest, shown};

/// How long the agent may take to start it; an overlay has to be made for an image.
const START_TIME: Duration = Duration::from_secs(60);
/// The overlay of its image, which stays on the machine's disk.
const OVERLAY: &str = "run";

/// The command. It runs in the background, its output goes nowhere; when it ends, nothing happens but that a health check
/// of the machine fails.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Program and arguments; with an image, what that names by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// An image on the machine's disk to run it in; without one the agent's own root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

impl Run {
    /// What is wrong with it.
    ///
    /// # Errors
    /// The key, and what to give.
    pub fn check(&self, disk_mib: u32) -> Result<(), String> {
        if self.command.is_empty() && self.image.is_none() {
            return Err("run: give a `command`, or an `image` that names one".to_owned());
        }
        if self.image.is_some() && disk_mib == 0 {
            return Err(
                "run: an image has to be on the machine's disk when it starts; give it one (disk_mib)".to_owned()
            );
        }
        Ok(())
    }

    fn request(&self) -> AgentRequest {
        let (command, env) = (self.command.clone(), self.env.clone().into_iter().collect());
        let (workdir, timeout_ms, interactive, tty, background) = (None, None, false, false, true);
        match self.image.clone() {
            None => AgentRequest::VmExec { command, env, workdir, timeout_ms, interactive, tty, background },
            Some(image) => AgentRequest::Run {
                image,
                command,
                env,
                workdir,
                user: None,
                mounts: vec![],
                timeout_ms,
                interactive,
                tty,
                detached: true,
                persistent_overlay_id: Some(OVERLAY.to_owned()),
                background,
            },
        }
    }

    /// Has the agent start it.
    ///
    /// # Errors
    /// Why it doesn't.
    pub(crate) async fn start(&self, guest: &Guest) -> Result<(), String> {
        match guest.ask_within(&self.request(), START_TIME).await {
            Ok(AgentResponse::Completed { .. }) => Ok(()),
            Ok(AgentResponse::Error { message, .. }) => Err(shown(&message)),
            Ok(_) => Err("its agent answers with something else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_or_an_image_that_is_there_when_it_starts() {
        let (image, command) = (Some("web".to_owned()), vec!["true".to_owned()]);
        assert!(Run::default().check(64).unwrap_err().contains("command"));
        assert!(Run { image: image.clone(), ..Run::default() }.check(0).unwrap_err().contains("disk_mib"));
        assert_eq!(Run { image, ..Run::default() }.check(64), Ok(()));
        assert_eq!(Run { command, ..Run::default() }.check(0), Ok(()));
    }
}
