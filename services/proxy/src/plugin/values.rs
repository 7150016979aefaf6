//! Typed values that a plugin keeps from one call to the next, within the bytes that its policy gives.

use std::collections::BTreeMap;

use shipote_plugin_abi::state::{KEY_MAX, StateError, StateValue};

/// What an entry takes beside its key and its value, bytes.
const ENTRY: u64 = 64;

/// The values of one plugin.
///
/// Invariant: `used` is the cost of all entries, and no change raises it above what the policy gave at that time.
#[derive(Debug, Default)]
pub(crate) struct Values {
    entries: BTreeMap<String, StateValue>,
    used: u64,
}

fn cost(key: &str, value: &StateValue) -> u64 {
    let size = match value {
        StateValue::Text(text) => text.len(),
        StateValue::Bytes(bytes) => bytes.len(),
        StateValue::Int64(_) | StateValue::Uint64(_) => 8,
        StateValue::Boolean(_) => 1,
    };
    ENTRY + key.len() as u64 + size as u64
}

impl Values {
    /// Bytes taken.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn get(&self, key: &str) -> Option<StateValue> {
        self.entries.get(key).cloned()
    }

    pub(super) fn remove(&mut self, key: &str) -> bool {
        let gone = self.entries.remove_entry(key);
        if let Some((key, value)) = &gone {
            self.used -= cost(key, value);
        }
        gone.is_some()
    }

    /// Puts a value in place, where all together then take no more than `most` bytes. (A policy may have come to give
    /// less: then what makes them fewer is still taken.)
    pub(super) fn set(&mut self, key: String, value: StateValue, most: u64) -> Result<(), StateError> {
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(StateError::BadKey);
        }
        let before = self.entries.get(&key).map_or(0, |old| cost(&key, old));
        let used = self.used - before + cost(&key, &value);
        if used > most && used > self.used {
            return Err(StateError::Full);
        }
        self.used = used;
        self.entries.insert(key, value);
        Ok(())
    }

    pub(super) fn add(&mut self, key: String, delta: i64, most: u64) -> Result<i64, StateError> {
        let before = match self.entries.get(&key) {
            None => 0,
            Some(StateValue::Int64(number)) => *number,
            Some(_) => return Err(StateError::WrongType),
        };
        let sum = before.checked_add(delta).ok_or(StateError::Overflow)?;
        self.set(key, StateValue::Int64(sum), most).map(|()| sum)
    }

    pub(super) fn replace(
        &mut self,
        key: String,
        expected: Option<&StateValue>,
        new: Option<StateValue>,
        most: u64,
    ) -> Result<bool, StateError> {
        if self.entries.get(&key) != expected {
            return Ok(false);
        }
        match new {
            Some(value) => self.set(key, value, most)?,
            None => drop(self.remove(&key)),
        }
        Ok(true)
    }

    pub(super) fn keys(&self, prefix: &str) -> Vec<String> {
        let from = self.entries.range(prefix.to_owned()..);
        from.map(|(key, _)| key).take_while(|key| key.starts_with(prefix)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: u64 = 1000;

    fn key(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn values_have_types_and_steps_are_whole() {
        let mut values = Values::default();
        assert_eq!(values.add(key("n"), 5, MOST), Ok(5));
        assert_eq!(values.add(key("n"), -7, MOST), Ok(-2));
        assert_eq!(values.add(key("n"), i64::MIN, MOST), Err(StateError::Overflow));
        assert_eq!(values.get("n"), Some(StateValue::Int64(-2)), "what failed changed nothing");
        values.set(key("t"), StateValue::Text("x".into()), MOST).unwrap();
        assert_eq!(values.add(key("t"), 1, MOST), Err(StateError::WrongType));
        let (two, one) = (StateValue::Uint64(2), StateValue::Uint64(1));
        assert_eq!(values.replace(key("c"), None, Some(one.clone()), MOST), Ok(true));
        assert_eq!(values.replace(key("c"), None, Some(two.clone()), MOST), Ok(false));
        assert_eq!(values.replace(key("c"), Some(&StateValue::Int64(1)), Some(two.clone()), MOST), Ok(false));
        assert_eq!(values.replace(key("c"), Some(&one), Some(two), MOST), Ok(true));
        assert_eq!(values.keys(""), ["c", "n", "t"]);
        assert_eq!(values.keys("n"), ["n"]);
        assert!(values.remove("n") && !values.remove("n"));
        assert_eq!(values.replace(key("c"), Some(&StateValue::Uint64(2)), None, MOST), Ok(true));
        for bad in [String::new(), "k".repeat(KEY_MAX + 1)] {
            assert_eq!(values.add(bad, 1, MOST), Err(StateError::BadKey));
        }
    }

    #[test]
    fn a_policy_that_comes_to_give_less_leaves_what_is_there_and_takes_what_shrinks_it() {
        let mut values = Values::default();
        values.set(key("a"), StateValue::Bytes(vec![0; 500]), MOST).unwrap();
        assert_eq!(values.set(key("b"), StateValue::Boolean(true), 100), Err(StateError::Full));
        values.set(key("a"), StateValue::Bytes(vec![0; 100]), 100).unwrap();
        assert_eq!(values.used(), ENTRY + 101);
    }

    proptest! {
        #[test]
        fn never_more_than_the_policy_gives(steps in proptest::collection::vec(("[a-c]{0,3}", 0_usize..600, any::<bool>()), 0..60)) {
            let mut values = Values::default();
            for (key, size, set) in steps {
                if set {
                    let _ = values.set(key, StateValue::Bytes(vec![0; size]), MOST);
                } else {
                    values.remove(&key);
                }
                prop_assert!(values.used() <= MOST);
                let sum: u64 = values.entries.iter().map(|(key, value)| cost(key, value)).sum();
                prop_assert_eq!(values.used(), sum);
            }
        }
    }
}
