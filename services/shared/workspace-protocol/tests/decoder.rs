//! Bytes from anybody: never a panic, never a message with something behind it.

#![allow(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

use proptest::prelude::*;
use shipote_workspace_protocol::spec::{
    CommandRef, FlowEdge, Flows, NamespaceSet, Payload, PipelineSpec, Supervision, WorkspaceId, WorkspaceSpec,
};
use shipote_workspace_protocol::*;
use ulid::Ulid;

/// A field, and what makes it one that cannot be honoured.
type Refusal<T> = (&'static str, fn(&mut T));

fn specs() -> impl Strategy<Value = PipelineSpec> {
    let node = (any::<String>(), any::<String>(), prop::collection::vec(any::<String>(), 0..4)).prop_map(
        |(label, exec, argv)| CommandRef {
            label,
            payload: Payload::Native { exec, argv, envp: vec![] },
            soma: Default::default(),
            flows: Flows::default(),
            supervision: Supervision::OneShot,
        },
    );
    let edge = (0..5usize, any::<String>(), 0..5usize, any::<String>())
        .prop_map(|(from, from_output, to, to_input)| FlowEdge { from, from_output, to, to_input });
    let (nodes, edges) = (prop::collection::vec(node, 0..4), prop::collection::vec(edge, 0..4));
    (any::<String>(), any::<[u8; 16]>(), nodes, edges, any::<u64>()).prop_map(|(label, id, nodes, edges, rate)| {
        let mut spec = PipelineSpec {
            label,
            workspace: WorkspaceId(Ulid::from_bytes(id)),
            nodes,
            edges,
            discern: Default::default(),
            restart_on_failure: false,
            restart_backoff_ms: 200,
            restart_max_backoff_ms: 30_000,
            restart_max: 0,
        };
        spec.discern.max_bytes_per_sec = rate;
        spec
    })
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = decode::<Request>(&bytes) {
            prop_assert_eq!(decode::<Request>(&encode(&request).unwrap()).unwrap(), request);
        }
        let _ = decode::<Response>(&bytes);
    }

    #[test]
    fn what_begins_like_a_message_is_one_or_an_error(first in 0..24u8, rest in prop::collection::vec(any::<u8>(), 0..100)) {
        let bytes: Vec<u8> = std::iter::once(first).chain(rest).collect();
        let _ = decode::<Request>(&bytes);
        let _ = decode::<Response>(&bytes);
    }

    #[test]
    fn a_message_comes_back_and_nothing_may_follow_or_lack(spec in specs(), tap: bool, more in 1..9usize) {
        let request = Request::PipelineRun { spec, tap, vars: Default::default() };
        let mut bytes = encode(&request).unwrap();
        prop_assert_eq!(&decode::<Request>(&bytes).unwrap(), &request);
        prop_assert!(decode::<Request>(&bytes[..bytes.len() - 1]).is_err());
        bytes.resize(bytes.len() + more, 0);
        prop_assert_eq!(decode::<Request>(&bytes), Err(ProtocolError::LeftOver(more)));
    }

    #[test]
    fn no_pipeline_panics_in_conversion(spec in specs()) {
        let _ = convert::pipeline(&spec, &Default::default());
    }
}

