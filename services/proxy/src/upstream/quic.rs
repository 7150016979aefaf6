//! Connections of QUIC to upstreams, and HTTP/3 on them.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h3::client::SendRequest;
use shipote_rules::UpstreamAddress;

use super::pool::AcquireError;
use super::streams::{Carrier, Shared};
use super::{Target, resolve};
use crate::http3::quic::{Opener, Quic};

/// Bytes of the head of an answer.
const HEAD_BYTES: u64 = 64 << 10;

/// A worker's sockets for all of its upstreams, made when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct Dialer {
    four: RefCell<Option<quinn::Endpoint>>,
    six: RefCell<Option<quinn::Endpoint>>,
}

/// How requests are sent on a connection of HTTP/3.
pub(crate) type Requests = SendRequest<Opener, Bytes>;

impl Carrier for Requests {
    /// The upstream's limit is waited for where it is lower.
    fn most(&self) -> usize {
        usize::MAX
    }
}

impl Dialer {
    fn endpoint(&self, to: SocketAddr) -> io::Result<quinn::Endpoint> {
        let (kept, any): (_, SocketAddr) = if to.is_ipv4() {
            (&self.four, (Ipv4Addr::UNSPECIFIED, 0).into())
        } else {
            (&self.six, (Ipv6Addr::UNSPECIFIED, 0).into())
        };
        let mut kept = kept.borrow_mut();
        if let Some(endpoint) = &*kept {
            return Ok(endpoint.clone());
        }
        let config = quinn::EndpointConfig::default();
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(config, None, UdpSocket::bind(any)?, runtime)?;
        Ok(kept.insert(endpoint).clone())
    }

    /// A new connection, on which HTTP/3 is spoken; a task of its own drives it until it ends.
    pub(crate) async fn connect(&self, target: &Target, limit: Duration) -> Result<Shared<Requests>, AcquireError> {
        match tokio::time::timeout(limit, self.make(target)).await {
            Ok(Ok(shared)) => {
                target.worked();
                Ok(shared)
            }
            Ok(Err(e)) => {
                target.failed();
                Err(AcquireError::Connect(target.name.clone(), e))
            }
            Err(_) => {
                target.failed();
                Err(AcquireError::TimedOut(target.name.clone()))
            }
        }
    }

    async fn make(&self, target: &Target) -> io::Result<Shared<Requests>> {
        let UpstreamAddress::Tcp { host, port } = &target.address else {
            return Err(io::Error::other("HTTP/3 goes only to a host and a port"));
        };
        let to = resolve(target, host, *port).await?;
        let secure = target.secure().ok_or_else(|| io::Error::other("HTTP/3 without TLS"))?;
        let config = secure.quic.clone().ok_or_else(|| io::Error::other("HTTP/3 without keys"))?;
        let connecting =
            self.endpoint(to)?.connect_with(config, to, &secure.name.to_str()).map_err(io::Error::other)?;
        let connection = connecting.await.map_err(io::Error::other)?;
        let mut builder = h3::client::builder();
        builder.max_field_section_size(HEAD_BYTES).send_grease(false);
        let built = builder.build::<_, _, Bytes>(Quic::new(connection)).await;
        let (mut driver, requests) = built.map_err(io::Error::other)?;
        Ok(Shared::new(requests, async move {
            let error = driver.wait_idle().await;
            if !error.is_h3_no_error() {
                tracing::debug!("a connection to an upstream ended: {error}");
            }
        }))
    }
}
