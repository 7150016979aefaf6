//! What a node of a pipeline runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SpecError;

/// A native command: a program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeCommand {
    /// Path, or a name that is looked up in the workspace's own `PATH`.
    pub exec: String,
    /// Arguments without the program's name.
    #[serde(default)]
    pub argv: Vec<String>,
    /// Environment, name and value.
    #[serde(default)]
    pub envp: Vec<(String, String)>,
}

/// What a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// A program of the workspace.
    Native(NodeCommand),
}

impl Payload {
    /// Puts `${KEY}` in every string.
    pub(super) fn substitute(&mut self, vars: &BTreeMap<String, String>) {
        let Payload::Native(command) = self;
        command.exec = substitute(&command.exec, vars);
        for text in command.argv.iter_mut().chain(command.envp.iter_mut().map(|(_, v)| v)) {
            *text = substitute(text, vars);
        }
    }

    pub(super) fn validate(&self, field: &str) -> Result<(), SpecError> {
        let Payload::Native(command) = self;
        if command.exec.is_empty() {
            return Err(SpecError::new(field, "names no program"));
        }
        let texts = command.argv.iter().chain([&command.exec]).chain(command.envp.iter().map(|(_, v)| v));
        for text in texts {
            if text.contains('\0') {
                return Err(SpecError::new(field, "contains a NUL byte, which no program can be given"));
            }
        }
        for (key, _) in &command.envp {
            super::workspace::check_env_key(field, key)?;
        }
        Ok(())
    }
}

/// Replaces `${KEY}` by its value; an unknown key and all other text stay as they are.
pub fn substitute(text: &str, vars: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        match from[2..].find('}').map(|end| (&from[2..2 + end], &from[2 + end + 1..])) {
            Some((key, after)) if vars.contains_key(key) => {
                out.push_str(&vars[key]);
                rest = after;
            }
            _ => {
                out.push_str("${");
                rest = &from[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substitution_touches_nothing_else() {
        let vars = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "${A}".to_owned())]);
        let table = [
            ("", ""),
            ("x${A}y", "x1y"),
            ("${A}${A}", "11"),
            ("${B}", "${A}"),
            ("${C}${A}", "${C}1"),
            ("$A ${", "$A ${"),
            ("${${A}}", "${1}"),
            ("é${A}", "é1"),
        ];
        for (text, want) in table {
            assert_eq!(substitute(text, &vars), want, "{text:?}");
        }
    }
}
