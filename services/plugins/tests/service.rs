//! The registry as a process on a bus of its own.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::SealFlags;
use shipote_bus::plugins::{AddOptions, Options, PluginManagerProxy, PluginsError};
use shipote_plugin_abi::engine;
use shipote_plugin_abi::fixtures::{Fixture, LEAF};
use shipote_plugin_abi::metadata::MiddlewareKind::L7Request;
use tempfile::TempDir;
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::proxy::CacheProperties;

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Appliance {
    folder: TempDir,
    address: String,
    connection: Connection,
    service: Option<Ended>,
    _bus: Ended,
}

impl Appliance {
    async fn start() -> Self {
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

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shipote-plugins"));
        command
            .env("SHIPOTE_BUS_ADDRESS", &self.address)
            .env("SHIPOTE_POLICY_DIR", Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies"))
            .env("STATE_DIRECTORY", self.path("state"))
            .env("RUNTIME_DIRECTORY", self.path("runtime"))
            .env("CONFIGURATION_DIRECTORY", self.path("config"));
        command
    }

    async fn serve(&mut self) {
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

    async fn manager(&self) -> PluginManagerProxy<'static> {
        PluginManagerProxy::builder(&self.connection).cache_properties(CacheProperties::No).build().await.unwrap()
    }
}

fn memfd(bytes: &[u8]) -> std::fs::File {
    let file = rustix::fs::memfd_create("component", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).unwrap();
    file
}

fn stamp(version: &str) -> Vec<u8> {
    Fixture::answering("stamp", version, 418, version).component()
}

async fn add(manager: &PluginManagerProxy<'_>, bytes: &[u8]) -> Result<shipote_bus::plugins::PluginInfo, PluginsError> {
    manager.add(memfd(bytes).as_fd().into(), &AddOptions::default()).await
}

#[tokio::test]
async fn versions_come_go_and_come_back() {
    let mut appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    assert_eq!(manager.list(Options::new()).await.unwrap(), []);
    let first = add(&manager, &stamp("1.0.0")).await.unwrap();
    assert!(first.active && first.exports == ["l7-request (l7-request)"]);
    let quiet = AddOptions { activate: Some(false), ..AddOptions::default() };
    let second = manager.add(memfd(&stamp("1.1.0")).as_fd().into(), &quiet).await.unwrap();
    assert!(!second.active);
    add(&manager, &stamp("2.0.0")).await.unwrap();
    let active = async |manager: &PluginManagerProxy<'_>| manager.show("stamp").await.unwrap().version;
    assert_eq!(active(&manager).await, "2.0.0");
    assert_eq!(manager.activate("stamp@^1", Options::new()).await.unwrap().version, "1.1.0");
    assert_eq!(manager.rollback("stamp", Options::new()).await.unwrap().version, "2.0.0");
    assert_eq!(manager.rollback("stamp", Options::new()).await.unwrap().version, "1.0.0");
    assert!(matches!(manager.rollback("stamp", Options::new()).await, Err(PluginsError::NothingBefore(_))));
    assert_eq!(manager.show("stamp").await.unwrap().versions, ["1.0.0", "1.1.0", "2.0.0"]);

    // Killed and started anew, it knows all of it.
    appliance.service = None;
    appliance.serve().await;
    assert_eq!(active(&manager).await, "1.0.0");

    assert!(matches!(manager.remove("stamp", Options::new()).await, Err(PluginsError::InUse(_))));
    let unknown = manager.remove("stamp@2.0.0", Options::from([("froce", true.into())])).await;
    assert!(matches!(unknown, Err(PluginsError::InvalidArgument(_))), "{unknown:?}");
    let gone = manager.remove("stamp@2.0.0", Options::new()).await.unwrap();
    assert_eq!(gone[..2], ["stamp", "2.0.0"]);
    assert!(matches!(manager.show("stamp@^2").await, Err(PluginsError::NoSuchPlugin(_))));
    manager.remove("stamp", Options::from([("force", true.into())])).await.unwrap();
    assert!(matches!(manager.show("stamp").await, Err(PluginsError::NoSuchPlugin(_))), "no version is active");
    assert_eq!(manager.list(Options::new()).await.unwrap().len(), 1);
    let components = appliance.path("state/store/components");
    assert_eq!(std::fs::read_dir(components).unwrap().count(), 1, "what nothing names is removed");
}

#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    let first = add(&manager, &stamp("1.0.0")).await.unwrap();
    let mut bad = Fixture::new("stamp", "1.1.0", &[L7Request]);
    bad.metadata.abi_version = "7.0.0".into();
    bad.metadata.exports[0].needs_streaming_body = true;
    let Err(PluginsError::Refused(text)) = add(&manager, &bad.component()).await else { panic!() };
    assert!(text.contains("abi-version") && text.contains("streaming"), "{text}");
    let other = Fixture::answering("stamp", "1.0.0", 500, "other content").component();
    assert!(matches!(add(&manager, &other).await, Err(PluginsError::VersionTaken(_))));
    let named = AddOptions { name: Some("jwt".into()), ..AddOptions::default() };
    let Err(PluginsError::Refused(text)) = manager.add(memfd(&stamp("3.0.0")).as_fd().into(), &named).await else {
        panic!()
    };
    assert!(text.contains("stamp") && text.contains("jwt"), "{text}");
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let piped = manager.add(reader.as_fd().into(), &AddOptions::default()).await;
    assert!(matches!(piped, Err(PluginsError::InvalidArgument(_))), "{piped:?}");
    let report = manager.check(memfd(b"junk").as_fd().into(), &AddOptions::default()).await.unwrap();
    assert!(!report.ok && report.refusals[0].rule == "format");
    assert_eq!(manager.list(Options::new()).await.unwrap(), std::slice::from_ref(&first));
    assert_eq!(add(&manager, &stamp("1.0.0")).await.unwrap().digest, first.digest, "the same once more is no fault");
}

