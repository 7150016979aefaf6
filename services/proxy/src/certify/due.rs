//! Whether a certificate is to be fetched now.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use shipote_bus::words::counted;
use shipote_proxy::acme::{Dates, Status, Store, fits};

/// How long one that failed is left alone at first; each failure doubles it. Authorities count failures, too: the usual
/// one refuses after five within an hour.
const FIRST_WAIT: Duration = Duration::from_secs(15 * 60);
/// And at most.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// When, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Now(String),
    Later(String),
}

/// Looks at what is kept of the certificate for these names. Blocking: reads files.
pub(super) fn look(store: &Store, names: &[String], now: i64) -> Due {
    let first = names.first().map_or("", String::as_str);
    let why = match std::fs::read_to_string(store.certificate(first)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "there is no certificate yet".to_owned(),
        Err(e) => format!("the certificate cannot be read: {e}"),
        Ok(pem) => {
            let dates = CertificateDer::from_pem_slice(pem.as_bytes()).ok().and_then(|leaf| Dates::read(&leaf));
            match (fits(&pem, names), dates) {
                (Err(e), _) => format!("the certificate there is does not fit: {e}"),
                (Ok(()), None) => "the certificate there is cannot be read".to_owned(),
                (Ok(()), Some(dates)) if now < dates.renew_at() => {
                    return Due::Later(format!("not due for another {}", days(dates.renew_at() - now)));
                }
                (Ok(()), Some(dates)) => format!("it ends in {}", days(dates.not_after - now)),
            }
        }
    };
    let status = store.status(first);
    if now < status.next_try {
        return Due::Later(format!(
            "{why}, but it failed {} ({}) and is not asked for again before {} are over; --now does",
            counted(status.failures, "time"),
            status.error,
            days(status.next_try - now)
        ));
    }
    Due::Now(why)
}

/// What is remembered after one more failure.
pub(super) fn after_failure(before: &Status, error: String, now: i64) -> Status {
    let failures = before.failures.saturating_add(1);
    let wait = FIRST_WAIT.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_WAIT);
    let wait = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
    Status { failures, error, next_try: now.saturating_add(wait) }
}

/// A time in its largest unit.
fn days(seconds: i64) -> String {
    match seconds {
        ..0 => "the past".to_owned(),
        0..7200 => counted(seconds / 60, "minute"),
        7200..172_800 => counted(seconds / 3600, "hour"),
        _ => counted(seconds / 86_400, "day"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn kept(names: &[&str], not_after_days: i64) -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1);
        params.not_after =
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(not_after_days * DAY).unwrap());
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        store.keep(names[0], &(key.serialize_pem() + &cert.pem())).unwrap();
        (folder, store)
    }

    fn listed(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn a_certificate_is_fetched_that_is_not_there_or_ends_or_carries_other_names() {
        let (folder, store) = kept(&["a.example", "b.example"], 90);
        let look = |names: &[&str], now: i64| look(&store, &listed(names), now);
        assert_eq!(look(&["a.example", "b.example"], 10 * DAY), Due::Later("not due for another 50 days".to_owned()));
        assert_eq!(look(&["a.example"], 10 * DAY), Due::Later("not due for another 50 days".to_owned()));
        assert_eq!(look(&["a.example", "b.example"], 61 * DAY), Due::Now("it ends in 29 days".to_owned()));
        assert_eq!(look(&["a.example"], 91 * DAY), Due::Now("it ends in the past".to_owned()));
        assert_eq!(look(&["c.example"], 0), Due::Now("there is no certificate yet".to_owned()));
        let Due::Now(why) = look(&["a.example", "c.example"], 0) else { panic!("it is to be fetched") };
        assert!(why.contains("does not carry c.example"), "{why}");
        std::fs::write(folder.path().join("a.example.pem"), "torn").unwrap();
        assert!(matches!(look(&["a.example"], 0), Due::Now(_)));
    }

    #[test]
    fn one_that_fails_is_left_alone_for_longer_and_longer() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let mut status = Status::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            status = after_failure(&status, "no".to_owned(), 1000);
            waits.push((status.next_try - 1000) / 60);
        }
        assert_eq!(waits, [15, 30, 60, 120, 240, 480, 960, 1440, 1440, 1440, 1440, 1440]);
        store.keep_status("a.example", &after_failure(&Status::default(), "the reason".to_owned(), 1000)).unwrap();
        let names = listed(&["a.example"]);
        let Due::Later(why) = look(&store, &names, 1010) else { panic!("it is left alone") };
        assert!(why.contains("the reason") && why.contains("14 minutes"), "{why}");
        assert!(matches!(look(&store, &names, 1000 + 15 * 60), Due::Now(_)));
    }
}
