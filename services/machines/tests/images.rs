//! Images pulled in a machine that really boots, from a registry that behaves, and from one that does not.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/registry.rs"]
mod registry;
mod support;

use std::time::Duration;

use registry::{Manner, Registry, gzip};
use serde_json::json;
use shipote_agent_protocol::{ports, read_message, write_message};
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use smolvm_protocol_0::{AgentRequest, AgentResponse, RegistryAuth};
use support::{ask, image, in_image, machines, pull, refused, run};
use tokio::net::UnixStream;

/// A tar of directories (names that end in `/`), files, and links (`name -> target` hard, `name ~> target` symbolic).
fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(0);
        if let Some((name, target)) = name.split_once(" -> ") {
            header.set_entry_type(tar::EntryType::Link);
            archive.append_link(&mut header, name, target).unwrap();
        } else if let Some((name, target)) = name.split_once(" ~> ") {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, name, target).unwrap();
        } else if let Some(name) = name.strip_suffix('/') {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, name, std::io::empty()).unwrap();
        } else {
            if *name == "data/attributed" {
                archive.append_pax_extensions([("SCHILY.xattr.user.note", b"kept".as_slice())]).unwrap();
                header.set_uid(33);
                header.set_gid(34);
            }
            header.set_size(data.len() as u64);
            archive.append_data(&mut header, name, *data).unwrap();
        }
    }
    archive.into_inner().unwrap()
}

/// Output of a command in an image.
async fn in_run(stream: &mut UnixStream, image: &str, script: &str) -> String {
    match ask(stream, &in_image(image, &["/bin/sh", "-c", script], None, None, false)).await {
        AgentResponse::Completed { exit_code: 0, stdout, .. } => String::from_utf8(stdout).unwrap(),
        AgentResponse::Completed { stderr, .. } => panic!("{script}: {}", String::from_utf8_lossy(&stderr)),
        other => panic!("{script}: {other:?}"),
    }
}

/// Why a pull fails.
async fn pull_fails(stream: &mut UnixStream, image: &str) -> String {
    match pull(stream, image).await {
        AgentResponse::Error { message, code } => {
            assert_eq!(code.as_deref(), Some("PULL_FAILED"));
            message
        }
        other => panic!("{image}: {other:?}"),
    }
}

async fn export(stream: &mut UnixStream, digest: &str, index: usize) -> Vec<u8> {
    write_message(stream, &AgentRequest::ExportLayer { image_digest: digest.into(), layer_index: index })
        .await
        .unwrap();
    let mut tar = Vec::new();
    loop {
        match read_message(stream).await.unwrap().unwrap() {
            AgentResponse::DataChunk { data, done: true } => {
                assert!(data.is_empty());
                return tar;
            }
            AgentResponse::DataChunk { data, .. } => tar.extend(data),
            other => panic!("{other:?}"),
        }
    }
}

