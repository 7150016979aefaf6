//! Kernel modules, as they lie in the initramfs: uncompressed, and listed in the order in which they must be loaded.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use rustix::io::Errno;
use rustix::system::finit_module;

/// Modules that those need which follow, where the machine has PCI.
const PCI: &str = "/lib/modules/pci";
/// Modules that the first answer needs: a path a line.
pub(super) const FIRST: &str = "/lib/modules/first";
/// The rest.
pub(super) const LATER: &str = "/lib/modules/later";

/// Loads what PCI needs, where there is any.
pub(super) fn load_pci() -> anyhow::Result<()> {
    let devices = Path::new("/sys/bus/pci/devices").read_dir();
    if devices.is_ok_and(|mut devices| devices.next().is_some()) { load(Path::new(PCI)) } else { Ok(()) }
}

/// Loads what a list names. A kernel that has one of them built in says so, which is as good.
pub(super) fn load(list: &Path) -> anyhow::Result<()> {
    let names = std::fs::read_to_string(list).with_context(|| format!("read {}", list.display()))?;
    for path in names.lines().filter(|line| !line.is_empty()) {
        let file = File::open(path).with_context(|| format!("open {path}"))?;
        match finit_module(file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => anyhow::bail!("load {path}: {error}"),
        }
    }
    Ok(())
}
