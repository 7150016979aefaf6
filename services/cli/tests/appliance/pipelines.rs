//! Pipelines and their tapped edges.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use crate::support::{Appliance, eventually, processes_with, text};

const COUNT: &str = r#"
label = "count"
[[nodes]]
label = "words"
command = ["tr", " ", "\n"]
[[nodes]]
label = "sort"
command = ["sort"]
[[nodes]]
label = "count"
command = ["uniq", "-c"]
[[edges]]
from = "words"
to = "sort"
[[edges]]
from = "sort"
to = "count"
"#;

/// A file with the spec of a pipeline.
pub(crate) fn spec(shipote: &Appliance, text: &str) -> String {
    let file = shipote.path("pipeline.toml");
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

#[test]
fn input_goes_in_and_the_result_comes_out() {
    let shipote = Appliance::start();
    let file = spec(&shipote, COUNT);
    for tap in [&["pipeline", "run", &file][..], &["pipeline", "run", "--tap", &file]] {
        let output = shipote.fed(tap, b"b a b");
        assert_eq!(text(&output.stdout), "      1 a\n      2 b\n", "{}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn tapped_edges_are_discerned_metered_and_replayed() {
    let shipote = Appliance::start();
    let file = spec(&shipote, COUNT);
    let output = shipote.fed(&["pipeline", "run", "--tap", "--json", &file], b"b a b\n");
    let last = text(&output.stdout).lines().last().unwrap().to_owned();
    let ended: serde_json::Value = serde_json::from_str(&last).unwrap();
    let edges = ended["edges"].as_array().unwrap();
    assert_eq!(edges.len(), 2);
    for edge in edges {
        assert_eq!((&edge["ty"], &edge["bytes_total"]), (&"Primitive { name: \"text\" }".into(), &6.into()), "{edge}");
        // after the producer's end the socket serves the replay
        let mut all = String::new();
        UnixStream::connect(edge["socket"].as_str().unwrap()).unwrap().read_to_string(&mut all).unwrap();
        assert_eq!(all, if edge["edge"] == 0 { "b\na\nb\n" } else { "a\nb\nb\n" });
    }
}

/// A pipeline that runs with taps, its input and output in the hands of the test.
fn tapped(shipote: &Appliance, file: &str) -> Child {
    let mut run = shipote.shipote(&["pipeline", "run", "--tap", file]);
    run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_subscriber_reads_while_it_flows() {
    let shipote = Appliance::start();
    let file = spec(
        &shipote,
        "label='p'\n[[nodes]]\nlabel='in'\ncommand=['cat']\n[[nodes]]\nlabel='out'\ncommand=['cat']\n[[edges]]\nfrom='in'\nto='out'\n",
    );
    let mut run = tapped(&shipote, &file);
    let mut input = run.stdin.take().unwrap();
    let mut output = BufReader::new(run.stdout.take().unwrap());
    input.write_all(b"early\n").unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "early\n");
    let flows = shipote.json(&["flow", "list", "--json"]);
    let socket = flows["flows"][0]["socket"].as_str().unwrap().to_owned();
    let mut tail = shipote.shipote(&["flow", "tail", &socket]).stdout(Stdio::piped()).spawn().unwrap();
    let mut tailed = BufReader::new(tail.stdout.take().unwrap());
    let mut seen = String::new();
    tailed.read_line(&mut seen).unwrap();
    input.write_all(b"late\n").unwrap();
    tailed.read_line(&mut seen).unwrap();
    drop(input);
    tailed.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "early\nlate\n");
    assert!(tail.wait().unwrap().success() && run.wait().unwrap().success());
}

#[test]
fn who_reads_too_slowly_is_told_what_it_has_lost() {
    let shipote = Appliance::start();
    let file = spec(
        &shipote,
        "label='p'\n[discern]\nreplay_chunks=2\n[[nodes]]\nlabel='in'\ncommand=['cat']\n[[nodes]]\nlabel='out'\n\
         command=['wc','-c']\n[[edges]]\nfrom='in'\nto='out'\n",
    );
    let mut run = tapped(&shipote, &file);
    let mut input = run.stdin.take().unwrap();
    input.write_all(b"early\n").unwrap();
    eventually("there is a flow", || {
        shipote.json(&["flow", "list", "--json"])["flows"][0]["bytes_total"].as_u64() == Some(6)
    });
    let flows = shipote.json(&["flow", "list", "--json"]);
    let socket = flows["flows"][0]["socket"].as_str().unwrap().to_owned();
    let mut tail =
        shipote.shipote(&["flow", "tail", &socket]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut tailed = BufReader::new(tail.stdout.take().unwrap());
    let mut line = String::new();
    tailed.read_line(&mut line).unwrap();
    assert_eq!(line, "early\n");
    // nobody reads what it prints: pipe, socket and replay fill, and the pipeline goes on all the same
    input.write_all(&vec![b'x'; 16 << 20]).unwrap();
    drop(input);
    let ended = run.wait_with_output().unwrap();
    assert_eq!(text(&ended.stdout).trim(), (6 + (16 << 20)).to_string());
    let mut seen = Vec::new();
    tailed.read_to_end(&mut seen).unwrap();
    let ended = tail.wait_with_output().unwrap();
    let flow = &shipote.json(&["flow", "list", "--json"])["flows"][0];
    let lost = flow["lost_bytes"].as_u64().unwrap();
    assert_eq!((flow["dropped"].as_u64(), &flow["cut_off"][0][1]), (Some(1), &serde_json::json!(lost)), "{flow}");
    assert!(lost > 0 && (seen.len() as u64) < 16 << 20, "{lost} lost, {} seen", seen.len());
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("{lost} bytes are lost")) && said.contains("lossless"), "{said}");
}

#[test]
fn an_endless_producer_ends_with_its_consumer() {
    let shipote = Appliance::start();
    let file = spec(
        &shipote,
        "label='p'\n[[nodes]]\nlabel='yes'\ncommand=['yes']\n[[nodes]]\nlabel='head'\ncommand=['head','-n','2']\n[[edges]]\nfrom='yes'\nto='head'\n",
    );
    for tap in [&["pipeline", "run", &file][..], &["pipeline", "run", "--tap", &file]] {
        let output = shipote.run(tap);
        assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("y\ny\n", Some(0)), "{tap:?}");
    }
}

