//! How much lies in the folders that outlive a workspace. No quota of the file system bounds them, so they are measured:
//! before a start, and while the workspace lives as soon as the disk has become fuller by enough to matter.

use std::ffi::CStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::gauge::Gauge;

/// What an entry costs at least: an inode and a name.
const ENTRY: u64 = 1024;
/// What the name of a folder with layers of overlays begins with.
pub(super) const LAYERS: u8 = b'+';
/// Ticks after which it is measured, however little fuller the disk has become.
const TICKS_MAX: u32 = 15;

/// Folders with a bound, and what was in them last.
#[derive(Debug)]
pub(crate) struct KeptSize {
    folders: Vec<PathBuf>,
    /// Bytes.
    limit: u64,
    /// Who looks where the service may not.
    gauge: Option<Arc<Gauge>>,
    last: Mutex<Last>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Last {
    bytes: u64,
    /// Bytes that were in use on the whole disk then.
    disk: u64,
    /// Ticks since.
    ticks: u32,
}

impl KeptSize {
    /// Measures the folders. Blocks.
    ///
    /// # Errors
    /// More is in them than may be, or they cannot be measured; the text says what is to be done.
    pub(crate) fn new(folders: Vec<PathBuf>, limit: u64, gauge: Option<Arc<Gauge>>) -> Result<Self, String> {
        let kept = Self { folders, limit, gauge, last: Mutex::default() };
        kept.measured()?;
        Ok(kept)
    }

    /// As [`KeptSize::new`], of a workspace that lives on: too much of it is found at the next look.
    pub(crate) fn resume(folders: Vec<PathBuf>, limit: u64, gauge: Option<Arc<Gauge>>) -> Self {
        let last = Mutex::new(Last { ticks: TICKS_MAX, ..Last::default() });
        Self { folders, limit, gauge, last }
    }

    /// Whether it can be: where nobody may look into the folders, they are not measured. Blocks.
    pub(crate) fn is_held(&self) -> bool {
        self.folders.iter().all(|folder| self.size(folder, 0).is_ok())
    }

    /// Folders that are another user's by now (of a workspace with ids of its own) the service, which has no right of
    /// root's, cannot look into.
    fn size(&self, folder: &Path, enough: u64) -> io::Result<u64> {
        let own = rustix::process::geteuid().as_raw();
        match &self.gauge {
            Some(gauge) if folder.symlink_metadata()?.uid() != own => gauge.size(folder, enough),
            _ => size(folder, enough),
        }
    }

    /// Bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Called every two seconds. Blocks.
    ///
    /// # Errors
    /// As of [`KeptSize::new`].
    pub(crate) fn look(&self) -> Result<(), String> {
        let now = used(self.folders.first().map(PathBuf::as_path));
        let due = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.ticks += 1;
            // half of what is left: the other half is for what is written until the next look
            let matters = self.limit.saturating_sub(last.bytes) / 2;
            last.bytes > self.limit || last.ticks > TICKS_MAX || now.saturating_sub(last.disk) >= matters
        };
        if due { self.measured() } else { Ok(()) }
    }

    fn measured(&self) -> Result<(), String> {
        let disk = used(self.folders.first().map(PathBuf::as_path));
        let mut bytes = 0_u64;
        for folder in &self.folders {
            bytes = bytes.saturating_add(match self.size(folder, self.limit.saturating_sub(bytes)) {
                Ok(bytes) => bytes,
                // reported as not held; a folder below that a command has shut is another matter
                Err(error) if is_shut(&error) => return Ok(()),
                Err(error) => return Err(format!("the files that it keeps cannot be measured: {error}")),
            });
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Last { bytes, disk, ticks: 0 };
        if bytes <= self.limit {
            return Ok(());
        }
        let (limit, places) = (self.limit, self.folders.iter().map(|folder| folder.display().to_string()));
        let places = places.collect::<Vec<_>>().join(" and ");
        Err(format!(
            "the files that it keeps have more than {limit} bytes; remove some of {places}, or allow more with \
             scratch_bytes"
        ))
    }
}

/// Bytes in use on the disk of a folder; 0 where it cannot be told.
fn used(folder: Option<&Path>) -> u64 {
    let stat = folder.and_then(|folder| rustix::fs::statvfs(folder).ok());
    stat.map_or(0, |stat| stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize))
}

