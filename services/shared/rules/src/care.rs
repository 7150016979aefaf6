//! How upstreams are looked after: asked now and then whether they are well, and passed by after failures.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::error::Problem;
use crate::section::Section;

/// Asking upstreams whether they are well.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct HealthCheck {
    /// What is asked for by `GET`; `None` where a connection that is accepted is enough.
    pub path: Option<String>,
    /// From one question to the next.
    #[serde(serialize_with = "millis")]
    pub interval: Duration,
    /// How long an answer may take.
    #[serde(serialize_with = "millis")]
    pub timeout: Duration,
    /// Good answers in a row that bring an upstream back.
    pub healthy: u32,
    /// Bad ones in a row that take it out.
    pub unhealthy: u32,
}

/// Passing an upstream by after requests that failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Passive {
    /// Failures in a row: connections that break, time limits, and the statuses 502, 503 and 504.
    pub failures: u32,
    /// For how long it is passed by.
    #[serde(rename = "for", serialize_with = "millis")]
    pub pause: Duration,
}

/// Both. However many upstreams are out, one is always tried: the last one is never taken out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Care {
    /// Asked now and then.
    pub health_check: Option<HealthCheck>,
    /// Watched.
    pub passive: Option<Passive>,
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

impl Care {
    /// Reads `health_check` and `passive_health` of a terminator.
    pub(crate) fn read(section: &mut Section<'_>, http: bool) -> Result<Self, Problem> {
        let mut care = Self::default();
        if let Some(value) = section.get("health_check") {
            let mut inner = Section::new(value, section.path("health_check"))?;
            let path = inner.text("path")?.map(str::to_owned);
            match &path {
                Some(_) if !http => {
                    return Err(Problem::new(
                        inner.path("path"),
                        "bytes are forwarded unread, so there is no path to ask for",
                    ));
                }
                Some(path) if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) => {
                    return Err(Problem::new(inner.path("path"), "must begin with / and hold no spaces"));
                }
                _ => {}
            }
            let count = |n: Option<u64>, default| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
            care.health_check = Some(HealthCheck {
                path,
                interval: inner.duration("interval")?.unwrap_or(Duration::from_secs(5)),
                timeout: inner.duration("timeout")?.unwrap_or(Duration::from_secs(2)),
                healthy: count(inner.number("healthy", 1..=100)?, 2),
                unhealthy: count(inner.number("unhealthy", 1..=100)?, 3),
            });
            inner.finish()?;
            let check = care.health_check.as_ref();
            if check.is_some_and(|c| c.interval < Duration::from_millis(10) || c.timeout.is_zero()) {
                let message = "interval must be at least 10 ms, and timeout more than zero";
                return Err(Problem::new(section.path("health_check"), message));
            }
        }
        if let Some(value) = section.get("passive_health") {
            let mut inner = Section::new(value, section.path("passive_health"))?;
            let failures = inner.number("failures", 1..=1000)?.and_then(|n| u32::try_from(n).ok()).unwrap_or(5);
            let pause = inner.duration("for")?.unwrap_or(Duration::from_secs(10));
            inner.finish()?;
            care.passive = Some(Passive { failures, pause });
        }
        Ok(care)
    }
}
