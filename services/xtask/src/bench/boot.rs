//! `boot`: what the services add to the boot of a host.
//!
//! The machine of `cargo xtask vm` is booted with them and with their units masked, in turns; a boot is over when
//! `multi-user.target` and all services that start at boot are active, by systemd's own clock, which begins with the
//! kernel. An installation has the proxy and the workspaces' socket start at boot, and the other services by the first call or
//! connection: beside that, all four started at boot are measured.

use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use super::harness::{Claim, Figure, Series};
use super::{Outcome, Setting};

/// Boots of each kind: one takes half a minute where the processor is emulated.
const ROUNDS_MAX: u32 = 3;

const INSTALLED: Claim = Claim {
    id: "boot",
    what: "a virtual machine's boot to all units ready, as installed: the proxy runs, the others start when they are called",
    against: "the same machine without them",
    figure: Figure::Time,
    target: 1.1,
};

const ALL: Claim = Claim {
    id: "boot-all",
    what: "a virtual machine's boot to all units ready, with all four services enabled",
    ..INSTALLED
};

/// Seconds, one figure a boot.
#[derive(Debug, Deserialize)]
struct Boots {
    installed: Vec<f64>,
    all: Vec<f64>,
    without: Vec<f64>,
}

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    let text = crate::vm::measure("boot", setting.rounds.min(ROUNDS_MAX), setting.binaries.clone())?;
    let boots: Boots = serde_json::from_str(&text).context("read the boots")?;
    let series = |seconds: Vec<f64>| Series::of(seconds.into_iter().map(Duration::from_secs_f64).collect());
    let without = series(boots.without);
    Ok(Outcome {
        rows: vec![INSTALLED.judge(&series(boots.installed), &without)?, ALL.judge(&series(boots.all), &without)?],
        notes: vec![format!("at most {ROUNDS_MAX} boots of each kind; the CPU column repeats wall time")],
    })
}
