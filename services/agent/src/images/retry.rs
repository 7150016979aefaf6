//! When something is tried again, and when not.

use std::io::ErrorKind;
use std::time::Duration;

use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::refusal;

/// First pause; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause of our own choice.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest pause that a registry may ask for; one that wants more is told of as an error.
const ASKED_MAX: Duration = Duration::from_secs(60);
/// Attempts without any progress.
const ATTEMPTS: u32 = 4;

/// Why something failed, and whether that may pass.
#[derive(Debug)]
pub(super) struct Failure {
    reason: String,
    permanent: bool,
    /// What the registry asks for.
    after: Option<Duration>,
}

impl Failure {
    pub(super) fn permanent(reason: String) -> Self {
        Self { reason, permanent: true, after: None }
    }

    pub(super) fn transient(reason: String) -> Self {
        Self { reason, permanent: false, after: None }
    }

    /// Of a request that got no answer.
    #[allow(clippy::needless_pass_by_value, reason = "for map_err")]
    pub(super) fn of(error: ureq::Error) -> Self {
        let reason = match &error {
            // Which host it was, maybe after a redirection, is known there.
            ureq::Error::ConnectProxyFailed(reason) => format!(
                "the way out refuses: {reason}; on the host, `shipote egress list --denials` says what to allow"
            ),
            // The way out listens in the machine itself, where it has one.
            ureq::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
                return Self::permanent("the machine has no way out; give it egress rules".to_owned());
            }
            other => other.to_string(),
        };
        let permanent = matches!(
            error,
            ureq::Error::ConnectProxyFailed(_)
                | ureq::Error::BadUri(_)
                | ureq::Error::RequireHttpsOnly(_)
                | ureq::Error::Tls(_)
                | ureq::Error::TooManyRedirects
        ) || matches!(&error, ureq::Error::Rustls(_));
        Self { reason, permanent, after: None }
    }

    /// Of an answer that is a refusal.
    pub(super) fn of_status(response: Response<Body>) -> Self {
        let status = response.status();
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let passes = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY);
        let mut reason = format!("the registry answers {status}");
        if let Some(words) = refusal::words(response.into_body().into_reader()) {
            reason += &format!(": {words}");
        }
        Self { reason, permanent: !passes, after: after.map(Duration::from_secs) }
    }
}

/// Attempts at one thing.
pub(super) struct Retry {
    failed: u32,
}

impl Retry {
    pub(super) fn network() -> Self {
        Self { failed: 0 }
    }

    /// Something was achieved: what fails from here on is the first to fail.
    pub(super) fn progress(&mut self) {
        self.failed = 0;
    }

    /// Waits until it may be tried again; the reason where it may not.
    pub(super) fn wait(&mut self, failure: Failure) -> Result<(), String> {
        let pause = self.pause(failure)?;
        // Between half and the whole of it, so that many who failed together do not come back together.
        std::thread::park_timeout(pause.mul_f64(0.5 + fraction() / 2.0));
        Ok(())
    }

    fn pause(&mut self, failure: Failure) -> Result<Duration, String> {
        self.failed += 1;
        if failure.permanent {
            return Err(failure.reason);
        }
        if self.failed >= ATTEMPTS {
            return Err(format!("{} ({ATTEMPTS} attempts)", failure.reason));
        }
        match failure.after {
            Some(asked) if asked > ASKED_MAX => {
                Err(format!("{}; it asks to come back in {} s", failure.reason, asked.as_secs()))
            }
            // A promise to come back no sooner is kept in full.
            Some(asked) => Ok(asked * 2),
            None => Ok((PAUSE * 2_u32.pow(self.failed - 1)).min(PAUSE_MAX)),
        }
    }
}

/// From 0 to 1.
fn fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the pause is merely the same for all.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end() {
        let mut retry = Retry::network();
        let failure = || Failure::transient("cut".into());
        assert_eq!(retry.pause(failure()).unwrap(), PAUSE);
        assert_eq!(retry.pause(failure()).unwrap(), PAUSE * 2);
        retry.progress();
        assert_eq!(retry.pause(failure()).unwrap(), PAUSE);
        assert!(
            retry.pause(Failure { after: Some(Duration::from_secs(3)), ..failure() }).unwrap()
                >= Duration::from_secs(3)
        );
        assert!(retry.pause(failure()).is_ok());
        assert!(retry.pause(failure()).unwrap_err().contains("4 attempts"));
    }

    #[test]
    fn what_cannot_pass_is_not_tried_again() {
        assert!(Retry::network().pause(Failure::permanent("no".into())).is_err());
        let late = Failure { after: Some(Duration::from_secs(3600)), ..Failure::transient("busy".into()) };
        assert!(Retry::network().pause(late).unwrap_err().contains("3600"));
    }
}
