//! Plugins from the file to the request: registry and proxy of the appliance, and what they do when plugins change.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use shipote_plugin_abi::fixtures::{Fixture, LEAF};

use crate::support::{Appliance, free_port, text};

/// Makes the proxy answer on `port` with what plugins leave of a request, through a chain of one plugin.
pub(crate) fn route(shipote: &Appliance, port: u16, plugin: &str, args: &Value) {
    let folder = shipote.path("xdg/shipote/proxy");
    std::fs::create_dir_all(&folder).unwrap();
    let rules = json!({"rules": [{
        "name": "all", "listen": [format!("127.0.0.1:{port}")],
        "middleware_chain": [{"use": plugin, "args": args}],
        "terminate": {"type": "static", "status": 200, "text": "through"},
    }]});
    std::fs::write(folder.join("rules.json"), rules.to_string()).unwrap();
    shipote.ok(&["proxy", "reload"]);
}

/// A request with one header more: status and the rest.
pub(crate) fn ask(port: u16, path: &str, header: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\n{header}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{answer:?}")), answer)
}

/// Asks until the proxy, which hears of a change by signal, answers with `status`.
pub(crate) fn until(port: u16, status: u16) {
    let begun = std::time::Instant::now();
    while ask(port, "/", "").0 != status {
        assert!(begun.elapsed().as_secs() < 60, "no {status}");
        std::thread::yield_now();
    }
}

