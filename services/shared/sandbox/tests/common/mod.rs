//! What the tests share: a spawner, and running one command to its end.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use shipote_sandbox::{
    CommandSpec, Event, ExitStream, Keeper, Refusal, SandboxError, SandboxSpec, Spawner, SpawnerConfig, Stdio,
};

pub struct Workspace {
    pub spawner: Spawner,
    pub keeper: Keeper,
    pub events: ExitStream,
    /// What the commands were refused, where the workspace explains.
    pub refused: Vec<Refusal>,
    next: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn spawner() -> Spawner {
    Spawner::start(SpawnerConfig::default()).unwrap()
}

pub fn pipe() -> (File, OwnedFd) {
    let (read, write) = std::io::pipe().unwrap();
    (File::from(OwnedFd::from(read)), write.into())
}

pub fn command(exec: &str, argv: &[&str]) -> CommandSpec {
    CommandSpec {
        exec: exec.to_owned(),
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())],
        ..CommandSpec::default()
    }
}

pub fn shell(script: &str) -> CommandSpec {
    command("sh", &["-c", script])
}

pub fn perl(script: &str) -> CommandSpec {
    command("perl", &["-e", script])
}

async fn read(mut file: File) -> String {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
    .await
    .unwrap()
}

impl Workspace {
    pub async fn new() -> Self {
        Self::with(&SandboxSpec::default()).await
    }

    pub async fn with(spec: &SandboxSpec) -> Self {
        let spawner = spawner();
        let (keeper, events) = spawner.workspace(spec).await.unwrap();
        Self { spawner, keeper, events, refused: Vec::new(), next: 1 }
    }

    pub async fn try_run(&mut self, command: &CommandSpec) -> Result<Outcome, SandboxError> {
        let id = self.next;
        self.next += 1;
        let ((out, stdout), (err, stderr)) = (pipe(), pipe());
        let stdio = Stdio { stdin: None, stdout: Some(stdout), stderr: Some(stderr) };
        self.keeper.spawn(id, command, stdio).await?;
        let (stdout, stderr) = tokio::join!(read(out), read(err));
        loop {
            match self.events.next().await.expect("the keeper lives") {
                Event::Exited { id: ended, code, signal, .. } if ended == id => {
                    return Ok(Outcome { code, signal, stdout, stderr });
                }
                Event::Exited { .. } => {}
                Event::Refused { id: of, refusal } => {
                    assert_eq!(of, id);
                    self.refused.push(refusal);
                }
                Event::KeeperGone => panic!("the keeper is gone"),
            }
        }
    }

    pub async fn run(&mut self, command: &CommandSpec) -> Outcome {
        self.try_run(command).await.unwrap()
    }

    /// Standard output of a script that has to succeed.
    pub async fn output(&mut self, script: &str) -> String {
        let outcome = self.run(&shell(script)).await;
        assert_eq!(outcome.code, Some(0), "{script}: {outcome:?}");
        outcome.stdout.trim_end().to_owned()
    }
}
