//! What tests of booted machines have in common.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests, each of which uses some")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::{read_message, write_message};
use shipote_machines::actor::{Change, Handle, Shown};
use shipote_machines::groups::Groups;
use shipote_machines::kept::KeptWays;
use shipote_machines::launcher::Qemu;
use shipote_machines::lifeline::Lifeline;
use shipote_machines::state::State;
use shipote_machines::store::Store;
use shipote_machines::users::Users;
use shipote_proxy::egress::{Doors, Egress};
use smolvm_protocol_0::{AgentRequest, AgentResponse};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// The image, from `SHIPOTE_TEST_IMAGE` (`cargo xtask test`) or `SHIPOTE_MACHINE_IMAGE`, else from the cache or built now;
/// `None` where there is no QEMU to boot it.
pub(crate) fn image() -> Option<PathBuf> {
    let found =
        std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|d| d.join("qemu-system-x86_64").exists());
    if !found {
        eprintln!("skipped: there is no qemu-system-x86_64 on the PATH");
        return None;
    }
    let named = ["SHIPOTE_TEST_IMAGE", "SHIPOTE_MACHINE_IMAGE"].into_iter().find_map(std::env::var_os);
    if let Some(dir) = named {
        return Some(dir.into());
    }
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--", "image"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo xtask image: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim().into())
}

pub(crate) struct Machines {
    pub(crate) handle: Handle,
    pub(crate) changes: mpsc::UnboundedReceiver<Change>,
    /// Where this test removes its folder at the end.
    pub(crate) dir: Option<tempfile::TempDir>,
}

pub(crate) fn machines(image: PathBuf) -> Machines {
    let dir = tempfile::tempdir().unwrap();
    let machines = machines_at(image, dir.path(), Duration::from_secs(30));
    Machines { dir: Some(dir), ..machines }
}

pub(crate) fn machines_at(image: PathBuf, dir: &Path, lease: Duration) -> Machines {
    machines_with(image, dir, lease, None)
}

pub(crate) fn machines_with(image: PathBuf, dir: &Path, lease: Duration, lifeline: Option<Arc<Lifeline>>) -> Machines {
    let (state, runtime) = (dir.join("state"), dir.join("run"));
    std::fs::create_dir_all(&state).unwrap();
    let (sender, changes) = mpsc::unbounded_channel();
    let program = env!("CARGO_BIN_EXE_shipote-machines").into();
    let groups = Groups::open(&runtime);
    let (state_folder, shared, host) = (state.clone(), vec![dir.canonicalize().unwrap()], Arc::default());
    let trial = Duration::from_secs(10);
    let (users, proxy) = (Users::find(), tokio::sync::watch::channel(true).1);
    let launcher = Qemu {
        image,
        runtime,
        state: state_folder,
        program,
        lease,
        lifeline,
        shared,
        groups,
        users,
        trial,
        host,
        proxy,
        ways: KeptWays::default(),
    };
    Machines { handle: Handle::start(Store::new(&state), launcher, sender).unwrap(), changes, dir: None }
}

impl Machines {
    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// Lets a machine out by its list, as the proxy does, for as long as what is returned lives.
    pub(crate) async fn let_out(&self, name: &str) -> Egress {
        let ways = self.handle.ways().await.unwrap();
        let one = ways.iter().find(|one| one.name == name).unwrap();
        let egress = Egress::start(&self.path().join("egress"), 16, None).unwrap();
        let (proxy, names) = one.way.doors().unwrap();
        let doors = Doors { proxy, names };
        egress.adopt(&format!("machine:{name}"), one.way.id(), doors, &one.allow, one.ask).unwrap();
        egress
    }

    /// The same, past the end of an earlier life.
    pub(crate) async fn until_again(&mut self, state: State) -> Shown {
        loop {
            let Change::State(shown) = self.changes.recv().await.unwrap() else { continue };
            if shown.state == state {
                return shown;
            }
        }
    }

    /// Waits for a machine's state; the changes are told, nothing is asked.
    pub(crate) async fn until(&mut self, state: State) -> Shown {
        loop {
            let Change::State(shown) = self.changes.recv().await.unwrap() else { continue };
            if shown.state == state {
                return shown;
            }
            assert_ne!(shown.state, State::Failed, "{}", shown.reason);
        }
    }
}

/// Processes of machines in a folder: a keeper's command line names it, and the environment of what it started.
pub(crate) fn processes(folder: &Path) -> usize {
    let needle = folder.to_str().unwrap();
    let names = |path: PathBuf| std::fs::read(path).is_ok_and(|text| String::from_utf8_lossy(&text).contains(needle));
    let mentions =
        |entry: &std::fs::DirEntry| names(entry.path().join("cmdline")) || names(entry.path().join("environ"));
    std::fs::read_dir("/proc").unwrap().flatten().filter(mentions).count()
}

pub(crate) async fn ask(stream: &mut UnixStream, request: &AgentRequest) -> AgentResponse {
    write_message(stream, request).await.unwrap();
    read_message(stream).await.unwrap().unwrap()
}

pub(crate) fn shell(script: &str) -> AgentRequest {
    AgentRequest::VmExec {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![],
        workdir: None,
        timeout_ms: None,
        interactive: false,
        tty: false,
        background: false,
    }
}

pub(crate) async fn run(stream: &mut UnixStream, script: &str) -> String {
    match ask(stream, &shell(script)).await {
        AgentResponse::Completed { exit_code: 0, stdout, .. } => String::from_utf8(stdout).unwrap(),
        other => panic!("{script}: {other:?}"),
    }
}

pub(crate) async fn pull(stream: &mut UnixStream, image: &str) -> AgentResponse {
    let request = AgentRequest::Pull { image: image.into(), oci_platform: None, auth: None };
    write_message(stream, &request).await.unwrap();
    loop {
        match read_message(stream).await.unwrap().unwrap() {
            AgentResponse::Progress { .. } => {}
            other => return other,
        }
    }
}

pub(crate) fn in_image(
    image: &str,
    command: &[&str],
    user: Option<&str>,
    overlay: Option<&str>,
    detached: bool,
) -> AgentRequest {
    AgentRequest::Run {
        image: image.into(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        env: vec![],
        workdir: None,
        user: user.map(str::to_owned),
        mounts: vec![],
        timeout_ms: None,
        interactive: false,
        tty: false,
        detached,
        persistent_overlay_id: overlay.map(str::to_owned),
        background: false,
    }
}

pub(crate) async fn refused(stream: &mut UnixStream, request: &AgentRequest) -> String {
    match ask(stream, request).await {
        AgentResponse::Error { code, .. } => code.unwrap(),
        other => panic!("{request:?}: {other:?}"),
    }
}
