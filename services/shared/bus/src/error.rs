//! Errors that every service answers with, by the same name.

use zbus::fdo;

/// What every service may answer, whatever the interface.
///
/// The service's own errors stand beside its interface
/// (`org.shipote.Workspaces1.Error.…`).
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.shipote.Error")]
pub enum NotAvailable {
    /// The bus itself failed.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// The method is declared, but this version cannot do it yet.
    NotAvailable(String),
}

impl NotAvailable {
    /// "`what` is not available yet".
    #[must_use]
    pub fn yet(what: &str) -> Self {
        NotAvailable::NotAvailable(format!("{what} is not available yet in this version of Shipote"))
    }
}

/// The text a person should read of a failed bus call: the service's own message,
/// whole, without the bus's wrapping; and for the bus's own faults a way out.
#[must_use]
pub fn describe(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, detail, _) => detail.clone().unwrap_or_else(|| name.to_string()),
        zbus::Error::FDO(inner) => match inner.as_ref() {
            fdo::Error::ServiceUnknown(text) | fdo::Error::NameHasNoOwner(text) => {
                format!("the service is not on the bus ({text}); start the appliance with `shipote up`")
            }
            fdo::Error::NoReply(text) => {
                format!("the service went away before it answered ({text}); see its log, then ask again")
            }
            other => zbus::DBusError::description(other).map_or_else(|| other.to_string(), str::to_owned),
        },
        zbus::Error::InputOutput(io) => format!("cannot talk to the bus: {io}"),
        other => other.to_string(),
    }
}

/// Whether a call failed because its service is not on the bus, or went away before it answered.
#[must_use]
pub fn is_away(error: &zbus::Error) -> bool {
    const NAMES: [&str; 4] = ["ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected"];
    let named =
        |name: &str| name.strip_prefix("org.freedesktop.DBus.Error.").is_some_and(|short| NAMES.contains(&short));
    match error {
        zbus::Error::MethodError(name, ..) => named(name),
        zbus::Error::FDO(inner) => named(&zbus::DBusError::name(inner.as_ref())),
        _ => false,
    }
}

/// An error with its causes on one line. A cause whose text the line already holds is left
/// out: some libraries print their source, some leave it to the reader.
#[must_use]
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Chained {
        text: &'static str,
        #[source]
        cause: Option<Box<Chained>>,
    }

    #[test]
    fn a_service_that_is_away_is_told_from_one_that_refuses() {
        let fdo = |error: fdo::Error| zbus::Error::FDO(Box::new(error));
        assert!(is_away(&fdo(fdo::Error::NoReply(String::new()))));
        assert!(is_away(&fdo(fdo::Error::ServiceUnknown(String::new()))));
        assert!(!is_away(&fdo(fdo::Error::AccessDenied(String::new()))));
        assert!(!is_away(&zbus::Error::InvalidReply));
    }

    #[test]
    fn causes_stand_once() {
        let chain = |texts: [&'static str; 3]| {
            texts.into_iter().rev().fold(None, |cause, text| Some(Box::new(Chained { text, cause }))).unwrap()
        };
        assert_eq!(one_line(&*chain(["read a", "open a", "no such file"])), "read a: open a: no such file");
        assert_eq!(one_line(&*chain(["read a: no such file", "no such file", "no"])), "read a: no such file");
    }
}
