//! The file: written by many at once, torn, rotated, read back.
#![allow(missing_docs)]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use shipote_audit::{Audit, Destination, Door, Entry, Event, Query, Record, read};

fn at(path: &Path) -> Audit {
    Audit::builder(path).destination(Destination::File(path.to_owned())).identifier("test").open()
}

fn entries(path: &Path, query: &Query) -> Vec<Entry> {
    let entries = read(&Destination::File(path.to_owned()), query).expect("opened");
    entries.collect::<Result<_, _>>().expect("read")
}

fn objects(path: &Path, query: &Query) -> Vec<String> {
    entries(path, query).into_iter().map(|entry| entry.object).collect()
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("state/audit.jsonl");
    (folder, path)
}

fn record(object: &str) -> Record {
    Record::new(Event::WorkspaceCreate, object, 1000, Door::Bus)
}

#[test]
fn what_is_written_is_read_back() {
    let (_folder, path) = temporary();
    let before = SystemTime::now() - Duration::from_micros(1);
    let awkward = "line\nfeed \u{1b} \"quoted\" é";
    at(&path).record(&record(awkward).field("ARGV", b"a\xffb").failed("no such user")).expect("taken");
    let entry = entries(&path, &Query::default()).pop().expect("one");
    assert!(entry.time() >= before && entry.time() <= SystemTime::now());
    assert_eq!((entry.action.as_str(), entry.object.as_str()), ("workspace.create", awkward));
    assert_eq!((entry.uid, entry.result.as_str(), entry.door.as_str()), (Some(1000), "no such user", "bus"));
    assert_eq!((entry.priority, entry.identifier.as_str()), (Some(4), "test"));
    assert_eq!(entry.message_id, Event::WorkspaceCreate.message_id().to_string());
    assert_eq!(entry.extra["ARGV"], "a\u{fffd}b");
    let mode = fs::metadata(&path).expect("file").permissions().mode();
    assert_eq!(mode & 0o137, 0, "at most 0640, whatever the umask: {mode:o}");
}

#[test]
fn writers_never_mix() {
    let (_folder, path) = temporary();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            // One `Audit` each, as separate services would have.
            let audit = at(&path);
            scope.spawn(move || {
                for number in 0..200 {
                    let filler = "x".repeat(number * 40);
                    audit.record(&record(&format!("{writer}-{number}")).field("FILLER", filler)).expect("taken");
                }
            });
        }
    });
    let mut read_back = read(&Destination::File(path.clone()), &Query::default()).expect("opened");
    let entries: Vec<Entry> = read_back.by_ref().collect::<Result<_, _>>().expect("read");
    assert_eq!((entries.len(), read_back.damaged()), (1600, 0));
    for writer in 0..8 {
        let prefix = format!("{writer}-");
        let own: Vec<_> = entries.iter().filter_map(|entry| entry.object.strip_prefix(&prefix)).collect();
        let expected: Vec<_> = (0..200).map(|number| number.to_string()).collect();
        assert_eq!(own, expected, "each writer's records are whole and in order");
    }
}

#[test]
fn a_torn_line_costs_only_itself() {
    let (_folder, path) = temporary();
    let audit = at(&path);
    audit.record(&record("one")).expect("taken");
    let whole = fs::read(&path).expect("read");
    let mut file = OpenOptions::new().append(true).open(&path).expect("open");
    file.write_all(&whole[..whole.len() / 2]).expect("tear");

    let mut torn = read(&Destination::File(path.clone()), &Query::default()).expect("opened");
    assert_eq!((torn.by_ref().count(), torn.damaged()), (1, 1));

    audit.record(&record("two")).expect("taken");
    let mut after = read(&Destination::File(path.clone()), &Query::default()).expect("opened");
    let found: Vec<_> = after.by_ref().map(|entry| entry.expect("read").object).collect();
    assert_eq!((found, after.damaged()), (vec!["one".to_owned(), "two".to_owned()], 1));
}

