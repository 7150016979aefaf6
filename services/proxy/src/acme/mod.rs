//! Certificates that an authority is asked for (ACME, RFC 8555), as the proxy sees them: where they lie, when they are
//! due, and what the authority is answered that looks whether a name leads here.
//!
//! The proxy asks nobody itself: it holds no key of an account, and writes nothing. `shipote-proxy acme`, a process of
//! its own with a user of its own, does both.

mod challenges;
mod store;

pub use crate::tls::fits;
pub use challenges::{ChallengeError, Challenges};
pub use store::{Dates, Status, Store};

use std::sync::Arc;

/// What rules need that name certificates by ACME.
#[derive(Debug, Default)]
pub(crate) struct Acme {
    /// Where certificates are; none where no authority is configured.
    pub(crate) store: Option<Store>,
    /// What is answered.
    pub(crate) challenges: Arc<Challenges>,
}
