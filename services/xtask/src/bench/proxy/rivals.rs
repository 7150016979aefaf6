//! Who is measured: nginx, haproxy and `vaned` with one worker each, and the server that all of them ask.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::vm::host;

/// Programs and their Debian packages.
const TOOLS: &[(&str, &str)] =
    &[("nginx", "nginx-light"), ("haproxy", "haproxy"), ("wrk", "wrk"), ("h2load", "nghttp2-client")];
/// Bodies that the origin serves.
pub(super) const BODIES: [(&str, usize); 2] = [("small", 128), ("large", 64 << 10)];
const READY: Duration = Duration::from_secs(10);

/// A server that was started for the measurement; dropped, it ends.
pub(super) struct Server {
    child: Child,
}

impl Server {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate and its key in PEM, for `localhost`.
pub(super) struct Certificate {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Installs what is missing where that is possible, else says what to run.
pub(super) fn require() -> anyhow::Result<()> {
    host::require("bench", TOOLS, None)
}

/// Ports that nobody listens on.
pub(super) fn ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    // all are held until the last is there, or one could come twice
    let held = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let ports = held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(ports.try_into().unwrap_or([0; N]))
}

/// Makes a certificate in a folder of our configuration: nothing else is readable for our proxy.
pub(super) fn certificate(folder: &Path) -> anyhow::Result<Certificate> {
    fs::create_dir_all(folder).context("make the certificate's folder")?;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).context("make a certificate")?;
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    fs::write(&certificate, made.cert.pem()).context("write the certificate")?;
    fs::write(&key, made.signing_key.serialize_pem()).context("write the key")?;
    Ok(Certificate { certificate, key })
}

/// The server behind every proxy: an nginx that serves [`BODIES`] on `port`.
pub(super) fn origin(folder: &Path, port: u16) -> anyhow::Result<Server> {
    let root = folder.join("www");
    fs::create_dir_all(&root).context("make the origin's folder")?;
    for (name, size) in BODIES {
        fs::write(root.join(name), vec![b'x'; size]).context("write the origin's bodies")?;
    }
    let server = format!("server {{ listen 127.0.0.1:{port} backlog=4096; root {}; }}\n", root.display());
    start_nginx(&folder.join("origin"), &server, port)
}

/// nginx as a proxy: HTTP/1.1 in the clear on `plain`, TLS with HTTP/2 on `tls`.
pub(super) fn nginx(
    folder: &Path,
    origin: u16,
    plain: u16,
    tls: u16,
    certificate: &Certificate,
) -> anyhow::Result<Server> {
    let location = "location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                    proxy_set_header Host $host; proxy_buffers 16 16k; }";
    let servers = format!(
        "upstream origin {{ server 127.0.0.1:{origin}; keepalive 64; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{plain} backlog=4096; {location} }}\n\
         server {{ listen 127.0.0.1:{tls} ssl http2 backlog=4096; ssl_protocols TLSv1.3; ssl_session_tickets off;\n\
         ssl_certificate {}; ssl_certificate_key {}; {location} }}\n",
        certificate.certificate.display(),
        certificate.key.display(),
    );
    start_nginx(&folder.join("nginx"), &servers, plain)
}

fn start_nginx(prefix: &Path, servers: &str, port: u16) -> anyhow::Result<Server> {
    fs::create_dir_all(prefix.join("tmp")).context("make nginx's folder")?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {}/tmp/{name};\n", prefix.display()))
        .collect();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log {0}/error.log;\n\
         events {{ worker_connections 16384; }}\nworker_rlimit_nofile 32768;\n\
         http {{\naccess_log off;\nkeepalive_requests 100000000;\nsendfile on;\ntcp_nodelay on;\n{temporary}{servers}}}\n",
        prefix.display()
    );
    let file = prefix.join("nginx.conf");
    fs::write(&file, config).context("write nginx.conf")?;
    start(Command::new(find("nginx")?).arg("-p").arg(prefix).arg("-c").arg(file), port)
}

/// haproxy as a proxy: HTTP/1.1 in the clear.
pub(super) fn haproxy(folder: &Path, origin: u16, plain: u16) -> anyhow::Result<Server> {
    let config = format!(
        "global\n maxconn 4096\n nbthread 1\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n \
         timeout server 60s\n option splice-auto\nfrontend f\n bind 127.0.0.1:{plain}\n default_backend b\n\
         backend b\n http-reuse always\n server o 127.0.0.1:{origin}\n"
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, config).context("write haproxy.cfg")?;
    start(Command::new(find("haproxy")?).arg("-db").arg("-f").arg(file), plain)
}

fn find(program: &str) -> anyhow::Result<PathBuf> {
    host::find(program).with_context(|| format!("{program} is not installed"))
}

fn start(command: &mut Command, port: u16) -> anyhow::Result<Server> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut server = Server { child: child.with_context(|| format!("start {command:?}"))? };
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(status) = server.child.try_wait()? {
            bail!("{command:?} ended at once: {status}");
        }
        if begun.elapsed() > READY {
            bail!("{command:?} does not listen on {port} after {READY:?}");
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Ok(server)
}

/// The proxy whose plugins Shipote runs, where somebody has installed it (`cargo install vaned@0.10.8`).
pub(super) fn vaned(folder: &Path, origin: u16, plain: u16) -> anyhow::Result<Option<Server>> {
    let Some(program) = host::find("vaned") else { return Ok(None) };
    let config = folder.join("vaned");
    fs::create_dir_all(config.join("rules")).context("make vaned's folder")?;
    let rules = serde_json::json!({"order": 0, "rules": [{
        "name": "all", "listen": [format!("127.0.0.1:{plain}")],
        "terminate": {"type": "http_proxy", "upstream": format!("127.0.0.1:{origin}")},
    }]});
    fs::write(config.join("rules/all.json"), rules.to_string()).context("write vaned's rules")?;
    let mut command = Command::new(program);
    command.arg("-c").arg(&config).env("TOKIO_WORKER_THREADS", "1").env("VANE_MGMT_HTTP_PORT", "");
    command.env("VANE_ACME_DIR", config.join("acme")).env("XDG_RUNTIME_DIR", folder);
    start(&mut command, plain).map(Some)
}
