//! The kernel modules that a machine needs, in the order of their dependencies, decompressed: the guest then loads four
//! of them in a third of the time.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::kernel::decompress;

/// What the agent needs before it can answer.
const FIRST: &[&str] = &["virtio_mmio", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];
/// What disks, images and commands need.
const LATER: &[&str] = &["virtio_blk", "overlay", "virtio_rng", "virtio_balloon"];

/// One module.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// Both lists; a module of the first is not repeated in the second.
#[derive(Debug)]
pub(super) struct Modules {
    pub(super) first: Vec<Module>,
    pub(super) later: Vec<Module>,
}

/// Collects them from the folder of a kernel's modules.
pub(super) fn collect(dir: &Path) -> anyhow::Result<Modules> {
    let mut files = HashMap::new();
    walk(dir, &mut files)?;
    let mut have = HashSet::new();
    let first = closure(FIRST, &files, &mut have)?;
    let later = closure(LATER, &files, &mut have)?;
    Ok(Modules { first, later })
}

/// The named modules and what they depend on, dependencies first. A module that is no file is built into the kernel.
fn closure(
    names: &[&str],
    files: &HashMap<String, PathBuf>,
    have: &mut HashSet<String>,
) -> anyhow::Result<Vec<Module>> {
    let mut modules = Vec::new();
    for name in names {
        add(name, files, have, &mut modules)?;
    }
    Ok(modules)
}

fn add(
    name: &str,
    files: &HashMap<String, PathBuf>,
    have: &mut HashSet<String>,
    modules: &mut Vec<Module>,
) -> anyhow::Result<()> {
    let Some(path) = files.get(name) else { return Ok(()) };
    if !have.insert(name.to_owned()) {
        return Ok(());
    }
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let bytes = if path.extension().is_some_and(|end| end == "xz") { decompress("xz", &bytes)? } else { bytes };
    for needed in depends(&bytes) {
        add(&needed, files, have, modules)?;
    }
    modules.push(Module { name: name.to_owned(), bytes });
    Ok(())
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
        } else if let Some(name) = name.strip_suffix(".ko.xz").or_else(|| name.strip_suffix(".ko")) {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(depends(b"\x7fELF\0license=GPL\0depends=vsock,some-thing\0name=x\0"), ["vsock", "some_thing"]);
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }
}