async fn collect(stream: &mut UnixStream, dry_run: bool, purge_all: bool) -> u64 {
    match ask(stream, &AgentRequest::GarbageCollect { dry_run, purge_all }).await {
        AgentResponse::Ok { data: Some(data) } => {
            assert_eq!(data["dry_run"], dry_run);
            data["freed_bytes"].as_u64().unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn images_are_pulled_verified_kept_and_collected() {
    let Some(image) = image() else { return };
    let registry = Registry::start();
    let mut machines = machines(image);
    let egress = vec![format!("127.0.0.1:{}", registry.port)];
    let spec = Spec { memory_mib: 192, disk_mib: 64, egress, ..Spec::default() };
    machines.handle.create("images", spec).await.unwrap();
    machines.handle.start_machine("images").await.unwrap();
    machines.until(State::Running).await;
    let _way = machines.let_out("images").await;
    let guest = machines.handle.guest("images").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();

    // The guest's own shell, so that something can be run.
    let mut busybox = Vec::new();
    write_message(&mut control, &AgentRequest::FileRead { path: "/usr/bin/busybox".into() }).await.unwrap();
    while let Some(AgentResponse::DataChunk { data, done: false }) = read_message(&mut control).await.unwrap() {
        busybox.extend(data);
    }
    let base = tar_of(&[
        ("bin/", b""),
        ("bin/busybox", &busybox),
        ("bin/sh ~> busybox", b""),
        ("bin/ls ~> busybox", b""),
        ("bin/stat ~> busybox", b""),
        ("bin/cat ~> busybox", b""),
        ("data/", b""),
        ("data/gone", b"gone"),
        ("data/one", b"linked"),
        ("data/two -> data/one", b""),
        ("data/attributed", b"x"),
        ("opaque/", b""),
        ("opaque/old", b"old"),
    ]);
    let top = tar_of(&[("data/.wh.gone", b""), ("opaque/", b""), ("opaque/.wh..wh..opq", b""), ("opaque/new", b"new")]);
    let zstd = ruzstd::encoding::compress_to_vec(&top[..], ruzstd::encoding::CompressionLevel::Fastest);
    let settings = json!({"Cmd": ["/bin/sh"], "Env": ["FROM=registry"]});
    let well = |tar: &[u8]| (gzip(tar), Manner::Well);
    let (blob, _) = well(&base);

    // A connection that is cut: the rest is asked for, and both kinds of compression are read.
    let (name, id) = registry.add("good", &settings, &[(&base, blob.clone(), Manner::Cut), (&top, zstd, Manner::Busy)]);
    write_message(
        &mut control,
        &AgentRequest::Pull { image: name.clone(), oci_platform: Some("linux/amd64".into()), auth: None },
    )
    .await
    .unwrap();
    let (mut last, mut layers) = (0, std::collections::BTreeSet::new());
    let info = loop {
        match read_message(&mut control).await.unwrap().unwrap() {
            AgentResponse::Progress { percent, layer, .. } => {
                assert!(percent.unwrap() >= last, "progress never falls");
                last = percent.unwrap();
                layers.extend(layer);
            }
            AgentResponse::Ok { data } => {
                break serde_json::from_value::<smolvm_protocol_0::ImageInfo>(data.unwrap()).unwrap();
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((last, layers.len(), info.layer_count, info.digest.as_str()), (100, 2, 2, id.as_str()));
    assert!(
        registry.log().iter().any(|line| line.ends_with(&format!(" from {}", blob.len() / 2))),
        "it went on where it was cut"
    );
    let script = "ls /data /opaque; cat /data/two; echo; stat -c '%h %i' /data/one; stat -c '%h %i' /data/two; stat -c '%u %g' /data/attributed; echo $FROM";
    let seen = in_run(&mut control, &name, script).await;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(&lines[..8], ["/data:", "attributed", "one", "two", "", "/opaque:", "new", "linked"], "{seen}");
    assert!(lines[8].starts_with("2 ") && lines[8] == lines[9], "one file with two names: {seen}");
    assert_eq!(&lines[10..], ["33 34", "registry"]);

    // What is there already is not fetched again; another platform is.
    registry.log();
    assert!(matches!(pull(&mut control, &name).await, AgentResponse::Ok { .. }));
    assert!(registry.log().is_empty());
    write_message(
        &mut control,
        &AgentRequest::Pull { image: name.clone(), oci_platform: Some("linux/s390x".into()), auth: None },
    )
    .await
    .unwrap();
    match read_message(&mut control).await.unwrap().unwrap() {
        AgentResponse::Error { message, .. } => assert!(message.contains("linux/arm64, linux/amd64"), "{message}"),
        other => panic!("{other:?}"),
    }

    // Layers come out again as they went in.
    let back = export(&mut control, &id, 0).await;
    let mut archive = tar::Archive::new(&back[..]);
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string().trim_end_matches('/').to_owned();
        if path == "data/attributed" {
            let attributes = entry.pax_extensions().unwrap().unwrap();
            assert!(
                attributes.flatten().any(|a| a.key() == Ok("SCHILY.xattr.user.note") && a.value_bytes() == b"kept")
            );
            assert_eq!((entry.header().uid().unwrap(), entry.header().mtime().unwrap()), (33, 1_700_000_000));
        }
        names.push(format!(
            "{path}{}",
            entry.link_name().unwrap().map(|l| format!(" -> {}", l.display())).unwrap_or_default()
        ));
    }
    assert!(
        names.contains(&"data/two -> data/one".to_owned()) && names.contains(&"bin/sh -> busybox".to_owned()),
        "{names:?}"
    );
    let back = export(&mut control, &name, 1).await;
    let names: Vec<String> = tar::Archive::new(&back[..])
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect();
    assert!(
        names.contains(&"data/.wh.gone".to_owned()) && names.contains(&"opaque/.wh..wh..opq".to_owned()),
        "{names:?}"
    );
    assert_eq!(
        refused(&mut control, &AgentRequest::ExportLayer { image_digest: id.clone(), layer_index: 2 }).await,
        "EXPORT_FAILED"
    );
    assert_eq!(
        refused(&mut control, &AgentRequest::ExportLayer { image_digest: "none".into(), layer_index: 0 }).await,
        "NOT_FOUND"
    );

    // Authentication, with the right words and without.
    let small = tar_of(&[("file", b"private")]);
    let (private, _) = registry.add("private", &settings, &[(&small, well(&small).0, Manner::Well)]);
    registry.lock("private");
    assert!(pull_fails(&mut control, &private).await.contains("401"));
    let auth = |password: &str| Some(RegistryAuth { username: "user".into(), password: password.into() });
    for (password, good) in [("wrong", false), ("right", true)] {
        let request = AgentRequest::Pull { image: private.clone(), oci_platform: None, auth: auth(password) };
        write_message(&mut control, &request).await.unwrap();
        let answer = loop {
            match read_message(&mut control).await.unwrap().unwrap() {
                AgentResponse::Progress { .. } => {}
                other => break other,
            }
        };
        match answer {
            AgentResponse::Ok { .. } => assert!(good),
            other => assert!(!good && format!("{other:?}").contains("incorrect username or password"), "{other:?}"),
        }
    }

    // A corrupt blob, a layer other than its config says, an image that isn't there, a place that isn't allowed.
    let noise = tar_of(&[("noise", b"noise")]);
    let (corrupt, _) = registry.add("corrupt", &settings, &[(&noise, gzip(&noise), Manner::Corrupt)]);
    assert!(pull_fails(&mut control, &corrupt).await.contains("has the digest"));
    let (wrong, _) = registry.add("wrong", &settings, &[(b"other", gzip(&noise), Manner::Well)]);
    assert!(pull_fails(&mut control, &wrong).await.contains("should have the digest"));
    let absent = format!("127.0.0.1:{}/absent", registry.port);
    let said = pull_fails(&mut control, &absent).await;
    assert!(said.ends_with("the registry answers 404 Not Found: MANIFEST_UNKNOWN: manifest [2J unknown"), "{said}");
    let denied = pull_fails(&mut control, "127.0.0.1:9/denied").await;
    assert!(denied.contains("403") || denied.contains("refuses"), "{denied}");

    // A registry that says nothing any more is asked anew.
    let (stalled, _) = registry.add("stalled", &settings, &[(&noise, gzip(&noise), Manner::Stall)]);
    assert!(matches!(pull(&mut control, &stalled).await, AgentResponse::Ok { .. }));

    // A disk that is too small: said so, and what was written is gone again.
    let used = |answer| match answer {
        AgentResponse::Ok { data: Some(data) } => {
            serde_json::from_value::<smolvm_protocol_0::StorageStatus>(data).unwrap()
        }
        other => panic!("{other:?}"),
    };
    let before = used(ask(&mut control, &AgentRequest::StorageStatus).await);
    assert!(before.ready && before.total_bytes > 40 << 20 && before.total_bytes < 64 << 20, "{before:?}");
    let large = tar_of(&[("large", &vec![0; 80 << 20])]);
    let (full, _) = registry.add("full", &settings, &[(&large, gzip(&large), Manner::Well)]);
    assert!(pull_fails(&mut control, &full).await.contains("No space left"));
    collect(&mut control, false, false).await;
    let after = used(ask(&mut control, &AgentRequest::StorageStatus).await);
    assert!(after.used_bytes <= before.used_bytes + (1 << 20), "{before:?} {after:?}");

    // Garbage collection leaves what an overlay needs; what nobody needs goes, and can be had again.
    let prepare = AgentRequest::PrepareOverlay { image: name.clone(), workload_id: "stays".into() };
    for _ in 0..2 {
        assert!(matches!(ask(&mut control, &prepare).await, AgentResponse::Ok { .. }));
    }
    let would = collect(&mut control, true, true).await;
    assert!(would > 0);
    assert!(
        matches!(ask(&mut control, &AgentRequest::Query { image: private.clone() }).await, AgentResponse::Ok { .. }),
        "only looked at"
    );
    collect(&mut control, false, true).await;
    assert_eq!(refused(&mut control, &AgentRequest::Query { image: private.clone() }).await, "NOT_FOUND");
    assert_eq!(in_run(&mut control, &name, "cat /data/one").await, "linked");
    assert!(matches!(ask(&mut control, &AgentRequest::FormatStorage).await, AgentResponse::Ok { .. }));
    assert_eq!(run(&mut control, "echo $https_proxy").await, "http://127.0.0.1:3128\n");
    let test = |url: &str| AgentRequest::NetworkTest { url: url.into() };
    for (url, reachable) in
        [(format!("http://127.0.0.1:{}/", registry.port), true), ("https://example.org".into(), false)]
    {
        let AgentResponse::Ok { data: Some(data) } = ask(&mut control, &test(&url)).await else { panic!("{url}") };
        assert_eq!(data["reachable"], reachable, "{data}");
    }

    // The disk stays when the machine stops.
    machines.handle.stop("images", Duration::from_secs(60)).await.unwrap();
    machines.until(State::Stopped).await;
    machines.handle.start_machine("images").await.unwrap();
    machines.until(State::Running).await;
    let guest = machines.handle.guest("images").await.unwrap();
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    registry.log();
    assert!(matches!(pull(&mut control, &name).await, AgentResponse::Ok { .. }));
    assert!(registry.log().is_empty());
    assert_eq!(in_run(&mut control, &name, "cat /data/one").await, "linked");
    machines.handle.stop("images", Duration::ZERO).await.unwrap();
    machines.until(State::Stopped).await;
}
