//! zstd layers: any number of frames one after the other (RFC 8878, 3.1), some of which may be there to be skipped.

use std::io::{Chain, Cursor, Read};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Largest window, which is memory: what the highest ordinary level asks for (RFC 8878 recommends 8 MiB at least).
const WINDOW_MAX: u64 = 16 * 1024 * 1024;

/// A source whose first four bytes have been looked at.
type Source<R> = Chain<Cursor<[u8; 4]>, R>;

/// Reads what the frames hold.
pub(super) struct Zstd<R: Read> {
    /// One of both is there, between calls.
    source: Option<R>,
    frame: Option<StreamingDecoder<Source<R>, FrameDecoder>>,
}

impl<R: Read> Zstd<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source: Some(source), frame: None }
    }

    /// Begins the next frame; `false` where there is none.
    fn begin(&mut self) -> std::io::Result<bool> {
        let Some(mut source) = self.source.take() else { return Ok(false) };
        loop {
            let mut magic = [0; 4];
            if source.read(&mut magic[..1])? == 0 {
                self.source = Some(source);
                return Ok(false);
            }
            source.read_exact(&mut magic[1..])?;
            if let [0x50..=0x5f, 0x2a, 0x4d, 0x18] = magic {
                let mut length = [0; 4];
                source.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if std::io::copy(&mut (&mut source).take(length), &mut std::io::sink())? < length {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            let source = Cursor::new(magic).chain(source);
            let decoder = StreamingDecoder::new_with_max_window_size(source, WINDOW_MAX);
            self.frame = Some(decoder.map_err(|error| std::io::Error::other(error.to_string()))?);
            return Ok(true);
        }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if self.frame.is_none() && !self.begin()? {
                return Ok(0);
            }
            let Some(frame) = &mut self.frame else { return Ok(0) };
            let n = frame.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            self.source = self.frame.take().map(|frame| frame.into_inner().into_inner().1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_follow_each_other_and_some_are_skipped() {
        let frame = |text: &[u8]| ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest);
        let mut all = frame(b"one ");
        all.extend([0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9]);
        all.extend(frame(b"two"));
        let mut text = String::new();
        Zstd::new(&all[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        all.truncate(all.len() - 2);
        assert!(Zstd::new(&all[..]).read_to_end(&mut vec![]).is_err(), "cut off");
    }
}
