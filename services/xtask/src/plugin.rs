//! `cargo xtask plugin`: builds the example plugins of `wit/examples/` in the languages that they are written in.
//!
//! Tool chains come from where such tools come from (npm, PyPI, rustup or Debian) into the cache, nothing into the system.
//! The components go to `target/plugins/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::Parser;

use crate::cargo::cargo;
use crate::test::AS_TESTED;
use crate::vm::{host, repository};

/// QuickJS as a component; the other npm packages make components of 12 MB, or cannot read a folder of WIT.
const QUICKJS: &str = "componentize-qjs@0.4.5";
const COMPONENTIZE_PY: &str = "componentize-py==0.25.1";
const TARGET: &str = "wasm32-unknown-unknown";
/// Debian's rustc that can build the standard library for wasm, for machines whose own cannot get the target.
const DEBIAN_RUST: &[&str] = &["rustc-web", "rust-web-src", "libstd-rust-web-dev", "libstd-rust-web-1.96", "libllvm22"];

/// A language that there is an example in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Language {
    Rust,
    Javascript,
    Python,
}

const LANGUAGES: [Language; 3] = [Language::Rust, Language::Javascript, Language::Python];

/// Arguments of `cargo xtask plugin`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Only these; all if there is none.
    #[arg(value_enum)]
    languages: Vec<Language>,
    /// Then try them: added to an appliance of the tests' build, called by its proxy.
    #[arg(long = "try")]
    try_out: bool,
}

/// Runs `cargo xtask plugin`: the components' paths go to standard output.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let components = build(if args.languages.is_empty() { &LANGUAGES } else { &args.languages })?;
    for component in &components {
        println!("{}", component.display());
    }
    if args.try_out {
        try_out(&components)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// For `cargo xtask test`: from the source of each example to the request that it answers.
pub(crate) fn examples() -> anyhow::Result<()> {
    try_out(&build(&LANGUAGES)?)
}

fn build(languages: &[Language]) -> anyhow::Result<Vec<PathBuf>> {
    let root = repository()?;
    let out = root.join("target/plugins");
    fs::create_dir_all(&out).context("create target/plugins")?;
    let cache = cache(&root)?;
    let one = |language: &Language| match language {
        Language::Rust => rust(&root, &cache, &out),
        Language::Javascript => javascript(&root, &cache, &out),
        Language::Python => python(&root, &cache, &out),
    };
    languages.iter().map(one).collect()
}

fn cache(root: &Path) -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("SHIPOTE_CACHE").map_or_else(|| root.join(".cache"), PathBuf::from).join("plugins");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    Ok(cache)
}

/// A folder of WIT as tool chains read it: the world, and below `deps` the packages that it names.
fn wit(root: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let _ = fs::remove_dir_all(to);
    for name in ["vane-plugin", "vane-host", "shipote-state", "shipote-link"] {
        let (from, folder) = (format!("wit/{name}"), to.join("deps").join(name));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        for file in fs::read_dir(root.join(from))?.flatten() {
            fs::copy(file.path(), folder.join(file.file_name()))?;
        }
    }
    fs::copy(root.join("wit/examples/plugin.wit"), to.join("plugin.wit")).context("copy the world")?;
    Ok(to.to_owned())
}

fn javascript(root: &Path, cache: &Path, out: &Path) -> anyhow::Result<PathBuf> {
    host::require("plugin javascript", &[("npm", "npm"), ("node", "nodejs")], None)?;
    let folder = cache.join("javascript");
    let program = folder.join("node_modules/componentize-qjs/bin/componentize-qjs");
    if !program.exists() {
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("package.json"), "{\"private\": true}\n")?;
        host::run(Command::new("npm").current_dir(&folder).args(["install", "--no-audit", "--no-fund", QUICKJS]))?;
    }
    let component = out.join("redirects.wasm");
    let wit = wit(root, &out.join("wit"))?;
    host::run(
        Command::new("node")
            .arg(program)
            .arg("--wit")
            .arg(wit)
            .arg("--js")
            .arg(root.join("wit/examples/redirects-javascript/redirects.js"))
            // Async lifting and WASI are what no plugin gets.
            .args(["--world", "plugin", "--sync", "--stub-wasi", "--opt-size", "--output"])
            .arg(&component),
    )?;
    Ok(component)
}

fn python(root: &Path, cache: &Path, out: &Path) -> anyhow::Result<PathBuf> {
    host::require("plugin python", &[("python3", "python3")], Some("python3-venv").filter(|_| !has_venv()))?;
    let folder = cache.join("python");
    let (python, program) = (folder.join("bin/python3"), folder.join("bin/componentize-py"));
    // An interpreter that is gone leaves a link to nowhere.
    if !program.exists() || !python.exists() {
        host::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        host::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", COMPONENTIZE_PY]))?;
    }
    let component = out.join("crawlers.wasm");
    let wit = wit(root, &out.join("wit"))?;
    host::run(
        // Its first line has the place where it was installed, and a cache may be moved, or be another's by a link.
        Command::new(python)
            .arg(program)
            .arg("--wit-path")
            .arg(wit)
            .args(["--world", "plugin", "componentize", "--stub-wasi", "--python-path"])
            .arg(root.join("wit/examples/crawlers-python"))
            .arg("--output")
            .arg(&component)
            .arg("crawlers"),
    )?;
    Ok(component)
}

