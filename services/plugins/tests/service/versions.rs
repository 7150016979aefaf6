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
