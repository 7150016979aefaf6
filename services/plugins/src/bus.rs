//! `org.shipote.Plugins1.Manager`, at the root object.

use shipote_bus::NotAvailable;

pub(crate) struct Manager;

#[zbus::interface(name = "org.shipote.Plugins1.Manager")]
impl Manager {
    /// List the plugins. Not available yet: answers `org.shipote.Error.NotAvailable`.
    fn list(&self) -> Result<Vec<String>, NotAvailable> {
        Err(NotAvailable::yet("plugins: List"))
    }
}
