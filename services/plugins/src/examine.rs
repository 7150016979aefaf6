//! The child in which a component is read, judged and compiled. The component comes on standard input, compiled code goes
//! to standard output, one line with the [`Report`] to standard error.
//!
//! Before it reads the first byte it confines itself: limits on address space, processor time and file size, no
//! capabilities, no file and no network by landlock, the services' seccomp filter. The component itself runs only to answer
//! `get-metadata`, in an interpreter, under the policy's memory cap and a deadline.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shipote_confinement::{CapabilitySet, Domain, Handled, drop_capabilities, seccomp};
use shipote_plugin_abi::check::{Refusal, check_metadata, check_shape};
use shipote_plugin_abi::handlers as wire;
use shipote_plugin_abi::host::{
    self, Host, HttpFetchRequest, HttpFetchResponse, LogField, LogLevel, MetricLabel, NetError,
};
use shipote_plugin_abi::kind::{Kind, run_interface};
use shipote_plugin_abi::metadata::{Metadata, MiddlewareKind, PluginError};
use shipote_plugin_abi::policy::Policy;
use shipote_plugin_abi::shape::{Limits, Shape};
use shipote_plugin_abi::{FILTER_INTERFACE, REGISTRY_INTERFACE, engine};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Instance, Linker};
use wasmtime::{Config, Engine, OptLevel, ResourceLimiter, Store, Trap};

use crate::links::{self, Links};

/// What begins the line with the report.
pub(crate) const MARK: &str = "report ";

/// What the child is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The policy that applies; its memory cap and its WASI stubs matter here.
    pub(crate) policy: Policy,
    /// Whether to compile.
    pub(crate) compile: bool,
    /// Seconds of processor time for everything.
    pub(crate) cpu_seconds: u64,
    /// Bytes of address space.
    pub(crate) address_space: u64,
    /// Milliseconds for `get-metadata`, start of the component included.
    pub(crate) metadata_ms: u64,
    /// Most bytes that a component may have.
    pub(crate) size: u64,
}

/// What it found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What the component is for.
    #[serde(default)]
    pub(crate) kind: Kind,
    /// What the plugin says of itself; absent where it could not be asked.
    pub(crate) metadata: Option<Metadata>,
    /// Broken rules; none: the component is taken.
    pub(crate) refusals: Vec<Refusal>,
    /// What it offers to other plugins and wants of them.
    #[serde(default)]
    pub(crate) links: Links,
    /// Bytes of compiled code on standard output.
    pub(crate) compiled: u64,
    /// The engine configuration that it fits.
    pub(crate) engine: String,
    /// Mechanisms of confinement that could not be had, with the reason.
    pub(crate) unconfined: Vec<String>,
}

