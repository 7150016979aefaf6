//! Any text as a rule file: a graph whose chart prints, or problems that each name the file; never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shipote_rules::{Source, compile, mermaid};

fuzz_target!(|input: (bool, &str)| {
    let (toml, text) = input;
    let name = if toml { "fuzz.toml" } else { "fuzz.json" };
    match compile(&[Source::new(name, text)]) {
        Ok(graph) => assert!(mermaid(&graph).starts_with("flowchart")),
        Err(problems) => assert!(problems.0.iter().all(|p| p.file.as_os_str() == name)),
    }
});
