//! Records with as many fields each, separated by commas (RFC 4180), tabs or semicolons.

use csv::{ByteRecord, ReaderBuilder};

use crate::Discernment;

pub(crate) fn recognise(text: &str, complete: bool) -> Option<Discernment> {
    // A cut-off JSON array of like objects has as many commas on each line, too.
    if text.trim_start().starts_with(['{', '[']) {
        return None;
    }
    // The record a sample breaks off in may lack fields.
    let text = if complete { text } else { &text[..text.rfind('\n').map_or(0, |at| at + 1)] };
    [(b',', "text/csv"), (b'\t', "text/tab-separated-values"), (b';', "text/csv")]
        .into_iter()
        .filter(|(separator, _)| !reads_as_prose(text, *separator))
        .filter_map(|(separator, mime)| Some((fields(text, separator)?, mime)))
        .max_by_key(|(fields, _)| *fields)
        .map(|(_, mime)| Discernment::new("table", 0.8, mime, Some("table")))
}

/// How many fields every record has, if that is the same number, at least 2, in at least 2 records.
fn fields(text: &str, separator: u8) -> Option<usize> {
    let mut reader = ReaderBuilder::new()
        .delimiter(separator)
        .quoting(separator != b'\t')
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut record = ByteRecord::new();
    let mut width = None;
    let mut records = 0_usize;
    while reader.read_byte_record(&mut record).ok()? {
        if *width.get_or_insert(record.len()) != record.len() {
            return None;
        }
        records += 1;
    }
    width.filter(|width| *width >= 2 && records >= 2)
}

/// Two or three sentences may well have as many commas each; in prose a space follows them.
fn reads_as_prose(text: &str, separator: u8) -> bool {
    let bytes = text.as_bytes();
    let marks = bytes.windows(2).filter(|pair| pair[0] == separator).count();
    let spaced = bytes.windows(2).filter(|pair| *pair == [separator, b' ']).count();
    spaced * 2 > marks && text.lines().filter(|line| !line.trim().is_empty()).take(4).count() < 4
}