#[test]
fn fan_out_and_fan_in_lose_nothing() {
    let shipote = Appliance::start();
    let file = spec(
        &shipote,
        "label='p'\n[[nodes]]\nlabel='in'\ncommand=['cat']\n[[nodes]]\nlabel='a'\ncommand=['sed','s/^/a/']\n[[nodes]]\nlabel='b'\ncommand=['sed','s/^/b/']\n[[nodes]]\nlabel='all'\ncommand=['sort']\n\
         [[edges]]\nfrom='in'\nto='a'\n[[edges]]\nfrom='in'\nto='b'\n[[edges]]\nfrom='a'\nto='all'\n[[edges]]\nfrom='b'\nto='all'\n",
    );
    let output = shipote.fed(&["pipeline", "run", &file], b"1\n2\n");
    assert_eq!(text(&output.stdout), "a1\na2\nb1\nb2\n", "{}", text(&output.stderr));
}

#[test]
fn variables_are_put_in() {
    let shipote = Appliance::start();
    let file = spec(&shipote, "label='p'\n[[nodes]]\nlabel='echo'\ncommand=['echo','${WHAT}','${KEPT}']\n");
    assert_eq!(shipote.ok(&["pipeline", "run", "--var", "WHAT=this", &file]), "this ${KEPT}\n");
}

#[test]
fn a_failed_node_is_the_pipelines_status_and_a_missing_program_stops_all() {
    let shipote = Appliance::start();
    let file = spec(
        &shipote,
        "label='p'\n[[nodes]]\nlabel='a'\ncommand=['sh','-c','exit 5']\n[[nodes]]\nlabel='b'\ncommand=['cat']\n[[edges]]\nfrom='a'\nto='b'\n",
    );
    assert_eq!(shipote.run(&["pipeline", "run", &file]).status.code(), Some(5));
    let file = spec(
        &shipote,
        "label='p'\n[[nodes]]\nlabel='a'\ncommand=['sleep','4244']\n[[nodes]]\nlabel='b'\ncommand=['no-such-program']\n[[edges]]\nfrom='a'\nto='b'\n",
    );
    let output = shipote.run(&["pipeline", "run", &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no-such-program"), "{}", text(&output.stderr));
    eventually("no node is left", || processes_with("4244").is_empty());
}

#[test]
fn a_detached_pipeline_can_be_stopped() {
    let shipote = Appliance::start();
    let file = spec(
        &shipote,
        "label='p'\n[[nodes]]\nlabel='a'\ncommand=['sleep','4343']\n[[nodes]]\nlabel='b'\ncommand=['cat']\n[[edges]]\nfrom='a'\nto='b'\n",
    );
    let id = shipote.ok(&["pipeline", "run", "--detach", &file]).trim().to_owned();
    let list = shipote.json(&["pipeline", "list", "--json"]);
    assert_eq!(list["pipelines"][0]["state"], "running", "{list}");
    shipote.ok(&["pipeline", "stop", &id]);
    let list = shipote.json(&["pipeline", "list", "--json"]);
    assert_eq!(list["pipelines"][0]["state"], "ended", "{list}");
    eventually("no node is left", || processes_with("4343").is_empty());
}
