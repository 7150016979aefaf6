//! `shipote-proxy acme`: fetches the certificates that rules want by ACME (RFC 8555) and that are due, and ends.
//!
//! A process of its own, so that the proxy holds no key of an account, talks to no authority and writes nothing. What is
//! wanted the proxy says over the bus, which also takes what authorities are to be answered, and word of a certificate
//! that is there. Killed at any instant it leaves whole files: a certificate is replaced at once, or not.

mod account;
mod due;
mod http;
mod order;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use instant_acme::Account;
use shipote_bus::paths::ServicePaths;
use shipote_bus::proxy::{CertificatesProxy, ManagerProxy, ProxyError};
use shipote_proxy::acme::{Status, Store};
use zbus::proxy::CacheProperties;

use crate::config::{self, AcmeSection};
use due::Due;

const EXAMPLES: &str = "\
Examples:
  systemctl start shipote-acme.service      what is due, as the timer does
  shipote-proxy acme --now www.example.com  one, now (as the user shipote-acme)";

/// Arguments of `shipote-proxy acme`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Asked {
    /// Fetch them even if they are not due, or just failed
    #[arg(long)]
    pub(super) now: bool,
    /// First names of certificates; without any, all that rules want are looked at
    #[arg(value_name = "NAME", value_parser = |name: &str| Ok::<_, std::convert::Infallible>(name.to_ascii_lowercase()))]
    pub(super) names: Vec<String>,
}

/// Runs `shipote-proxy acme`.
pub(crate) fn run(asked: &Asked) -> ExitCode {
    shipote_service::once("acme", "shipote-acme", early, async |connection, paths, prepared| {
        fetch(&connection, &paths, prepared, asked).await
    })
}

/// What is read before the process confines itself, wherever that lies.
struct Prepared {
    section: AcmeSection,
    /// What the authority is verified by; without it certificates that are due cannot be had, which is then said of each.
    roots: anyhow::Result<http::Roots>,
}

fn early(paths: &ServicePaths) -> anyhow::Result<Prepared> {
    let folder = store(paths);
    let folder = folder.folder();
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let section = config::load(&paths.config)?.acme.unwrap_or_default();
    Ok(Prepared { roots: http::roots(section.ca_file.as_deref()), section })
}

fn store(paths: &ServicePaths) -> Store {
    Store::new(paths.state.join("certs"))
}

/// Seconds since the epoch.
fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Does blocking work off the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a thread panicked")
}

fn said(error: &ProxyError) -> String {
    match error {
        ProxyError::ZBus(error) => shipote_bus::error::describe(error),
        other => zbus::DBusError::description(other).unwrap_or("refused without a reason").to_owned(),
    }
}

async fn fetch(
    connection: &zbus::Connection,
    paths: &ServicePaths,
    prepared: Prepared,
    asked: &Asked,
) -> anyhow::Result<()> {
    let manager = ManagerProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    let certificates = CertificatesProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    let certs = manager.list_certs(BTreeMap::new()).await;
    let certs = certs.map_err(|e| anyhow::anyhow!("ask the proxy which certificates it wants: {}", said(&e)))?;
    // Several listeners may serve one.
    let wanted: BTreeMap<String, Vec<String>> =
        certs.into_iter().filter_map(|cert| Some((cert.wanted.first()?.clone(), cert.wanted))).collect();
    if let Some(unknown) = asked.names.iter().find(|name| !wanted.contains_key(*name)) {
        let known: Vec<&str> = wanted.keys().map(String::as_str).collect();
        anyhow::bail!(
            "fetch the certificate for {unknown}: no rule that is served lists it first in tls.acme; there are: {}",
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        );
    }
    let store = store(paths);
    let mut fetched = Vec::new();
    for (first, names) in wanted {
        if !asked.names.is_empty() && !asked.names.contains(&first) {
            continue;
        }
        let (kept, listed) = (store.clone(), names.clone());
        match blocking(move || due::look(&kept, &listed, unix_now())).await? {
            Due::Now(why) => {
                tracing::info!("{first}: {why}");
                fetched.push((first, names));
            }
            Due::Later(why) if asked.now => {
                tracing::info!("{first}: {why}; it is fetched all the same");
                fetched.push((first, names));
            }
            Due::Later(why) => tracing::info!("{first}: {why}"),
        }
    }
    if fetched.is_empty() {
        return Ok(());
    }
    let account = account::open(paths, prepared).await;
    let mut failed = 0;
    for (first, names) in &fetched {
        let result = match &account {
            Ok(account) => one(account, &certificates, &store, names).await,
            Err(error) => Err(format!("{error:#}")),
        };
        let kept = settle(&store, first, &result).await;
        if let Err(error) = &result {
            failed += 1;
            tracing::error!("fetch the certificate for {first}: {error}");
        } else {
            tracing::info!("the certificate for {first} is fetched and served");
        }
        kept?;
    }
    if failed > 0 {
        anyhow::bail!("{failed} of {} certificates could not be fetched; each was said above", fetched.len());
    }
    Ok(())
}

/// Fetches one, keeps it, and has it served.
async fn one(
    account: &Account,
    certificates: &CertificatesProxy<'_>,
    store: &Store,
    names: &[String],
) -> Result<(), String> {
    let pem = order::fetch(account, names, certificates).await?;
    shipote_proxy::acme::fits(&pem, names).map_err(|e| format!("what the authority gave is not taken: {e}"))?;
    let (kept, first) = (store.clone(), names[0].clone());
    let keep = blocking(move || kept.keep(&first, &pem).map_err(|e| (kept.certificate(&first), e)));
    keep.await.map_err(|e| e.to_string())?.map_err(|(path, e)| format!("write {}: {e}", path.display()))?;
    let renewed = certificates.renewed(&names[0], BTreeMap::new()).await;
    renewed.map_err(|e| format!("it is there, but not served before the proxy's next reload: {}", said(&e)))
}

/// Remembers how it went.
async fn settle(store: &Store, first: &str, result: &Result<(), String>) -> anyhow::Result<()> {
    let (store, first, error) = (store.clone(), first.to_owned(), result.as_ref().err().cloned());
    let keep = move || {
        let status = match error {
            None => Status::default(),
            Some(error) => due::after_failure(&store.status(&first), error, unix_now()),
        };
        store.keep_status(&first, &status).with_context(|| format!("remember how {first} fared"))
    };
    blocking(keep).await?
}
