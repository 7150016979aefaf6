//! Rule files: JSON or TOML text to rules, merged in order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

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

    fn value(&self, pause: &dyn Fn()) -> Result<Json, Problem> {
        if self.path.extension().is_some_and(|e| e == "toml") {
            if let Some(value) = rule_by_rule(&self.text, pause) {
                return Ok(value);
            }
            toml::from_str(&self.text).map_err(|e| Problem::new("", format!("not TOML: {}", e.to_string().trim())))
        } else {
            serde_json::from_str(&self.text).map_err(|e| Problem::new("", format!("not JSON: {e}")))
        }
    }
}

/// Begins a rule of a TOML file.
const HEADER: &str = "[[rules]]";

/// Reads a TOML file in pieces, each of which begins with a line that begins a rule: one piece needs little memory, which
/// the next one has again, and there is a pause between them. None where the file is not made of such pieces: it is wrong,
/// or to be read as a whole.
///
/// That the pieces mean what the whole means: the line is the header of a rule, or stands in a string, an array or an
/// inline table of several lines. Then the piece before it ends inside of that, and is no TOML.
fn rule_by_rule(text: &str, pause: &dyn Fn()) -> Option<Json> {
    let begins_line = |at: &usize| *at == 0 || text.as_bytes()[at - 1] == b'\n';
    let mut bounds: Vec<usize> = text.match_indices(HEADER).map(|(at, _)| at).filter(begins_line).collect();
    let head = &text[..*bounds.first()?];
    bounds.push(text.len());
    let mut whole: Map<String, Json> = toml::from_str(head).ok()?;
    if whole.contains_key("rules") {
        return None;
    }
    let mut entries = Vec::with_capacity(bounds.len());
    for bound in bounds.windows(2) {
        let mut piece: Map<String, Json> = toml::from_str(&text[bound[0]..bound[1]]).ok()?;
        match piece.remove("rules")? {
            Json::Array(rules) if piece.is_empty() => entries.extend(rules),
            _ => return None,
        }
        pause();
    }
    whole.insert("rules".to_owned(), Json::Array(entries));
    Some(Json::Object(whole))
}

struct File<'s> {
    path: &'s Path,
    order: i64,
    entries: Vec<Json>,
}

fn read<'s>(source: &'s Source, pause: &dyn Fn()) -> Result<File<'s>, Problem> {
    let mut value = source.value(pause)?;
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
pub(crate) fn merge(sources: &[Source], pause: &dyn Fn()) -> Result<Vec<Rule>, Problems> {
    let mut problems: Vec<RuleProblem> = Vec::new();
    let mut files = Vec::new();
    for source in sources {
        match read(source, pause) {
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
            pause();
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
        let rules = merge(&[file("b", 0, "second"), file("z", -1, "first"), file("c", 0, "third")], &|| ()).unwrap();
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
        let rules = merge(&[Source::new("a.toml", text)], &|| ()).unwrap();
        assert!(rules[0].matches.is_some());
    }

    #[test]
    fn toml_is_read_rule_by_rule_with_a_pause_after_each() {
        let text = "order = 3\n[[rules]]\nname = \"a\"\n[rules.match]\nhttp.method.equals = \"GET\"\n\
                    # [[rules]]\n[[rules]] # second\nname = \"\"\"[[rules]]\"\"\"\n";
        let pauses = std::cell::Cell::new(0);
        let read = rule_by_rule(text, &|| pauses.set(pauses.get() + 1)).unwrap();
        assert_eq!(read, toml::from_str::<Json>(text).unwrap());
        assert_eq!(pauses.get(), 2);
    }

    /// Lines that change what the lines after them are.
    const LINES: [&str; 22] = [
        "[[rules]]",
        "[[rules]]",
        "[[rules]] # one more",
        " [[rules]]",
        "[[ rules ]]",
        "[[rules.chain]]",
        "[rules]",
        "[rules.match]",
        "[other]",
        "order = 1",
        "rules = []",
        "rules = [",
        "rules.name = 1",
        "name = \"a\"",
        "text = \"\"\"",
        "\"\"\"",
        "text = '''",
        "'''",
        "list = [",
        "]",
        "part = {",
        "}",
    ];

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_read_rule_by_rule_means_what_the_whole_means(
            lines in proptest::collection::vec(proptest::sample::select(&LINES[..]), 0..8),
        ) {
            let text = lines.join("\n");
            if let Some(read) = rule_by_rule(&text, &|| ()) {
                proptest::prop_assert_eq!(Ok(read), toml::from_str::<Json>(&text), "{}", text);
            }
        }
    }

    #[test]
    fn all_problems_are_listed_with_file_rule_and_field() {
        let bad = r#"{"rules": [
            {"name": "a", "lisen": [":80"], "terminate": {"type": "static", "status": 200}},
            {"name": "b", "listen": [":80"], "terminate": {"type": "statc"}},
            {"listen": [":80"], "terminate": {"type": "static", "status": 200}}]}"#;
        let problems = merge(&[Source::new("r/bad.json", bad), Source::new("r/torn.json", "{")], &|| ()).unwrap_err();
        let lines: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(lines[0].starts_with("r/torn.json: not JSON"), "{}", lines[0]);
        assert_eq!(lines[1], r#"r/bad.json: rule "a": lisen: unknown field: did you mean "listen"?"#);
        assert_eq!(lines[2], r#"r/bad.json: rule "b": terminate.type: "statc": did you mean "static"?"#);
        assert_eq!(lines[3], r##"r/bad.json: rule "#2": name: this field is required"##);
    }

    #[test]
    fn what_is_no_toml_is_named_by_its_line_in_the_file() {
        let text = "[[rules]]\nname = \"a\"\n[[rules]]\nname = b\n";
        let problems = merge(&[Source::new("a.toml", text)], &|| ()).unwrap_err();
        assert!(problems.0[0].message.contains("line 4"), "{}", problems.0[0]);
    }

    #[test]
    fn a_name_is_used_once() {
        let text = format!(r#"{{"rules": [{}, {}]}}"#, rule("a"), rule("a"));
        let problems = merge(&[Source::new("a.json", text)], &|| ()).unwrap_err();
        assert_eq!(problems.0[0].field, "name");
    }
}
