//! The bus side: thin. Authorise, convert, one message to the actor.

mod convert;
mod doors;
mod egress;
mod figures;
mod manager;
mod objects;
mod output;
mod parse;
mod publisher;
mod running;
mod saved;

pub(crate) use doors::Doors;
pub(crate) use egress::Egress;
pub(crate) use figures::Figures;
pub(crate) use manager::Manager;
pub(crate) use publisher::publish;
pub(crate) use saved::SavedPipelines;
