//! Kills one service after the other, as chance has it.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Soak;

const SERVICES: [&str; 4] = ["workspaces", "machines", "proxy", "plugins"];
/// How long one may take to be back.
const BACK: Duration = Duration::from_secs(60);

pub(super) fn run(soak: &Soak<'_>, every: Duration, seed: u64) {
    let mut chance = Chance(seed);
    loop {
        soak.pause(every);
        if !soak.goes_on() {
            return;
        }
        let service = SERVICES[chance.below(SERVICES.len())];
        let Ok(before) = soak.appliance.service(service) else {
            soak.ledger.fault(format!("{service} has no process before it is killed"));
            continue;
        };
        soak.ledger.away(service);
        let killed = i32::try_from(before).ok().map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        if !matches!(killed, Some(Ok(()))) {
            soak.ledger.fault(format!("{service} was gone before it was killed"));
        }
        let begun = Instant::now();
        while !is_back(soak, service, before) {
            if begun.elapsed() > BACK {
                soak.ledger.fault(format!("{service} was not back within {BACK:?} of its kill"));
                break;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        soak.ledger.back(service);
    }
}

fn is_back(soak: &Soak<'_>, service: &str, before: u32) -> bool {
    let status = soak.appliance.shipote(&["status", "--json"]).output();
    let status: Option<serde_json::Value> = status.ok().and_then(|out| serde_json::from_slice(&out.stdout).ok());
    let all = status.as_ref().and_then(|status| status["services"].as_array());
    all.into_iter().flatten().any(|one| {
        one["name"] == service
            && one["pid"].as_u64().is_some_and(|pid| pid != u64::from(before))
            && one["state"] == "running"
    })
}

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_its_turn_and_a_seed_repeats_itself() {
        let draw = |seed| {
            let mut chance = Chance(seed);
            (0..40).map(|_| chance.below(SERVICES.len())).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!((0..SERVICES.len()).all(|service| draw(1).contains(&service)));
    }
}
