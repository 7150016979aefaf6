//! Measures folders that the service may not look into.
//!
//! Where workspaces have host ids of their own, so have the files that outlive them, in folders that are open to nobody
//! else. The service has no right of root's by then; a [`helper`] of its spawner keeps the one that this
//! takes, to read any directory, below the one folder, and lists what is there for as long as the service lives.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};
use shipote_confinement::PathAccess;
use shipote_sandbox::{Channel, Spawner};

use super::kept_size::{is_shut, size};
use crate::helper::{self, Job};

/// How large is what lies in a folder? More than `enough` bytes: that is all that is to be known.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    folder: PathBuf,
    enough: u64,
}

/// Bytes; or whether the folder [is shut](is_shut), and what went wrong.
type Answer = Result<u64, (bool, String)>;

/// The service's side.
#[derive(Debug)]
pub(crate) struct Gauge {
    spawner: Arc<Spawner>,
    folder: PathBuf,
    helper: Mutex<Option<Channel>>,
}

impl Gauge {
    /// Of what lies below this folder.
    pub(crate) fn new(spawner: Arc<Spawner>, folder: PathBuf) -> Self {
        Self { spawner, folder, helper: Mutex::default() }
    }

    /// Bytes on the disk below `folder`, as [`size`]. Blocks, on a thread that may.
    ///
    /// # Errors
    /// The folder cannot be looked into: [`is_shut`] where the helper lacks the right as well.
    pub(crate) fn size(&self, folder: &Path, enough: u64) -> io::Result<u64> {
        let mut helper = self.helper.lock().unwrap_or_else(PoisonError::into_inner);
        let question = Question { folder: folder.to_owned(), enough };
        // one that was killed since is no reason to know nothing
        let earlier = helper.take().and_then(|channel| Some((ask(&channel, &question).ok()?, channel)));
        let (answer, channel) = match earlier {
            Some(answered) => answered,
            None => {
                let channel = self.start()?;
                (ask(&channel, &question)?, channel)
            }
        };
        *helper = Some(channel);
        answer.map_err(|(shut, text)| if shut { Errno::ACCESS.into() } else { io::Error::other(text) })
    }

    fn start(&self) -> io::Result<Channel> {
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let channel = runtime.block_on(self.spawner.helper()).map_err(io::Error::other)?;
        channel.send(&Job::Gauge { folder: self.folder.clone() }, &[])?;
        Ok(channel)
    }
}

fn ask(channel: &Channel, question: &Question) -> io::Result<Answer> {
    channel.send(question, &[])?;
    Ok(channel.receive()?.ok_or_else(|| io::Error::other("who measures it ended"))?.body)
}

/// The helper's side, for as long as it is asked.
pub(crate) fn serve(channel: &Channel, folder: &Path) {
    // to read any directory, by whichever right it has; landlock leaves it nothing to write to
    let rights = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE;
    let confined = helper::confine(rights, folder, PathAccess::List);
    while let Ok(Some(message)) = channel.receive::<Question>() {
        let Question { folder, enough } = message.body;
        let answer: Answer = match &confined {
            Ok(()) => size(&folder, enough).map_err(|error| (is_shut(&error), error.to_string())),
            Err(error) => Err((false, error.clone())),
        };
        if channel.send(&answer, &[]).is_err() {
            return;
        }
    }
}
