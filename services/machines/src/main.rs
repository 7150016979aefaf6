//! `shipote-machines`: microVMs. Its work is not written yet: it starts, serves its bus name
//! and `Health`, and says so for the rest.
#![forbid(unsafe_code)]

mod bus;

use std::collections::BTreeMap;
use std::process::ExitCode;

use shipote_bus::Service;
use shipote_service::{Definition, Parts, run};

struct Nothing;

impl Parts for Nothing {
    async fn figures(&self) -> Result<BTreeMap<String, u64>, String> {
        Ok(BTreeMap::new())
    }
}

fn main() -> ExitCode {
    let definition = Definition { service: Service::Machines, version: env!("CARGO_PKG_VERSION") };
    run(
        definition,
        |_| Ok(()),
        async |context, ()| {
            context.connection.object_server().at(Service::Machines.path(), bus::Manager).await?;
            Ok(Nothing)
        },
    )
}
