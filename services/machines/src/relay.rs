//! Between a guest and a socket of the host: the SSH agent's. Bytes pass as they are; none is looked at here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Connections of one kind and machine at once; more wait.
const CONNECTIONS: usize = 256;

/// Passes the guest's connections on to a socket of the host until dropped.
pub(crate) async fn socket(listener: UnixListener, name: String, socket: PathBuf) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((mut guest, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (name, socket) = (name.clone(), socket.clone());
        tokio::spawn(async move {
            match UnixStream::connect(&socket).await {
                Ok(mut agent) => drop(tokio::io::copy_bidirectional(&mut guest, &mut agent).await),
                Err(error) => tracing::warn!("machine {name}: connect to {}: {error}", socket.display()),
            }
            drop(permit);
        });
    }
}
