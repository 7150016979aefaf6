//! Flows that a workspace shares (`flow_dirs`), and further inputs and outputs of nodes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::process::{Signal, kill_process};
use shipote_workspace_protocol::spec::{FlowDirection, FlowScope, FlowSlot, WorkspaceSpec};
use shipote_workspace_protocol::{Request, Response};

use crate::socket::Client;
use crate::support::{Appliance, eventually, text};

/// A workspace `w` with an input and an output, and their sockets.
fn shared(shipote: &Appliance) -> (PathBuf, PathBuf) {
    let spec = "[[flow_dirs]]\nname = 'jobs'\n[[flow_dirs]]\nname = 'frames'\ndirection = 'output'\nscope = 'public'\n";
    std::fs::write(shipote.path("w.toml"), spec).unwrap();
    shipote.ok(&["workspace", "create", "w", "-f", shipote.path("w.toml").to_str().unwrap()]);
    let flows = shipote.json(&["flow", "list", "--json"]);
    let socket = |side: &str, name: &str| {
        let all = flows["flows"].as_array().unwrap();
        let found = all.iter().find(|flow| flow[side] == name).unwrap_or_else(|| panic!("{name} in {flows}"));
        assert_eq!(found["state"], "flowing");
        PathBuf::from(found["socket"].as_str().unwrap())
    };
    (socket("to_input", "jobs"), socket("from_output", "frames"))
}

fn subscribe(socket: &PathBuf) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    stream
}

