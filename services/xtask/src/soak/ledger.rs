//! What was asked for, what came of it, and when a service was away.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// What is away while a machine is stopped by the soak itself.
pub(super) const A_MACHINE: &str = "a machine";
/// How long after a service is back what it needs to catch up may still fail.
const AFTER: Duration = Duration::from_secs(2);
/// Faults that are kept in full; more are counted.
const FAULTS_MAX: usize = 50;

/// What came of the requests of one kind.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Requests {
    /// Answered as they should be.
    pub(super) good: u64,
    /// Not taken, or cut off, while what carries its bytes was away: nothing had been promised.
    pub(super) while_away: u64,
    /// Accepted and lost.
    pub(super) lost: u64,
    /// The longest that one took, milliseconds.
    pub(super) longest_ms: u128,
}

/// What came of the changes of one kind to one object.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Changes {
    /// Done, as the service said.
    pub(super) done: u64,
    /// The service had no time to say what came of it.
    pub(super) unknown: u64,
}

/// A spell in which a service was away.
#[derive(Debug, Clone)]
struct Spell {
    service: &'static str,
    from: Instant,
    /// None while it lasts.
    to: Option<Instant>,
}

#[derive(Debug, Default)]
struct Book {
    requests: BTreeMap<&'static str, Requests>,
    changes: BTreeMap<(String, String), Changes>,
    spells: Vec<Spell>,
    faults: Vec<String>,
    more_faults: u64,
}

/// Kept by all parts together.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Book>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A service is about to be killed.
    pub(super) fn away(&self, service: &'static str) {
        self.book().spells.push(Spell { service, from: Instant::now(), to: None });
    }

    /// It is back.
    pub(super) fn back(&self, service: &str) {
        if let Some(spell) = self.book().spells.iter_mut().rfind(|spell| spell.service == service) {
            spell.to = Some(Instant::now());
        }
    }

    /// Whether one of these services was away since `from`.
    pub(super) fn was_away(&self, services: &[&str], from: Instant) -> bool {
        let over = |spell: &Spell| spell.to.is_some_and(|to| to + AFTER < from);
        self.book().spells.iter().rev().take(32).any(|spell| services.contains(&spell.service) && !over(spell))
    }

    pub(super) fn good(&self, kind: &'static str, took: Duration) {
        let mut book = self.book();
        let of = book.requests.entry(kind).or_default();
        of.good += 1;
        of.longest_ms = of.longest_ms.max(took.as_millis());
    }

    /// A request that did not end well; `promised` where all that carries its bytes had been there.
    pub(super) fn bad(&self, kind: &'static str, promised: bool, why: &str) {
        let mut book = self.book();
        let of = book.requests.entry(kind).or_default();
        if promised {
            of.lost += 1;
            drop(book);
            self.fault(format!("a request ({kind}) was lost: {why}"));
        } else {
            of.while_away += 1;
        }
    }

    /// A change, with what the service said of it.
    pub(super) fn change(&self, action: &str, object: &str, done: bool) {
        let mut book = self.book();
        let of = book.changes.entry((action.to_owned(), object.to_owned())).or_default();
        if done {
            of.done += 1;
        } else {
            of.unknown += 1;
        }
    }

    pub(super) fn fault(&self, fault: String) {
        let mut book = self.book();
        if book.faults.len() < FAULTS_MAX {
            eprintln!("soak: {fault}");
            book.faults.push(fault);
        } else {
            book.more_faults += 1;
        }
    }

    /// The requests until now were for warming up.
    pub(super) fn forget_requests(&self) {
        self.book().requests.clear();
    }

    pub(super) fn requests(&self) -> BTreeMap<&'static str, Requests> {
        self.book().requests.clone()
    }

    /// By action and object.
    pub(super) fn all_changes(&self) -> BTreeMap<(String, String), Changes> {
        self.book().changes.clone()
    }

    /// By action.
    pub(super) fn changes(&self) -> BTreeMap<String, Changes> {
        let mut sums: BTreeMap<String, Changes> = BTreeMap::new();
        for ((action, _), of) in &self.book().changes {
            let sum = sums.entry(action.clone()).or_default();
            (sum.done, sum.unknown) = (sum.done + of.done, sum.unknown + of.unknown);
        }
        sums
    }

    /// How often each service was killed, and the longest that it was away, milliseconds.
    pub(super) fn kills(&self) -> BTreeMap<&'static str, (u64, u128)> {
        let mut kills: BTreeMap<&'static str, (u64, u128)> = BTreeMap::new();
        for spell in self.book().spells.iter().filter(|spell| spell.service != A_MACHINE) {
            let of = kills.entry(spell.service).or_default();
            let lasted = spell.to.unwrap_or_else(Instant::now).duration_since(spell.from).as_millis();
            *of = (of.0 + 1, of.1.max(lasted));
        }
        kills
    }

    pub(super) fn faults(&self) -> Vec<String> {
        let book = self.book();
        let more = (book.more_faults > 0).then(|| format!("and {} more", book.more_faults));
        book.faults.iter().cloned().chain(more).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_killed_service_explains_is_no_fault() {
        let ledger = Ledger::default();
        let before = Instant::now();
        assert!(!ledger.was_away(&["proxy"], before));
        ledger.away("proxy");
        assert!(ledger.was_away(&["proxy", "plugins"], before) && !ledger.was_away(&["machines"], before));
        ledger.away(A_MACHINE);
        ledger.back("proxy");
        assert!(ledger.was_away(&[A_MACHINE], before) && ledger.kills().len() == 1, "that is no kill");
        let later = Instant::now() + AFTER + Duration::from_secs(1);
        assert!(ledger.was_away(&["proxy"], before), "it had begun before");
        assert!(!ledger.was_away(&["proxy"], later), "it began after");
        ledger.bad("own", false, "cut off");
        assert!(ledger.faults().is_empty());
        ledger.bad("own", true, "cut off");
        assert_eq!(ledger.faults().len(), 1);
        assert_eq!((ledger.requests()["own"].lost, ledger.requests()["own"].while_away), (1, 1));
    }

    #[test]
    fn faults_have_a_bound_and_say_so() {
        let ledger = Ledger::default();
        for n in 0..FAULTS_MAX + 2 {
            ledger.fault(n.to_string());
        }
        assert_eq!(ledger.faults().last().map(String::as_str), Some("and 2 more"));
    }
}
