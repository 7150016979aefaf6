//! The account at an authority: one for each, made when it is first needed.

use std::path::Path;

use anyhow::Context as _;
use instant_acme::{Account, AccountCredentials, NewAccount};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shipote_bus::paths::ServicePaths;
use shipote_state::Format;

use super::{Prepared, blocking, http};

/// The format of an account's file.
const FORMAT: Format = Format { key: "version", first: 1, steps: &[] };

#[derive(Serialize, Deserialize)]
struct Kept {
    /// Where it is; for who looks at the file.
    directory: String,
    credentials: AccountCredentials,
}

/// The account that the configuration says. Its key is in a file that only its owner reads.
pub(super) async fn open(paths: &ServicePaths, prepared: Prepared) -> anyhow::Result<Account> {
    let Prepared { section, roots } = prepared;
    let directory = section.directory;
    if !section.agree_to_terms {
        anyhow::bail!(
            "the authority {directory} is not asked: its terms are not agreed to; read them and set agree_to_terms = true in [proxy.acme]"
        );
    }
    let name: String = Sha256::digest(directory.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect();
    let path = paths.state.join(format!("account-{name}.json"));
    let client = http::client(&roots?);
    let file = path.clone();
    let kept = blocking(move || read(&file)).await??;
    let builder = Account::builder_with_http(Box::new(client));
    if let Some(Kept { credentials, .. }) = kept {
        let account = builder.from_credentials(credentials).await;
        return account.with_context(|| format!("reach the authority {directory}"));
    }
    let contact: Vec<&str> = section.contact.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let made = builder.create(&new, directory.clone(), None).await;
    let (account, credentials) = made.with_context(|| format!("make an account at {directory}"))?;
    let json = FORMAT.write(&Kept { directory: directory.clone(), credentials })?.to_string();
    let write =
        move || shipote_state::replace(&path, json.as_bytes()).with_context(|| format!("write {}", path.display()));
    blocking(write).await??;
    tracing::info!("made the account {} at {directory}", account.id());
    Ok(account)
}

fn read(path: &Path) -> anyhow::Result<Option<Kept>> {
    let read = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read,
    };
    let json = read.with_context(|| format!("read the account {}", path.display()))?;
    // A new one in its place would have other rights at the authority, and must be somebody's decision.
    FORMAT
        .parse(&json)
        .map(Some)
        .with_context(|| format!("read the account {}; remove it to make a new one", path.display()))
}
