//! Any text as a workspace or a pipeline: one that holds what it promises, or an error of one line; never a panic.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use shipote_bus::spec::{PipelineSpec, WorkspaceSpec};

fuzz_target!(|input: (bool, &str)| {
    let (pipeline, text) = input;
    if pipeline {
        let vars = BTreeMap::from([("A".to_owned(), "${B}".to_owned())]);
        let Ok(spec) = shipote_config::parse::<PipelineSpec>(text, "pipeline") else { return };
        if let Ok(pipeline) = spec.validate(&vars) {
            assert!(!pipeline.nodes.is_empty());
            let nodes = pipeline.nodes.len();
            assert!(pipeline.edges.iter().all(|edge| edge.from < nodes && edge.to < nodes && edge.from != edge.to));
        }
    } else if let Ok(spec) = shipote_config::parse::<WorkspaceSpec>(text, "workspace")
        && spec.validate().is_ok()
    {
        let paths = spec.paths.iter().flat_map(|grant| [Some(&grant.path), grant.target.as_ref()]).flatten();
        assert!(paths.chain(&spec.hidden).all(|path| path.is_absolute()));
    }
});
