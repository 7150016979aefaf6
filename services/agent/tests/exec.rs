//! Commands, in every mode, asked for by the older release of the public protocol crate.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::Shutdown;

use common::{Agent, exec, shell, wait_unlocked};
use smolvm_protocol_0::{AgentRequest, AgentResponse};

#[test]
fn output_and_exit_code_come_in_one_answer() {
    let agent = Agent::start();
    let mut client = agent.connect();
    assert_eq!(client.shell("echo out; echo err >&2; exit 7"), (7, "out\n".into(), "err\n".into()));
    assert_eq!(client.shell("kill -9 $$").0, 137, "death by signal is 128 + n");
    assert_eq!(client.shell("cat; echo end"), (0, "end\n".into(), String::new()), "input is empty");
}

#[test]
fn environment_and_directory_are_those_of_the_request() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let request = AgentRequest::VmExec {
        command: vec!["sh".into(), "-c".into(), "pwd; echo $A; echo $SHIPOTE_TEST_LEAK; echo $PATH".into()],
        env: vec![("A".into(), "b c".into())],
        workdir: Some("/usr".into()),
        timeout_ms: None,
        interactive: false,
        tty: false,
        background: false,
    };
    let AgentResponse::Completed { stdout, .. } = client.ask(&request) else { panic!() };
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(String::from_utf8(stdout).unwrap(), format!("/usr\nb c\n\n{path}\n"));
}

#[test]
fn what_cannot_be_run_is_an_error_and_the_connection_lives() {
    let agent = Agent::start();
    let mut client = agent.connect();
    assert_eq!(client.refused(&exec(&[], None, false, false, false)), "INVALID_REQUEST");
    assert_eq!(client.refused(&exec(&["/no/such/program"], None, false, false, false)), "SPAWN_FAILED");
    assert_eq!(client.refused(&AgentRequest::Stdin { data: vec![1] }), "INVALID_REQUEST");
    assert_eq!(client.refused(&AgentRequest::Resize { cols: 1, rows: 1 }), "INVALID_REQUEST");
    assert!(matches!(client.ask(&AgentRequest::Ping), AgentResponse::Pong { version: 1 }));
}

#[test]
fn a_timeout_ends_the_whole_group_with_124() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let lock = agent.root().join("lock");
    std::fs::write(&lock, "").unwrap();
    let script = format!("echo begun; flock {} sleep 1000 & wait", lock.display());
    match client.ask(&exec(&["sh", "-c", &script], Some(300), false, false, false)) {
        AgentResponse::Completed { exit_code: 124, stdout, .. } => assert_eq!(stdout, b"begun\n"),
        other => panic!("{other:?}"),
    }
    wait_unlocked(&lock);
}

#[test]
fn output_past_the_limit_is_cut_and_said_to_be() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.send(&shell("head -c 9000000 /dev/zero; echo short >&2"));
    let body: serde_json::Value = serde_json::from_slice(&client.receive_body().unwrap()).unwrap();
    assert_eq!(body["truncated"], true);
    let read: AgentResponse = serde_json::from_value(body).unwrap();
    let AgentResponse::Completed { exit_code: 0, stdout, stderr } = read else { panic!("{read:?}") };
    assert_eq!(stdout.len(), 8 * 1024 * 1024);
    assert_eq!(stderr, b"short\n");
}

#[test]
fn a_disconnect_ends_the_command() {
    let agent = Agent::start();
    let lock = agent.root().join("lock");
    std::fs::write(&lock, "").unwrap();
    for interactive in [false, true] {
        let begun = agent.root().join("begun");
        let mut client = agent.connect();
        let script = format!(
            "exec flock {} sh -c 'mkfifo {1} 2>/dev/null; echo > {1}; sleep 1000'",
            lock.display(),
            begun.display()
        );
        client.send(&exec(&["sh", "-c", &script], None, interactive, false, false));
        // Made here as well, whoever is first: opening it meets the command.
        let _ = nix::unistd::mkfifo(&begun, nix::sys::stat::Mode::S_IRWXU);
        std::fs::read(&begun).unwrap();
        drop(client);
        wait_unlocked(&lock);
    }
}

#[test]
fn half_close_is_the_end_of_input_and_the_answer_still_comes() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.send(&exec(&["sh", "-c", "cat; echo done"], None, true, false, false));
    assert!(matches!(client.receive(), AgentResponse::Started));
    client.send(&AgentRequest::Stdin { data: b"words ".to_vec() });
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.session(), ("words done\n".into(), String::new(), 0));
    assert!(client.receive_body().is_none(), "the connection ends");

    let mut client = agent.connect();
    client.send(&shell("sleep 0.7; echo later"));
    client.0.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(client.receive(), AgentResponse::Completed { exit_code: 0, stdout, .. } if stdout == b"later\n"));
}

