//! The bus side: thin. Authorise, convert, one message to the actor.

mod convert;
mod manager;
mod objects;
mod publisher;

pub(crate) use manager::Manager;
pub(crate) use objects::Doors;
pub(crate) use publisher::publish;
