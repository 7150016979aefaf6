//! Signals that reach the command line and are meant for the command it started.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that are passed on.
pub(crate) struct Forwarded {
    all: Vec<(i32, Signal)>,
}

impl Forwarded {
    /// Begins to listen; from now on they no longer end this process.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        let all = kinds
            .into_iter()
            .map(|kind| Ok((kind.as_raw_value(), signal(kind)?)))
            .collect::<std::io::Result<_>>()
            .context("listen for signals")?;
        Ok(Forwarded { all })
    }

    /// The next one, by number.
    pub(crate) async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.all {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
