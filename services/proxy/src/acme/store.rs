//! The folder of certificates by ACME: `NAME.pem` has the key and the chain of the certificate whose first name is NAME,
//! in one file so that they change together; `NAME.json` how asking for it fared.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shipote_state::Format;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// The format of `NAME.json`.
const FORMAT: Format = Format { key: "version", first: 1, steps: &[] };
/// Who is of the group may read: the proxy.
const MODE: u32 = 0o640;

/// When a certificate is valid, seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dates {
    /// From then on.
    pub not_before: i64,
    /// Until then.
    pub not_after: i64,
}

impl Dates {
    /// Reads them from a certificate in DER; none where it is no certificate.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let validity = cert.validity();
        Some(Self { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
    }

    /// When it is to be renewed, seconds since the epoch: with a third of its life left.
    #[must_use]
    pub fn renew_at(self) -> i64 {
        self.not_after - (self.not_after - self.not_before).max(0) / 3
    }
}

/// How asking for a certificate fared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Attempts that failed since the last one that did not.
    pub failures: u32,
    /// Why the last one failed; empty if it did not.
    pub error: String,
    /// Not to be tried again before then, seconds since the epoch.
    pub next_try: i64,
}

/// The folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store(PathBuf);

impl Store {
    /// The one in this folder, which need not be there yet.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Key and chain of the certificate whose first name this is, in PEM.
    #[must_use]
    pub fn certificate(&self, first: &str) -> PathBuf {
        self.0.join(format!("{first}.pem"))
    }

    fn about(&self, first: &str) -> PathBuf {
        self.0.join(format!("{first}.json"))
    }

    /// How asking for it fared. One that nobody asked for yet has the default; one that cannot be read says so as its
    /// error. Blocking: reads a file.
    #[must_use]
    pub fn status(&self, first: &str) -> Status {
        let path = self.about(first);
        let read = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Status::default(),
            read => read.map_err(|e| e.to_string()),
        };
        let read = read.and_then(|json| FORMAT.parse(&json).map_err(|e| e.to_string()));
        read.unwrap_or_else(|e| Status { error: format!("read {}: {e}", path.display()), ..Status::default() })
    }

    /// Keeps a certificate: `pem` replaces the one before as a whole. Blocking: writes a file.
    ///
    /// # Errors
    /// The file system refuses; the one before is kept.
    pub fn keep(&self, first: &str, pem: &str) -> io::Result<()> {
        shipote_state::replace_with_mode(&self.certificate(first), pem.as_bytes(), MODE)
    }

    /// Keeps how asking for it fared. Blocking: writes a file.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn keep_status(&self, first: &str, status: &Status) -> io::Result<()> {
        let json = FORMAT.write(status).map_err(io::Error::other)?;
        shipote_state::replace_with_mode(&self.about(first), json.to_string().as_bytes(), MODE)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_certificate_is_due_with_a_third_of_its_life_left() {
        let dates = |not_before, not_after| Dates { not_before, not_after };
        assert_eq!(dates(0, 90).renew_at(), 60);
        assert_eq!(dates(1000, 1006).renew_at(), 1004);
        assert_eq!(dates(10, 5).renew_at(), 5, "one that is never valid");
    }

    #[test]
    fn what_is_kept_is_read_back_and_damage_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        assert_eq!(store.status("a.example"), Status::default());
        let status = Status { failures: 2, error: "no".to_owned(), next_try: 7 };
        store.keep_status("a.example", &status).unwrap();
        assert_eq!(store.status("a.example"), status);
        store.keep("a.example", "PEM").unwrap();
        let mode = std::fs::metadata(store.certificate("a.example")).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "only its owner writes it, and others do not read it: {mode:o}");
        std::fs::write(folder.path().join("a.example.json"), "{").unwrap();
        assert!(store.status("a.example").error.contains("a.example.json"), "{:?}", store.status("a.example"));
    }
}