/// Whether it is the folder itself that cannot be looked into, not one below it: those are named in the error.
pub(super) fn is_shut(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ACCESS.raw_os_error())
}

/// Bytes on the disk of all that is below a folder, no link followed. More than `enough`: the rest is not looked at.
pub(super) fn size(folder: &Path, enough: u64) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let named = |path: &Path, error: Errno| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("{}: {error}", folder.join(path).display()))
    };
    // what an overlay has for itself beside a layer is small, and open to nobody
    let layers = folder.file_name().is_some_and(|name| name.as_encoded_bytes().first() == Some(&LAYERS));
    let own = |path: &Path, name: &CStr| layers && path.components().count() == 2 && name.to_bytes() == b"work";
    let (mut bytes, mut left) = (0_u64, vec![PathBuf::from(".")]);
    while let Some(path) = left.pop() {
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let here = match rustix::fs::openat2(&top, &path, flags, Mode::empty(), inside) {
            Ok(here) => here,
            // it has been removed, or is no directory any more
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(named(&path, error)),
        };
        for entry in Dir::read_from(&here).map_err(|error| named(&path, error))? {
            let entry = entry.map_err(|error| named(&path, error))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&here, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512);
            #[allow(clippy::useless_conversion, reason = "a narrower number on other architectures")]
            let links = u64::from(stat.st_nlink).max(1);
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            // what has several names is counted once, a part by each of them
            bytes = bytes.saturating_add(ENTRY + if directory { blocks } else { blocks / links });
            if bytes > enough {
                return Ok(bytes);
            }
            if directory && !own(&path, name) {
                use std::os::unix::ffi::OsStrExt as _;
                left.push(path.join(std::ffi::OsStr::from_bytes(name.to_bytes())));
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_there_counts_and_what_links_lead_to_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join("kept").join(name);
        fs::create_dir_all(at("deep/er")).unwrap();
        fs::write(at("deep/er/file"), vec![7; 300_000]).unwrap();
        fs::write(folder.path().join("outside"), vec![7; 5_000_000]).unwrap();
        symlink(folder.path(), at("out")).unwrap();
        symlink(folder.path().join("outside"), at("deep/file")).unwrap();
        fs::hard_link(at("deep/er/file"), at("again")).unwrap();
        let bytes = size(&folder.path().join("kept"), u64::MAX).unwrap();
        assert!((300_000..400_000).contains(&bytes), "{bytes}");
        // the names alone count, too
        for number in 0..400 {
            fs::write(at(&number.to_string()), "").unwrap();
        }
        assert!(size(&folder.path().join("kept"), u64::MAX).unwrap() >= bytes + 400 * ENTRY);
        assert!(size(&folder.path().join("out"), u64::MAX).is_err(), "no folder of that name");
        assert!(size(&at("out"), u64::MAX).is_err(), "a link is no folder");
    }

    #[test]
    fn an_overlays_own_folder_is_left_out_and_no_other_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let (layers, plain) = (folder.path().join("+w"), folder.path().join("=w"));
        for path in [layers.join("source/work/work"), layers.join("source/upper/work"), plain.join("source/work")] {
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("file"), vec![1; 100_000]).unwrap();
        }
        assert!((100_000..160_000).contains(&size(&layers, u64::MAX).unwrap()));
        assert!(size(&plain, u64::MAX).unwrap() >= 100_000);
    }

    #[test]
    fn more_than_may_be_is_refused_at_the_start_and_found_while_it_grows() {
        let folder = tempfile::tempdir().unwrap();
        let of = |limit| KeptSize::new(vec![folder.path().to_owned()], limit, None);
        let kept = of(100_000).unwrap();
        kept.look().unwrap();
        fs::write(folder.path().join("big"), vec![1; 300_000]).unwrap();
        let told = (0..=TICKS_MAX).find_map(|_| kept.look().err()).unwrap();
        assert!(told.contains("more than 100000 bytes; remove some of /"), "{told}");
        assert!(kept.look().is_err(), "as long as it is so");
        assert!(of(100_000).unwrap_err().contains("allow more with scratch_bytes"));
        fs::remove_file(folder.path().join("big")).unwrap();
        kept.look().unwrap();
        assert!(kept.is_held());
        assert!(!KeptSize::resume(vec![folder.path().join("gone")], 1, None).is_held());
    }
}
