//! The bus through the eyes of `busctl` (sd-bus, another implementation), and of another user.

use std::{os::unix::fs::PermissionsExt, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    process::Command,
    time::{interval, timeout},
};

use super::{
    Trial,
    service::{NAME, PATH},
};

pub(super) async fn run(trial: &Trial) {
    if Command::new("busctl").arg("--version").stdout(Stdio::null()).status().await.is_err() {
        trial.ledger.note("busctl", "not installed, not tried");
        return;
    }
    let mut tick = interval(Duration::from_secs(10));
    loop {
        tick.tick().await;
        if !trial.running() {
            return;
        }
        trial.ledger.check("busctl list", busctl(trial, &["list"], "org.freedesktop.DBus").await);
        trial.ledger.check("busctl tree", busctl(trial, &["tree", NAME], PATH).await);
        trial.ledger.check("busctl introspect", busctl(trial, &["introspect", NAME, PATH], ".Echo").await);
        trial.ledger.check("busctl status", busctl(trial, &["status", NAME], "PID=").await);
        trial.ledger.check("busctl monitor", monitor(trial).await);
    }
}

async fn busctl(trial: &Trial, arguments: &[&str], due: &str) -> Result<()> {
    let command = Command::new("busctl")
        .arg(format!("--address={}", trial.address))
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(10), command).await.context("no end within 10 s")??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains(due), "no {due} in {text}");
    Ok(())
}

async fn monitor(trial: &Trial) -> Result<()> {
    let mut child = Command::new("busctl")
        .arg(format!("--address={}", trial.address))
        .args(["monitor", "--match", "member='Tick'"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdout = child.stdout.take().context("no output")?;
    let mut text = Vec::new();
    let reading = async {
        while !text.windows(4).any(|w| w == b"Tick") {
            if tokio::io::AsyncReadExt::read_buf(&mut stdout, &mut text).await? == 0 {
                bail!("ended after {}", String::from_utf8_lossy(&text));
            }
        }
        Ok(())
    };
    let outcome = timeout(Duration::from_secs(5), reading).await.context("no signal seen within 5 s").and_then(|r| r);
    child.kill().await?;
    outcome
}

/// Another user must not get in, even where the socket's folder would let them.
pub(super) async fn foreign_user(trial: &Trial, folder: &Path) {
    if !rustix::process::getuid().is_root() {
        trial.ledger.note("another user", "not tried: needs root");
        return;
    }
    let outcome = async {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
        let mut command = Command::new("busctl");
        command.arg(format!("--address={}", trial.address)).arg("list").uid(65534).gid(65534);
        let output = timeout(Duration::from_secs(10), command.output()).await.context("no end within 10 s")??;
        ensure!(!output.status.success(), "uid 65534 saw {}", String::from_utf8_lossy(&output.stdout));
        Ok::<_, anyhow::Error>(())
    };
    trial.ledger.check("another user is refused", outcome.await);
}
