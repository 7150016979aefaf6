//! `shipote-plugins fetch oci://REGISTRY/REPOSITORY[:TAG|@DIGEST]`: a component from an OCI registry, to standard output.
//!
//! The command line starts this with its caller's rights, network and credentials, and hands the result to the service by
//! descriptor: the service itself needs neither network nor secrets. The layout is the CNCF's for Wasm: a configuration of
//! type `application/vnd.wasm.config.v0+json` and one layer of type `application/wasm`. Every byte is checked against the
//! digests of the manifest, and the manifest against the reference where that has one.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde::Deserialize;
use shipote_bus::words::counted;

use crate::forge::Bounds;

const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_TYPE: &str = "application/wasm";

/// Arguments of `shipote-plugins fetch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Credentials, as `docker login` and `skopeo login` write them
    #[arg(long, value_name = "FILE")]
    auth: Option<PathBuf>,
    /// oci://REGISTRY/REPOSITORY:TAG, or with @DIGEST for :TAG
    reference: String,
}

/// Runs it: 0 done, 1 refused or failed, 2 wrong usage.
pub(crate) fn main(Args { reference, auth }: &Args) -> ExitCode {
    match run(reference, auth.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shipote: fetch {reference}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(reference: &str, auth: Option<&Path>) -> anyhow::Result<()> {
    // ring is the tree's provider; a second one in the process would be an error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let text = reference.strip_prefix("oci://").unwrap_or(reference);
    let reference: Reference = text.parse().context("no reference; write oci://REGISTRY/REPOSITORY:TAG")?;
    let auth = credentials(reference.resolve_registry(), auth)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let component = runtime.block_on(pull(&reference, &auth, Bounds::default().size))?;
    std::io::stdout().write_all(&component).context("hand it over")
}

async fn pull(reference: &Reference, auth: &RegistryAuth, most: u64) -> anyhow::Result<Vec<u8>> {
    let registry = reference.resolve_registry();
    // In the clear only to this very machine.
    let protocol = if is_loopback(registry) {
        ClientProtocol::HttpsExcept(vec![registry.to_owned()])
    } else {
        ClientProtocol::Https
    };
    let client = Client::new(ClientConfig { protocol, ..ClientConfig::default() });
    let (manifest, _) = client.pull_image_manifest(reference, auth).await.context("read the manifest")?;
    let found = &manifest.config.media_type;
    ensure!(found == CONFIG_TYPE, "its configuration is {found}, not {CONFIG_TYPE}; it is no Wasm artifact");
    let [layer] = &manifest.layers[..] else {
        bail!("it has {} instead of one; push the component alone", counted(manifest.layers.len(), "layer"));
    };
    ensure!(layer.media_type == LAYER_TYPE, "its layer is {}, not {LAYER_TYPE}", layer.media_type);
    let declared = u64::try_from(layer.size).unwrap_or(u64::MAX);
    ensure!(declared <= most, "it has {declared} bytes, more than the {most} that are accepted");
    let mut stream = client.pull_blob_stream(reference, layer).await.context("read the component")?;
    let mut component = Vec::with_capacity(usize::try_from(declared).unwrap_or_default());
    // The stream ends with an error where its digest is not the layer's.
    while let Some(chunk) = stream.next().await {
        component.extend_from_slice(&chunk.context("read the component")?);
        ensure!(component.len() as u64 <= declared, "the registry sends more than the manifest's {declared} bytes");
    }
    ensure!(component.len() as u64 == declared, "the registry sends less than the manifest's {declared} bytes");
    Ok(component)
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What `docker login` and its like write.
#[derive(Debug, Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
}

#[derive(Debug, Default, Deserialize)]
struct AuthEntry {
    /// `user:password` in base64.
    #[serde(default)]
    auth: String,
}

/// The credentials for a registry: from the file that is named, else from the first of `$CREDENTIALS_DIRECTORY/registry-auth`
/// (systemd's `LoadCredential=`), `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`, `~/.docker/config.json` that is there.
fn credentials(registry: &str, named: Option<&Path>) -> anyhow::Result<RegistryAuth> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let places = [
        variable("CREDENTIALS_DIRECTORY").map(|folder| folder.join("registry-auth")),
        variable("REGISTRY_AUTH_FILE"),
        variable("DOCKER_CONFIG").map(|folder| folder.join("config.json")),
        variable("HOME").map(|folder| folder.join(".docker/config.json")),
    ];
    let found = named.map(Path::to_owned).or_else(|| places.into_iter().flatten().find(|path| path.is_file()));
    let Some(path) = found else { return Ok(RegistryAuth::Anonymous) };
    let text = std::fs::read_to_string(&path).with_context(|| format!("read credentials {}", path.display()))?;
    choose(&text, registry).with_context(|| format!("credentials {}", path.display()))
}

fn choose(text: &str, registry: &str) -> anyhow::Result<RegistryAuth> {
    let file: AuthFile = serde_json::from_str(text).context("not what `docker login` writes")?;
    let bare = |key: &str| key.trim_start_matches("https://").trim_end_matches('/').to_owned();
    let entry = file.auths.iter().find(|(key, entry)| bare(key) == registry && !entry.auth.is_empty());
    let Some((_, entry)) = entry else { return Ok(RegistryAuth::Anonymous) };
    let pair = STANDARD.decode(&entry.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (user, password) = pair
        .as_ref()
        .and_then(|pair| pair.split_once(':'))
        .with_context(|| format!("the entry of {registry} is no user:password in base64"))?;
    Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_the_registry_that_they_are_for_and_to_no_other() {
        let text = r#"{"auths": {"https://r.example/": {"auth": "bWU6YTpi"}, "empty.example": {}, "bad.example": {"auth": "!"}}}"#;
        match choose(text, "r.example").unwrap() {
            RegistryAuth::Basic(user, password) => assert_eq!((user.as_str(), password.as_str()), ("me", "a:b")),
            other => panic!("{other:?}"),
        }
        for registry in ["example", "r.example.evil", "empty.example"] {
            assert_eq!(choose(text, registry).unwrap(), RegistryAuth::Anonymous, "{registry}");
        }
        assert!(choose(text, "bad.example").is_err() && choose("junk", "r.example").is_err());
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        for (registry, loopback) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("localhost", true),
            ("localhost.evil:5000", false),
            ("10.0.0.1:5000", false),
            ("registry.example", false),
        ] {
            assert_eq!(is_loopback(registry), loopback, "{registry}");
        }
    }
}
