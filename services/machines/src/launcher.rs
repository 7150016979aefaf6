//! Machines that really run: started by QEMU under a keeper, or found running and taken over.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::write_message;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, mpsc};

use crate::actor::Launcher;
use crate::console::Console;
use crate::image::Image;
use crate::keeper::wire;
use crate::launch::{self, Order, Place, Plan, Report};
use crate::lifeline::Lifeline;
use crate::spec::{Spec, check_name};
use crate::vmm::host::Host;

/// How long machines go on without a service.
pub const LEASE: Duration = Duration::from_secs(120);
/// A machine's disk, in its folder of the state folder.
const DISK: &str = "disk.img";

/// Launches with QEMU.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// Folder with the kernel and the rest.
    pub image: PathBuf,
    /// Folder for the machines' sockets.
    pub runtime: PathBuf,
    /// Folder for the machines' disks.
    pub state: PathBuf,
    /// The program that keepers and ways out are: the service's own.
    pub program: PathBuf,
    /// How long machines go on without a service.
    pub lease: Duration,
    /// What keepers watch beside the service's own connection.
    pub lifeline: Option<Arc<Lifeline>>,
    /// What guests run on, once it is known.
    pub host: Arc<OnceCell<Host>>,
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
        }
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
            let host = this.host.get_or_init(|| Host::probe(&image)).await.clone();
            let disk = (spec.disk_mib > 0).then(|| this.state.join(&name).join(DISK));
            let plan = Plan { name, spec, image, host, lease: this.lease, disk };
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
        let place = self.place(name, spec, console);
        let Some(link) = launch::find_keeper(&place.folder) else {
            // What is left of a machine whose keeper has ended.
            let _ = std::fs::remove_dir_all(&place.folder);
            return None;
        };
        tracing::info!("machine {name} runs: it is taken over");
        let (orders, received) = mpsc::unbounded_channel();
        tokio::spawn(launch::adopt(link, place, received, report));
        Some(orders)
    }

    fn end_strangers(&self, known: &[String]) {
        let Ok(entries) = std::fs::read_dir(&self.runtime) else { return };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if known.contains(&name) || check_name(&name).is_err() {
                continue;
            }
            let Some(link) = launch::find_keeper(&entry.path()) else {
                let _ = std::fs::remove_dir_all(entry.path());
                continue;
            };
            tracing::warn!("machine {name} runs but is none of ours: it is ended");
            tokio::spawn(async move {
                let told = async {
                    link.set_nonblocking(true)?;
                    let mut link = UnixStream::from_std(link)?;
                    write_message(&mut link, &wire::Order::Kill).await.map_err(std::io::Error::other)?;
                    // Until it says that it has, the connection stays.
                    while let Ok(Some(event)) = shipote_agent_protocol::read_message(&mut link).await {
                        if matches!(event, wire::Event::Ended { .. }) {
                            break;
                        }
                    }
                    std::io::Result::Ok(())
                };
                if let Err(error) = told.await {
                    tracing::error!("end machine {name}: {error}");
                }
            });
        }
    }
}
