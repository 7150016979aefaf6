//! Ports 5000 and 5001, spoken with the public release of the protocol crate.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use common::{Agent, wait_unlocked};
use smolvm_protocol_0::{GuestMessage, HostMessage, encode_message};

struct Line(UnixStream);

impl Line {
    fn say(&mut self, message: &HostMessage) {
        self.0.write_all(&encode_message(message).unwrap()).unwrap();
    }

    fn hear(&mut self) -> Option<GuestMessage> {
        let mut header = [0; 4];
        self.0.read_exact(&mut header).ok()?;
        let mut body = vec![0; u32::from_be_bytes(header) as usize];
        self.0.read_exact(&mut body).unwrap();
        Some(serde_json::from_slice(&body).unwrap())
    }

    fn open(agent: &Agent, door: &str, token: &str) -> Self {
        let mut line = Self(agent.connect_to(door));
        line.say(&HostMessage::Auth { token: token.into(), protocol_version: 1 });
        assert!(matches!(line.hear(), Some(GuestMessage::AuthOk)));
        assert!(matches!(line.hear(), Some(GuestMessage::Ready)));
        line
    }

    fn run(&mut self, request_id: u64, script: &str) {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        self.say(&HostMessage::Run {
            request_id,
            command,
            env: vec![("GREETING".into(), "hello".into())],
            workdir: None,
        });
    }

    /// Output, code and reason of a request, whatever else comes in between.
    fn end(&mut self, wanted: u64) -> (String, i32, String) {
        let mut out = Vec::new();
        loop {
            match self.hear().unwrap() {
                GuestMessage::Stdout { request_id, data, truncated }
                | GuestMessage::Stderr { request_id, data, truncated } => {
                    assert!(!truncated);
                    if request_id == wanted {
                        out.extend(data);
                    }
                }
                GuestMessage::Exit { request_id, code, reason } if request_id == wanted => {
                    return (String::from_utf8(out).unwrap(), code, reason);
                }
                GuestMessage::Started { .. } | GuestMessage::Exit { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn refusal(&mut self, wanted: Option<u64>) -> String {
        loop {
            match self.hear().unwrap() {
                GuestMessage::Error { request_id, message } => {
                    assert_eq!(request_id, wanted, "{message}");
                    return message;
                }
                GuestMessage::Started { .. } | GuestMessage::Stdout { .. } | GuestMessage::Exit { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn only_who_knows_the_token_is_let_in() {
    let agent = Agent::with(&["--secret", "machine"]);
    let token = shipote_agent_protocol::workload_token("machine");
    for door in ["workload.sock", "logs.sock"] {
        for wrong in ["", "machine", &token[1..]] {
            let mut line = Line(agent.connect_to(door));
            line.say(&HostMessage::Auth { token: wrong.into(), protocol_version: 1 });
            assert!(matches!(line.hear(), Some(GuestMessage::AuthFailed)));
            assert!(line.hear().is_none(), "the connection ends");
        }
        let mut line = Line(agent.connect_to(door));
        line.say(&HostMessage::Auth { token: token.clone(), protocol_version: 7 });
        let Some(GuestMessage::Error { request_id: None, message }) = line.hear() else { panic!() };
        assert!(message.contains('7') && message.contains('1'), "{message}");
        assert!(matches!(line.hear(), Some(GuestMessage::AuthFailed)));
        let mut line = Line(agent.connect_to(door));
        line.say(&HostMessage::Stop { timeout_ms: 0 });
        assert!(matches!(line.hear(), Some(GuestMessage::AuthFailed)), "authentication comes first");
        drop(Line::open(&agent, door, &token));
    }
}

#[test]
fn many_commands_at_once_are_told_apart() {
    let agent = Agent::start();
    let mut line = Line::open(&agent, "workload.sock", "");
    let fifo = agent.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = fifo.display();
    // The first ends only once the second has run: they run side by side.
    line.run(1, &format!("echo $GREETING; cat {fifo} >/dev/null; exit 3"));
    line.run(2, &format!("echo two; echo x > {fifo}"));
    assert_eq!(line.end(1), ("hello\n".into(), 3, "exited".into()));
    // What says more than any buffer holds comes whole.
    line.run(3, "head -c 3000000 /dev/zero | tr '\\0' x");
    assert_eq!(line.end(3).0.len(), 3_000_000);
    line.say(&HostMessage::Exec {
        request_id: 4,
        command: ["sh", "-c", "test -t 1 && stty size"].map(str::to_owned).to_vec(),
        tty: true,
    });
    assert_eq!(line.end(4), ("24 80\r\n".into(), 0, "exited".into()));

    line.run(5, "echo here; exec sleep 1000");
    line.run(5, "true");
    assert!(line.refusal(Some(5)).contains("runs already"));
    line.say(&HostMessage::Signal { request_id: 5, signal: 1000 });
    assert!(line.refusal(Some(5)).contains("no signal"));
    line.say(&HostMessage::Signal { request_id: 5, signal: 15 });
    let (_, code, reason) = line.end(5);
    assert_eq!((code, reason.as_str()), (143, "signal 15"));
    line.say(&HostMessage::Signal { request_id: 5, signal: 15 });
    assert!(line.refusal(Some(5)).contains("no command"));
    line.say(&HostMessage::Run { request_id: 6, command: vec![], env: vec![], workdir: None });
    assert!(line.refusal(Some(6)).contains("empty"));
    line.say(&HostMessage::Exec { request_id: 7, command: vec!["/no/such/program".into()], tty: false });
    assert!(line.refusal(Some(7)).contains("/no/such/program"));
    line.say(&HostMessage::Auth { token: String::new(), protocol_version: 1 });
    line.refusal(None);
    // What is no message is answered, and the connection goes on.
    line.0.write_all(b"\0\0\0\x03{,}").unwrap();
    line.refusal(None);
    // The end of input is not the end of what runs.
    line.run(8, "sleep 0.2; echo late");
    line.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(line.end(8).0, "late\n");
    assert!(line.hear().is_none());
}

#[test]
fn commands_end_with_their_connection() {
    let agent = Agent::start();
    let mut line = Line::open(&agent, "workload.sock", "");
    let lock = agent.dir.path().join("lock");
    line.run(1, &format!("exec flock {} sh -c 'echo held; sleep 1000'", lock.display()));
    while !matches!(line.hear(), Some(GuestMessage::Stdout { .. })) {}
    drop(line);
    wait_unlocked(&lock);
}

#[test]
fn logs_have_all_of_it_and_stop_ends_everything() {
    let mut agent = Agent::start();
    let mut logs = Line::open(&agent, "logs.sock", "");
    let mut first = Line::open(&agent, "workload.sock", "");
    let mut second = Line::open(&agent, "workload.sock", "");
    first.run(1, "echo one");
    assert_eq!(first.end(1).0, "one\n");
    assert_eq!(logs.end(1), ("one\n".into(), 0, "exited".into()));
    second.run(2, "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done");
    while !matches!(logs.hear(), Some(GuestMessage::Stdout { request_id: 2, .. })) {}
    first.run(3, "trap '' TERM; echo deaf; while :; do sleep 0.05; done");
    while !matches!(logs.hear(), Some(GuestMessage::Stdout { request_id: 3, .. })) {}
    first.say(&HostMessage::Stop { timeout_ms: 300 });
    let (said, code, _) = second.end(2);
    // Its shell may tell of the sleep that ended with it.
    assert!(said.contains("bye\n") && code == 5, "{said} {code}");
    assert_eq!(first.end(3).1, 137, "one that does not listen is killed");
    assert!(agent.wait().success());
}
