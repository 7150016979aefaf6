//! A registry that serves what the test has made, well or badly.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};

/// How a blob is served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// The first answer breaks off in the middle.
    Cut,
    /// The first answer stops in the middle, and nothing follows.
    Stall,
    /// Other bytes of the same length.
    Corrupt,
    /// The first answer asks to come back in a second.
    Busy,
}

#[derive(Default)]
struct Content {
    /// By path.
    files: HashMap<String, (Vec<u8>, Manner)>,
    /// Repositories that ask for a token.
    private: Vec<String>,
    /// Request lines and ranges, in order.
    log: Vec<String>,
}

pub(crate) struct Registry {
    pub(crate) port: u16,
    content: Arc<Mutex<Content>>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Registry {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let content = Arc::<Mutex<Content>>::default();
        let shared = Arc::clone(&content);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let content = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &content, port));
            }
        });
        Self { port, content }
    }

    /// Puts an image there; layers are uncompressed tars and how each is sent. Gives its name and the config's digest.
    pub(crate) fn add(
        &self,
        repository: &str,
        settings: &serde_json::Value,
        layers: &[(&[u8], Vec<u8>, Manner)],
    ) -> (String, String) {
        let mut content = self.content.lock().unwrap();
        let mut put = |kind: &str, name: String, bytes: Vec<u8>, manner| {
            content.files.insert(format!("/v2/{repository}/{kind}/{name}"), (bytes, manner));
        };
        let ids: Vec<String> = layers.iter().map(|(tar, ..)| digest(tar)).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": settings, "rootfs": {"type": "layers", "diff_ids": ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let id = digest(&config);
        let mut list = Vec::new();
        for (_, blob, manner) in layers {
            list.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(blob), "size": blob.len()}));
            put("blobs", digest(blob), blob.clone(), *manner);
        }
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config.len()},
            "layers": list,
        }))
        .unwrap();
        put("blobs", id.clone(), config, Manner::Well);
        let of = |architecture: &str, digest: String| json!({"digest": digest, "size": manifest.len(), "platform": {"os": "linux", "architecture": architecture}});
        let index =
            json!({"schemaVersion": 2, "manifests": [of("arm64", digest(b"other")), of("amd64", digest(&manifest))]});
        put("manifests", digest(&manifest), manifest.clone(), Manner::Well);
        put("manifests", "latest".to_owned(), serde_json::to_vec(&index).unwrap(), Manner::Well);
        (format!("127.0.0.1:{}/{repository}", self.port), id)
    }

    /// Has a repository ask for a token of `user` with the password `right`.
    pub(crate) fn lock(&self, repository: &str) {
        self.content.lock().unwrap().private.push(repository.to_owned());
    }

    /// What was asked for, since the last time.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.content.lock().unwrap().log)
    }
}

fn serve(mut stream: TcpStream, content: &Mutex<Content>, port: u16) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split_whitespace().nth(1).unwrap().to_owned();
    let header = |name: &str| {
        head.lines()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)))
            .map(|(_, value)| value.to_owned())
    };
    let range =
        header("range").map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
    let mut content = content.lock().unwrap();
    content.log.push(format!("{path}{}", range.map(|from| format!(" from {from}")).unwrap_or_default()));
    let mut answer = |status: &str, more: &str, body: &[u8]| {
        let _ =
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{more}\r\n", body.len());
        let _ = stream.write_all(body);
    };
    if path.starts_with("/token?") {
        // user:right
        return match header("authorization").as_deref() {
            Some("Basic dXNlcjpyaWdodA==") if path.contains("scope=repository%3A") => {
                answer("200 OK", "", br#"{"token": "let-me-in"}"#);
            }
            _ => answer("401 Unauthorized", "", br#"{"details": "incorrect username or password"}"#),
        };
    }
    let repository = path.split('/').nth(2).unwrap_or_default();
    if content.private.iter().any(|private| private == repository)
        && header("authorization").as_deref() != Some("Bearer let-me-in")
    {
        let challenge = format!(
            "www-authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\",scope=\"repository:{repository}:pull\"\r\n"
        );
        return answer("401 Unauthorized", &challenge, b"");
    }
    let Some((bytes, manner)) = content.files.get_mut(&path) else {
        // As distribution has it, with something for terminals in it.
        let unknown =
            br#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest\u001b[2J unknown", "detail": {}}]}"#;
        return answer("404 Not Found", "", unknown);
    };
    let served = std::mem::replace(manner, if *manner == Manner::Corrupt { Manner::Corrupt } else { Manner::Well });
    let from = range.unwrap_or(0);
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    match served {
        Manner::Well => answer(status, "", &bytes[from..]),
        Manner::Busy => answer("429 Too Many Requests", "retry-after: 1\r\n", b""),
        Manner::Corrupt => {
            let wrong: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
            answer(status, "", &wrong[from..]);
        }
        Manner::Cut | Manner::Stall => {
            let (size, half) = (bytes.len(), bytes[..bytes.len() / 2].to_vec());
            drop(content);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(&half);
            if served == Manner::Stall {
                // Until the other side gives up.
                let _ = stream.set_read_timeout(Some(Duration::from_secs(120)));
                let _ = stream.read(&mut byte);
            }
        }
    }
}
