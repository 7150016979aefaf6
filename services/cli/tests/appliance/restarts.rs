//! What is launched again gets the right ends of the right pipes, and whatever waits for an end of them comes to it.

use std::io::Read;
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Signal, kill_process};

use crate::pipelines::spec;
use crate::support::{Appliance, eventually, text};

/// A node that is launched again by itself, in a pipeline that is launched again as a whole.
const BOTH: &str = r#"
label = "p"
[restart]
initial_ms = 10
limit = 1
[[nodes]]
label = "a"
command = ["sh", "-c", '''
    [ -e /work/first ] || { touch /work/first; echo first launch; exit 4; }
    echo before; until [ -e /work/failed ]; do sleep 0.05; done; echo after''']
[[nodes]]
label = "b"
command = ["sh", "-c", '''
    [ -e /work/first ] && [ -e /work/second ] && exec cat
    [ -e /work/rested ] || { cat; touch /work/rested; exit 0; }
    read line; echo "$line"; touch /work/second
    until [ -e /work/go ] || [ -z "$WAIT" ]; do sleep 0.05; done; touch /work/failed; exit 1''']
restart = { initial_ms = 10 }
[[edges]]
from = "a"
to = "b"
"#;

#[test]
fn a_node_that_is_launched_again_alone_has_the_pipes_of_its_pipelines_last_launch() {
    let shipote = Appliance::start();
    let file = spec(&shipote, BOTH);
    for words in [&["pipeline", "run"][..], &["pipeline", "run", "--tap"]] {
        let output = shipote.run(&[words, &[&file]].concat());
        let told = (text(&output.stdout), output.status.code());
        let want = ("first launch\nbefore\nafter\n".to_owned(), Some(0));
        assert_eq!(told, want, "{words:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_node_that_waits_for_its_pipeline_lets_the_others_come_to_their_end() {
    let shipote = Appliance::start();
    let file = spec(
        &shipote,
        "label='p'\n[restart]\ninitial_ms=10\nlimit=1\n[[nodes]]\nlabel='a'\ncommand=['echo','x']\n\
         restart={initial_ms=10}\n[[nodes]]\nlabel='b'\ncommand=['sh','-c','cat; exit 4']\n[[edges]]\nfrom='a'\nto='b'\n",
    );
    let mut run = shipote.shipote(&["pipeline", "run", &file]).stdout(Stdio::piped()).spawn().unwrap();
    // `a` has ended well, and its end of the pipe must not be kept for a launch that will have a pipe of its own
    eventually("the consumer ends", || run.try_wait().unwrap().is_some());
    let output = run.wait_with_output().unwrap();
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("x\nx\n", Some(4)));
}

#[test]
fn what_is_stopped_while_it_waits_for_its_next_launch_lets_go_of_its_output() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    let file = spec(
        &shipote,
        "label='p'\n[[nodes]]\nlabel='a'\ncommand=['false']\nrestart={initial_ms=600000,max_ms=600000}\n",
    );
    let mut run = shipote.shipote(&["pipeline", "run", "-w", "w", &file]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = run.stdout.take().unwrap();
    fcntl_setfl(&out, OFlags::NONBLOCK).unwrap();
    eventually("it waits", || shipote.json(&["ps", "--json"])["commands"][0]["state"] == "waiting");
    let list = shipote.json(&["pipeline", "list", "--json"]);
    shipote.ok(&["pipeline", "stop", list["pipelines"][0]["id"].as_str().unwrap()]);
    run.wait().unwrap();
    // nobody else has it, and the workspace lives on
    eventually("its output ends", || matches!(out.read(&mut [0; 64]), Ok(0)));
    assert_eq!(shipote.json(&["workspace", "show", "w", "--json"])["state"], "running");
}

#[test]
fn a_service_that_is_killed_in_between_gives_the_pipes_of_the_last_launch_too() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    let file = spec(&shipote, &BOTH.replace("$WAIT", "wait"));
    let mut run = shipote.shipote(&["pipeline", "run", "-w", "w", &file]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = run.stdout.take().unwrap();
    let mut told = vec![0; "first launch\nbefore\n".len()];
    out.read_exact(&mut told).unwrap();
    kill_process(shipote.service("workspaces"), Signal::KILL).unwrap();
    eventually("the next instance answers", || shipote.run(&["run", "-w", "w", "touch", "/work/go"]).status.success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((text(&told).as_str(), rest.as_str()), ("first launch\nbefore\n", "after\n"));
    assert_eq!(run.wait().unwrap().code(), Some(0));
}
