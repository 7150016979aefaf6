//! A filter component: standard input goes through it to standard output.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use shipote_node::Filter as Job;
use wasmtime::component::{ComponentNamedList, Instance, Lift, Linker, Lower, TypedFunc};
use wasmtime::{Store, StoreLimits, Trap};

use crate::STATUS_TRAPPED;
use crate::given::{Given, cause, limits, store};
use crate::watchdog::Watchdog;

/// What it exports.
const INTERFACE: &str = "shipote:filter/filter@0.1.0";
/// Most bytes of a chunk: what a pipe holds.
const CHUNK: usize = 64 * 1024;
/// Most bytes that a call may answer.
const ANSWER_MAX: usize = 16 << 20;

/// What the functions answer.
type Answer<A> = (Result<A, String>,);

/// How a call went wrong.
enum Broken {
    /// The filter said so.
    Refused(String),
    /// It trapped, or took too long.
    Trapped(String),
}

struct Running<'a> {
    store: Store<StoreLimits>,
    watchdog: Watchdog,
    job: &'a Job,
}

/// Passes everything through; gives the exit status.
pub(crate) fn run(job: &Job, given: Given) -> anyhow::Result<u8> {
    let name = &job.name;
    let component = given.component(name, job.fuel)?;
    let engine = component.engine().clone();
    let mut linker = Linker::<StoreLimits>::new(&engine);
    // What the registry let pass because a policy names it; nobody is behind it.
    linker
        .define_unknown_imports_as_traps(&component)
        .map_err(|error| anyhow::anyhow!("filter {name}: its imports: {error:#}"))?;
    let mut store = store(&engine, limits(job.memory_bytes));
    store.limiter(|limits| limits);
    if job.fuel > 0 {
        // Enough to begin with; each call gets its own.
        store.set_fuel(job.fuel).map_err(|error| anyhow::anyhow!("filter {name}: give it fuel: {error:#}"))?;
    }
    let instance = linker
        .instantiate(&mut store, &component)
        .map_err(|error| anyhow::anyhow!("filter {name}: start it: {error:#}"))?;
    let watchdog = Watchdog::start(engine, Duration::from_millis(job.deadline_ms.max(1)))
        .with_context(|| format!("filter {name}: start a thread"))?;
    let start = function::<(Vec<String>,), Answer<()>>(&instance, &mut store, name, "start")?;
    let chunk = function::<(&[u8],), Answer<Vec<u8>>>(&instance, &mut store, name, "chunk")?;
    let finish = function::<(), Answer<Vec<u8>>>(&instance, &mut store, name, "finish")?;
    let mut running = Running { store, watchdog, job };
    let outcome = (|| {
        if let Err(broken) = running.call(&start, (job.args.clone(),)) {
            return Ok(Err(broken));
        }
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = std::io::stdin().lock().read(&mut buffer).with_context(|| format!("filter {name}: read"))?;
            let answer = if n == 0 { running.call(&finish, ()) } else { running.call(&chunk, (&buffer[..n],)) };
            match answer {
                Ok(bytes) if bytes.len() > ANSWER_MAX => {
                    let reason = format!("it answered {} bytes at once, the most are {ANSWER_MAX}", bytes.len());
                    return Ok(Err(Broken::Refused(reason)));
                }
                Ok(bytes) => pass_on(&bytes).with_context(|| format!("filter {name}: write"))?,
                Err(broken) => return Ok(Err(broken)),
            }
            if n == 0 {
                return anyhow::Ok(Ok(()));
            }
        }
    })();
    Ok(match outcome? {
        Ok(()) => 0,
        Err(Broken::Refused(reason)) => {
            eprintln!("shipote: filter {name}: {reason}");
            1
        }
        Err(Broken::Trapped(reason)) => {
            eprintln!("shipote: filter {name}: {reason}");
            STATUS_TRAPPED
        }
    })
}

fn pass_on(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}

impl Running<'_> {
    fn call<P, A>(&mut self, function: &TypedFunc<P, Answer<A>>, parameters: P) -> Result<A, Broken>
    where
        P: ComponentNamedList + Lower,
        A: Lift + 'static,
        Answer<A>: ComponentNamedList + Lift,
    {
        // One tick from now: the watchdog's.
        self.store.set_epoch_deadline(1);
        if self.job.fuel > 0 {
            self.store.set_fuel(self.job.fuel).map_err(|error| Broken::Trapped(format!("give it fuel: {error:#}")))?;
        }
        let outcome = self.watchdog.during(|| function.call(&mut self.store, parameters));
        match outcome {
            Ok((Ok(answer),)) => Ok(answer),
            Ok((Err(reason),)) => Err(Broken::Refused(reason)),
            Err(error) if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) => Err(Broken::Trapped(format!(
                "a call took more than the {} ms that its policy gives (deadline_ms)",
                self.job.deadline_ms
            ))),
            Err(error) => Err(Broken::Trapped(format!("it trapped: {}", cause(&error)))),
        }
    }
}

fn function<P, R>(
    instance: &Instance,
    store: &mut Store<StoreLimits>,
    filter: &str,
    name: &str,
) -> anyhow::Result<TypedFunc<P, R>>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let outer = instance.get_export_index(&mut *store, None, INTERFACE);
    let index = outer.and_then(|outer| instance.get_export_index(&mut *store, Some(&outer), name));
    let index = index.with_context(|| format!("filter {filter}: {INTERFACE} has no function {name}"))?;
    instance.get_typed_func(&mut *store, index).map_err(|error| anyhow::anyhow!("filter {filter}: {name}: {error:#}"))
}
