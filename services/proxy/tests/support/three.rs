//! A client and a server of HTTP/3 that share no code with the proxy but `quinn` and `h3`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::error::StreamError;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value as Json, json};

pub struct Cert {
    pub der: CertificateDer<'static>,
    pub key: Vec<u8>,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl Cert {
    /// For `localhost`.
    pub fn new(dir: &Path) -> Self {
        let CertifiedKey { cert, signing_key }: CertifiedKey<KeyPair> =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert_file, key_file) = (dir.join("cert.pem"), dir.join("key.pem"));
        std::fs::write(&cert_file, cert.pem()).unwrap();
        std::fs::write(&key_file, signing_key.serialize_pem()).unwrap();
        Self { der: cert.der().clone(), key: signing_key.serialize_der(), cert_file, key_file }
    }

    /// The `tls` of a rule.
    pub fn tls(&self) -> Json {
        json!({"cert_file": self.cert_file, "key_file": self.key_file})
    }

    /// The `tls` of a terminator that trusts it.
    pub fn trusted(&self) -> Json {
        json!({"ca_file": self.cert_file, "verify_hostname": "localhost"})
    }
}

/// Runs on a runtime of its own, with tasks that stay on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), future).await.expect("it takes a minute")
    })
}

pub type Requests = h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;

/// A client's connection.
pub struct Three {
    pub quic: quinn::Connection,
    pub requests: Requests,
    /// Ends when the connection does.
    pub driver: tokio::task::JoinHandle<h3::error::ConnectionError>,
    _endpoint: quinn::Endpoint,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<http::HeaderMap>,
}

fn client(cert: &Cert) -> quinn::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(cert.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// A connection without HTTP on it.
pub async fn dial(to: SocketAddr, cert: &Cert) -> Result<(quinn::Endpoint, quinn::Connection), quinn::ConnectionError> {
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connection = endpoint.connect_with(client(cert), to, "localhost").unwrap().await?;
    Ok((endpoint, connection))
}

impl Three {
    pub async fn connect(port: u16, cert: &Cert) -> Result<Self, quinn::ConnectionError> {
        let (endpoint, quic) = dial((Ipv4Addr::LOCALHOST, port).into(), cert).await?;
        let (mut driver, requests) = h3::client::new(h3_quinn::Connection::new(quic.clone())).await.unwrap();
        let driver = tokio::task::spawn_local(async move { driver.wait_idle().await });
        Ok(Self { quic, requests, driver, _endpoint: endpoint })
    }

    pub async fn get(&self, path: &str) -> Result<Answer, StreamError> {
        self.call(request(path), Vec::new(), None).await
    }

    /// One request, with the pieces of its body and maybe trailers.
    pub async fn call(
        &self,
        request: http::Request<()>,
        pieces: Vec<Vec<u8>>,
        trailers: Option<http::HeaderMap>,
    ) -> Result<Answer, StreamError> {
        let stream = self.requests.clone().send_request(request).await?;
        let (mut send, mut recv) = stream.split();
        let sending = async move {
            for piece in pieces {
                send.send_data(Bytes::from(piece)).await?;
            }
            if let Some(trailers) = trailers {
                send.send_trailers(trailers).await?;
            }
            send.finish().await
        };
        let receiving = async {
            let response = recv.recv_response().await?;
            let mut body = Vec::new();
            while let Some(mut piece) = recv.recv_data().await? {
                body.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
            }
            let trailers = recv.recv_trailers().await?;
            let (parts, ()) = response.into_parts();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
        };
        // An answer may come before the request is out, and is then all that counts.
        let (answer, _) = tokio::join!(receiving, sending);
        answer
    }
}

pub fn request(path: &str) -> http::Request<()> {
    http::Request::get(format!("https://localhost{path}")).header("te", "trailers").body(()).unwrap()
}

/// A server in a thread. It answers with the heads it got, then the body as it comes and `grpc-status: 0`; `/refused`
/// is rejected once, `/torn` breaks off, `/longer` sends more than it says.
pub struct ThreeUpstream {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<String>>>,
}

impl ThreeUpstream {
    pub fn start(cert: &Cert) -> Self {
        let key = PrivateKeyDer::try_from(cert.key.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der.clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let log = seen.clone();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
                tell.send(endpoint.local_addr().unwrap().port()).unwrap();
                while let Some(incoming) = endpoint.accept().await {
                    let log = log.clone();
                    tokio::task::spawn_local(async move {
                        let Ok(quic) = incoming.await else { return };
                        let mut requests =
                            h3::server::Connection::<_, Bytes>::new(h3_quinn::Connection::new(quic)).await.unwrap();
                        while let Ok(Some(resolver)) = requests.accept().await {
                            let log = log.clone();
                            tokio::task::spawn_local(async move {
                                if let Ok((request, stream)) = resolver.resolve_request().await {
                                    let _ = answer(request, stream, log).await;
                                }
                            });
                        }
                    });
                }
            });
        });
        Self { port: told.recv().unwrap(), seen }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

async fn answer(
    request: http::Request<()>,
    mut stream: h3::server::RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>,
    log: Arc<Mutex<Vec<String>>>,
) -> Result<(), StreamError> {
    let (parts, ()) = request.into_parts();
    let mut head = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        head.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    log.lock().unwrap().push(head.clone());
    let path = parts.uri.path().to_owned();
    let times = log.lock().unwrap().len();
    if path == "/refused" && times == 1 {
        stream.stop_stream(h3::error::Code::H3_REQUEST_REJECTED);
        return Ok(());
    }
    let mut response = http::Response::builder().status(200).header("x-server", "three");
    if path == "/longer" {
        response = response.header("content-length", "3");
    }
    stream.send_response(response.body(()).unwrap()).await?;
    stream.send_data(Bytes::from(head)).await?;
    if path == "/torn" {
        stream.stop_stream(h3::error::Code::H3_INTERNAL_ERROR);
        return Ok(());
    }
    let (mut send, mut recv) = stream.split();
    while let Some(mut piece) = recv.recv_data().await? {
        send.send_data(piece.copy_to_bytes(piece.remaining())).await?;
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    if let Some(sent) = recv.recv_trailers().await?
        && let Some(value) = sent.get("x-sum")
    {
        trailers.insert("x-sum", value.clone());
    }
    send.send_trailers(trailers).await?;
    send.finish().await
}
