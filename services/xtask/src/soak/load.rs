//! Requests at a steady rate, however long each takes.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::client::{Client, Failure, OWN, PAGE};
use super::ledger::A_MACHINE;
use super::{Soak, rest, rest_until};

/// Connections that share the rate, for each kind.
const OWN_CONNECTIONS: u32 = 3;
const WORKSPACE_CONNECTIONS: u32 = 3;
/// Of the rate, what goes to the workspace; a machine gets a few a second, which is what its emulated server can do.
const WORKSPACE_SHARE: u32 = 4;
const MACHINE_RATE: u32 = 4;
/// Requests to machines.
const MACHINES: &str = "machines";

/// Makes requests until it is over.
pub(super) fn run(soak: &Soak<'_>, rate: u32) {
    let (to_workspace, ports) = (rate / WORKSPACE_SHARE, soak.ports);
    std::thread::scope(|scope| {
        for _ in 0..OWN_CONNECTIONS {
            let every = each((rate - to_workspace) / OWN_CONNECTIONS);
            scope.spawn(move || keep_asking(soak, "own", &mut Client::strict(ports.own, OWN, true), every));
        }
        for _ in 0..WORKSPACE_CONNECTIONS {
            let every = each(to_workspace / WORKSPACE_CONNECTIONS);
            let client = move || Client::strict(ports.workspace, PAGE, true);
            scope.spawn(move || keep_asking(soak, "workspace", &mut client(), every));
        }
        if !soak.machines.is_empty() {
            scope.spawn(move || {
                let client = &mut Client::strict(ports.machines, PAGE, false);
                keep_asking(soak, MACHINES, client, each(MACHINE_RATE));
            });
        }
    });
}

/// The same for a while.
pub(super) fn run_for(soak: &Soak<'_>, rate: u32, time: Duration) {
    std::thread::scope(|scope| {
        scope.spawn(|| run(soak, rate));
        rest(time);
        soak.stop.store(true, Relaxed);
    });
    soak.stop.store(false, Relaxed);
}

fn each(rate: u32) -> Duration {
    Duration::from_secs(1) / rate.max(1)
}

/// One after the other. Who is late catches up, but for what is more than a second ago: a machine that is woken holds a
/// request, and what it held back is no burst.
fn keep_asking(soak: &Soak<'_>, kind: &'static str, client: &mut Client, every: Duration) {
    // A machine's bytes pass through its service, whose end is theirs.
    let carriers: &[&str] = if kind == MACHINES { &["proxy", "machines", A_MACHINE] } else { &["proxy"] };
    let mut due = Instant::now();
    while soak.goes_on() {
        rest_until(due);
        let late = Instant::now().checked_sub(Duration::from_secs(1));
        due = late.map_or(due + every, |late| (due + every).max(late));
        let began = Instant::now();
        match client.ask() {
            Ok(()) => soak.ledger.good(kind, began.elapsed()),
            Err(failure) => {
                // A wrong answer is one by a proxy that is there; a connection that broke may have been the kill.
                let explained = !matches!(failure, Failure::Wrong(_)) && soak.ledger.was_away(carriers, began);
                soak.ledger.bad(kind, !explained, &format!("{failure} after {} ms", began.elapsed().as_millis()));
                rest(Duration::from_millis(20));
            }
        }
    }
}
