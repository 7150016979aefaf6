//! The agent as an ordinary process, and clients made of two releases of the public protocol crate.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests, each of which uses some")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use smolvm_protocol_0::{AgentRequest, AgentResponse, encode_message};

/// An agent that runs until dropped.
pub(crate) struct Agent {
    child: Child,
    pub(crate) dir: tempfile::TempDir,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_shipote-agent"))
            .arg("--listen")
            .arg(format!("unix:{}", dir.path().join("agent.sock").display()))
            .arg("--workload")
            .arg(dir.path().join("workload.sock"))
            .arg("--logs")
            .arg(dir.path().join("logs.sock"))
            .arg("--reach")
            .arg(dir.path().join("reach.sock"))
            .arg("--files")
            .arg(dir.path().join("files.sock"))
            .arg("--root")
            .arg(dir.path().join("root"))
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "{line}");
        // What it says later belongs to the test's output.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
        Self { child, dir }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn connect(&self) -> Client {
        Client(UnixStream::connect(self.dir.path().join("agent.sock")).unwrap())
    }

    /// A connection to the socket of another door.
    pub(crate) fn connect_to(&self, name: &str) -> UnixStream {
        UnixStream::connect(self.dir.path().join(name)).unwrap()
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection.
pub(crate) struct Client(pub(crate) UnixStream);

impl Client {
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// A frame with this body.
    pub(crate) fn send_body(&mut self, body: &[u8]) {
        self.send_raw(&u32::try_from(body.len()).unwrap().to_be_bytes());
        self.send_raw(body);
    }

    pub(crate) fn send(&mut self, request: &AgentRequest) {
        self.send_raw(&encode_message(request).unwrap());
    }

    /// The next frame's body, or `None` at the end of the stream.
    pub(crate) fn receive_body(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; 4];
        self.0.read_exact(&mut header).ok()?;
        let mut body = vec![0; u32::from_be_bytes(header) as usize];
        self.0.read_exact(&mut body).unwrap();
        Some(body)
    }

    pub(crate) fn receive(&mut self) -> AgentResponse {
        let body = self.receive_body().expect("an answer before the end of the stream");
        serde_json::from_slice(&body).unwrap()
    }

    pub(crate) fn ask(&mut self, request: &AgentRequest) -> AgentResponse {
        self.send(request);
        self.receive()
    }

    /// The code of the error that this request must get.
    pub(crate) fn refused(&mut self, request: &AgentRequest) -> String {
        match self.ask(request) {
            AgentResponse::Error { code, .. } => code.unwrap(),
            other => panic!("{request:?} was answered by {other:?}"),
        }
    }

    /// Exit code, output and error output of a shell script.
    pub(crate) fn shell(&mut self, script: &str) -> (i32, String, String) {
        match self.ask(&shell(script)) {
            AgentResponse::Completed { exit_code, stdout, stderr } => {
                (exit_code, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
            }
            other => panic!("{script}: {other:?}"),
        }
    }

    /// Everything up to `Exited`: output, error output, exit code.
    pub(crate) fn session(&mut self) -> (String, String, i32) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.receive() {
                AgentResponse::Stdout { data } => out.extend(data),
                AgentResponse::Stderr { data } => err.extend(data),
                AgentResponse::Exited { exit_code } => {
                    return (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), exit_code);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Output frames until the text appears in them.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let mut out = String::new();
        while !out.contains(text) {
            match self.receive() {
                AgentResponse::Stdout { data } => out.push_str(&String::from_utf8_lossy(&data)),
                other => panic!("{other:?} while waiting for {text:?}; so far {out:?}"),
            }
        }
        out
    }
}

/// A script, collected.
pub(crate) fn shell(script: &str) -> AgentRequest {
    exec(&["sh", "-c", script], None, false, false, false)
}

pub(crate) fn exec(
    argv: &[&str],
    timeout_ms: Option<u64>,
    interactive: bool,
    tty: bool,
    background: bool,
) -> AgentRequest {
    AgentRequest::VmExec {
        command: argv.iter().map(|&word| word.to_owned()).collect(),
        env: vec![],
        workdir: None,
        timeout_ms,
        interactive,
        tty,
        background,
    }
}

/// Waits until nobody holds the lock that a command took with `flock`: the kernel's word that it is dead.
pub(crate) fn wait_unlocked(path: &std::path::Path) {
    let file = std::fs::File::open(path).unwrap();
    file.lock().unwrap();
}
