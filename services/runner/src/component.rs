//! A command component: `wasi:cli/run@0.2` on the process's own standard descriptors.

use shipote_node::Component as Job;
use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Error, StoreLimits};
use wasmtime_wasi::p2::bindings::sync::Command;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxView, WasiView};

use crate::STATUS_TRAPPED;
use crate::given::{Given, cause, limits, store};

/// What belongs to the one instance.
struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    limits: StoreLimits,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Runs it to its end; gives its exit status.
pub(crate) fn run(job: &Job, given: Given) -> anyhow::Result<u8> {
    let name = &job.name;
    let failed = |step: &str, error: &Error| anyhow::anyhow!("run {name}: {step}: {error:#}");
    let component = given.component(name, job.fuel)?;
    let engine = component.engine().clone();
    let mut linker = Linker::<State>::new(&engine);
    wasmtime_wasi::p2::add_to_linker_sync(&mut linker).map_err(|error| failed("offer WASI", &error))?;
    let state = State { wasi: context(job)?, table: ResourceTable::new(), limits: limits(job.memory_bytes) };
    let mut store = store(&engine, state);
    store.limiter(|state| &mut state.limits);
    if job.fuel > 0 {
        store.set_fuel(job.fuel).map_err(|error| failed("give it fuel", &error))?;
    }
    let command = Command::instantiate(&mut store, &component, &linker).map_err(|error| failed("start it", &error))?;
    match command.wasi_cli_run().call_run(&mut store) {
        Ok(Ok(())) => Ok(0),
        Ok(Err(())) => Ok(1),
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(exit) => Ok((exit.0 & 0xff) as u8),
            None => {
                eprintln!("shipote: run {name}: it trapped: {}", cause(&error));
                Ok(STATUS_TRAPPED)
            }
        },
    }
}

/// Standard descriptors, arguments, environment, and the folders that the job names; no network, nothing else.
fn context(job: &Job) -> anyhow::Result<WasiCtx> {
    let mut wasi = WasiCtx::builder();
    wasi.inherit_stdio().arg(&job.name).args(&job.args).envs(&job.env);
    // Nothing else runs in this process: no need for a thread to wait in.
    wasi.allow_blocking_current_thread(true).allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
    for dir in &job.dirs {
        wasi.preopened_dir(dir, dir, FsPerms::ReadWrite).map_err(|error| {
            anyhow::anyhow!("run {}: give it folder {dir}: {error:#}; name one that the workspace has", job.name)
        })?;
    }
    Ok(wasi.build())
}
