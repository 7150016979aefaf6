//! Dropping capabilities (capabilities(7)).

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::{Error, Mechanism};

/// The highest number tried; the kernel answers EINVAL from its own last one on.
const LAST: u32 = 63;

/// Drops every capability but `keep` from the calling thread: ambient, bounding (where the thread
/// holds CAP_SETPCAP, or has nothing to gain it by), inheritable, permitted and effective.
///
/// `keep` stays effective only as far as the thread already has it. A bounding set that cannot be
/// reduced matters no longer once `no_new_privs` is set, and is reported as such.
///
/// # Errors
/// When the kernel refuses to give a capability up, which only a broken seccomp filter does.
pub fn drop_capabilities(keep: CapabilitySet) -> Result<Mechanism, Error> {
    let before = capabilities(None).map_err(Error::system("capget"))?;
    // Kernels before 4.3 have no ambient set: nothing to clear there.
    let _ = clear_ambient_capability_set();
    let mut left_in_bounding = 0_u32;
    for number in 0..=LAST {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match capability_is_in_bounding_set(capability) {
            Ok(true) => {
                if !before.effective.contains(CapabilitySet::SETPCAP)
                    || remove_capability_from_bounding_set(capability).is_err()
                {
                    left_in_bounding += 1;
                }
            }
            Ok(false) => {}
            Err(_) => break,
        }
    }
    let kept = before.permitted & keep;
    // A unit's system call filter may forbid capset (it is among systemd's @privileged), and where the service manager has
    // already given no more than is kept there is nothing to ask for. What is inheritable of it then stays so: without an
    // ambient set and with no_new_privs it is gained by nobody.
    let settled = before.effective == kept && before.permitted == kept && kept.contains(before.inheritable);
    if !settled {
        set_capabilities(
            None,
            CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
        )
        .map_err(Error::system("capset"))?;
    }
    Ok(match (left_in_bounding, kept.is_empty()) {
        (0, true) => Mechanism::enforced("capabilities", "none left"),
        (0, false) => Mechanism::enforced("capabilities", format!("kept {}", names(kept))),
        (left, _) => Mechanism::enforced(
            "capabilities",
            format!(
                "none left but {left} in the bounding set, which only CAP_SETPCAP reduces and no_new_privs disarms"
            ),
        ),
    })
}

/// The capability of that name, in the kernel's spelling with or without `CAP_`, in any case.
///
/// # Errors
/// [`Error::Capability`] for a name the kernel does not have.
pub fn parse_capability(name: &str) -> Result<CapabilitySet, Error> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CapabilitySet::from_name(bare).ok_or_else(|| Error::Capability(name.to_owned()))
}

fn names(set: CapabilitySet) -> String {
    let names: Vec<String> = set.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_in_any_spelling() {
        for name in ["net_bind_service", "CAP_NET_BIND_SERVICE", "cap_net_bind_service"] {
            assert_eq!(parse_capability(name).unwrap(), CapabilitySet::NET_BIND_SERVICE);
        }
        assert!(parse_capability("net_bind").is_err());
    }
}
