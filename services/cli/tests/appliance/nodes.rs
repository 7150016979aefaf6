//! Nodes that are no program of their workspace: command components, filters on edges, commands in a machine.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use shipote_workspace_protocol::spec::{CommandRef, Flows, Payload, PipelineSpec, Supervision, WorkspaceSpec};
use shipote_workspace_protocol::{Request, Response};

use crate::socket::Client;
use crate::support::{Appliance, eventually, image, text};

/// A component of the examples.
fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit/examples").join(name);
    path.canonicalize().unwrap().display().to_string()
}

/// Adds a command component whose core function `run` is `body`; its result is 0 for good, 1 for bad.
fn add(shipote: &Appliance, name: &str, imports: &str, core: &str) -> Output {
    let text = format!(
        "(component {imports} {core}
            (func $run (result (result)) (canon lift (core func $main \"run\")))
            (instance $exported (export \"run\" (func $run)))
            (export \"wasi:cli/run@0.2.0\" (instance $exported)))"
    );
    let file = shipote.path(&format!("{name}.wat"));
    std::fs::write(&file, text).unwrap();
    shipote.run(&["plugin", "add", file.to_str().unwrap()])
}

fn simple(shipote: &Appliance, name: &str, body: &str) {
    let core =
        format!("(core module $m (func (export \"run\") (result i32) {body})) (core instance $main (instantiate $m))");
    let added = add(shipote, name, "", &core);
    assert!(added.status.success(), "{}", text(&added.stderr));
}

fn spec(shipote: &Appliance, text: &str) -> String {
    let file = shipote.path("pipeline.toml");
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

/// A started appliance with the two examples.
fn appliance() -> Appliance {
    let shipote = Appliance::start();
    for name in ["upper.wat", "redact.wat"] {
        shipote.ok(&["plugin", "add", &example(name)]);
    }
    shipote
}

#[test]
fn a_command_component_runs_like_a_program() {
    let shipote = appliance();
    let list = shipote.json(&["plugin", "ls", "--json"]);
    let kinds: Vec<_> = list["plugins"].as_array().unwrap().iter().map(|p| p["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["filter", "command"]);
    // more than a pipe holds, and more than one piece
    let input = "all of it, and once more\n".repeat(10_000);
    let output = shipote.fed(&["run", "--wasm", "upper@^1"], input.as_bytes());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), input.to_uppercase());
    // who reads no more ends it, as a program
    let output = shipote.run(&["pipeline", "run", &spec(&shipote, ENDLESS)]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "Y\n".to_owned()), "{}", text(&output.stderr));
}

const ENDLESS: &str = r#"
label = "endless"
[[nodes]]
label = "yes"
command = ["yes"]
[[nodes]]
label = "upper"
wasm = "upper"
[[nodes]]
label = "head"
command = ["head", "-n1"]
[[edges]]
from = "yes"
to = "upper"
[[edges]]
from = "upper"
to = "head"
"#;

#[test]
fn a_component_ends_as_it_says_and_what_is_wrong_is_said() {
    let shipote = appliance();
    simple(&shipote, "good", "(i32.const 0)");
    simple(&shipote, "bad", "(i32.const 1)");
    simple(&shipote, "traps", "unreachable");
    simple(&shipote, "spins", "(loop $l (br $l)) (i32.const 0)");
    // 1,000 pages are more than the 32 MiB that it has by default: -1, not an end
    let core = "(core module $m (memory 1) (func (export \"run\") (result i32)
        (i32.ne (memory.grow (i32.const 1000)) (i32.const -1))))
        (core instance $main (instantiate $m))";
    assert!(add(&shipote, "greedy", "", core).status.success());
    shipote.ok(&["plugin", "add", &example("stamp.wat")]);
    for (words, status, says) in [
        (&["good"][..], 0, ""),
        (&["greedy"], 0, ""),
        (&["bad"], 1, ""),
        (&["traps"], 134, "run traps: it trapped"),
        (&["spins", "--timeout", "0.2"], 124, "ended after 0.2 s"),
        (&["nothing"], 127, "nothing"),
        (&["good@^2"], 127, "good@^2"),
        (&["stamp"], 126, "is a plugin component, not a command"),
        (&["redact"], 126, "is a filter component, not a command"),
        (&["good", "--dir", "work"], 125, "no absolute path"),
        (&["good", "--dir", "/missing"], 125, "give it folder /missing"),
    ] {
        let output = shipote.run(&[&["run", "--wasm"], words].concat());
        assert_eq!(output.status.code(), Some(status), "{words:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(says), "{words:?}: {}", text(&output.stderr));
    }
}

/// Whether it was given folders: 0 none, 1 some.
const FOLDERS: (&str, &str) = (
    r#"(import "wasi:filesystem/types@0.2.0" (instance $types (export "descriptor" (type (sub resource)))))
       (alias export $types "descriptor" (type $descriptor))
       (import "wasi:filesystem/preopens@0.2.0" (instance $preopens
         (alias outer 1 $descriptor (type $d))
         (export "descriptor" (type $descriptor (eq $d)))
         (export "get-directories" (func (result (list (tuple (own $descriptor) string)))))))"#,
    r#"(core module $memory-module
         (memory (export "memory") 1)
         (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
       (core instance $memory (instantiate $memory-module))
       (core func $get (canon lower (func $preopens "get-directories")
         (memory $memory "memory") (realloc (func $memory "realloc"))))
       (core module $m
         (import "memory" "memory" (memory 1))
         (import "wasi" "get" (func $get (param i32)))
         (func (export "run") (result i32)
           (call $get (i32.const 0))
           (i32.ne (i32.load (i32.const 4)) (i32.const 0))))
       (core instance $main (instantiate $m
         (with "memory" (instance $memory)) (with "wasi" (instance (export "get" (func $get))))))"#,
);

#[test]
fn a_component_has_no_file_unless_it_is_given_a_folder() {
    let shipote = Appliance::start();
    let added = add(&shipote, "folders", FOLDERS.0, FOLDERS.1);
    assert!(added.status.success(), "{}", text(&added.stderr));
    assert_eq!(shipote.run(&["run", "--wasm", "folders"]).status.code(), Some(0));
    assert_eq!(shipote.run(&["run", "--wasm", "folders", "--dir", "/work"]).status.code(), Some(1));
    // and what a command may not even import is refused when it is added
    let refused = add(&shipote, "http", "(import \"wasi:http/types@0.2.0\" (instance))", SIMPLE_CORE);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("a command may import wasi:cli"), "{}", text(&refused.stderr));
}

const SIMPLE_CORE: &str =
    "(core module $m (func (export \"run\") (result i32) (i32.const 0))) (core instance $main (instantiate $m))";

const MIXED: &str = r#"
label = "mixed"
[[nodes]]
label = "records"
command = ["sh", "-c", "printf 'call 555-1234 now\n'"]
[[nodes]]
label = "upper"
wasm = "upper@^1"
[[nodes]]
label = "out"
command = ["cat"]
[[edges]]
from = "records"
to = "upper"
[[edges]]
from = "upper"
to = "out"
filter = "redact"
"#;

#[test]
fn programs_components_and_filters_make_one_pipeline_and_every_edge_is_tapped() {
    let shipote = appliance();
    let file = spec(&shipote, MIXED);
    let output = shipote.run(&["pipeline", "run", &file]);
    assert_eq!(text(&output.stdout), "CALL ###-#### NOW\n", "{}", text(&output.stderr));
    let output = shipote.run(&["pipeline", "run", "--tap", "--json", &file]);
    let ended: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    let edges = ended["edges"].as_array().unwrap();
    assert_eq!(edges.len(), 3, "one more than written: the filter has an edge in and one out\n{ended}");
    assert!(edges.iter().all(|edge| edge["bytes_total"] == 18 && edge["ty"] != ""), "{ended}");
}

#[test]
fn a_component_goes_on_while_the_service_that_started_it_is_killed() {
    let shipote = appliance();
    shipote.ok(&["workspace", "create", "w"]);
    let mut run = shipote
        .shipote(&["run", "-w", "w", "--wasm", "upper"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it runs", || shipote.ok(&["ps", "--json"]).contains("running"));
    for name in ["workspaces", "plugins"] {
        let before = shipote.service(name);
        rustix::process::kill_process(before, rustix::process::Signal::KILL).unwrap();
        eventually("it is back", || shipote.service(name) != before && shipote.run(&["health"]).status.success());
    }
    std::io::Write::write_all(run.stdin.as_mut().unwrap(), b"still here").unwrap();
    drop(run.stdin.take());
    let output = run.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "STILL HERE".to_owned()));
}

#[test]
fn the_socket_runs_a_component_by_its_digest() {
    let shipote = appliance();
    simple(&shipote, "bad", "(i32.const 1)");
    let list = shipote.json(&["plugin", "ls", "--json"]);
    let bad = list["plugins"].as_array().unwrap().iter().find(|p| p["name"] == "bad").unwrap();
    let hex = bad["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let byte = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap();
    let mut client = Client::connect(&shipote);
    let created =
        client.ask(&Request::WorkspaceCreate { spec: WorkspaceSpec { label: "w".into(), ..WorkspaceSpec::default() } });
    let Response::WorkspaceCreated { id: workspace, .. } = created else { panic!("{created:?}") };
    let node = CommandRef {
        label: "bad".into(),
        payload: Payload::Wasm { module_sha256: std::array::from_fn(byte), entry: "run".into() },
        soma: Default::default(),
        flows: Flows::default(),
        supervision: Supervision::OneShot,
    };
    let spec = PipelineSpec {
        label: "p".into(),
        workspace,
        nodes: vec![node],
        edges: vec![],
        discern: Default::default(),
        restart_on_failure: false,
        restart_backoff_ms: 200,
        restart_max_backoff_ms: 30_000,
        restart_max: 0,
    };
    let started = client.ask(&Request::PipelineRun { spec, tap: false, vars: Default::default() });
    assert!(matches!(started, Response::PipelineStarted { .. }), "{started:?}");
    let mut status = None;
    eventually("it has ended", || {
        let Response::CommandList { items } = client.ask(&Request::CommandList { workspace }) else { panic!() };
        status = items[0].exit_status;
        status.is_some()
    });
    assert_eq!(status, Some(1));
}

const IN_A_MACHINE: &str = r#"
label = "in-a-machine"
[[nodes]]
label = "records"
command = ["sh", "-c", "printf 'b\na\n'"]
[[nodes]]
label = "sort"
machine = "m"
command = ["sh", "-c", "sort; uname -n >&2; exit ${STATUS}"]
[[nodes]]
label = "upper"
wasm = "upper"
[[edges]]
from = "records"
to = "sort"
[[edges]]
from = "sort"
to = "upper"
"#;

#[test]
fn a_command_in_a_machine_is_a_node_with_its_status() {
    let shipote = Appliance::start_in(&image());
    shipote.ok(&["plugin", "add", &example("upper.wat")]);
    shipote.ok(&["machine", "create", "m"]);
    shipote.ok(&["machine", "start", "m"]);
    let file = spec(&shipote, IN_A_MACHINE);
    for status in [0, 3] {
        let output = shipote.run(&["pipeline", "run", "--tap", "--var", &format!("STATUS={status}"), &file]);
        assert!(text(&output.stdout).starts_with("A\nB\n"), "{}\n{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
    }
    // a reader that has had enough ends the command in the machine, and the pipeline is good
    let endless = "label='e'\n[[nodes]]\nlabel='yes'\nmachine='m'\ncommand=['yes']\n\
        [[nodes]]\nlabel='head'\ncommand=['head','-n1']\n[[edges]]\nfrom='yes'\nto='head'\n";
    let output = shipote.run(&["pipeline", "run", &spec(&shipote, endless)]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "y\n".to_owned()), "{}", text(&output.stderr));
    let left = || shipote.run(&["machine", "exec", "m", "--", "sh", "-c", "ps | grep -v grep | grep -cw yes"]);
    eventually("nothing of it is left in the machine", || text(&left().stdout).trim() == "0");
    let output = shipote.run(&["pipeline", "run", &spec(&shipote, &endless.replace("'m'", "'n'"))]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("\"n\"") || text(&output.stderr).contains(" n"), "{}", text(&output.stderr));
    shipote.ok(&["machine", "stop", "m"]);
}

#[test]
fn the_example_of_the_documentation_runs_as_it_stands() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pipelines.md");
    let page = std::fs::read_to_string(page).unwrap();
    let written = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert!(["wasm =", "machine =", "filter ="].iter().all(|key| written.contains(key)), "{written}");
    let commands = page.split("```console\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let shipote = Appliance::start_in(&image());
    let file = spec(&shipote, written);
    let mut output = None;
    for command in commands.lines().flat_map(|line| line.trim_start_matches("$ ").split(" && ")) {
        let example_of = |word: &str| word.strip_prefix("wit/examples/").map(example);
        let words: Vec<String> = command.split_ascii_whitespace().skip(1).map(str::to_owned).collect();
        let words: Vec<String> = words.into_iter().map(|word| example_of(&word).unwrap_or(word)).collect();
        let words: Vec<&str> =
            words.iter().map(|word| if word == "mixed.toml" { &file } else { word.as_str() }).collect();
        let done = shipote.run(&words);
        assert!(done.status.success(), "{command}: {}", text(&done.stderr));
        output = Some(done.stdout);
    }
    let licence = std::fs::read_to_string("/usr/share/common-licenses/GPL-3").unwrap();
    let mut lines: Vec<&str> = licence.lines().collect();
    lines.sort_unstable();
    let whole = lines.join("\n").to_ascii_uppercase() + "\n";
    let wanted = whole.replace(|c: char| c.is_ascii_digit(), "#");
    assert_eq!(text(&output.unwrap()), wanted);
    shipote.ok(&["machine", "stop", "m"]);
}