fn has_venv() -> bool {
    let probe = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    probe.is_ok_and(|output| output.status.success())
}

fn rust(root: &Path, cache: &Path, out: &Path) -> anyhow::Result<PathBuf> {
    // Built in a copy: beside the source there shall be no WIT that is not the project's.
    let source = out.join("api-key-rust");
    fs::create_dir_all(source.join("src"))?;
    for file in ["Cargo.toml", "Cargo.lock", "src/lib.rs"] {
        let from = root.join("wit/examples/api-key-rust").join(file);
        fs::copy(&from, source.join(file)).with_context(|| format!("copy {}", from.display()))?;
    }
    let world = wit(root, &source.join("wit"))?;
    let target = out.join("target");
    let mut build = cargo()?;
    build.current_dir(&source).env("CARGO_TARGET_DIR", &target).env_remove("RUSTC_WRAPPER");
    build.args(["build", "--release", "--locked", "--target", TARGET]);
    // A stack of 1 MiB, the default, would be the largest part of a small plugin's memory.
    let stack = "-Clink-arg=-zstack-size=65536";
    if has_target()? {
        build.env("RUSTFLAGS", stack);
    } else {
        let toolchain = debian_rust(cache)?;
        build.env("RUSTC", &toolchain.rustc).env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_abort");
        build.env("RUSTFLAGS", format!("-Clinker={} {stack}", toolchain.linker.display()));
    }
    host::run(&mut build)?;
    let module = target.join(TARGET).join("release/api_key.wasm");
    let component = out.join("api-key.wasm");
    let bytes = fs::read(&module).with_context(|| format!("read {}", module.display()))?;
    let bytes = wit_component::ComponentEncoder::default()
        .validate(true)
        .module(&bytes)
        .and_then(|mut encoder| encoder.encode())
        .with_context(|| format!("make {} a component of the world in {}", module.display(), world.display()))?;
    fs::write(&component, bytes).with_context(|| format!("write {}", component.display()))?;
    Ok(component)
}

fn rustc(arguments: &[&str]) -> anyhow::Result<PathBuf> {
    let output = Command::new("rustc").args(arguments).output().context("run rustc")?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Whether the compiler at hand has the standard library for wasm (`rustup target add wasm32-unknown-unknown`).
fn has_target() -> anyhow::Result<bool> {
    Ok(rustc(&["--print", "target-libdir", "--target", TARGET])?.is_dir())
}

/// A compiler that can build the standard library itself.
struct DebianRust {
    rustc: PathBuf,
    linker: PathBuf,
}

fn debian_rust(cache: &Path) -> anyhow::Result<DebianRust> {
    let folder = cache.join("rust");
    let wrapper = folder.join("rustc");
    if !wrapper.exists() {
        eprintln!(
            "plugin: rustc has no {TARGET} (rustup target add {TARGET}); Debian's rustc-web builds it from source"
        );
        host::require("plugin rust", &[("apt-get", "apt"), ("dpkg", "dpkg")], None)?;
        let packages = folder.join("packages");
        fs::create_dir_all(&packages)?;
        host::run(
            Command::new("apt-get")
                .current_dir(&packages)
                .args(["-q", "-o", "APT::Sandbox::User=", "download"])
                .args(DEBIAN_RUST),
        )?;
        for package in fs::read_dir(&packages)?.flatten() {
            // Unpacked, not installed: they would replace the system's.
            host::run(Command::new("dpkg").arg("-x").arg(package.path()).arg(folder.join("root")))?;
        }
        fs::remove_dir_all(&packages)?;
        // By its own place: a cache may be moved, or be another's by a link.
        let script = "#!/bin/sh\nhere=$(dirname \"$(readlink -f \"$0\")\")/root/usr\nLD_LIBRARY_PATH=\"$here/lib/x86_64-linux-gnu\" exec \"$here/bin/rustc\" \"$@\"\n";
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let linker = rustc(&["--print", "sysroot"])?.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld");
    if !linker.exists() {
        bail!("{} is missing; rustup's tool chain has it", linker.display());
    }
    Ok(DebianRust { rustc: wrapper, linker })
}

/// Adds what was built to an appliance of the tests' build and sends requests through its proxy. (The compiler of plugins is
/// optimised there, too: 18 MB of Python would take longer than the registry allows.)
fn try_out(components: &[PathBuf]) -> anyhow::Result<()> {
    host::run(cargo()?.arg("build").args(AS_TESTED))?;
    let files = std::env::join_paths(components).context("name the components")?;
    let wanted = ["--test", "appliance", "--", "--ignored", "--exact", "plugins::examples"];
    host::run(cargo()?.env("SHIPOTE_EXAMPLES", files).args(["test", "--workspace", "--locked"]).args(wanted))
}
