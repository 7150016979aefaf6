//! Who asks, and whether they may.
//!
//! On the embedded bus only the owner's uid (and root) gets in. On the system bus root is let
//! through and everyone else, the service's own user included, is polkit's decision
//! (`policies/polkit/`); where polkit does not answer, the answer is no. Each no is an audit record.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shipote_audit::{Audit, Door, Event, Record};
use zbus::message::Header;
use zbus::names::{BusName, OwnedUniqueName};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

/// The caller may not do what it asked for.
#[derive(Debug, thiserror::Error)]
#[error("{action} is refused to uid {uid}: {reason}")]
pub struct NotAuthorized {
    /// Action, such as `org.shipote.workspaces.run`.
    pub action: String,
    /// Who asked.
    pub uid: u32,
    /// Why, and the way out.
    pub reason: String,
}

/// Who asked, authorised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
}

/// Decides for one connection.
#[derive(Debug, Clone)]
pub struct Authority {
    connection: zbus::Connection,
    own_uid: u32,
    embedded: bool,
    // unique names are never used again on a bus, so an entry never becomes wrong
    known: Arc<Mutex<HashMap<OwnedUniqueName, u32>>>,
    audit: Arc<Audit>,
    refusals: Arc<Mutex<HashMap<u32, Refusals>>>,
}

/// One user's refusals of late: whoever is refused must not be able to fill the journal with it.
#[derive(Debug, Clone, Copy)]
struct Refusals {
    since: Instant,
    recorded: u32,
    unrecorded: u32,
}

/// Refusals of one user that are recorded in [`WINDOW`].
const RECORDED_MAX: u32 = 32;
const WINDOW: Duration = Duration::from_secs(10);

/// Names remembered before the table is begun anew.
const KNOWN_MAX: usize = 1024;

impl Authority {
    pub(crate) fn new(connection: zbus::Connection, embedded: bool, audit: Arc<Audit>) -> Self {
        let own_uid = std::fs::metadata("/proc/self").map_or(u32::MAX, |m| m.uid());
        Authority { connection, own_uid, embedded, known: Arc::default(), audit, refusals: Arc::default() }
    }

    /// The sender of a call, without a decision: for reads that everyone may do.
    ///
    /// # Errors
    /// The bus does not say who it is.
    pub async fn identify(&self, header: &Header<'_>) -> Result<Caller, NotAuthorized> {
        let refused = |reason: String| NotAuthorized { action: "a call".to_owned(), uid: u32::MAX, reason };
        let sender = header.sender().ok_or_else(|| refused("it has no sender".to_owned()))?;
        if let Some(&uid) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(sender.as_str()) {
            return Ok(Caller { uid });
        }
        let bus = zbus::fdo::DBusProxy::new(&self.connection).await.map_err(|e| refused(e.to_string()))?;
        let uid = bus
            .get_connection_unix_user(BusName::from(sender.to_owned()))
            .await
            .map_err(|e| refused(format!("the bus does not say who {sender} is: {e}")))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(sender.to_owned().into(), uid);
        Ok(Caller { uid })
    }

    /// Lets the sender of a call do `action`, or says why not. May ask the user (polkit)
    /// where the call allows interaction.
    ///
    /// # Errors
    /// [`NotAuthorized`].
    pub async fn check(&self, header: &Header<'_>, action: &str) -> Result<Caller, NotAuthorized> {
        let decided = self.decide(header, action).await;
        if let Err(refused) = &decided {
            self.record(header, refused);
        }
        decided
    }

    fn record(&self, header: &Header<'_>, refused: &NotAuthorized) {
        let now = Instant::now();
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() >= KNOWN_MAX {
            refusals.retain(|_, of| now.duration_since(of.since) < WINDOW);
        }
        let of = refusals.entry(refused.uid).or_insert(Refusals { since: now, recorded: 0, unrecorded: 0 });
        let Some(unrecorded) = of.admit(now) else { return };
        drop(refusals);
        let object = match (header.interface(), header.member()) {
            (Some(interface), Some(member)) => format!("{interface}.{member}"),
            _ => refused.action.clone(),
        };
        let mut record = Record::new(Event::AccessRefused, object, refused.uid, Door::Bus).failed(refused);
        if unrecorded > 0 {
            record = record.field("UNRECORDED", unrecorded.to_string());
        }
        if let Err(error) = self.audit.record(&record) {
            tracing::error!("record a refusal to uid {}: {error}", refused.uid);
        }
    }

    async fn decide(&self, header: &Header<'_>, action: &str) -> Result<Caller, NotAuthorized> {
        let caller = self.identify(header).await?;
        // on the system bus the service's own user is nobody who asks: it would be a command that got out
        if caller.uid == 0 || (self.embedded && caller.uid == self.own_uid) {
            return Ok(caller);
        }
        let refused = |reason: String| NotAuthorized { action: action.to_owned(), uid: caller.uid, reason };
        if self.embedded {
            return Err(refused(format!("this appliance belongs to uid {}", self.own_uid)));
        }
        let subject = Subject::new_for_message_header(header).map_err(|e| refused(format!("polkit: {e}")))?;
        let polkit = AuthorityProxy::new(&self.connection)
            .await
            .map_err(|e| refused(format!("polkit does not answer ({e}); ask as root")))?;
        let flags = if header.primary().flags().contains(zbus::message::Flags::ALLOW_INTERACTIVE_AUTH) {
            CheckAuthorizationFlags::ALLOW_USER_INTERACTION
        } else {
            CheckAuthorizationFlags::empty()
        };
        let answer = polkit
            .check_authorization(&subject, action, &HashMap::new(), flags, "")
            .await
            .map_err(|e| refused(format!("polkit does not answer ({e}); ask as root")))?;
        if answer.is_authorized {
            Ok(caller)
        } else {
            Err(refused("polkit says no; ask as root, or have the administrator allow the action".to_owned()))
        }
    }
}

impl Refusals {
    /// Whether one more is to be recorded, and how many before it were not.
    fn admit(&mut self, now: Instant) -> Option<u32> {
        if now.duration_since(self.since) >= WINDOW {
            (self.since, self.recorded) = (now, 0);
        }
        if self.recorded >= RECORDED_MAX {
            self.unrecorded = self.unrecorded.saturating_add(1);
            return None;
        }
        self.recorded += 1;
        Some(std::mem::take(&mut self.unrecorded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_where_it_is_not_recorded() {
        let begun = Instant::now();
        let mut of = Refusals { since: begun, recorded: 0, unrecorded: 0 };
        for _ in 0..RECORDED_MAX {
            assert_eq!(of.admit(begun), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(of.admit(begun + WINDOW / 2), None);
        }
        assert_eq!(of.admit(begun + WINDOW), Some(5), "the next says how many it stands for");
        assert_eq!(of.admit(begun + WINDOW), Some(0));
    }
}