fn take(stream: &mut UnixStream, want: &str) {
    let mut got = vec![0; want.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(text(&got), want);
}

/// Reads a socket of its workspace's own, to its end or so many bytes.
fn inside(name: &str, bytes: usize) -> String {
    format!(
        "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, pack_sockaddr_un(\"/run/flows/{name}\")) or die \
         \"connect: $!\"; my $all = \"\"; while (length $all < {bytes}) {{ sysread(S, $all, {bytes}, length $all) or last }} print $all"
    )
}

#[test]
fn what_commands_write_to_a_shared_flow_is_read_by_whoever_connects() {
    let shipote = Appliance::start();
    let (_, frames) = shared(&shipote);
    let mut early = subscribe(&frames);
    shipote.ok(&["run", "-w", "w", "--", "sh", "-c", "echo one >&$SHIPOTE_FLOW_FRAMES"]);
    take(&mut early, "one\n");
    // the flow goes on with the next command, and who comes late gets what there was
    shipote.ok(&["run", "-w", "w", "--", "sh", "-c", "echo two >&$SHIPOTE_FLOW_FRAMES"]);
    take(&mut early, "two\n");
    take(&mut subscribe(&frames), "one\ntwo\n");
    assert_eq!(shipote.ok(&["run", "-w", "w", "--", "perl", "-e", &inside("frames", 8)]), "one\ntwo\n");
    let flows = shipote.json(&["flow", "list", "--json"]);
    let flow = flows["flows"].as_array().unwrap().iter().find(|f| f["from_output"] == "frames").unwrap().clone();
    assert_eq!((flow["from"].as_str(), flow["bytes_total"].as_u64()), (Some("w"), Some(8)), "{flow}");
    // nobody else has the descriptor
    let other = shipote.run(&["run", "--", "sh", "-c", "echo ${SHIPOTE_FLOW_FRAMES-none}; ls /run/flows"]);
    assert!(text(&other.stdout).starts_with("none\n") && !other.status.success());
    // with the workspace the flow ends, for who is connected, too
    shipote.ok(&["workspace", "stop", "w", "--grace", "0"]);
    assert_eq!(early.read(&mut [0]).unwrap(), 0);
    eventually("the sockets go", || !frames.exists());
    assert_eq!(shipote.json(&["flow", "list", "--json"])["flows"].as_array().unwrap().len(), 0);
}

#[test]
fn what_is_written_into_a_shared_flow_is_read_by_the_commands() {
    let shipote = Appliance::start();
    let (jobs, _) = shared(&shipote);
    UnixStream::connect(&jobs).unwrap().write_all(b"first\n").unwrap();
    let read = ["run", "-w", "w", "--", "sh", "-c", "read line <&$SHIPOTE_FLOW_JOBS; echo $line"];
    assert_eq!(shipote.ok(&read), "first\n");
    // a writer that leaves does not end it; a command inside writes as well
    let write = "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, pack_sockaddr_un(\"/run/flows/jobs\")) or die; \
                 syswrite(S, \"second\\n\")";
    shipote.ok(&["run", "-w", "w", "--", "perl", "-e", write]);
    assert_eq!(shipote.ok(&read), "second\n");
    // it cannot be read from outside
    let mut outside = subscribe(&jobs);
    outside.shutdown(Shutdown::Write).unwrap();
    assert_eq!(outside.read(&mut [0]).unwrap(), 0);
}

#[test]
fn shared_flows_go_on_when_the_service_is_killed() {
    let shipote = Appliance::start();
    let (jobs, frames) = shared(&shipote);
    let mut reader = subscribe(&frames);
    let mut writer = UnixStream::connect(&jobs).unwrap();
    let copy = "while read line <&$SHIPOTE_FLOW_JOBS; do echo \"did $line\" >&$SHIPOTE_FLOW_FRAMES; done";
    shipote.ok(&["run", "-w", "w", "--detach", "--", "sh", "-c", copy]);
    writer.write_all(b"a\n").unwrap();
    take(&mut reader, "did a\n");
    let pid = shipote.service("workspaces");
    kill_process(pid, Signal::KILL).unwrap();
    // nobody but the relay is there
    writer.write_all(b"b\n").unwrap();
    take(&mut reader, "did b\n");
    eventually("the service is back", || {
        shipote.run(&["workspace", "show", "w"]).status.success() && shipote.service("workspaces") != pid
    });
    writer.write_all(b"c\n").unwrap();
    take(&mut reader, "did c\n");
    // a command that the next instance starts has the same ends
    shipote.ok(&["run", "-w", "w", "--", "sh", "-c", "echo new >&$SHIPOTE_FLOW_FRAMES"]);
    take(&mut reader, "new\n");
    take(&mut subscribe(&frames), "did a\ndid b\ndid c\nnew\n");
    shipote.ok(&["workspace", "stop", "w", "--grace", "0"]);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_socket_protocol_shares_flows_and_drops_them() {
    let shipote = Appliance::start();
    let mut client = Client::connect(&shipote);
    let slot = FlowSlot { name: "out".into(), direction: FlowDirection::Output, scope: FlowScope::Workspace };
    let spec = WorkspaceSpec { label: "s".into(), flow_dirs: vec![slot.clone()], ..WorkspaceSpec::default() };
    let Response::WorkspaceCreated { id, .. } = client.ask(&Request::WorkspaceCreate { spec }) else { panic!() };
    let Response::WorkspaceFullSummary { flow_sockets, .. } =
        client.ask(&Request::WorkspaceFullSummary { workspace: id })
    else {
        panic!()
    };
    let [socket] = &flow_sockets[..] else { panic!("{flow_sockets:?}") };
    let (command, _) = client.run(id, &["sh", "-c", "echo x >&$SHIPOTE_FLOW_OUT"]);
    assert_eq!(client.ended(id, command), 0);
    let mut reader = subscribe(socket);
    take(&mut reader, "x\n");
    let dropped = client.ask(&Request::FlowDrop { pipeline: id.0 });
    assert!(matches!(dropped, Response::FlowDropped { existed: true, .. }), "{dropped:?}");
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    assert!(UnixStream::connect(socket).is_err());
    // what is written goes nowhere, and nobody waits
    let (command, _) = client.run(id, &["sh", "-c", "head -c 1000000 /dev/zero >&$SHIPOTE_FLOW_OUT"]);
    assert_eq!(client.ended(id, command), 0);
    let bad = FlowSlot { name: "a/b".into(), ..slot };
    let spec = WorkspaceSpec { label: "t".into(), flow_dirs: vec![bad], ..WorkspaceSpec::default() };
    assert!(client.refused(&Request::WorkspaceCreate { spec }).contains("flow_dirs[0].name"));
}

#[test]
fn nodes_have_further_outputs_and_inputs() {
    let shipote = Appliance::start();
    let spec = r#"
label = "p"
[[nodes]]
label = "split"
command = ["sh", "-c", "echo plain; echo odd >&$SHIPOTE_FLOW_ODD; echo nobody >&$SHIPOTE_FLOW_LOST"]
outputs = ["odd", "lost"]
[[nodes]]
label = "join"
command = ["sh", "-c", "cat; echo then; cat <&$SHIPOTE_FLOW_SECOND; cat <&$SHIPOTE_FLOW_EMPTY"]
inputs = ["second", "empty"]
[[edges]]
from = "split"
to = "join"
[[edges]]
from = "split"
from_output = "odd"
to = "join"
to_input = "second"
"#;
    std::fs::write(shipote.path("p.toml"), spec).unwrap();
    let file = shipote.path("p.toml");
    for tap in [&[][..], &["--tap"]] {
        let words = [&["pipeline", "run", file.to_str().unwrap()], tap].concat();
        let done = shipote.run(&words);
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert_eq!(text(&done.stdout), "plain\nthen\nodd\n");
        // an output that no edge takes goes where standard error goes
        assert!(text(&done.stderr).starts_with("nobody\n"), "{}", text(&done.stderr));
    }
}
