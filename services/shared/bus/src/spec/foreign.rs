//! What a command runs where it is no program of its workspace: a component of the plugin registry, or a program in a machine.
//!
//! Either is run by `shipote-runner`, which stands in for it inside the workspace: its limits, its standard descriptors and
//! its end are the command's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{SpecError, substitute};

/// What stands behind a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Foreign {
    /// A command component of the plugin registry.
    Component {
        /// `NAME`, `NAME@1.2.3`, `NAME@^1` or `sha256:HEX`.
        reference: String,
        /// Folders of the workspace that it is given, under their own paths.
        dirs: Vec<String>,
    },
    /// A filter component of the plugin registry.
    Filter {
        /// As of a component.
        reference: String,
    },
    /// A program in a machine.
    Machine {
        /// The machine's name.
        name: String,
        /// Image of the machine to run it in; none: the agent's own root.
        image: Option<String>,
    },
}

/// Most folders that a component is given.
const DIRS_MAX: usize = 32;

impl Foreign {
    /// Puts `${KEY}` in every string.
    pub(super) fn substitute(&mut self, vars: &BTreeMap<String, String>) {
        let put = |text: &mut String| *text = substitute(text, vars);
        match self {
            Foreign::Component { reference, dirs } => {
                put(reference);
                dirs.iter_mut().for_each(put);
            }
            Foreign::Filter { reference } => put(reference),
            Foreign::Machine { name, image } => {
                put(name);
                image.iter_mut().for_each(put);
            }
        }
    }

    /// Checks what can be checked before anybody is asked for it; `field` is the key path of the table it stands in.
    ///
    /// # Errors
    /// The first value that cannot be, by its key path.
    pub fn validate(&self, field: &str) -> Result<(), SpecError> {
        let text = |name: &str, text: &str| {
            let problem = if text.is_empty() {
                "is empty; `shipote plugin ls` and `shipote machine ls` show what there is".to_owned()
            } else if text.len() > 256 || text.chars().any(char::is_control) {
                "is no name: it is too long or has control characters".to_owned()
            } else {
                return Ok(());
            };
            Err(SpecError::new(format!("{field}.{name}"), problem))
        };
        match self {
            Foreign::Component { reference, dirs } => {
                text("wasm", reference)?;
                if dirs.len() > DIRS_MAX {
                    let problem = format!("has {} entries; at most {DIRS_MAX} are taken", dirs.len());
                    return Err(SpecError::new(format!("{field}.dirs"), problem));
                }
                match dirs.iter().find(|dir| !dir.starts_with('/') || dir.contains('\0')) {
                    Some(dir) => {
                        let problem = format!("{dir:?} is no absolute path; write \"/work\"");
                        Err(SpecError::new(format!("{field}.dirs"), problem))
                    }
                    None => Ok(()),
                }
            }
            Foreign::Filter { reference } => text("filter", reference),
            Foreign::Machine { name, image } => {
                text("machine", name)?;
                image.as_ref().map_or(Ok(()), |image| text("image", image))
            }
        }
    }

    /// The machine that it takes the right to use.
    #[must_use]
    pub fn machine(&self) -> Option<&str> {
        match self {
            Foreign::Machine { name, .. } => Some(name),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_named() {
        let component = |reference: &str, dirs: &[&str]| Foreign::Component {
            reference: reference.to_owned(),
            dirs: dirs.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(component("wc@^1", &["/work"]).validate("nodes[0]"), Ok(()));
        let machine = |name: &str, image| Foreign::Machine { name: name.to_owned(), image };
        for (bad, want) in [
            (component("", &[]), "nodes[0].wasm: is empty"),
            (component("wc", &["work"]), "nodes[0].dirs: \"work\" is no absolute path"),
            (component("wc", &["/w"; 33]), "nodes[0].dirs: has 33"),
            (Foreign::Filter { reference: "a\nb".to_owned() }, "nodes[0].filter: is no name"),
            (machine("", None), "nodes[0].machine: is empty"),
            (machine("db", Some(String::new())), "nodes[0].image: is empty"),
        ] {
            let refused = bad.validate("nodes[0]").unwrap_err().to_string();
            assert!(refused.starts_with(want), "{refused}");
        }
    }
}
