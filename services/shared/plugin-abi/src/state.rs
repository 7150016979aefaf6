//! What a plugin may keep from call to call (`shipote:state/store`), as types and, with the feature `runtime`, as entries
//! of a wasmtime linker.

#[cfg(feature = "runtime")]
use wasmtime::component::{ComponentType, Lift, Linker, Lower};
#[cfg(feature = "runtime")]
use wasmtime::{Result, StoreContextMut};

/// Most bytes of a key.
pub const KEY_MAX: usize = 256;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(variant))]
pub enum StateValue {
    /// Text.
    #[cfg_attr(feature = "runtime", component(name = "text"))]
    Text(String),
    /// Bytes.
    #[cfg_attr(feature = "runtime", component(name = "bytes"))]
    Bytes(Vec<u8>),
    /// A number.
    #[cfg_attr(feature = "runtime", component(name = "int64"))]
    Int64(i64),
    /// A number that is not negative.
    #[cfg_attr(feature = "runtime", component(name = "uint64"))]
    Uint64(u64),
    /// Yes or no.
    #[cfg_attr(feature = "runtime", component(name = "boolean"))]
    Boolean(bool),
}

/// Why a value was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(enum))]
#[repr(u8)]
pub enum StateError {
    /// Empty, or longer than [`KEY_MAX`].
    #[cfg_attr(feature = "runtime", component(name = "bad-key"))]
    BadKey,
    /// The policy gives no more room.
    #[cfg_attr(feature = "runtime", component(name = "full"))]
    Full,
    /// What is there is of another type.
    #[cfg_attr(feature = "runtime", component(name = "wrong-type"))]
    WrongType,
    /// The sum does not fit.
    #[cfg_attr(feature = "runtime", component(name = "overflow"))]
    Overflow,
}

/// What stands behind the imports of one instance; each call is one step.
#[cfg(feature = "runtime")]
pub trait Keeper: Send + 'static {
    /// The value of a key.
    fn get(&mut self, key: &str) -> Option<StateValue>;

    /// Puts a value in place of what there was.
    ///
    /// # Errors
    /// When the key is none or there is no room.
    fn set(&mut self, key: String, value: StateValue) -> std::result::Result<(), StateError>;

    /// Takes a value away; whether there was one.
    fn remove(&mut self, key: &str) -> bool;

    /// Adds to a number; returns the sum.
    ///
    /// # Errors
    /// Also when what is there is no number, or the sum does not fit.
    fn add(&mut self, key: String, delta: i64) -> std::result::Result<i64, StateError>;

    /// Puts `new` in place of `expected`, if that is what is there; whether it was.
    ///
    /// # Errors
    /// When the key is none or there is no room.
    fn replace(
        &mut self,
        key: String,
        expected: Option<&StateValue>,
        new: Option<StateValue>,
    ) -> std::result::Result<bool, StateError>;

    /// The keys that begin with `prefix`, in order.
    fn keys(&mut self, prefix: &str) -> Vec<String>;
}

/// Offers `shipote:state/store@0.1.0` in `linker`; what stands behind it is a part of the store's data.
///
/// # Errors
/// When the linker has the interface already.
#[cfg(feature = "runtime")]
pub fn add_to_linker_of<T: Send + 'static, K: Keeper>(
    linker: &mut Linker<T>,
    keeper_of: fn(&mut T) -> &mut K,
) -> Result<()> {
    let mut store = linker.instance(crate::STATE_INTERFACE)?;
    store.func_wrap("get", move |mut data: StoreContextMut<'_, T>, (key,): (String,)| {
        Ok((keeper_of(data.data_mut()).get(&key),))
    })?;
    store.func_wrap("set", move |mut data: StoreContextMut<'_, T>, (key, value): (String, StateValue)| {
        Ok((keeper_of(data.data_mut()).set(key, value),))
    })?;
    store.func_wrap("remove", move |mut data: StoreContextMut<'_, T>, (key,): (String,)| {
        Ok((keeper_of(data.data_mut()).remove(&key),))
    })?;
    store.func_wrap("add", move |mut data: StoreContextMut<'_, T>, (key, delta): (String, i64)| {
        Ok((keeper_of(data.data_mut()).add(key, delta),))
    })?;
    store.func_wrap(
        "replace",
        move |mut data: StoreContextMut<'_, T>,
              (key, expected, new): (String, Option<StateValue>, Option<StateValue>)| {
            Ok((keeper_of(data.data_mut()).replace(key, expected.as_ref(), new),))
        },
    )?;
    store.func_wrap("keys", move |mut data: StoreContextMut<'_, T>, (prefix,): (String,)| {
        Ok((keeper_of(data.data_mut()).keys(&prefix),))
    })
}
