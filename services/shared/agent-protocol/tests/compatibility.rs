//! Against two releases of the public crate that defines the protocol: its types read what ours write and the other
//! way round, and for the older one both write the same bytes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use shipote_agent_protocol as ours;
use smolvm_protocol_0 as old;
use smolvm_protocol_1 as new;

/// Every request that the older release knows, as it writes them.
fn old_requests() -> Vec<old::AgentRequest> {
    use old::AgentRequest as R;
    let auth = Some(old::RegistryAuth { username: "u".into(), password: "p\"\\".into() });
    let words = vec!["sh".to_owned(), "-c".into(), "echo \u{e9}\n".into()];
    let env = vec![("A".to_owned(), "b=c".to_owned())];
    let exec = |interactive, tty, background, timeout_ms| R::VmExec {
        command: words.clone(),
        env: env.clone(),
        workdir: Some("/tmp".into()),
        timeout_ms,
        interactive,
        tty,
        background,
    };
    vec![
        R::Ping,
        R::Pull { image: "alpine".into(), oci_platform: Some("linux/amd64".into()), auth },
        R::Pull { image: "alpine".into(), oci_platform: None, auth: None },
        R::Query { image: "alpine".into() },
        R::ListImages,
        R::GarbageCollect { dry_run: true, purge_all: false },
        R::PrepareOverlay { image: "a".into(), workload_id: "w".into() },
        R::CleanupOverlay { workload_id: "w".into() },
        R::FormatStorage,
        R::StorageStatus,
        R::NetworkTest { url: "https://example.org".into() },
        R::Shutdown,
        R::ExportLayer { image_digest: "sha256:0".into(), layer_index: 7 },
        exec(false, false, false, None),
        exec(true, true, false, Some(5)),
        exec(false, false, true, Some(u64::MAX)),
        R::Run {
            image: "a".into(),
            command: words.clone(),
            env: env.clone(),
            workdir: None,
            user: Some("nobody".into()),
            mounts: vec![("tag".into(), "/mnt".into(), true)],
            timeout_ms: None,
            interactive: false,
            tty: false,
            detached: true,
            persistent_overlay_id: Some("o".into()),
            background: false,
        },
        R::Stdin { data: (0..=255).collect() },
        R::Stdin { data: vec![] },
        R::Resize { cols: 132, rows: 43 },
        R::FileWrite { path: "/a".into(), data: vec![0, 255], mode: Some(0o600) },
        R::FileWriteBegin { path: "/a".into(), mode: None, total_size: u64::MAX },
        R::FileWriteChunk { data: vec![1], done: true },
        R::FileRead { path: "/a".into() },
    ]
}

fn old_responses() -> Vec<old::AgentResponse> {
    use old::AgentResponse as R;
    vec![
        R::Ok { data: None },
        R::Ok { data: Some(serde_json::json!({"freed_bytes": 3, "dry_run": false})) },
        R::Pong { version: 1 },
        R::Progress { message: "m".into(), percent: Some(100), layer: None },
        R::Error { message: "m".into(), code: Some("NOT_FOUND".into()) },
        R::Error { message: "m".into(), code: None },
        R::Completed { exit_code: -1, stdout: vec![1, 2], stderr: vec![] },
        R::Started,
        R::Stdout { data: vec![10] },
        R::Stderr { data: vec![13] },
        R::Exited { exit_code: 137 },
        R::DataChunk { data: vec![], done: true },
    ]
}

fn old_host_messages() -> Vec<old::HostMessage> {
    use old::HostMessage as M;
    vec![
        M::Auth { token: "t".into(), protocol_version: 1 },
        M::Run { request_id: 1, command: vec!["a".into()], env: vec![], workdir: None },
        M::Exec { request_id: u64::MAX, command: vec![], tty: true },
        M::Signal { request_id: 2, signal: 15 },
        M::Stop { timeout_ms: 10 },
    ]
}

fn old_guest_messages() -> Vec<old::GuestMessage> {
    use old::GuestMessage as M;
    vec![
        M::AuthOk,
        M::AuthFailed,
        M::Ready,
        M::Started { request_id: 1 },
        M::Stdout { request_id: 1, data: vec![0], truncated: true },
        M::Stderr { request_id: 1, data: vec![], truncated: false },
        M::Exit { request_id: 1, code: 3, reason: "exited".into() },
        M::Error { request_id: None, message: "m".into() },
    ]
}

