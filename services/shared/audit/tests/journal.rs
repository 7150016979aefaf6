//! What arrives at the journal's socket, byte for byte.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read as _, Seek as _};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use shipote_audit::{Audit, AuditError, Destination, Door, Event, Record};

/// A socket that takes the place of journald's.
struct FakeJournal {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl FakeJournal {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let socket = UnixDatagram::bind(folder.path().join("socket")).expect("bind");
        socket.set_nonblocking(true).expect("non-blocking");
        Self { folder, socket }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn audit(&self) -> Audit {
        Audit::builder(Path::new("/nonexistent/never")).journal_socket(self.path()).identifier("shipote-test").open()
    }

    /// The next record: its bytes, and whether they came in a sealed file.
    fn next(&self) -> (Vec<u8>, bool) {
        let mut bytes = vec![0; 1 << 20];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty())
            .expect("record");
        bytes.truncate(received.bytes);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut files) = message {
                assert!(bytes.is_empty(), "a record comes in the datagram or in the file, not in both");
                let mut file = File::from(files.next().expect("a file"));
                let needed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
                assert!(fcntl_get_seals(&file).expect("seals").contains(needed));
                file.rewind().expect("rewind");
                file.read_to_end(&mut bytes).expect("read");
                return (bytes, true);
            }
        }
        (bytes, false)
    }
}

/// A decoder of its own, written from the protocol's description.
fn decode(mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut fields = BTreeMap::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').expect("a line feed");
        let (name, value);
        if let Some(equals) = bytes[..end].iter().position(|byte| *byte == b'=') {
            (name, value) = (&bytes[..equals], &bytes[equals + 1..end]);
            bytes = &bytes[end + 1..];
        } else {
            name = &bytes[..end];
            let length = u64::from_le_bytes(bytes[end + 1..end + 9].try_into().expect("length")) as usize;
            value = &bytes[end + 9..end + 9 + length];
            assert_eq!(bytes[end + 9 + length], b'\n');
            bytes = &bytes[end + 10 + length..];
        }
        let name = String::from_utf8(name.to_vec()).expect("a name");
        assert!(fields.insert(name, value.to_vec()).is_none());
    }
    fields
}

#[test]
fn golden_bytes() {
    let journal = FakeJournal::new();
    let audit = journal.audit();
    assert_eq!(*audit.destination(), Destination::Journal);
    let record = Record::new(Event::FlowDrop, "f1", 1000, Door::Bus).field("REASON", "a\nb").field("RAW", [0xff, b'=']);
    audit.record(&record).expect("taken");
    let mut expected = format!(
        "MESSAGE=flow.drop f1: ok (uid 1000, bus)\nMESSAGE_ID={}\nPRIORITY=5\nSYSLOG_IDENTIFIER=shipote-test\n\
         SHIPOTE_ACTION=flow.drop\nSHIPOTE_OBJECT=f1\nSHIPOTE_UID=1000\nSHIPOTE_RESULT=ok\nSHIPOTE_DOOR=bus\n\
         SHIPOTE_REASON\n\u{3}\0\0\0\0\0\0\0a\nb\nSHIPOTE_RAW=",
        Event::FlowDrop.message_id()
    )
    .into_bytes();
    expected.extend_from_slice(b"\xff=\n");
    assert_eq!(journal.next(), (expected, false));
}

