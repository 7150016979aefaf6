//! What commands were refused, for as long as they are remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use shipote_sandbox::{Refusal, Why};
use ulid::Ulid;

/// Most refusals of one command that are kept; the sandbox tells about as many.
const KEPT: usize = 512;
/// Most bytes of an object's name that are kept.
const OBJECT_MAX: usize = 512;
/// Most bytes of all names of all commands: whoever may run can have them written.
const TOTAL_MAX: usize = 16 << 20;

/// Refusals by command, in the order in which they happened; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Explanations(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    of: HashMap<Ulid, Vec<Refusal>>,
    /// In all names.
    bytes: usize,
}

impl Explanations {
    /// Whatever this command is refused from now on will be told.
    pub(crate) fn begin(&self, command: Ulid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).of.entry(command).or_default();
    }

    pub(crate) fn note(&self, command: Ulid, mut refusal: Refusal) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { of, bytes } = &mut *all;
        let told = of.entry(command).or_default();
        if refusal.object.len() > OBJECT_MAX {
            refusal.object.truncate(refusal.object.floor_char_boundary(OBJECT_MAX));
            refusal.object.push('…');
        }
        // a command that was started again is told of once
        if told.len() >= KEPT || told.contains(&refusal) {
            return;
        }
        if *bytes + refusal.object.len() > TOTAL_MAX {
            refusal = Refusal { number: 0, errno: 0, object: String::new(), why: Why::More };
            if told.last().is_some_and(|last| last.why == Why::More) {
                return;
            }
        }
        *bytes += refusal.object.len();
        told.push(refusal);
    }

    /// None for a command of which nothing would be told.
    pub(crate) fn of(&self, command: Ulid) -> Option<Vec<Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).of.get(&command).cloned()
    }

    pub(crate) fn forget(&self, command: Ulid) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = all.of.remove(&command).unwrap_or_default();
        all.bytes -= told.iter().map(|refusal| refusal.object.len()).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn long_names_are_cut_and_all_names_together_are_bounded() {
        let all = Explanations::default();
        let refusal = |number: i32| Refusal { number, errno: 1, object: "é".repeat(2000), why: Why::SystemCall };
        let commands: Vec<Ulid> = (0..100).map(|_| Ulid::generate()).collect();
        for command in &commands {
            for number in 0..KEPT as i32 {
                all.note(*command, refusal(number));
            }
        }
        let told: Vec<Vec<Refusal>> = commands.iter().map(|c| all.of(*c).unwrap()).collect();
        assert!(told.iter().flatten().all(|r| r.object.len() <= OBJECT_MAX + '…'.len_utf8()));
        assert!(told.iter().flatten().map(|r| r.object.len()).sum::<usize>() <= TOTAL_MAX);
        let last = told.last().unwrap();
        assert_eq!((last.len(), &last[0].why), (1, &Why::More), "what is not told is said");
        for command in &commands {
            all.forget(*command);
        }
        assert_eq!(all.0.lock().unwrap().bytes, 0);
    }
}
