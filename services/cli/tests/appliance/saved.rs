//! Saved pipelines over both doors, and flows that are measured and given up.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;

use shipote_workspace_protocol::{Request, Response};

use crate::socket::Client;
use crate::support::{Appliance, text};

const GREET: &str = "label = 'greet'\n[[nodes]]\nlabel = 'say'\ncommand = ['echo', 'hello ${WHO}']\n\
    [[nodes]]\nlabel = 'shout'\ncommand = ['tr', 'a-z', 'A-Z']\n[[edges]]\nfrom = 'say'\nto = 'shout'\n";

#[test]
fn a_pipeline_is_saved_run_with_variables_and_dropped() {
    let mut shipote = Appliance::start();
    let saved = shipote.fed(&["pipeline", "save", "greet", "-"], GREET.as_bytes());
    assert!(saved.status.success(), "{}", text(&saved.stderr));
    let file = shipote.path("other.toml");
    std::fs::write(&file, GREET.replace("hello", "goodbye")).unwrap();
    shipote.ok(&["pipeline", "save", "bye", file.to_str().unwrap()]);
    assert_eq!(shipote.ok(&["pipeline", "saved"]), "bye\ngreet\n");
    assert_eq!(shipote.ok(&["pipeline", "run-saved", "greet", "--var", "WHO=you"]), "HELLO YOU\n");
    shipote.stop();
    shipote.restart();
    assert_eq!(shipote.json(&["pipeline", "saved", "--json"])["names"], serde_json::json!(["bye", "greet"]));
    let ran = shipote.run(&["pipeline", "run-saved", "bye", "--tap", "--var", "WHO=${WHO}"]);
    assert_eq!(text(&ran.stdout), "GOODBYE ${WHO}\n", "what a variable brings in is not looked at again");
    let edges = text(&ran.stderr);
    assert!(edges.contains("TYPE") && !edges.contains("Primitive"), "a type has a plain name in a table: {edges}");
    shipote.ok(&["pipeline", "drop", "bye"]);
    let gone = shipote.run(&["pipeline", "run-saved", "bye"]);
    assert!(gone.status.code() == Some(1) && text(&gone.stderr).contains("pipeline saved"), "{}", text(&gone.stderr));
    let again = shipote.run(&["pipeline", "drop", "bye"]);
    assert!(!again.status.success() && text(&again.stderr).contains("pipeline saved"), "{}", text(&again.stderr));
    assert_eq!(shipote.json(&["pipeline", "drop", "bye", "--json"])["existed"], false);
    for (spec, reason) in [("colour = 1", "colour"), ("label = ", "TOML")] {
        let bad = shipote.fed(&["pipeline", "save", "bad", "-"], spec.as_bytes());
        assert!(bad.status.code() == Some(1) && text(&bad.stderr).contains(reason), "{}", text(&bad.stderr));
    }
    let audit = shipote.ok(&["audit", "--state", shipote.path("state").to_str().unwrap(), "--json"]);
    assert!(audit.contains("pipeline.save") && audit.contains("pipeline.drop"), "{audit}");
    // where nothing is found it is said where that was
    let state = shipote.path("state");
    let none = shipote.run(&["audit", "--state", state.to_str().unwrap(), "--object", "no-such-thing"]);
    let file = state.join("workspaces/audit.jsonl").display().to_string();
    assert!(text(&none.stderr).contains(&file) && none.stdout.is_empty(), "{}", text(&none.stderr));
}

