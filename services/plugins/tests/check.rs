//! Hostile and mistaken components: each is refused with the rule that it breaks, and the judge survives.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::metadata::MiddlewareKind::{L4Peek, L7Request};

fn check(folder: &Path, bytes: &[u8], policy: Option<&Path>) -> Value {
    let file = folder.join("plugin.wasm");
    std::fs::write(&file, bytes).unwrap();
    check_file(&file, policy)
}

fn check_file(file: &Path, policy: Option<&Path>) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shipote-plugins"));
    command.args(["check", "--json"]);
    if let Some(folder) = policy {
        command.arg("--policy").arg(folder);
    }
    let output = command.arg(file).output().unwrap();
    let verdict: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.success(), verdict["ok"] == true);
    verdict
}

fn rules(verdict: &Value) -> Vec<&str> {
    verdict["refusals"].as_array().unwrap().iter().map(|refusal| refusal["rule"].as_str().unwrap()).collect()
}

fn good() -> Fixture {
    Fixture::new("stamp", "1.2.3", &[L7Request])
}

fn with(change: impl FnOnce(&mut Fixture)) -> Vec<u8> {
    let mut fixture = good();
    change(&mut fixture);
    fixture.component()
}

/// A plugin that offers others a function that WIT calls `async`.
fn calling_async() -> Vec<u8> {
    with(|fixture| {
        fixture.packages = vec!["package test:late@1.0.0; interface leaf { value: async func(n: u32) -> u32; }".into()];
        fixture.world = "export test:late/leaf@1.0.0;".into();
        fixture.imports =
            "(import \"[export]test:late/leaf@1.0.0\" \"[task-return]value\" (func $answer (param i32)))".into();
        fixture.functions = "(func (export \"[async-lift]test:late/leaf@1.0.0#value\") (param i32) (result i32)
               (call $answer (local.get 0)) (i32.const 0))
             (func (export \"[callback][async-lift]test:late/leaf@1.0.0#value\") (param i32 i32 i32) (result i32)
               unreachable)"
            .into();
    })
}

#[test]
fn a_good_plugin_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let verdict = check(folder.path(), &good().component(), None);
    assert_eq!((verdict["ok"].as_bool(), verdict["metadata"]["name"].as_str()), (Some(true), Some("stamp")));
    assert!(verdict["digest"].as_str().unwrap().starts_with("sha256:"));
}

