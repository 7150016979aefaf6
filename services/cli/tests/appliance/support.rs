//! The real appliance in a folder of its own, and the command line against it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A running `shipote up` with all services. Dropped, it is ended and its folder goes.
pub(crate) struct Appliance {
    pub(crate) up: Child,
    folder: tempfile::TempDir,
}

/// Where the binaries of this build lie.
pub(crate) fn binaries() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_shipote")).parent().unwrap().to_path_buf();
    for name in ["shipote-workspaces", "shipote-machines", "shipote-proxy", "shipote-plugins", "shipote-runner"] {
        assert!(folder.join(name).exists(), "{name} is not built: run `cargo build --workspace` first");
    }
    folder
}

pub(crate) fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies").canonicalize().unwrap()
}

impl Appliance {
    /// Starts it and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::start_as(None)
    }

    /// The same in a folder that was prepared, such as with a configuration below `xdg/shipote`.
    pub(crate) fn start_with(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("xdg/shipote")).unwrap();
        prepare(folder.path());
        let up = Self::up(folder.path());
        Appliance { up, folder }
    }

    /// The same with the image that machines are started from.
    pub(crate) fn start_in(image: &Path) -> Self {
        Self::start_as(Some(image))
    }

    /// The same with these services only.
    pub(crate) fn start_services(image: &Path, services: &str) -> Self {
        Self::start_with_words(Some(image), &["--services", services])
    }

    /// With these services only.
    pub(crate) fn start_only(services: &str) -> Self {
        Self::start_with_words(None, &["--services", services])
    }

    /// Without a folder for its configuration: `up` makes one, and services may read what comes into it later.
    fn start_as(image: Option<&Path>) -> Self {
        Self::start_with_words(image, &[])
    }

    fn start_with_words(image: Option<&Path>, words: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let up = Self::up_with(folder.path(), image, words);
        Appliance { up, folder }
    }

    /// Starts `shipote up` again in the same folder.
    pub(crate) fn restart(&mut self) {
        self.up = Self::up(self.folder.path());
    }

    fn up(folder: &Path) -> Child {
        Self::up_with(folder, None, &[])
    }

    fn up_with(folder: &Path, image: Option<&Path>, further: &[&str]) -> Child {
        binaries();
        let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
        let mut up = Command::new(env!("CARGO_BIN_EXE_shipote"))
            .arg("up")
            .arg("--state")
            .arg(folder.join("state"))
            .arg("--runtime")
            .arg(folder.join("run"))
            .args(further)
            .env("SHIPOTE_POLICY_DIR", policies())
            .env("XDG_CONFIG_HOME", folder.join("xdg"))
            .env_remove("NOTIFY_SOCKET")
            .envs(image.map(|image| ("SHIPOTE_MACHINE_IMAGE", image)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let ready = BufReader::new(up.stdout.as_mut().unwrap()).lines().map_while(Result::ok).any(|l| l == "ready");
        assert!(ready, "not ready:\n{}", std::fs::read_to_string(folder.join("log")).unwrap());
        up
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Folder of its configuration files.
    pub(crate) fn config(&self) -> PathBuf {
        self.path("xdg/shipote")
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:path={}", self.path("run/bus").display())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// The command line, connected to this appliance.
    pub(crate) fn shipote(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shipote"));
        command.args(words).env("SHIPOTE_BUS_ADDRESS", self.address()).stdin(Stdio::null());
        command
    }

    /// Runs a command line to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.shipote(words).output().unwrap()
    }

    /// Runs a command line that must succeed; its standard output.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "shipote {words:?}: {}\n{out}\n{err}\n{}", output.status, self.log());
        out
    }

    /// Runs a command line that must succeed and print one JSON object.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ok(words)).unwrap()
    }

    /// Runs a command line with this input.
    pub(crate) fn fed(&self, words: &[&str], input: &[u8]) -> Output {
        let mut child =
            self.shipote(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // the reader may have had enough
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Process id of a service; one that is just being started anew is waited for.
    pub(crate) fn service(&self, name: &str) -> Pid {
        let mut pid = None;
        eventually("the service has a process", || {
            let status = self.json(&["status", "--json"]);
            let all = status["services"].as_array().unwrap();
            let found = all.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("{name} in {status}"));
            pid = found["pid"].as_i64();
            pid.is_some()
        });
        Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()).unwrap()
    }

    /// Ends it in order.
    pub(crate) fn stop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.up.id()).unwrap()).unwrap();
        if self.up.try_wait().unwrap().is_none() {
            kill_process(pid, Signal::TERM).unwrap();
            self.up.wait().unwrap();
        }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the appliance's log:\n{}", self.log());
        }
        self.stop();
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The folder of the machines' image: `cargo xtask test` says where; else from the project's cache or built now.
pub(crate) fn image() -> PathBuf {
    if let Some(folder) = std::env::var_os("SHIPOTE_TEST_IMAGE") {
        return folder.into();
    }
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--", "image"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo xtask image: {}", text(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// Whether the text has this as a word: a compiler's command line is full of digits.
fn has_word(text: &str, word: &str) -> bool {
    let ends = |char: Option<char>| !char.is_some_and(char::is_alphanumeric);
    text.match_indices(word)
        .any(|(at, _)| ends(text[..at].chars().next_back()) && ends(text[at + word.len()..].chars().next()))
}

/// Living processes (zombies are dead) whose environment or command line has this, as a word.
pub(crate) fn processes_with(needle: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let read = |name: &str| std::fs::read(entry.path().join(name)).map(|b| text(&b)).unwrap_or_default();
        let zombie = read("stat").rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
        if !zombie && (has_word(&read("environ"), needle) || has_word(&read("cmdline"), needle)) {
            found.push(pid);
        }
    }
    found
}

/// A port that nobody has, nor is given by chance before it is used: it lies below those that the kernel gives connections
/// and whoever asks for any port. Another run of the tests begins elsewhere.
pub(crate) fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id().wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(20_000 + next % 12_000).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Asks again until it is so. The bound is far longer than anything takes: who gets there has failed.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed().as_secs() < 60, "it never came about that {what}");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}
