//! Port 6006: files as they are.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::Read as _;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;

use common::{Agent, Client};
use serde_json::{Value, json};

/// Most bytes of one piece.
const PIECE: usize = 256 * 1024;

/// Says what is wanted; the answer.
fn open(agent: &Agent, wish: &Value) -> (Client, Value) {
    let mut client = Client(agent.connect_to("files.sock"));
    client.send_body(wish.to_string().as_bytes());
    let answer = answer(&mut client);
    (client, answer)
}

fn answer(client: &mut Client) -> Value {
    serde_json::from_slice(&client.receive_body().expect("an answer")).unwrap()
}

fn contents() -> Vec<u8> {
    (0..3 * PIECE + 11).map(|n| (n % 253) as u8).collect()
}

#[test]
fn a_file_goes_in_and_out_as_it_is() {
    let agent = Agent::start();
    let (mut client, said) = open(&agent, &json!({"method": "write", "path": "/new/folder/file", "mode": 0o640}));
    assert_eq!(said["status"], "ok", "{said}");
    for piece in contents().chunks(PIECE) {
        client.send_body(piece);
    }
    let place = agent.root().join("new/folder/file");
    assert!(!place.exists(), "it is not there before it is whole");
    client.send_body(b"");
    assert_eq!(answer(&mut client)["status"], "ok");
    assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o640);
    assert!(std::fs::read(&place).unwrap() == contents());

    let (mut client, said) = open(&agent, &json!({"method": "read", "path": "/new/folder/file"}));
    assert_eq!(said["status"], "ok", "{said}");
    let mut read = Vec::new();
    loop {
        let piece = client.receive_body().unwrap();
        read.extend_from_slice(&piece);
        if piece.is_empty() {
            break;
        }
    }
    assert!(read == contents());
    assert_eq!(answer(&mut client)["status"], "ok");
}

#[test]
fn a_file_that_is_cut_leaves_what_was_there() {
    let agent = Agent::start();
    let place = agent.root().join("file");
    std::fs::write(&place, "old").unwrap();
    for lie in [false, true] {
        let (mut client, said) = open(&agent, &json!({"method": "write", "path": "/file"}));
        assert_eq!(said["status"], "ok", "{said}");
        client.send_body(&contents()[..PIECE]);
        if lie {
            client.send_raw(&u32::MAX.to_be_bytes());
        } else {
            client.send_raw(&[0, 0]);
            client.0.shutdown(Shutdown::Write).unwrap();
        }
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "there is no answer to a file that was cut");
    }
    assert_eq!(std::fs::read(&place).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(agent.root()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let agent = Agent::start();
    std::fs::create_dir(agent.root().join("folder")).unwrap();
    std::os::unix::fs::symlink("/etc", agent.root().join("out")).unwrap();
    for (wish, code) in [
        (json!({"method": "read", "path": "/none"}), "NOT_FOUND"),
        (json!({"method": "read", "path": "/folder"}), "INVALID_REQUEST"),
        (json!({"method": "read", "path": "/out/passwd"}), "INVALID_REQUEST"),
        (json!({"method": "write", "path": "/out/passwd"}), "INVALID_REQUEST"),
        (json!({"method": "write", "path": "relative"}), "INVALID_REQUEST"),
        (json!({"method": "write", "path": "/file", "mode": 0o10000}), "INVALID_REQUEST"),
        (json!({"method": "move", "path": "/file"}), "INVALID_REQUEST"),
    ] {
        let (_client, said) = open(&agent, &wish);
        assert_eq!(said["code"], code, "{wish}: {said}");
    }
    // a folder is only found to be one at the end
    let (mut client, said) = open(&agent, &json!({"method": "write", "path": "/folder"}));
    assert_eq!(said["status"], "ok", "{said}");
    client.send_body(b"file");
    client.send_body(b"");
    assert_eq!(answer(&mut client)["code"], "FILE_IO_FAILED");
    let mut client = Client(agent.connect_to("files.sock"));
    client.send_raw(&u32::MAX.to_be_bytes());
    assert_eq!(answer(&mut client)["code"], "INVALID_REQUEST");
}

#[test]
fn those_that_stall_hold_up_no_request() {
    let agent = Agent::start();
    let stalled: Vec<_> = (0..20)
        .map(|n| {
            let mut client = Client(agent.connect_to("files.sock"));
            client.send_body(json!({"method": "write", "path": format!("/stalled-{n}")}).to_string().as_bytes());
            client
        })
        .collect();
    let mut control = agent.connect();
    assert!(matches!(
        control.ask(&smolvm_protocol_0::AgentRequest::Ping),
        smolvm_protocol_0::AgentResponse::Pong { .. }
    ));
    drop(stalled);
    let (_client, said) = open(&agent, &json!({"method": "write", "path": "/next"}));
    assert_eq!(said["status"], "ok", "{said}");
}
