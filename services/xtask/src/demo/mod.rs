//! `cargo xtask demo`: the appliance does its main job on real data, and shows it from every side.

mod web;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Parser;

use crate::appliance::{self, Appliance};
use crate::image;
use crate::registry;
use crate::vm::{host, repository};

/// The package database of a Debian machine.
const PACKAGES: &str = "/var/lib/dpkg/status";

/// Arguments of `cargo xtask demo`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Another file of Debian control paragraphs with `Package:`, `Section:` and `Installed-Size:`.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// Arguments of `cargo xtask up`.
#[derive(Debug, Parser)]
pub(crate) struct UpArgs {}

/// Runs `cargo xtask demo`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let root = repository()?;
    let demo = root.join("services/xtask/demo");
    let input = match &args.input {
        Some(file) => file.clone(),
        None if Path::new(PACKAGES).exists() => PACKAGES.into(),
        // not a Debian machine: a small part of such a database comes with the demo
        None => demo.join("packages.txt"),
    };
    let pipeline = demo.join("sections.toml");
    let binaries = appliance::build()?;
    let bootable = machine_image()?;
    say("The appliance: a private bus and four services, as you, in one foreground process");
    let config = tempfile::tempdir().context("make a folder for the configuration")?;
    let site = web::Site::configure(config.path())?;
    let appliance = Appliance::start_configured(binaries, true, &[], Some(config.path()))?;
    show(&appliance, &["status"])?;

    say("What this machine lets Shipote enforce around every command");
    show(&appliance, &["capabilities"])?;

    say(&format!("A pipeline of five sandboxed commands ranks the sections of {}, every edge tapped", input.display()));
    println!("$ shipote pipeline run --tap sections.toml < {}", input.display());
    let stdin = File::open(&input).with_context(|| format!("open {}", input.display()))?;
    let file = pipeline.display().to_string();
    let mut run = appliance.shipote(&["pipeline", "run", "--tap", &file]);
    check(run.stdin(stdin).status(), "the pipeline")?;

    say("A command sees the system, its own processes and nothing else");
    let look = "id; echo; ls / /home /root 2>&1; echo; ps ax 2>/dev/null || ls -d /proc/[0-9]*; cat /etc/shadow";
    println!("$ shipote run -- sh -c '{look}'");
    let status = appliance.shipote(&["run", "--", "sh", "-c", look]).stderr(Stdio::inherit()).status()?;
    // the last program of the line is cat(1), which must fail; anything else is Shipote's failure
    if status.code() != Some(1) {
        bail!("the command ended with {status}; it could read /etc/shadow, or it did not run at all");
    }

    site.tell(&appliance, &demo)?;
    session(&appliance)?;

    if bootable {
        machine(&appliance, &input)?;
    }

    say("Every change is on record");
    let state = appliance.folder().map(|f| f.join("state").display().to_string()).unwrap_or_default();
    show(&appliance, &["audit", "--state", &state])?;

    say("The same through busctl");
    let address = format!("--address={}", appliance.address());
    busctl(&[&address, "tree", "org.shipote.Workspaces1"])?;
    busctl(&[&address, "introspect", "org.shipote.Workspaces1", "/org/shipote/Workspaces1", "org.shipote.Service1"])?;
    busctl(&[
        &address,
        "call",
        "org.shipote.Workspaces1",
        "/org/shipote/Workspaces1",
        "org.shipote.Service1",
        "Health",
    ])?;

    say("The end: services stopped in order, nothing left behind");
    let folder = appliance.folder().map(Path::to_path_buf);
    appliance.stop()?;
    if let Some(folder) = folder
        && folder.exists()
    {
        bail!("the demo left {} behind", folder.display());
    }
    println!("\nTo go on: `cargo xtask up` leaves the appliance running.");
    Ok(ExitCode::SUCCESS)
}

