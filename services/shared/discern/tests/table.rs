//! One row per kind of data: sample, whether it is complete, and what it is taken for.

use std::path::Path;

use shipote_discern::discern;

const DEBIAN: &str = "Package: adduser\nStatus: install ok installed\nPriority: important\nSection: admin\n\
Depends: passwd (>= 1:4.17.2-5), libc6\nDescription: add and remove users and groups\n This package includes the \
'adduser' and 'deluser' commands\n .\n  - 'adduser' creates new users = yes\n\nPackage: apt\nStatus: install ok\n";

#[test]
fn kinds_are_told_apart() {
    let tar = {
        let mut block = vec![0_u8; 512];
        block[..5].copy_from_slice(b"a.txt");
        block[257..262].copy_from_slice(b"ustar");
        block
    };
    type Row<'a> = (&'a [u8], bool, &'a str, f32, Option<&'a str>);
    let rows: &[Row<'_>] = &[
        (b"", true, "bytes", 0.0, None),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", false, "png", 0.99, Some("gallery")),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", false, "jpeg", 0.99, Some("gallery")),
        (b"GIF89a\x01\0\x01\0", false, "gif", 0.99, Some("gallery")),
        (b"GIF is a picture format", true, "text", 0.5, Some("markdown")),
        (b"%PDF-1.7\n%\xe2\xe3", false, "pdf", 0.99, Some("reader")),
        (b"%PDF-1.7\n", false, "pdf", 0.99, Some("reader")),
        (b"\x7fELF\x02\x01\x01", false, "elf", 0.99, None),
        (b"\0asm\x01\0\0\0", true, "wasm", 0.99, None),
        (b"\0asm\x0d\0\x01\0", true, "wasm", 0.99, None),
        (b"\x1f\x8b\x08\0\0\0\0\0", false, "gzip", 0.99, None),
        (b"PK\x03\x04\x14\0\0\0", false, "zip", 0.99, None),
        (b"\x28\xb5\x2f\xfd\x04", false, "zstd", 0.99, None),
        (&tar, true, "tar", 0.99, None),
        (b"MZ\x90\0\x03", false, "exe", 0.7, None),
        (b"MZ is how it starts", true, "text", 0.5, Some("markdown")),
        (b"BC and BM are letters", true, "text", 0.5, Some("markdown")),
        (b"<!DOCTYPE html>\n<p>", false, "html", 0.99, Some("code")),
        (b"<?xml version=\"1.0\"?><a/>", true, "xml", 0.99, Some("code")),
        (b"#!/bin/sh\necho\n", true, "script", 0.99, Some("code")),
        (br#"{"schema_version":1,"id":"x","payload":{}}"#, true, "card", 0.97, Some("card")),
        (br#"{"schema_version":1,"id":"x"}"#, true, "json", 0.95, Some("tree")),
        (br#"[{"schema_version":1,"id":"x","payload":{}}]"#, true, "json", 0.95, Some("tree")),
        (br#"{}"#, true, "json", 0.95, Some("tree")),
        (b"\xef\xbb\xbf{\"bom\": true}\n", true, "json", 0.95, Some("tree")),
        (br#"  [1, 2, {"a": null}]  "#, true, "json", 0.95, Some("tree")),
        (br#"{"a": [1, 2, "b"#, false, "json", 0.6, Some("tree")),
        (br#"{"a": [1, 2, "b"#, true, "text", 0.5, Some("markdown")),
        (b"[{\"a\":1,\"b\":2},\n{\"a\":3,\"b\":4},\n", false, "json", 0.6, Some("tree")),
        (b"{\"a\":1}\n{\"a\":2}\n", true, "json", 0.95, Some("tree")),
        (b"{\"a\":1}\n{\"a\":2}\n{\"a", false, "json", 0.95, Some("tree")),
        (b"{\"a\":1}\nnot any more\n", true, "text", 0.5, Some("markdown")),
        (b"42", true, "text", 0.5, Some("markdown")),
        (b"1\n2\n3\n", true, "text", 0.5, Some("markdown")),
        (b"[package]\nname = \"x\"\n", true, "toml", 0.93, Some("tree")),
        (b"[package]\nname = \"x\"\nversion = \"0.", false, "toml", 0.93, Some("tree")),
        (b"[a]\nb = 1\nc = [\n  2,\n", false, "toml", 0.55, Some("tree")),
        (b"[a]\nb = 1\nc = [\n  2,\n", true, "text", 0.5, Some("markdown")),
        (b"# a heading, nothing else\n", true, "text", 0.5, Some("markdown")),
        (b"[hello]\n", true, "text", 0.5, Some("markdown")),
        (b"[2026-01-02 10:00] level=info started = 1\n", true, "text", 0.5, Some("markdown")),
        (b"name,age\nbob,3\n", true, "table", 0.8, Some("table")),
        (b"name;age\nbob;3\n", true, "table", 0.8, Some("table")),
        (b"name\tage\nbob\t3\nal", false, "table", 0.8, Some("table")),
        (b"a,b\n\"x, y\nz\",2\n", true, "table", 0.8, Some("table")),
        (b"a,b,c\n1,2\n", true, "text", 0.5, Some("markdown")),
        (b"a,b,c\n", true, "text", 0.5, Some("markdown")),
        (b"Well, yes.\nNo, indeed.\n", true, "text", 0.5, Some("markdown")),
        (DEBIAN.as_bytes(), true, "text", 0.5, Some("markdown")),
        (DEBIAN.as_bytes(), false, "text", 0.5, Some("markdown")),
        ("gr\u{fc}n".as_bytes(), true, "text", 0.5, Some("markdown")),
        (b"gr\xc3", false, "text", 0.5, Some("markdown")),
        (b"gr\xc3n", false, "bytes", 0.0, None),
        (b"\x1b[31mred\x1b[0m\n", true, "text", 0.5, Some("markdown")),
        (b"a\0b", true, "bytes", 0.0, None),
        (b"\x01\x02\x03\x04", true, "bytes", 0.0, None),
    ];
    for (sample, complete, name, confidence, lens) in rows {
        let found = discern(sample, None, *complete);
        let shown = String::from_utf8_lossy(sample);
        assert_eq!(
            (found.ty.name(), found.confidence, found.lens),
            (*name, *confidence, *lens),
            "{shown:?} complete={complete}"
        );
        assert!(found.mime.is_some(), "{shown:?}");
    }
}

#[test]
fn the_name_says_what_sort_of_text_it_is() {
    for (path, mime, lens) in [
        ("README.md", "text/markdown", "markdown"),
        ("/a/main.RS", "text/plain", "code"),
        ("notes.txt", "text/plain", "markdown"),
        ("Makefile", "text/plain", "markdown"),
    ] {
        let found = discern(b"some words", Some(Path::new(path)), true);
        assert_eq!((found.mime, found.lens), (Some(mime), Some(lens)), "{path}");
    }
    let json = discern(b"{}", Some(Path::new("x.md")), true);
    assert_eq!(json.ty.name(), "json", "the content outweighs the name");
}

#[test]
fn what_nothing_fits_is_bytes() {
    let found = discern(b"\xfe\xfe\xfe", None, true);
    assert_eq!(found.ty.to_string(), "Primitive { name: \"bytes\" }");
    assert_eq!(found.mime, Some("application/octet-stream"));
}

#[test]
fn a_sample_past_the_limit_is_cut_not_refused() {
    let mut long = b"[".to_vec();
    long.resize(shipote_discern::MAX_SAMPLE + 1, b' ');
    *long.last_mut().unwrap() = b']';
    let found = discern(&long, None, true);
    assert_eq!((found.ty.name(), found.confidence), ("json", 0.6));
}

#[test]
fn nesting_does_not_exhaust_the_stack() {
    for unit in ["[", "{\"a\":", "a.", "a=[", "[[", "\"", "a={b=", "[a.", "\n[a]\nb=1"] {
        let deep = unit.repeat(200_000);
        let _ = discern(deep.as_bytes(), None, false);
        let _ = discern(format!("x = 1\n{deep}").as_bytes(), None, true);
    }
}
