//! Machines that really run: started by QEMU under a keeper, or found running and taken over.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shipote_confinement::Mechanism;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, mpsc, watch};

use crate::actor::Launcher;
use crate::console::Console;
use crate::groups::Groups;
use crate::image::Image;
use crate::kept::KeptWays;
use crate::launch::{self, Order, Place, Plan, Report};
use crate::lifeline::Lifeline;
use crate::spec::{Spec, check_name};
use crate::users::Users;
use crate::vmm::host::{Accelerator, Host};

/// How long machines go on without a service.
pub const LEASE: Duration = Duration::from_secs(120);

/// The token of a machine's keeper, in its folder of the state folder.
const TOKEN: &str = "keeper-token";

/// Launches with QEMU.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// Folder with the kernel and the rest.
    pub image: PathBuf,
    /// Folder for the machines' sockets.
    pub runtime: PathBuf,
    /// Folder for the machines' disks.
    pub state: PathBuf,
    /// The program that keepers are: the service's own.
    pub program: PathBuf,
    /// How long machines go on without a service.
    pub lease: Duration,
    /// What keepers watch beside the service's own connection.
    pub lifeline: Option<Arc<Lifeline>>,
    /// Ways out that outlast this service.
    pub ways: KeptWays,
    /// Folders beneath which those lie that machines may have as volumes.
    pub shared: Vec<PathBuf>,
    /// Control groups for machines.
    pub groups: Groups,
    /// Users for machines.
    pub users: Users,
    /// How long a trial guest may take to show that the host's own processor can be used. Under KVM it takes about a second.
    pub trial: Duration,
    /// What guests run on, once it is known.
    pub host: Arc<OnceCell<Host>>,
    /// Whether the proxy is there, which lets machines out.
    pub proxy: watch::Receiver<bool>,
}

impl Qemu {
    fn place(&self, name: &str, spec: &Spec, console: Console) -> Place {
        Place {
            name: name.to_owned(),
            folder: self.runtime.join(name),
            console,
            program: self.program.clone(),
            lifeline: self.lifeline.clone(),
            spec: spec.clone(),
            token: self.state.join(name).join(TOKEN),
            group: None,
            proxy: self.proxy.clone(),
            way: None,
            ways: self.ways.clone(),
        }
    }

    /// How far machines can be isolated here, and what they run on: found out by trying, once. Nothing where there is no
    /// image that they could be started with.
    pub async fn capabilities(&self) -> Vec<Mechanism> {
        let Ok(image) = Image::open(&self.image) else { return vec![] };
        let accelerator = match &self.host.get_or_init(|| Host::probe(&image, self.trial)).await.accelerator {
            Accelerator::Kvm => Mechanism::enforced("machine-accelerator", "KVM, tried with a guest"),
            Accelerator::Tcg(why) => {
                Mechanism::degraded("machine-accelerator", format!("processors are emulated: {why}"))
            }
        };
        let group = self.groups.mechanism();
        vec![
            accelerator,
            Mechanism { name: "machine-cgroup".to_owned(), ..group },
            self.users.mechanism("machine-user"),
        ]
    }
}

impl Launcher for Qemu {
    fn launch(
        &self,
        name: &str,
        spec: &Spec,
        console: Console,
        report: Box<dyn Fn(Report) + Send + Sync>,
    ) -> mpsc::UnboundedSender<Order> {
        let (orders, received) = mpsc::unbounded_channel();
        let place = self.place(name, spec, console);
        let (this, name, spec) = (self.clone(), name.to_owned(), spec.clone());
        tokio::spawn(async move {
            let image = match Image::open(&this.image) {
                Ok(image) => image,
                Err(error) => return report(Report::Exited { clean: false, reason: error.to_string() }),
            };
            let host = this.host.get_or_init(|| Host::probe(&image, this.trial)).await.clone();
            let disk = (spec.disk_mib > 0).then(|| this.state.join(&name).join(crate::disk::FILE));
            let Self { lease, shared, groups, users, .. } = this;
            let plan = Plan { name, spec, image, host, lease, disk, shared, groups, users };
            launch::run(plan, place, received, report).await;
        });
        orders
    }

    fn adopt(
        &self,
        name: &str,
        spec: &Spec,
        console: Console,
        report: Box<dyn Fn(Report) + Send + Sync>,
    ) -> Option<mpsc::UnboundedSender<Order>> {
        let mut place = self.place(name, spec, console);
        place.group = self.groups.existing(name, spec);
        let Some(link) = launch::find_keeper(&place.folder) else {
            // What is left of a machine whose keeper has ended.
            let _ = std::fs::remove_dir_all(&place.folder);
            if let Some(group) = place.group {
                group.end();
            }
            return None;
        };
        tracing::info!("machine {name} runs: it is taken over");
        // Told before anybody can ask: a proxy that missed it would end its connections.
        place.way = self.ways.take(name).map(Arc::new);
        if let Some(way) = &place.way {
            report(Report::GoesOut(Arc::clone(way)));
        }
        let (orders, received) = mpsc::unbounded_channel();
        tokio::spawn(launch::adopt(link, place, received, report));
        Some(orders)
    }

    fn end_strangers(&self, known: &[String]) {
        // Those whose groups are not to be touched here.
        let mut others = known.to_vec();
        for entry in std::fs::read_dir(&self.runtime).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if known.contains(&name) || check_name(&name).is_err() {
                continue;
            }
            let Some(link) = launch::find_keeper(&entry.path()) else {
                let _ = std::fs::remove_dir_all(entry.path());
                continue;
            };
            tracing::warn!("machine {name} runs but is none of ours: it is ended");
            others.push(name.clone());
            let group = self.groups.existing(&name, &Spec::default());
            launch::end_keeper(&link);
            let folder = entry.path();
            tokio::spawn(async move {
                // It closes when the keeper is gone, and its processes die with it.
                let ended = async {
                    link.set_nonblocking(true)?;
                    UnixStream::from_std(link)?.read_to_end(&mut Vec::new()).await
                };
                let _ = ended.await;
                let _ = std::fs::remove_dir_all(folder);
                if let Some(group) = group {
                    let _ = tokio::task::spawn_blocking(move || group.end()).await;
                }
            });
        }
        self.groups.clear_except(&others);
        self.ways.forget_the_rest();
    }
}
