//! Whatever the bytes: an answer, with a confidence from 0 to 1.

use proptest::prelude::*;
use shipote_discern::discern;

/// Documents worth damaging, one of each recogniser, and magics that make parsers look further.
const SEEDS: &[&[u8]] = &[
    br#"{"schema_version":1,"id":"x","payload":{"a":[1,2.5e3,"\u00e9"]}}"#,
    b"{\"a\":1}\n{\"b\":[true,null]}\n",
    b"[package]\nname = \"x\"\n[[bin]]\ndate = 2026-01-02T03:04:05Z\nt.u.v = { a = [1, 2] }\n",
    b"name,age\n\"b, c\",3\n",
    b"name\tage\nbob\t3\n",
    b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0\0\0\0\0\x10\0\0\0\x10\0\0\0\x13\0\x08\x02[Content_Types].xml",
    b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0\0\0\0\0\0\0",
    b"\x50\x2a\x4d\x18\x04\0\0\0abcd\x28\xb5\x2f\xfd",
    b"\x1a\x45\xdf\xa3\x01\0\0\0\0\0\0\x1f\x42\x86\x81\x01",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"!<arch>\ndebian-binary   ",
    b"<html><body>",
];

proptest! {
    #[test]
    fn random_bytes_are_answered(sample in proptest::collection::vec(any::<u8>(), 0..2048), complete: bool) {
        let found = discern(&sample, None, complete);
        prop_assert!((0.0..=1.0).contains(&found.confidence));
    }

    #[test]
    fn damaged_documents_are_answered(
        seed in 0..SEEDS.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
        complete: bool,
    ) {
        let mut sample = SEEDS[seed].to_vec();
        for (at, byte) in damage {
            let at = at.index(sample.len());
            sample[at] = byte;
        }
        sample.truncate(cut.index(sample.len() + 1));
        sample.extend(tail);
        let found = discern(&sample, None, complete);
        prop_assert!((0.0..=1.0).contains(&found.confidence));
    }

    #[test]
    fn text_stays_text_wherever_it_is_cut(text in "[a-zä€😀 \n]{1,200}", cut in any::<prop::sample::Index>()) {
        // The first character stays whole: nothing can be said of less.
        let first = text.chars().next().map_or(0, char::len_utf8);
        let at = first + cut.index(text.len() - first + 1);
        let found = discern(&text.as_bytes()[..at], None, false);
        prop_assert_eq!(found.ty.name(), "text");
    }
}