/// Frame by the old release, read by ours, written by ours: the same bytes; and the new release reads them.
fn same_bytes<Ours, New>(frame: &[u8])
where
    Ours: serde::Serialize + serde::de::DeserializeOwned,
    New: serde::de::DeserializeOwned,
{
    let text = String::from_utf8_lossy(&frame[4..]).into_owned();
    let message: Ours = serde_json::from_slice(&frame[4..]).unwrap_or_else(|e| panic!("{text}: {e}"));
    let written = ours::encode(&message).unwrap();
    assert_eq!(String::from_utf8_lossy(&written[4..]), text);
    assert_eq!(written, frame);
    new::decode_message::<New>(&written).unwrap_or_else(|e| panic!("1.33.0 refuses {text}: {e}"));
}

#[test]
fn requests_are_the_same_bytes() {
    for request in old_requests() {
        same_bytes::<ours::AgentRequest, new::AgentRequest>(&old::encode_message(&request).unwrap());
    }
}

#[test]
fn responses_are_the_same_bytes() {
    for response in old_responses() {
        same_bytes::<ours::AgentResponse, new::AgentResponse>(&old::encode_message(&response).unwrap());
    }
}

#[test]
fn workload_messages_are_the_same_bytes() {
    for message in old_host_messages() {
        same_bytes::<ours::HostMessage, new::HostMessage>(&old::encode_message(&message).unwrap());
    }
    for message in old_guest_messages() {
        same_bytes::<ours::GuestMessage, new::GuestMessage>(&old::encode_message(&message).unwrap());
    }
}

#[test]
fn a_request_in_an_envelope_is_read_as_a_bare_one() {
    for request in old_requests() {
        let wrapped = old::Envelope::with_trace_id(request.clone(), Some("abc".into()));
        let bare: ours::AgentRequest =
            serde_json::to_vec(&wrapped).map(|b| serde_json::from_slice(&b).unwrap()).unwrap();
        assert_eq!(serde_json::to_value(&bare).unwrap(), serde_json::to_value(&request).unwrap());
        let envelope: ours::Envelope<ours::AgentRequest> =
            serde_json::from_value(serde_json::to_value(&wrapped).unwrap()).unwrap();
        assert_eq!(envelope.trace_id.as_deref(), Some("abc"));
    }
}

#[test]
fn requests_of_the_newer_release_with_more_fields_are_read() {
    let request = new::AgentRequest::VmExec {
        command: vec!["true".into()],
        env: vec![],
        workdir: None,
        timeout_ms: None,
        interactive: false,
        tty: false,
        background: false,
        stdin_data: None,
    };
    let bytes = serde_json::to_vec(&request).unwrap();
    assert!(matches!(serde_json::from_slice(&bytes).unwrap(), ours::AgentRequest::VmExec { .. }));
    let shutdown = br#"{"method":"shutdown","progress":true,"stop_timeout_secs":3}"#;
    assert!(matches!(serde_json::from_slice(shutdown).unwrap(), ours::AgentRequest::Shutdown));
}

#[test]
fn our_own_additions_are_read_by_both() {
    let cut = ours::AgentResponse::Completed { exit_code: 0, stdout: vec![1], stderr: vec![], truncated: true };
    let frame = ours::encode(&cut).unwrap();
    assert!(matches!(old::decode_message(&frame).unwrap(), old::AgentResponse::Completed { exit_code: 0, .. }));
    assert!(matches!(new::decode_message(&frame).unwrap(), new::AgentResponse::Completed { exit_code: 0, .. }));
}

#[test]
fn limits_ports_and_codes_are_theirs() {
    assert_eq!(ours::PROTOCOL_VERSION, old::PROTOCOL_VERSION);
    assert_eq!(ours::MAX_FRAME, old::MAX_FRAME_SIZE);
    assert_eq!(ours::DATA_CHUNK_MAX, old::LAYER_CHUNK_SIZE);
    assert_eq!(ours::FILE_WRITE_MAX, old::FILE_WRITE_CHUNK_SIZE);
    assert_eq!(ours::FILE_TOTAL_MAX, old::FILE_TRANSFER_MAX_TOTAL);
    assert_eq!(ours::ports::AGENT_CONTROL, old::ports::AGENT_CONTROL);
    assert_eq!(ours::ports::DNS_FILTER, old::ports::DNS_FILTER);
    assert_eq!(ours::ports::AGENT_READY, new::ports::AGENT_READY);
    assert_eq!(ours::codes::INVALID_REQUEST, old::error_codes::INVALID_REQUEST);
    assert_eq!(ours::codes::SPAWN_FAILED, old::error_codes::SPAWN_FAILED);
    assert_eq!(ours::codes::FILE_IO_FAILED, old::error_codes::FILE_IO_FAILED);
    assert_eq!(ours::codes::MESSAGE_TOO_LARGE, old::error_codes::MESSAGE_TOO_LARGE);
}