#[test]
fn a_length_that_is_not_there_is_not_believed() {
    // a sample of 2^63 bytes, of which none comes
    let bytes = [7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(decode::<Request>(&bytes).is_err());
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    use shipote_workspace_protocol::spec::{ExitPolicy, Networking, QuotaAction};
    let refusals: Vec<Refusal<WorkspaceSpec>> = vec![
        ("label", |s| s.label.clear()),
        ("soma.cgroup.path", |s| s.soma.cgroup.path = "../x".into()),
        ("soma.cgroup.cpu_weight", |s| s.soma.cgroup.cpu_weight = Some(0)),
        ("soma.cgroup.io_weight", |s| s.soma.cgroup.io_weight = Some(10_001)),
        ("soma.cpu_affinity", |s| s.soma.cpu_affinity = Some(vec![])),
        ("permissions.ipc.allow[0]", |s| s.permissions.ipc.allow = vec!["x".into()]),
        ("ttl", |s| s.ttl = Some(0)),
    ];
    let plain = WorkspaceSpec { label: "w".into(), ..WorkspaceSpec::default() };
    assert!(convert::workspace(plain.clone()).is_ok());
    let mut isolated = plain.clone();
    isolated.soma.namespaces =
        NamespaceSet { mount: true, pid: true, net: true, uts: true, ipc: true, user: true, cgroup: true };
    isolated.permissions.networking = Networking::Loopback;
    isolated.soma.rlimits.nofile = Some(64);
    assert_eq!(convert::workspace(isolated).unwrap().soma.rlimits.nofile, Some(64));
    let mut limited = plain.clone();
    limited.soma.cgroup.cpu_weight = Some(50);
    limited.quota_enforce.mem = QuotaAction::Kill;
    limited.on_exit = ExitPolicy::Snapshot;
    limited.quota_enforce.nproc = QuotaAction::Log;
    let limited = convert::workspace(limited).unwrap();
    assert_eq!(limited.soma.cgroup.cpu_weight, Some(50));
    let want = shipote_bus::spec::QuotaEnforcement {
        mem: shipote_bus::spec::QuotaAction::Kill,
        nproc: shipote_bus::spec::QuotaAction::Log,
    };
    assert_eq!(limited.quota_enforce, want);
    for (field, change) in refusals {
        let mut spec = plain.clone();
        change(&mut spec);
        assert_eq!(convert::workspace(spec).unwrap_err().field, field);
    }
}

#[test]
fn nodes_and_edges_that_cannot_be_honoured_are_refused_by_name() {
    use shipote_workspace_protocol::spec::{Flow, TypeRef};
    fn flow(name: &str) -> Flow {
        Flow { name: name.into(), ty: TypeRef::Primitive { name: "text".into() }, pin_to: None }
    }
    let node = |label: &str| CommandRef {
        label: label.into(),
        payload: Payload::Native { exec: "${P}".into(), argv: vec![], envp: vec![] },
        soma: Default::default(),
        flows: Flows::default(),
        supervision: Supervision::OneShot,
    };
    let edge = |from, to| FlowEdge { from, from_output: "stdout".into(), to, to_input: "stdin".into() };
    let plain = PipelineSpec {
        label: "p".into(),
        workspace: WorkspaceId(Ulid::default()),
        nodes: vec![node("a"), node("b")],
        edges: vec![edge(0, 1)],
        discern: Default::default(),
        restart_on_failure: false,
        restart_backoff_ms: 200,
        restart_max_backoff_ms: 30_000,
        restart_max: 0,
    };
    let vars = [("P".to_owned(), "${P}x".to_owned())].into();
    assert_eq!(convert::pipeline(&plain, &vars).unwrap().nodes[0].command.exec, "${P}x");
    let refusals: Vec<Refusal<PipelineSpec>> = vec![
        ("nodes[0].payload", |s| s.nodes[0].payload = Payload::Virtual),
        ("nodes[0].payload.entry", |s| {
            s.nodes[0].payload = Payload::Wasm { module_sha256: [0; 32], entry: "e".into() };
        }),
        ("nodes[0].payload", |s| {
            s.nodes[0].payload = Payload::Legacy { exec: "e".into(), argv: vec![], fakes: Default::default() };
        }),
        ("nodes[1].supervision", |s| s.nodes[1].supervision = Supervision::Delegate),
        ("nodes[0].soma.rlimits.nproc", |s| s.nodes[0].soma.rlimits.nproc = Some(0)),
        ("nodes[0].soma.cgroup.path", |s| s.nodes[0].soma.cgroup.path = "x".into()),
        ("nodes[0].soma.cpu_affinity", |s| s.nodes[0].soma.cpu_affinity = Some(vec![])),
        ("nodes[0].flows.output", |s| s.nodes[0].flows.output = vec![flow("a"); 10]),
        ("nodes[0].outputs[0]", |s| {
            s.nodes[0].flows.output = vec![flow("a"), flow("b/c")];
            s.edges[0].from_output = "a".into();
        }),
        ("nodes[0].flows.input[0].pin_to", |s| {
            s.nodes[0].flows.input = vec![Flow { pin_to: Some("x".into()), ..flow("a") }];
        }),
        ("edges[0].from_output", |s| s.edges[0].from_output = "nothing".into()),
        ("edges[0].to_input", |s| s.edges[0].to_input = "stdout".into()),
        ("edges[0].to", |s| s.edges[0].to = 2),
        ("edges", |s| s.edges.push(FlowEdge { from: 1, to: 0, ..s.edges[0].clone() })),
    ];
    for (field, change) in refusals {
        let mut spec = plain.clone();
        change(&mut spec);
        let refused = convert::pipeline(&spec, &vars).unwrap_err();
        assert_eq!(refused.field, field, "{refused}");
    }
    let mut declared = plain;
    declared.nodes[0].flows.output = vec![flow("rows")];
    assert!(convert::pipeline(&declared, &vars).unwrap_err().to_string().contains("it has rows and stderr"));
    declared.edges[0].from_output = "rows".into();
    assert_eq!(convert::pipeline(&declared, &vars).unwrap().edges[0].from_output, "stdout");
    declared.nodes[0].flows.output.push(flow("errors"));
    declared.nodes[1].flows.input = vec![flow("first"), flow("second")];
    (declared.edges[0].from_output, declared.edges[0].to_input) = ("errors".into(), "second".into());
    let further = convert::pipeline(&declared, &vars).unwrap();
    assert_eq!((&*further.edges[0].from_output, &*further.edges[0].to_input), ("errors", "second"));
    assert_eq!(further.nodes[1].further.inputs, ["second"]);
    let shown = convert::declared_type(&declared.nodes[0], "errors", &vars);
    assert_eq!(shown.as_deref(), Some("Primitive { name: \"text\" }"));
}
