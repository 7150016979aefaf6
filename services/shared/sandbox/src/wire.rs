//! Messages between service, spawner and keeper: postcard in SEQPACKET packets, descriptors beside them.
//!
//! A message too large for a socket buffer (a command may have megabytes of environment) travels in a
//! sealed memory file whose descriptor comes last.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, UCred, recv, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shipote_confinement::Mechanism;

use crate::error::Failure;
use crate::refusal::Refusal;
use crate::spec::{Rlimits, SandboxSpec, Terminal, Usage};

/// Largest payload inside of a packet; more goes into a memory file.
const INLINE: usize = 32 << 10;
/// Largest payload in a memory file: twice what execve(2) takes.
const LARGEST: u64 = 8 << 20;
/// Most descriptors of one message, the memory file included; the kernel's limit is 253.
pub(crate) const DESCRIPTORS: usize = 64;
/// Space for what travels beside a message.
const SPACE: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS), ScmCredentials(1));

/// Service to spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Make a workspace whose keeper serves the descriptor that comes along.
    Workspace(Box<SandboxSpec>),
    /// Start a helper that serves the descriptor that comes along.
    Helper,
}

/// Service to keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Descriptors: those of stdin, stdout, stderr that are given, the cgroup's, the further ones, those to hold.
    Spawn {
        id: u64,
        command: Box<Command>,
    },
    Signal {
        sequence: u64,
        id: u64,
        signal: i32,
    },
    /// Connect to a TCP port of the workspace's loopback.
    Connect {
        sequence: u64,
        port: u16,
    },
    End {
        grace_ms: u64,
    },
    /// The end of this command is known for good; its record may go, with what is held for it.
    Acknowledge {
        id: u64,
    },
    /// Hold these descriptors for a command, under these tags.
    Hold {
        id: u64,
        tags: Vec<u8>,
    },
    /// Close the descriptor that is held under this tag.
    Release {
        id: u64,
        tag: u8,
    },
    /// From a service that has taken the socket over: tell everything again.
    Adopt,
    /// Signal every process of the workspace but the keeper.
    Everyone {
        sequence: u64,
        signal: i32,
    },
    /// Hand out the kernel's tables of its connections, as `Connected` with one or two.
    Connections {
        sequence: u64,
    },
    /// Hand out the workspace's doors, as `Connected` with both.
    Doors {
        sequence: u64,
    },
}

/// A command, with the descriptors told by flags and numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) exec: String,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) rlimits: Rlimits,
    pub(crate) cpu_affinity: Vec<u32>,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) stdio: [bool; 3],
    pub(crate) cgroup: bool,
    pub(crate) descriptors: Vec<i32>,
    /// Owners and tags of descriptors that are not the command's: the keeper holds them for a service to come.
    pub(crate) held: Vec<(u64, u8)>,
    /// The tag under which the keeper holds the terminal's master too.
    pub(crate) hold_terminal: Option<u8>,
}

/// Keeper (and, before there is one, spawner) to service.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// From the spawner, with a pidfd of the keeper.
    Started {
        pid: i32,
    },
    /// The workspace stands.
    Ready {
        mechanisms: Vec<Mechanism>,
    },
    /// The workspace does not.
    Refused {
        failure: Failure,
    },
    /// A strict workspace lacks this.
    NotEnforced {
        mechanisms: Vec<Mechanism>,
    },
    /// The command runs its program. With its pidfd, and the terminal's master if it has one.
    Spawned {
        id: u64,
        terminal: bool,
    },
    NotSpawned {
        id: u64,
        failure: Failure,
    },
    Signalled {
        sequence: u64,
        errno: i32,
    },
    /// With the socket, or the sockets, where `errno` is 0.
    Connected {
        sequence: u64,
        errno: i32,
    },
    /// Exactly one of code and signal is there.
    Exited {
        id: u64,
        code: Option<i32>,
        signal: Option<i32>,
        usage: Usage,
    },
    Ended {
        reaped: u32,
    },
    /// What was sent before this was for another service. With a pidfd of the keeper.
    Adopting,
    /// A command that lives, with its pidfd.
    Runs {
        id: u64,
    },
    /// Descriptors that are held for a command, in the order of their tags.
    Holds {
        id: u64,
        tags: Vec<u8>,
    },
    /// All that lives and has ended was told. `ended`: the workspace's end was asked for and is complete.
    Adopted {
        mechanisms: Vec<Mechanism>,
        ended: Option<u32>,
    },
    /// From the supervisor: a command was refused something.
    Refusal {
        id: u64,
        refusal: Refusal,
    },
}

/// A message ready to be sent, as often as it takes.
pub(crate) struct Packet {
    bytes: Vec<u8>,
    overflow: Option<OwnedFd>,
}

impl Packet {
    pub(crate) fn new(message: &impl Serialize) -> io::Result<Self> {
        let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
        if bytes.len() <= INLINE {
            return Ok(Self { bytes, overflow: None });
        }
        if bytes.len() as u64 > LARGEST {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let memory = memfd_create("message", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(memory);
        io::Write::write_all(&mut file, &bytes)?;
        fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        Ok(Self { bytes: Vec::new(), overflow: Some(file.into()) })
    }

    /// Sends it; `WouldBlock` from a full socket that does not block, and then nothing was sent.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_about(socket, descriptors, None)
    }

    /// As `send` without descriptors, and without waiting for room.
    pub(crate) fn send_now(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mark = [u8::from(self.overflow.is_some())];
        let parts = [IoSlice::new(&mark), IoSlice::new(&self.bytes)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), flags)?;
        Ok(())
    }

