//! The files of a tar, read where they lie: an archive of an image is never unpacked as a whole.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::path::Path;

use super::ImageError;

/// Largest manifest or config.
const JSON_MAX: u64 = super::registry::JSON_MAX;

/// Where the files of an archive lie in it.
pub(super) struct Pieces<'a> {
    path: &'a Path,
    at: HashMap<String, (u64, u64)>,
}

impl<'a> Pieces<'a> {
    pub(super) fn index(path: &'a Path) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::io("open", path))?;
        let mut archive = tar::Archive::new(file);
        let mut at = HashMap::new();
        let read = ImageError::io;
        for entry in archive.entries_with_seek().map_err(read("read", path))? {
            let entry = entry.map_err(read("read", path))?;
            if entry.header().entry_type().is_file() {
                let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
                at.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        Ok(Self { path, at })
    }

    pub(super) fn find(&self, image: &str, name: &str) -> Result<(u64, u64), ImageError> {
        let found = self.at.get(name).copied();
        found.ok_or_else(|| ImageError::invalid(image, format!("the archive has no file {name}")))
    }

    pub(super) fn size(&self, image: &str, name: &str) -> Result<u64, ImageError> {
        Ok(self.find(image, name)?.1)
    }

    pub(super) fn open(&self, image: &str, name: &str) -> Result<impl Read + use<>, ImageError> {
        let (position, size) = self.find(image, name)?;
        let mut file = File::open(self.path).map_err(ImageError::io("open", self.path))?;
        file.seek(SeekFrom::Start(position)).map_err(ImageError::io("seek in", self.path))?;
        Ok(file.take(size))
    }

    pub(super) fn small(&self, image: &str, name: &str) -> Result<Vec<u8>, ImageError> {
        if self.size(image, name)? > JSON_MAX {
            return Err(ImageError::invalid(image, format!("{name} is over {JSON_MAX} bytes")));
        }
        let mut bytes = Vec::new();
        self.open(image, name)?.read_to_end(&mut bytes).map_err(ImageError::io("read", self.path))?;
        Ok(bytes)
    }
}
