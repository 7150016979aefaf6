//! Plugins that call plugins.

use std::os::fd::AsFd as _;

use shipote_bus::plugins::{AddOptions, Options, PluginsError};
use shipote_plugin_abi::fixtures::{Fixture, LEAF};

use crate::support::{Appliance, add, memfd};

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
