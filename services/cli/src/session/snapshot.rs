//! A session as a file: a tar archive that begins with its spec and goes on with what is below `/work`, as the session's
//! own `tar` writes it. So any tar shows what is in it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use shipote_bus::workspaces::{ManagerProxy, SPEC_MAX};

use super::files::command;

/// Name of the first entry.
const SPEC: &str = "session.toml";
/// A header, and what contents are rounded up to.
const BLOCK: u64 = 512;

/// Writes a session to a file, which is there when it is whole; gives its size.
pub(super) async fn write(manager: &ManagerProxy<'_>, name: &str, spec: &str, path: &Path) -> anyhow::Result<u64> {
    let what = format!("snapshot {name} to {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| what.clone())?;
    let mut header = tar::Header::new_ustar();
    header.set_path(SPEC)?;
    header.set_size(spec.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut begin = header.as_bytes().to_vec();
    begin.extend_from_slice(spec.as_bytes());
    begin.resize(begin.len().next_multiple_of(BLOCK as usize), 0);
    file.as_file_mut().write_all(&begin).with_context(|| what.clone())?;
    let null = File::open("/dev/null").context("open /dev/null")?;
    // the command's writes go on where ours ended: it is the same open file
    let words = ["tar", "-C", "/", "-cf", "-", "work"];
    command(manager, name, &words, null.as_fd(), file.as_file().as_fd(), &what).await?;
    let bytes = file.as_file().metadata().with_context(|| what.clone())?.len();
    file.persist(path).with_context(|| what)?;
    Ok(bytes)
}

/// The spec in a snapshot, and the file at the beginning of the rest.
pub(super) fn open(path: &Path) -> anyhow::Result<(String, File)> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("read snapshot {shown}"))?;
    let whole = is_whole(&mut file).with_context(|| format!("read snapshot {shown}"))?;
    let mut spec = String::new();
    let size = {
        let mut archive = tar::Archive::new(&file);
        let mut entries = archive.entries().with_context(|| format!("read snapshot {shown}"))?;
        let first = entries.next().with_context(|| format!("read snapshot {shown}: it is empty"))?;
        let mut first = first.with_context(|| format!("read snapshot {shown}"))?;
        let (name, size) = (first.path()?.into_owned(), first.size());
        ensure!(
            name == Path::new(SPEC) && size <= SPEC_MAX as u64,
            "read snapshot {shown}: it does not begin with {SPEC}; `shipote session snapshot` writes one that does"
        );
        first.read_to_string(&mut spec).with_context(|| format!("read snapshot {shown}"))?;
        size
    };
    ensure!(whole, "read snapshot {shown}: its end is missing; copy it again from where it was written");
    file.seek(SeekFrom::Start(BLOCK + size.next_multiple_of(BLOCK)))
        .with_context(|| format!("read snapshot {shown}"))?;
    Ok((spec, file))
}

/// Whether an archive ends as archives do, in two blocks of zeros (POSIX, pax, "ustar Interchange Format"). Between two of its
/// entries tar takes any end for the end.
fn is_whole(file: &mut File) -> std::io::Result<bool> {
    let length = file.metadata()?.len();
    let mut end = [0; 2 * BLOCK as usize];
    let Some(start) = length.checked_sub(2 * BLOCK) else { return Ok(false) };
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut end)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(end.iter().all(|byte| *byte == 0))
}

/// Puts the files of a snapshot into a session that has just begun.
pub(super) async fn restore(manager: &ManagerProxy<'_>, name: &str, files: File) -> anyhow::Result<()> {
    let null = File::options().write(true).open("/dev/null").context("open /dev/null")?;
    // `/work` itself is the session's, whatever the archive says of it
    let words = ["tar", "-C", "/", "-xf", "-", "--no-overwrite-dir", "--no-same-owner", "work"];
    command(manager, name, &words, files.as_fd(), null.as_fd(), &format!("restore the files of {name}")).await
}
