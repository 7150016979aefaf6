//! A command in an image: its overlay as the root, the image's settings under the request's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shipote_agent_protocol::{AgentResponse, codes};

use super::overlay::Overlay;
use super::{ImageError, Store, user};
use crate::agent::Features;
use crate::connection::Connection;
use crate::exec::{self, Command, Jail, Mode};
use crate::outbox::Gone;
use crate::volumes::{self, Volume};

/// What is to be run, and how.
pub(crate) struct Request {
    pub(crate) image: String,
    pub(crate) command: Command,
    pub(crate) user: Option<String>,
    pub(crate) mounts: Vec<(String, String, bool)>,
    pub(crate) overlay: Option<String>,
    pub(crate) mode: Mode,
    /// Answered with a container's id instead of a pid.
    pub(crate) detached: bool,
    pub(crate) features: Features,
    /// What the machine has of the host.
    pub(crate) volumes: Arc<[Volume]>,
}

/// Runs a command for a connection.
pub(crate) async fn run(connection: &mut Connection, store: &Arc<Store>, request: Request) -> Result<(), Gone> {
    let refused = if request.detached && request.overlay.is_none() {
        Some((codes::INVALID_REQUEST, "a detached command needs a persistent_overlay_id".to_owned()))
    } else {
        let unknown = volumes::named(&request.volumes, &request.mounts).err();
        unknown.map(|tag| (codes::MOUNT_FAILED, format!("mount {tag}: this machine has no volume of that tag")))
    };
    if let Some((code, message)) = refused {
        return connection.outbox.send(&AgentResponse::error(code, message)).await;
    }
    let mode = request.mode;
    let prepared = {
        let store = Arc::clone(store);
        tokio::task::spawn_blocking(move || prepare(&store, request)).await
    };
    match prepared {
        Ok(Ok(command)) => exec::run(connection, command, mode).await,
        Ok(Err(error @ ImageError::BadId(_))) => {
            connection.outbox.send(&AgentResponse::error(codes::INVALID_REQUEST, error)).await
        }
        Ok(Err(error @ ImageError::Volume { .. })) => {
            connection.outbox.send(&AgentResponse::error(codes::MOUNT_FAILED, error)).await
        }
        Ok(Err(error)) => connection.outbox.send(&AgentResponse::error(codes::RUN_FAILED, error)).await,
        Err(error) => connection.outbox.send(&AgentResponse::error(codes::INTERNAL_ERROR, error)).await,
    }
}

fn prepare(store: &Arc<Store>, request: Request) -> Result<Command, ImageError> {
    let Request { image, mut command, user, mounts, overlay, detached, features, volumes, .. } = request;
    let info = store.query(&image)?;
    let overlay = match &overlay {
        Some(id) => Overlay::persistent(store, &image, id)?,
        None => Overlay::temporary(store, &image)?,
    };
    let root = overlay.root();
    attach(&root, &volumes, &mounts)?;
    let text = |path: &str| read_beneath(&root, path);
    let wanted = user.or(info.user).unwrap_or_else(|| "0".to_owned());
    let user = user::find(&image, &wanted, &text("etc/passwd"), &text("etc/group"))?;
    if command.argv.is_empty() {
        command.argv = info.entrypoint.into_iter().chain(info.cmd).collect();
    }
    let mut env = vec![("HOME".to_owned(), user.home.clone())];
    env.extend(info.env.iter().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())));
    env.append(&mut command.env);
    command.env = env;
    let directory = command.workdir.take().or(info.workdir).unwrap_or_else(|| "/".to_owned());
    command.id = detached
        .then(|| format!("container-{}", root.parent().and_then(Path::file_name).unwrap_or_default().display()));
    if features.egress {
        // An image whose links lead nowhere resolves no names, and runs all the same.
        let _ = write_beneath(&root, "etc/resolv.conf", crate::names::RESOLV_CONF);
    }
    let offer = match features.ssh.then(|| crate::ssh::offer(&root, user.uid, user.gid)).transpose() {
        Ok(offer) => offer,
        Err(error) => return Err(ImageError::io("offer the SSH agent in", &root)(error)),
    };
    command.jail = Some(Jail {
        root,
        directory: PathBuf::from(directory),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        keep: Arc::new((offer, overlay)),
    });
    Ok(command)
}

/// Mounts the machine's volumes in an overlay's root, and those that the request names, where they are not there yet.
fn attach(root: &Path, all: &[Volume], mounts: &[(String, String, bool)]) -> Result<(), ImageError> {
    let named = volumes::named(all, mounts).unwrap_or_default();
    let own = all.iter().map(|volume| (volume, volume.path.as_str(), volume.read_only));
    for (volume, path, read_only) in own.chain(named) {
        let failed = |source| ImageError::Volume { tag: volume.tag.clone(), path: path.to_owned(), source };
        volume.mount_at(root, path, read_only).map_err(failed)?;
    }
    Ok(())
}

/// A file of the image; empty where there is none, or where a link leads out.
fn read_beneath(root: &Path, path: &str) -> String {
    use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
    let read = || -> std::io::Result<String> {
        let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(std::fs::File::from(file), 1 << 20), &mut text)?;
        Ok(text)
    };
    read().unwrap_or_default()
}

/// A file into the image's overlay, where its folder is there and no link leads out.
fn write_beneath(root: &Path, path: &str, text: &str) -> std::io::Result<()> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&root, path, flags, Mode::from_raw_mode(0o644), resolve)?;
    std::io::Write::write_all(&mut std::fs::File::from(file), text.as_bytes())
}
