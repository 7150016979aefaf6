//! What a machine publishes, changed while it lives.

use super::{Actor, Launcher};
use crate::Error;
use crate::published::Published;

impl<L: Launcher> Actor<L> {
    /// Changes what a machine publishes, for this life and the next ones; what it is now. Connections that are open go on.
    pub(super) fn change_published(
        &mut self,
        name: &str,
        add: Vec<String>,
        remove: &[String],
    ) -> Result<Vec<String>, Error> {
        let machine = self.get(name)?;
        let invalid = |problem: String| Error::InvalidSpec { name: name.to_owned(), problem };
        let mut spec = machine.spec.clone();
        if let Some(other) = remove.iter().find(|text| !spec.publish.contains(text)) {
            return Err(invalid(format!("it does not publish {other:?}; it publishes {:?}", spec.publish)));
        }
        // Ports of the host are opened when it starts, and closed when it has ended.
        let on_the_host = |text: &String| Published::parse(text).is_ok_and(|published| published.host.is_some());
        if machine.state.has_monitor()
            && let Some(port) = add.iter().chain(remove).find(|text| on_the_host(text))
        {
            let state = format!("{}, and {port:?} is a port of the host; stop it first", machine.state.as_str());
            return Err(Error::WrongState { operation: "change what is published by", name: name.to_owned(), state });
        }
        spec.publish.retain(|text| !remove.contains(text));
        for text in add {
            if !spec.publish.contains(&text) {
                spec.publish.push(text);
            }
        }
        let spec = spec.checked(name)?;
        self.store.save(name, &spec)?;
        let machine = self.get(name)?;
        machine.spec = spec;
        Ok(machine.spec.publish.clone())
    }
}
