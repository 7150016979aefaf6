//! The first root of a machine: a cpio archive (newc, Documentation/driver-api/early-userspace/buffer-format.rst),
//! uncompressed, which the guest's kernel unpacks fastest.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::modules::{Module, Modules};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The archive's bytes.
pub(super) fn build(agent: &[u8], busybox: &Path, modules: &Modules) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["dev", "etc", "mnt", "proc", "root", "run", "sys", "usr", "usr/bin", "var"] {
        archive.add(dir, DIRECTORY | 0o755, &[]);
    }
    archive.add("tmp", DIRECTORY | 0o1777, &[]);
    // What PID 1 says before /dev is mounted goes here.
    archive.device("dev/console", 0o600, (5, 1));
    for (link, target) in [("bin", "usr/bin"), ("sbin", "usr/bin"), ("usr/sbin", "bin"), ("var/run", "../run")] {
        archive.add(link, LINK | 0o777, target.as_bytes());
    }
    archive.add("etc/passwd", FILE | 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
    archive.add("etc/group", FILE | 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    archive.add("usr/bin/busybox", FILE | 0o755, &fs::read(busybox).context("read busybox")?);
    for applet in applets(busybox)? {
        archive.add(&format!("usr/bin/{applet}"), LINK | 0o777, b"busybox");
    }
    archive.add("lib", DIRECTORY | 0o755, &[]);
    archive.add("lib/modules", DIRECTORY | 0o755, &[]);
    for (list, modules) in [("pci", &modules.pci), ("first", &modules.first), ("later", &modules.later)] {
        archive.add(&format!("lib/modules/{list}"), FILE | 0o644, listing(modules).as_bytes());
        for module in modules {
            archive.add(&format!("lib/modules/{}.ko", module.name), FILE | 0o644, &module.bytes);
        }
    }
    archive.add("init", FILE | 0o755, agent);
    Ok(archive.finish())
}

/// An archive with nothing in it but an init and what that may write to.
pub(crate) fn with_init_only(init: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.add("dev", DIRECTORY | 0o755, &[]);
    archive.device("dev/console", 0o600, (5, 1));
    archive.add("init", FILE | 0o755, init);
    archive.finish()
}

fn listing(modules: &[Module]) -> String {
    modules.iter().map(|module| format!("/lib/modules/{}.ko\n", module.name)).collect()
}

/// The names under which busybox is to be found: all it knows.
pub(super) fn applets(busybox: &Path) -> anyhow::Result<BTreeSet<String>> {
    let output = Command::new(busybox).arg("--list").output().context("run busybox --list")?;
    ensure!(output.status.success(), "busybox --list failed: {}", output.status);
    let names = String::from_utf8(output.stdout).context("busybox --list")?;
    Ok(names.lines().filter(|name| !matches!(*name, "" | "busybox" | "init" | "linuxrc")).map(str::to_owned).collect())
}

/// An archive under construction.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    next_inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, mode, (0, 0), data);
    }

    fn device(&mut self, name: &str, mode: u32, number: (u32, u32)) {
        self.entry(name, CHARACTER_DEVICE | mode, number, &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        self.next_inode += 1;
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // ino, mode, uid, gid, nlink, mtime, filesize, dev, rdev, namesize, check
        let fields = [self.next_inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_reads_the_archive() {
        let Some(cpio) = crate::vm::host::find("cpio") else {
            eprintln!("skipped: cpio is not installed");
            return;
        };
        let mut archive = Archive::default();
        archive.add("dir", DIRECTORY | 0o755, &[]);
        archive.add("dir/file", FILE | 0o640, b"five!");
        archive.add("dir/link", LINK | 0o777, b"file");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.cpio");
        fs::write(&path, archive.finish()).unwrap();
        let output = Command::new(cpio).args(["-itv", "-F"]).arg(&path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("drwxr-xr-x") && text.contains("dir/link -> file"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("-rw-r-----") && line.ends_with("dir/file")), "{text}");
    }
}
