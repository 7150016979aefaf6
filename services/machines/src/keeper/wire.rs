//! What the service and a keeper say to each other: JSON in the agent protocol's frames, on a Unix stream socket.
//!
//! Both are ours and trusted, but what a guest wrote travels inside: every buffer has a bound. A later service shows that it
//! is one by a token that lies in the machine's folder of the state, where no process of a machine reaches: one that runs
//! as the same user, and whose guest owns it, may find the keepers' sockets.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shipote_agent_protocol::{base64_bytes, encode};
use shipote_confinement::Mechanism;

use crate::image::Image;
use crate::volumes::{Owner, Volume};

/// Version of these messages. A service that finds a keeper of another version ends its machine with a reason.
pub const VERSION: u32 = 2;
/// Largest frame either side sends.
const FRAME_MAX: usize = 1024 * 1024;

/// A machine to be started.
#[derive(Serialize, Deserialize)]
pub struct Launch {
    /// Machine's name.
    pub name: String,
    /// Its folder, which exists, with the folder `vsock` in it.
    pub folder: PathBuf,
    /// What it is started with.
    pub image: Image,
    /// QEMU's arguments; see [`crate::vmm::qemu`] for the descriptors they count on.
    pub arguments: Vec<String>,
    /// The disk, if it has one.
    pub disk: Option<PathBuf>,
    /// The user that the monitor and the vsock device become, or why they are the service's.
    pub user: Result<Owner, String>,
    /// Folders of the host that the guest has.
    pub volumes: Vec<Volume>,
    /// The file that the machine's processes join its control group by; none where the host has none.
    pub group: Option<PathBuf>,
    /// What the agent finds at boot, as JSON.
    pub settings: String,
    /// Certificates that the agent knows registries by, as PEM.
    pub certificates: Option<PathBuf>,
    /// What the agent's connections begin with.
    pub secret: String,
    /// What a later service begins with.
    pub token: String,
    /// How long the machine goes on without a service, in milliseconds.
    pub lease_ms: u64,
}

/// From the service.
#[derive(Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Comes first, on the connection that the keeper was started with.
    Launch(Box<Launch>),
    /// Comes first on a later connection: the token that the machine was launched with.
    Adopt {
        /// [`Launch::token`]
        token: String,
    },
    /// The agent has answered.
    Ready,
    /// End it now.
    Kill,
    /// Stop or continue its processors.
    Pause {
        /// Which.
        paused: bool,
    },
    /// Have its guest make do with so much memory; [`Event::Memory`] tells what it then has.
    Memory {
        /// MiB
        mib: u32,
    },
    /// Stop its processors for as long as the service wants them to stand still and its connection lasts; they go on by
    /// themselves where it ends.
    Hold {
        /// Which.
        held: bool,
    },
}

/// From the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Comes first on every connection.
    Hello(Hello),
    /// More of the console; what is still kept comes again on every connection.
    Console {
        /// As it was written.
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
    },
    /// The processors stand still, or go on.
    Paused {
        /// Which.
        paused: bool,
    },
    /// What [`Order::Hold`] wanted has been done.
    Held {
        /// Which.
        held: bool,
    },
    /// Memory that the guest has now, as its balloon says.
    Memory {
        /// Bytes
        bytes: Option<u64>,
    },
    /// All processes have ended; it is the last.
    Ended {
        /// The guest powered off.
        clean: bool,
        /// Why, in words.
        reason: String,
    },
}

/// A machine, as its keeper knows it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`]
    pub version: u32,
    /// The machine's secret: it is kept nowhere else once the service is gone.
    pub secret: String,
    /// The agent has answered before.
    pub ready: bool,
    /// The processors stand still.
    pub paused: bool,
    /// It knows [`Order::Hold`].
    #[serde(default)]
    pub holds: bool,
    /// It knows [`Order::Memory`].
    #[serde(default)]
    pub balloons: bool,
    /// Memory that the guest has, bytes, as its balloon said last; all of it where it said nothing.
    #[serde(default)]
    pub memory: Option<u64>,
    /// The processes of the monitor, the vsock device and what serves volumes.
    pub pids: Vec<i32>,
    /// How the processes are confined.
    pub confinement: Vec<Mechanism>,
}

/// One end of a connection, non-blocking.
pub(super) struct Link {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, input: Vec::new(), output: Vec::new() })
    }

    /// Whether all that was said has been taken.
    pub(super) fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// Says something; it leaves with the next [`Self::flush`].
    pub(super) fn say(&mut self, event: &Event) {
        // Our own messages have a JSON form, and are far below the limit.
        if let Ok(frame) = encode(event) {
            self.output.extend(frame);
        }
    }

    /// Writes what the other side takes.
    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what there is; the next message if one is whole. An error where the other side is gone.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        let mut piece = [0; 4096];
        loop {
            if let Some(body) = self.whole()? {
                return serde_json::from_slice(&body).map(Some).map_err(std::io::Error::other);
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.input.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn whole(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let Some((header, rest)) = self.input.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        if length > FRAME_MAX {
            return Err(std::io::Error::other(format!("a frame of {length} bytes; the limit is {FRAME_MAX}")));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let body = rest[..length].to_vec();
        self.input.drain(..4 + length);
        Ok(Some(body))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_whatever_the_pieces() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        let frame = encode(&Order::Pause { paused: true }).unwrap();
        for piece in frame.chunks(3) {
            assert!(link.hear::<Order>().unwrap().is_none());
            theirs.write_all(piece).unwrap();
        }
        assert!(matches!(link.hear().unwrap(), Some(Order::Pause { paused: true })));
        theirs.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(link.hear::<Order>().is_err(), "an endless frame");
    }

    #[test]
    fn the_end_of_the_other_side_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        drop(theirs);
        assert!(link.hear::<Order>().is_err());
    }
}
