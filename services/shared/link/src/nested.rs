//! Calls that yield and that a plugin makes to another.
//!
//! In a runtime with functions that WIT calls `async`, wasmtime runs the tasks of a store in an event loop, and panics where
//! one runs within another. There the called plugin works in a task of the host's own; that ends when nobody waits for it
//! any more.

use std::sync::Arc;

use wasmtime::component::{ComponentNamedList, Lift, Lower, ResourceAny, Val};

use crate::error::DispatchError;
use crate::instance::{Answer, Handed, Loaded};

impl<T: Send + 'static> Loaded<T> {
    /// [`Self::call_yielding`], for another plugin.
    pub(crate) async fn call_for_another(
        self: &Arc<Self>,
        function: usize,
        arguments: &[Val],
        caller: u64,
        handles: Handed,
    ) -> Result<Answer, DispatchError> {
        #[cfg(feature = "async-functions")]
        if self.parts.runtime.has_async_functions() {
            let (this, arguments) = (Arc::clone(self), arguments.to_vec());
            return apart(async move { this.call_yielding(function, &arguments, caller, handles).await }).await;
        }
        self.call_yielding(function, arguments, caller, handles).await
    }

    /// [`Self::call_typed_yielding`], for another plugin.
    pub(crate) async fn call_typed_for_another<P, R>(
        self: &Arc<Self>,
        function: usize,
        arguments: P,
        caller: u64,
    ) -> Result<R, DispatchError>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        #[cfg(feature = "async-functions")]
        if self.parts.runtime.has_async_functions() {
            let this = Arc::clone(self);
            return apart(async move { this.call_typed_yielding(function, arguments, caller).await }).await;
        }
        self.call_typed_yielding(function, arguments, caller).await
    }

    /// [`Self::drop_resource_yielding`], for another plugin.
    pub(crate) async fn drop_for_another(self: &Arc<Self>, generation: u64, resource: ResourceAny) {
        #[cfg(feature = "async-functions")]
        if self.parts.runtime.has_async_functions() {
            let this = Arc::clone(self);
            return apart(async move { this.drop_resource_yielding(generation, resource).await }).await;
        }
        self.drop_resource_yielding(generation, resource).await;
    }
}

/// What comes of `work`, which a task of its own does.
#[cfg(feature = "async-functions")]
async fn apart<A: Send + 'static>(work: impl Future<Output = A> + Send + 'static) -> A {
    struct Ended(tokio::task::AbortHandle);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let task = tokio::spawn(work);
    let _ended = Ended(task.abort_handle());
    match task.await {
        Ok(answer) => answer,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The host's runtime ends, and whoever waits here with it.
            Err(_) => std::future::pending().await,
        },
    }
}
