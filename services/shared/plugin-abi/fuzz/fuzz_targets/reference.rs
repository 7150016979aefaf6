//! Any text as the name of a version: what is read stands for what was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shipote_plugin_abi::reference::Reference;

fuzz_target!(|text: &str| {
    match text.parse::<Reference>() {
        Ok(Reference::Active(name)) => assert!(!name.is_empty() && name == text),
        Ok(Reference::Exact(name, version)) => {
            assert!(!name.is_empty() && text == format!("{name}@{version}"));
        }
        Ok(Reference::Fitting(name, requirement)) => {
            // The requirement is written in its own way, and means the same.
            let again = format!("{name}@{requirement}");
            assert!(
                !name.is_empty() && matches!(again.parse(), Ok(Reference::Fitting(_, same)) if same == requirement)
            );
        }
        Ok(Reference::Digest(digest)) => {
            assert!(digest == text && (8..=64).contains(&(digest.len() - "sha256:".len())))
        }
        Err(error) => assert!(error.to_string().chars().count() < 1000),
    }
});
