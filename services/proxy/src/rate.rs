//! Rate limits: token buckets by key, in bounded memory, shared by all workers.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Buckets of one shard. When a shard is full, those that are full again are forgotten (they mean nothing), and if
/// none is, the shard's new keys share one bucket.
const SHARD_KEYS: usize = 4096;
const SHARDS: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    seen: Instant,
}

/// The buckets of one place in the rules.
#[derive(Debug)]
pub(crate) struct Limiter {
    per_second: f64,
    burst: f64,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    buckets: HashMap<u64, Bucket>,
    /// When it was last looked through. A flood of new keys must not make each of them pay for that.
    swept: Option<Instant>,
}

/// How often a full shard is looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// Whom a bucket is for.
#[derive(Debug, Hash, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    Everybody,
    Address(IpAddr),
    Value(Option<&'a [u8]>),
}

impl Key<'_> {
    /// IPv6 by /64: a single host owns at least that much.
    pub(crate) fn address(ip: IpAddr) -> Self {
        Key::Address(match ip {
            IpAddr::V4(_) => ip,
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => IpAddr::V4(v4),
                None => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
            },
        })
    }
}

impl Limiter {
    pub(crate) fn new(rate: u32, window: Duration, burst: u32) -> Self {
        Self {
            per_second: f64::from(rate) / window.as_secs_f64(),
            burst: f64::from(burst),
            hasher: RandomState::new(),
            shards: Default::default(),
        }
    }

    /// Takes a token if there is one.
    pub(crate) fn allows(&self, key: &Key<'_>, now: Instant) -> bool {
        let hash = self.hasher.hash_one(key);
        let shard = &self.shards[(hash >> 60) as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Shard { buckets, swept } = &mut *shard;
        let mut key = hash;
        if buckets.len() >= SHARD_KEYS && !buckets.contains_key(&key) {
            if swept.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP) {
                buckets.retain(|_, bucket| self.refilled(bucket, now) < self.burst);
                *swept = Some(now);
            }
            if buckets.len() >= SHARD_KEYS {
                key = 0;
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { tokens: self.burst, seen: now });
        bucket.tokens = self.refilled(bucket, now);
        bucket.seen = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    fn refilled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.seen).as_secs_f64();
        (bucket.tokens + passed * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let limiter = Limiter::new(10, Duration::from_secs(1), 3);
        let start = Instant::now();
        let key = Key::address("10.0.0.1".parse().unwrap());
        let taken = (0..5).filter(|_| limiter.allows(&key, start)).count();
        assert_eq!(taken, 3);
        assert!(limiter.allows(&key, start + Duration::from_millis(100)));
        assert!(!limiter.allows(&key, start + Duration::from_millis(100)));
        assert!(limiter.allows(&Key::Everybody, start));
    }

    #[test]
    fn hosts_of_one_ipv6_network_share_a_bucket() {
        let key = |text: &str| Key::address(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
    }

    #[test]
    fn a_flood_of_keys_stays_in_bounds() {
        let limiter = Limiter::new(1, Duration::from_secs(3600), 1);
        let now = Instant::now();
        for i in 0..200_000u32 {
            limiter.allows(&Key::Value(Some(&i.to_be_bytes())), now);
        }
        let held: usize = limiter.shards.iter().map(|s| s.lock().unwrap().buckets.len()).sum();
        assert!(held <= SHARDS * (SHARD_KEYS + 1), "{held}");
    }
}
