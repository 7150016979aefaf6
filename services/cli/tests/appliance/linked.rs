//! How the programs are linked.

use std::path::Path;
use std::process::Command;

/// `shipote` starts without the dynamic linker where libc is there in static form; what it becomes does not.
#[test]
fn the_program_that_scripts_start_by_the_thousand_has_libc_in_it() {
    let asked = Command::new("cc").arg("-print-file-name=libc.a").output().unwrap();
    let has_static = Path::new(String::from_utf8(asked.stdout).unwrap().trim()).is_absolute();
    // the dynamic linker, where there is one, lists what it would load instead of starting the program (ld.so(8))
    let listed = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("libc.so") || text.contains("Usage: shipote run"), "{text}");
        text.contains("libc.so")
    };
    assert!(listed(env!("CARGO_BIN_EXE_shipote-commands"), &["--help"]));
    let dynamic = listed(env!("CARGO_BIN_EXE_shipote"), &["run", "--help"]);
    assert_eq!(dynamic, !(cfg!(target_env = "gnu") && has_static));
    // either way its address is another one each time: `ET_DYN` (elf(5))
    let program = std::fs::read(env!("CARGO_BIN_EXE_shipote")).unwrap();
    assert_eq!(program[16..18], [3, 0]);
}
