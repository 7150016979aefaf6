//! The same kernel with nothing to do: started by the same monitor with the same arguments as a machine, with an init
//! that powers off at once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::vm::host;

/// Options of a machine's monitor that name what only its keeper has.
const CONNECTED: [&str; 4] = ["vsock", "vhost-user", "qmp", "volume"];

/// What a monitor's files are called that its keeper opened for it.
const OPEN: &str = "/proc/self/fd/";

/// A monitor's command line.
pub(super) struct Bare {
    words: Vec<String>,
}

impl Bare {
    /// As the monitor of a running machine was started, with another initramfs and without its vsock device. What the
    /// monitor has open by number is copied into the folder.
    pub(super) fn like(monitor: i32, initramfs: &Path, folder: &Path) -> anyhow::Result<Self> {
        let path = format!("/proc/{monitor}/cmdline");
        let line = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let words: Vec<String> = line.split_terminator('\0').map(str::to_owned).collect();
        let mut words = without(&words, &initramfs.display().to_string());
        for word in &mut words {
            if let Some(number) = word.strip_prefix(OPEN) {
                let copy = folder.join(format!("descriptor-{number}"));
                let open = format!("/proc/{monitor}/fd/{number}");
                std::fs::copy(&open, &copy).with_context(|| format!("copy {open}"))?;
                *word = copy.display().to_string();
            }
        }
        Ok(Self { words })
    }

    /// Boots it to its end.
    pub(super) fn boot(&self) -> anyhow::Result<()> {
        let [program, arguments @ ..] = &self.words[..] else { bail!("the monitor has no command line") };
        let mut command = Command::new(program);
        let output = command.args(arguments).stdin(Stdio::null()).output().context("run the monitor")?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || !said.contains("Power down") {
            bail!("the bare kernel ended with {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// Leaves out the options, each with its value, that name what is not there, and replaces the initramfs.
fn without(words: &[String], initramfs: &str) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let has_value = matches!(word.as_str(), "-chardev" | "-device" | "-mon" | "-initrd");
        let Some(value) = has_value.then(|| words.next()).flatten() else {
            kept.push(word.clone());
            continue;
        };
        if word == "-initrd" {
            kept.extend([word.clone(), initramfs.to_owned()]);
        } else if !CONNECTED.iter().any(|name| value.contains(name)) {
            kept.extend([word.clone(), value.clone()]);
        }
    }
    kept
}

/// Compiles the program that runs in guests, for guests without any library.
pub(super) fn compile(folder: &Path) -> anyhow::Result<PathBuf> {
    let (source, program) = (folder.join("guest.c"), folder.join("guest"));
    std::fs::write(&source, include_str!("guest.c")).context("write the guest's program")?;
    host::run(Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source))?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_keeper_has_is_left_out() {
        let line = "qemu -M microvm -chardev stdio,id=console -chardev socket,id=vsock,fd=100 \
            -device vhost-user-vsock-device,chardev=vsock -chardev socket,id=qmp,fd=101 -mon chardev=qmp,mode=control \
            -initrd /old -append quiet -no-reboot";
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let kept = without(&words, "/new").join(" ");
        assert_eq!(kept, "qemu -M microvm -chardev stdio,id=console -initrd /new -append quiet -no-reboot");
    }
}
