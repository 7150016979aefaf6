//! The thread that takes commands' output from their pipes into their logs.
//!
//! One thread for all: it waits for all pipes at once (epoll(7)), so that a living command costs no thread, and the
//! disk is not waited for on the runtime.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{SpliceFlags, splice};
use tokio::sync::watch;
use ulid::Ulid;

use super::file::{LogFile, Stream, Taken};

/// The key of the descriptor that tells the thread to end.
const END: u64 = 0;
/// Pipes that are looked at between two waits.
const EVENTS: usize = 64;

/// A pipe whose bytes go to a log.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) id: Ulid,
    pub(super) log: Arc<LogFile>,
    pub(super) stream: Stream,
    pub(super) pipe: Arc<OwnedFd>,
    /// How many pipes of this log are open; counted down at the end of this one.
    pub(super) open: watch::Sender<usize>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    end: OwnedFd,
    sources: Mutex<HashMap<u64, Arc<Source>>>,
    next: AtomicU64,
}

/// The thread; dropping this ends it, and returns when it is in no log any more.
#[derive(Debug)]
pub(super) struct Collector(Arc<Shared>, Option<JoinHandle<()>>);

impl Collector {
    /// Starts it.
    pub(super) fn start(news: impl Fn(News) + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            end: eventfd(0, EventfdFlags::CLOEXEC)?,
            sources: Mutex::default(),
            next: AtomicU64::new(END + 1),
        });
        epoll::add(&shared.epoll, &shared.end, epoll::EventData::new_u64(END), epoll::EventFlags::IN)?;
        let work = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("logs".to_owned()).stack_size(128 * 1024);
        let thread = thread.spawn(move || work.run(news))?;
        Ok(Collector(shared, Some(thread)))
    }

    pub(super) fn add(&self, source: Source) -> io::Result<()> {
        let key = self.0.next.fetch_add(1, Ordering::Relaxed);
        let pipe = Arc::clone(&source.pipe);
        self.0.sources().insert(key, Arc::new(source));
        let added = epoll::add(&self.0.epoll, &*pipe, epoll::EventData::new_u64(key), epoll::EventFlags::IN);
        added.inspect_err(|_| drop(self.0.sources().remove(&key))).map_err(Into::into)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // fails only if it was told 2⁶⁴ times
        let _ = rustix::io::write(&self.0.end, &1_u64.to_ne_bytes());
        if let Some(thread) = self.1.take() {
            // an error is one that panicked, which has ended as well
            let _ = thread.join();
        }
    }
}

/// What the thread tells.
#[derive(Debug, Clone, Copy)]
pub(super) enum News {
    /// So many bytes more are kept.
    Grown(u64),
    /// The last pipe of this log has ended.
    Drained(Ulid),
}

impl Shared {
    fn sources(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Source>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, news: impl Fn(News)) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return tracing::error!("wait for the output of commands: {error}"),
            }
            for event in &events {
                let key = event.data.u64();
                if key == END {
                    return;
                }
                let Some(source) = self.sources().get(&key).cloned() else { continue };
                if self.take(&source, &news) {
                    continue;
                }
                let _ = epoll::delete(&self.epoll, &*source.pipe);
                self.sources().remove(&key);
                let mut left = 0;
                source.open.send_modify(|open| {
                    *open = open.saturating_sub(1);
                    left = *open;
                });
                if left == 0 {
                    news(News::Drained(source.id));
                }
            }
        }
    }

    /// Takes what is there; false at the end.
    fn take(&self, source: &Source, news: &impl Fn(News)) -> bool {
        match source.log.take(source.stream, &*source.pipe) {
            Ok(Taken::Bytes(bytes)) => {
                news(News::Grown(bytes));
                true
            }
            Ok(Taken::Nothing) => true,
            Ok(Taken::End) => false,
            // what cannot be kept is still taken: the command must not die of a full disk that is ours
            Err(error) => match discard(&source.pipe) {
                Ok(0) => false,
                Ok(bytes) => {
                    tracing::error!("write the log of command {}: {error}; {bytes} bytes of it are lost", source.id);
                    true
                }
                Err(rustix::io::Errno::AGAIN) => true,
                Err(error) => {
                    tracing::error!("read the output of command {}: {error}", source.id);
                    false
                }
            },
        }
    }
}

fn discard(pipe: &OwnedFd) -> rustix::io::Result<usize> {
    let null = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    match splice(pipe.as_fd(), None, &null, None, 64 * 1024, SpliceFlags::NONBLOCK) {
        Err(rustix::io::Errno::INVAL) => match rustix::io::read(pipe, &mut [0; 16 * 1024]) {
            Err(rustix::io::Errno::IO) => Ok(0),
            read => read,
        },
        taken => taken,
    }
}
