//! What was set over the bus outlives this instance: the clients that were given a socket, in a memory file that the
//! service manager holds.
//!
//! Nothing of it is on disk, which this service does not write: a real stop forgets it. Each change makes a new file
//! with the next number and only then lets go of the one before, so a service that is killed in between leaves two,
//! and the newest that can be read holds.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Mutex;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use shipote_proxy::egress::{Access, Egress};
use shipote_service::FdStore;

/// What the names in the store begin with.
const PREFIX: &str = "egress.";
/// Largest file that is read: 4096 clients with lists of a usual length.
const LARGEST: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Client {
    client: String,
    allow: Vec<String>,
    listen: Option<SocketAddr>,
    users: Vec<u32>,
}

/// The store, and the number of the file that is in it.
#[derive(Debug)]
pub(crate) struct Memory {
    store: FdStore,
    number: Mutex<u64>,
}

/// The number in a name of ours.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

impl Memory {
    /// Sets what an earlier instance was told, and gives the other descriptors back. Clients that the configuration
    /// names are left as it says.
    pub(crate) fn restore(store: FdStore, egress: &Egress) -> (Self, Vec<(String, OwnedFd)>) {
        let (mut ours, others): (Vec<_>, Vec<_>) =
            store.take_inherited().into_iter().partition(|(name, _)| number(name).is_some());
        ours.sort_by_key(|(name, _)| std::cmp::Reverse(number(name)));
        let last = ours.first().and_then(|(name, _)| number(name)).unwrap_or_default();
        for (name, _) in ours.iter().skip(1) {
            store.forget(name);
        }
        let readable = ours.into_iter().find_map(|(name, descriptor)| match read(descriptor) {
            Ok(clients) => Some(clients),
            Err(e) => {
                tracing::warn!("read {name} of an earlier instance: {e}");
                None
            }
        });
        let configured: Vec<String> = egress.list().into_iter().map(|client| client.client).collect();
        for one in readable.unwrap_or_default() {
            if configured.contains(&one.client) {
                continue;
            }
            let access = Access { listen: one.listen, users: one.users };
            if let Err(e) = egress.set(&one.client, &one.allow, &access) {
                tracing::error!("give {} its way out again: {e}", one.client);
            }
        }
        (Self { store, number: Mutex::new(last) }, others)
    }

    /// Has what is set now remembered. Without a store it lasts as long as this instance.
    pub(crate) fn keep(&self, egress: &Egress) {
        if !self.store.is_available() {
            return;
        }
        let mut number = self.number.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let file = match write(egress) {
            Ok(file) => file,
            Err(e) => return tracing::error!("remember who is let out: {e}"),
        };
        let (before, now) = (format!("{PREFIX}{number}"), format!("{PREFIX}{}", *number + 1));
        if self.store.keep(&now, file.as_fd()) {
            *number += 1;
            self.store.forget(&before);
        } else {
            tracing::warn!("who is let out lasts only as long as this instance: the store of descriptors is full");
        }
    }
}

fn write(egress: &Egress) -> std::io::Result<File> {
    let clients: Vec<Client> = egress
        .sockets()
        .into_iter()
        .map(|(client, allow, access)| Client { client, allow, listen: access.listen, users: access.users })
        .collect();
    let mut file = File::from(memfd_create("egress", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&clients)?)?;
    Ok(file)
}

fn read(descriptor: OwnedFd) -> std::io::Result<Vec<Client>> {
    let mut file = File::from(descriptor);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}