#[tokio::test]
async fn two_adds_of_one_version_at_once_leave_one() {
    let appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    let (one, two) = (stamp("1.0.0"), Fixture::answering("stamp", "1.0.0", 500, "other").component());
    let (one, two) = tokio::join!(add(&manager, &one), add(&manager, &two));
    let taken = [&one, &two].into_iter().filter(|outcome| matches!(outcome, Err(PluginsError::VersionTaken(_))));
    assert_eq!(taken.count(), 1, "{one:?} {two:?}");
    assert_eq!(manager.list(Options::new()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn compiled_code_is_handed_over_sealed_and_runs() {
    let appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    let info = add(&manager, &stamp("1.0.0")).await.unwrap();
    let compiled = appliance.path("state/store/compiled");
    for cache in ["there", "broken", "gone"] {
        for file in std::fs::read_dir(&compiled).unwrap().flatten() {
            match cache {
                "broken" => {
                    let mut bytes = std::fs::read(file.path()).unwrap();
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    std::fs::write(file.path(), bytes).unwrap();
                }
                "gone" => std::fs::remove_file(file.path()).unwrap(),
                _ => {}
            }
        }
        let (code, about) = manager.open("stamp", Options::new()).await.unwrap();
        assert_eq!((&about.digest, about.active), (&info.digest, true), "{cache}");
        let code = std::fs::File::from(std::os::fd::OwnedFd::from(code));
        let seals = rustix::fs::fcntl_get_seals(&code).unwrap();
        assert!(seals.contains(SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE));
        let length = usize::try_from(code.metadata().unwrap().len()).unwrap();
        let mut bytes = vec![0; length];
        std::os::unix::fs::FileExt::read_exact_at(&code, &mut bytes, 0).unwrap();
        assert_eq!(answer(&bytes), 418, "{cache}");
    }
}

/// Runs the request handler as a proxy would.
fn answer(code: &[u8]) -> u16 {
    use shipote_plugin_abi::handlers::{L7RequestDecision, L7RequestInput};
    use shipote_plugin_abi::metadata::PluginError;
    let engine = wasmtime::Engine::new(&engine::config()).unwrap();
    // SAFETY: the code was made by the registry under test.
    let component = unsafe { wasmtime::component::Component::deserialize(&engine, code).unwrap() };
    let mut store = wasmtime::Store::new(&engine, ());
    store.set_epoch_deadline(1_000);
    let instance = wasmtime::component::Linker::new(&engine).instantiate(&mut store, &component).unwrap();
    let outer = instance.get_export_index(&mut store, None, L7Request.interface()).unwrap();
    let index = instance.get_export_index(&mut store, Some(&outer), "handle").unwrap();
    let handle = instance
        .get_typed_func::<(String, L7RequestInput), (Result<L7RequestDecision, PluginError>,)>(&mut store, index)
        .unwrap();
    let input = L7RequestInput { method: "GET".into(), uri: "/".into(), headers: vec![], body: None, context: vec![] };
    match handle.call(&mut store, ("l7-request".into(), input)).unwrap().0 {
        Ok(L7RequestDecision::Short(response)) => response.status,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn killed_in_the_middle_of_an_add_it_is_whole_afterwards() {
    let mut appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    add(&manager, &stamp("1.0.0")).await.unwrap();
    let incoming = appliance.path("state/store/incoming");
    let mut slow = Fixture::new("stamp", "2.0.0", &[L7Request]);
    slow.on_metadata = "(loop $again (br $again))".into();
    let adding = tokio::spawn({
        let manager = manager.clone();
        async move { add(&manager, &slow.component()).await }
    });
    while std::fs::read_dir(&incoming).unwrap().count() == 0 {
        tokio::task::yield_now().await;
    }
    appliance.service = None;
    assert!(adding.await.unwrap().is_err());
    appliance.serve().await;
    assert_eq!(std::fs::read_dir(&incoming).unwrap().count(), 0);
    let versions: Vec<_> =
        manager.list(Options::new()).await.unwrap().into_iter().map(|plugin| plugin.version).collect();
    assert_eq!(versions, ["1.0.0"]);
    assert!(add(&manager, &stamp("2.0.0")).await.unwrap().active);
}

#[tokio::test]
async fn a_damaged_index_is_recovered_or_refused_by_name() {
    let mut appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    add(&manager, &stamp("1.0.0")).await.unwrap();
    add(&manager, &stamp("1.1.0")).await.unwrap();
    appliance.service = None;
    let index = appliance.path("state/store/index.json");
    let whole = std::fs::read(&index).unwrap();
    std::fs::write(&index, &whole[..whole.len() / 2]).unwrap();
    appliance.serve().await;
    let versions: Vec<_> =
        manager.list(Options::new()).await.unwrap().into_iter().map(|plugin| plugin.version).collect();
    assert_eq!(versions, ["1.0.0"], "as it was before the last change");
    let components = appliance.path("state/store/components");
    assert_eq!(std::fs::read_dir(components).unwrap().count(), 2, "nothing is removed on an old index's word");

    appliance.service = None;
    for name in ["index.json", "index.before.json"] {
        std::fs::write(appliance.path("state/store").join(name), "{").unwrap();
    }
    let refused = appliance.command().output().unwrap();
    assert!(!refused.status.success());
    let text = format!("{}{}", String::from_utf8_lossy(&refused.stderr), String::from_utf8_lossy(&refused.stdout));
    assert!(text.contains("index.json"), "{text}");
}

/// A folder of policies that lets `edge` call the interface of the fixtures.
fn with_socket(appliance: &Appliance, cardinality: &str) {
    let folder = appliance.path("config/plugins");
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!("[plugins.edge.sockets]\n\"{LEAF}\" = \"{cardinality}\"\n");
    std::fs::write(folder.join("policy.toml"), text).unwrap();
}

#[tokio::test]
async fn what_is_at_work_fits_together_and_stays_so() {
    let mut appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    let edge = Fixture::wanting("edge", "1.0.0").component();
    // A policy is found by the name that the caller gives, before the component is read.
    let named = AddOptions { name: Some("edge".into()), ..AddOptions::default() };
    let Err(PluginsError::Refused(text)) = manager.add(memfd(&edge).as_fd().into(), &named).await else { panic!() };
    assert!(text.contains("import") && text.contains("sockets"), "{text}");
    appliance.service = None;
    with_socket(&appliance, "any");
    appliance.serve().await;
    let Err(PluginsError::Refused(text)) = manager.add(memfd(&edge).as_fd().into(), &named).await else { panic!() };
    assert!(text.contains("socket") && text.contains("list<result<"), "{text}");
    appliance.service = None;
    with_socket(&appliance, "exactly-one");
    appliance.serve().await;

    // Nobody implements it yet: it is kept, but it does not go to work.
    let Err(PluginsError::Refused(text)) = manager.add(memfd(&edge).as_fd().into(), &named).await else { panic!() };
    assert!(text.contains("wants exactly-one, 0 fit"), "{text}");
    let quiet = AddOptions { name: Some("edge".into()), activate: Some(false), ..AddOptions::default() };
    let kept = manager.add(memfd(&edge).as_fd().into(), &quiet).await.unwrap();
    assert!(!kept.active);
    let refused = manager.plan("activate", "edge@1.0.0", Options::new()).await.unwrap();
    assert!(refused.refused.contains("0 fit") && refused.to.is_empty(), "{refused:?}");
    assert!(add(&manager, &Fixture::offering("leaf", "1.0.0", 18).component()).await.unwrap().active);
    let plan = manager.plan("activate", "edge@1.0.0", Options::new()).await.unwrap();
    assert_eq!((plan.from.as_str(), plan.to.as_str(), plan.refused.as_str()), ("", "1.0.0", ""));
    assert_eq!(plan.exports_added, ["l7-request (l7-request)"]);
    assert!(manager.show("edge").await.is_err(), "a plan changes nothing");
    assert!(manager.activate("edge@1.0.0", Options::new()).await.unwrap().active);
    let graph = manager.graph("text").await.unwrap();
    assert!(graph.contains("└─ leaf 1.0.0"), "{graph}");
    let (_, info) = manager.open("edge", Options::new()).await.unwrap();
    assert_eq!(info.links[0].plugins, ["leaf"]);

    // A second one is one too many, and the only one is not to go.
    let Err(PluginsError::Refused(text)) = add(&manager, &Fixture::offering("other", "1.0.0", 1).component()).await
    else {
        panic!()
    };
    assert!(text.contains("2 fit (leaf, other)"), "{text}");
    assert_eq!(manager.list(Options::new()).await.unwrap().len(), 2);
    let mut changes = manager.receive_changed().await.unwrap();
    manager.remove("leaf", Options::from([("force", true.into())])).await.unwrap();
    for expected in [("leaf", ""), ("edge", "1.0.0")] {
        let change = futures_util::StreamExt::next(&mut changes).await.unwrap();
        let change = change.args().unwrap();
        assert_eq!((change.name.as_str(), change.version.as_str()), expected, "its users are linked anew");
    }
    assert!(manager.graph("text").await.unwrap().contains("does not fit"));
}

#[tokio::test]
async fn a_policy_may_want_a_signature() {
    let mut appliance = Appliance::start().await;
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let sign = |bytes: &[u8]| {
        let signed = minisign::sign(Some(&pair.pk), &pair.sk, std::io::Cursor::new(bytes), None, None);
        AddOptions { signature: Some(signed.unwrap().into_string()), ..AddOptions::default() }
    };
    let manager = appliance.manager().await;
    // Added before anybody wanted a signature.
    add(&manager, &stamp("1.0.0")).await.unwrap();
    appliance.service = None;
    let folder = appliance.path("config/plugins");
    std::fs::create_dir_all(&folder).unwrap();
    let policy = format!("[plugins.stamp]\nsigned_by = [\"{}\"]\n", pair.pk.to_base64());
    std::fs::write(folder.join("policy.toml"), policy).unwrap();
    appliance.serve().await;
    let Err(PluginsError::Refused(text)) = manager.open("stamp", Options::new()).await else { panic!() };
    assert!(text.contains("signature"), "{text}");
    // Neither without a name, nor under one that the policy does not know, is it let in unsigned.
    let other = AddOptions { stem: Some("other".into()), ..AddOptions::default() };
    for options in [AddOptions::default(), other, sign(b"something else")] {
        let refused = manager.add(memfd(&stamp("1.1.0")).as_fd().into(), &options).await;
        let Err(PluginsError::Refused(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains("signature"), "{text}");
    }
    let (next, options) = (stamp("1.1.0"), sign(&stamp("1.1.0")));
    assert!(manager.add(memfd(&next).as_fd().into(), &options).await.unwrap().active);
    manager.open("stamp", Options::new()).await.unwrap();
}
