//! What an authority is answered that looks whether a name leads here (http-01: RFC 8555, section 8.3).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Where authorities look.
const PREFIX: &[u8] = b"/.well-known/acme-challenge/";
/// Most answers at once: as many as a certificate has names.
const MOST: usize = 100;
/// Longest token, and longest answer; both are some 40 and 90 bytes.
const LONGEST: usize = 512;

/// Why an answer is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// It is none.
    #[error(
        "{0:?} is no answer to a challenge: a token, and the token with a dot and the account's thumbprint (base64url)"
    )]
    Malformed(String),
    /// Too many.
    #[error("{MOST} challenges are being answered already; forget some")]
    TooMany,
}

/// Answers by token. In memory: who proves a name sets them anew after a restart.
#[derive(Debug, Default)]
pub struct Challenges {
    /// How many there are, so that requests look no further while there are none.
    count: AtomicUsize,
    by_token: Mutex<HashMap<String, String>>,
}

impl Challenges {
    /// Answers `token` with `answer` from now on.
    ///
    /// # Errors
    /// They are not what RFC 8555 says, or there are too many.
    pub fn set(&self, token: &str, answer: &str) -> Result<(), ChallengeError> {
        let base64url = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let thumbprint = answer.strip_prefix(token).and_then(|rest| rest.strip_prefix('.'));
        if answer.len() > LONGEST || !base64url(token) || !thumbprint.is_some_and(base64url) {
            return Err(ChallengeError::Malformed(token.chars().take(64).collect()));
        }
        let mut by_token = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        if by_token.len() >= MOST && !by_token.contains_key(token) {
            return Err(ChallengeError::TooMany);
        }
        by_token.insert(token.to_owned(), answer.to_owned());
        self.count.store(by_token.len(), Relaxed);
        Ok(())
    }

    /// Answers it no more; whether it was answered.
    pub fn forget(&self, token: &str) -> bool {
        let mut by_token = self.by_token.lock().unwrap_or_else(PoisonError::into_inner);
        let known = by_token.remove(token).is_some();
        self.count.store(by_token.len(), Relaxed);
        known
    }

    /// Whether there are any: most of the time there are none, and requests need not be looked at.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// The answer to a request for this path; none for most.
    pub(crate) fn answer(&self, path: &[u8]) -> Option<String> {
        let token = std::str::from_utf8(path.strip_prefix(PREFIX)?).ok()?;
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_answered_until_it_is_forgotten_and_nothing_else_is() {
        let challenges = Challenges::default();
        let path = b"/.well-known/acme-challenge/abc";
        assert_eq!(challenges.answer(path), None);
        challenges.set("abc", "abc.thumb").unwrap();
        assert_eq!(challenges.answer(path).as_deref(), Some("abc.thumb"));
        for other in [&b"/.well-known/acme-challenge/"[..], b"/.well-known/acme-challenge/ab", b"/abc", b"/"] {
            assert_eq!(challenges.answer(other), None);
        }
        assert!(challenges.forget("abc") && !challenges.forget("abc"));
        assert_eq!(challenges.answer(path), None);
    }

    #[test]
    fn what_is_no_answer_is_refused_and_there_are_only_so_many() {
        let challenges = Challenges::default();
        let long = "a".repeat(600);
        for (token, answer) in [
            ("", ".thumb"),
            ("a/b", "a/b.thumb"),
            ("abc", "abd.thumb"),
            ("abc", "abc."),
            ("abc", "abc"),
            ("abc", "abc.<script>"),
            ("a\r\nb", "a\r\nb.thumb"),
            (&long, &format!("{long}.thumb")),
        ] {
            assert!(matches!(challenges.set(token, answer), Err(ChallengeError::Malformed(_))), "{token:?}");
        }
        for i in 0..MOST {
            challenges.set(&format!("t{i}"), &format!("t{i}.x")).unwrap();
        }
        assert_eq!(challenges.set("one-more", "one-more.x"), Err(ChallengeError::TooMany));
        challenges.set("t0", "t0.y").unwrap();
    }
}
