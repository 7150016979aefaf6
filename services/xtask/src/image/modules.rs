//! The kernel modules that a machine needs, in the order of their dependencies, decompressed: the guest then loads four
//! of them in a third of the time.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::kernel::decompress;

/// What the agent needs before it can answer.
const FIRST: &[&str] = &["virtio_mmio", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];
/// What the agent needs before those where the machine has PCI.
const PCI: &[&str] = &["virtio_pci"];
/// What disks, volumes, images and commands need.
const LATER: &[&str] = &["virtio_blk", "ext4", "virtiofs", "overlay", "virtio_rng", "virtio_balloon"];

/// How the names of modules' files end, by how they are compressed.
const MODULE: &[&str] = &[".ko", ".ko.xz", ".ko.zst"];

/// One module.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// The lists, in the order in which they are loaded; a module of one is not repeated in the next.
#[derive(Debug)]
pub(super) struct Modules {
    pub(super) pci: Vec<Module>,
    pub(super) first: Vec<Module>,
    pub(super) later: Vec<Module>,
}

/// Collects them from the folder of a kernel's modules.
pub(super) fn collect(dir: &Path) -> anyhow::Result<Modules> {
    let kernel = Kernel::read(dir)?;
    let mut have = HashSet::new();
    let first = kernel.closure(FIRST, &mut have)?;
    // What it shares with the first list must not be left out of that one, which is loaded on all boards.
    let pci = kernel.closure(PCI, &mut have.clone())?;
    Ok(Modules { pci, first, later: kernel.closure(LATER, &mut have)? })
}

/// What a kernel has, by the modules' names.
struct Kernel {
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
}

impl Kernel {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let mut files = HashMap::new();
        // beside it lie links to the kernel's sources
        walk(&dir.join("kernel"), &mut files)?;
        let list = dir.join("modules.builtin");
        let list = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
        let builtin = list.lines().filter_map(|path| path.rsplit('/').next()?.strip_suffix(".ko")).map(canonical);
        Ok(Kernel { files, builtin: builtin.collect() })
    }

    /// The named modules and what they depend on, dependencies first; nothing that is built into the kernel.
    fn closure(&self, names: &[&str], have: &mut HashSet<String>) -> anyhow::Result<Vec<Module>> {
        let mut modules = Vec::new();
        for name in names {
            self.add(name, have, &mut modules)?;
        }
        Ok(modules)
    }

    fn add(&self, name: &str, have: &mut HashSet<String>, modules: &mut Vec<Module>) -> anyhow::Result<()> {
        if self.builtin.contains(name) {
            return Ok(());
        }
        let path = self.files.get(name).with_context(|| format!("this kernel has no module {name}"))?;
        if !have.insert(name.to_owned()) {
            return Ok(());
        }
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let bytes = match path.extension().and_then(OsStr::to_str) {
            Some("xz") => decompress("xz", &bytes)?,
            Some("zst") => decompress("zstd", &bytes)?,
            _ => bytes,
        };
        for needed in depends(&bytes) {
            self.add(&needed, have, modules)?;
        }
        modules.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

/// What a module says it depends on: `depends=a,b` in its `.modinfo` section, ended by NUL.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value: Vec<u8> = module[at + KEY.len()..].iter().copied().take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&value).split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

/// Modules are named with `_`, their files also with `-`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn walk(dir: &Path, files: &mut HashMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            walk(&path, files)?;
        } else if let Some(name) = MODULE.iter().find_map(|end| name.strip_suffix(end)) {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_a_file_or_built_in_and_never_just_missing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("kernel/net");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("virtio-net.ko"), b"\0depends=some-thing,net\0").unwrap();
        fs::write(folder.join("some-thing.ko"), b"\0depends=\0").unwrap();
        fs::write(dir.path().join("modules.builtin"), "kernel/net/net.ko\n").unwrap();
        let kernel = Kernel::read(dir.path()).unwrap();
        let found = kernel.closure(&["virtio_net", "net"], &mut HashSet::new()).unwrap();
        assert_eq!(found.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["some_thing", "virtio_net"]);
        let refused = kernel.closure(&["vsock"], &mut HashSet::new()).unwrap_err().to_string();
        assert!(refused.contains("no module vsock"), "{refused}");
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(depends(b"\x7fELF\0license=GPL\0depends=vsock,some-thing\0name=x\0"), ["vsock", "some_thing"]);
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }
}
