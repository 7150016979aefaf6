//! What is on disk, and what becomes of it when the service is killed or the disk is damaged.

use rustix::fs::SealFlags;
use shipote_bus::plugins::{Options, PluginsError};
use shipote_plugin_abi::engine;
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::metadata::MiddlewareKind::L7Request;

use crate::support::{Appliance, add, stamp};

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

/// At whatever step the kill comes: a version is there whole or not at all, and can be added.
#[tokio::test]
async fn killed_at_any_moment_of_an_add_it_has_each_version_whole_or_not_at_all() {
    let mut appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    // How long an addition takes here is the span in which kills are spread.
    let begun = std::time::Instant::now();
    add(&manager, &stamp("1.0.0")).await.unwrap();
    let span = begun.elapsed();
    let (mut whole, mut gone) = (0, 0);
    for round in 1_u32..=12 {
        let version = format!("1.0.{round}");
        let adding = tokio::spawn({
            let (manager, component) = (manager.clone(), stamp(&version));
            async move { add(&manager, &component).await }
        });
        tokio::time::sleep(span * round / 11).await;
        appliance.service = None;
        let answered = adding.await.unwrap();
        appliance.serve().await;
        let versions = manager.show("stamp").await.unwrap().versions;
        let there = versions.contains(&version);
        assert!(there || answered.is_err(), "{version} was promised and is lost");
        *(if there { &mut whole } else { &mut gone }) += 1;
        for version in &versions {
            let (_, info) = manager.open(&format!("stamp@{version}"), Options::new()).await.unwrap();
            assert_eq!(info.version, *version);
        }
        assert_eq!(std::fs::read_dir(appliance.path("state/store/incoming")).unwrap().count(), 0);
        let components = std::fs::read_dir(appliance.path("state/store/components")).unwrap().count();
        assert_eq!(components, versions.len(), "nothing that no version names is left");
        add(&manager, &stamp(&version)).await.unwrap();
    }
    println!("killed in time {gone} times, too late {whole} times");
    assert!(gone > 0, "no kill came while a version was being added");
}

#[tokio::test]
async fn a_torn_component_is_named_and_another_copy_mends_it() {
    let appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    let info = add(&manager, &stamp("1.0.0")).await.unwrap();
    let hex = info.digest.strip_prefix("sha256:").unwrap();
    let file = appliance.path(&format!("state/store/components/{hex}.wasm"));
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    for compiled in std::fs::read_dir(appliance.path("state/store/compiled")).unwrap().flatten() {
        std::fs::remove_file(compiled.path()).unwrap();
    }
    let Err(PluginsError::Failed(text)) = manager.open("stamp", Options::new()).await else { panic!() };
    assert!(text.contains(&info.digest) && text.contains("add it again"), "{text}");
    add(&manager, &stamp("1.0.0")).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    manager.open("stamp", Options::new()).await.unwrap();
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

/// What an addition writes is not swept away by a removal that ends meanwhile.
#[tokio::test]
async fn a_removal_does_no_harm_to_an_addition_that_is_under_way() {
    let appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    add(&manager, &stamp("1.0.0")).await.unwrap();
    let incoming = appliance.path("state/store/incoming");
    let mut slow = Fixture::new("slow", "1.0.0", &[L7Request]);
    // A while where it is interpreted, and then it answers.
    slow.on_metadata = "(local $n i32) (loop $again
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $n) (i32.const 200000))))"
        .into();
    let adding = tokio::spawn({
        let manager = manager.clone();
        async move { add(&manager, &slow.component()).await }
    });
    while std::fs::read_dir(&incoming).unwrap().count() == 0 {
        tokio::task::yield_now().await;
    }
    manager.remove("stamp", Options::from([("force", true.into())])).await.unwrap();
    assert_eq!(adding.await.unwrap().unwrap().name, "slow");
}

#[tokio::test]
async fn code_for_an_engine_that_is_no_more_is_removed_and_made_anew() {
    let mut appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    add(&manager, &stamp("1.0.0")).await.unwrap();
    appliance.service = None;
    let compiled = appliance.path("state/store/compiled");
    let file = std::fs::read_dir(&compiled).unwrap().flatten().next().unwrap().path();
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    let (digest, _) = name.split_once('.').unwrap();
    let other = compiled.join(format!("{digest}.{}.code", "0".repeat(32)));
    std::fs::rename(&file, &other).unwrap();
    appliance.serve().await;
    assert!(!other.exists());
    manager.open("stamp", Options::new()).await.unwrap();
    assert!(file.exists(), "compiled when it was asked for");
}
