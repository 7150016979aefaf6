//! The rules that the documentation shows are rules.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

use std::path::Path;

use shipote_rules::{Source, compile};

/// The rule files that a page shows, as blocks or as output of `cat`, with the line where each begins.
fn examples(page: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let shown = line.starts_with("$ cat ") && line.contains("/rules/");
        if !shown && line.trim() != "```toml" {
            continue;
        }
        let of_it = |line: &&str| line.trim() != "```" && !line.starts_with("$ ");
        let block: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(of_it).collect();
        let block = block.join("\n");
        if block.contains("[[rules]]") {
            found.push((number + 1, block));
        }
    }
    found
}

#[test]
fn every_rule_that_the_documentation_shows_compiles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    for (page, least) in [("README.md", 1), ("docs/proxy.md", 2), ("docs/plugins.md", 1)] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let examples = examples(&text);
        assert!(examples.len() >= least, "{page} shows {} rules", examples.len());
        for (line, rules) in examples {
            let graph = compile(&[Source::new(format!("{page}:{line}.toml"), &rules)]);
            let graph = graph.unwrap_or_else(|problems| panic!("{problems}"));
            assert!(!graph.listeners.is_empty() && graph.warnings.is_empty(), "{page}:{line}: {:?}", graph.warnings);
        }
    }
}
