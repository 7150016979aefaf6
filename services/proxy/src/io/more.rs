//! Waiting for more bytes than there are, without taking any.

use std::io;
use std::os::fd::AsFd as _;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// Waits until more than `have` bytes wait to be read, looks at them, and returns how many there are. Not more than
/// `have`: no more will come. `bytes` must be longer than `have`.
///
/// A stream is ready as long as there are bytes, old or new. So a descriptor of its own is watched for the new ones, whose
/// readiness is taken back once the old ones were seen. That of the stream stays as it is: who gives up waiting reads.
pub(crate) async fn more(stream: &TcpStream, bytes: &mut [u8], have: usize) -> io::Result<usize> {
    let n = stream.peek(bytes).await?;
    if n > have || n == 0 {
        return Ok(n);
    }
    let watched = TcpStream::from_std(std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?))?;
    loop {
        // Asked before the look: after the end was told nothing can come that a look does not see.
        let ended = watched.ready(Interest::READABLE).await?.is_read_closed();
        let n = stream.peek(bytes).await?;
        if n > have || n == 0 || ended {
            return Ok(n);
        }
        let nothing_new = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = watched.try_io(Interest::READABLE, nothing_new);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn bytes_that_drip_are_each_waited_for_and_the_end_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut bytes = [0; 16];
        for (i, byte) in b"PROXY".iter().enumerate() {
            {
                let mut waits = pin!(more(&server, &mut bytes, i));
                for _ in 0..3 {
                    // Asked in vain it waits for the kernel, however often: it neither spins nor sleeps.
                    tokio::task::yield_now().await;
                    assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                }
                client.write_all(&[*byte]).await.unwrap();
                assert_eq!(waits.await.unwrap(), i + 1);
            }
            assert_eq!(bytes[..=i], b"PROXY"[..=i]);
        }
        // Who gives up has lost nothing.
        assert!(pin!(more(&server, &mut bytes, 5)).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(server.read(&mut bytes[..1]).await.unwrap(), 1);
        client.shutdown().await.unwrap();
        assert_eq!(more(&server, &mut bytes, 4).await.unwrap(), 4, "no more will come");
        assert_eq!(more(&server, &mut bytes, 4).await.unwrap(), 4);
    }
}
