//! Bytes that clients built elsewhere send and expect: each of these is the protocol.

#![allow(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use shipote_workspace_protocol::spec::{
    CommandRef, ExitPolicy, Filesystem, FlowDirection, FlowEdge, FlowScope, FlowSlot, Flows, Networking, Payload,
    PipelineSpec, QuotaAction, Supervision, WorkspaceId, WorkspaceSpec,
};
use shipote_workspace_protocol::*;
use ulid::Ulid;

const U: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

fn ulid() -> Ulid {
    Ulid::from_string(U).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    let text = text.replace('U', &format!("1a{}", U.bytes().map(|b| format!("{b:02x}")).collect::<String>()));
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn pipeline() -> PipelineSpec {
    PipelineSpec {
        label: "p".into(),
        workspace: WorkspaceId(ulid()),
        nodes: vec![CommandRef {
            label: "n".into(),
            payload: Payload::Native { exec: "a".into(), argv: vec!["b".into()], envp: vec![("c".into(), "d".into())] },
            soma: Default::default(),
            flows: Flows::default(),
            supervision: Supervision::OneShot,
        }],
        edges: vec![FlowEdge { from: 0, from_output: "o".into(), to: 300, to_input: "i".into() }],
        discern: Default::default(),
        restart_on_failure: true,
        restart_backoff_ms: 200,
        restart_max_backoff_ms: 30_000,
        restart_max: 3,
    }
}

/// label, workspace, one node (label, native, a b c=d, soma of 14 zeros, no flows, one-shot), one edge, policy, restarts
const PIPELINE: &str = "0170 U 01 016e 01 0161 01 0162 01 0163 0164 0000000000000000000000000000 0000 01 \
    01 00 016f ac02 0169  8020 01 20 00 00  01 c801 b0ea01 03";

#[test]
fn requests() {
    let id = WorkspaceId(ulid());
    let full = WorkspaceSpec {
        label: "w".into(),
        ttl: Some(1),
        flow_dirs: vec![FlowSlot { name: "f".into(), direction: FlowDirection::Output, scope: FlowScope::Public }],
        on_exit: ExitPolicy::Snapshot,
        ..WorkspaceSpec::default()
    };
    let mut rich = full.clone();
    rich.soma.namespaces.pid = true;
    rich.soma.rlimits.mem_bytes = Some(1 << 30);
    rich.soma.cgroup.path = "x".into();
    rich.soma.cgroup.cpu_weight = Some(100);
    rich.soma.cpu_affinity = Some(vec![0, 2]);
    rich.permissions.networking = Networking::Full;
    rich.permissions.filesystem = Filesystem::ReadWrite;
    rich.permissions.ipc.allow = vec!["d".into()];
    rich.permissions.processes = true;
    rich.quota_enforce.mem = QuotaAction::Kill;
    rich.quota_enforce.nproc = QuotaAction::Log;
    let vars = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let name = || "s".to_owned();
    let table: Vec<(Request, String)> = vec![
        (Request::Ping, "00".into()),
        (Request::Health, "01".into()),
        (
            Request::WorkspaceCreate { spec: WorkspaceSpec { label: "demo".into(), ..WorkspaceSpec::default() } },
            format!("020464656d6f{}", "00".repeat(23)),
        ),
        (
            Request::WorkspaceCreate { spec: rich },
            "02 0177 00010000000000 01 8080808004 00 00 0178 0164 00 01 02 00 02  03 02 01 0164 01  01 01  01 0166 01 01  02  02 01".into(),
        ),
        (Request::WorkspaceList, "03".into()),
        (Request::WorkspaceStop { id, grace_ms: 1000 }, "04 U e807".into()),
        (
            Request::Run {
                workspace: id,
                exec: "e".into(),
                argv: vec!["a".into()],
                envp: vec![("k".into(), "v".into())],
                restart_on_failure: true,
            },
            "05 U 0165 01 0161 01 016b 0176 01".into(),
        ),
        (
            Request::PipelineRun { spec: pipeline(), tap: true, vars: vars.clone() },
            format!("06 {PIPELINE} 01 01 016b 0176"),
        ),
        (Request::Discern { sample: b"{}".to_vec(), hint_path: Some("/a".into()) }, "07027b7d01022f61".into()),
        (Request::Capabilities, "08".into()),
        (Request::CommandList { workspace: id }, "09 U".into()),
        (
            Request::CommandLogs { workspace: id, command: ulid(), tail_bytes: 128, stream: "both".into() },
            "0a U U 8001 04626f7468".into(),
        ),
        (Request::PipelineSave { name: name(), spec: pipeline() }, format!("0b 0173 {PIPELINE}")),
        (Request::PipelineSavedList, "0c".into()),
        (Request::PipelineDrop { name: name() }, "0d 0173".into()),
        (Request::PipelineRunSaved { name: name(), tap: false, vars }, "0e 0173 00 01 016b 0176".into()),
        (Request::WorkspaceStats { workspace: id }, "0f U".into()),
        (Request::WorkspaceQuota { workspace: id }, "10 U".into()),
        (Request::WorkspaceStatsHistory { workspace: id, tail: 64 }, "11 U 40".into()),
        (Request::WorkspaceFullSummary { workspace: id }, "12 U".into()),
        (Request::PipelineStop { pipeline: ulid(), grace_ms: 0 }, "13 U 00".into()),
        (Request::FlowList, "14".into()),
        (Request::FlowThroughput, "15".into()),
        (Request::FlowDrop { pipeline: ulid() }, "16 U".into()),
    ];
    for (request, want) in table {
        assert_eq!(encode(&request).unwrap(), hex(&want), "{request:?}");
        assert_eq!(decode::<Request>(&hex(&want)).unwrap(), request);
    }
}

#[test]
fn responses() {
    let id = WorkspaceId(ulid());
    let stats = WorkspaceStatsInfo {
        commands_alive: 1,
        commands_total: 2,
        rss_bytes: Some(3),
        rss_peak_bytes: None,
        cpu_usec: Some(4),
        cpu_percent: Some(1.0),
        cpu_cores: 5,
        source: "proc".into(),
        uptime_ms: 6,
    };
    const STATS: &str = "01 02 01 03 00 01 04 01 0000803f 05 0470726f63 06";
    let quota = QuotaReportInfo { mem_limit: Some(7), nproc_limit: None, breaches: vec!["b".into()] };
    const QUOTA: &str = "01 07 00 01 0162";
    let command =
        CommandInfo { id: ulid(), label: "l".into(), pid: -1, alive: true, exit_status: Some(-2), log_bytes: 300 };
    const COMMAND: &str = "U 016c 01 01 01 03 ac02";
    let edge = EdgeDiscernmentInfo {
        from_label: "a".into(),
        from_output: "b".into(),
        to_label: "c".into(),
        to_input: "d".into(),
        ty: Some("t".into()),
        mime: None,
        lens: Some("l".into()),
        confidence: 0.5,
        flow_socket: Some("/s".into()),
    };
    let path = || PathBuf::from("/s");
    let table: Vec<(Response, String)> = vec![
        (Response::Pong, "00".into()),
        (
            Response::Health {
                version: "1".into(),
                uptime_ms: 128,
                alive_workspaces: 1,
                alive_commands: 2,
                alive_pipelines: 3,
                active_flows: 4,
                dirty: true,
            },
            "01 0131 8001 01 02 03 04 01".into(),
        ),
        (Response::WorkspaceCreated { id, warnings: vec!["w".into()] }, "02 U 01 0177".into()),
        (
            Response::WorkspaceList {
                items: vec![WorkspaceSummary { id, label: "l".into(), commands: 1, uptime_ms: 2 }],
            },
            "03 01 U 016c 01 02".into(),
        ),
        (Response::WorkspaceStopped { id, reaped: 1 }, "04 U 01".into()),
        (Response::RunStarted { workspace: id, command_id: ulid(), pid: 1000 }, "05 U U d00f".into()),
        (
            Response::PipelineStarted { pipeline: ulid(), command_pids: vec![("n".into(), 1)], edges: vec![edge] },
            "06 U 01 016e 02 01 0161 0162 0163 0164 01 0174 00 01 016c 0000003f 01 022f73".into(),
        ),
        (
            Response::Discernment { ty: "t".into(), confidence: 0.5, mime: Some("m".into()), lens: None },
            "07 0174 0000003f 01 016d 00".into(),
        ),
        (
            Response::Capabilities {
                kernel_version: (6, 1, 300),
                user_ns: "u".into(),
                cgroup_v2: "c".into(),
                cgroup_delegated: true,
                has_cap_sys_admin: false,
            },
            "08 06 01 ac02 0175 0163 01 00".into(),
        ),
        (Response::CommandList { items: vec![command.clone()] }, format!("09 01 {COMMAND}")),
        (Response::CommandLogs { bytes: vec![0, 255] }, "0a 02 00ff".into()),
        (Response::PipelineSaved { name: "s".into() }, "0b 0173".into()),
        (Response::PipelineSavedList { names: vec!["s".into()] }, "0c 01 0173".into()),
        (Response::PipelineDropped { name: "s".into(), existed: true }, "0d 0173 01".into()),
        (Response::PipelineStopped { pipeline: ulid(), reaped: 2 }, "0e U 02".into()),
        (Response::WorkspaceStats { info: stats.clone() }, format!("0f {STATS}")),
        (Response::WorkspaceQuota { info: quota.clone() }, format!("10 {QUOTA}")),
        (Response::WorkspaceStatsHistory { samples: vec![stats.clone()] }, format!("11 01 {STATS}")),
        (
            Response::WorkspaceFullSummary { stats, quota, commands: vec![command], flow_sockets: vec![path()] },
            format!("12 {STATS} {QUOTA} 01 {COMMAND} 01 022f73"),
        ),
        (
            Response::FlowList { items: vec![FlowInfo { pipeline: ulid(), sockets: vec![path()] }] },
            "13 01 U 01 022f73".into(),
        ),
        (
            Response::FlowThroughput {
                items: vec![FlowThroughputInfo { socket: path(), bytes_total: 1, bytes_per_sec: 1.0 }],
            },
            "14 01 022f73 01 000000000000f03f".into(),
        ),
        (Response::FlowDropped { pipeline: ulid(), existed: false }, "15 U 00".into()),
        (Response::Error { message: "m".into() }, "16 016d".into()),
    ];
    for (response, want) in table {
        assert_eq!(encode(&response).unwrap(), hex(&want), "{response:?}");
        assert_eq!(decode::<Response>(&hex(&want)).unwrap(), response);
    }
}

#[test]
fn the_other_payloads_and_supervisions() {
    use shipote_workspace_protocol::spec::{Fake, Flow, TypeRef};
    let wasm = Payload::Wasm { module_sha256: [7; 32], entry: "e".into() };
    assert_eq!(encode(&wasm).unwrap(), hex(&format!("00 {} 0165", "07".repeat(32))));
    assert_eq!(encode(&Payload::Virtual).unwrap(), [2]);
    let fakes = [Fake::SystemdNotify, Fake::SystemdLogind].into();
    let legacy = Payload::Legacy { exec: "e".into(), argv: vec![], fakes };
    assert_eq!(encode(&legacy).unwrap(), hex("03 0165 00 02 00 02"));
    assert_eq!(encode(&Supervision::Restart { initial: 1, max: 300 }).unwrap(), hex("00 01 ac02"));
    assert_eq!(encode(&Supervision::Delegate).unwrap(), [2]);
    let flow = Flow {
        name: "n".into(),
        ty: TypeRef::Wit { package: "p".into(), interface: None, name: "t".into() },
        pin_to: Some("x".into()),
    };
    assert_eq!(encode(&flow).unwrap(), hex("016e 01 0170 00 0174 01 0178"));
    assert_eq!(encode(&TypeRef::Primitive { name: "json".into() }).unwrap(), hex("00 046a736f6e"));
}

#[test]
fn in_text_all_but_labels_ids_and_payloads_has_a_default() {
    let spec: WorkspaceSpec =
        toml::from_str("label='w'\non_exit='snapshot'\n[permissions]\nfilesystem='read-only'").unwrap();
    assert_eq!((spec.on_exit, spec.permissions.filesystem), (ExitPolicy::Snapshot, Filesystem::ReadOnly));
    let text = format!("label='p'\nworkspace='{U}'\n[[nodes]]\nlabel='n'\npayload.native.exec='true'");
    let spec: PipelineSpec = toml::from_str(&text).unwrap();
    assert_eq!((spec.restart_backoff_ms, spec.restart_max_backoff_ms, spec.restart_max), (200, 30_000, 0));
    assert_eq!((spec.discern.sample_bytes, spec.discern.replay_chunks, spec.discern.enrich_producer), (4096, 32, true));
    assert_eq!(spec.nodes[0].supervision, Supervision::OneShot);
}
