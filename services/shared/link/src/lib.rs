//! Links WebAssembly components that know each other only by interface.
//!
//! A plugin implements one [`Interface`] (its *plug*) and may call others (its *sockets*). From a root interface a
//! [`Tree`] is built of everything that can be reached; loading it instantiates each plugin once, in a store of its own,
//! and wires every import to whatever implements it. How many plugins may implement an interface is its [`Cardinality`],
//! counted over the plugins that loaded. The host calls the root through [`Head::dispatch`] (values of any type) or
//! [`Head::typed`] (types known when the host is compiled).
//!
//! It is for hosts that run code they don't trust. It is not a registry, it stores and compiles nothing, and it knows no
//! particular ABI.
//!
//! Invariants:
//! * Whatever a plugin does, the host gets a value: a trap, an overrun deadline or a refused allocation is that plugin's
//!   error, leaves the other answers whole, and the plugin's next call finds a fresh instance.
//! * A plugin that calls another sees the other's failure as an error value (`shipote:link/errors`), never as a trap.
//! * A call never waits for a plugin longer than its deadline. As the graph has no cycle, locks are taken in one order.
//! * What is linked has the types that its interface declares; that is checked at load.
//!
//! ```
//! use shipote_link::{Answers, Cardinality, Function, Interface, Plugin, Runtime, Tree, ValueType};
//! use wasmtime::component::{Component, Linker, Val};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::new(wasmtime::Config::new())?;
//! let component = Component::new(runtime.engine(), wat::parse_str(r#"(component
//!     (core module $m (func (export "f") (result i32) i32.const 42))
//!     (core instance $i (instantiate $m))
//!     (func $f (result u32) (canon lift (core func $i "f")))
//!     (instance $e (export "get-value" (func $f)))
//!     (export "my:package/example" (instance $e)))"#)?)?;
//! let interface = Interface::new("root", "my:package/example", Cardinality::ExactlyOne)
//!     .function(Function::new("get-value", [], Some(ValueType::U32)));
//! let (tree, errors) = Tree::new("root", [Ok(interface)], [Ok(Plugin::new("foo", "root", component, || ()))]);
//! assert!(errors.is_empty());
//! let (head, errors) = tree.load(&runtime, &Linker::new(runtime.engine())).map_err(|(error, _)| error)?;
//! assert!(errors.is_empty());
//! match head.dispatch("get-value", &[])? {
//!     Answers::ExactlyOne(answer) => assert_eq!(answer?, Some(Val::U32(42))),
//!     other => panic!("{other:?}"),
//! }
//! # Ok(()) }
//! ```
//!
//! # In an asynchronous host
//!
//! With the feature `async` (on by default) a tree is loaded by [`Tree::load_async`], and [`AsyncHead`] calls it from
//! tasks: a plugin that computes for long does not hold up its thread, and the host's functions may wait. The plugins are
//! the same.
//!
//! Functions that WIT itself calls `async` need wasmtime's concurrency support, which makes each call about three times as
//! dear. A host that wants them has the feature `async-functions` (off by default) and a runtime made by
//! `Runtime::with_async_functions`: plugins may then call several others and go on meanwhile. Everywhere else they are
//! refused at load ([`LoadError::Asynchronous`]). Futures and streams do not pass between plugins.
//!
//! ```
//! use std::time::Duration;
//!
//! use shipote_link::{Answers, Cardinality, Function, Interface, Limits, Plugin, Runtime, State, Tree, ValueType};
//! use wasmtime::component::{Component, Linker};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let runtime = Runtime::new(wasmtime::Config::new())?;
//! let component = Component::new(runtime.engine(), wat::parse_str(r#"(component
//!     (import "my:host/clock" (instance $clock (export "wait" (func (param "ms" u32)))))
//!     (core func $wait (canon lower (func $clock "wait")))
//!     (core module $m (import "clock" "wait" (func $wait (param i32)))
//!         (func (export "f") (param i32) (result i32) (call $wait (local.get 0)) (local.get 0)))
//!     (core instance $i (instantiate $m (with "clock" (instance (export "wait" (func $wait))))))
//!     (func $f (param "ms" u32) (result u32) (canon lift (core func $i "f")))
//!     (instance $e (export "nap" (func $f)))
//!     (export "my:package/naps" (instance $e)))"#)?)?;
//! let interface = Interface::new("naps", "my:package/naps", Cardinality::ExactlyOne)
//!     .function(Function::new("nap", [ValueType::U32], Some(ValueType::U32)));
//! let mut linker: Linker<State<()>> = Linker::new(runtime.engine());
//! linker.instance("my:host/clock")?.func_wrap_async("wait", |_, (ms,): (u32,)| {
//!     Box::new(async move { Ok(tokio::time::sleep(Duration::from_millis(ms.into())).await) })
//! })?;
//! let limits = Limits { deadline: Duration::from_secs(5), ..Limits::default() };
//! let plugin = Plugin::new("sleeper", "naps", component, || ()).limits(limits);
//! let (tree, _) = Tree::new("naps", [Ok(interface)], [Ok(plugin)]);
//! let (head, _) = tree.load_async(&runtime, &linker).await.map_err(|(error, _)| error)?;
//! let nap = head.typed::<(u32,), (u32,)>("nap").await?;
//! match nap.call((1,)).await {
//!     Answers::ExactlyOne(answer) => assert_eq!(answer?, (1,)),
//!     other => panic!("{other:?}"),
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(()) }) }
//! ```
#![forbid(unsafe_code)]

mod blocking;
#[cfg(feature = "async-functions")]
mod concurrent;
mod dispatch;
#[cfg(feature = "async")]
mod dispatch_async;
mod error;
mod flat;
mod instance;
mod interface;
mod live;
mod load;
#[cfg(feature = "async")]
mod nested;
mod plugin;
mod provider;
mod resource;
mod runtime;
mod signature;
mod socket;
mod state;
mod surface;
mod tree;
mod value_type;
mod wire;
mod wit;
#[cfg(feature = "async")]
mod yielding;

pub use dispatch::{Answers, Head, Typed, Waiting};
#[cfg(feature = "async")]
pub use dispatch_async::{AsyncHead, AsyncTyped, Yielding};
pub use error::{CallError, DispatchError, Failure, LoadError, PartialResult, TreeError};
pub use interface::{Cardinality, Function, Interface, Kind};
pub use plugin::{Limits, Plugin, SourceError};
pub use runtime::Runtime;
pub use signature::Signature;
pub use state::State;
pub use tree::Tree;
pub use value_type::ValueType;
pub use wit::WitError;
