//! The project's own tasks: `cargo xtask TASK`.
//!
//! For: everything a developer or a CI job runs that is not `cargo build` itself (installing the built tree, system
//! virtual machines, tests, demonstrations, benchmarks). Not for anything a user of the appliance needs: nothing here ships.
//!
//! Invariant: a task leaves no process behind and writes only under the target directory, the cache directory
//! (`$SHIPOTE_CACHE`, else `.cache`) or a directory the caller named.
//!
//! One file (or folder) per task: its module has `Args` (clap) and `run(&Args)`; this file only dispatches.

#![deny(unsafe_op_in_unsafe_fn)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod appliance;
mod bench;
mod bus_trial;
mod cargo;
mod deb;
mod demo;
mod fuzz;
mod image;
mod install;
mod plugin;
mod registry;
mod soak;
mod test;
mod vm;

/// The project's own tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measure the appliance beside what a user would pick instead.
    Bench(bench::Args),
    /// A process that a measurement starts.
    #[command(hide = true)]
    BenchWorker(bench::WorkerArgs),
    /// Drive a message bus for a while and judge whether it can carry the embedded appliance.
    BusTrial(bus_trial::Args),
    /// Pack the installation as a Debian package.
    Deb(deb::Args),
    /// Start the appliance, do its main job on real data, show it, and clean up.
    Demo(demo::Args),
    /// Feed every decoder with what nobody would send.
    Fuzz(fuzz::Args),
    /// Build the kernel, initramfs and tools that machines are started with.
    Image(image::Args),
    /// Lay out an installation below a folder.
    Install(install::Args),
    /// Build the example plugins in Rust, JavaScript and Python.
    Plugin(plugin::Args),
    /// Keep the whole appliance at work for a while, its services killed at random, and judge what is left.
    Soak(soak::Args),
    /// Run everything that must be green: formatting, lints, licences, docs, tests, the virtual machine.
    Test(test::Args),
    /// Start the appliance and leave it running until Ctrl-C.
    Up(demo::UpArgs),
    /// Build, boot and drive a Debian 13 virtual machine.
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Bench(args) => bench::run(&args),
        Task::BenchWorker(args) => args.worker.work(),
        Task::BusTrial(args) => bus_trial::run(&args),
        Task::Deb(args) => deb::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Image(args) => image::run(&args),
        Task::Install(args) => install::run(&args),
        Task::Plugin(args) => plugin::run(&args),
        Task::Soak(args) => soak::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Up(args) => demo::up(&args),
        Task::Vm(args) => vm::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
