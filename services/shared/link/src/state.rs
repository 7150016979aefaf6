//! What lies in a plugin's store.

use std::ops::{Deref, DerefMut};

use wasmtime::ResourceLimiter;

use crate::instance::Exclusive;
use crate::plugin::Limits;
use crate::resource::Handles;

/// A store's data: the host's own, with what linking keeps beside it. Dereferences to the host's own.
pub struct State<T: 'static> {
    /// The host's own data.
    pub data: T,
    pub(crate) handles: Handles<T>,
    /// Tick at which the running call ends.
    pub(crate) deadline: u64,
    pub(crate) memory: Memory,
    /// Plugins that this one alone calls.
    pub(crate) exclusive: Vec<Exclusive<T>>,
}

impl<T> State<T> {
    pub(crate) fn new(data: T, limits: Limits, exclusive: Vec<Exclusive<T>>) -> Self {
        Self {
            data,
            handles: Handles::default(),
            deadline: u64::MAX,
            memory: Memory { limits, used: 0, refused: false },
            exclusive,
        }
    }
}

impl<T> Deref for State<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> DerefMut for State<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}

/// Counts an instance's memory. A refused growth is `-1` to the plugin, as wasm has it; what it does next is its own.
pub(crate) struct Memory {
    limits: Limits,
    used: u64,
    /// A growth was refused since this was last reset.
    pub(crate) refused: bool,
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.used.saturating_add((desired as u64).saturating_sub(current as u64));
        let fits = used <= self.limits.memory && maximum.is_none_or(|most| desired <= most);
        if fits {
            self.used = used;
        } else {
            self.refused = true;
        }
        Ok(fits)
    }

    fn table_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let fits = desired as u64 <= self.limits.table_elements && maximum.is_none_or(|most| desired <= most);
        self.refused |= !fits;
        Ok(fits)
    }
}
