//! A socket that takes what others write: whoever connects and may is read until they close, into one pipe.
//!
//! ```text
//!   writer ──▶ socket ─┐
//!   writer ──▶ socket ─┼─▶ pipe ──▶ the commands of a workspace
//!   writer ──▶ socket ─┘
//! ```
//!
//! Pieces of up to 4 KiB are whole in the pipe (PIPE_BUF), whoever else writes meanwhile. A pipe that nobody empties
//! makes the writers wait. Bytes are copied: a blocking splice(2) from a Unix socket to a pipe lost some (Linux 6.18).

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use shipote_flow::Allow;

/// Most writers at once; further ones are turned away.
const WRITERS_MAX: usize = 16;
/// What is written into the pipe at once (pipe(7), PIPE_BUF).
const PIECE: usize = 4096;
/// How long nobody is let in where descriptors or threads have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// An open inlet. Dropped, it lets nobody in any more; who is in stays.
#[derive(Debug)]
pub(super) struct Inlet {
    listener: UnixListener,
}

impl Inlet {
    /// Lets writers in, each on a thread of its own.
    pub(super) fn open(listener: UnixListener, pipe: OwnedFd, allow: Allow) -> io::Result<Self> {
        let own = listener.try_clone()?;
        thread(move || accept(&listener, &Arc::new(pipe), &allow))?;
        Ok(Self { listener: own })
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        // wakes the thread that waits for the next
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("inlet".to_owned()).stack_size(64 * 1024).spawn(work).map(drop)
}

fn accept(listener: &UnixListener, pipe: &Arc<OwnedFd>, allow: &Allow) {
    let writers = Arc::new(AtomicUsize::new(0));
    loop {
        let peer = match listener.accept() {
            Ok((peer, _)) => peer,
            // it was shut down
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!("accept a writer: {error}");
                std::thread::park_timeout(PAUSE);
                continue;
            }
        };
        let uid = rustix::net::sockopt::socket_peercred(&peer).ok().map(|peer| peer.uid.as_raw());
        if !uid.is_some_and(|uid| allow(uid)) || writers.load(SeqCst) >= WRITERS_MAX {
            // its first write fails, or its end comes at once
            let _ = peer.shutdown(Shutdown::Both);
            continue;
        }
        writers.fetch_add(1, SeqCst);
        let (pipe, count) = (Arc::clone(pipe), Arc::clone(&writers));
        let started = thread(move || {
            // an error is a pipe that nobody reads any more, or a writer that is gone
            let _ = copy(peer, &pipe);
            count.fetch_sub(1, SeqCst);
        });
        if started.is_err() {
            writers.fetch_sub(1, SeqCst);
            std::thread::park_timeout(PAUSE);
        }
    }
}

fn copy(mut peer: UnixStream, pipe: &OwnedFd) -> io::Result<()> {
    let mut piece = [0; PIECE];
    loop {
        let mut rest = match peer.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => &piece[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        while !rest.is_empty() {
            match rustix::io::write(pipe, rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn inlet(allow: Allow) -> (tempfile::TempDir, std::path::PathBuf, Inlet, std::fs::File) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let inlet = Inlet::open(UnixListener::bind(&path).unwrap(), write, allow).unwrap();
        (folder, path, inlet, read.into())
    }

    #[test]
    fn what_writers_write_arrives_and_the_pipe_outlives_them() {
        let (_folder, path, inlet, mut read) = inlet(Arc::new(|_| true));
        for text in ["one", "two"] {
            UnixStream::connect(&path).unwrap().write_all(text.as_bytes()).unwrap();
            let mut got = [0; 3];
            read.read_exact(&mut got).unwrap();
            assert_eq!(&got, text.as_bytes());
        }
        drop(inlet);
        assert!(UnixStream::connect(&path).is_err());
        // with the last writer, the pipe ends
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn who_may_not_is_turned_away_and_so_is_one_too_many() {
        let turned_away = |stream: &mut UnixStream| matches!(stream.read(&mut [0]), Ok(0) | Err(_));
        let (_folder, path, _inlet, _read) = inlet(Arc::new(|_| false));
        assert!(turned_away(&mut UnixStream::connect(&path).unwrap()));

        let (_folder, path, _inlet, mut read) = inlet(Arc::new(|_| true));
        let mut all: Vec<UnixStream> = (0..WRITERS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert!(turned_away(&mut UnixStream::connect(&path).unwrap()));
        all.iter_mut().for_each(|writer| writer.write_all(b"x").unwrap());
        let mut got = [0; WRITERS_MAX];
        read.read_exact(&mut got).unwrap();
    }
}