#[test]
fn a_refusal_is_a_warning_and_cannot_look_like_success() {
    let journal = FakeJournal::new();
    let audit = journal.audit();
    let base = Record::new(Event::CommandRun, "web\n\u{1b}[31m", 7, Door::Socket);
    let refused: Result<(), &str> = Err("not allowed");
    audit.record(&base.clone().outcome(&refused)).expect("taken");
    audit.record(&base.clone().failed("ok")).expect("taken");
    audit.record(&base.outcome(&Ok::<(), &str>(()))).expect("taken");
    let fields = decode(&journal.next().0);
    assert_eq!((fields["PRIORITY"].as_slice(), fields["SHIPOTE_RESULT"].as_slice()), (&b"4"[..], &b"not allowed"[..]));
    assert_eq!(fields["SHIPOTE_OBJECT"], b"web\n\x1b[31m", "the field holds the object as it is");
    let message = String::from_utf8(fields["MESSAGE"].clone()).expect("text");
    assert_eq!(message, "command.run web\u{fffd}\u{fffd}[31m: not allowed (uid 7, socket)");
    assert_eq!(decode(&journal.next().0)["SHIPOTE_RESULT"], b"failed (ok)");
    assert_eq!(decode(&journal.next().0)["SHIPOTE_RESULT"], b"ok");
}

#[test]
fn a_large_record_comes_in_a_sealed_file() {
    let journal = FakeJournal::new();
    let value = vec![b'x'; 3_000_000];
    journal.audit().record(&Record::new(Event::CommandRun, "c", 0, Door::Bus).field("ARGV", &value)).expect("taken");
    let (bytes, sealed) = journal.next();
    assert!(sealed);
    assert_eq!(decode(&bytes)["SHIPOTE_ARGV"], value);
}

#[test]
fn what_the_journal_would_drop_is_refused() {
    let journal = FakeJournal::new();
    let audit = journal.audit();
    let record = || Record::new(Event::CommandRun, "c", 0, Door::Bus);
    for name in ["", "lower", "A=B", "A\nB", "RESULT", "Ä", &"A".repeat(51)] {
        assert!(matches!(audit.record(&record().field(name, "x")), Err(AuditError::Field(_))), "{name}");
    }
    assert!(matches!(audit.record(&record().field("A", "1").field("A", "2")), Err(AuditError::Field(_))));
    let huge = vec![0; 5 << 20];
    assert!(matches!(audit.record(&record().field("A", huge)), Err(AuditError::TooLarge { .. })));
}

#[test]
fn a_journal_that_is_gone_is_an_error_and_found_again() {
    let journal = FakeJournal::new();
    let path = journal.path();
    let required = Audit::builder(Path::new("/nonexistent/x")).journal_socket(&path).required(true).open();
    let relaxed = journal.audit();
    let record = Record::new(Event::WorkspaceStop, "web", 0, Door::Bus);
    required.ready().expect("ready");
    std::fs::remove_file(&path).expect("remove");
    for audit in [&required, &relaxed] {
        let said = audit.record(&record).expect_err("gone").to_string();
        assert!(said.starts_with(&format!("send record to the journal at {}: ", path.display())), "{said}");
    }
    assert!(matches!(required.ready(), Err(AuditError::Journal { .. })));
    relaxed.ready().expect("not required: the change may be made");
    assert!(relaxed.probe().is_err());

    let again = UnixDatagram::bind(&path).expect("bind");
    required.ready().expect("ready again");
    required.record(&record).expect("taken");
    assert!(again.recv(&mut [0; 4096]).expect("arrived") > 0);
}

#[test]
fn a_journal_that_does_not_read_is_not_ready() {
    let journal = FakeJournal::new();
    let audit = Audit::builder(Path::new("/nonexistent/x")).journal_socket(journal.path()).required(true).open();
    let record = Record::new(Event::WorkspaceStop, "web", 0, Door::Bus);
    let refused = (0..100_000).find_map(|_| audit.ready().and_then(|()| audit.record(&record)).err());
    let said = refused.expect("the queue has a bound").to_string();
    assert!(said.contains("its queue is full"), "{said}");
    journal.next();
    audit.ready().expect("room again");
}

#[test]
fn without_a_journal_the_file_is_chosen() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("audit.jsonl");
    let audit = Audit::builder(&file).journal_socket(folder.path().join("none")).open();
    assert_eq!(*audit.destination(), Destination::File(file));
}
