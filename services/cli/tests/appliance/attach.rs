//! `shipote attach`: several at once, to pipes and to terminals, across the death of the service.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use rustix::process::{Signal, kill_process};

use crate::support::{Appliance, eventually, text};

fn attach(shipote: &Appliance, words: &[&str]) -> Child {
    let mut all = vec!["attach"];
    all.extend(words);
    shipote.shipote(&all).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Writes a line, and reads until one comes that is `answer`.
fn say(child: &mut Child, line: &str) {
    child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
}

fn hear(out: &mut impl BufRead, answer: &str) {
    let mut line = String::new();
    while line.trim_end() != answer {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "the output ended before {answer:?}");
    }
}

fn detach(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Kills the service, and waits until the next instance answers.
fn restart(shipote: &Appliance) {
    let before = shipote.service("workspaces");
    kill_process(before, Signal::KILL).unwrap();
    eventually("the next instance answers", || {
        shipote.run(&["ps", "--json"]).status.success() && shipote.service("workspaces") != before
    });
}

#[test]
fn several_attach_to_a_pipe_and_survive_the_service() {
    let shipote = Appliance::start();
    let script = "while read line; do echo got $line; done; echo end; exit 7";
    let id = shipote.ok(&["run", "--detach", "-i", "--", "sh", "-c", script]);
    let id = id.trim();
    let (mut first, mut second) = (attach(&shipote, &[id]), attach(&shipote, &["--tail", "0", id]));
    let mut first_out = BufReader::new(first.stdout.take().unwrap());
    let mut second_out = BufReader::new(second.stdout.take().unwrap());
    say(&mut first, "one\n");
    hear(&mut first_out, "got one");
    hear(&mut second_out, "got one");
    say(&mut second, "two\n");
    hear(&mut first_out, "got two");
    hear(&mut second_out, "got two");
    detach(first);
    restart(&shipote);
    say(&mut second, "three\n");
    hear(&mut second_out, "got three");
    detach(second);
    // somebody who comes later sees what was, and what there is to come
    let last = shipote.fed(&["attach", "--end-input", "--tail", "0", id], b"four\n");
    assert_eq!(text(&last.stdout), "got one\ngot two\ngot three\ngot four\nend\n", "{}", text(&last.stderr));
    assert_eq!(last.status.code(), Some(7));
    let refused = shipote.fed(&["attach", id], b"");
    assert!(text(&refused.stderr).contains("it has ended"), "{}", text(&refused.stderr));
    // each attachment is on record
    let state = shipote.path("state");
    let audit = shipote.ok(&["audit", "--state", state.to_str().unwrap(), "--json"]);
    assert!(audit.matches("command.attach").count() >= 3, "{audit}");
}

#[test]
fn a_terminal_stays_when_those_who_typed_into_it_have_gone() {
    let shipote = Appliance::start();
    let script = "stty -echo; while read line; do echo you said $line; test $line = end && exit 3; done";
    let id = shipote.ok(&["run", "--detach", "-t", "--", "sh", "-c", script]);
    let id = id.trim();
    let mut first = attach(&shipote, &[id]);
    let mut out = BufReader::new(first.stdout.take().unwrap());
    say(&mut first, "hello\n");
    hear(&mut out, "you said hello");
    // the keys, in two pieces: not sent on, and the end of it
    say(&mut first, "\x10");
    say(&mut first, "\x11never");
    assert_eq!(first.wait().unwrap().code(), Some(0));
    let mut told = String::new();
    first.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("detached"), "{told}");

    let mut second = attach(&shipote, &[id]);
    let mut out = BufReader::new(second.stdout.take().unwrap());
    hear(&mut out, "you said hello");
    restart(&shipote);
    // the service's own pipe broke with it: what was written into that is lost, the next is not
    eventually("the terminal answers", || {
        say(&mut second, "again\n");
        text(&shipote.run(&["logs", id]).stdout).contains("you said again")
    });
    hear(&mut out, "you said again");
    say(&mut second, "end\n");
    hear(&mut out, "you said end");
    assert_eq!(second.wait().unwrap().code(), Some(3));
    assert!(!text(&shipote.run(&["logs", id]).stdout).contains("never"));
}

#[test]
fn a_command_that_is_started_again_goes_on_with_the_same_input() {
    let shipote = Appliance::start();
    let script = "read line; echo got $line; test $line = b";
    let id = shipote.ok(&["run", "--detach", "-i", "--restart", "on-failure", "--", "sh", "-c", script]);
    let fed = shipote.fed(&["attach", "--end-input", "--tail", "0", id.trim()], b"a\nb\n");
    assert_eq!(text(&fed.stdout), "got a\ngot b\n", "{}", text(&fed.stderr));
    assert_eq!(fed.status.code(), Some(0));
}

#[test]
fn a_terminal_follows_the_size_of_the_one_that_is_attached() {
    let shipote = Appliance::start();
    let script = "stty -echo; while read line; do stty size; done";
    let id = shipote.ok(&["run", "--detach", "-t", "--", "sh", "-c", script]);
    let id = id.trim();
    let line = format!("stty rows 33 cols 99; exec {} attach {id}", env!("CARGO_BIN_EXE_shipote"));
    let mut child = Command::new("script")
        .args(["-qc", &line, "/dev/null"])
        .env("SHIPOTE_BUS_ADDRESS", shipote.address())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    eventually("the size is taken over", || {
        child.stdin.as_mut().unwrap().write_all(b"x\r").unwrap();
        text(&shipote.run(&["logs", id]).stdout).contains("33 99")
    });
    hear(&mut out, "33 99");
    detach(child);
}

#[test]
fn what_cannot_be_attached_to_says_so() {
    let shipote = Appliance::start();
    let id = shipote.ok(&["run", "--detach", "--", "sh", "-c", "echo here; sleep 1000"]);
    let id = id.trim();
    let refused = shipote.fed(&["attach", id], b"");
    let told = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && told.contains("its input is not kept"), "{told}");
    let mut follows = attach(&shipote, &["--no-stdin", id]);
    hear(&mut BufReader::new(follows.stdout.take().unwrap()), "here");
    detach(follows);
    let unknown = shipote.run(&["attach", "01M7XNAH7YQB736SRDXJAX07VW"]);
    assert_eq!(unknown.status.code(), Some(1));
    let keys = shipote.run(&["attach", "--detach-keys", "ctrl-P", id]);
    assert_eq!(keys.status.code(), Some(2));
}
