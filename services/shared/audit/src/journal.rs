//! The journal's native protocol: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr};

use crate::record::Field;

/// How long a send may wait while journald does not empty its queue. A journal that is stuck for longer counts as gone:
/// a service that hangs is worse than a record that is reported as lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// A socket to send from. It is never connected: each record is addressed by path, so a restarted journald is found
/// again without any doing of ours.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Whether something listens at `path`; at once, and without sending anything.
    pub(crate) fn probe(path: &Path) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A connected datagram socket is writable while the other side's queue has room.
        let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
            0 => Err(io::Error::new(io::ErrorKind::WouldBlock, "its queue is full")),
            _ => Ok(()),
        }
    }

    /// Sends one encoded record: one datagram, or, where it is too large for one, a sealed memfd.
    pub(crate) fn send(&self, path: &Path, record: &[u8]) -> io::Result<()> {
        match self.socket.send_to(record, path) {
            Ok(sent) if sent == record.len() => Ok(()),
            Ok(_) => Err(io::Error::new(io::ErrorKind::WriteZero, "the record was cut off")),
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::MSGSIZE | Errno::NOBUFS)) => {
                self.send_sealed(path, record)
            }
            Err(error) => Err(error),
        }
    }

    fn send_sealed(&self, path: &Path, record: &[u8]) -> io::Result<()> {
        let mut file = File::from(memfd_create("shipote-audit", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.write_all(record)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let address = SocketAddrUnix::new(path)?;
        sendmsg_addr(&self.socket, &address, &[IoSlice::new(&[])], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// `NAME=value` and a line feed; a value with line feeds in it as `NAME`, line feed, length (64 bits, little-endian),
/// value, line feed.
pub(crate) fn encode(fields: &[Field<'_>]) -> Vec<u8> {
    let mut record = Vec::with_capacity(fields.iter().map(|(name, value)| name.len() + value.len() + 10).sum());
    for (name, value) in fields {
        record.extend_from_slice(name.as_bytes());
        if value.contains(&b'\n') {
            record.push(b'\n');
            record.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            record.push(b'=');
        }
        record.extend_from_slice(value);
        record.push(b'\n');
    }
    record
}
