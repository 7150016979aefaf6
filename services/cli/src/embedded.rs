//! Where an embedded appliance keeps its things. The one that runs says so itself, in a file beside its bus, so that no
//! command has to be told what `shipote up` was told; one that does not run is looked for where it would be by default.

use std::path::{Path, PathBuf};

use serde_json::Value;
use shipote_bus::{connect, paths};

/// State folder of the appliance whose bus the other commands use, if it is an embedded one that runs.
pub(crate) fn running_state() -> Option<PathBuf> {
    state_in(&connect::embedded_runtime())
}

fn state_in(runtime: &Path) -> Option<PathBuf> {
    let said: Value = serde_json::from_slice(&std::fs::read(runtime.join(paths::APPLIANCE_FILE)).ok()?).ok()?;
    Some(said.get("state")?.as_str()?.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_appliance_says_where_its_state_is() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(state_in(folder.path()), None);
        for (text, want) in [("{\"state\": \"/s\"}", Some("/s")), ("{\"sta", None), ("{}", None)] {
            std::fs::write(folder.path().join(paths::APPLIANCE_FILE), text).unwrap();
            assert_eq!(state_in(folder.path()), want.map(PathBuf::from), "{text}");
        }
    }
}
