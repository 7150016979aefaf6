use std::fs::File;
use std::io::{Read, Write};

use super::*;

const ALL: Selection = Selection { stdout: true, stderr: true, tail: 0, follow: false, since: [0, 0], framed: false };

async fn bytes(store: &LogStore, id: Ulid, selection: Selection) -> Vec<u8> {
    let fd = store.read(id, selection).unwrap().unwrap();
    tokio::task::spawn_blocking(move || {
        let mut out = Vec::new();
        File::from(fd).read_to_end(&mut out).unwrap();
        out
    })
    .await
    .unwrap()
}

async fn text(store: &LogStore, id: Ulid, selection: Selection) -> String {
    String::from_utf8(bytes(store, id, selection).await).unwrap()
}

async fn ended(store: &LogStore, id: Ulid) {
    while lock(&store.table).living.contains_key(&id) {
        tokio::task::yield_now().await;
    }
}

fn begin(store: &LogStore, id: Ulid, more: bool) -> (File, File) {
    let mut ends = store.capture(id, &Stream::BOTH, more).unwrap().into_iter().map(|c| File::from(c.write));
    (ends.next().unwrap(), ends.next().unwrap())
}

async fn say(store: &LogStore, id: Ulid, mut file: &File, words: &str) {
    let before = store.bytes(id).unwrap();
    file.write_all(words.as_bytes()).unwrap();
    while store.bytes(id).unwrap() == before {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn streams_are_kept_apart_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = LogStore::open(folder.path()).unwrap();
    let id = Ulid::generate();
    let (out, err) = begin(&store, id, false);
    for (file, words) in [(&out, "one "), (&err, "two "), (&out, "three")] {
        say(&store, id, file, words).await;
    }
    drop((out, err));
    ended(&store, id).await;
    assert_eq!(text(&store, id, ALL).await, "one two three");
    assert_eq!(text(&store, id, Selection { stdout: false, ..ALL }).await, "two ");
    assert_eq!(text(&store, id, Selection { stderr: false, tail: 7, ..ALL }).await, "e three");
    assert_eq!(text(&store, id, Selection { tail: 7, ..ALL }).await, "o three");
    assert_eq!(text(&store, id, Selection { since: [2, 3], ..ALL }).await, "e  three");
    // a later instance of the service still finds it
    let later = LogStore::open(folder.path()).unwrap();
    assert_eq!(text(&later, id, ALL).await, "one two three");
    assert_eq!(later.bytes(id), Some(13));
    later.forget(id);
    assert!(later.read(id, ALL).unwrap().is_none());
    assert_eq!(std::fs::read_dir(folder.path().join("commands")).unwrap().count(), 0);
}

#[tokio::test]
async fn frames_say_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let store = LogStore::open(folder.path()).unwrap();
    let id = Ulid::generate();
    let (out, err) = begin(&store, id, false);
    for (file, words) in [(&out, "a"), (&err, "bc"), (&out, "d")] {
        say(&store, id, file, words).await;
    }
    let framed = bytes(&store, id, Selection { framed: true, ..ALL }).await;
    let frame = |stream: u8, offset: u8, data: &str| {
        [&[stream, 0, 0, 0, 0, 0, 0, 0, offset, 0, 0, 0, data.len() as u8], data.as_bytes()].concat()
    };
    assert_eq!(framed, [frame(1, 0, "a"), frame(2, 0, "bc"), frame(1, 1, "d"), frame(0, 0, "")].concat());
}

#[tokio::test]
async fn following_ends_with_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let store = LogStore::open(folder.path()).unwrap();
    let id = Ulid::generate();
    let (mut out, err) = begin(&store, id, true);
    out.write_all(b"a").unwrap();
    let followed = text(&store, id, Selection { follow: true, ..ALL });
    let rest = async {
        tokio::task::yield_now().await;
        out.write_all(b"b").unwrap();
        drop((out, err));
        // it is started again
        let (mut out, err) = begin(&store, id, true);
        out.write_all(b"c").unwrap();
        drop((out, err));
        let mut open = store.drained(id);
        while let Some(changes) = &mut open {
            changes.changed().await.unwrap();
            open = store.drained(id);
        }
        store.finish(id);
    };
    assert_eq!(tokio::join!(followed, rest).0, "abc");
}

#[tokio::test]
async fn another_instance_goes_on_where_the_first_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let id = Ulid::generate();
    let first = LogStore::open(folder.path()).unwrap();
    let captured = first.capture(id, &[Stream::Stdout], false).unwrap().remove(0);
    let mut out = File::from(captured.write);
    let mut expected = Vec::new();
    let mut store = first;
    for round in 0..20_u8 {
        let piece = vec![round; 3000];
        out.write_all(&piece).unwrap();
        expected.extend(piece);
        // its thread ends in the middle of its work
        drop(store);
        store = LogStore::open(folder.path()).unwrap();
        store.resume(id, vec![(Stream::Stdout, Arc::clone(&captured.read))], false).unwrap();
    }
    drop(out);
    ended(&store, id).await;
    assert!(bytes(&store, id, ALL).await == expected);
}

#[tokio::test]
async fn what_was_written_is_shown_though_it_is_not_taken_yet() {
    let folder = tempfile::tempdir().unwrap();
    let store = LogStore::open(folder.path()).unwrap();
    for round in 0..50 {
        let id = Ulid::generate();
        let (mut out, _err) = begin(&store, id, false);
        out.write_all(b"here").unwrap();
        assert_eq!(text(&store, id, ALL).await, "here", "{round}");
    }
}
