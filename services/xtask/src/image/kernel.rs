//! The kernel out of its self-extracting image: a guest that unpacks its kernel itself starts a second later.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

/// Writes the `vmlinux` that a `vmlinuz` holds.
pub(super) fn extract(vmlinuz: &Path, vmlinux: &Path) -> anyhow::Result<()> {
    let image = fs::read(vmlinuz).with_context(|| format!("read {}", vmlinuz.display()))?;
    let (tool, payload) = payload(&image).with_context(|| format!("read the header of {}", vmlinuz.display()))?;
    let kernel = decompress(tool, payload)?;
    ensure!(kernel.starts_with(b"\x7fELF"), "{}: what it holds is no ELF file", vmlinuz.display());
    fs::write(vmlinux, kernel).with_context(|| format!("write {}", vmlinux.display()))
}

/// Tool that decompresses the kernel in a bzImage, and the compressed bytes. The header is the boot protocol's
/// (Documentation/arch/x86/boot.rst, 2.08 and later).
fn payload(image: &[u8]) -> anyhow::Result<(&'static str, &[u8])> {
    let word = |at: usize| -> anyhow::Result<usize> {
        let bytes = image.get(at..at + 4).context("too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS".as_slice()), "not a bzImage");
    let setup_sectors = usize::from(*image.get(0x1f1).context("too short")?).max(1);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The last four bytes are the size of what is compressed, for the kernel's own loader.
    let end = (start + word(0x24c)?).checked_sub(4).context("an empty payload")?;
    let payload = image.get(start..end).context("a payload beyond its end")?;
    let tool = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', ..] => "xz",
        [0x1f, 0x8b, ..] => "gzip",
        _ => bail!("compressed in a way not known here"),
    };
    Ok((tool, payload))
}

/// Runs `tool -dc` on some bytes.
pub(super) fn decompress(tool: &str, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {tool}"))?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    let output = std::thread::scope(|scope| {
        // Whether all of it was taken shows in the exit status.
        scope.spawn(move || stdin.write_all(bytes));
        child.wait_with_output()
    });
    let output = output.with_context(|| format!("run {tool}"))?;
    ensure!(output.status.success(), "{tool} failed: {}", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::payload;

    #[test]
    fn the_payload_is_found_by_the_header() {
        let mut image = vec![0; 2048];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 16;
        image[0x24c] = 12;
        image[1040..1044].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
        let (tool, bytes) = payload(&image).unwrap();
        assert_eq!((tool, bytes.len()), ("zstd", 8));
        image[0x24d] = 255;
        assert!(payload(&image).is_err(), "beyond the end");
        assert!(payload(&image[..0x200]).is_err(), "too short");
        assert!(payload(&vec![0; 4096]).is_err(), "no header");
    }
}
