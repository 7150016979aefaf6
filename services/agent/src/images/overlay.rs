//! Overlays: a writable root over the layers of an image.

use std::fs::{create_dir_all, remove_dir_all};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, mount_bind_recursive, move_mount, unmount,
};
use shipote_agent_protocol::OverlayInfo;

use super::{Held, ImageError, Store, check_id};

/// A mounted overlay. One that was made for a single command is unmounted and removed when dropped.
#[derive(Debug)]
pub(super) struct Overlay {
    dir: PathBuf,
    temporary: bool,
    /// The layers beneath it.
    _held: Option<Held>,
}

/// The file beside a persistent overlay that says which layers it is over, one a line: they stay as long as it does.
const LAYERS: &str = "layers";

/// Layers that persistent overlays need.
pub(super) fn layers_of_all(store: &Store) -> Vec<String> {
    let overlays = std::fs::read_dir(store.root.join("overlays")).into_iter().flatten().flatten();
    let texts = overlays.filter_map(|entry| std::fs::read_to_string(entry.path().join(LAYERS)).ok());
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

impl Overlay {
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("merged")
    }

    /// One for a single command.
    pub(super) fn temporary(store: &Arc<Store>, image: &str) -> Result<Self, ImageError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let dir = store.root.join("temporary").join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let mut overlay = Self { dir, temporary: true, _held: None };
        overlay.mount(store, image)?;
        Ok(overlay)
    }

    /// One that stays, by its id; the same again where it is mounted already.
    pub(super) fn persistent(store: &Arc<Store>, image: &str, id: &str) -> Result<Self, ImageError> {
        check_id(id)?;
        let mut overlay = Self { dir: store.root.join("overlays").join(id), temporary: false, _held: None };
        if !overlay.root().join("proc/self").exists() {
            overlay.mount(store, image)?;
        }
        Ok(overlay)
    }

    fn mount(&mut self, store: &Arc<Store>, image: &str) -> Result<(), ImageError> {
        let (image, held) = store.find_and_hold(image)?;
        self._held = Some(held);
        for name in ["upper", "work", "merged"] {
            let dir = self.dir.join(name);
            create_dir_all(&dir).map_err(ImageError::io("create", &dir))?;
        }
        if !self.temporary {
            let list = self.dir.join(LAYERS);
            std::fs::write(&list, image.layers.join("\n")).map_err(ImageError::io("write", &list))?;
        }
        let root = self.root();
        self.attach(store, &image.layers, &root).map_err(|error| ImageError::io("mount", &root)(error.into()))?;
        for name in ["proc", "sys", "dev"] {
            let target = root.join(name);
            create_dir_all(&target).map_err(ImageError::io("create", &target))?;
            mount_bind_recursive(Path::new("/").join(name), &target)
                .map_err(|error| ImageError::io("mount", &target)(error.into()))?;
        }
        Ok(())
    }

    /// By the newer interface, layer by layer: mount(2) takes all options on one page, which fifty layers fill.
    fn attach(&self, store: &Store, layers: &[String], root: &Path) -> rustix::io::Result<()> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for digest in layers.iter().rev() {
            fsconfig_set_string(context.as_fd(), "lowerdir+", store.layer(digest))?;
        }
        fsconfig_set_string(context.as_fd(), "upperdir", self.dir.join("upper"))?;
        fsconfig_set_string(context.as_fd(), "workdir", self.dir.join("work"))?;
        fsconfig_create(context.as_fd())?;
        let mounted = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        move_mount(mounted.as_fd(), "", CWD, root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }

    fn remove(&self) -> Result<(), ImageError> {
        // Lazily, with all that is mounted in it: a process that is still dying may hold it for a moment.
        let _ = unmount(self.root(), UnmountFlags::DETACH);
        match remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", &self.dir)(error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = self.remove()
        {
            eprintln!("shipote-agent: {error}");
        }
    }
}

/// Mounts an overlay that stays.
pub(crate) fn prepare(store: &Arc<Store>, image: &str, id: &str) -> Result<OverlayInfo, ImageError> {
    let overlay = Overlay::persistent(store, image, id)?;
    let path = |name: &str| overlay.dir.join(name).display().to_string();
    Ok(OverlayInfo { rootfs_path: path("merged"), upper_path: path("upper"), work_path: path("work") })
}

/// Removes one with all that was written to it; one that isn't there is as good as removed.
pub(crate) fn cleanup(store: &Arc<Store>, id: &str) -> Result<(), ImageError> {
    check_id(id)?;
    Overlay { dir: store.root.join("overlays").join(id), temporary: false, _held: None }.remove()
}
