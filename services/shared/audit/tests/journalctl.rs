//! Reading from the journal, with a program in the place of `journalctl`.
#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shipote_audit::{AuditError, Query, read_journal};

/// While one test's fork holds a copy of the descriptor by which another writes its script, the kernel refuses to run
/// that script (ETXTBSY): one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn program(script: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("journalctl");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    (folder, path)
}

#[test]
fn its_json_is_understood() {
    let _alone = alone();
    let (_folder, path) = program(
        r#"cat <<'END'
{"__REALTIME_TIMESTAMP":"1700000000000001","SHIPOTE_ACTION":"command.run","SHIPOTE_OBJECT":"web","SHIPOTE_UID":"1000","SHIPOTE_RESULT":"ok","SHIPOTE_DOOR":"bus","SHIPOTE_ARGV":[97,255],"SHIPOTE_TWICE":["a","b"],"_UID":"990","_PID":"12","_SYSTEMD_UNIT":"shipote-workspaces.service","MESSAGE":"m","PRIORITY":"5","__CURSOR":"s=1"}
{"MESSAGE":"no record of ours"}
END"#,
    );
    let mut entries = read_journal(&path, &Query::default()).expect("run");
    let entry = entries.next().expect("one").expect("read");
    assert_eq!((entry.time_us, entry.uid, entry.writer.uid), (1_700_000_000_000_001, Some(1000), Some(990)));
    assert_eq!(entry.writer.unit.as_deref(), Some("shipote-workspaces.service"));
    assert_eq!((entry.extra["ARGV"].as_str(), entry.extra["TWICE"].as_str()), ("a\u{fffd}", "a"));
    assert_eq!(entry.extra.len(), 2);
    assert!(entries.next().is_none());
    assert_eq!(entries.damaged(), 1);
}

#[test]
fn its_complaint_is_passed_on() {
    let _alone = alone();
    let (_folder, path) = program("echo 'No journal files were opened.' >&2; exit 1");
    let said = read_journal(&path, &Query::default()).expect("run").next().expect("an error").expect_err("failed");
    assert!(said.to_string().contains(": No journal files were opened.; check"), "{said}");
    let (_folder, path) = program("exit 1");
    assert!(read_journal(&path, &Query::default()).expect("run").next().is_none(), "nothing found is no error");
    let absent = read_journal(Path::new("/nonexistent/journalctl"), &Query::default());
    assert!(matches!(absent, Err(AuditError::Journalctl { .. })));
}

#[test]
fn it_ends_with_its_reader() {
    let _alone = alone();
    let (folder, path) = program(r#"echo $$ > "$(dirname "$0")/pid"; echo '{}'; exec sleep 1000"#);
    let entries = read_journal(&path, &Query { follow: true, ..Query::default() }).expect("run");
    let pid = loop {
        // Written before its first line of output; the file may be seen before its content.
        match fs::read_to_string(folder.path().join("pid")) {
            Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
            _ => std::thread::yield_now(),
        }
    };
    assert!(Path::new("/proc").join(&pid).exists());
    drop(entries);
    assert!(!Path::new("/proc").join(&pid).exists());
}
