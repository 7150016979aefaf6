//! Two releases of the public protocol crate, as clients of an agent in a machine that really boots: every request, every
//! answer, every error code that can occur. What needs no machine is tested beside the agent, images in `images.rs`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use serde::Serialize;
use shipote_agent_protocol::{ports, read_message, workload_token, write_message};
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use smolvm_protocol_0::{self as old, GuestMessage, HostMessage};
use smolvm_protocol_1 as new;
use support::{image, in_image, machines, processes, refused, run, shell};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

/// Asks with one release, and has both read the answer.
async fn ask(stream: &mut UnixStream, request: &impl Serialize) -> old::AgentResponse {
    write_message(stream, request).await.unwrap();
    hear(stream).await
}

async fn hear(stream: &mut UnixStream) -> old::AgentResponse {
    let answer: serde_json::Value = read_message(stream).await.unwrap().unwrap();
    let _: new::AgentResponse = serde_json::from_value(answer.clone()).unwrap();
    serde_json::from_value(answer).unwrap()
}

fn code(answer: old::AgentResponse) -> String {
    match answer {
        old::AgentResponse::Error { code, .. } => code.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_request_is_answered_as_the_protocol_says() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    machines.handle.create("conformance", Spec { memory_mib: 160, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("conformance").await.unwrap();
    machines.until(State::Running).await;
    let guest = machines.handle.guest("conformance").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();

    // Each request of the newer release that the older one has too.
    use new::AgentRequest as R;
    assert!(matches!(ask(&mut control, &R::Ping).await, old::AgentResponse::Pong { version: 1 }));
    let envelope = new::Envelope::with_trace_id(R::Ping, Some("trace".into()));
    assert!(matches!(ask(&mut control, &envelope).await, old::AgentResponse::Pong { .. }));
    for (request, expected) in [
        (serde_json::json!({"method": "query", "image": "none"}), "NOT_FOUND"),
        (
            serde_json::json!({"method": "pull", "image": "docker-archive:/none.tar", "oci_platform": null}),
            "PULL_FAILED",
        ),
        (serde_json::json!({"method": "pull", "image": "not an image", "oci_platform": null}), "PULL_FAILED"),
        (serde_json::json!({"method": "pull", "image": "a", "oci_platform": "linux"}), "PULL_FAILED"),
        // No rule lets it reach anything.
        (serde_json::json!({"method": "pull", "image": "127.0.0.1:5000/a", "oci_platform": null}), "PULL_FAILED"),
        (serde_json::json!({"method": "prepare_overlay", "image": "none", "workload_id": "w"}), "NOT_FOUND"),
        (serde_json::json!({"method": "prepare_overlay", "image": "none", "workload_id": "../w"}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "cleanup_overlay", "workload_id": ".."}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "export_layer", "image_digest": "sha256:0", "layer_index": 0}), "NOT_FOUND"),
        (serde_json::json!({"method": "format_storage"}), "FORMAT_FAILED"),
        (serde_json::json!({"method": "vm_exec", "command": [], "workdir": null}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "vm_exec", "command": ["/none"], "workdir": null}), "SPAWN_FAILED"),
        (serde_json::json!({"method": "vm_exec", "command": ["true"], "workdir": "/none"}), "SPAWN_FAILED"),
        (serde_json::json!({"method": "stdin", "data": ""}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "resize", "cols": 1, "rows": 1}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "file_read", "path": "/none"}), "NOT_FOUND"),
        (serde_json::json!({"method": "file_read", "path": "/proc/self/mem"}), "FILE_IO_FAILED"),
        (serde_json::json!({"method": "file_read", "path": "/../etc/passwd"}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "file_write", "path": "relative", "data": ""}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "file_write", "path": "/proc/none/file", "data": ""}), "NOT_FOUND"),
        (serde_json::json!({"method": "file_write_begin", "path": "/f", "total_size": u64::MAX}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "file_write_chunk", "data": "", "done": true}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "no_such_method"}), "INVALID_REQUEST"),
        (serde_json::json!({"method": "ping", "unknown": {"field": 1}}), ""),
        (serde_json::json!([]), "INVALID_REQUEST"),
    ] {
        let answer = ask(&mut control, &request).await;
        match expected {
            "" => assert!(matches!(answer, old::AgentResponse::Pong { .. })),
            _ => assert_eq!(code(answer), expected, "{request}"),
        }
    }
    for request in [R::ListImages, R::GarbageCollect { dry_run: true, purge_all: true }, R::StorageStatus] {
        assert!(matches!(ask(&mut control, &request).await, old::AgentResponse::Ok { data: Some(_) }), "{request:?}");
    }
    let answer = ask(&mut control, &R::CleanupOverlay { workload_id: "none".into() }).await;
    assert!(matches!(answer, old::AgentResponse::Ok { .. }));
    let old::AgentResponse::Ok { data: Some(reached) } =
        ask(&mut control, &R::NetworkTest { url: "1.1.1.1:53".into() }).await
    else {
        panic!()
    };
    assert_eq!(reached["reachable"], false);

    // In an image: one made of the guest's own shell.
    run(&mut control, "mkdir -p /tmp/r/bin; cp /bin/busybox /tmp/r/bin/sh; tar -C /tmp/r -cf /tmp/r.tar .").await;
    let pulled = support::pull(&mut control, "rootfs:/tmp/r.tar").await;
    assert!(matches!(pulled, old::AgentResponse::Ok { .. }), "{pulled:?}");
    let mut with_mount = in_image("rootfs:/tmp/r.tar", &["/bin/sh"], None, None, false);
    if let old::AgentRequest::Run { mounts, .. } = &mut with_mount {
        mounts.push(("no-such-tag".into(), "/mnt".into(), true));
    }
    assert_eq!(refused(&mut control, &with_mount).await, "MOUNT_FAILED");
    assert_eq!(refused(&mut control, &in_image("none", &["/bin/sh"], None, None, false)).await, "RUN_FAILED");
    assert_eq!(
        refused(&mut control, &in_image("rootfs:/tmp/r.tar", &["/none"], None, None, false)).await,
        "SPAWN_FAILED"
    );
    assert_eq!(
        refused(&mut control, &in_image("rootfs:/tmp/r.tar", &["/bin/sh"], None, None, true)).await,
        "INVALID_REQUEST"
    );

    // A session, with input and output, beside other requests.
    let mut session = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    let mut request =
        in_image("rootfs:/tmp/r.tar", &["/bin/sh", "-c", "read line; echo got $line; exit 7"], None, None, false);
    if let old::AgentRequest::Run { interactive, .. } = &mut request {
        *interactive = true;
    }
    assert!(matches!(ask(&mut session, &request).await, old::AgentResponse::Started));
    assert_eq!(code(ask(&mut session, &R::Ping).await), "INVALID_REQUEST");
    write_message(&mut session, &new::AgentRequest::Stdin { data: b"words\n".to_vec() }).await.unwrap();
    assert!(matches!(hear(&mut session).await, old::AgentResponse::Stdout { data } if data == b"got words\n"));
    assert!(matches!(hear(&mut session).await, old::AgentResponse::Exited { exit_code: 7 }));
    assert!(matches!(ask(&mut session, &R::Ping).await, old::AgentResponse::Pong { .. }), "and the connection goes on");

    // Over the limit: drained and answered. Without the secret: not let in.
    let over = old::MAX_FRAME_SIZE + 1;
    session.write_all(&over.to_be_bytes()).await.unwrap();
    session.write_all(&vec![b' '; over as usize]).await.unwrap();
    assert_eq!(code(hear(&mut session).await), "MESSAGE_TOO_LARGE");
    assert!(matches!(ask(&mut session, &R::Ping).await, old::AgentResponse::Pong { .. }));
    assert!(shipote_machines::guest::Guest { secret: "guess".into(), ..guest.clone() }.connect(6000).await.is_err());

    // Ports 5000 and 5001.
    let token = workload_token(&guest.secret);
    let mut logs = authenticated(&guest, ports::WORKLOAD_LOGS, &token).await;
    let mut workload = authenticated(&guest, ports::WORKLOAD_CONTROL, &token).await;
    let command = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    for request_id in 1..=3 {
        let request = HostMessage::Run {
            request_id,
            command: command("echo from $N"),
            env: vec![("N".into(), request_id.to_string())],
            workdir: None,
        };
        write_message(&mut workload, &request).await.unwrap();
    }
    for stream in [&mut workload, &mut logs] {
        let mut ended = 0;
        while ended < 3 {
            match read_message(stream).await.unwrap().unwrap() {
                GuestMessage::Stdout { request_id, data, truncated: false } => {
                    assert_eq!(String::from_utf8(data).unwrap(), format!("from {request_id}\n"));
                }
                GuestMessage::Exit { code: 0, .. } => ended += 1,
                GuestMessage::Started { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let mut stranger = guest.connect(ports::WORKLOAD_CONTROL).await.unwrap();
    write_message(&mut stranger, &HostMessage::Auth { token: guest.secret.clone(), protocol_version: 1 })
        .await
        .unwrap();
    assert!(matches!(read_message(&mut stranger).await.unwrap(), Some(GuestMessage::AuthFailed)));
    // What is written to the console without end is kept to its end only, and nothing else suffers.
    run(
        &mut control,
        "head -c 3000000 /dev/zero | tr '\\0' y > /dev/console; echo > /dev/console; echo last words > /dev/console",
    )
    .await;
    while !String::from_utf8_lossy(&machines.handle.console("conformance").await.unwrap()).contains("last words") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(machines.handle.console("conformance").await.unwrap().len() <= shipote_machines::console::KEPT);

    // What can only fail where the guest's own store is spoilt. Of the codes that are left nothing brings about
    // INTERNAL_ERROR (a task that panics; a request in a place that is never given it) and SERIALIZATION_ERROR (our own
    // answers, whose keys are strings, always have a JSON form). QUERY, EXEC, LIST, CREATE, START, STOP and WAIT_FAILED
    // belong to requests that the protocol has no more, or are answered by a more precise code.
    run(&mut control, "rm -rf /storage/rubbish; touch /storage/rubbish").await;
    let remove = serde_json::json!({"method": "remove_image", "image": "rootfs:/tmp/r.tar"});
    write_message(&mut control, &remove).await.unwrap();
    assert_eq!(code(read_message(&mut control).await.unwrap().unwrap()), "DELETE_FAILED");
    run(&mut control, "umount -l /storage && rmdir /storage").await;
    assert_eq!(code(ask(&mut control, &R::StorageStatus).await), "STATUS_FAILED");

    // A guest whose kernel panics.
    write_message(&mut control, &shell("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")).await.unwrap();
    let shown = machines.until_again(State::Failed).await;
    assert!(shown.reason.contains("panicked"), "{}", shown.reason);
    assert_eq!(processes(machines.path()), 0);

    // `Stop` on port 5000 ends what runs, then the machine.
    machines.handle.start_machine("conformance").await.unwrap();
    machines.until_again(State::Running).await;
    let guest = machines.handle.guest("conformance").await.unwrap();
    let mut workload = authenticated(&guest, ports::WORKLOAD_CONTROL, &workload_token(&guest.secret)).await;
    let request = HostMessage::Exec { request_id: 1, command: command("exec sleep 1000"), tty: false };
    write_message(&mut workload, &request).await.unwrap();
    assert!(matches!(read_message(&mut workload).await.unwrap(), Some(GuestMessage::Started { request_id: 1 })));
    write_message(&mut workload, &HostMessage::Stop { timeout_ms: 5000 }).await.unwrap();
    let end: GuestMessage = read_message(&mut workload).await.unwrap().unwrap();
    assert!(matches!(end, GuestMessage::Exit { code: 143, .. }), "{end:?}");
    let shown = machines.until_again(State::Stopped).await;
    assert_eq!(shown.reason, "the guest powered off");
}

async fn authenticated(guest: &shipote_machines::guest::Guest, port: u32, token: &str) -> UnixStream {
    let mut stream = guest.connect(port).await.unwrap();
    write_message(&mut stream, &HostMessage::Auth { token: token.into(), protocol_version: 1 }).await.unwrap();
    for _ in 0..2 {
        let answer: GuestMessage = read_message(&mut stream).await.unwrap().unwrap();
        assert!(matches!(answer, GuestMessage::AuthOk | GuestMessage::Ready), "{answer:?}");
    }
    stream
}
