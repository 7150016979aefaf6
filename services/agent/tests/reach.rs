//! Port 6005: what listens beside the agent, reached through it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::Read as _;
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};

use common::{Agent, Client};
use serde_json::json;
use smolvm_protocol_0::{AgentRequest, AgentResponse};

/// Asks to reach something; the answer.
fn open(agent: &Agent, target: &serde_json::Value) -> (Client, serde_json::Value) {
    let mut client = Client(agent.connect_to("reach.sock"));
    client.send_body(target.to_string().as_bytes());
    let answer = serde_json::from_slice(&client.receive_body().unwrap()).unwrap();
    (client, answer)
}

fn record(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn receive(client: &mut Client) -> Vec<u8> {
    let mut header = [0; 2];
    client.0.read_exact(&mut header).unwrap();
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(header))];
    client.0.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads a question to its end and only then answers.
fn answer(mut stream: impl std::io::Read + std::io::Write) {
    let mut question = String::new();
    stream.read_to_string(&mut question).unwrap();
    stream.write_all(format!("{question}?").as_bytes()).unwrap();
}

#[test]
fn a_port_and_a_socket_are_reached_and_half_close_passes() {
    let agent = Agent::start();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let path = agent.dir.path().join("server.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let servers = std::thread::spawn(move || {
        answer(tcp.accept().unwrap().0);
        answer(unix.accept().unwrap().0);
    });
    for target in [json!({"method": "tcp", "port": port}), json!({"method": "unix", "path": path})] {
        let (mut client, said) = open(&agent, &target);
        assert_eq!(said["status"], "ok", "{said}");
        client.send_raw(&record(b"who"));
        client.send_raw(&record(b""));
        assert_eq!(receive(&mut client), b"who?");
        assert_eq!(receive(&mut client), b"", "the end is said");
        client.0.shutdown(Shutdown::Both).unwrap();
    }
    servers.join().unwrap();
}

#[test]
fn what_is_not_there_or_not_understood_is_said() {
    let agent = Agent::start();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (target, code) in [
        (json!({"method": "tcp", "port": unused}), "CONNECT_FAILED"),
        (json!({"method": "unix", "path": "/nowhere"}), "CONNECT_FAILED"),
        (json!({"method": "tcp", "port": 65536}), "INVALID_REQUEST"),
        (json!({"method": "udp", "port": 1}), "INVALID_REQUEST"),
    ] {
        let (mut client, said) = open(&agent, &target);
        assert_eq!(said["code"], code, "{said}");
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "nothing follows");
    }
    let mut client = Client(agent.connect_to("reach.sock"));
    client.send_raw(&u32::MAX.to_be_bytes());
    assert!(String::from_utf8(client.receive_body().unwrap()).unwrap().contains("4294967295"));
}

#[test]
fn a_connection_that_is_cut_is_cut_for_the_server_too() {
    let agent = Agent::start();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = json!({"method": "tcp", "port": server.local_addr().unwrap().port()});
    for end in [&b""[..], &[0xff, 0xff, 0][..], &[0, 9, b'x'][..]] {
        let (mut client, _) = open(&agent, &target);
        let (mut stream, _) = server.accept().unwrap();
        client.send_raw(&record(b"half"));
        let mut half = [0; 4];
        stream.read_exact(&mut half).unwrap();
        client.send_raw(end);
        drop(client);
        let error = stream.read(&mut [0; 16]).and_then(|n| if n == 0 { Ok(0) } else { stream.read(&mut [0; 16]) });
        assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "no end where none was said");
    }
}

#[test]
fn the_secret_comes_first_and_a_flood_is_refused_without_harm_to_others() {
    let agent = Agent::with(&["--secret", "s"]);
    let (_, said) = open(&agent, &json!({"method": "tcp", "port": 1}));
    assert_eq!(said["code"], "UNAUTHENTICATED", "{said}");

    let agent = Agent::start();
    let mut flood: Vec<UnixStream> = (0..300).map(|_| agent.connect_to("reach.sock")).collect();
    let refused = flood.iter_mut().skip(200).all(|stream| {
        let mut header = [0; 4];
        stream.read_exact(&mut header).is_ok()
    });
    assert!(refused, "beyond the limit there is an answer at once");
    let mut control = agent.connect();
    control.send(&AgentRequest::Ping);
    assert!(matches!(control.receive(), AgentResponse::Pong { .. }));
}
