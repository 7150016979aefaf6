//! Connections that wait for a person: what they ask for is on no list yet, and their client may ask.
//!
//! All connections of a client for the same host and port wait for one answer. A question lasts as long as somebody
//! waits for its answer, a minute at most each; how many there are is bounded, and past that it is no.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shipote_egress::Policy;
use tokio::sync::{mpsc, watch};

use super::client::unix_ms;

/// How long a connection is held.
pub const ASK_TIME: Duration = Duration::from_secs(60);
/// Questions of one client, and of all.
const OF_ONE: usize = 32;
const OF_ALL: usize = 1024;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its number.
    pub id: u64,
    /// Who asks.
    pub client: String,
    /// The entry that would allow it: `host:port`.
    pub entry: String,
    /// When it was asked first, milliseconds since the epoch.
    pub unix_ms: u64,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Open,
    /// These connections may, whatever the list says.
    Once,
    Denied,
}

#[derive(Debug)]
struct Waiting {
    question: Question,
    host: String,
    port: u16,
    /// Connections that wait.
    held: usize,
    verdict: watch::Sender<Verdict>,
}

/// A connection that waits. It may go away with its client.
struct Held<'q> {
    questions: &'q Questions,
    id: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut open = self.questions.open();
        if let Some(waiting) = open.get_mut(&self.id) {
            waiting.held -= 1;
            if waiting.held == 0 {
                open.remove(&self.id);
            }
        }
    }
}

/// All questions.
#[derive(Debug)]
pub(super) struct Questions {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Waiting>>,
    news: mpsc::Sender<Question>,
}

impl Questions {
    /// With the stream of new ones, which loses some where nobody reads it.
    pub(super) fn new() -> (Self, mpsc::Receiver<Question>) {
        let (news, received) = mpsc::channel(OF_ALL);
        (Self { next: AtomicU64::new(1), open: Mutex::default(), news }, received)
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Waiting>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an answer; none: nobody answered in time, or there are too many questions.
    pub(super) async fn ask(&self, client: &str, host: &str, port: u16, entry: &str) -> Option<Verdict> {
        let (id, mut verdict) = self.pose(client, host, port, entry)?;
        let _held = Held { questions: self, id };
        let answered = tokio::time::timeout(ASK_TIME, verdict.wait_for(|v| *v != Verdict::Open)).await;
        answered.ok().and_then(Result::ok).map(|v| *v)
    }

    fn pose(&self, client: &str, host: &str, port: u16, entry: &str) -> Option<(u64, watch::Receiver<Verdict>)> {
        let mut open = self.open();
        let same = |w: &&Waiting| w.question.client == client && w.question.entry == entry;
        if let Some(waiting) = open.values_mut().find(|w| same(&&**w)) {
            waiting.held += 1;
            return Some((waiting.question.id, waiting.verdict.subscribe()));
        }
        let own = open.values().filter(|w| w.question.client == client).count();
        if own >= OF_ONE || open.len() >= OF_ALL {
            return None;
        }
        let id = self.next.fetch_add(1, Relaxed);
        let question = Question { id, client: client.to_owned(), entry: entry.to_owned(), unix_ms: unix_ms() };
        if self.news.try_send(question.clone()).is_err() {
            tracing::warn!("{client} asks for {entry}: no signal tells of it; see `shipote egress pending`");
        }
        let (verdict, received) = watch::channel(Verdict::Open);
        open.insert(id, Waiting { question, host: host.to_owned(), port, held: 1, verdict });
        Some((id, received))
    }

    /// Answers one; false: nobody waits for it.
    pub(super) fn answer(&self, id: u64, verdict: Verdict) -> Option<Question> {
        let waiting = self.open().remove(&id)?;
        waiting.verdict.send_replace(verdict);
        Some(waiting.question)
    }

    /// A client has another list: what that allows need not be asked any more.
    pub(super) fn listed(&self, client: &str, policy: &Policy) {
        let allowed = |w: &Waiting| w.question.client == client && policy.allows(&w.host, w.port).is_ok();
        for waiting in self.open().extract_if(.., |_, w| allowed(w)).map(|(_, w)| w) {
            waiting.verdict.send_replace(Verdict::Once);
        }
    }

    pub(super) fn list(&self) -> Vec<Question> {
        self.open().values().map(|w| w.question.clone()).collect()
    }
}
