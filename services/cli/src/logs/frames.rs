//! A log as the service sends it, in frames that say which stream they are of and where in it; and how it is shown.

use std::io::{self, Read, Write};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

/// Bytes before each frame: stream, offset, length.
const HEADER: usize = 13;
/// Longest frame that the service sends.
const FRAME_MAX: usize = 1024 * 1024;

/// How a log came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// All of it came, or the reader of our output has seen what it wanted.
    Whole,
    /// The service went away.
    Torn,
}

/// What was shown so far.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Show JSON, with this id.
    json: Option<String>,
    /// Where each stream goes on.
    seen: [u64; 2],
    /// The beginning of a character of each stream whose rest has not come yet, and its offset.
    begun: [(u64, Vec<u8>); 2],
}

impl Frames {
    pub(super) fn new(json: Option<String>) -> Self {
        Frames { json, ..Frames::default() }
    }

    /// Offsets up to which the streams were read.
    pub(super) fn seen(&self) -> [u64; 2] {
        self.seen
    }

    /// Shows what comes from `log`, to its end.
    pub(super) fn show(&mut self, log: impl Read) -> anyhow::Result<Ended> {
        self.show_on(log, &mut io::stdout().lock())
    }

    fn show_on(&mut self, mut log: impl Read, out: &mut impl Write) -> anyhow::Result<Ended> {
        let mut header = [0; HEADER];
        let mut data = Vec::new();
        loop {
            if !filled(&mut log, &mut header)? {
                return Ok(Ended::Torn);
            }
            let offset = header[1..9].try_into().map_or(0, u64::from_be_bytes);
            let length = header[9..].try_into().map_or(0, u32::from_be_bytes) as usize;
            anyhow::ensure!(length <= FRAME_MAX, "read the log: the service sent a frame of {length} bytes");
            let stream = match header[0] {
                0 => {
                    return match self.flush(out) {
                        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
                        _ => Ok(Ended::Whole),
                    };
                }
                1 => 0,
                _ => 1,
            };
            data.resize(length, 0);
            // half a frame is asked for again
            if !filled(&mut log, &mut data)? {
                return Ok(Ended::Torn);
            }
            self.seen[stream] = offset + length as u64;
            let shown = match self.json.clone() {
                Some(id) => self.show_json(&id, stream, offset, &data, out),
                None => out.write_all(&data),
            };
            match shown.and_then(|()| out.flush()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Ended::Whole),
                other => other?,
            }
        }
    }

    fn show_json(&mut self, id: &str, stream: usize, offset: u64, data: &[u8], out: &mut impl Write) -> io::Result<()> {
        let (began, mut bytes) = std::mem::take(&mut self.begun[stream]);
        // what is between them is no longer kept
        if !bytes.is_empty() && began + bytes.len() as u64 != offset {
            line(id, stream, began, &bytes, out)?;
            bytes.clear();
        }
        let from = offset - bytes.len() as u64;
        bytes.extend_from_slice(data);
        // a character is never cut
        let whole = match std::str::from_utf8(&bytes) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => bytes.len(),
        };
        let rest = bytes.split_off(whole);
        if !rest.is_empty() {
            self.begun[stream] = (from + whole as u64, rest);
        }
        if bytes.is_empty() { Ok(()) } else { line(id, stream, from, &bytes, out) }
    }

    /// Shows what was begun and never completed.
    fn flush(&mut self, out: &mut impl Write) -> io::Result<()> {
        let Some(id) = self.json.clone() else { return Ok(()) };
        for stream in 0..2 {
            let (offset, bytes) = std::mem::take(&mut self.begun[stream]);
            if !bytes.is_empty() {
                line(&id, stream, offset, &bytes, out)?;
            }
        }
        out.flush()
    }
}

fn line(id: &str, stream: usize, offset: u64, bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
    let stream = ["stdout", "stderr"][stream];
    let object = match std::str::from_utf8(bytes) {
        Ok(text) => json!({"id": id, "stream": stream, "offset": offset, "data": text}),
        Err(_) => json!({"id": id, "stream": stream, "offset": offset, "base64": BASE64_STANDARD.encode(bytes)}),
    };
    writeln!(out, "{object}")
}

/// Fills a buffer; false where the end came before.
fn filled(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn frame(stream: u8, offset: usize, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        [&[stream], &(offset as u64).to_be_bytes()[..], &length, data].concat()
    }

    #[test]
    fn a_torn_log_says_where_it_goes_on() {
        let whole = [frame(1, 0, b"ab"), frame(2, 5, b"c"), frame(0, 0, b"")].concat();
        for length in 0..whole.len() {
            let mut frames = Frames::new(None);
            let mut out = Vec::new();
            assert_eq!(frames.show_on(&whole[..length], &mut out).unwrap(), Ended::Torn);
            assert_eq!(frames.seen()[0], if length < 15 { 0 } else { 2 });
            // what was shown and what is asked for make the whole
            assert_eq!(out.len() as u64, frames.seen()[0] + frames.seen()[1].saturating_sub(5));
        }
        assert_eq!(Frames::new(None).show_on(&whole[..], &mut Vec::new()).unwrap(), Ended::Whole);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_in_json_and_no_character_is_cut(
            text in "[a-zé€😀]{0,40}",
            noise in prop::collection::vec(any::<u8>(), 0..20),
            cuts in prop::collection::vec(1..7_usize, 1..30),
        ) {
            let bytes = [text.as_bytes(), &noise].concat();
            let mut log = Vec::new();
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                if at >= bytes.len() {
                    break;
                }
                let end = (at + cut).min(bytes.len());
                log.extend(frame(1, at, &bytes[at..end]));
                at = end;
            }
            log.extend(frame(0, 0, b""));
            let mut out = Vec::new();
            prop_assert_eq!(Frames::new(Some("x".to_owned())).show_on(&log[..], &mut out).unwrap(), Ended::Whole);
            let mut back = Vec::new();
            for line in String::from_utf8(out).unwrap().lines() {
                let value: Value = serde_json::from_str(line).unwrap();
                prop_assert_eq!(value["offset"].as_u64().unwrap(), back.len() as u64);
                match value["data"].as_str() {
                    Some(data) => back.extend(data.as_bytes()),
                    None => back.extend(BASE64_STANDARD.decode(value["base64"].as_str().unwrap()).unwrap()),
                }
                // text that is whole is never shown as bytes
                if noise.is_empty() {
                    prop_assert!(value["data"].is_string());
                }
            }
            prop_assert_eq!(back, bytes);
        }
    }
}
