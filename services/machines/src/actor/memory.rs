//! What a machine's guest is asked to make do with, changed while it lives.

use super::{Actor, Launcher};
use crate::Error;
use crate::launch::Order;

const MIB: u64 = 1 << 20;

impl<L: Launcher> Actor<L> {
    /// Has a machine's guest make do with so many bytes of its memory, in this life and the next ones; 0: it may have all.
    /// What it is to have now, bytes.
    pub(super) fn set_memory(&mut self, name: &str, bytes: u64) -> Result<u64, Error> {
        let machine = self.get(name)?;
        let mut spec = machine.spec.clone();
        let (least, most) = (spec.memory_floor_mib(), spec.memory_mib);
        let whole = bytes.is_multiple_of(MIB).then_some(bytes / MIB);
        spec.memory_target_mib = match whole.and_then(|mib| u32::try_from(mib).ok()) {
            Some(0) => None,
            Some(mib) if (least..=most).contains(&mib) => Some(mib).filter(|&mib| mib < most),
            _ => {
                let problem = format!(
                    "have it make do with {bytes} bytes of memory: give {least} MiB (its guest needs so much) to {most} MiB \
                     (it has no more), in whole MiB, or all of it"
                );
                return Err(Error::InvalidSpec { name: name.to_owned(), problem });
            }
        };
        if machine.fixed_memory {
            let state = "kept by an earlier release, which cannot; stop it, or restart it".to_owned();
            return Err(Error::WrongState { operation: "change the memory of", name: name.to_owned(), state });
        }
        self.store.save(name, &spec)?;
        let machine = self.get(name)?;
        let mib = spec.memory_now_mib();
        machine.spec = spec;
        machine.order(Order::Memory(mib));
        Ok(u64::from(mib) * MIB)
    }
}
