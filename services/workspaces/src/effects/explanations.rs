//! What commands were refused, for as long as they are remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use shipote_sandbox::Refusal;
use ulid::Ulid;

/// Most refusals of one command that are kept; the sandbox tells about as many.
const KEPT: usize = 512;

/// Refusals by command, in the order in which they happened; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Explanations(Arc<Mutex<HashMap<Ulid, Vec<Refusal>>>>);

impl Explanations {
    /// Whatever this command is refused from now on will be told.
    pub(crate) fn begin(&self, command: Ulid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(command).or_default();
    }

    pub(crate) fn note(&self, command: Ulid, refusal: Refusal) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = all.entry(command).or_default();
        // a command that was started again is told of once
        if told.len() < KEPT && !told.contains(&refusal) {
            told.push(refusal);
        }
    }

    /// None for a command of which nothing would be told.
    pub(crate) fn of(&self, command: Ulid) -> Option<Vec<Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&command).cloned()
    }

    pub(crate) fn forget(&self, command: Ulid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&command);
    }
}

#[cfg(test)]
mod tests {
    use shipote_sandbox::Why;

    use super::*;

    #[test]
    fn refusals_are_bounded_told_once_and_forgotten() {
        let (all, command) = (Explanations::default(), Ulid::generate());
        for number in (0..2000).chain(0..10) {
            all.note(command, Refusal { number, errno: 1, object: String::new(), why: Why::SystemCall });
        }
        let told = all.of(command).unwrap();
        assert_eq!((told.len(), told[0].number, told[KEPT - 1].number), (KEPT, 0, 511));
        assert_eq!(all.of(Ulid::generate()), None);
        all.forget(command);
        assert_eq!(all.of(command), None);
        all.begin(command);
        assert_eq!(all.of(command), Some(Vec::new()));
    }
}
