//! How QUIC is spoken: limits, and the handshake's configuration.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{TransportConfig, VarInt};

use super::ALPN;

/// Requests of one client at once.
const REQUESTS: u32 = 128;
/// Streams one way of a peer: its control stream, and two for the compression of heads.
const OTHERS: u32 = 8;
/// Bytes that a peer may send ahead, of one request and in all, and that may wait for it.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_WINDOW: u64 = 1 << 20;
/// Bytes that an upstream may send ahead: it serves many clients on one connection.
const UPSTREAM_STREAM_WINDOW: u32 = 256 << 10;
const UPSTREAM_WINDOW: u32 = 4 << 20;
/// Handshakes that wait to be looked at, and bytes of theirs.
const INCOMING: usize = 1024;
const INCOMING_BYTES: u64 = 16 << 10;
const INCOMING_BYTES_IN_ALL: u64 = 4 << 20;

/// The keys and certificates of a listener.
#[derive(Clone)]
pub(crate) struct Crypto(Arc<QuicServerConfig>);

impl std::fmt::Debug for Crypto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Crypto")
    }
}

impl Crypto {
    /// Of a listener's TLS. Early data is not accepted: it can be replayed.
    pub(crate) fn new(tls: &rustls::ServerConfig) -> Result<Self, String> {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.max_early_data_size = 0;
        QuicServerConfig::try_from(tls).map(|c| Self(Arc::new(c))).map_err(|e| format!("TLS for QUIC: {e}"))
    }

    /// What a listener begins with.
    pub(crate) fn server(&self, idle: Duration) -> quinn::ServerConfig {
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(REQUESTS))
            .max_concurrent_uni_streams(VarInt::from_u32(OTHERS))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
            .send_window(SEND_WINDOW)
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(quinn::IdleTimeout::try_from(idle).ok());
        let mut config = quinn::ServerConfig::with_crypto(Arc::clone(&self.0) as _);
        config
            .transport_config(Arc::new(transport))
            // Workers have sockets of their own, and the kernel knows a client by its address.
            .migration(false)
            .max_incoming(INCOMING)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_BYTES_IN_ALL);
        config
    }

    /// The same listener with the certificates of another plan.
    pub(crate) fn renew(&self, base: &quinn::ServerConfig) -> Arc<quinn::ServerConfig> {
        let mut config = base.clone();
        config.crypto = Arc::clone(&self.0) as _;
        Arc::new(config)
    }
}

/// Towards an upstream, by a configuration of TLS that settles on HTTP/3.
pub(crate) fn client(tls: &rustls::ClientConfig) -> Result<quinn::ClientConfig, String> {
    let crypto = QuicClientConfig::try_from(tls.clone()).map_err(|e| format!("TLS for QUIC: {e}"))?;
    let mut transport = TransportConfig::default();
    transport
        // A server opens no requests.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(OTHERS))
        .stream_receive_window(VarInt::from_u32(UPSTREAM_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(UPSTREAM_WINDOW))
        .send_window(u64::from(UPSTREAM_WINDOW))
        .datagram_receive_buffer_size(None);
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}
