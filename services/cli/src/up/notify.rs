//! The receiving end of sd_notify(3): what services say of themselves, and which process says it.

use std::{
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::Path,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt::set_socket_passcred};
use tokio::{io::Interest, net::UnixDatagram};

/// Longer datagrams are cut; `STATUS=` is for people.
const DATAGRAM_MAX: usize = 4096;
/// Longer words on the status are cut.
const STATUS_MAX: usize = 256;

/// What one datagram said.
#[derive(Debug, Default)]
pub(super) struct Notice {
    pub(super) said: Said,
    /// Descriptors that came along.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// What the words of one datagram said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) ready: bool,
    pub(super) reloading: bool,
    pub(super) stopping: bool,
    pub(super) watchdog: bool,
    pub(super) status: Option<String>,
    /// Keep the descriptors that come along.
    pub(super) store: bool,
    /// Drop the descriptors of this name.
    pub(super) remove: bool,
    /// What they are called.
    pub(super) name: Option<String>,
}

impl Said {
    /// Unknown assignments mean nothing to us, as they mean nothing to systemd.
    fn parse(datagram: &[u8]) -> Self {
        let mut notice = Self::default();
        for line in datagram.split(|b| *b == b'\n') {
            match line {
                b"READY=1" => notice.ready = true,
                b"RELOADING=1" => notice.reloading = true,
                b"STOPPING=1" => notice.stopping = true,
                b"WATCHDOG=1" => notice.watchdog = true,
                b"FDSTORE=1" => notice.store = true,
                b"FDSTOREREMOVE=1" => notice.remove = true,
                _ => {
                    // as systemd has it: up to 255 printable characters, no colon
                    if let Some(name) = line.strip_prefix(b"FDNAME=")
                        && (1..=255).contains(&name.len())
                        && name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b':')
                    {
                        notice.name = Some(String::from_utf8_lossy(name).into_owned());
                    }
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
    /// Cancelling it loses nothing.
    pub(super) async fn receive(&self) -> io::Result<(u32, Notice)> {
        loop {
            let received = self.0.async_io(Interest::READABLE, || Ok(self.receive_now()?)).await?;
            if let Some((pid, notice)) = received {
                return Ok((pid, notice));
            }
        }
    }

    /// What has arrived already: a process that is gone may have said something just before.
    pub(super) fn arrived(&self) -> Vec<(u32, Notice)> {
        let mut all = Vec::new();
        // an error is a socket with nothing in it
        while let Ok(received) = self.receive_now() {
            all.extend(received);
        }
        all
    }

    fn receive_now(&self) -> rustix::io::Result<Option<(u32, Notice)>> {
        let mut bytes = [0_u8; DATAGRAM_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16), ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let length = recvmsg(&self.0, &mut [io::IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?.bytes;
        let mut sender = None;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            match message {
                RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials.pid),
                RecvAncillaryMessage::ScmRights(rights) => descriptors.extend(rights),
                _ => {}
            }
        }
        let notice = Notice { said: Said::parse(&bytes[..length]), descriptors };
        Ok(sender.map(|pid| (pid.as_raw_nonzero().get().cast_unsigned(), notice)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams() {
        let status = |s: &str| Said { status: Some(s.to_owned()), ..Said::default() };
        for (datagram, notice) in [
            ("READY=1", Said { ready: true, ..Said::default() }),
            ("WATCHDOG=1\n", Said { watchdog: true, ..Said::default() }),
            ("READY=1\nSTATUS=serving", Said { ready: true, ..status("serving") }),
            ("RELOADING=1\nMONOTONIC_USEC=5", Said { reloading: true, ..Said::default() }),
            ("STOPPING=1", Said { stopping: true, ..Said::default() }),
            ("STATUS=a\x1b[31mb", status("a[31mb")),
            ("READY=0\nREADY=11\nready=1\nMAINPID=1", Said::default()),
            ("FDSTORE=1\nFDNAME=k1\nFDPOLL=0", Said { store: true, name: Some("k1".to_owned()), ..Said::default() }),
            ("FDSTOREREMOVE=1\nFDNAME=k1", Said { remove: true, name: Some("k1".to_owned()), ..Said::default() }),
            ("FDNAME=a:b\nFDNAME=\nFDNAME=\x01", Said::default()),
            ("", Said::default()),
        ] {
            assert_eq!(Said::parse(datagram.as_bytes()), notice, "{datagram:?}");
        }
        assert_eq!(Said::parse(format!("STATUS={}", "é".repeat(9999)).as_bytes()), status(&"é".repeat(STATUS_MAX)));
        assert_eq!(Said::parse(b"STATUS=\xff"), status("\u{fffd}"));
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
        assert!(notice.said.ready);
    }
}
