//! Bytes both ways, unread.

use crate::io::{Buf, Io, IoError, Pool};

/// What went through.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passed {
    pub(crate) up: u64,
    pub(crate) down: u64,
}

/// Passes bytes on both ways until both sides ended, one failed, or nothing moved for the connection's time limit.
/// What is in `early_up` and `early_down` goes first.
pub(crate) async fn tunnel(
    client: &Io,
    upstream: &Io,
    early_up: &mut Buf,
    early_down: &mut Buf,
    passed: &std::cell::Cell<Passed>,
) -> Result<(), IoError> {
    let up = copy(client, upstream, early_up, |n| {
        let mut p = passed.get();
        p.up += n;
        passed.set(p);
    });
    let down = copy(upstream, client, early_down, |n| {
        let mut p = passed.get();
        p.down += n;
        passed.set(p);
    });
    tokio::try_join!(up, down).map(|_| ())
}

async fn copy(from: &Io, to: &Io, buf: &mut Buf, count: impl Fn(u64)) -> Result<(), IoError> {
    loop {
        if !buf.is_empty() {
            to.write(buf.filled()).await?;
            count(buf.len() as u64);
            buf.consume(buf.len());
        }
        if from.fill(buf).await? == 0 {
            // The other way may go on: only this half ends.
            return match to.shutdown().await {
                Err(IoError::System(e)) if e.kind() == std::io::ErrorKind::NotConnected => Ok(()),
                other => other,
            };
        }
    }
}

/// Two empty buffers for a tunnel.
pub(crate) fn buffers(pool: &Pool) -> (Buf, Buf) {
    (pool.body(), pool.body())
}
