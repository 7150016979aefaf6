//! Users of the host for machines: one for each that runs, where this service may become another user.
//!
//! A machine's monitor and vsock device run as its user, so that a guest that owns one of them is nobody to the processes
//! and files of other machines, of the service, and of everything else on the host, whatever else may fail.
//!
//! Invariant: no two machines that run have the same user; none has one that a person or a service has.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::thread::CapabilitySet;
use shipote_confinement::Mechanism;

use crate::image::Image;
use crate::vmm::host::Accelerator;
use crate::volumes::Owner;

/// First of the users (and groups) that are given out: below what workspaces get their ranges from, above what people,
/// services and systemd's dynamic users have.
const FIRST: u32 = 0x5ffe_0000;
/// How many there are.
const COUNT: u32 = 65_536;
const KVM: &str = "/dev/kvm";

/// What users are taken from.
#[derive(Debug, Clone)]
pub struct Users(Arc<Result<Mutex<u32>, &'static str>>);

impl Users {
    /// Finds out whether this process may give any.
    #[must_use]
    pub fn find() -> Self {
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
        let has = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
        // Where instances begin differs, so that they rarely look for the same.
        let begin = std::process::id().wrapping_mul(0x9e37_79b1) % COUNT;
        Self(Arc::new(if has && holds("/proc/self/uid_map") && holds("/proc/self/gid_map") {
            Ok(Mutex::new(begin))
        } else {
            Err("a machine's processes run as the service's user: it has no right to become another")
        }))
    }

    /// Without any, for those who want none.
    #[must_use]
    pub fn none(reason: &'static str) -> Self {
        Self(Arc::new(Err(reason)))
    }

    /// How far machines have users of their own.
    #[must_use]
    pub fn mechanism(&self, name: &str) -> Mechanism {
        match &*self.0 {
            Ok(_) => Mechanism::enforced(name, "each machine's monitor and vsock device are a user of their own"),
            Err(reason) => Mechanism::degraded(name, *reason),
        }
    }

    /// A user for one more machine, which is to be started with this image; or why it gets none. Blocks.
    ///
    /// # Errors
    /// The reason, fit to be shown.
    pub fn take(&self, image: &Image, accelerator: &Accelerator) -> Result<Owner, String> {
        let next = (*self.0).as_ref().map_err(|reason| (*reason).to_owned())?;
        for (file, mode) in [(&image.kernel, 0o004), (&image.vsock_device, 0o005)] {
            let of_others = file.metadata().map_or(0, |metadata| metadata.permissions().mode());
            if of_others & mode != mode {
                return Err(format!("no other user than the service's may use {}", file.display()));
            }
        }
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = in_use();
        let free = (0..COUNT).map(|n| FIRST + (*next + n) % COUNT).find(|uid| !taken.contains(uid));
        let uid = free.ok_or_else(|| format!("all {COUNT} users for machines are in use"))?;
        *next = (uid - FIRST + 1) % COUNT;
        // Of what the group may use there is nothing else.
        let gid = match accelerator {
            Accelerator::Kvm => Path::new(KVM).metadata().map_or(uid, |metadata| metadata.gid()),
            Accelerator::Tcg(_) => uid,
        };
        Ok(Owner { uid, gid, other: true })
    }
}

/// The users that living processes are, of those that are given out.
fn in_use() -> HashSet<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return HashSet::new() };
    processes
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        .filter_map(|entry| entry.metadata().ok().map(|metadata| metadata.uid()))
        .filter(|uid| (FIRST..FIRST + COUNT).contains(uid))
        .collect()
}

/// Whether this process's own user namespace has the ids (user_namespaces(7)).
fn holds(map: &str) -> bool {
    std::fs::read_to_string(map).is_ok_and(|text| holds_in(&text))
}

fn holds_in(map: &str) -> bool {
    let (first, end) = (u64::from(FIRST), u64::from(FIRST) + u64::from(COUNT));
    map.lines().any(|line| {
        let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        matches!(fields[..], [inside, _, count] if inside <= first && end <= inside + count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(folder: &Path, mode: u32) -> Image {
        for name in ["vmlinux", "initramfs.cpio", "vhost-device-vsock"] {
            let path = folder.join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Image::open(folder).unwrap()
    }

    #[test]
    fn each_machine_gets_another_and_those_in_use_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), 0o755);
        let users = Users(Arc::new(Ok(Mutex::new(COUNT - 1))));
        let tcg = Accelerator::Tcg(String::new());
        let given: Vec<u32> = (0..3).map(|_| users.take(&image, &tcg).unwrap().uid).collect();
        assert_eq!(given, [FIRST + COUNT - 1, FIRST, FIRST + 1]);
        assert!(users.mechanism("x").is_enforced());
    }

    #[test]
    fn there_is_none_where_it_could_not_read_what_it_runs_and_the_reason_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), 0o700);
        let users = Users(Arc::new(Ok(Mutex::new(0))));
        let tcg = Accelerator::Tcg(String::new());
        assert!(users.take(&image, &tcg).unwrap_err().contains("vmlinux"));
        assert_eq!(Users::none("because").take(&image, &tcg).unwrap_err(), "because");
        assert!(!Users::none("because").mechanism("x").is_enforced());
    }

    #[test]
    fn a_user_namespace_without_the_ids_has_none() {
        assert!(holds_in("         0          0 4294967295\n"));
        assert!(!holds_in("0 1000 1\n") && !holds_in("0 100000 65536\n") && !holds_in(""));
        assert!(!holds_in("0 0 1610481664\n"), "all but the last");
    }
}
