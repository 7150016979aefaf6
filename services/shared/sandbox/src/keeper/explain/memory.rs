//! Reading a command's memory while its call waits: for an explanation, never for a decision, because the command
//! may change it at any time.

/// Longest path that the kernel takes (PATH_MAX).
const PATH: usize = 4096;

/// So many bytes at an address, fewer where the memory ends.
pub(super) fn bytes(pid: i32, address: u64, length: usize) -> Vec<u8> {
    read(pid, address, length, |_| false)
}

/// The C string at an address; None where there is none.
pub(super) fn text(pid: i32, address: u64) -> Option<Vec<u8>> {
    let mut bytes = read(pid, address, PATH, |part| part.contains(&0));
    let end = bytes.iter().position(|byte| *byte == 0)?;
    bytes.truncate(end);
    Some(bytes)
}

/// Reads page by page, because a part that crosses into a page that is not there is not read at all.
fn read(pid: i32, address: u64, length: usize, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    const PAGE: u64 = 4096;
    let mut all = Vec::new();
    while all.len() < length {
        let Some(at) = address.checked_add(all.len() as u64) else { break };
        let size = usize::try_from(PAGE - at % PAGE).unwrap_or(1).min(length - all.len());
        let mut part = vec![0_u8; size];
        let local = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: size };
        let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: size };
        // SAFETY: the local part is a buffer of that size; the remote one is only looked up in the other process.
        let done = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        let Ok(done) = usize::try_from(done) else { break };
        all.extend_from_slice(&part[..done.min(size)]);
        if done < size || enough(&part) {
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_may_end_where_the_memory_does() {
        let pid = std::process::id() as i32;
        // SAFETY: two new pages, the second of which is taken away again; only the first is written to.
        let page = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let both = libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(both, libc::MAP_FAILED);
            libc::munmap(both.add(4096), 4096);
            std::slice::from_raw_parts_mut(both.cast::<u8>(), 4096)
        };
        page[4090..].copy_from_slice(b"/path\0");
        let at = page.as_ptr() as u64 + 4090;
        assert_eq!(text(pid, at).as_deref(), Some(&b"/path"[..]));
        page[4095] = b'x';
        assert_eq!(text(pid, at), None);
        assert_eq!(bytes(pid, at, 100), b"/pathx");
        assert_eq!(text(pid, 0), None);
        assert_eq!(text(pid, u64::MAX - 3), None);
    }
}