/// `shipote-plugins examine JOB`.
pub(crate) fn main(job: &str) -> ExitCode {
    let job: Job = match serde_json::from_str(job) {
        Ok(job) => job,
        Err(error) => {
            eprintln!("shipote-plugins examine: the job is malformed: {error}; this is for the registry's own use");
            return ExitCode::from(2);
        }
    };
    let mut report = Report { unconfined: confine(&job), ..Report::default() };
    examine(&job, &mut report);
    match serde_json::to_string(&report) {
        Ok(text) => {
            eprintln!("{MARK}{text}");
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn confine(job: &Job) -> Vec<String> {
    let mut missing = Vec::new();
    let mut note = |what: &str, outcome: Result<(), String>| {
        if let Err(reason) = outcome {
            missing.push(format!("{what}: {reason}"));
        }
    };
    let limits = [
        ("RLIMIT_AS", Resource::As, job.address_space),
        ("RLIMIT_CPU", Resource::Cpu, job.cpu_seconds),
        ("RLIMIT_FSIZE", Resource::Fsize, 1 << 30),
        ("RLIMIT_CORE", Resource::Core, 0),
    ];
    for (name, resource, most) in limits {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        note(name, setrlimit(resource, limit).map_err(|error| error.to_string()));
    }
    note("capabilities", drop_capabilities(CapabilitySet::empty()).map(drop).map_err(|error| error.to_string()));
    note("no-new-privileges", rustix::thread::set_no_new_privs(true).map_err(|error| error.to_string()));
    let handled = Handled { connect_tcp: true, bind_tcp: true, signals: true, abstract_unix: true };
    let landlock = Domain::new(handled).and_then(Domain::restrict).map_err(|error| error.to_string());
    note("landlock", landlock.and_then(|found| if found.is_enforced() { Ok(()) } else { Err(found.reason) }));
    let filter = seccomp::service_filter(false).map_err(|error| error.to_string());
    note("seccomp", filter.and_then(|filter| filter.install().map_err(|error| error.to_string())));
    missing
}

fn examine(job: &Job, report: &mut Report) {
    let mut bytes = Vec::new();
    if let Err(error) = std::io::stdin().lock().take(job.size + 1).read_to_end(&mut bytes) {
        return report.refusals.push(Refusal::new("read", error.to_string()));
    }
    let limits = Limits { size: job.size, ..Limits::default() };
    let shape = match Shape::read(&bytes, limits) {
        Ok(shape) => shape,
        Err(error) => return report.refusals.push(Refusal::new("format", error.to_string())),
    };
    report.kind = Kind::of(&shape);
    report.refusals = check_shape(&shape, &job.policy);
    if !report.refusals.is_empty() {
        return;
    }
    match report.kind {
        Kind::Plugin => question(job, &bytes, &shape, report),
        // It says nothing of itself, and nothing of it is run here.
        kind => report.refusals.extend(look(&bytes, &shape, kind).err()),
    }
    if job.compile
        && report.refusals.is_empty()
        && let Err(refusal) = compile(&bytes, &job.policy, report)
    {
        report.refusals.push(refusal);
    }
}

fn question(job: &Job, bytes: &[u8], shape: &Shape, report: &mut Report) {
    match ask(job, bytes, shape) {
        Ok(Said { metadata, wrong, links }) => {
            report.refusals = check_metadata(&metadata, shape);
            report.refusals.extend(wrong);
            report.links = links;
            report.metadata = Some(metadata);
        }
        Err(refusal) => report.refusals.push(refusal),
    }
}

/// Whether a command or filter has the functions that are called, by its types alone.
fn look(bytes: &[u8], shape: &Shape, kind: Kind) -> Result<(), Refusal> {
    let refused = |error: wasmtime::Error| Refusal::new("component", format!("{error:#}"));
    let interpreter = Engine::new(&interpreter()).map_err(refused)?;
    let component = component(&interpreter, bytes)?;
    let (interface, functions): (&str, &[&str]) = match kind {
        Kind::Filter => (FILTER_INTERFACE, &["start", "chunk", "finish"]),
        _ => (run_interface(shape).unwrap_or_default(), &["run"]),
    };
    let face = component.component_type();
    let exported = face.exports(&interpreter).find(|(name, _)| *name == interface);
    for function in functions {
        let there = exported.as_ref().is_some_and(|(_, item)| match &item.ty {
            ComponentItem::ComponentInstance(instance) => instance
                .get_export(&interpreter, function)
                .is_some_and(|item| matches!(item.ty, ComponentItem::ComponentFunc(_))),
            _ => false,
        });
        if !there {
            let reason = format!("{interface} has no function {function}; build against its WIT");
            return Err(Refusal::new("handler", reason));
        }
    }
    Ok(())
}

/// The component, if it is a valid one of what is run here.
fn component(engine: &Engine, bytes: &[u8]) -> Result<Component, Refusal> {
    Component::new(engine, bytes).map_err(|error| {
        let reason = format!("{error:#}");
        if reason.contains("component model async") {
            return Refusal::new(
                "async",
                format!(
                    "functions that WIT calls async, streams and futures are not run here; declare and build it without (componentize-qjs --sync): {reason}"
                ),
            );
        }
        Refusal::new("component", reason)
    })
}

/// Compiled for this machine, for the engine that a policy asks for.
fn compile(bytes: &[u8], policy: &Policy, report: &mut Report) -> Result<(), Refusal> {
    let failed = |error: wasmtime::Error| Refusal::new("compile", format!("{error:#}"));
    let config = if policy.fuel == 0 { engine::config() } else { engine::metered() };
    let native = Engine::new(&config).map_err(failed)?;
    let code = native.precompile_component(bytes).map_err(failed)?;
    std::io::stdout().write_all(&code).map_err(|error| Refusal::new("compile", error.to_string()))?;
    report.compiled = code.len() as u64;
    report.engine = fingerprint_of(&native);
    Ok(())
}

/// wasmtime's compatibility hashes of the configurations for this machine.
#[derive(Debug)]
pub(crate) struct Engines {
    plain: String,
    metered: String,
}

impl Engines {
    pub(crate) fn of_this_machine() -> wasmtime::Result<Self> {
        let of = |config: &Config| Engine::new(config).map(|engine| fingerprint_of(&engine));
        Ok(Self { plain: of(&engine::config())?, metered: of(&engine::metered())? })
    }

    /// Both.
    pub(crate) fn names(&self) -> [String; 2] {
        [self.plain.clone(), self.metered.clone()]
    }

    /// The one that code under a policy fits.
    pub(crate) fn under(&self, policy: &Policy) -> &str {
        if policy.fuel == 0 { &self.plain } else { &self.metered }
    }
}

fn fingerprint_of(engine: &Engine) -> String {
    /// Feeds what is hashed to sha256: a hash that means the same in every process and every build.
    struct Stable(Sha256);
    impl std::hash::Hasher for Stable {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut stable = Stable(Sha256::new());
    std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut stable);
    stable.0.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What there is to know of a component that could be started.
struct Said {
    metadata: Metadata,
    /// Handlers that are not what the ABI says, imports that are no sockets.
    wrong: Vec<Refusal>,
    links: Links,
}

/// An engine that interprets, so that no memory need be executable.
fn interpreter() -> Config {
    let mut config = Config::new();
    // The one target that is always there; what is wrong with a configuration is told by the engine made of it.
    let _ = config.target("pulley64");
    config.epoch_interruption(true).concurrency_support(false).cranelift_opt_level(OptLevel::None);
    // Address space is limited here, so memory grows by moving instead of by reservation.
    config.memory_reservation(0).memory_guard_size(0).memory_reservation_for_growth(1 << 20).memory_init_cow(false);
    config
}

fn ask(job: &Job, bytes: &[u8], shape: &Shape) -> Result<Said, Refusal> {
    let refused = |rule: &'static str| move |error: wasmtime::Error| Refusal::new(rule, format!("{error:#}"));
    let interpreter = Engine::new(&interpreter()).map_err(refused("interpreter"))?;
    let component = component(&interpreter, bytes)?;
    let mut linker = Linker::<Listener>::new(&interpreter);
    host::add_to_linker(&mut linker).map_err(refused("host"))?;
    // Only what the policy names is left unknown at this point.
    linker.define_unknown_imports_as_traps(&component).map_err(refused("import"))?;
    let mut store = Store::new(&interpreter, Listener::new(job.policy.memory_bytes));
    store.limiter(|listener| listener);
    store.set_epoch_deadline(1);
    let (engine, deadline) = (interpreter.clone(), Duration::from_millis(job.metadata_ms));
    std::thread::spawn(move || {
        let over = std::time::Instant::now() + deadline;
        while let Some(left) = over.checked_duration_since(std::time::Instant::now()) {
            std::thread::park_timeout(left);
        }
        engine.increment_epoch();
    });
    let instance = linker.instantiate(&mut store, &component).map_err(|error| ran(&error, &store, job, "start"))?;
    let get = function::<(), (Metadata,)>(&instance, &mut store, REGISTRY_INTERFACE, "get-metadata")?;
    let (metadata,) = get.call(&mut store, ()).map_err(|error| ran(&error, &store, job, "get-metadata"))?;
    let (links, mut wrong) = links::read(&component, shape, &job.policy);
    for kind in MiddlewareKind::ALL {
        if instance.get_export_index(&mut store, None, kind.interface()).is_some() {
            wrong.extend(handler(&instance, &mut store, kind).err());
        }
    }
    Ok(Said { metadata, wrong, links })
}

fn ran(error: &wasmtime::Error, store: &Store<Listener>, job: &Job, step: &str) -> Refusal {
    if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
        let reason = format!("{step} did not end within {} ms; it has to answer without waiting", job.metadata_ms);
        return Refusal::new("metadata", reason);
    }
    if store.data().refused {
        let most = job.policy.memory_bytes;
        let reason = format!(
            "{step} wanted more than the {most} bytes of memory that its policy gives; raise memory_bytes, or build it smaller"
        );
        return Refusal::new("memory", reason);
    }
    let cause = error.downcast_ref::<Trap>().map_or_else(|| error.root_cause().to_string(), ToString::to_string);
    Refusal::new("metadata", format!("{step} failed: {cause}"))
}

fn handler(instance: &Instance, store: &mut Store<Listener>, kind: MiddlewareKind) -> Result<(), Refusal> {
    type Answer<D> = (Result<D, PluginError>,);
    let interface = kind.interface();
    match kind {
        MiddlewareKind::L4Peek => {
            function::<(String, wire::L4PeekInput), Answer<wire::L4PeekDecision>>(instance, store, interface, "handle")
                .map(drop)
        }
        MiddlewareKind::L4Bytes => function::<(String, wire::L4BytesInput), Answer<wire::L4BytesDecision>>(
            instance, store, interface, "handle",
        )
        .map(drop),
        MiddlewareKind::L7Request => function::<(String, wire::L7RequestInput), Answer<wire::L7RequestDecision>>(
            instance, store, interface, "handle",
        )
        .map(drop),
        MiddlewareKind::L7Response => function::<(String, wire::L7ResponseInput), Answer<wire::L7ResponseDecision>>(
            instance, store, interface, "handle",
        )
        .map(drop),
    }
}

fn function<P, R>(
    instance: &Instance,
    store: &mut Store<Listener>,
    interface: &str,
    name: &str,
) -> Result<wasmtime::component::TypedFunc<P, R>, Refusal>
where
    P: wasmtime::component::ComponentNamedList + wasmtime::component::Lower,
    R: wasmtime::component::ComponentNamedList + wasmtime::component::Lift,
{
    let outer = instance.get_export_index(&mut *store, None, interface);
    let index = outer.and_then(|outer| instance.get_export_index(&mut *store, Some(&outer), name));
    let index = index
        .ok_or_else(|| Refusal::new("handler", format!("{interface} has no function {name}; build against its WIT")))?;
    instance.get_typed_func(&mut *store, index).map_err(|error| {
        Refusal::new(
            "handler",
            format!("{interface}#{name} has other types than the ABI's ({error:#}); build against its WIT"),
        )
    })
}

/// The host behind a component that is only asked who it is: it hears what is logged and gives nothing away.
struct Listener {
    memory: u64,
    used: u64,
    refused: bool,
}

impl Listener {
    fn new(memory: u64) -> Self {
        Self { memory, used: 0, refused: false }
    }
}

impl Host for Listener {
    fn args(&self) -> &str {
        "{}"
    }
    fn log(&mut self, _: LogLevel, _: String, _: Vec<LogField>) {}
    fn random(&mut self, buffer: &mut [u8]) -> wasmtime::Result<()> {
        // Where nothing is to be kept secret, the same bytes each time make the same answer each time.
        buffer.iter_mut().zip(0_u8..=255).for_each(|(byte, value)| *byte = value);
        Ok(())
    }
    fn metric_counter(&mut self, _: String, _: u64, _: Vec<MetricLabel>) {}
    fn metric_gauge(&mut self, _: String, _: i64, _: Vec<MetricLabel>) {}
    fn http_fetch(&mut self, request: HttpFetchRequest) -> wasmtime::Result<Result<HttpFetchResponse, NetError>> {
        Ok(Err(NetError::NotAllowed(request.url)))
    }
}

impl ResourceLimiter for Listener {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.used.saturating_add((desired as u64).saturating_sub(current as u64));
        let fits = used <= self.memory;
        if fits {
            self.used = used;
        }
        self.refused |= !fits;
        Ok(fits)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= 1_000_000)
    }
}
