//! Where the frames of a stream end (RFC 9114, sections 6.2 and 7.1).
//!
//! `h3` keeps a frame in memory until it is whole, and reads on while it hands data out. So it is given a stream in
//! pieces that end where a frame ends, and none of a frame that is too large to be kept.

/// Largest frame other than one with data. Heads have a limit of their own, which is told to the client.
const LARGEST: u64 = 64 << 10;
/// The types of frames and of streams that matter here.
const DATA: u64 = 0;
const CONTROL: u64 = 0;

/// A frame, of another kind than data, that is larger than anybody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

#[derive(Debug)]
enum At {
    /// The type of a stream that goes one way.
    Type,
    /// Type and length of a frame.
    Head,
    Payload(u64),
    /// There are no frames on this stream.
    Unframed,
}

/// How far a stream was looked at.
#[derive(Debug)]
pub(super) struct Frames {
    at: At,
    /// The beginning of a type or a head that is not whole.
    begun: Vec<u8>,
}

impl Frames {
    /// Of a stream that carries a request.
    pub(super) fn of_request() -> Self {
        Self { at: At::Head, begun: Vec::new() }
    }

    /// Of a stream that goes one way.
    pub(super) fn of_one_way() -> Self {
        Self { at: At::Type, begun: Vec::new() }
    }

    /// How many of these bytes, which follow those before, belong to the frame that they begin in.
    pub(super) fn piece(&mut self, bytes: &[u8]) -> Result<usize, TooLarge> {
        let mut done = 0;
        while done < bytes.len() {
            match &mut self.at {
                At::Unframed => return Ok(bytes.len()),
                At::Payload(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - done);
                    *left -= n as u64;
                    done += n;
                    if *left == 0 {
                        self.at = At::Head;
                        return Ok(done);
                    }
                }
                At::Type => {
                    self.begun.push(bytes[done]);
                    done += 1;
                    if let Some((kind, _)) = varint(&self.begun) {
                        self.begun.clear();
                        self.at = if kind == CONTROL { At::Head } else { At::Unframed };
                    }
                }
                At::Head => {
                    self.begun.push(bytes[done]);
                    done += 1;
                    let Some((kind, n)) = varint(&self.begun) else { continue };
                    let Some((length, _)) = varint(&self.begun[n..]) else { continue };
                    self.begun.clear();
                    if kind != DATA && length > LARGEST {
                        return Err(TooLarge);
                    }
                    if length == 0 {
                        return Ok(done);
                    }
                    self.at = At::Payload(length);
                }
            }
        }
        Ok(done)
    }
}

/// An integer and how many bytes it takes (RFC 9000, section 16).
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(1..length)?;
    Some((rest.iter().fold(u64::from(first & 0x3f), |value, b| value << 8 | u64::from(*b)), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_in_each_length() {
        // RFC 9000, appendix A.1.
        for (bytes, value) in [
            (&[0x25][..], 37),
            (&[0x7b, 0xbd], 15_293),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
        ] {
            assert_eq!(varint(bytes), Some((value, bytes.len())));
            assert_eq!(varint(&bytes[..bytes.len() - 1]), None);
        }
    }

    /// A stream, cut into pieces of `step` bytes as they might arrive.
    fn pieces(mut frames: Frames, bytes: &[u8], step: usize) -> Result<Vec<Vec<u8>>, TooLarge> {
        let mut out = Vec::new();
        for mut arrived in bytes.chunks(step) {
            while !arrived.is_empty() {
                let n = frames.piece(arrived)?;
                out.push(arrived[..n].to_vec());
                arrived = &arrived[n..];
            }
        }
        Ok(out)
    }

    #[test]
    fn pieces_end_where_frames_end() {
        let stream = [&[1, 3, 7, 7, 7][..], &[0, 2, 8, 8], &[0, 0], &[0x40, 0x21, 1, 9], &[0, 1, 8]].concat();
        let whole = pieces(Frames::of_request(), &stream, stream.len()).unwrap();
        assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [5, 4, 2, 4, 3]);
        for step in 1..stream.len() {
            let cut = pieces(Frames::of_request(), &stream, step).unwrap();
            assert_eq!(cut.concat(), stream, "{step}");
            assert!(cut.len() >= 5, "{step}");
        }
    }

    #[test]
    fn a_frame_that_is_too_large_is_none() {
        let head = [1, 0x80, 0x01, 0x00, 0x01]; // HEADERS of 65,537 bytes
        assert_eq!(pieces(Frames::of_request(), &head, 1), Err(TooLarge));
        let data = [0, 0xbf, 0xff, 0xff, 0xff, 5]; // DATA of a gigabyte, which goes on as it comes
        assert!(pieces(Frames::of_request(), &data, 1).is_ok());
        let unknown = [0x21, 0xc0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(pieces(Frames::of_request(), &unknown, 9), Err(TooLarge));
        let settings = [&[0][..], &[4, 0x80, 0x01, 0x00, 0x01]].concat();
        assert_eq!(pieces(Frames::of_one_way(), &settings, 6), Err(TooLarge));
        let encoder = [&[2][..], &[4, 0x80, 0x01, 0x00, 0x01]].concat();
        assert!(pieces(Frames::of_one_way(), &encoder, 6).is_ok());
    }
}
