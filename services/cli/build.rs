//! Links the program `shipote`, which scripts start by the thousand, with libc in it, where the machine has what that takes.
//!
//! The dynamic linker takes a third of the time in which the program starts: it maps libc, libm and libgcc, looks up their
//! symbols and writes to their tables. `shipote-commands` stays with the shared libraries, as the services do.
//!
//! The compiler's own way (`-C target-feature=+crt-static`) is for all programs of a build or none. A program's own arguments
//! come after the names of the shared libraries; so the folder in which those are looked for first has them in static form.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// What the program is linked with, and the static library that has it.
const LIBRARIES: &[(&str, &str)] = &[
    ("libc.a", "libc.a"),
    ("libdl.a", "libdl.a"),
    ("libgcc.a", "libgcc.a"),
    ("libgcc_eh.a", "libgcc_eh.a"),
    ("libgcc_s.a", "libgcc_eh.a"),
    ("libm.a", "libm.a"),
    ("libpthread.a", "libpthread.a"),
    ("librt.a", "librt.a"),
    ("libutil.a", "libutil.a"),
];
/// What starts it.
const START: &str = "rcrt1.o";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let of = |name: &str| env::var(name).unwrap_or_default();
    // Somebody else's linker is not to be guessed at, and of other libcs this is known to nobody.
    if of("TARGET") != of("HOST") || of("CARGO_CFG_TARGET_ENV") != "gnu" || of("CARGO_CFG_TARGET_OS") != "linux" {
        return Ok(());
    }
    let folder = Path::new(&of("OUT_DIR")).join("static");
    match gather(&folder) {
        Ok(()) => {}
        Err(lacks) => {
            println!("cargo::warning=`shipote` is linked with shared libraries, which takes longer to start: {lacks}");
            return Ok(());
        }
    }
    let folder = format!("-L{}", folder.display());
    // libc and the unwinder need each other
    let last = ["-Wl,--start-group", "-lgcc_eh", "-lgcc", "-lc", "-Wl,--end-group"];
    for argument in ["-static-pie", &folder].into_iter().chain(last) {
        println!("cargo::rustc-link-arg-bin=shipote={argument}");
    }
    Ok(())
}

/// Makes the folder of static libraries; or says which is not there.
fn gather(folder: &Path) -> Result<(), String> {
    let told = |error: io::Error| error.to_string();
    find(START)?;
    // one of an earlier build may lead elsewhere
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(told)?;
    }
    fs::create_dir_all(folder).map_err(told)?;
    for (name, of) in LIBRARIES {
        let found = find(of)?;
        // the next version of the compiler has its own elsewhere, and this one's go
        println!("cargo::rerun-if-changed={}", found.display());
        std::os::unix::fs::symlink(found, folder.join(name)).map_err(told)?;
    }
    Ok(())
}

/// Where the C compiler, which links, has a file.
fn find(file: &str) -> Result<PathBuf, String> {
    let asked = Command::new("cc").arg(format!("-print-file-name={file}")).output();
    let path = asked.map_err(|error| format!("ask cc for {file}: {error}"))?.stdout;
    let path = PathBuf::from(String::from_utf8_lossy(&path).trim());
    // only the name comes back of what it has not
    if path.is_absolute() { Ok(path) } else { Err(format!("cc has no {file}")) }
}
