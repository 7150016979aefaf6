//! The sampler: awake while something lives.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{Meter, counts};
use crate::actor::Handle;
use crate::state::Input;

/// Between two samples.
const EVERY: Duration = Duration::from_secs(2);

/// Samples until the actor ends.
pub(crate) async fn run(meter: Meter, actor: Handle, inputs: mpsc::UnboundedSender<Input>) {
    loop {
        meter.0.begun.notified().await;
        let mut next = Instant::now();
        loop {
            // a sample that came late does not make the next one come early
            next = (next + EVERY).max(Instant::now());
            sleep_until(next).await;
            if meter.is_idle() {
                break;
            }
            let Ok(counted) = actor.ask(counts).await else { return };
            let (it, inputs) = (meter.clone(), inputs.clone());
            if let Err(error) = tokio::task::spawn_blocking(move || it.sample(&counted, &inputs)).await {
                tracing::error!("sample the figures of workspaces: {error}");
            }
        }
    }
}
