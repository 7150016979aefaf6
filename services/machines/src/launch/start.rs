//! Everything that a machine has before its keeper begins: folder, disk, volumes, user, secrets.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use shipote_agent_protocol::{ports, write_message};
use tokio::net::{UnixListener, UnixStream};

use super::keeper::{Watched, spawn_keeper};
use super::sockets::{dialled, knocker};
use super::{Place, Plan};
use crate::Error;
use crate::groups::Group;
use crate::keeper::wire::{self, Launch};
use crate::vmm::qemu;

/// Longest path that a Unix socket can have, unix(7).
const SOCKET_PATH_MAX: usize = 107;

pub(super) async fn start(plan: &Plan, place: &Place) -> Result<(UnixStream, Option<Watched>, UnixListener), Error> {
    let folder = &place.folder;
    let _ = std::fs::remove_dir_all(folder);
    let sockets = folder.join(qemu::VSOCK_FOLDER);
    // The folders above may be missing too.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&sockets)
        .map_err(Error::io("create", sockets.display()))?;
    let longest = dialled(folder, ports::AGENT_READY);
    if longest.as_os_str().len() > SOCKET_PATH_MAX {
        let problem = format!("its socket {} would have too long a path; give it a shorter name", longest.display());
        return Err(Error::InvalidSpec { name: plan.name.clone(), problem });
    }
    let knocked = knocker(folder).map_err(Error::io("listen on", longest.display()))?;
    if let Some(disk) = &plan.disk {
        crate::disk::ensure(disk, plan.spec.disk_mib).await?;
    }
    let invalid = |problem: String| Error::InvalidSpec { name: plan.name.clone(), problem };
    let volumes = plan.spec.volumes().map_err(invalid)?;
    if let Some(volume) = volumes.iter().find(|volume| !volume.is_beneath(&plan.shared)) {
        return Err(Error::NotShared(volume.host.clone()));
    }
    let in_guest: Vec<_> = (volumes.iter().enumerate())
        .map(|(n, volume)| {
            let (tag, path) = (crate::volumes::tag(n), &volume.guest);
            serde_json::json!({"tag": tag, "path": path, "read_only": volume.read_only})
        })
        .collect();
    let (secret, token) = (secret()?, secret()?);
    keep_token(&place.token, &token).map_err(Error::io("write", place.token.display()))?;
    let (users, image, accelerator) = (plan.users.clone(), plan.image.clone(), plan.host.accelerator.clone());
    let user = tokio::task::spawn_blocking(move || users.take(&image, &accelerator)).await;
    let user = user.map_err(|error| Error::io("find a user for", &plan.name)(std::io::Error::other(error)))?;
    let launch = Launch {
        name: plan.name.clone(),
        folder: folder.clone(),
        image: plan.image.clone(),
        arguments: qemu::arguments(&plan.host, &plan.spec),
        disk: plan.disk.clone(),
        user,
        volumes,
        group: place.group.as_ref().map(Group::machine),
        settings: serde_json::json!({
            "hostname": plan.name,
            "secret": secret,
            "disk": plan.disk.is_some(),
            "egress": plan.spec.goes_out(),
            "ssh": plan.spec.ssh_agent.is_some(),
            "volumes": in_guest,
        })
        .to_string(),
        certificates: if plan.spec.goes_out() { certificates() } else { None },
        secret,
        token,
        lease_ms: u64::try_from(plan.lease.as_millis()).unwrap_or(u64::MAX),
    };
    let (mut link, keeper) = spawn_keeper(place)?;
    let failed = |error: shipote_agent_protocol::FrameError| Error::Io {
        operation: "start",
        object: format!("the keeper of machine {}", plan.name),
        source: std::io::Error::other(error),
    };
    write_message(&mut link, &wire::Order::Launch(Box::new(launch))).await.map_err(failed)?;
    Ok((link, keeper, knocked))
}

/// The certificates that this host knows others by, which its guests then do too.
fn certificates() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    named.into_iter().chain(known.map(PathBuf::from)).find(|path| path.is_file())
}

/// Keeps what a later service shows the keeper, for our user alone.
fn keep_token(path: &Path, token: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(token.as_bytes())
}

/// 256 random bits, in hexadecimal.
fn secret() -> Result<String, Error> {
    let mut bytes = [0_u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::io("draw", "a secret")(error.into()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
