//! The chunked coding, read strictly (RFC 9112, section 7.1).
//!
//! ```text
//! Size --hex*--> Size --';'--> Extension --CR--> SizeLf --LF--> Data --n bytes--> DataCr --> DataLf --> Size
//!                  \------------------CR------------^   \ size 0
//!                                                        --> TrailerStart --CR--> EndLf --LF--> Done
//!                                                               \--any--> Trailer --CR--> TrailerLf --LF--> TrailerStart
//! ```
//! The data goes on in chunks of our own, so extensions and trailers end here.

use super::Refusal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { digits: u8 },
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// A reader of chunks: fed with bytes, it says which of them are data.
#[derive(Debug)]
pub(crate) struct Chunks {
    state: State,
    left: u64,
    /// Bytes of extensions and trailers so far.
    extra: u32,
}

/// What a step found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes belong to the coding; look again after them.
    Skip(usize),
    /// So many bytes are data.
    Data(usize),
    /// So many bytes belong to the coding, and it ends with them.
    End(usize),
}

/// Most bytes of extensions and trailers of one body.
const EXTRA: u32 = 8192;

impl Chunks {
    pub(crate) fn new() -> Self {
        Self { state: State::Size { digits: 0 }, left: 0, extra: 0 }
    }

    /// Looks at `bytes`, which must not be empty.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, Refusal> {
        if self.state == State::Data {
            let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.left -= n as u64;
            if self.left == 0 {
                self.state = State::DataCr;
            }
            return Ok(Step::Data(n));
        }
        for (i, &b) in bytes.iter().enumerate() {
            self.state = self.next(b)?;
            match self.state {
                State::Done => return Ok(Step::End(i + 1)),
                State::Data => return Ok(Step::Skip(i + 1)),
                _ => {}
            }
        }
        Ok(Step::Skip(bytes.len()))
    }

    fn next(&mut self, b: u8) -> Result<State, Refusal> {
        let bad = || Refusal::bad("not a chunk");
        Ok(match (self.state, b) {
            (State::Size { digits }, b) if b.is_ascii_hexdigit() => {
                if digits >= 15 {
                    return Err(Refusal::bad("a chunk size past all reason"));
                }
                let digit = (b as char).to_digit(16).unwrap_or(0);
                self.left = self.left << 4 | u64::from(digit);
                State::Size { digits: digits + 1 }
            }
            (State::Size { digits: 1.. }, b';') => State::Extension,
            (State::Size { digits: 1.. } | State::Extension, b'\r') => State::SizeLf,
            (State::Extension | State::Trailer, b) if b == b'\t' || (b >= 0x20 && b != 0x7f) => {
                self.extra()?;
                self.state
            }
            (State::SizeLf, b'\n') if self.left == 0 => State::TrailerStart,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0 },
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart, b) if b.is_ascii_graphic() && b != b':' => {
                self.extra()?;
                State::Trailer
            }
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(bad()),
        })
    }

    fn extra(&mut self) -> Result<(), Refusal> {
        self.extra += 1;
        if self.extra > EXTRA { Err(Refusal::bad("too long extensions or trailers")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Decoded = Option<(Vec<u8>, Vec<u8>)>;

    /// Feeds `pieces` one after the other; the data, and what is left after the end.
    fn decode(pieces: &[&[u8]]) -> Result<Decoded, Refusal> {
        let mut chunks = Chunks::new();
        let mut data = Vec::new();
        let mut rest: Option<Vec<u8>> = None;
        for piece in pieces {
            let mut piece = *piece;
            if let Some(rest) = &mut rest {
                rest.extend_from_slice(piece);
                continue;
            }
            while !piece.is_empty() {
                match chunks.step(piece)? {
                    Step::Skip(n) => piece = &piece[n..],
                    Step::Data(n) => {
                        data.extend_from_slice(&piece[..n]);
                        piece = &piece[n..];
                    }
                    Step::End(n) => {
                        rest = Some(piece[n..].to_vec());
                        break;
                    }
                }
            }
        }
        Ok(rest.map(|rest| (data, rest)))
    }

    #[test]
    fn bodies() {
        for (text, data, rest) in [
            ("0\r\n\r\n", "", ""),
            ("3\r\nabc\r\n0\r\n\r\nGET", "abc", "GET"),
            ("3;x=\"y\"\r\nabc\r\n00\r\n\r\n", "abc", ""),
            ("a\r\n0123456789\r\n1\r\nx\r\n0\r\nTrailer: x\r\n\r\n", "0123456789x", ""),
        ] {
            assert_eq!(decode(&[text.as_bytes()]), Ok(Some((data.into(), rest.into()))), "{text:?}");
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        for text in [
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            " 3\r\nabc\r\n",
            "3 \r\nabc\r\n",
            "0x3\r\nabc\r\n",
            "+3\r\nabc",
            "-1\r\n",
            "\r\n",
            ";a\r\n",
            "g\r\n",
            "fffffffffffffffff\r\n",
            "3;a\nbc\r\nabc\r\n",
            "0\r\n\n",
            "0\r\na: b\n\r\n",
            "0\r\n folded\r\n\r\n",
            "3\rabc",
            "0\r\nX\0: y\r\n\r\n",
        ] {
            assert!(decode(&[text.as_bytes()]).is_err(), "{text:?}");
        }
        let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(10_000));
        assert!(decode(&[long.as_bytes()]).is_err());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_data(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut text = Vec::new();
            for part in &parts {
                text.extend(format!("{:x}\r\n", part.len()).bytes());
                text.extend(part);
                text.extend(b"\r\n");
            }
            text.extend(b"0\r\n\r\nrest");
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(text.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&text[from..cut]);
                from = cut;
            }
            pieces.push(&text[from..]);
            prop_assert_eq!(decode(&pieces), Ok(Some((parts.concat(), b"rest".to_vec()))));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&[&bytes]);
        }
    }
}
