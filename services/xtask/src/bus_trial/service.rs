//! The object that the trial's clients call: echo, descriptors, slow answers, a counter, an object manager.

use std::{fs::File, io::Read, os::fd::OwnedFd, time::Duration};

use anyhow::Result;
use zbus::{interface, object_server::SignalEmitter};

pub(super) const NAME: &str = "org.shipote.Trial1";
pub(super) const PATH: &str = "/org/shipote/Trial1";
pub(super) const INTERFACE: &str = "org.shipote.Trial1";

/// Calls that take their time go to a name of their own: whoever waits for them must not hold up the others.
pub(super) const SLOW_NAME: &str = "org.shipote.Trial1.Slow";
/// Objects that come and go, under a name of their own: `busctl tree` fails over an object that goes while it looks.
pub(super) const OBJECTS_NAME: &str = "org.shipote.Trial1.Objects";

/// Echo, descriptors, signals.
pub(super) struct Trial;

#[interface(name = "org.shipote.Trial1")]
impl Trial {
    /// Gives back what it got.
    fn echo(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }

    /// Reads each descriptor to its end and answers with the contents, by a descriptor of its own.
    fn read(&self, descriptors: Vec<zbus::OwnedFd>) -> zbus::fdo::Result<zbus::OwnedFd> {
        let failed = |e: std::io::Error| zbus::fdo::Error::IOError(e.to_string());
        let mut contents = String::new();
        for fd in descriptors {
            File::from(OwnedFd::from(fd)).read_to_string(&mut contents).map_err(failed)?;
        }
        super::load::memory_file(&contents).map(Into::into).map_err(failed)
    }

    /// Rises by one each time.
    #[zbus(signal)]
    pub(super) async fn tick(emitter: &SignalEmitter<'_>, number: u64) -> zbus::Result<()>;

    /// Large, for those who asked for it.
    #[zbus(signal)]
    pub(super) async fn blob(emitter: &SignalEmitter<'_>, bytes: &[u8]) -> zbus::Result<()>;
}

/// Takes its time.
pub(super) struct Slow;

#[interface(name = "org.shipote.Trial1.Slow")]
impl Slow {
    /// Answers after so many milliseconds.
    async fn wait(&self, milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}

/// Has a property that changes.
pub(super) struct Counter(pub(super) u64);

#[interface(name = "org.shipote.Trial1.Counter")]
impl Counter {
    /// Rises by one with each change signal.
    #[zbus(property)]
    fn counter(&self) -> u64 {
        self.0
    }
}

/// An object that comes and goes.
pub(super) struct Item;

#[interface(name = "org.shipote.Trial1.Item")]
impl Item {
    /// Its colour.
    #[zbus(property)]
    fn colour(&self) -> &str {
        "green"
    }
}

/// The served connections.
pub(super) struct Served {
    pub(super) main: zbus::Connection,
    pub(super) objects: zbus::Connection,
    _slow: zbus::Connection,
}

pub(super) async fn serve(address: &str) -> Result<Served> {
    let at = || zbus::connection::Builder::address(address);
    let served = Served {
        main: at().serve_at(PATH, Trial).name(NAME).build().await?,
        objects: at()
            .serve_at(PATH, Counter(0))
            .serve_at(PATH, zbus::fdo::ObjectManager)
            .name(OBJECTS_NAME)
            .build()
            .await?,
        _slow: at().serve_at(PATH, Slow).name(SLOW_NAME).build().await?,
    };
    // A bus may keep what it finds out about a connection (a pidfd): let it do so before its descriptors are counted.
    let driver = zbus::fdo::DBusProxy::new(&served.main).await?;
    for name in [NAME, OBJECTS_NAME, SLOW_NAME] {
        driver.get_connection_credentials(name.try_into()?).await?;
    }
    Ok(served)
}