#[test]
fn queries_select() {
    let (_folder, path) = temporary();
    let audit = at(&path);
    for (event, object, uid) in [
        (Event::WorkspaceCreate, "web", 1),
        (Event::CommandRun, "web", 2),
        (Event::CommandSignal, "db", 1),
        (Event::WorkspaceStop, "web", 1),
    ] {
        audit.record(&Record::new(event, object, uid, Door::Bus)).expect("taken");
    }
    let all = entries(&path, &Query::default());
    let actions = |query: &Query| entries(&path, query).into_iter().map(|entry| entry.action).collect::<Vec<_>>();
    let action = |pattern: &str| Query { action: Some(pattern.to_owned()), ..Query::default() };
    assert_eq!(actions(&Query { user: Some(2), ..Query::default() }), ["command.run"]);
    assert_eq!(actions(&action("workspace")), ["workspace.create", "workspace.stop"]);
    assert_eq!(actions(&action("*.s*")), ["command.signal", "workspace.stop"]);
    assert_eq!(actions(&Query { object: Some("db".to_owned()), ..Query::default() }), ["command.signal"]);
    assert_eq!(actions(&Query { limit: Some(2), ..Query::default() }), ["command.signal", "workspace.stop"]);
    assert_eq!(actions(&Query { limit: Some(1), ..action("command") }), ["command.signal"]);
    let since = Query { since: Some(all[3].time()), ..Query::default() };
    assert_eq!(actions(&since).last().map(String::as_str), Some("workspace.stop"));
    let until = Query { until: Some(all[0].time() - Duration::from_micros(1)), ..Query::default() };
    assert!(actions(&until).is_empty());
}

#[test]
fn a_file_that_is_rotated_away_is_made_again() {
    let (_folder, path) = temporary();
    let audit = at(&path);
    audit.record(&record("one")).expect("taken");
    fs::rename(&path, path.with_extension("1")).expect("rotate");
    audit.record(&record("two")).expect("taken");
    assert_eq!(objects(&path, &Query::default()), ["two"]);
    assert_eq!(objects(&path.with_extension("1"), &Query::default()), ["one"]);
}

#[test]
fn following_sees_what_comes_later_also_in_a_new_file() {
    let (folder, path) = temporary();
    fs::create_dir(folder.path().join("state")).expect("folder");
    let audit = at(&path);
    let query = Query { follow: true, ..Query::default() };
    // Nothing there yet: the reader waits for the file itself.
    let mut following = read(&Destination::File(path.clone()), &query).expect("opened");
    let mut next = move || following.next().expect("never ends").expect("read").object;
    audit.record(&record("one")).expect("taken");
    assert_eq!(next(), "one");
    let (said, heard) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || (0..3).for_each(|_| said.send(next()).expect("heard")));
    audit.record(&record("two")).expect("taken");
    assert_eq!(heard.recv().expect("two"), "two");
    audit.record(&record("three")).expect("taken");
    fs::rename(&path, path.with_extension("1")).expect("rotate");
    audit.record(&record("four")).expect("taken");
    assert_eq!((heard.recv().expect("three"), heard.recv().expect("four")), ("three".to_owned(), "four".to_owned()));
    reader.join().expect("reader");
}

#[test]
fn following_with_a_limit_begins_with_the_newest() {
    let (_folder, path) = temporary();
    let audit = at(&path);
    for object in ["one", "two", "three"] {
        audit.record(&record(object)).expect("taken");
    }
    let query = Query { follow: true, limit: Some(1), ..Query::default() };
    let mut following = read(&Destination::File(path), &query).expect("opened");
    assert_eq!(following.next().expect("never ends").expect("read").object, "three");
    audit.record(&record("four")).expect("taken");
    assert_eq!(following.next().expect("never ends").expect("read").object, "four");
}

#[test]
fn what_cannot_be_written_is_said() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let required =
        |path: &Path| Audit::builder(path).destination(Destination::File(path.to_owned())).required(true).open();
    let target = folder.path().join("target");
    fs::write(&target, "").expect("file");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&target, &link).expect("link");
    for path in [folder.path(), link.as_path(), Path::new("/proc/none/audit.jsonl"), Path::new("/dev/full")] {
        let audit = required(path);
        let said = audit.ready().expect_err("not ready").to_string();
        assert!(said.contains(&path.display().to_string()) && said.contains("; "), "{said}");
        assert!(audit.record(&record("x")).is_err());
    }
    assert!(objects(&folder.path().join("absent"), &Query::default()).is_empty());
}
