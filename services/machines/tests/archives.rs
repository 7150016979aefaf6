//! Images from archives, and images that are removed and collected while others are at work, in a machine that really
//! boots.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/registry.rs"]
#[allow(dead_code, reason = "of the registry only what makes images is used")]
mod registry;
mod support;

use std::time::Duration;

use registry::{digest, gzip};
use serde_json::{Value, json};
use shipote_agent_protocol::{AgentRequest as Own, ports, read_message, write_message};
use shipote_machines::guest::Guest;
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use smolvm_protocol_0::{AgentRequest, AgentResponse, ImageInfo};
use support::{ask, image, in_image, machines, pull, refused, run};
use tokio::net::UnixStream;

/// A tar of files, each of which can be run.
fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        archive.append_data(&mut header, name, &data[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

/// An OCI layout in the making.
#[derive(Default)]
struct Layout {
    files: Vec<(String, Vec<u8>)>,
}

impl Layout {
    fn blob(&mut self, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"digest": digest, "size": bytes.len()});
        self.files.push((format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")), bytes));
        descriptor
    }

    /// An image of layers (uncompressed tars), each compressed; its manifest's descriptor.
    fn image(&mut self, layers: &[&[u8]], word: &str) -> Value {
        let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let blobs: Vec<Value> = layers.iter().map(|layer| self.blob(gzip(layer))).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Env": [format!("WORD={word}")]},
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        let config = self.blob(config.to_string().into_bytes());
        self.blob(json!({"schemaVersion": 2, "config": config, "layers": blobs}).to_string().into_bytes())
    }

    /// The archive, with these manifests.
    fn finish(mut self, manifests: &[Value]) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        self.files.push(("oci-layout".into(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()));
        self.files.push(("index.json".into(), index.to_string().into_bytes()));
        tar_of(&self.files)
    }
}

fn for_platform(mut descriptor: Value, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
    descriptor
}

/// Puts a file of any size into the guest.
async fn put(control: &mut UnixStream, path: &str, data: &[u8]) {
    let begin = AgentRequest::FileWriteBegin { path: path.into(), mode: None, total_size: data.len() as u64 };
    assert!(matches!(ask(control, &begin).await, AgentResponse::Ok { .. }));
    let mut pieces = data.chunks(1 << 20).peekable();
    while let Some(piece) = pieces.next() {
        let chunk = AgentRequest::FileWriteChunk { data: piece.to_vec(), done: pieces.peek().is_none() };
        assert!(matches!(ask(control, &chunk).await, AgentResponse::Ok { .. }));
    }
}

async fn get(control: &mut UnixStream, path: &str) -> Vec<u8> {
    let mut all = Vec::new();
    write_message(control, &AgentRequest::FileRead { path: path.into() }).await.unwrap();
    while let Some(AgentResponse::DataChunk { data, done: false }) = read_message(control).await.unwrap() {
        all.extend(data);
    }
    all
}

/// Our own request, which the public releases do not have.
async fn remove(control: &mut UnixStream, image: &str) -> AgentResponse {
    write_message(control, &Own::RemoveImage { image: image.into() }).await.unwrap();
    read_message(control).await.unwrap().unwrap()
}

async fn images(control: &mut UnixStream) -> Vec<String> {
    let AgentResponse::Ok { data: Some(data) } = ask(control, &AgentRequest::ListImages).await else { panic!() };
    let images: Vec<ImageInfo> = serde_json::from_value(data).unwrap();
    images.into_iter().map(|image| image.reference).collect()
}

async fn fails(control: &mut UnixStream, image: &str) -> String {
    match pull(control, image).await {
        AgentResponse::Error { message, code } => {
            assert_eq!(code.as_deref(), Some("PULL_FAILED"));
            message
        }
        other => panic!("{image}: {other:?}"),
    }
}

async fn says(control: &mut UnixStream, image: &str, overlay: Option<&str>) -> String {
    let request = in_image(image, &["/bin/sh", "-c", "echo $WORD; cat /word"], None, overlay, false);
    match ask(control, &request).await {
        AgentResponse::Completed { exit_code: 0, stdout, .. } => String::from_utf8(stdout).unwrap(),
        other => panic!("{image}: {other:?}"),
    }
}

#[tokio::test]
async fn layouts_are_verified_and_images_go_while_others_work() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    machines.handle.create("archives", Spec { memory_mib: 256, disk_mib: 256, ..Spec::default() }).await.unwrap();
    machines.handle.start_machine("archives").await.unwrap();
    machines.until(State::Running).await;
    let guest = machines.handle.guest("archives").await.unwrap();
    let mut connection = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    let control = &mut connection;
    let shell = get(control, "/usr/bin/busybox").await;
    let base =
        tar_of(&[("bin/sh".into(), shell.clone()), ("bin/cat".into(), shell), ("word".into(), b"base".to_vec())]);
    let top = |word: &str| tar_of(&[("word".into(), word.as_bytes().to_vec())]);

    // One image that says nothing of its platform; then an index with one for each of two platforms, behind another.
    let mut layout = Layout::default();
    let only = layout.image(&[&base, &top("one")], "single");
    put(control, "/storage/single.tar", &layout.finish(&[only])).await;
    let info: ImageInfo = match pull(control, "oci-archive:/storage/single.tar").await {
        AgentResponse::Ok { data: Some(info) } => serde_json::from_value(info).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((info.layer_count, info.architecture.as_str()), (2, "amd64"));
    assert_eq!(says(control, "oci-archive:/storage/single.tar", None).await, "single\none");
    assert_eq!(says(control, &info.digest, None).await, "single\none", "by its digest too");
    let mut layout = Layout::default();
    let (arm, amd) = (layout.image(&[&base, &top("arm")], "arm"), layout.image(&[&base, &top("amd")], "amd"));
    let index = json!({"schemaVersion": 2, "manifests": [for_platform(arm, "arm64"), for_platform(amd, "amd64")]});
    let index = layout.blob(index.to_string().into_bytes());
    put(control, "/storage/both.tar", &layout.finish(&[index])).await;
    assert!(matches!(pull(control, "oci-archive:/storage/both.tar").await, AgentResponse::Ok { .. }));
    assert_eq!(says(control, "oci-archive:/storage/both.tar", None).await, "amd\namd");

    // What is wrong with one is said, and nothing of it is kept.
    let bad = |change: &dyn Fn(&mut Layout, Value) -> Vec<Value>| {
        let mut layout = Layout::default();
        let manifest = layout.image(&[&top("bad")], "bad");
        let manifests = change(&mut layout, manifest);
        layout.finish(&manifests)
    };
    let spoil = |layout: &mut Layout, which: usize| layout.files[which].1.push(b' ');
    for (name, archive, what) in [
        // Behind the end of its compressed data: only the digest of the blob tells.
        (
            "blob",
            bad(&|layout, manifest| {
                spoil(layout, 0);
                vec![manifest]
            }),
            "has the digest",
        ),
        (
            "config",
            bad(&|layout, manifest| {
                spoil(layout, 1);
                vec![manifest]
            }),
            "should have the digest",
        ),
        (
            "manifest",
            bad(&|layout, manifest| {
                spoil(layout, 2);
                vec![manifest]
            }),
            "should have the digest",
        ),
        (
            "missing",
            bad(&|layout, manifest| {
                layout.files.remove(0);
                vec![manifest]
            }),
            "has no file blobs/sha256/",
        ),
        ("escapes", bad(&|_, _| vec![json!({"digest": "sha256:../../index.json", "size": 1})]), "its digest is not"),
        ("other", bad(&|_, manifest| vec![for_platform(manifest, "s390x"); 2]), "there is linux/s390x"),
        ("several", bad(&|_, manifest| vec![manifest; 2]), "one at a time"),
        ("empty", bad(&|_, _| vec![]), "names no config"),
        ("none", tar_of(&[("index.json".into(), b"{}".to_vec())]), "has no file oci-layout"),
        ("nonsense", b"no tar at all".to_vec(), ""),
    ] {
        put(control, "/storage/bad.tar", &archive).await;
        let said = fails(control, "oci-archive:/storage/bad.tar").await;
        assert!(said.contains(what), "{name}: {said}");
    }
    assert_eq!(images(control).await.len(), 2);

    // An image that is removed takes the layers with it that no other needs; what is made of it goes on.
    let prepare =
        AgentRequest::PrepareOverlay { image: "oci-archive:/storage/single.tar".into(), workload_id: "stays".into() };
    assert!(matches!(ask(control, &prepare).await, AgentResponse::Ok { .. }));
    assert!(
        matches!(remove(control, &info.digest).await, AgentResponse::Ok { data: Some(data) } if data["freed_bytes"] == 0)
    );
    assert_eq!(images(control).await, ["oci-archive:/storage/both.tar"]);
    assert_eq!(run(control, "cat /storage/overlays/stays/merged/word").await, "one");
    assert!(matches!(remove(control, "oci-archive:/storage/single.tar").await,
        AgentResponse::Error { code: Some(code), .. } if code == "NOT_FOUND"));
    let layers = |text: String| text.trim().parse::<usize>().unwrap();
    assert_eq!(layers(run(control, "ls /storage/layers | wc -l").await), 3);
    let cleanup = AgentRequest::CleanupOverlay { workload_id: "stays".into() };
    assert!(matches!(ask(control, &cleanup).await, AgentResponse::Ok { .. }));
    assert!(matches!(remove(control, "oci-archive:/storage/both.tar").await,
        AgentResponse::Ok { data: Some(data) } if data["freed_bytes"].as_u64().unwrap() > 500_000));
    assert_eq!(layers(run(control, "ls /storage/layers | wc -l").await), 0);

    load(&guest).await;

    // What the disk's own file system cannot say is an error with its code, and not a machine that is gone.
    assert_eq!(
        refused(control, &in_image("oci-archive:/storage/both.tar", &["/bin/sh"], None, None, false)).await,
        "RUN_FAILED"
    );
    machines.handle.stop("archives", Duration::from_secs(60)).await.unwrap();
    machines.until(State::Stopped).await;
}

/// Pulls, runs and collections of several clients at once: each command runs in an image that is whole, or is told that it
/// has gone; no collection fails, and none takes what is in use.
async fn load(guest: &Guest) {
    const NAME: &str = "oci-archive:/storage/single.tar";
    let using = async {
        let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
        let mut ran = 0;
        for _ in 0..15 {
            let pulled = pull(&mut control, NAME).await;
            assert!(matches!(pulled, AgentResponse::Ok { .. }), "{pulled:?}");
            let request = in_image(NAME, &["/bin/sh", "-c", "cat /word"], None, None, false);
            match ask(&mut control, &request).await {
                AgentResponse::Completed { exit_code: 0, stdout, .. } if stdout == b"one" => ran += 1,
                AgentResponse::Error { code: Some(code), message } if code == "RUN_FAILED" => {
                    assert!(message.contains("pull it first"), "{message}");
                }
                other => panic!("{other:?}"),
            }
        }
        ran
    };
    let collecting = async || {
        let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
        for round in 0..40 {
            let request = AgentRequest::GarbageCollect { dry_run: round % 8 == 0, purge_all: round % 4 == 1 };
            let answer = ask(&mut control, &request).await;
            assert!(matches!(answer, AgentResponse::Ok { .. }), "{answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (ran, (), ()) = tokio::join!(using, collecting(), collecting());
    assert!(ran > 0, "nothing ran meanwhile");
    let mut control = guest.connect(ports::AGENT_CONTROL).await.unwrap();
    assert_eq!(
        run(&mut control, "ls /storage/rubbish /storage/temporary").await,
        "/storage/rubbish:\n\n/storage/temporary:\n"
    );
}
