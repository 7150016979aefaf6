//! The real appliance: bus, supervisor and services of this build, driven through the
//! command line as a user would.

#![expect(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

mod acme;
mod ahead;
mod attach;
mod canary;
mod cgi;
mod commands;
mod deaths;
mod egress;
mod endpoints;
mod figures;
mod hostile;
mod interfaces;
mod leaks;
mod linked;
mod listeners;
mod machines;
mod nodes;
mod permissions;
mod pipelines;
mod plugins;
mod refusals;
mod reloads;
mod restarts;
mod saved;
mod sessions;
mod sleep;
mod slots;
mod socket;
mod support;
mod survival;
mod watch;
mod ways;