/// Runs `cargo xtask up`.
pub(crate) fn up(_args: &UpArgs) -> anyhow::Result<ExitCode> {
    let binaries = appliance::build()?;
    println!("First   export PATH={}:$PATH", binaries.display());
    let status = Appliance::start(binaries, false)?.wait()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(text: &str) {
    println!("\n── {text}\n");
}

/// What a microVM takes of this host, and a registry for its image.
const MACHINE_TOOLS: &[(&str, &str)] =
    &[("qemu-system-x86_64", "qemu-system-x86"), (registry::PROGRAM, "docker-registry")];

/// Makes what machines are started with, if this host can start any.
fn machine_image() -> anyhow::Result<bool> {
    if let Err(error) = host::require("demo", MACHINE_TOOLS, None) {
        println!("(the demo goes on without what is missing: {error:#})");
    }
    if host::find("qemu-system-x86_64").is_none() {
        return Ok(false);
    }
    say("The kernel and the initramfs of microVMs, from Debian's packages and this tree (built once)");
    match image::ensure(false) {
        Ok(image) => println!("$ cargo xtask image\n{}", image.display()),
        Err(error) => {
            println!("(the demo goes on without a microVM: {error:#})");
            return Ok(false);
        }
    }
    Ok(true)
}

/// A microVM: a command in it, a file into it and out again.
fn machine(appliance: &Appliance, input: &Path) -> anyhow::Result<()> {
    say("A microVM boots; its agent runs a command and takes a file");
    let registry = registry::start()?;
    let mut create = vec!["machine", "create", "demo", "--memory", "128", "--disk", "128"];
    if let Some(registry) = &registry {
        create.extend(["--egress", &registry.address]);
    }
    show(appliance, &create)?;
    show(appliance, &["machine", "start", "demo"])?;
    show(appliance, &["machine", "ls"])?;
    show(
        appliance,
        &["machine", "exec", "demo", "--", "sh", "-c", "uname -sr; hostname; free -m | head -2; ps | head -4"],
    )?;
    show(appliance, &["machine", "cp", "/etc/os-release", "demo:/root/host/os-release"])?;
    show(appliance, &["machine", "exec", "demo", "--", "sha256sum", "/root/host/os-release"])?;
    println!("$ sha256sum /etc/os-release");
    check(Command::new("sha256sum").arg("/etc/os-release").status(), "sha256sum")?;
    match &registry {
        Some(registry) => pull(appliance, registry)?,
        None => println!("(no {} here: the demo goes on without pulling an image)", registry::PROGRAM),
    }
    mixed(appliance, input)?;
    show(appliance, &["machine", "stop", "demo"])?;
    show(appliance, &["machine", "rm", "demo"])?;

    say("A root from this host, brought into a machine that is made for one command and ends with it");
    let root = tempfile::tempdir().context("make a folder for a root")?;
    image::busybox_into(root.path())?;
    let folder = root.path().display().to_string();
    let look = "echo I am $(id -u) of $(hostname) in a root with: $(ls /)";
    show(appliance, &["machine", "run", "--memory", "128", "--rootfs", &folder, "--", "/bin/sh", "-c", look])
}

/// A pipeline whose nodes are a program, a command in the machine and a component, with a filter on an edge.
fn mixed(appliance: &Appliance, input: &Path) -> anyhow::Result<()> {
    say("One pipeline: a program, a command in the machine, a WASI component, and a filter on the edge between them");
    let root = repository()?;
    for component in ["upper.wat", "redact.wat"] {
        show(appliance, &["plugin", "add", &root.join("wit/examples").join(component).display().to_string()])?;
    }
    let file = root.join("services/xtask/demo/mixed.toml").display().to_string();
    println!("$ shipote pipeline run --tap mixed.toml < {}", input.display());
    let stdin = File::open(input).with_context(|| format!("open {}", input.display()))?;
    check(appliance.shipote(&["pipeline", "run", "--tap", &file]).stdin(stdin).status(), "the mixed pipeline")
}

/// A session: files in, a command, a snapshot, and another that goes on from it.
fn session(appliance: &Appliance) -> anyhow::Result<()> {
    say("A session: a file in, a command, a snapshot, and another session that goes on from it");
    let folder = tempfile::tempdir().context("make a folder for a snapshot")?;
    let snapshot = folder.path().join("box.tar").display().to_string();
    show(appliance, &["session", "create", "box", "--ttl", "10m"])?;
    show(appliance, &["session", "cp", "/etc/os-release", "box:/work/os-release"])?;
    show(appliance, &["session", "exec", "box", "--", "sh", "-c", "sha256sum os-release > sum; cat sum"])?;
    show(appliance, &["session", "snapshot", "box", &snapshot])?;
    show(appliance, &["session", "rm", "box"])?;
    show(appliance, &["session", "create", "later", "-f", &snapshot])?;
    show(appliance, &["session", "exec", "later", "--", "sha256sum", "-c", "sum"])?;
    show(appliance, &["session", "rm", "later"])
}

/// An image from a registry, pulled by the machine itself, and a command in it.
fn pull(appliance: &Appliance, registry: &registry::Registry) -> anyhow::Result<()> {
    say("The machine pulls an image from a registry on loopback, the only place that it may reach, and runs it");
    show(appliance, &["image", "pull", "demo", &registry.image])?;
    show(appliance, &["image", "ls", "demo"])?;
    let look = "cat /etc/motd; echo I am $(whoami) in $IMAGE; ls /";
    show(appliance, &["machine", "exec", "demo", "--image", &registry.image, "--", "/bin/sh", "-c", look])?;
    let out = tempfile::tempdir().context("make a folder for a file")?;
    let file = out.path().join("os-release").display().to_string();
    show(appliance, &["machine", "cp", "demo:/root/host/os-release", &file])?;
    println!("$ cmp /etc/os-release {file}");
    check(Command::new("cmp").args(["/etc/os-release", &file]).status(), "cmp")?;
    let elsewhere = appliance.shipote(&["image", "pull", "demo", "127.0.0.1:9/elsewhere"]).output()?;
    println!("$ shipote image pull demo 127.0.0.1:9/elsewhere\n{}", String::from_utf8_lossy(&elsewhere.stderr).trim());
    if elsewhere.status.success() {
        bail!("the machine reached what no rule of it allows");
    }
    show(appliance, &["machine", "pause", "demo"])?;
    show(appliance, &["machine", "stats", "demo"])?;
    show(appliance, &["machine", "resume", "demo"])
}

fn show(appliance: &Appliance, words: &[&str]) -> anyhow::Result<()> {
    println!("$ shipote {}", words.join(" "));
    check(appliance.shipote(words).status(), &format!("shipote {}", words.join(" ")))
}

fn busctl(words: &[&str]) -> anyhow::Result<()> {
    println!("$ busctl {}", words.join(" "));
    check(Command::new("busctl").args(words).arg("--no-pager").status(), "busctl")?;
    println!();
    Ok(())
}

fn check(status: std::io::Result<std::process::ExitStatus>, what: &str) -> anyhow::Result<()> {
    let status = status.with_context(|| format!("run {what}"))?;
    if !status.success() {
        bail!("{what} failed: {status}");
    }
    Ok(())
}
