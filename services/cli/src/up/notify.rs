//! The receiving end of sd_notify(3): what services say of themselves, and which process says it.

use std::{io, mem::MaybeUninit, os::unix::fs::PermissionsExt, path::Path};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt::set_socket_passcred};
use tokio::{io::Interest, net::UnixDatagram};

/// Longer datagrams are cut; `STATUS=` is for people.
const DATAGRAM_MAX: usize = 4096;
/// Longer words on the status are cut.
const STATUS_MAX: usize = 256;

/// What one datagram said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) ready: bool,
    pub(super) reloading: bool,
    pub(super) stopping: bool,
    pub(super) watchdog: bool,
    pub(super) status: Option<String>,
}

impl Notice {
    /// Unknown assignments mean nothing to us, as they mean nothing to systemd.
    fn parse(datagram: &[u8]) -> Self {
        let mut notice = Self::default();
        for line in datagram.split(|b| *b == b'\n') {
            match line {
                b"READY=1" => notice.ready = true,
                b"RELOADING=1" => notice.reloading = true,
                b"STOPPING=1" => notice.stopping = true,
                b"WATCHDOG=1" => notice.watchdog = true,
                _ => {
                    if let Some(status) = line.strip_prefix(b"STATUS=") {
                        let text = String::from_utf8_lossy(status);
                        notice.status =
                            Some(text.chars().filter(|c| !c.is_control()).take(STATUS_MAX).collect::<String>());
                    }
                }
            }
        }
        notice
    }
}

/// The socket that `NOTIFY_SOCKET` names to the services.
#[derive(Debug)]
pub(super) struct Receiver(UnixDatagram);

impl Receiver {
    /// The folder is private, so only this user's processes reach the socket; which one it was comes with each datagram.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        set_socket_passcred(&socket, true)?;
        Ok(Self(socket))
    }

    /// The next datagram and the process that sent it, as the kernel knows it (`SCM_CREDENTIALS`, unix(7)).
    ///
    /// Descriptors that come along are closed.
    pub(super) async fn receive(&self) -> io::Result<(u32, Notice)> {
        loop {
            let received = self.0.async_io(Interest::READABLE, || Ok(self.receive_now()?)).await?;
            if let Some((pid, notice)) = received {
                return Ok((pid, notice));
            }
        }
    }

    fn receive_now(&self) -> rustix::io::Result<Option<(u32, Notice)>> {
        let mut bytes = [0_u8; DATAGRAM_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16), ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let length = recvmsg(&self.0, &mut [io::IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?.bytes;
        let sender = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid),
            _ => None,
        });
        Ok(sender.map(|pid| (pid.as_raw_nonzero().get().cast_unsigned(), Notice::parse(&bytes[..length]))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams() {
        let status = |s: &str| Notice { status: Some(s.to_owned()), ..Notice::default() };
        for (datagram, notice) in [
            ("READY=1", Notice { ready: true, ..Notice::default() }),
            ("WATCHDOG=1\n", Notice { watchdog: true, ..Notice::default() }),
            ("READY=1\nSTATUS=serving", Notice { ready: true, ..status("serving") }),
            ("RELOADING=1\nMONOTONIC_USEC=5", Notice { reloading: true, ..Notice::default() }),
            ("STOPPING=1", Notice { stopping: true, ..Notice::default() }),
            ("STATUS=a\x1b[31mb", status("a[31mb")),
            ("READY=0\nREADY=11\nready=1\nMAINPID=1", Notice::default()),
            ("", Notice::default()),
        ] {
            assert_eq!(Notice::parse(datagram.as_bytes()), notice, "{datagram:?}");
        }
        assert_eq!(Notice::parse(format!("STATUS={}", "é".repeat(9999)).as_bytes()), status(&"é".repeat(STATUS_MAX)));
        assert_eq!(Notice::parse(b"STATUS=\xff"), status("\u{fffd}"));
    }

    #[tokio::test]
    async fn the_sender_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let receiver = Receiver::bind(&path).unwrap();
        let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
        sender.send_to(b"READY=1", &path).unwrap();
        let (pid, notice) = receiver.receive().await.unwrap();
        assert_eq!(pid, std::process::id());
        assert!(notice.ready);
    }
}
