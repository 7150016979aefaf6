//! Everything that is not an exec: framing, files, the greeting, both releases of the public crate as clients.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Agent, Client};
use smolvm_protocol_0::{AgentRequest, AgentResponse};
use smolvm_protocol_1 as newer;

fn read(client: &mut Client, path: &str) -> Result<Vec<u8>, String> {
    client.send(&AgentRequest::FileRead { path: path.into() });
    let mut bytes = Vec::new();
    loop {
        match client.receive() {
            AgentResponse::DataChunk { data, done: false } => bytes.extend(data),
            AgentResponse::DataChunk { data, done: true } => {
                assert!(data.is_empty(), "the last chunk is empty");
                return Ok(bytes);
            }
            AgentResponse::Error { code, .. } => return Err(code.unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

fn write(path: &str, data: &[u8], mode: Option<u32>) -> AgentRequest {
    AgentRequest::FileWrite { path: path.into(), data: data.into(), mode }
}

fn is_ok(response: &AgentResponse) -> bool {
    matches!(response, AgentResponse::Ok { .. })
}

#[test]
fn a_request_may_come_bare_or_in_an_envelope_and_nonsense_leaves_the_connection_usable() {
    let agent = Agent::start();
    let mut client = agent.connect();
    for body in [&b"{\"method\":\"ping\"}"[..], b"{\"method\":\"ping\",\"trace_id\":\"t\",\"more\":[1]}"] {
        client.send_body(body);
        assert!(matches!(client.receive(), AgentResponse::Pong { version: 1 }));
    }
    for body in [&b""[..], b"{", b"[]", b"{\"method\":\"no_such\"}", b"{\"method\":\"query\"}", b"\xff\xfe"] {
        client.send_body(body);
        let AgentResponse::Error { code, .. } = client.receive() else { panic!("{body:?}") };
        assert_eq!(code.as_deref(), Some("INVALID_REQUEST"), "{body:?}");
    }
    assert!(matches!(client.ask(&AgentRequest::Ping), AgentResponse::Pong { .. }));
}

#[test]
fn a_frame_over_the_limit_is_skipped_and_one_far_over_it_ends_the_connection() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let size = 33 * 1024 * 1024;
    client.send_body(&vec![b' '; size]);
    let AgentResponse::Error { message, code } = client.receive() else { panic!() };
    assert_eq!(code.as_deref(), Some("MESSAGE_TOO_LARGE"));
    assert!(message.contains(&size.to_string()) && message.contains("33554432"), "{message}");
    assert!(matches!(client.ask(&AgentRequest::Ping), AgentResponse::Pong { .. }));
    assert!(agent.resident() < 24 * 1024, "{} KiB resident", agent.resident());

    client.send_raw(&u32::MAX.to_be_bytes());
    let AgentResponse::Error { code, .. } = client.receive() else { panic!() };
    assert_eq!(code.as_deref(), Some("MESSAGE_TOO_LARGE"));
    assert!(client.receive_body().is_none());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "no runtime here that it could block")]
fn many_large_frames_at_once_take_no_more_memory_than_all_may() {
    let agent = Agent::start();
    let size = 30 * 1024 * 1024;
    let data = "x".repeat(size);
    let body = std::sync::Arc::new(format!("{{\"method\":\"ping\",\"more\":\"{data}\"}}").into_bytes());
    let senders: Vec<_> = (0..12)
        .map(|_| {
            let (mut client, body) = (agent.connect(), std::sync::Arc::clone(&body));
            std::thread::spawn(move || {
                client.send_body(&body);
                assert!(matches!(client.receive(), AgentResponse::Pong { .. }));
            })
        })
        .collect();
    // Twelve times 30 MiB; one of them is read at a time, and all are answered.
    let mut most = 0;
    while !senders.iter().all(std::thread::JoinHandle::is_finished) {
        most = most.max(agent.resident());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    for sender in senders {
        sender.join().unwrap();
    }
    assert!(most < 100 * 1024, "{most} KiB resident");
}

#[test]
fn files_are_written_whole_with_their_mode_and_read_back() {
    use std::os::unix::fs::PermissionsExt as _;
    let agent = Agent::start();
    let mut client = agent.connect();
    let bytes: Vec<u8> = (0..1024 * 1024).map(|n: u32| n.to_le_bytes()[1]).collect();
    assert!(is_ok(&client.ask(&write("/new/dir/file", &bytes, Some(0o640)))));
    let path = agent.root().join("new/dir/file");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(read(&mut client, "/new/dir/file").unwrap(), bytes);
    assert!(is_ok(&client.ask(&write("/new/dir/file", b"", None))));
    assert_eq!(read(&mut client, "/new/dir/file").unwrap(), b"");
    let names: Vec<_> = std::fs::read_dir(agent.root().join("new/dir")).unwrap().collect();
    assert_eq!(names.len(), 1, "no temporary file is left");
}

#[test]
fn uploads_in_chunks_replace_the_file_only_when_complete() {
    let agent = Agent::start();
    let mut client = agent.connect();
    assert!(is_ok(&client.ask(&write("/file", b"old", None))));
    let begin = |total_size| AgentRequest::FileWriteBegin { path: "/file".into(), mode: None, total_size };
    let chunk = |data: &[u8], done| AgentRequest::FileWriteChunk { data: data.into(), done };

    assert_eq!(client.refused(&chunk(b"x", true)), "INVALID_REQUEST", "no upload");
    for (announced, sent) in [(5, &b"four"[..]), (3, b"four")] {
        assert!(is_ok(&client.ask(&begin(announced))));
        assert_eq!(client.refused(&chunk(sent, true)), "INVALID_REQUEST", "{announced} announced");
        assert_eq!(read(&mut client, "/file").unwrap(), b"old");
    }
    assert_eq!(client.refused(&begin(4 * 1024 * 1024 * 1024 + 1)), "INVALID_REQUEST");
    assert!(is_ok(&client.ask(&begin(4 * 1024 * 1024 * 1024))), "the limit itself is none");

    assert!(is_ok(&client.ask(&begin(3_000_000))));
    for n in 0..3 {
        assert!(is_ok(&client.ask(&chunk(&vec![n; 1_000_000], n == 2))));
        if n < 2 {
            assert_eq!(read(&mut client, "/file").unwrap(), b"old");
        }
    }
    let new = read(&mut client, "/file").unwrap();
    assert_eq!((new.len(), new.is_sorted()), (3_000_000, true));

    assert!(is_ok(&client.ask(&begin(10))));
    assert!(is_ok(&client.ask(&chunk(b"half", false))));
    drop(client);
    let mut client = agent.connect();
    while std::fs::read_dir(agent.root()).unwrap().count() > 1 {
        // The abandoned upload's temporary file goes when the agent has seen the connection end.
        assert!(matches!(client.ask(&AgentRequest::Ping), AgentResponse::Pong { .. }));
    }
}

#[test]
fn paths_that_escape_are_refused_both_ways() {
    use std::os::unix::fs::symlink;
    let agent = Agent::start();
    let outside = agent.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "s").unwrap();
    symlink(&outside, agent.root().join("absolute")).unwrap();
    symlink("../outside", agent.root().join("relative")).unwrap();
    symlink(outside.join("secret"), agent.root().join("last")).unwrap();
    let mut client = agent.connect();
    for path in
        ["/absolute/secret", "/relative/secret", "/../outside/secret", "/a/../../outside/secret", "relative", "", "/"]
    {
        assert_eq!(client.refused(&write(path, b"x", None)), "INVALID_REQUEST", "{path}");
        assert_eq!(read(&mut client, path).unwrap_err(), "INVALID_REQUEST", "{path}");
    }
    assert_eq!(read(&mut client, "/last").unwrap_err(), "INVALID_REQUEST");
    // Written over, not through.
    assert!(is_ok(&client.ask(&write("/last", b"mine", None))));
    assert_eq!(read(&mut client, "/last").unwrap(), b"mine");
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"s");
}

#[test]
fn files_that_cannot_be_had_say_why() {
    let agent = Agent::start();
    std::fs::create_dir(agent.root().join("dir")).unwrap();
    nix::unistd::mkfifo(&agent.root().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut client = agent.connect();
    assert_eq!(read(&mut client, "/none").unwrap_err(), "NOT_FOUND");
    assert_eq!(read(&mut client, "/none/file").unwrap_err(), "NOT_FOUND");
    assert_eq!(read(&mut client, "/fifo").unwrap_err(), "INVALID_REQUEST");
    assert_eq!(read(&mut client, "/dir").unwrap_err(), "INVALID_REQUEST");
    assert_eq!(client.refused(&write("/dir", b"x", None)), "FILE_IO_FAILED");
    assert_eq!(client.refused(&write("/big", &vec![0; 1024 * 1024 + 1], None)), "INVALID_REQUEST");
    assert_eq!(client.refused(&write("/mode", b"", Some(0o1_000_000))), "INVALID_REQUEST");
}

#[test]
fn every_request_is_answered_in_words_both_releases_know() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let image = || "alpine".to_owned();
    let expected: Vec<(AgentRequest, Option<&str>)> = vec![
        (AgentRequest::Pull { image: image(), oci_platform: None, auth: None }, Some("PULL_FAILED")),
        (AgentRequest::Query { image: image() }, Some("NOT_FOUND")),
        (AgentRequest::ListImages, None),
        (AgentRequest::GarbageCollect { dry_run: true, purge_all: true }, None),
        (AgentRequest::PrepareOverlay { image: image(), workload_id: "w".into() }, Some("OVERLAY_FAILED")),
        (AgentRequest::CleanupOverlay { workload_id: "w".into() }, None),
        (AgentRequest::FormatStorage, Some("FORMAT_FAILED")),
        (AgentRequest::StorageStatus, None),
        (AgentRequest::NetworkTest { url: "http://192.0.2.1/".into() }, None),
        (AgentRequest::ExportLayer { image_digest: "sha256:0".into(), layer_index: 0 }, Some("EXPORT_FAILED")),
    ];
    for (request, code) in expected {
        client.send(&request);
        let body = client.receive_body().unwrap();
        serde_json::from_slice::<newer::AgentResponse>(&body).unwrap();
        match serde_json::from_slice(&body).unwrap() {
            AgentResponse::Ok { .. } => assert_eq!(code, None, "{request:?}"),
            AgentResponse::Error { code: got, .. } => assert_eq!(got.as_deref(), code, "{request:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_newer_release_drives_the_agent_too() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let mut ask = |request: newer::AgentRequest| -> newer::AgentResponse {
        client.send_raw(&newer::encode_message(&request).unwrap());
        serde_json::from_slice(&client.receive_body().unwrap()).unwrap()
    };
    assert!(matches!(ask(newer::AgentRequest::Ping), newer::AgentResponse::Pong { version: 1, .. }));
    let run = newer::AgentRequest::VmExec {
        command: vec!["echo".into(), "hello".into()],
        env: vec![],
        workdir: None,
        timeout_ms: Some(60_000),
        interactive: false,
        tty: false,
        background: false,
        stdin_data: None,
    };
    assert!(matches!(ask(run), newer::AgentResponse::Completed { exit_code: 0, stdout, .. } if stdout == b"hello\n"));
    let unknown = newer::AgentRequest::MemoryStatus;
    assert!(matches!(ask(unknown), newer::AgentResponse::Error { code: Some(code), .. } if code == "INVALID_REQUEST"));
}

#[test]
fn with_a_secret_a_connection_must_begin_with_it() {
    let agent = Agent::with(&["--secret", "open sesame"]);
    for body in [
        &b"{\"method\":\"ping\"}"[..],
        b"{\"method\":\"hello\",\"secret\":\"open sesamf\"}",
        b"{\"method\":\"hello\",\"secret\":\"\"}",
        b"x",
    ] {
        let mut client = agent.connect();
        client.send_body(body);
        let AgentResponse::Error { code, .. } = client.receive() else { panic!() };
        assert_eq!(code.as_deref(), Some("UNAUTHENTICATED"));
        assert!(client.receive_body().is_none(), "the connection ends");
    }
    let mut client = agent.connect();
    client.send_body(b"{\"method\":\"hello\",\"secret\":\"open sesame\"}");
    assert!(is_ok(&client.receive()));
    assert!(matches!(client.ask(&AgentRequest::Ping), AgentResponse::Pong { .. }));
}

#[test]
fn connections_past_the_limit_are_told_so() {
    let agent = Agent::start();
    let mut held: Vec<Client> = (0..64).map(|_| agent.connect()).collect();
    for client in &mut held {
        assert!(matches!(client.ask(&AgentRequest::Ping), AgentResponse::Pong { .. }));
    }
    let AgentResponse::Error { code, .. } = agent.connect().receive() else { panic!() };
    assert_eq!(code.as_deref(), Some("TOO_MANY_CONNECTIONS"));
}

#[test]
fn shutdown_is_answered_before_the_end() {
    let mut agent = Agent::start();
    let mut client = agent.connect();
    let AgentResponse::Ok { data: Some(data) } = client.ask(&AgentRequest::Shutdown) else { panic!() };
    assert_eq!(data["shutdown"], true);
    drop(client);
    assert!(agent.wait().success());
}
