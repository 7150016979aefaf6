//! Handles that cross from one plugin's store to another's.
//!
//! A resource stays with the plugin that made it. Another plugin holds a number; this table says whose resource that is.
//! Dropping the number drops the resource, also when the holder is dropped as a whole.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ResourceAny, ResourceDynamic, ResourceType, Val};

use crate::instance::{Loaded, Mode};
use crate::state::State;
use crate::value_type::ValueType;

/// Handles that one plugin may hold at a time.
const MAX_HANDLES: usize = 100_000;

/// A resource of another plugin.
pub(crate) struct Held<T: 'static> {
    pub(crate) owner: Arc<Loaded<T>>,
    /// Which instance of the owner; a replaced one has taken its resources with it.
    pub(crate) generation: u64,
    resource: Option<ResourceAny>,
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let Some(resource) = self.resource.take() else { return };
        match self.owner.parts.mode {
            Mode::Blocking => self.owner.drop_resource(self.generation, resource),
            #[cfg(feature = "async")]
            Mode::Yielding => self.owner.leave(self.generation, resource),
        }
    }
}

#[cfg(feature = "async")]
impl<T: Send> Held<T> {
    /// Drops the resource now.
    pub(crate) async fn release(mut self) {
        if let Some(resource) = self.resource.take() {
            self.owner.drop_for_another(self.generation, resource).await;
        }
    }
}

/// What one plugin holds.
pub(crate) struct Handles<T: 'static> {
    next: u32,
    held: HashMap<u32, Held<T>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { next: 1, held: HashMap::new() }
    }
}

impl<T> Handles<T> {
    fn add(&mut self, held: Held<T>) -> Result<u32, String> {
        if self.held.len() >= MAX_HANDLES {
            return Err(format!("more than {MAX_HANDLES} handles held"));
        }
        while self.held.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.held.insert(number, held);
        Ok(number)
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<Held<T>> {
        self.held.remove(&number)
    }
}

/// Arguments on their way to the plugin that owns the handles among them.
pub(crate) struct Passing<'a, T: 'static> {
    /// What the owner is handed.
    pub(crate) values: Cow<'a, [Val]>,
    /// Who that is, and which instance of it; `None` if there was no handle.
    pub(crate) owner: Option<(Arc<Loaded<T>>, u64)>,
}

/// Turns a caller's arguments into the owner's: numbers become the owner's own handles. A handle that the caller gives
/// away leaves its table.
pub(crate) fn pass<T>(
    store: &mut StoreContextMut<'_, State<T>>,
    types: &[ValueType],
    values: &[Val],
) -> Result<Passing<'static, T>, String> {
    let mut owner: Option<(Arc<Loaded<T>>, u64)> = None;
    let mut handle = |any: &ResourceAny| {
        let owned = any.owned();
        let dynamic = any.try_into_resource_dynamic(&mut *store).map_err(|error| format!("{error:#}"))?;
        let number = dynamic.rep();
        let held = &mut store.data_mut().handles.held;
        let entry = held.get(&number).ok_or_else(|| format!("unknown handle {number}"))?;
        let (known, generation) = owner.get_or_insert_with(|| (Arc::clone(&entry.owner), entry.generation));
        if !Arc::ptr_eq(known, &entry.owner) || *generation != entry.generation {
            return Err(format!("handles of two owners, {:?} and {:?}, in one call", known.id(), entry.owner.id()));
        }
        let resource = entry.resource;
        if owned && let Some(mut given) = held.remove(&number) {
            given.resource = None;
        }
        resource.map(Val::Resource).ok_or_else(|| format!("handle {number} was given away"))
    };
    let mut passed = Vec::with_capacity(values.len());
    for (ty, value) in types.iter().zip(values) {
        passed.push(if ty.has_resources() { map_handles(value, &mut handle)? } else { value.clone() });
    }
    Ok(Passing { values: passed.into(), owner })
}

/// Turns an owner's answer into the caller's: the owner's handles become numbers. `kinds` says under which number the
/// caller knows each of the owner's resource types.
pub(crate) fn receive<T>(
    store: &mut StoreContextMut<'_, State<T>>,
    owner: &Arc<Loaded<T>>,
    generation: u64,
    kinds: &[(ResourceType, u32)],
    value: &Val,
) -> Result<Val, String> {
    map_handles(value, &mut |any: &ResourceAny| {
        let held = Held { owner: Arc::clone(owner), generation, resource: Some(*any) };
        let Some((_, kind)) = kinds.iter().find(|(ty, _)| *ty == any.ty()) else {
            return Err("a handle of another interface's resource".to_owned());
        };
        let number = store.data_mut().handles.add(held)?;
        let dynamic = ResourceDynamic::new_own(number, *kind);
        dynamic.try_into_resource_any(&mut *store).map(Val::Resource).map_err(|error| format!("{error:#}"))
    })
}

fn map_handles(value: &Val, handle: &mut dyn FnMut(&ResourceAny) -> Result<Val, String>) -> Result<Val, String> {
    let boxed = |value: &Option<Box<Val>>, handle: &mut dyn FnMut(&ResourceAny) -> Result<Val, String>| {
        value.as_ref().map(|value| map_handles(value, handle).map(Box::new)).transpose()
    };
    Ok(match value {
        Val::Resource(any) => handle(any)?,
        Val::List(items) => Val::List(items.iter().map(|item| map_handles(item, handle)).collect::<Result<_, _>>()?),
        Val::Tuple(items) => Val::Tuple(items.iter().map(|item| map_handles(item, handle)).collect::<Result<_, _>>()?),
        Val::Record(fields) => Val::Record(
            fields
                .iter()
                .map(|(name, field)| Ok((name.clone(), map_handles(field, handle)?)))
                .collect::<Result<_, String>>()?,
        ),
        Val::Option(inner) => Val::Option(boxed(inner, handle)?),
        Val::Variant(case, inner) => Val::Variant(case.clone(), boxed(inner, handle)?),
        Val::Result(Ok(inner)) => Val::Result(Ok(boxed(inner, handle)?)),
        Val::Result(Err(inner)) => Val::Result(Err(boxed(inner, handle)?)),
        plain => plain.clone(),
    })
}
