//! What all connections share.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::Semaphore;

use crate::exec::Cgroups;
use crate::files::Tree;
use crate::images::Store;
use crate::power::Power;
use crate::reaper::Reaper;
use crate::volumes::Volume;
use crate::workload::Workload;

/// Connections served at once.
const CONNECTIONS: usize = 64;
/// Connections from the host to servers inside, at once: they leave those above alone.
const REACHED: usize = 128;
/// Files that pass at once at the speed of the stream; more wait.
const TRANSFERS: usize = 8;
/// Bytes of request bodies held at once by all connections, in KiB: room for one of the largest and some small ones.
const BODIES_KIB: usize = 40 * 1024;

/// What the host gave this machine.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Features {
    /// Images are on a disk that stays.
    pub(crate) disk: bool,
    /// Something can be reached, by rules.
    pub(crate) egress: bool,
    /// There is an SSH agent.
    pub(crate) ssh: bool,
}

pub(crate) struct Agent {
    /// What a connection must begin with.
    pub(crate) secret: Option<String>,
    /// What file requests can reach.
    pub(crate) tree: Arc<Tree>,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) cgroups: Cgroups,
    pub(crate) power: Power,
    /// Only a machine keeps images: they need mounts.
    pub(crate) images: Option<Arc<Store>>,
    pub(crate) features: Features,
    /// Folders of the host, which every root has.
    pub(crate) volumes: Arc<[Volume]>,
    /// What ports 5000 and 5001 share.
    pub(crate) workload: Workload,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) reached: Arc<Semaphore>,
    pub(crate) transfers: Semaphore,
    pub(crate) bodies: Arc<Semaphore>,
}

impl Agent {
    pub(crate) fn new(
        root: &Path,
        secret: Option<String>,
        cgroups: Cgroups,
        power: Power,
        images: Option<Arc<Store>>,
        features: Features,
        volumes: Vec<Volume>,
    ) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            secret,
            tree: Arc::new(Tree::open(root).with_context(|| format!("open {}", root.display()))?),
            reaper: Arc::default(),
            cgroups,
            power,
            images,
            features,
            volumes: volumes.into(),
            workload: Workload::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            reached: Arc::new(Semaphore::new(REACHED)),
            transfers: Semaphore::new(TRANSFERS),
            bodies: Arc::new(Semaphore::new(BODIES_KIB)),
        }))
    }
}