    /// As `send`, naming a process, whose pid the kernel translates to the receiver's pid namespace.
    /// For another's pid the sender needs CAP_SYS_ADMIN over its own pid namespace (unix(7)).
    fn send_about(
        &self,
        socket: BorrowedFd<'_>,
        descriptors: &[BorrowedFd<'_>],
        process: Option<UCred>,
    ) -> io::Result<()> {
        let mut all = descriptors.to_vec();
        all.extend(self.overflow.as_ref().map(AsFd::as_fd));
        if all.len() > DESCRIPTORS {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !all.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&all));
        }
        if let Some(process) = process {
            ancillary.push(SendAncillaryMessage::ScmCredentials(process));
        }
        // The mark tells an empty packet from the end of the connection too.
        let mark = [u8::from(self.overflow.is_some())];
        let parts = [IoSlice::new(&mark), IoSlice::new(&self.bytes)];
        loop {
            match sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
    }
}

/// Sends one message on a socket that blocks.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    Packet::new(message)?.send(socket, descriptors)
}

/// Sends one message about a child of the sender.
pub(crate) fn send_about(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
    pid: i32,
) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    Packet::new(message)?.send_about(socket, descriptors, Some(UCred { pid, uid, gid }))
}

/// Sends eight bytes and a descriptor; allocates nothing, so that it can be done on another's memory.
pub(crate) fn send_plain(socket: BorrowedFd<'_>, bytes: &[u8; 8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives what [`send_plain`] sent; None at the end of the connection.
pub(crate) fn receive_plain(socket: BorrowedFd<'_>) -> io::Result<Option<([u8; 8], OwnedFd)>> {
    let mut bytes = [0_u8; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor = descriptors.next().and_then(|mut descriptors| descriptors.next());
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptor = descriptor.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADMSG))?;
    Ok(Some((bytes, descriptor)))
}

/// Has each message say which process it is from or about.
pub(crate) fn ask_for_pids(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(socket, true)?)
}

/// A message with what came beside it.
pub(crate) struct Received<T> {
    pub(crate) message: T,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// The process it is about, where the socket was told to ask.
    pub(crate) pid: Option<i32>,
}

/// Receives one message; None at the end of the connection.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    Ok(receive_about(socket)?.map(|received| (received.message, received.descriptors)))
}

/// As `receive`, with the process it is about.
pub(crate) fn receive_about<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<Received<T>>> {
    // Room for the largest would be pages that are touched for nothing.
    let size = loop {
        match recv(socket, &mut [0_u8; 0], RecvFlags::PEEK | RecvFlags::TRUNC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok((_, size)) => break size.clamp(1, 1 + INLINE),
        }
    };
    let mut mark = [0_u8];
    let mut buffer = vec![0_u8; size - 1];
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let parts = &mut [IoSliceMut::new(&mut mark), IoSliceMut::new(&mut buffer)];
        match recvmsg(socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(received) => break received,
        }
    };
    let mut descriptors = Vec::new();
    let mut pid = None;
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(fds) => descriptors.extend(fds),
            RecvAncillaryMessage::ScmCredentials(process) => pid = Some(process.pid.as_raw_nonzero().get()),
            _ => {}
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let decode = |bytes: &[u8]| postcard::from_bytes(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
    if mark == [0] {
        return Ok(Some(Received { message: decode(&buffer[..received.bytes - 1])?, descriptors, pid }));
    }
    let memory = descriptors.pop().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADMSG))?;
    let mut file = File::from(memory);
    file.rewind()?;
    let mut bytes = Vec::new();
    (&mut file).take(LARGEST).read_to_end(&mut bytes)?;
    Ok(Some(Received { message: decode(&bytes)?, descriptors, pid }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn messages_of_any_size_arrive_with_their_descriptors() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        for (length, descriptors) in [(0, 0), (10, 3), (INLINE - 3, 1), (INLINE, 2), (3 << 20, 4)] {
            let text = "x".repeat(length);
            let given = vec![a.as_fd(); descriptors];
            send(a.as_fd(), &text, &given).unwrap();
            let (back, taken) = receive::<String>(b.as_fd()).unwrap().unwrap();
            assert_eq!((back.len(), taken.len()), (length, descriptors));
        }
        assert!(Packet::new(&"x".repeat(LARGEST as usize)).is_err());
        drop(a);
        assert!(receive::<String>(b.as_fd()).unwrap().is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 1..200)) {
            let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            for _ in 0..3 {
                rustix::net::send(&a, &bytes, SendFlags::empty()).unwrap();
            }
            let _ = receive::<Order>(b.as_fd());
            let _ = receive::<Request>(b.as_fd());
            let _ = receive::<Reply>(b.as_fd());
        }
    }

    #[test]
    fn rubbish_is_an_error() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        for bytes in [&[0, 0xff, 0xff, 0xff][..], &[1, 0], &[7]] {
            rustix::net::send(&a, bytes, SendFlags::empty()).unwrap();
            assert!(receive::<String>(b.as_fd()).is_err());
        }
    }
}