#[test]
fn a_saved_pipeline_that_runs_is_stopped_by_its_name() {
    let shipote = Appliance::start();
    let slow = "label = 'other'\n[[nodes]]\nlabel = 'a'\ncommand = ['sleep', '1000']\n";
    assert!(shipote.fed(&["pipeline", "save", "slow", "-"], slow.as_bytes()).status.success());
    let first = shipote.ok(&["pipeline", "run-saved", "--detach", "slow"]);
    assert!(shipote.ok(&["pipeline", "ls"]).contains("slow"));
    shipote.ok(&["pipeline", "stop", "slow", "--grace", "0"]);
    let gone = shipote.run(&["pipeline", "stop", "slow"]);
    assert!(text(&gone.stderr).contains("has ended"), "{}", text(&gone.stderr));
    let two = [(); 2].map(|()| shipote.ok(&["pipeline", "run-saved", "--detach", "slow"]));
    let unclear = text(&shipote.run(&["pipeline", "stop", "slow"]).stderr);
    assert!(two.iter().all(|id| unclear.contains(id.trim())) && !unclear.contains(first.trim()), "{unclear}");
    shipote.ok(&["pipeline", "stop", two[0].trim(), "--grace", "0"]);
    shipote.ok(&["pipeline", "stop", "slow", "--grace", "0"]);
}

#[test]
fn what_one_door_saved_the_other_lists_and_the_bus_runs() {
    let shipote = Appliance::start();
    let mut client = Client::connect(&shipote);
    let workspace = client.create("w");
    let mut spec = crate::socket::pipeline(workspace, &[("one", &["echo", "from ${DOOR}"]), ("two", &["cat"])]);
    spec.nodes[0].label = "first".to_owned();
    let save = Request::PipelineSave { name: "seed".into(), spec };
    assert!(matches!(client.ask(&save), Response::PipelineSaved { .. }));
    let saved = shipote.fed(&["pipeline", "save", "text", "-"], GREET.as_bytes());
    assert!(saved.status.success());
    let Response::PipelineSavedList { names } = client.ask(&Request::PipelineSavedList) else { panic!() };
    assert_eq!(names, ["seed", "text"]);
    assert_eq!(shipote.ok(&["pipeline", "run-saved", "seed", "--var", "DOOR=the socket"]), "from the socket\n");
    let run = Request::PipelineRunSaved { name: "text".into(), tap: false, vars: BTreeMap::new() };
    assert!(client.refused(&run).contains("shipote pipeline run-saved"));
    let drop = Request::PipelineDrop { name: "text".into() };
    assert!(matches!(client.ask(&drop), Response::PipelineDropped { existed: true, .. }));
    assert_eq!(shipote.ok(&["pipeline", "saved"]), "seed\n");
}

#[test]
fn flows_are_measured_and_dropped_while_the_pipeline_goes_on() {
    let shipote = Appliance::start();
    let spec = shipote.path("p.toml");
    let slow = "label='p'\n[[nodes]]\nlabel='a'\ncommand=['sh','-c','echo begun; sleep 1000']\n\
        [[nodes]]\nlabel='b'\ncommand=['cat']\n[[edges]]\nfrom='a'\nto='b'\n";
    std::fs::write(&spec, slow).unwrap();
    let id = shipote.ok(&["pipeline", "run", "--tap", "--detach", spec.to_str().unwrap()]);
    let id = id.trim();
    let mut socket = String::new();
    crate::support::eventually("it has flowed", || {
        let measured = shipote.json(&["flow", "throughput", "--json"]);
        let flow = &measured["flows"][0];
        socket = flow["socket"].as_str().unwrap().to_owned();
        flow["bytes_total"] == 6 && flow["bytes_per_sec"].is_number()
    });
    assert!(shipote.ok(&["flow", "throughput"]).contains(&socket));
    let mut reader = UnixStream::connect(&socket).unwrap();
    shipote.ok(&["flow", "drop", id]);
    let mut all = String::new();
    reader.read_to_string(&mut all).unwrap();
    assert_eq!(all, "begun\n");
    assert!(!shipote.run(&["flow", "drop", id]).status.success());
    assert_eq!(shipote.json(&["flow", "drop", id, "--json"])["existed"], false);
    let unknown = shipote.run(&["flow", "drop", "nothing"]);
    assert!(text(&unknown.stderr).contains("nothing"), "{}", text(&unknown.stderr));
    let all = shipote.json(&["pipeline", "list", "--json"]);
    assert_eq!(all["pipelines"][0]["state"], "running");
    shipote.ok(&["pipeline", "stop", id, "--grace", "0"]);
}
