//! Canaries, as the registry keeps them.

use std::os::fd::AsFd as _;

use futures_util::StreamExt as _;
use shipote_bus::plugins::{AddOptions, Options, PluginManagerProxy, PluginsError};
use shipote_plugin_abi::fixtures::{Fixture, LEAF};

use crate::support::{Appliance, add, memfd, stamp};

async fn keep(manager: &PluginManagerProxy<'_>, component: &[u8]) {
    let quiet = AddOptions { activate: Some(false), ..AddOptions::default() };
    manager.add(memfd(component).as_fd().into(), &quiet).await.unwrap();
}

/// Version and share of the canary.
async fn canary(manager: &PluginManagerProxy<'_>) -> (String, u32) {
    let info = manager.show("stamp").await.unwrap();
    (info.canary, info.share)
}

#[tokio::test]
async fn a_canary_is_kept_changed_and_ended() {
    let mut appliance = Appliance::start().await;
    let manager = appliance.manager().await;
    add(&manager, &stamp("1.0.0")).await.unwrap();
    keep(&manager, &stamp("1.1.0")).await;
    keep(&manager, &stamp("1.2.0")).await;
    let mut signals = manager.receive_canary_changed().await.unwrap();
    let begun = manager.canary("stamp@1.1.0", 500, Options::new()).await.unwrap();
    assert_eq!((begun.version.as_str(), begun.active, begun.share), ("1.1.0", false, 500));
    let since = manager.show("stamp").await.unwrap().canary_since;
    manager.canary("stamp@1.1.0", 9_999, Options::new()).await.unwrap();
    appliance.service = None;
    appliance.serve().await;
    assert_eq!(canary(&manager).await, ("1.1.0".to_owned(), 9_999), "it is on disk");
    assert_eq!(manager.show("stamp").await.unwrap().canary_since, since, "another share is the same trial");
    let shares = manager.list(Options::new()).await.unwrap().into_iter().map(|plugin| plugin.share);
    assert_eq!(shares.collect::<Vec<_>>(), [0, 9_999, 0]);

    // Another version takes its place; what is said of the earlier one is not about this one.
    manager.canary("stamp@1.2.0", 100, Options::new()).await.unwrap();
    assert!(!manager.canary_failed("stamp", since, "too late").await.unwrap());
    assert_eq!(canary(&manager).await, ("1.2.0".to_owned(), 100));
    let since = manager.show("stamp").await.unwrap().canary_since;
    assert!(manager.canary_failed("stamp", since, "it trapped").await.unwrap());
    assert!(!manager.canary_failed("stamp", since, "it trapped").await.unwrap());
    assert!(!manager.canary_failed("nobody", since, "it trapped").await.unwrap());
    assert_eq!(canary(&manager).await, (String::new(), 0));

    manager.canary("stamp@1.2.0", 100, Options::new()).await.unwrap();
    assert_eq!(manager.promote("stamp", Options::new()).await.unwrap().version, "1.2.0");
    assert!(matches!(manager.promote("stamp", Options::new()).await, Err(PluginsError::NoCanary(_))));
    manager.canary("stamp@1.0.0", 100, Options::new()).await.unwrap();
    // The way back leads to the canary itself: then it is none any more.
    assert_eq!(manager.rollback("stamp", Options::new()).await.unwrap().version, "1.0.0");
    assert_eq!(canary(&manager).await, (String::new(), 0));

    let mut told = Vec::new();
    for _ in 0..6 {
        let signal = signals.next().await.unwrap();
        let args = signal.args().unwrap();
        told.push(format!("{} {} {}", args.version, args.share, args.why).trim_end().to_owned());
    }
    let expected = ["1.1.0 500", "1.1.0 9999", "1.2.0 100", "1.2.0 0 it trapped", "1.2.0 100", "1.2.0 0 promoted"];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_share_is_refused_where_it_makes_no_sense_or_does_not_fit() {
    let mut appliance = Appliance::start().await;
    appliance.service = None;
    let folder = appliance.path("config/plugins");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("policy.toml"), format!("[plugins.edge.sockets]\n\"{LEAF}\" = \"exactly-one\"\n"))
        .unwrap();
    appliance.serve().await;
    let manager = appliance.manager().await;
    keep(&manager, &stamp("1.0.0")).await;
    keep(&manager, &stamp("1.1.0")).await;
    for (reference, share, reason) in [
        ("stamp@1.1.0", 0, "more than 0 %"),
        ("stamp@1.1.0", 10_000, "less than 100 %"),
        ("stamp@1.1.0", u32::MAX, "less than 100 %"),
        ("stamp@1.0.0", 500, "at work already"),
        ("stamp@@", 500, "write NAME"),
    ] {
        let refused = manager.canary(reference, share, Options::new()).await;
        let Err(PluginsError::InvalidArgument(text)) = refused else { panic!("{reference} {share}: {refused:?}") };
        assert!(text.contains(reason), "{text}");
    }
    let missing = manager.canary("stamp@7.0.0", 500, Options::new()).await;
    assert!(matches!(missing, Err(PluginsError::NoSuchPlugin(_))), "{missing:?}");
    let share = |share: u32| Options::from([("share", share.into())]);
    let plan = manager.plan("canary", "stamp@1.1.0", share(500)).await.unwrap();
    assert_eq!((plan.canary.as_str(), plan.share, plan.to.as_str()), ("1.1.0", 500, "1.0.0"));
    assert!(manager.plan("activate", "stamp@1.1.0", share(500)).await.is_err());
    assert!(manager.plan("canary", "stamp@1.1.0", Options::new()).await.is_err());
    assert!(manager.plan("abort", "stamp", Options::new()).await.unwrap().refused.contains("it has none"));

    // A version whose socket nobody fits cannot be tried; on trial, it is linked like any other.
    add(&manager, &Fixture::answering("edge", "1.0.0", 418, "").component()).await.unwrap();
    let named = AddOptions { name: Some("edge".into()), activate: Some(false), ..AddOptions::default() };
    manager.add(memfd(&Fixture::wanting("edge", "2.0.0").component()).as_fd().into(), &named).await.unwrap();
    let refused = manager.canary("edge@2.0.0", 500, Options::new()).await;
    let Err(PluginsError::Refused(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("wants exactly-one, 0 fit"), "{text}");
    add(&manager, &Fixture::offering("leaf", "1.0.0", 18).component()).await.unwrap();
    manager.canary("edge@2.0.0", 500, Options::new()).await.unwrap();
    let (_, info) = manager.open("edge@2.0.0", Options::new()).await.unwrap();
    assert_eq!(info.links[0].plugins, ["leaf"]);
}
