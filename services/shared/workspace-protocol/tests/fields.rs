//! Every field that a client of the socket can write is read, or refused with a reason: none is ignored in silence.
//!
//! The fields are found by walking the types as they are written out; one that is new, or gone, has to be in the tables.

#![allow(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde_json::{Value, json};
use shipote_bus::spec::SpecError;
use shipote_workspace_protocol::convert;
use shipote_workspace_protocol::spec::{PipelineSpec, WorkspaceSpec};

/// What comes of another value of a field.
enum Comes {
    /// What the services work with is another.
    Changes,
    /// It is refused by this field's name.
    Refused(&'static str),
    /// Nothing, and that is right.
    Nothing(&'static str),
}
use Comes::{Changes, Nothing, Refused};

/// Paths of all that has no further fields, in what was written out.
fn fields(value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(all) if !all.is_empty() => {
            all.iter().for_each(|(key, value)| fields(value, &format!("{path}/{key}"), out));
        }
        Value::Array(all) if all.first().is_some_and(Value::is_object) => {
            all.iter().enumerate().for_each(|(at, value)| fields(value, &format!("{path}/{at}"), out));
        }
        _ => out.push(path.to_owned()),
    }
}

fn walk<T: PartialEq + Debug>(
    plain: &Value,
    table: &[(&str, Value, Comes)],
    made: impl Fn(&Value) -> Result<T, SpecError>,
) {
    let mut all = Vec::new();
    fields(plain, "", &mut all);
    let mut known: Vec<&str> = table.iter().map(|(path, ..)| *path).collect();
    all.sort();
    known.sort_unstable();
    assert_eq!(all, known, "each field is in the table, and nothing else");
    let before = made(plain).unwrap();
    for (path, other, comes) in table {
        let mut changed = plain.clone();
        *changed.pointer_mut(path).unwrap() = other.clone();
        assert_ne!(&changed, plain, "{path}: the other value is none");
        match (made(&changed), comes) {
            (Ok(after), Changes) => assert_ne!(after, before, "{path} is ignored"),
            (Ok(after), Nothing(why)) => assert_eq!(after, before, "{path}: {why}"),
            (Err(refused), Refused(field)) => {
                assert_eq!(refused.field, *field, "{refused}");
                assert!(!refused.problem.is_empty());
            }
            (Ok(_), Refused(_)) => panic!("{path} is taken"),
            (Err(refused), _) => panic!("{path}: {refused}"),
        }
    }
}

/// The rows of a `SomaSpec` at `at`, which the conversion calls `field`.
fn soma(at: &'static str, path_field: &'static str) -> Vec<(&'static str, Value, Comes)> {
    let mut rows = vec![
        ("rlimits/mem_bytes", json!(1 << 20), Changes),
        ("rlimits/nproc", json!(7), Changes),
        ("rlimits/nofile", json!(8), Changes),
        ("cgroup/path", json!("own"), Refused(path_field)),
        ("cgroup/cpu_weight", json!(9), Changes),
        ("cgroup/io_weight", json!(10), Changes),
        ("cpu_affinity", json!([1]), Changes),
    ];
    for namespace in ["mount", "pid", "net", "uts", "ipc", "user", "cgroup"] {
        let name: &'static str = format!("namespaces/{namespace}").leak();
        rows.push((name, json!(true), Nothing("a workspace always has all of them")));
    }
    rows.into_iter().map(|(name, value, comes)| (&*format!("{at}/{name}").leak(), value, comes)).collect()
}

#[test]
fn every_field_of_a_workspace_is_read_or_refused() {
    let spec = WorkspaceSpec { label: "w".into(), ..WorkspaceSpec::default() };
    let mut plain = serde_json::to_value(spec).unwrap();
    plain["flow_dirs"] = json!([{"name": "in", "direction": "input", "scope": "workspace"}]);
    let mut table = soma("/soma", "soma.cgroup.path");
    table.extend([
        ("/label", json!("other"), Changes),
        ("/permissions/networking", json!("loopback"), Changes),
        ("/permissions/filesystem", json!("read-only"), Changes),
        ("/permissions/ipc/allow", json!(["/run/x"]), Changes),
        ("/permissions/processes", json!(true), Changes),
        ("/ttl", json!(1000), Changes),
        ("/flow_dirs/0/name", json!("other"), Changes),
        ("/flow_dirs/0/direction", json!("output"), Changes),
        ("/flow_dirs/0/scope", json!("public"), Changes),
        ("/on_exit", json!("keep"), Changes),
        ("/quota_enforce/mem", json!("kill"), Changes),
        ("/quota_enforce/nproc", json!("log"), Changes),
    ]);
    walk(&plain, &table, |value| convert::workspace(serde_json::from_value(value.clone()).unwrap()));
}

#[test]
fn every_field_of_a_pipeline_is_read_or_refused() {
    let soma_of = |spec: WorkspaceSpec| serde_json::to_value(spec.soma).unwrap();
    let flow = |name: &str| json!({"name": name, "type": {"primitive": {"name": "json"}}, "pin_to": null});
    let node = |label: &str| {
        json!({
            "label": label,
            "payload": {"native": {"exec": "cat", "argv": ["a"], "envp": [["A", "b"]]}},
            "soma": soma_of(WorkspaceSpec::default()),
            "flows": {"input": [flow("in")], "output": [flow("out")]},
            "supervision": "oneshot",
        })
    };
    let plain = json!({
        "label": "p",
        "workspace": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "nodes": [node("a"), node("b"), node("c")],
        "edges": [{"from": 0, "from_output": "out", "to": 1, "to_input": "in"}],
        "discern": {
            "sample_bytes": 4096, "enrich_producer": true, "replay_chunks": 32, "replay_bytes": 0, "max_bytes_per_sec": 0,
        },
        "restart_on_failure": true,
        "restart_backoff_ms": 200,
        "restart_max_backoff_ms": 30_000,
        "restart_max": 0,
    });
    let answer = "it is told in the answer, see `convert::declared_type`";
    let mut table = vec![
        ("/label", json!("other"), Changes),
        (
            "/workspace",
            json!("01ARZ3NDEKTSV4RRFFQ69G5FAW"),
            Nothing("the door finds the workspace, and who may use it"),
        ),
        ("/edges/0/from", json!(2), Changes),
        ("/edges/0/from_output", json!("stderr"), Changes),
        ("/edges/0/to", json!(2), Changes),
        ("/edges/0/to_input", json!("stdin"), Refused("edges[0].to_input")),
        ("/discern/sample_bytes", json!(1), Changes),
        ("/discern/enrich_producer", json!(false), Nothing(answer)),
        ("/discern/replay_chunks", json!(1), Changes),
        ("/discern/replay_bytes", json!(1), Changes),
        ("/discern/max_bytes_per_sec", json!(1), Changes),
        ("/restart_on_failure", json!(false), Changes),
        ("/restart_backoff_ms", json!(300), Changes),
        ("/restart_max_backoff_ms", json!(31_000), Changes),
        ("/restart_max", json!(1), Changes),
    ];
    for at in 0..3 {
        let name = |name: &str| -> &'static str { format!("/nodes/{at}/{name}").leak() };
        let field = |name: &str| -> &'static str { format!("nodes[{at}].{name}").leak() };
        table.extend(soma(name("soma"), field("soma.cgroup.path")));
        // the edge leads from the first to the second
        let named = |end: usize, edge| if at == end { Refused(edge) } else { Nothing("no edge names it") };
        table.extend([
            (name("label"), json!("z"), Changes),
            (name("payload/native/exec"), json!("wc"), Changes),
            (name("payload/native/argv"), json!([]), Changes),
            (name("payload/native/envp"), json!([]), Changes),
            (name("flows/input/0/name"), json!("z"), named(1, "edges[0].to_input")),
            (name("flows/output/0/name"), json!("z"), named(0, "edges[0].from_output")),
            (name("flows/input/0/type/primitive/name"), json!("text"), Nothing("an input's type changes nothing")),
            (name("flows/output/0/type/primitive/name"), json!("text"), Nothing(answer)),
            (name("flows/input/0/pin_to"), json!("x"), Refused(field("flows.input[0].pin_to"))),
            (name("flows/output/0/pin_to"), json!("x"), Refused(field("flows.output[0].pin_to"))),
            (name("supervision"), json!({"restart": {"initial": 1, "max": 2}}), Changes),
        ]);
    }
    let made = |value: &Value| {
        let spec: PipelineSpec = serde_json::from_value(value.clone()).unwrap();
        convert::pipeline(&spec, &BTreeMap::new())
    };
    walk(&plain, &table, made);
    // the other forms of what a node may be
    let digest = [7; 32];
    for (path, other, refused) in [
        ("/nodes/0/payload", json!("virtual"), Some("nodes[0].payload")),
        ("/nodes/0/payload", json!({"legacy": {"exec": "a", "argv": [], "fakes": []}}), Some("nodes[0].payload")),
        ("/nodes/0/payload", json!({"wasm": {"module_sha256": digest, "entry": "x"}}), Some("nodes[0].payload.entry")),
        ("/nodes/0/payload", json!({"wasm": {"module_sha256": digest, "entry": "run"}}), None),
        ("/nodes/0/supervision", json!("delegate"), Some("nodes[0].supervision")),
    ] {
        let mut changed = plain.clone();
        *changed.pointer_mut(path).unwrap() = other.clone();
        match (made(&changed), refused) {
            (Ok(after), None) => assert_ne!(after, made(&plain).unwrap(), "{other} is ignored"),
            (Err(error), Some(field)) => assert_eq!(error.field, field),
            (made, _) => panic!("{other}: {made:?}"),
        }
    }
    // both figures of a node's restart
    let mut supervised = plain.clone();
    for (initial, max) in [(1, 2), (1, 3), (2, 3)] {
        supervised["nodes"][0]["supervision"] = json!({"restart": {"initial": initial, "max": max}});
        let policy = made(&supervised).unwrap().nodes[0].restart.unwrap();
        assert_eq!((policy.initial_ms, policy.max_ms), (initial, max));
    }
}