pub(crate) fn component(shipote: &Appliance, fixture: &Fixture) -> String {
    let path = shipote.path(&format!("{}-{}.wasm", fixture.metadata.name, fixture.metadata.version));
    std::fs::write(&path, fixture.component()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Writes the registry's policy before the appliance starts.
pub(crate) fn policy(folder: &Path, text: &str) {
    let folder = folder.join("xdg/shipote/plugins");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("policy.toml"), text).unwrap();
}

#[test]
fn versions_take_over_and_go_back_under_requests() {
    let shipote = Appliance::start();
    let port = free_port();
    for (version, status) in [("1.0.0", 418), ("1.1.0", 451)] {
        let file = component(&shipote, &Fixture::answering("edge", version, status, version));
        if status == 451 {
            shipote.ok(&["plugin", "add", "--no-activate", &file]);
        } else {
            shipote.ok(&["plugin", "add", &file]);
        }
    }
    route(&shipote, port, "edge:l7-request", &json!({}));
    assert_eq!(ask(port, "/", "").0, 418);
    let plan = shipote.json(&["plugin", "activate", "--dry-run", "--json", "edge@1.1.0"]);
    assert_eq!((plan["from"].as_str(), plan["to"].as_str()), (Some("1.0.0"), Some("1.1.0")), "{plan}");
    assert_eq!(ask(port, "/", "").0, 418);
    shipote.ok(&["plugin", "activate", "edge@1.1.0"]);
    until(port, 451);
    shipote.ok(&["plugin", "rollback", "edge"]);
    until(port, 418);
}

#[test]
fn rules_that_wait_for_a_plugin_are_served_when_it_comes() {
    let shipote = Appliance::start();
    let port = free_port();
    let folder = shipote.path("xdg/shipote/proxy");
    std::fs::create_dir_all(&folder).unwrap();
    let rules = json!({"rules": [{
        "name": "all", "listen": [format!("127.0.0.1:{port}")], "middleware_chain": [{"use": "edge:l7-request"}],
        "terminate": {"type": "static", "status": 200, "text": "through"},
    }]});
    std::fs::write(folder.join("rules.json"), rules.to_string()).unwrap();
    let refused = shipote.run(&["proxy", "reload"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    let parts = ["rules.json: rule \"all\": ", "find plugin edge: none fits", "the rules from before go on"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    shipote.ok(&["plugin", "add", &component(&shipote, &Fixture::answering("edge", "1.0.0", 418, ""))]);
    let begun = std::time::Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed().as_secs() < 60, "nobody listens");
        std::thread::yield_now();
    }
    assert_eq!(ask(port, "/", "").0, 418);
    let metrics = shipote.ok(&["proxy", "metrics"]);
    assert!(metrics.contains("shipote_proxy_plugin_calls_total{plugin=\"edge\",version=\"1.0.0\""), "{metrics}");
}

#[test]
fn plugins_are_linked_and_linked_anew_when_one_changes() {
    let sockets = format!("[plugins.edge.sockets]\n\"{LEAF}\" = \"exactly-one\"\n");
    let shipote = Appliance::start_with(|folder| policy(folder, &sockets));
    let port = free_port();
    let edge = component(&shipote, &Fixture::wanting("edge", "1.0.0"));
    let refused = shipote.run(&["plugin", "add", "--name", "edge", &edge]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("0 fit"), "{}", text(&refused.stderr));
    shipote.ok(&["plugin", "add", &component(&shipote, &Fixture::offering("leaf", "1.0.0", 18))]);
    shipote.ok(&["plugin", "add", "--name", "edge", &edge]);
    let graph = shipote.ok(&["plugin", "graph"]);
    assert!(graph.contains(LEAF) && graph.contains("└─ leaf 1.0.0"), "{graph}");
    assert!(shipote.ok(&["plugin", "graph", "--format", "dot"]).starts_with("digraph"));
    route(&shipote, port, "edge:l7-request", &json!({}));
    assert_eq!(ask(port, "/", "").0, 418);
    shipote.ok(&["plugin", "add", &component(&shipote, &Fixture::offering("leaf", "1.1.0", 51))]);
    until(port, 451);
    let refused = shipote.run(&["plugin", "rm", "--dry-run", "leaf"]);
    assert_eq!(refused.status.code(), Some(1));
    let forced = shipote.json(&["plugin", "rm", "--force", "--dry-run", "--json", "leaf"]);
    assert_eq!((&forced["from"], &forced["used_by"]), (&json!("1.1.0"), &json!(["edge"])), "{forced}");
    assert!(shipote.ok(&["plugin", "rm", "--force", "--dry-run", "leaf"]).contains("removes leaf 1.1.0"));
    assert_eq!(shipote.json(&["plugin", "show", "leaf", "--json"])["active"], true, "nothing was removed");
}

/// Debian's `docker-registry` on the loopback interface, for user `me` with password `secret`.
struct Registry {
    process: std::process::Child,
    _folder: tempfile::TempDir,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let at = folder.path().display();
        // The password as crypt(3) of the kind bcrypt, at its least cost.
        std::fs::write(
            folder.path().join("users"),
            "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n",
        )
        .unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {at}}}}}\nhttp: {{addr: '{address}'}}\nauth: {{htpasswd: {{realm: test, path: {at}/users}}}}\n"
        );
        std::fs::write(folder.path().join("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed (Debian's package of that name)");
        let this = Self { process, _folder: folder, address };
        let begun = std::time::Instant::now();
        while TcpStream::connect(&this.address).is_err() {
            assert!(begun.elapsed().as_secs() < 60, "the registry does not listen");
            std::thread::yield_now();
        }
        this
    }

    fn curl(&self, words: &[&str]) -> String {
        let output = Command::new("curl").args(["-sS", "--fail", "-u", "me:secret"]).args(words).output().unwrap();
        assert!(output.status.success(), "curl {words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn blob(&self, file: &str, digest: &str) {
        let uploads = format!("http://{}/v2/demo/edge/blobs/uploads/", self.address);
        let answer = self.curl(&["-X", "POST", "-D", "-", "-o", "/dev/null", &uploads]);
        let location =
            answer.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case("location")));
        let location = location.unwrap_or_else(|| panic!("{answer}")).1.trim();
        let to = format!("{location}&digest={digest}");
        self.curl(&[
            "-X",
            "PUT",
            "-H",
            "Content-Type: application/octet-stream",
            "--data-binary",
            &format!("@{file}"),
            &to,
        ]);
    }

    /// Pushes a component as the layout for Wasm has it, its layer as `layer`.
    fn push(&self, shipote: &Appliance, file: &str, tag: &str, layer: &str) {
        let report = shipote.run(&["plugin", "check", "--json", file]);
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        let (digest, size) = (report["digest"].as_str().unwrap(), std::fs::metadata(file).unwrap().len());
        let empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        let config = shipote.path("config.json");
        std::fs::write(&config, "{}").unwrap();
        self.blob(config.to_str().unwrap(), empty);
        self.blob(file, digest);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": empty, "size": 2},
            "layers": [{"mediaType": layer, "digest": digest, "size": size}],
        });
        let path = shipote.path("manifest.json");
        std::fs::write(&path, manifest.to_string()).unwrap();
        let (data, to) =
            (format!("@{}", path.display()), format!("http://{}/v2/demo/edge/manifests/{tag}", self.address));
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        self.curl(&["-X", "PUT", "-H", kind, "--data-binary", &data, &to]);
    }
}