#[test]
fn a_session_over_pipes_streams_both_ways() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.send(&exec(
        &["sh", "-c", "while read l; do echo got $l; done; echo end >&2; exit 3"],
        None,
        true,
        false,
        true,
    ));
    assert!(matches!(client.receive(), AgentResponse::Started));
    for word in ["a", "b"] {
        client.send(&AgentRequest::Stdin { data: format!("{word}\n").into_bytes() });
        assert_eq!(client.until("\n"), format!("got {word}\n"));
    }
    assert_eq!(client.refused(&AgentRequest::Ping), "INVALID_REQUEST", "a request within a session");
    client.send(&AgentRequest::Stdin { data: vec![] });
    assert_eq!(client.session(), (String::new(), "end\n".into(), 3));
    assert!(matches!(client.ask(&AgentRequest::Ping), AgentResponse::Pong { .. }));
}

#[test]
fn a_session_carries_more_than_any_buffer_holds() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.send(&exec(&["cat"], None, true, false, false));
    assert!(matches!(client.receive(), AgentResponse::Started));
    let mut writer = common::Client(client.0.try_clone().unwrap());
    let sending = std::thread::spawn(move || {
        for n in 0..64_u8 {
            writer.send(&AgentRequest::Stdin { data: vec![n + 32; 256 * 1024] });
        }
        writer.send(&AgentRequest::Stdin { data: vec![] });
    });
    let (out, _, code) = client.session();
    sending.join().unwrap();
    assert_eq!((out.len(), code), (64 * 256 * 1024, 0));
    assert!(out.bytes().is_sorted());
    assert!(agent.resident() < 24 * 1024, "{} KiB resident", agent.resident());
}

#[test]
fn a_terminal_has_a_size_and_takes_another() {
    let agent = Agent::start();
    let mut client = agent.connect();
    client.send(&exec(&["sh", "-c", "stty size; read x; stty size; tty"], None, true, true, false));
    assert!(matches!(client.receive(), AgentResponse::Started));
    client.until("24 80\r\n");
    client.send(&AgentRequest::Resize { cols: 132, rows: 43 });
    client.send(&AgentRequest::Stdin { data: b"\n".to_vec() });
    let (out, err, code) = client.session();
    assert!(out.contains("43 132\r\n/dev/pts/"), "{out}");
    assert_eq!((err.as_str(), code), ("", 0));
}

#[test]
fn a_session_can_time_out() {
    let agent = Agent::start();
    let mut client = agent.connect();
    for tty in [false, true] {
        client.send(&exec(&["sleep", "1000"], Some(100), true, tty, false));
        assert!(matches!(client.receive(), AgentResponse::Started));
        assert_eq!(client.session().2, 124);
    }
}

#[test]
fn background_commands_answer_with_their_pid_and_outlive_the_connection() {
    let agent = Agent::start();
    let fifo = agent.root().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut client = agent.connect();
    let script = format!("read x < {0}; echo still $x > {0}", fifo.display());
    let AgentResponse::Completed { exit_code: 0, stdout, .. } =
        client.ask(&exec(&["sh", "-c", &script], None, false, false, true))
    else {
        panic!()
    };
    let pid: i32 = String::from_utf8(stdout).unwrap().parse().unwrap();
    drop(client);
    // A whole connection later it is there, and is reaped when it ends.
    assert_eq!(agent.connect().shell("echo other").1, "other\n");
    std::fs::write(&fifo, "here\n").unwrap();
    assert_eq!(std::fs::read_to_string(&fifo).unwrap(), "still here\n");
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        std::thread::yield_now();
    }
}

#[test]
fn connections_run_side_by_side() {
    let agent = Agent::start();
    let fifo = agent.root().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut slow = agent.connect();
    slow.send(&shell(&format!("cat {}", fifo.display())));
    let mut stalled = agent.connect();
    stalled.send_raw(&1_000_000_u32.to_be_bytes());
    let mut quick = agent.connect();
    for n in 0..20 {
        assert_eq!(quick.shell(&format!("echo {n}")).1, format!("{n}\n"));
    }
    std::fs::write(&fifo, "at last").unwrap();
    assert!(matches!(slow.receive(), AgentResponse::Completed { stdout, .. } if stdout == b"at last"));
}

#[test]
fn a_text_without_a_first_line_for_the_kernel_is_run_by_the_shell() {
    let agent = Agent::start();
    let script = agent.root().join("script");
    std::fs::write(&script, "echo \"$0 with $1\"\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = script.to_str().unwrap();
    let AgentResponse::Completed { stdout, exit_code: 0, .. } =
        agent.connect().ask(&exec(&[path, "words"], None, false, false, false))
    else {
        panic!()
    };
    assert_eq!(String::from_utf8(stdout).unwrap(), format!("{path} with words\n"));
}
