//! The catalog explains every kind of event, and nothing else.
#![allow(missing_docs)]

use std::collections::BTreeMap;

use shipote_audit::Event;

#[test]
fn table_and_catalog_agree() {
    let catalog = include_str!("../shipote.catalog");
    let mut entries: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut current = None;
    for line in catalog.lines() {
        if let Some(id) = line.strip_prefix("-- ") {
            assert!(entries.insert(id.to_owned(), Vec::new()).is_none(), "{id} twice");
            current = Some(id.to_owned());
        } else if let Some(entry) = current.as_ref().and_then(|id| entries.get_mut(id)) {
            entry.push(line);
        }
    }
    for event in Event::ALL {
        let lines = entries.remove(&event.message_id().to_string());
        let lines = lines.unwrap_or_else(|| panic!("{} has no entry", event.action()));
        assert_eq!(lines[0], format!("Subject: {}: @SHIPOTE_OBJECT@", event.action()));
        assert_eq!(lines[1], "Defined-By: Shipote");
        let empty = lines.iter().position(|line| line.is_empty()).expect("an empty line after the headers");
        assert!(lines[empty + 1].contains(event.what()), "{}", event.action());
    }
    assert!(entries.is_empty(), "in the catalog, not in the table: {:?}", entries.keys());
}
