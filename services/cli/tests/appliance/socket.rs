//! The workspace socket, as a client built elsewhere uses it.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use shipote_workspace_protocol::spec::{
    CommandRef, FlowEdge, Flows, Payload, PipelineSpec, Supervision, WorkspaceId, WorkspaceSpec,
};
use shipote_workspace_protocol::{FRAME_MAX, Request, Response, decode, encode};
use ulid::Ulid;

use crate::support::{Appliance, binaries, eventually, processes_with, text};

/// Far longer than anything takes: a client that waits so long has failed instead of hanging.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Client(UnixStream);

impl Client {
    pub(crate) fn connect(shipote: &Appliance) -> Self {
        let stream = UnixStream::connect(shipote.path("run/workspaces/shipote.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    fn send(&mut self, body: &[u8]) {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        self.0.write_all(&[&length, body].concat()).unwrap();
    }

    fn receive(&mut self) -> Response {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).unwrap();
        decode(&body).unwrap()
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Response {
        self.send(&encode(request).unwrap());
        self.receive()
    }

    pub(crate) fn refused(&mut self, request: &Request) -> String {
        match self.ask(request) {
            Response::Error { message } => message,
            other => panic!("{request:?} was not refused: {other:?}"),
        }
    }

    pub(crate) fn create(&mut self, label: &str) -> WorkspaceId {
        let spec = WorkspaceSpec { label: label.to_owned(), ..WorkspaceSpec::default() };
        match self.ask(&Request::WorkspaceCreate { spec }) {
            Response::WorkspaceCreated { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn run(&mut self, workspace: WorkspaceId, words: &[&str]) -> (Ulid, i32) {
        let (exec, argv) = words.split_first().unwrap();
        let argv = argv.iter().map(ToString::to_string).collect();
        let envp = vec![("GREETING".to_owned(), "a=b".to_owned())];
        let request = Request::Run { workspace, exec: exec.to_string(), argv, envp, restart_on_failure: false };
        match self.ask(&request) {
            Response::RunStarted { workspace: at, command_id, pid } => {
                assert_eq!(at, workspace);
                (command_id, pid)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Exit status of a command, once it has one.
    pub(crate) fn ended(&mut self, workspace: WorkspaceId, command: Ulid) -> i32 {
        let mut status = None;
        eventually("the command ends", || {
            let Response::CommandList { items } = self.ask(&Request::CommandList { workspace }) else { panic!() };
            let found = items.into_iter().find(|c| c.id == command).unwrap();
            assert_eq!(found.alive, found.exit_status.is_none());
            status = found.exit_status;
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn log(&mut self, workspace: WorkspaceId, command: Ulid, tail_bytes: usize, stream: &str) -> String {
        let stream = stream.to_owned();
        match self.ask(&Request::CommandLogs { workspace, command, tail_bytes, stream }) {
            Response::CommandLogs { bytes } => text(&bytes),
            other => panic!("{other:?}"),
        }
    }

    /// Whether the other side has closed, with nothing more to read.
    fn closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

pub(crate) fn pipeline(workspace: WorkspaceId, nodes: &[(&str, &[&str])]) -> PipelineSpec {
    PipelineSpec {
        label: "p".to_owned(),
        workspace,
        nodes: nodes
            .iter()
            .map(|(label, words)| CommandRef {
                label: label.to_string(),
                payload: Payload::Native {
                    exec: words[0].to_owned(),
                    argv: words[1..].iter().map(ToString::to_string).collect(),
                    envp: vec![],
                },
                soma: Default::default(),
                flows: Flows::default(),
                supervision: Supervision::OneShot,
            })
            .collect(),
        edges: (1..nodes.len())
            .map(|to| FlowEdge { from: to - 1, from_output: "stdout".into(), to, to_input: "stdin".into() })
            .collect(),
        discern: Default::default(),
        restart_on_failure: false,
        restart_backoff_ms: 200,
        restart_max_backoff_ms: 30_000,
        restart_max: 0,
    }
}

#[test]
fn a_workspace_from_its_creation_to_its_end() {
    let shipote = Appliance::start();
    let mut client = Client::connect(&shipote);
    assert_eq!(client.ask(&Request::Ping), Response::Pong);
    let workspace = client.create("demo");
    let (echo, pid) = client.run(workspace, &["sh", "-c", "echo $GREETING; echo oops >&2; exit 3"]);
    assert!(pid > 0);
    assert_eq!(client.ended(workspace, echo), 3);
    eventually("the log is whole", || client.log(workspace, echo, 0, "both").len() == 9);
    assert_eq!(client.log(workspace, echo, 0, "stdout"), "a=b\n");
    assert_eq!(client.log(workspace, echo, 3, "stderr"), "ps\n");
    let (sleep, _) = client.run(workspace, &["sleep", "4242"]);
    let Response::Health { alive_workspaces, alive_commands, dirty, .. } = client.ask(&Request::Health) else {
        panic!()
    };
    assert_eq!((alive_workspaces, alive_commands, dirty), (1, 1, false));
    let Response::WorkspaceStats { info } = client.ask(&Request::WorkspaceStats { workspace }) else { panic!() };
    assert_eq!((info.commands_alive, info.commands_total, info.source.as_str()), (1, 2, "proc"));
    assert!(info.rss_bytes.is_some_and(|bytes| bytes > 0), "{info:?}");
    let summary = client.ask(&Request::WorkspaceFullSummary { workspace });
    let Response::WorkspaceFullSummary { commands, flow_sockets, .. } = summary else { panic!("{summary:?}") };
    assert_eq!((commands.len(), flow_sockets.len()), (2, 0));
    // both doors lead to the same state
    assert!(shipote.ok(&["ps"]).contains("sleep"));
    let Response::WorkspaceStopped { id, reaped } =
        client.ask(&Request::WorkspaceStop { id: workspace, grace_ms: 1000 })
    else {
        panic!()
    };
    assert_eq!((id, reaped >= 1), (workspace, true));
    assert_eq!(client.ask(&Request::WorkspaceList), Response::WorkspaceList { items: vec![] });
    eventually("nothing is left", || {
        processes_with("4242").iter().all(|&pid| pid != 0 && !alive(pid, "sleep\u{0}4242"))
    });
    assert_eq!(client.ended(workspace, sleep), 143);
}

fn alive(pid: i32, command: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|b| text(&b).starts_with(command))
}

#[test]
fn labels_repeat_and_what_cannot_be_honoured_is_refused() {
    let shipote = Appliance::start();
    let mut client = Client::connect(&shipote);
    let (first, second) = (client.create("demo"), client.create("demo"));
    assert_ne!(first, second);
    let Response::WorkspaceList { items } = client.ask(&Request::WorkspaceList) else { panic!() };
    assert_eq!(items.iter().map(|w| (w.id, w.label.as_str())).collect::<Vec<_>>(), [(first, "demo"), (second, "demo")]);
    let listed = shipote.ok(&["workspace", "list"]);
    assert!(listed.contains("demo~2"), "{listed}");
    let mut spec = WorkspaceSpec { label: "w".to_owned(), ..WorkspaceSpec::default() };
    spec.ttl = Some(0);
    assert!(client.refused(&Request::WorkspaceCreate { spec }).contains("ttl"));
    let nowhere = WorkspaceId(Ulid::generate());
    for request in [
        Request::WorkspaceStop { id: nowhere, grace_ms: 0 },
        Request::CommandList { workspace: nowhere },
        Request::WorkspaceStats { workspace: nowhere },
        Request::WorkspaceQuota { workspace: nowhere },
        Request::PipelineStop { pipeline: nowhere.0, grace_ms: 0 },
        Request::CommandLogs { workspace: first, command: nowhere.0, tail_bytes: 0, stream: String::new() },
        Request::PipelineRunSaved { name: "no".into(), tap: false, vars: Default::default() },
    ] {
        assert!(client.refused(&request).contains("does not exist"), "{request:?}");
    }
    let missing = Request::Run {
        workspace: first,
        exec: "no-such-program".into(),
        argv: vec![],
        envp: vec![],
        restart_on_failure: false,
    };
    assert!(client.refused(&missing).contains("no such program"));
    // a workspace's command is not another's
    let (command, _) = client.run(first, &["true"]);
    let elsewhere = Request::CommandLogs { workspace: second, command, tail_bytes: 0, stream: String::new() };
    assert!(client.refused(&elsewhere).contains("does not exist"));
}

#[test]
fn a_tapped_pipeline_answers_at_once_and_says_what_flows() {
    let shipote = Appliance::start();
    let mut client = Client::connect(&shipote);
    let workspace = client.create("demo");
    let nodes: &[(&str, &[&str])] = &[("make", &["sh", "-c", "echo ${JSON}; exec sleep 4243"]), ("read", &["cat"])];
    let spec = pipeline(workspace, nodes);
    let vars: std::collections::BTreeMap<_, _> = [("JSON".to_owned(), "'{\"a\":1}'".to_owned())].into();
    let started = client.ask(&Request::PipelineRun { spec: spec.clone(), tap: true, vars: vars.clone() });
    let Response::PipelineStarted { pipeline: id, command_pids, edges } = started else { panic!("{started:?}") };
    assert_eq!(command_pids.iter().map(|(label, _)| label.as_str()).collect::<Vec<_>>(), ["make", "read"]);
    assert_eq!(edges.len(), 1);
    let edge = &edges[0];
    assert_eq!((edge.from_label.as_str(), edge.to_input.as_str()), ("make", "stdin"));
    let socket = edge.flow_socket.clone().unwrap();
    let mut subscriber = UnixStream::connect(&socket).unwrap();
    subscriber.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut replay = [0; 8];
    subscriber.read_exact(&mut replay).unwrap();
    assert_eq!(&replay, b"{\"a\":1}\n");
    let Response::FlowList { items } = client.ask(&Request::FlowList) else { panic!() };
    assert_eq!(
        items.iter().map(|flow| (flow.pipeline, flow.sockets.clone())).collect::<Vec<_>>(),
        [(id, vec![socket])]
    );
    eventually("the bytes are counted", || {
        let Response::FlowThroughput { items } = client.ask(&Request::FlowThroughput) else { panic!() };
        items[0].bytes_total == 8
    });
    let drop = Request::FlowDrop { pipeline: id };
    assert_eq!(client.ask(&drop), Response::FlowDropped { pipeline: id, existed: true });
    assert_eq!(client.ask(&drop), Response::FlowDropped { pipeline: id, existed: false });
    assert_eq!(subscriber.read(&mut replay).unwrap(), 0);
    // the data plane is closed, the pipeline goes on until it is stopped
    let Response::Health { alive_pipelines, .. } = client.ask(&Request::Health) else { panic!() };
    assert_eq!(alive_pipelines, 1);
    let stopped = client.ask(&Request::PipelineStop { pipeline: id, grace_ms: 1000 });
    assert_eq!(stopped, Response::PipelineStopped { pipeline: id, reaped: 2 });
    assert!(client.refused(&Request::PipelineStop { pipeline: id, grace_ms: 0 }).contains("has ended"));
    let mut cycle = spec;
    cycle.edges.push(FlowEdge { from: 1, from_output: "stdout".into(), to: 0, to_input: "stdin".into() });
    assert!(client.refused(&Request::PipelineRun { spec: cycle, tap: false, vars }).contains("make -> read -> make"));
}

#[test]
fn what_a_finished_producer_sent_is_in_the_answer() {
    let shipote = Appliance::start();
    let mut client = Client::connect(&shipote);
    let workspace = client.create("demo");
    let spec = pipeline(workspace, &[("make", &["echo", "{\"a\": [1, 2]}"]), ("read", &["cat"])]);
    let started = client.ask(&Request::PipelineRun { spec, tap: true, vars: Default::default() });
    let Response::PipelineStarted { edges, .. } = started else { panic!("{started:?}") };
    assert_eq!(edges[0].ty.as_deref(), Some("Primitive { name: \"json\" }"));
    assert_eq!(edges[0].lens.as_deref(), Some("tree"));
}

#[test]
fn saved_pipelines_survive_the_appliance() {
    let mut shipote = Appliance::start();
    let mut client = Client::connect(&shipote);
    let workspace = client.create("demo");
    let spec = pipeline(workspace, &[("a", &["echo", "${WORD}"]), ("b", &["tr", "a-z", "A-Z"])]);
    for name in ["two", "one"] {
        let saved = client.ask(&Request::PipelineSave { name: name.into(), spec: spec.clone() });
        assert_eq!(saved, Response::PipelineSaved { name: name.into() });
    }
    let vars = [("WORD".to_owned(), "hello".to_owned())].into();
    let started = client.ask(&Request::PipelineRunSaved { name: "one".into(), tap: false, vars });
    let Response::PipelineStarted { edges, command_pids, .. } = started else { panic!("{started:?}") };
    assert_eq!((edges.len(), command_pids.len()), (0, 2));
    let Response::CommandList { items } = client.ask(&Request::CommandList { workspace }) else { panic!() };
    let last = items.iter().find(|c| c.label == "b").unwrap().id;
    assert_eq!(client.ended(workspace, last), 0);
    eventually("the log is whole", || client.log(workspace, last, 0, "") == "HELLO\n");
    shipote.stop();
    shipote.restart();
    let mut client = Client::connect(&shipote);
    let names = client.ask(&Request::PipelineSavedList);
    assert_eq!(names, Response::PipelineSavedList { names: vec!["one".into(), "two".into()] });
    let dropped = |existed| Response::PipelineDropped { name: "one".into(), existed };
    assert_eq!(client.ask(&Request::PipelineDrop { name: "one".into() }), dropped(true));
    assert_eq!(client.ask(&Request::PipelineDrop { name: "one".into() }), dropped(false));
    let trail = shipote.ok(&["audit", "--state", shipote.path("state").to_str().unwrap(), "--json"]);
    for action in ["pipeline.save", "pipeline.drop", "workspace.create", "pipeline.run"] {
        assert!(trail.contains(action), "{action} is not in {trail}");
    }
    assert!(trail.contains("socket"), "{trail}");
}

#[test]
fn bad_frames_get_an_error_or_a_close_and_disturb_nobody() {
    let shipote = Appliance::start();
    let mut witness = Client::connect(&shipote);
    let mut garbage = Client::connect(&shipote);
    garbage.send(&[0xff; 100]);
    assert!(matches!(garbage.receive(), Response::Error { .. }));
    // a whole frame that says nothing leaves the stream in step
    garbage.send(&[]);
    assert!(matches!(garbage.receive(), Response::Error { .. }));
    garbage.send(&[0, 0]);
    assert!(matches!(garbage.receive(), Response::Error { message } if message.contains("left over")));
    assert_eq!(garbage.ask(&Request::Ping), Response::Pong);
    let mut torn = Client::connect(&shipote);
    torn.0.write_all(&[0, 0, 1, 0, 7]).unwrap();
    torn.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(torn.receive(), Response::Error { message } if message.contains("ended after 5 bytes")));
    assert!(torn.closed());
    let mut large = Client::connect(&shipote);
    large.0.write_all(&u32::try_from(FRAME_MAX + 1).unwrap().to_be_bytes()).unwrap();
    assert!(matches!(large.receive(), Response::Error { message } if message.contains("larger")));
    assert!(large.closed());
    // one that begins a frame and never ends it, one that asks and never reads
    let mut slow = Client::connect(&shipote);
    slow.0.write_all(&[0, 0, 1]).unwrap();
    let mut deaf = Client::connect(&shipote);
    let list = encode(&Request::WorkspaceList).unwrap();
    for _ in 0..100 {
        deaf.send(&list);
    }
    assert_eq!(witness.ask(&Request::Ping), Response::Pong);
    // the largest frame that is allowed
    let sample = vec![b'a'; FRAME_MAX - 16];
    assert!(matches!(witness.ask(&Request::Discern { sample, hint_path: None }), Response::Discernment { .. }));
    assert!(matches!(slow.receive(), Response::Error { message } if message.contains("did not arrive")));
    assert!(slow.closed());
}

#[test]
fn who_asks_too_much_is_slowed_down() {
    let shipote = Appliance::start();
    let mut flood = Client::connect(&shipote);
    let ping = encode(&Request::Ping).unwrap();
    let begun = std::time::Instant::now();
    // one second of the rate at once, and two seconds worth more
    for _ in 0..30 {
        for _ in 0..500 {
            flood.send(&ping);
        }
        for _ in 0..500 {
            assert_eq!(flood.receive(), Response::Pong);
        }
    }
    // A lower bound only: 15,000 requests at 5,000 a second, 5,000 of them at once.
    assert!(begun.elapsed() >= Duration::from_millis(1990), "{:?}", begun.elapsed());
    // the debt is paid: all that is asked is answered, also by the bus
    assert_eq!(Client::connect(&shipote).ask(&Request::Ping), Response::Pong);
    shipote.ok(&["ps"]);
}

#[test]
fn many_connections_are_served_at_once() {
    let shipote = Appliance::start();
    let mut clients: Vec<Client> = (0..256).map(|_| Client::connect(&shipote)).collect();
    let ping = encode(&Request::Ping).unwrap();
    for client in &mut clients {
        client.send(&ping);
    }
    for client in clients.iter_mut().rev() {
        assert_eq!(client.receive(), Response::Pong);
    }
}

#[test]
fn a_second_instance_leaves_the_socket_to_the_living_one() {
    let shipote = Appliance::start();
    let mode = std::fs::metadata(shipote.path("run/workspaces/shipote.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = Client::connect(&shipote);
    let workspace = client.create("demo");
    let second = Command::new(binaries().join("shipote-workspaces"))
        .env("SHIPOTE_BUS_ADDRESS", shipote.address())
        .env("RUNTIME_DIRECTORY", shipote.path("run/workspaces"))
        .env("STATE_DIRECTORY", shipote.path("other-state"))
        .env("SHIPOTE_POLICY_DIR", concat!(env!("CARGO_MANIFEST_DIR"), "/../../policies"))
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = text(&second.stderr) + &text(&second.stdout);
    assert!(said.contains("another shipote-workspaces serves"), "{said}");
    let (command, _) = Client::connect(&shipote).run(workspace, &["true"]);
    assert_eq!(client.ended(workspace, command), 0);
    // and a dead one's socket is taken over
    rustix::process::kill_process(shipote.service("workspaces"), rustix::process::Signal::KILL).unwrap();
    eventually("the next instance serves", || {
        // the dying one may still take a connection and never answer on it
        let Ok(mut stream) = UnixStream::connect(shipote.path("run/workspaces/shipote.sock")) else { return false };
        let mut answer = [0; 5];
        stream.write_all(&[0, 0, 0, 1, 0]).and_then(|()| stream.read_exact(&mut answer)).is_ok()
            && answer == [0, 0, 0, 1, 0]
    });
}
