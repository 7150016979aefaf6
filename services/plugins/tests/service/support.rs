//! A bus, a registry on it, and a client.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use shipote_bus::plugins::{AddOptions, PluginManagerProxy, PluginsError};
use shipote_plugin_abi::fixtures::Fixture;
use tempfile::TempDir;
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::proxy::CacheProperties;

pub(crate) struct Ended(Child);

impl Ended {
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Appliance {
    folder: TempDir,
    address: String,
    connection: Connection,
    pub(crate) service: Option<Ended>,
    _bus: Ended,
}

impl Appliance {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("bus");
        let mut bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address=1"])
            .arg(format!("--address=unix:path={}", socket.display()))
            .stdout(Stdio::piped())
            .spawn()
            .map(Ended)
            .unwrap();
        let mut address = String::new();
        BufReader::new(bus.0.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        let connection = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
        let mut this = Self { folder, address, connection, service: None, _bus: bus };
        this.serve().await;
        this
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shipote-plugins"));
        command
            .env("SHIPOTE_BUS_ADDRESS", &self.address)
            .env("SHIPOTE_POLICY_DIR", Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies"))
            .env("STATE_DIRECTORY", self.path("state"))
            .env("RUNTIME_DIRECTORY", self.path("runtime"))
            .env("CONFIGURATION_DIRECTORY", self.path("config"));
        command
    }

    pub(crate) async fn serve(&mut self) {
        std::fs::create_dir_all(self.path("config")).unwrap();
        let bus = DBusProxy::new(&self.connection).await.unwrap();
        let mut owners = bus.receive_name_owner_changed().await.unwrap();
        self.service = Some(Ended(self.command().spawn().unwrap()));
        loop {
            let change = futures_util::StreamExt::next(&mut owners).await.unwrap();
            let change = change.args().unwrap();
            if change.name().as_str() == "org.shipote.Plugins1" && change.new_owner().is_some() {
                return;
            }
        }
    }

    pub(crate) async fn manager(&self) -> PluginManagerProxy<'static> {
        PluginManagerProxy::builder(&self.connection).cache_properties(CacheProperties::No).build().await.unwrap()
    }
}

pub(crate) fn memfd(bytes: &[u8]) -> std::fs::File {
    let file = rustix::fs::memfd_create("component", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).unwrap();
    file
}

pub(crate) fn stamp(version: &str) -> Vec<u8> {
    Fixture::answering("stamp", version, 418, version).component()
}

pub(crate) async fn add(
    manager: &PluginManagerProxy<'_>,
    bytes: &[u8],
) -> Result<shipote_bus::plugins::PluginInfo, PluginsError> {
    manager.add(memfd(bytes).as_fd().into(), &AddOptions::default()).await
}
