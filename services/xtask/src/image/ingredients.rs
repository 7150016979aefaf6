//! What an image is made of, beside the agent: unpacked packages of Debian and programs from crates.io, or a folder that
//! somebody else has filled, such as a build of Nix, which may download nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::packages::Unpacked;
use super::{PROGRAMS, initramfs, kernel, modules};

/// Files that an image is made from.
#[derive(Debug)]
pub(super) struct Ingredients {
    pub(super) unpacked: Unpacked,
    /// As [`PROGRAMS`] names them.
    pub(super) programs: [PathBuf; 2],
    /// Where kernel, busybox and the programs are from: file names, versions or paths.
    pub(super) names: [String; 4],
}

impl Ingredients {
    /// Those of a folder; links are followed, and named by what they lead to.
    pub(super) fn in_folder(dir: &Path) -> anyhow::Result<Self> {
        let find = |name: &str| {
            let path = dir.join(name);
            path.canonicalize().with_context(|| format!("find {}, of which the image is made", path.display()))
        };
        let unpacked = Unpacked { vmlinuz: find("vmlinuz")?, modules: find("modules")?, busybox: find("busybox")? };
        let programs = [find(PROGRAMS[0])?, find(PROGRAMS[1])?];
        let names = [&unpacked.vmlinuz, &unpacked.busybox, &programs[0], &programs[1]];
        let names = names.map(|path| path.display().to_string());
        Ok(Ingredients { unpacked, programs, names })
    }

    /// Writes the image's files into an existing folder.
    pub(super) fn assemble(&self, agent: &[u8], to: &Path) -> anyhow::Result<()> {
        let Ingredients { unpacked, programs, names: [kernel, busybox, vsock, volumes] } = self;
        kernel::extract(&unpacked.vmlinuz, &to.join("vmlinux"))?;
        let modules = modules::collect(&unpacked.modules)?;
        fs::write(to.join("initramfs.cpio"), initramfs::build(agent, &unpacked.busybox, &modules)?)?;
        for (program, name) in programs.iter().zip(PROGRAMS) {
            let target = to.join(name);
            fs::copy(program, &target)
                .and_then(|_| fs::set_permissions(&target, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("copy {} to {}", program.display(), target.display()))?;
        }
        let listed = |set: &[modules::Module]| set.iter().map(|module| module.name.clone()).collect::<Vec<_>>();
        let description = serde_json::json!({
            "kernel": kernel,
            "busybox": busybox,
            "vhost_device_vsock": vsock,
            "virtiofsd": volumes,
            "modules": {"pci": listed(&modules.pci), "first": listed(&modules.first), "later": listed(&modules.later)},
        });
        fs::write(to.join("image.json"), serde_json::to_string_pretty(&description)?).context("write image.json")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_that_lacks_something_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        for name in ["vmlinuz", "modules", "busybox", "vhost-device-vsock"] {
            fs::write(elsewhere.path().join(name), name).unwrap();
            symlink(elsewhere.path().join(name), dir.path().join(name)).unwrap();
        }
        let refused = format!("{:#}", Ingredients::in_folder(dir.path()).unwrap_err());
        assert!(refused.contains("virtiofsd, of which the image is made"), "{refused}");
        fs::write(dir.path().join("virtiofsd"), "").unwrap();
        let found = Ingredients::in_folder(dir.path()).unwrap();
        // by what the link leads to
        assert_eq!(found.names[0], elsewhere.path().canonicalize().unwrap().join("vmlinuz").display().to_string());
    }
}
