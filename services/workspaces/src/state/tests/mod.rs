//! The state machine, without any of the world but a test's own.

mod commands;
mod pipelines;
mod sequences;
mod workspaces;
mod world;
