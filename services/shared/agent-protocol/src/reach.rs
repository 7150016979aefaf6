//! Reaching what listens inside a guest: a connection to [`crate::ports::REACH`] becomes one to a port or a socket there.
//!
//! The connection begins like every other ([`crate::Hello`]); then comes one [`Reach`], answered by `Ok` or `Error`
//! (`CONNECT_FAILED`), and after `Ok` each side sends records until its end: a `u16` big-endian length and as many bytes,
//! at most [`RECORD_MAX`]. A record of length 0 is the end of that direction alone. Vsock devices outside of the kernel
//! make a full disconnect of a half-close, so that the end must be said in words; a stream that ends without them was cut.
//!
//! In the ordinary course the host closes, once both directions have ended: what a guest had sent just before it closed
//! could get lost in the device.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Most bytes of one record. With its length it is one write that every vsock device takes.
pub const RECORD_MAX: usize = 16 * 1024;
const LENGTH: usize = 2;

/// What is to be reached in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Reach {
    /// A TCP port on the guest's loopback.
    Tcp {
        /// Port.
        port: u16,
    },
    /// A Unix stream socket.
    Unix {
        /// Absolute path, in the agent's own root.
        path: PathBuf,
    },
}

/// Passes bytes between a connection that speaks in records and one that doesn't, until both directions have ended.
///
/// # Errors
/// One of the two was cut, which ends the other too.
pub async fn relay<R, P>(records: &mut R, plain: &mut P) -> std::io::Result<()>
where
    R: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let (from_records, to_records) = tokio::io::split(records);
    let (from_plain, to_plain) = tokio::io::split(plain);
    tokio::try_join!(pack(from_plain, to_records), unpack(from_records, to_plain)).map(drop)
}

/// Turns what comes into records, up to the one that says the end.
async fn pack(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut record = vec![0; LENGTH + RECORD_MAX];
    loop {
        let length = from.read(&mut record[LENGTH..]).await?;
        // Never more than RECORD_MAX, which fits.
        let header = u16::try_from(length).map_err(std::io::Error::other)?.to_be_bytes();
        record[..LENGTH].copy_from_slice(&header);
        to.write_all(&record[..LENGTH + length]).await?;
        if length == 0 {
            return to.flush().await;
        }
    }
}

/// Passes on what is in records, up to the one that says the end.
async fn unpack(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut bytes = vec![0; RECORD_MAX];
    loop {
        let length = usize::from(from.read_u16().await?);
        if length == 0 {
            return to.shutdown().await;
        }
        let record = bytes
            .get_mut(..length)
            .ok_or_else(|| std::io::Error::other(format!("a record of {length} bytes; the limit is {RECORD_MAX}")))?;
        from.read_exact(record).await?;
        to.write_all(record).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::DuplexStream;

    use super::*;

    /// Two plain ends with records in between.
    fn joined() -> (DuplexStream, DuplexStream) {
        let (near, mut near_inner) = tokio::io::duplex(64);
        let (far, mut far_inner) = tokio::io::duplex(64);
        let (mut host, mut guest) = tokio::io::duplex(1000);
        tokio::spawn(async move { relay(&mut host, &mut near_inner).await });
        tokio::spawn(async move { relay(&mut guest, &mut far_inner).await });
        (near, far)
    }

    #[tokio::test]
    async fn one_direction_ends_and_the_other_goes_on() {
        let (mut near, mut far) = joined();
        let sent: Vec<u8> = (0..3 * RECORD_MAX + 7).map(|n| (n % 251) as u8).collect();
        let (mut received, mut answer) = (Vec::new(), Vec::new());
        let (asking, answering) = tokio::join!(
            async {
                near.write_all(&sent).await?;
                near.shutdown().await?;
                near.read_to_end(&mut answer).await
            },
            async {
                far.read_to_end(&mut received).await?;
                // Only after the end of the question is there an answer.
                far.write_all(b"all of it").await?;
                far.shutdown().await
            }
        );
        asking.unwrap();
        answering.unwrap();
        assert_eq!(received, sent);
        assert_eq!(answer, b"all of it");
    }

    /// What comes of a peer that sends these bytes and closes.
    async fn against(bytes: &[u8]) -> std::io::Result<()> {
        let (mut host, mut guest) = tokio::io::duplex(1 << 20);
        guest.write_all(bytes).await.unwrap();
        drop(guest);
        let (_near, mut plain) = tokio::io::duplex(1 << 20);
        relay(&mut host, &mut plain).await
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_or_lies_ends_with_an_error() {
        for cut in [&b""[..], b"\0", b"\0\x05abc", b"\0\x03abc"] {
            assert_eq!(against(cut).await.unwrap_err().kind(), ErrorKind::UnexpectedEof, "{cut:?}");
        }
        let lie = [&[0xff, 0xff][..], &[b'x'; 0xffff]].concat();
        assert!(against(&lie).await.unwrap_err().to_string().contains("65535"));
    }

    #[test]
    fn what_is_to_be_reached_has_one_form() {
        let text = |reach: &Reach| serde_json::to_string(reach).unwrap();
        assert_eq!(text(&Reach::Tcp { port: 80 }), r#"{"method":"tcp","port":80}"#);
        assert_eq!(text(&Reach::Unix { path: "/run/a".into() }), r#"{"method":"unix","path":"/run/a"}"#);
        assert!(serde_json::from_str::<Reach>(r#"{"method":"tcp","port":65536}"#).is_err());
    }
}