#[test]
fn each_fault_is_named_by_its_rule() {
    let whole = good().component();
    let many_exports: String = (0..10_000).map(|n| format!("(export \"x{n}\" (instance $i))")).collect();
    let grow = "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 100)) (i32.const -1)))) unreachable";
    let sneaky = "(import \"sneaky\" \"open\" (func $open))";
    let table: Vec<(&str, &str, Vec<u8>)> = vec![
        ("a function that WIT calls async", "async", calling_async()),
        ("empty", "format", vec![]),
        ("a script", "format", b"#!/bin/sh\nexit 0\n".to_vec()),
        ("a core module", "format", b"\0asm\x01\0\0\0".to_vec()),
        ("cut off", "format", whole[..whole.len() - 7].to_vec()),
        ("10,000 exports", "format", wat::parse_str(format!("(component (instance $i) {many_exports})")).unwrap()),
        ("no registry", "registry", wat::parse_str("(component)").unwrap()),
        (
            "a forbidden import",
            "import",
            with(|fixture| {
                fixture.imports = sneaky.into();
                fixture.world = "import sneaky: interface { open: func(); }".into();
                fixture.on_metadata = "(call $open)".into();
            }),
        ),
        ("it never ends", "metadata", with(|fixture| fixture.on_metadata = "(loop $again (br $again))".into())),
        ("it traps", "metadata", with(|fixture| fixture.on_metadata = "unreachable".into())),
        (
            "it allocates without end",
            "memory",
            with(|fixture| {
                fixture.pages = (2, 65_536);
                fixture.on_metadata = grow.into();
            }),
        ),
        ("it wants 1 GiB to start", "memory", with(|fixture| fixture.pages = (16_384, 16_384))),
        ("a name like a path", "name", with(|fixture| fixture.metadata.name = "../../etc/passwd".into())),
        ("no version", "version", with(|fixture| fixture.metadata.version = "latest".into())),
        ("another ABI", "abi-version", with(|fixture| fixture.metadata.abi_version = "2.0.0".into())),
        ("a handler that is not there", "handler", with(|fixture| fixture.metadata.exports[0].kind = L4Peek)),
        (
            "1,000 middlewares",
            "exports",
            with(|fixture| {
                fixture.metadata.exports = vec![fixture.metadata.exports[0].clone(); 1_000];
            }),
        ),
        (
            "two of one name",
            "export-name",
            with(|fixture| {
                fixture.metadata.exports = vec![fixture.metadata.exports[0].clone(); 2];
            }),
        ),
        (
            "an unknown path",
            "inspects",
            with(|fixture| fixture.metadata.exports[0].inspects = vec!["conn.mood".into()]),
        ),
        ("streaming", "streaming", with(|fixture| fixture.metadata.exports[0].needs_streaming_body = true)),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (what, rule, bytes) in table {
        let verdict = check(folder.path(), &bytes, None);
        assert_eq!(rules(&verdict), [rule], "{what}: {verdict}");
    }
}

/// The child that examines, with limits that do in a second what the registry's own do in minutes.
#[test]
fn one_that_costs_too_much_to_compile_ends_its_child_and_no_more() {
    let costly = with(|fixture| {
        let step = "(local.set 0 (i32.mul (i32.popcnt (local.get 0)) (i32.add (local.get 0) (i32.const 3))))";
        let body = step.repeat(4_000);
        fixture.functions = (0..50).map(|_| format!("(func (param i32) (result i32) {body} (local.get 0))")).collect();
    });
    let examined = |cpu_seconds: u64, address_space: u64| {
        let policy = serde_json::to_value(shipote_plugin_abi::policy::Policy::default()).unwrap();
        let job = serde_json::json!({
            "policy": policy, "compile": true, "cpu_seconds": cpu_seconds, "address_space": address_space,
            "metadata_ms": 60_000, "size": costly.len(),
        });
        let mut child = Command::new(env!("CARGO_BIN_EXE_shipote-plugins"))
            .args(["examine", &job.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It may be gone before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(&costly);
        child.wait().unwrap().signal()
    };
    let (cpu, kill, abort) = (24, 9, 6);
    let ended = examined(1, 4 << 30);
    assert!(ended == Some(cpu) || ended == Some(kill), "{ended:?}");
    assert_eq!(examined(240, 96 << 20), Some(abort));
}

#[test]
fn a_file_of_100_mib_is_refused_by_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin.wasm");
    std::fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    let verdict = check_file(&path, None);
    assert_eq!(rules(&verdict), ["format"]);
    assert!(verdict["refusals"][0]["reason"].as_str().unwrap().contains("bytes"));
}

#[test]
fn a_policy_may_allow_a_stub_and_more_memory() {
    let folder = tempfile::tempdir().unwrap();
    let stub = with(|fixture| {
        fixture.imports = "(import \"wasi:cli/fake@0.2.0\" \"now\" (func $now))".into();
        fixture.world = "import wasi:cli/fake@0.2.0;".into();
        fixture.handlers[0].1 = format!("(call $now) {}", fixture.handlers[0].1);
    });
    assert_eq!(rules(&check(folder.path(), &stub, None)), ["import"]);
    let policy = "[plugins.plugin]\nwasi_stubs = [\"wasi:cli/fake@0.2.0\"]\nmemory_bytes = 1048576\n";
    std::fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let verdict = check(folder.path(), &stub, Some(folder.path()));
    assert_eq!(verdict["ok"], true, "{verdict}");
    let large = with(|fixture| fixture.pages = (100, 100));
    assert_eq!(rules(&check(folder.path(), &large, Some(folder.path()))), ["memory"]);
    assert_eq!(check(folder.path(), &large, None)["ok"], true);
}

#[test]
fn what_a_plugin_may_keep_is_for_the_policy_to_say() {
    let folder = tempfile::tempdir().unwrap();
    let keeps = with(|fixture| {
        fixture.imports =
            "(import \"shipote:state/store@0.1.0\" \"remove\" (func $remove (param i32 i32) (result i32)))".into();
        fixture.world = "import shipote:state/store@0.1.0;".into();
        fixture.handlers[0].1 = format!("(drop (call $remove (i32.const 0) (i32.const 1))) {}", fixture.handlers[0].1);
    });
    let verdict = check(folder.path(), &keeps, None);
    assert_eq!(rules(&verdict), ["import"]);
    assert!(verdict["refusals"][0]["reason"].as_str().unwrap().contains("state_bytes"), "{verdict}");
    std::fs::write(folder.path().join("policy.toml"), "[plugins.plugin]\nstate_bytes = 1024\n").unwrap();
    let verdict = check(folder.path(), &keeps, Some(folder.path()));
    assert_eq!(verdict["ok"], true, "{verdict}");
}

#[test]
fn text_is_taken_for_development() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin.wat");
    std::fs::write(&path, "(component)").unwrap();
    assert_eq!(rules(&check_file(&path, None)), ["registry"]);
    std::fs::write(&path, "(component").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_shipote-plugins")).arg("check").arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("plugin.wat"));
}
