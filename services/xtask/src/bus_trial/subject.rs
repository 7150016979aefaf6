//! The bus under trial: started in a folder of its own, stopped and removed at the end.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::report::Ledger;

/// The very configuration that the embedded appliance gives to `dbus-daemon`.
const CONFIG: &str = include_str!("../../../cli/src/up/bus.conf");

pub(super) struct Subject {
    pub(super) address: String,
    child: Child,
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Subject {
    pub(super) async fn start(program: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let listen = format!("unix:path={}", folder.path().join("bus").display());
        let mut command = Command::new(program);
        if program.file_name().is_some_and(|n| n == "busd") {
            command.arg("--address").arg(&listen);
        } else {
            let config = folder.path().join("bus.conf");
            std::fs::write(&config, CONFIG.replace("@LISTEN@", &listen))?;
            command.arg("--nofork").arg("--nopidfile").arg("--config-file").arg(config);
        }
        let mut child = command
            .arg("--print-address")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // It says a word on each signal that a stalled client misses.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let Some(stdout) = child.stdout.take() else { bail!("start {}: no output", program.display()) };
        let mut lines = BufReader::new(stdout).lines();
        let address = loop {
            match lines.next_line().await? {
                Some(line) if line.starts_with("unix:") => break line,
                // A log line before it.
                Some(_) => {}
                None => bail!("start {}: it ended before it printed its address", program.display()),
            }
        };
        // Log lines that follow must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { address, child, folder, program: program.to_owned() })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Ends the bus by SIGTERM; it must go within five seconds.
    pub(super) async fn stop(mut self, ledger: &Ledger) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            ledger.fault("the bus stays alive", status);
            return Ok(());
        }
        let pid = rustix::process::Pid::from_child_id(self.pid());
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let ended = tokio::time::timeout(std::time::Duration::from_secs(5), self.child.wait()).await;
        ledger.check("the bus ends on SIGTERM", ended);
        Ok(())
    }
}

trait FromChildId: Sized {
    fn from_child_id(id: u32) -> Option<Self>;
}

impl FromChildId for rustix::process::Pid {
    fn from_child_id(id: u32) -> Option<Self> {
        i32::try_from(id).ok().and_then(Self::from_raw)
    }
}
