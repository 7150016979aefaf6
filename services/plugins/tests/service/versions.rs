//! Versions: added, activated, refused, signed.

use std::os::fd::AsFd as _;

use shipote_bus::plugins::{AddOptions, Options, PluginManagerProxy, PluginsError};
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::metadata::MiddlewareKind::L7Request;

use crate::support::{Appliance, add, memfd, stamp};

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
    assert_eq!(manager.show(&second.digest[..19]).await.unwrap().version, "1.1.0", "as lists abbreviate it");
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
    // 100 MiB, of which nothing is written.
    let large = memfd(b"");
    large.set_len(100 << 20).unwrap();
    let Err(PluginsError::InvalidArgument(text)) = manager.add(large.as_fd().into(), &AddOptions::default()).await
    else {
        panic!()
    };
    assert!(text.contains("104857600 bytes"), "{text}");
    let report = manager.check(memfd(b"junk").as_fd().into(), &AddOptions::default()).await.unwrap();
    assert!(!report.ok && report.refusals[0].rule == "format");
    assert_eq!(manager.list(Options::new()).await.unwrap(), std::slice::from_ref(&first));
    let again = add(&manager, &stamp("1.0.0")).await.unwrap();
    assert_eq!((again.digest, again.known), (first.digest, Some(true)), "the same once more is no fault");
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
    // What would not be handed over is not put to work either, by whatever way.
    let refused = |what: &str, outcome: Result<_, PluginsError>| match outcome {
        Err(PluginsError::Refused(text)) => {
            let parts = [&format!("{what} plugin stamp 1.0.0: refused: signature"), "shipote plugin add FILE"];
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
        other => panic!("{what}: {other:?}"),
    };
    refused("activate", manager.activate("stamp@1.0.0", Options::new()).await);
    refused("roll back", manager.rollback("stamp", Options::new()).await);
    refused("give a share to", manager.canary("stamp@1.0.0", 500, Options::new()).await);
    let plan = manager.plan("activate", "stamp@1.0.0", Options::new()).await.unwrap();
    assert!(plan.refused.contains("signature") && plan.to == "1.1.0", "{plan:?}");
    assert_eq!(manager.show("stamp").await.unwrap().version, "1.1.0");
    // The way out that the refusal names.
    let (first, options) = (stamp("1.0.0"), sign(&stamp("1.0.0")));
    manager.add(memfd(&first).as_fd().into(), &options).await.unwrap();
    assert!(manager.activate("stamp@1.0.0", Options::new()).await.unwrap().active);
    manager.open("stamp", Options::new()).await.unwrap();
}

/// A policy that is changed holds for what runs: whoever runs it is told to open it anew.
#[tokio::test]
async fn a_reload_tells_whose_policy_is_another_one() {
    let appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    add(&manager, &stamp("1.0.0")).await.unwrap();
    add(&manager, &Fixture::answering("other", "1.0.0", 418, "other").component()).await.unwrap();
    let mut changes = manager.receive_changed().await.unwrap();
    let folder = appliance.path("config/plugins");
    std::fs::create_dir_all(&folder).unwrap();
    // By rename, as nobody is to read half of it.
    let hup = |text: &str| {
        std::fs::write(folder.join("new"), text).unwrap();
        std::fs::rename(folder.join("new"), folder.join("policy.toml")).unwrap();
        appliance.service.as_ref().unwrap().signal(rustix::process::Signal::HUP);
    };
    for deadline in [20, 30] {
        hup(&format!("[plugins.stamp]\ndeadline_ms = {deadline}\n"));
        let change = futures_util::StreamExt::next(&mut changes).await.unwrap();
        let change = change.args().unwrap();
        assert_eq!((change.name.as_str(), change.version.as_str()), ("stamp", "1.0.0"));
        let policy = manager.policy("stamp").await.unwrap();
        assert!(policy.contains(&format!("\"deadline_ms\":{deadline}")), "{policy}");
    }
    // One that cannot be read leaves them as they are; one that says the same is told of to nobody.
    for text in ["[plugins.stamp]\ndeadline = 40\n", "[plugins.stamp]\ndeadline_ms = 30\n"] {
        hup(text);
    }
    hup("[plugins.other]\ndeadline_ms = 30\n");
    let mut told = Vec::new();
    for _ in 0..2 {
        let change = futures_util::StreamExt::next(&mut changes).await.unwrap();
        told.push(change.args().unwrap().name.clone());
    }
    assert_eq!(told, ["other", "stamp"]);
}

/// Whoever hands in once more what was replaced does not go back to it unasked.
#[tokio::test]
async fn what_is_there_already_does_not_change_what_is_at_work() {
    let appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    for version in ["1.0.0", "1.1.0"] {
        let added = add(&manager, &stamp(version)).await.unwrap();
        assert_eq!((added.active, added.known), (true, Some(false)));
    }
    let again = add(&manager, &stamp("1.0.0")).await.unwrap();
    assert_eq!((again.active, again.known, again.at_work.as_deref()), (false, Some(true), Some("1.1.0")));
    assert_eq!(manager.show("stamp").await.unwrap().version, "1.1.0");
    let again = add(&manager, &stamp("1.1.0")).await.unwrap();
    assert_eq!((again.active, again.known), (true, Some(true)));
    // A new one is put to work even if its number is lower.
    assert!(add(&manager, &stamp("0.9.0")).await.unwrap().active);
    let options = Options::from([("force", true.into())]);
    manager.remove("stamp@0.9.0", options).await.unwrap();
    let again = add(&manager, &stamp("1.1.0")).await.unwrap();
    assert_eq!((again.active, again.at_work.as_deref()), (false, Some("")));
}

/// Versions that differ in their build alone are two, and each is named by itself.
#[tokio::test]
async fn a_version_is_named_with_its_build() {
    let appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    for version in ["1.0.0+a", "1.0.0+b"] {
        add(&manager, &stamp(version)).await.unwrap();
    }
    let activated = manager.activate("stamp@1.0.0+a", Options::new()).await.unwrap();
    assert_eq!((activated.version.as_str(), activated.active), ("1.0.0+a", true));
    let gone = manager.remove("stamp@1.0.0+b", Options::new()).await.unwrap();
    assert_eq!(gone[..2], ["stamp", "1.0.0+b"]);
    assert!(matches!(manager.show("stamp@1.0.0").await, Err(PluginsError::NoSuchPlugin(_))));
    assert_eq!(manager.show("stamp@^1").await.unwrap().version, "1.0.0+a");
}
