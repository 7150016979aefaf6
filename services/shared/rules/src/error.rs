//! What is wrong with a set of rules, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// One problem: which file, which rule, which field, and what about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleProblem {
    /// The rule file.
    pub file: PathBuf,
    /// The rule's name, or its place (`#2`) where it has none; `None` for the file as a whole.
    pub rule: Option<String>,
    /// The field inside the rule, dotted (`match.http.uri.path.prefix`); empty for the rule as a whole.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(rule) = &self.rule {
            write!(f, ": rule {rule:?}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All problems of one compilation; never empty when returned as an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<RuleProblem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// A problem inside one rule, before file and rule are known to whoever found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) field: String,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    pub(crate) fn at(self, file: &Path, rule: Option<&str>) -> RuleProblem {
        RuleProblem {
            file: file.to_path_buf(),
            rule: rule.map(str::to_owned),
            field: self.field,
            message: self.message,
        }
    }
}

/// ` (did you mean "x"?)` where a known name is near, else the list of what is known.
pub(crate) fn suggest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let nearest = known
        .clone()
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(wrong, k), k))
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len() / 4);
    match nearest {
        Some((_, name)) => format!("did you mean {name:?}?"),
        None => {
            let all: Vec<&str> = known.into_iter().collect();
            format!("known: {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_far_ones_listed() {
        assert_eq!(suggest("lisen", ["listen", "match"]), "did you mean \"listen\"?");
        assert_eq!(suggest("zzz", ["listen", "match"]), "known: listen, match");
    }
}
