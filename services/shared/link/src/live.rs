//! An instance of a plugin: its store and what was looked up in it.

use std::any::Any;
use std::sync::Arc;

use wasmtime::component::{
    ComponentExportIndex, ComponentNamedList, Func, Instance, Lift, Lower, ResourceAny, ResourceType, TypedFunc, Val,
};
use wasmtime::{Store, Trap};

use crate::error::Failure;
use crate::state::State;

/// An instance that can be called.
pub(crate) struct Live<T: 'static> {
    pub(crate) store: Store<State<T>>,
    /// In the order of the interface.
    pub(crate) functions: Vec<Func>,
    /// `TypedFunc`s by function, as far as they were asked for.
    typed: Vec<Option<Box<dyn Any + Send + Sync>>>,
    pub(crate) kinds: Arc<[(ResourceType, u32)]>,
}

impl<T> Live<T> {
    /// Looks up the interface's functions and resources in an instance.
    pub(crate) fn new(
        mut store: Store<State<T>>,
        instance: &Instance,
        functions: &[ComponentExportIndex],
        resources: &[(ComponentExportIndex, u32)],
    ) -> Result<Self, Failure> {
        let missing = || Failure::Exception { trap: None, message: "an export is gone".to_owned() };
        let functions = functions
            .iter()
            .map(|index| instance.get_func(&mut store, index).ok_or_else(missing))
            .collect::<Result<Vec<_>, _>>()?;
        let kinds = resources
            .iter()
            .map(|(index, kind)| Ok((instance.get_resource(&mut store, index).ok_or_else(missing)?, *kind)))
            .collect::<Result<Arc<[_]>, Failure>>()?;
        let typed = functions.iter().map(|_| None).collect();
        Ok(Self { store, functions, typed, kinds })
    }

    /// Calls a function untyped, with arguments that fit it.
    pub(crate) fn call(
        &mut self,
        function: usize,
        arguments: &[Val],
        has_result: bool,
    ) -> wasmtime::Result<Option<Val>> {
        let mut result = [Val::Bool(false)];
        self.functions[function].call(&mut self.store, arguments, &mut result[..usize::from(has_result)])?;
        let [value] = result;
        Ok(has_result.then_some(value))
    }

    /// A function whose types the host knows.
    #[inline]
    pub(crate) fn typed<P, R>(&mut self, function: usize) -> wasmtime::Result<TypedFunc<P, R>>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        match self.typed[function].as_ref().and_then(|known| known.downcast_ref::<TypedFunc<P, R>>()) {
            Some(typed) => Ok(*typed),
            None => self.resolve(function),
        }
    }

    #[cold]
    fn resolve<P, R>(&mut self, function: usize) -> wasmtime::Result<TypedFunc<P, R>>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let typed = self.functions[function].typed::<P, R>(&self.store)?;
        self.typed[function] = Some(Box::new(typed));
        Ok(typed)
    }
}

/// What became of the instance in `store`.
pub(crate) fn failure<T>(error: &wasmtime::Error, store: &Store<State<T>>) -> Failure {
    let trap = error.downcast_ref::<Trap>().copied();
    if trap == Some(Trap::Interrupt) {
        return Failure::Deadline;
    }
    if store.data().memory.refused {
        return Failure::MemoryLimit;
    }
    // The backtrace is the context, the cause comes last.
    let message = trap.map_or_else(|| error.root_cause().to_string(), |trap| trap.to_string());
    Failure::Exception { trap, message }
}

/// The handles in `value`.
pub(crate) fn collect_handles(value: &Val, into: &mut Vec<ResourceAny>) {
    match value {
        Val::Resource(any) => into.push(*any),
        Val::List(items) | Val::Tuple(items) => items.iter().for_each(|item| collect_handles(item, into)),
        Val::Record(fields) => fields.iter().for_each(|(_, field)| collect_handles(field, into)),
        Val::Option(Some(inner)) | Val::Variant(_, Some(inner)) | Val::Result(Ok(Some(inner)) | Err(Some(inner))) => {
            collect_handles(inner, into);
        }
        _ => {}
    }
}
