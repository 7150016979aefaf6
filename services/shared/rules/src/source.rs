//! Rule files: JSON or TOML text to rules, merged in order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::error::{Problem, Problems, RuleProblem};
use crate::preset;
use crate::rule::{Place, Rule};
use crate::section::Section;

/// A rule file: its path, which errors name, and its text.
#[derive(Debug, Clone)]
pub struct Source {
    /// The path; `.toml` is read as TOML, all else as JSON.
    pub path: PathBuf,
    /// The text.
    pub text: String,
}

impl Source {
    /// A file by its path and text.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    fn value(&self) -> Result<Json, Problem> {
        if self.path.extension().is_some_and(|e| e == "toml") {
            toml::from_str(&self.text).map_err(|e| Problem::new("", format!("not TOML: {}", e.to_string().trim())))
        } else {
            serde_json::from_str(&self.text).map_err(|e| Problem::new("", format!("not JSON: {e}")))
        }
    }
}

struct File<'s> {
    path: &'s Path,
    order: i64,
    entries: Vec<Json>,
}

fn read(source: &Source) -> Result<File<'_>, Problem> {
    let mut value = source.value()?;
    // most of a file, which is not to be copied
    let rules = value.get_mut("rules").map(Json::take);
    let mut section = Section::new(&value, "")?;
    let order = match section.get("order") {
        None => 0,
        Some(v) => v.as_i64().ok_or_else(|| section.wrong("order", "a whole number", v))?,
    };
    section.get("rules"); // Known; what it was is taken already.
    let entries = match rules {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Array(entries)) => entries,
        Some(other) => return Err(section.wrong("rules", "a list", &other)),
    };
    section.get("path"); // Where another tool noted the file's own path.
    section.finish()?;
    Ok(File { path: &source.path, order, entries })
}

/// All rules of all files, presets expanded, ordered by the files' `order`, then path, then place.
pub(crate) fn merge(sources: &[Source]) -> Result<Vec<Rule>, Problems> {
    let mut problems: Vec<RuleProblem> = Vec::new();
    let mut files = Vec::new();
    for source in sources {
        match read(source) {
            Ok(file) => files.push(file),
            Err(problem) => problems.push(problem.at(&source.path, None)),
        }
    }
    files.sort_by(|a, b| (a.order, a.path).cmp(&(b.order, b.path)));
    let mut rules: Vec<Rule> = Vec::new();
    let mut sites = 0;
    for file in &files {
        for (i, entry) in file.entries.iter().enumerate() {
            let label = entry.get("name").and_then(Json::as_str).map_or_else(|| format!("#{i}"), str::to_owned);
            let mut read_all = || {
                let mut place = Place { file: file.path, order: file.order, sites: &mut sites };
                preset::expand(entry)?.iter().map(|e| Rule::parse(e, &mut place)).collect::<Result<Vec<_>, _>>()
            };
            match read_all() {
                Ok(read) => rules.extend(read),
                Err(problem) => problems.push(problem.at(file.path, Some(&label))),
            }
        }
    }
    let mut seen: HashMap<&str, &Path> = HashMap::new();
    for rule in &rules {
        if let Some(other) = seen.insert(&rule.name, &rule.file) {
            let message = format!("another rule in {} has this name", other.display());
            problems.push(Problem::new("name", message).at(&rule.file, Some(&rule.name)));
        }
    }
    if problems.is_empty() { Ok(rules) } else { Err(Problems(problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str) -> String {
        format!(r#"{{"name": "{name}", "listen": [":80"], "terminate": {{"type": "static", "status": 200}}}}"#)
    }

    #[test]
    fn files_are_ordered_by_order_then_path() {
        let file = |path: &str, order: i64, name: &str| {
            Source::new(path, format!(r#"{{"order": {order}, "rules": [{}]}}"#, rule(name)))
        };
        let rules = merge(&[file("b", 0, "second"), file("z", -1, "first"), file("c", 0, "third")]).unwrap();
        let names: Vec<&str> = rules.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["first", "second", "third"]);
    }

    #[test]
    fn toml_has_the_same_shape() {
        let text = r#"
            [[rules]]
            name = "a"
            listen = ["127.0.0.1:80"]
            match.http.uri.path.prefix = "/a"
            terminate = { type = "static", status = 200, text = "hi" }
        "#;
        let rules = merge(&[Source::new("a.toml", text)]).unwrap();
        assert!(rules[0].matches.is_some());
    }

    #[test]
    fn all_problems_are_listed_with_file_rule_and_field() {
        let bad = r#"{"rules": [
            {"name": "a", "lisen": [":80"], "terminate": {"type": "static", "status": 200}},
            {"name": "b", "listen": [":80"], "terminate": {"type": "statc"}},
            {"listen": [":80"], "terminate": {"type": "static", "status": 200}}]}"#;
        let problems = merge(&[Source::new("r/bad.json", bad), Source::new("r/torn.json", "{")]).unwrap_err();
        let lines: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(lines[0].starts_with("r/torn.json: not JSON"), "{}", lines[0]);
        assert_eq!(lines[1], r#"r/bad.json: rule "a": lisen: unknown field: did you mean "listen"?"#);
        assert_eq!(lines[2], r#"r/bad.json: rule "b": terminate.type: "statc": did you mean "static"?"#);
        assert_eq!(lines[3], r##"r/bad.json: rule "#2": name: this field is required"##);
    }

    #[test]
    fn a_name_is_used_once() {
        let text = format!(r#"{{"rules": [{}, {}]}}"#, rule("a"), rule("a"));
        let problems = merge(&[Source::new("a.json", text)]).unwrap_err();
        assert_eq!(problems.0[0].field, "name");
    }
}
