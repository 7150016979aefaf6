//! `org.shipote.Machines1.Manager`, at the root object.

use shipote_bus::NotAvailable;

pub(crate) struct Manager;

#[zbus::interface(name = "org.shipote.Machines1.Manager")]
impl Manager {
    /// List the machines. Not available yet: answers `org.shipote.Error.NotAvailable`.
    fn list(&self) -> Result<Vec<String>, NotAvailable> {
        Err(NotAvailable::yet("machines: List"))
    }
}
