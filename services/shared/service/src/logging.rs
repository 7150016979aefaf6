//! Log lines: to the journal where stderr is connected to it (`JOURNAL_STREAM`,
//! systemd.exec(5)), else to stderr. `SHIPOTE_LOG` filters, as `RUST_LOG` would.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub(crate) fn init(identifier: &str) {
    let filter = EnvFilter::try_from_env("SHIPOTE_LOG").unwrap_or_else(|_| EnvFilter::new("info,zbus=warn"));
    let registry = tracing_subscriber::registry().with(filter);
    let journal = std::env::var_os("JOURNAL_STREAM")
        .and_then(|_| tracing_journald::layer().ok())
        .map(|l| l.with_syslog_identifier(identifier.to_owned()));
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
    });
    // a second initialisation (tests in one process) keeps the first subscriber
    let _ = registry.with(journal).with(stderr).try_init();
}
