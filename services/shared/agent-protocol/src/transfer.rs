//! Files as they are: a connection to [`crate::ports::FILES`] carries one file, at the speed of the stream.
//!
//! The requests for files on port 6000 put bytes into JSON, as the public protocol has it, which costs a guest more than
//! the file itself. Here the connection begins like every other ([`crate::Hello`]); then comes one [`Transfer`], answered by
//! `Ok` or `Error`. After `Ok` follow pieces, from the host for a write and from the guest for a read: a `u32` big-endian
//! length and as many bytes, at most [`PIECE_MAX`]. A piece of length 0 is the end. What comes last is the guest's answer,
//! `Ok` or `Error`, which may come before all pieces have been sent; a stream that ends without it was cut, and a file
//! that was being written is as it was.
//!
//! In the ordinary course the host closes, as with [`crate::reach`].

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Most bytes of one piece: 256 KiB.
pub const PIECE_MAX: usize = 256 * 1024;
const LENGTH: usize = 4;

/// What is to be done with a file in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Transfer {
    /// Put one in its place, whole or not at all; folders on the way are made.
    Write {
        /// Absolute path.
        path: String,
        /// Permission bits (0644).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// Send one.
    Read {
        /// Absolute path.
        path: String,
    },
}

/// Bytes of a file, with room for their length before them, so that both are one write.
#[derive(Debug)]
pub struct Piece(Vec<u8>);

impl Default for Piece {
    fn default() -> Self {
        Self(Vec::from([0; LENGTH]))
    }
}

impl Piece {
    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0[LENGTH..]
    }

    /// Fills it from a file; at its end the piece is empty, which says so.
    ///
    /// # Errors
    /// Reading failed.
    pub fn fill(&mut self, file: &mut impl std::io::Read) -> std::io::Result<()> {
        self.0.truncate(LENGTH);
        std::io::Read::read_to_end(&mut std::io::Read::take(file, PIECE_MAX as u64), &mut self.0)?;
        let length = u32::try_from(self.bytes().len()).map_err(std::io::Error::other)?;
        self.0[..LENGTH].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// Sends it, in writes of at most `most` bytes.
    ///
    /// # Errors
    /// The stream failed.
    pub async fn send(&self, to: &mut (impl AsyncWrite + Unpin), most: usize) -> std::io::Result<()> {
        for part in self.0.chunks(most.max(1)) {
            to.write_all(part).await?;
        }
        to.flush().await
    }

    /// How many bytes come after the first four of a piece.
    ///
    /// # Errors
    /// They are over [`PIECE_MAX`].
    pub fn length(header: [u8; LENGTH]) -> std::io::Result<usize> {
        let length = u32::from_be_bytes(header) as usize;
        if length > PIECE_MAX {
            return Err(std::io::Error::other(format!("a piece of {length} bytes; the limit is {PIECE_MAX}")));
        }
        Ok(length)
    }

    /// The next piece of a stream.
    ///
    /// # Errors
    /// The stream failed or was cut, or the piece is over [`PIECE_MAX`].
    pub async fn receive(&mut self, from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
        self.0.truncate(LENGTH);
        from.read_exact(&mut self.0).await?;
        let length = Self::length(self.0[..LENGTH].try_into().map_err(std::io::Error::other)?)?;
        // Memory grows with what arrives, not with what was announced.
        let mut left = from.take(length as u64);
        left.read_to_end(&mut self.0).await?;
        if left.limit() == 0 { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_passes_in_pieces_and_its_end_is_said() {
        let file: Vec<u8> = (0..2 * PIECE_MAX + 5).map(|n| (n % 251) as u8).collect();
        let (mut near, mut far) = tokio::io::duplex(1000);
        let sending = async {
            let (mut source, mut piece) = (&file[..], Piece::default());
            loop {
                piece.fill(&mut source).unwrap();
                piece.send(&mut near, 777).await.unwrap();
                if piece.bytes().is_empty() {
                    return;
                }
            }
        };
        let receiving = async {
            let (mut all, mut piece) = (Vec::new(), Piece::default());
            loop {
                piece.receive(&mut far).await.unwrap();
                all.extend_from_slice(piece.bytes());
                if piece.bytes().is_empty() {
                    return all;
                }
            }
        };
        let ((), received) = tokio::join!(sending, receiving);
        assert!(received == file);
    }

    #[tokio::test]
    async fn a_piece_that_is_cut_or_lies_is_an_error() {
        for cut in [&b""[..], b"\0\0\0", b"\0\0\0\x05abc"] {
            let error = Piece::default().receive(&mut { cut }).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{cut:?}");
        }
        let error = Piece::default().receive(&mut &b"\xff\xff\xff\xffabc"[..]).await.unwrap_err();
        assert!(error.to_string().contains("4294967295"), "{error}");
    }

    #[test]
    fn what_is_wanted_has_one_form() {
        let text = |transfer: &Transfer| serde_json::to_string(transfer).unwrap();
        let path = || "/a".to_owned();
        assert_eq!(text(&Transfer::Read { path: path() }), r#"{"method":"read","path":"/a"}"#);
        assert_eq!(
            text(&Transfer::Write { path: path(), mode: Some(0o755) }),
            r#"{"method":"write","path":"/a","mode":493}"#
        );
    }
}
