//! What a machine that really boots finds of its host: names and the SSH agent; and that it is started again.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use shipote_agent_protocol::{ports, read_message, write_message};
use shipote_machines::spec::{Restart, Spec};
use shipote_machines::state::State;
use smolvm_protocol_0::{AgentRequest, AgentResponse};
use support::{ask, image, machines, run, shell};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

#[tokio::test]
async fn names_the_ssh_agent_and_a_restart() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    let socket = machines.path().join("agent");
    let agent = UnixListener::bind(&socket).unwrap();
    let spec = Spec {
        memory_mib: 128,
        egress: vec!["localhost:80".into(), "127.0.0.1:80".into()],
        ssh_agent: Some(socket),
        restart: Restart::OnFailure,
        ..Spec::default()
    };
    machines.handle.create("network", spec).await.unwrap();

    machines.handle.start_machine("network").await.unwrap();
    machines.until(State::Running).await;
    let _way = machines.let_out("network").await;
    let guest = machines.handle.guest("network").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();

    // Names: what a rule allows, and nothing else.
    assert_eq!(run(&mut control, "cat /etc/resolv.conf").await.lines().next(), Some("nameserver 127.0.0.1"));
    let found = run(&mut control, "nslookup -type=a localhost. 127.0.0.1; true").await;
    assert!(found.lines().rev().any(|line| line.ends_with("127.0.0.1")) && !found.contains("NXDOMAIN"), "{found}");
    let denied = run(&mut control, "nslookup -type=a example.org. 127.0.0.1; true").await;
    assert!(denied.contains("NXDOMAIN"), "{denied}");

    // The SSH agent: its socket is its user's alone, and leads to the host's.
    assert_eq!(run(&mut control, "stat -c '%a %U' $SSH_AUTH_SOCK").await, "600 root\n");
    if let Some(client) = ssh_client() {
        let write = AgentRequest::FileWrite { path: "/tmp/client".into(), data: client, mode: Some(0o700) };
        assert!(matches!(ask(&mut control, &write).await, AgentResponse::Ok { .. }));
        let (said, ()) = tokio::join!(run(&mut control, "/tmp/client $SSH_AUTH_SOCK"), async {
            let (mut stream, _) = agent.accept().await.unwrap();
            let mut asked = [0; 4];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"keys");
            stream.write_all(b"none").await.unwrap();
        });
        assert_eq!(said, "none");
    }

    // A guest that dies is started again.
    write_message(&mut control, &shell("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")).await.unwrap();
    machines.until_again(State::Failed).await;
    machines.until_again(State::Running).await;
    let guest = machines.handle.guest("network").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    assert!(matches!(ask(&mut control, &AgentRequest::Ping).await, AgentResponse::Pong { .. }));
    machines.handle.stop("network", Duration::ZERO).await.unwrap();
    machines.until_again(State::Stopped).await;
    drop(read_message::<AgentResponse, _>(&mut control).await);
}

/// A static program that says `keys` to a Unix socket and prints what comes back; the guest has none that could.
fn ssh_client() -> Option<Vec<u8>> {
    const SOURCE: &str = r#"
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(int c, char **v) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char b[64];
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    (void)c;
    strncpy(a.sun_path, v[1], sizeof a.sun_path - 1);
    if (connect(s, (struct sockaddr *)&a, sizeof a) || write(s, "keys", 4) != 4) return 1;
    ssize_t n = read(s, b, sizeof b);
    return n > 0 && write(1, b, n) == n ? 0 : 1;
}
"#;
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("c.c"), dir.path().join("c"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = std::process::Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).output();
    if !built.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no compiler for the guest's SSH client");
        return None;
    }
    std::process::Command::new("strip").arg(&program).status().ok()?;
    std::fs::read(program).ok()
}
