//! Main file, drop-ins and sections.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use shipote_config::{AuditMode, Loaded, load, load_file};

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Proxy {
    listen: Vec<String>,
    limits: Limits,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    connections: u32,
    headers: u32,
}

#[derive(Debug, Deserialize)]
struct Needs {
    #[allow(dead_code, reason = "never read: it is missing")]
    state: PathBuf,
}

/// A main file and its drop-ins in a folder of their own.
fn installed(main: Option<&str>, drop_ins: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("shipote.toml");
    if let Some(main) = main {
        fs::write(&path, main).expect("main file");
    }
    let beside = folder.path().join("shipote.toml.d");
    fs::create_dir(&beside).expect("drop-in folder");
    for (name, text) in drop_ins {
        fs::write(beside.join(name), text).expect("drop-in");
    }
    (folder, path)
}

fn refusal(main: Option<&str>, drop_ins: &[(&str, &str)], section: Option<&str>) -> String {
    let (folder, path) = installed(main, drop_ins);
    let error = load::<Proxy>(&path, section).expect_err("refused").to_string();
    error.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn nothing_there_means_defaults() {
    let loaded: Loaded<Proxy> = load(Path::new("/nonexistent/shipote.toml"), Some("proxy")).expect("defaults");
    assert_eq!(loaded.value, Proxy::default());
    assert_eq!(loaded.audit.mode, AuditMode::BestEffort);
    assert!(loaded.files.is_empty());
}

#[test]
fn tables_merge_and_the_rest_is_replaced_in_lexical_order() {
    let (_folder, path) = installed(
        Some("[proxy]\nlisten = ['a', 'b']\nlimits = { connections = 1, headers = 2 }\n[machines]\nanything = 1"),
        &[
            ("20-b.toml", "[proxy.limits]\nconnections = 20"),
            ("10-a.toml", "[proxy]\nlisten = ['c']\nlimits.connections = 10\n[audit]\nmode = 'required'"),
            (".30-hidden.toml", "not TOML at all"),
            ("40-other.conf", "not TOML at all"),
        ],
    );
    let loaded: Loaded<Proxy> = load(&path, Some("proxy")).expect("valid");
    let limits = Limits { connections: 20, headers: 2 };
    assert_eq!(loaded.value, Proxy { listen: vec!["c".to_owned()], limits });
    assert_eq!(loaded.audit.mode, AuditMode::Required);
    let names: Vec<_> = loaded.files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    assert_eq!(names, ["shipote.toml", "10-a.toml", "20-b.toml"]);
}

#[test]
fn drop_ins_work_without_a_main_file_and_without_sections() {
    let (_folder, path) = installed(None, &[("a.toml", "limits.headers = 3")]);
    assert_eq!(load::<Proxy>(&path, None).expect("valid").value.limits.headers, 3);
}

#[test]
fn the_error_names_the_file_that_holds_the_value() {
    let main = "[proxy]\nlisten = []\n[proxy.limits]\nconnections = 1\nheaders = 1";
    type Case<'c> = (Option<&'c str>, &'c [(&'c str, &'c str)], Option<&'c str>, &'c str);
    let cases: &[Case<'_>] = &[
        (
            Some(main),
            &[("a.toml", "[proxy.limits]\nheaders = 'x'")],
            Some("proxy"),
            "shipote.toml.d/a.toml:2:11: proxy.limits.headers: found string \"x\", expected a whole number from 0 to 4294967295; write the number without quotes",
        ),
        (
            Some("[proxy.limits]\nheaders = 'x'"),
            &[("a.toml", "[proxy.limits]\nconnections = 1")],
            Some("proxy"),
            "shipote.toml:2:11: proxy.limits.headers: found string \"x\", expected a whole number from 0 to 4294967295; write the number without quotes",
        ),
        (
            Some(main),
            &[("a.toml", ""), ("b.toml", "\n[proxy.limits]\nheader = 1")],
            Some("proxy"),
            "shipote.toml.d/b.toml:3:1: proxy.limits.header: unknown key `header`; did you mean `headers`?",
        ),
        (
            Some(main),
            &[("a.toml", "[proxy]\nlimits = 3")],
            Some("proxy"),
            "shipote.toml.d/a.toml:2:10: proxy.limits: found integer `3`, expected a table; write `{ key = value }` or a `[section]`",
        ),
        (
            Some(main),
            &[("a.toml", "[proxy")],
            Some("proxy"),
            "shipote.toml.d/a.toml:1:7: not valid TOML: unclosed table, expected `]`; correct the syntax (https://toml.io)",
        ),
        (Some("[prxy]"), &[], Some("proxy"), "shipote.toml:1:2: unknown section `prxy`; did you mean `proxy`?"),
        (
            Some("[elsewhere]"),
            &[],
            Some("proxy"),
            "shipote.toml:1:2: unknown section `elsewhere`; known sections: `audit`, `cli`, `machines`, `plugins`, `proxy`, `workspaces`",
        ),
        (
            Some("proxy = 3"),
            &[],
            Some("proxy"),
            "shipote.toml:1:9: proxy: found a value of type integer, expected a table; write a section `[proxy]`",
        ),
        (
            Some("[audit]\nmode = 'required'"),
            &[("50-audit.toml", "[audit]\nsnyc = true")],
            Some("proxy"),
            "shipote.toml.d/50-audit.toml:2:1: audit.snyc: unknown key `snyc`; did you mean `sync`?",
        ),
        (
            Some("[audit]\nmode = 'requierd'"),
            &[],
            Some("proxy"),
            "shipote.toml:2:8: audit.mode: unknown value `requierd`; did you mean `required`?",
        ),
    ];
    for (main, drop_ins, section, expected) in cases {
        assert_eq!(refusal(*main, drop_ins, *section), *expected);
    }
}

#[test]
fn the_common_section_can_be_had_alone() {
    let (_folder, path) = installed(Some("[proxy]\nanything = 1\n[audit]\nsync = true"), &[]);
    for section in ["proxy", "machines"] {
        let loaded = load::<serde::de::IgnoredAny>(&path, Some(section)).expect("valid");
        assert!(loaded.audit.sync);
    }
}

#[test]
fn a_missing_key_names_the_section() {
    let (folder, path) = installed(Some("\n[proxy]\n"), &[]);
    let error = load::<Needs>(&path, Some("proxy")).expect_err("refused").to_string();
    let error = error.replace(&format!("{}/", folder.path().display()), "");
    assert_eq!(error, "shipote.toml:2:1: proxy: the key `state` is missing; add `state = …`");
}

#[test]
fn files_that_cannot_be_read_say_so() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let absent = load_file::<Proxy>(&folder.path().join("x.toml"), 10).expect_err("absent").to_string();
    assert!(
        absent.ends_with("x.toml: cannot read: No such file or directory (os error 2); check the path"),
        "{absent}"
    );
    let a_folder = load_file::<Proxy>(folder.path(), 10).expect_err("a folder").to_string();
    assert!(a_folder.ends_with(": cannot read: Is a directory (os error 21); name a file in it"), "{a_folder}");
    let endless = load_file::<Proxy>(Path::new("/dev/zero"), 10).expect_err("endless").to_string();
    assert_eq!(endless, "/dev/zero: larger than the 10 bytes allowed; split it or shorten it");
}
