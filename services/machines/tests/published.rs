//! What a machine that really boots publishes, reached from the host.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use shipote_agent_protocol::{Reach, ports};
use shipote_machines::actor::Change;
use shipote_machines::guest::Guest;
use shipote_machines::health::{Check, Health};
use shipote_machines::published;
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use smolvm_protocol_0::{AgentRequest, AgentResponse};
use support::{Machines, ask, image, machines, machines_at};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// Starts a server in the guest that says how many bytes it was sent, which it knows once all have come.
async fn serve_counts(guest: &Guest) {
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    let request = AgentRequest::VmExec {
        command: ["nc", "-ll", "-p", "7000", "-e", "wc", "-c"].map(str::to_owned).to_vec(),
        env: vec![],
        workdir: None,
        timeout_ms: None,
        interactive: false,
        tty: false,
        background: true,
    };
    assert!(matches!(ask(&mut control, &request).await, AgentResponse::Completed { exit_code: 0, .. }));
    while guest.reach(&Reach::Tcp { port: 7000 }).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How the machine does now that it does otherwise.
async fn health(machines: &mut Machines) -> Health {
    loop {
        if let Change::Health(shown) = machines.changes.recv().await.unwrap() {
            return shown.health.unwrap();
        }
    }
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Sends so many bytes, ends, and hears the answer.
async fn count<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut stream: S, bytes: usize) -> String {
    stream.write_all(&vec![b'x'; bytes]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.trim().to_owned()
}

#[tokio::test]
async fn a_published_port_is_reached_and_outlives_the_service() {
    let Some(image) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut machines = machines_at(image, dir.path(), Duration::from_secs(300));
    let (port, unused) = (free_port().await, free_port().await);
    let spec = Spec {
        memory_mib: 128,
        publish: vec![format!("{port}:7000"), format!("{unused}:/run/nobody"), "7000".into()],
        health: Some(Check { port: Some(7000), interval_s: 1, failures: 1, start_s: 0, ..Check::default() }),
        ..Spec::default()
    };
    machines.handle.create("web", spec).await.unwrap();
    machines.handle.start_machine("web").await.unwrap();
    machines.until(State::Running).await;
    let guest = machines.handle.guest("web").await.unwrap();
    // Nobody listens yet, and then somebody does.
    let Health::Unhealthy(reason) = health(&mut machines).await else { panic!("healthy without a server") };
    assert!(reason.contains("port 7000"), "{reason}");
    serve_counts(&guest).await;
    assert_eq!(health(&mut machines).await, Health::Healthy);

    // One direction ends, the other goes on: past what any buffer on the way holds.
    let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert_eq!(count(client, 3_000_000).await, "3000000");
    let handed = published::connect(&guest, &Reach::Tcp { port: 7000 }).await.unwrap();
    handed.set_nonblocking(true).unwrap();
    assert_eq!(count(UnixStream::from_std(handed).unwrap(), 5).await, "5");
    let error = published::connect(&guest, &Reach::Tcp { port: 7001 }).await.unwrap_err().to_string();
    assert!(error.contains("port 7001") && error.contains("refused"), "{error}");
    let mut client = TcpStream::connect(("127.0.0.1", unused)).await.unwrap();
    assert!(client.read(&mut [0]).await.is_err(), "a reset where nobody answers");

    // Another service takes the machine over, and the port with it.
    machines.handle.leave().await;
    let mut machines = machines_at(PathBuf::from("/nowhere"), dir.path(), Duration::from_secs(300));
    machines.until(State::Running).await;
    let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert_eq!(count(client, 7).await, "7");
    machines.handle.shut_down().await;
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_before_anything_runs() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let image = tempfile::tempdir().unwrap();
    for name in ["vmlinux", "initramfs.cpio", "vhost-device-vsock"] {
        std::fs::write(image.path().join(name), "").unwrap();
    }
    let mut machines = machines(image.path().to_owned());
    let publish = vec![format!("{port}:80")];
    machines.handle.create("web", Spec { publish, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("web").await.unwrap();
    let shown = machines.until_again(State::Failed).await;
    assert!(shown.reason.contains(&format!("127.0.0.1:{port}")), "{}", shown.reason);
}