#[test]
fn components_come_from_an_oci_registry_and_from_a_folder() {
    let shipote = Appliance::start();
    let registry = Registry::start();
    let file = component(&shipote, &Fixture::answering("edge", "1.0.0", 418, "from afar"));
    registry.push(&shipote, &file, "1.0.0", "application/wasm");
    registry.push(&shipote, &file, "layered", "application/vnd.oci.image.layer.v1.tar+gzip");
    let auth = shipote.path("auth.json");
    let write = |pair: &str| {
        let text = json!({"auths": {(registry.address.clone()): {"auth": pair}}}).to_string();
        std::fs::write(&auth, text).unwrap();
    };
    write("bWU6c2VjcmV0");
    let reference = |tag: &str| format!("oci://{}/demo/edge:{tag}", registry.address);
    let add = |reference: &str| shipote.run(&["plugin", "add", "--json", "--auth", auth.to_str().unwrap(), reference]);
    for (tag, reason) in [("layered", "application/wasm"), ("2.0.0", "manifest")] {
        let refused = add(&reference(tag));
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(reason), "{tag}: {}", text(&refused.stderr));
    }
    let added = add(&reference("1.0.0"));
    let info: Value = serde_json::from_slice(&added.stdout).unwrap_or_else(|_| panic!("{}", text(&added.stderr)));
    assert_eq!((info["name"].as_str(), info["version"].as_str()), (Some("edge"), Some("1.0.0")));
    write("bWU6d3Jvbmc=");
    assert_eq!(add(&reference("1.0.0")).status.code(), Some(1), "the password is wrong");

    let folder = shipote.path("many");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a-bad.wasm"), "junk").unwrap();
    std::fs::write(folder.join("leaf.wasm"), Fixture::offering("leaf", "1.0.0", 1).component()).unwrap();
    std::fs::write(folder.join("README"), "no component").unwrap();
    let added = shipote.run(&["plugin", "add", folder.to_str().unwrap()]);
    assert_eq!(added.status.code(), Some(1), "one of them is refused");
    assert!(text(&added.stderr).contains("a-bad") && text(&added.stdout).contains("leaf 1.0.0"));
}

/// What is asked of the examples: path, header, status, part of the answer.
type Asked<'a> = (&'a str, &'a str, u16, &'a str);

/// `cargo xtask plugin --try` and `cargo xtask test` build the examples and run this; `SHIPOTE_EXAMPLES` lists the files.
#[test]
#[ignore = "needs the components that `cargo xtask plugin` builds"]
fn examples() {
    let files = std::env::var_os("SHIPOTE_EXAMPLES").expect("SHIPOTE_EXAMPLES lists the components");
    // Interpreters take their time, and the Python one its memory.
    let limits =
        "[plugins.redirects]\ndeadline_ms = 1000\n[plugins.crawlers]\ndeadline_ms = 1000\nmemory_bytes = 134217728\n";
    let shipote = Appliance::start_with(|folder| policy(folder, limits));
    let mut tried = 0;
    for file in std::env::split_paths(&files) {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let (export, args, asked): (_, _, &[Asked<'_>]) = match name {
            "api-key" => (
                "api-key:check",
                json!({"key": "open sesame"}),
                &[
                    ("/", "", 401, ""),
                    ("/", "X-Api-Key: open sesamf", 401, ""),
                    ("/", "X-Api-Key: open sesame", 200, "through"),
                ],
            ),
            "redirects" => (
                "redirects:redirect",
                json!({"/old": "/new"}),
                &[("/old?a=b", "", 308, "location: /new?a=b"), ("/other", "", 200, "through")],
            ),
            "crawlers" => (
                "crawlers:refuse",
                json!({}),
                &[("/", "User-Agent: examplebot/1.0", 403, ""), ("/", "User-Agent: Mozilla/5.0", 200, "through")],
            ),
            other => panic!("no example is called {other}"),
        };
        shipote.ok(&["plugin", "add", file.to_str().unwrap()]);
        let port = free_port();
        route(&shipote, port, export, &args);
        for (path, header, status, part) in asked {
            let (found, answer) = ask(port, path, header);
            assert!(found == *status && answer.contains(part), "{name} {path} {header}: {answer}");
        }
        let stats = shipote.json(&["plugin", "stats", name, "--json"]);
        assert!(stats["plugins"][0]["calls"].as_u64() >= Some(asked.len() as u64), "{stats}");
        tried += 1;
    }
    assert!(tried > 0, "no component; run `cargo xtask plugin`");
    println!("{tried} examples answer as they should");
}
