//! A machine's way out: HTTP CONNECT over vsock, to what its spec allows and to nothing else.
//!
//! What a guest sends is parsed in a process of its own for each machine, which may read `/etc`, resolve names and
//! connect, and nothing else: it has no file to write, no capability, no other machine. It ends with the service; the
//! next one starts its own.
//!
//! Not for: plain HTTP (only CONNECT is spoken), and the policy of anything but machines.

mod names;
mod rules;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::ports;
use shipote_confinement::{CapabilitySet, Domain, Handled, PathAccess, drop_capabilities};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::vmm::process;
pub use rules::{Addresses, RULES_MAX, Rule, Target, permit, permit_name};

/// First argument of a process that is a machine's way out; then come its name and the rules.
pub const ARGUMENT: &str = "egress";
/// Connections of one machine at once.
const CONNECTIONS: usize = 256;
/// Longest request head, and how long it may take.
const HEAD_MAX: usize = 8 * 1024;
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long resolving and connecting may take.
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// Between two starts of the process, should it end.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps a machine's way out open until dropped.
pub(crate) async fn keep(program: PathBuf, name: String, folder: PathBuf, rules: Vec<String>) {
    loop {
        let ended = async {
            let way: OwnedFd = crate::launch::listener(&folder, ports::EGRESS)?.into_std()?.into();
            let names: OwnedFd = crate::launch::listener(&folder, ports::DNS_FILTER)?.into_std()?.into();
            let mut command = Command::new(&program);
            command.arg(ARGUMENT).arg(&name).args(&rules).stdin(Stdio::from(way)).stdout(Stdio::from(names));
            process::spawn(&mut command)?.wait().await
        };
        match ended.await {
            Ok(status) => tracing::warn!("machine {name}: its way out ended ({status}) and is opened anew"),
            Err(error) => tracing::error!("machine {name}: open its way out: {error}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Runs such a process; its standard input is the socket that the way out is listened for on, its standard output the one
/// for names.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(2);
    let name = arguments.next().unwrap_or_default();
    match run(&name, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shipote-machines: the way out of machine {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str, rules: impl Iterator<Item = String>) -> std::io::Result<()> {
    let other = std::io::Error::other::<String>;
    let rules: Vec<Rule> = rules.map(|rule| Rule::parse(&rule)).collect::<Result<_, _>>().map_err(other)?;
    confine().map_err(|error| other(error.to_string()))?;
    let listener = |fd: OwnedFd| {
        let listener = std::os::unix::net::UnixListener::from(fd);
        listener.set_nonblocking(true).map(|()| listener)
    };
    let way_in = listener(std::io::stdin().as_fd().try_clone_to_owned()?)?;
    let names_in = listener(std::io::stdout().as_fd().try_clone_to_owned()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    let rules = Arc::new(rules);
    let way = Arc::new(Way { name: name.to_owned(), rules: Arc::clone(&rules) });
    runtime.block_on(async {
        tokio::spawn(names::serve(UnixListener::from_std(names_in)?, rules));
        serve(UnixListener::from_std(way_in)?, way).await
    })
}

/// Name resolution reads `/etc` and loads libraries; nothing is written, nothing listened on.
fn confine() -> Result<(), shipote_confinement::Error> {
    drop_capabilities(CapabilitySet::empty())?;
    let mut domain = Domain::new(Handled { connect_tcp: false, ..Handled::ALL })?;
    for (path, access) in [
        ("/etc", PathAccess::Read),
        ("/run/systemd/resolve", PathAccess::Read),
        ("/usr", PathAccess::Execute),
        ("/lib", PathAccess::Execute),
        ("/lib64", PathAccess::Execute),
        ("/nix/store", PathAccess::Execute),
    ] {
        if Path::new(path).exists() {
            domain = domain.allow_path(Path::new(path), access)?;
        }
    }
    domain.restrict().map(drop)
}

struct Way {
    name: String,
    rules: Arc<Vec<Rule>>,
}

async fn serve(listener: UnixListener, way: Arc<Way>) -> std::io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Beyond the limit guests wait in the socket's queue.
        let permit = Arc::clone(&room).acquire_owned().await.map_err(std::io::Error::other)?;
        let Ok((mut guest, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let way = Arc::clone(&way);
        tokio::spawn(async move {
            match way.open(&mut guest).await {
                Ok(mut outside) => {
                    // Either side may break off, which ends both.
                    let _ = tokio::io::copy_bidirectional(&mut guest, &mut outside).await;
                }
                Err((status, reason)) => {
                    eprintln!("shipote-machines: machine {}: egress {reason}", way.name);
                    let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nx-reason: {reason}\r\n\r\n");
                    let _ = tokio::time::timeout(HEAD_TIME, guest.write_all(text.as_bytes())).await;
                }
            }
            drop(permit);
        });
    }
}

impl Way {
    /// Reads the request and connects; the status line and reason of a refusal otherwise.
    async fn open(&self, guest: &mut UnixStream) -> Result<TcpStream, (&'static str, String)> {
        let bad = |reason: &str| ("400 Bad Request", format!("refused: {reason}"));
        let head = tokio::time::timeout(HEAD_TIME, head(guest)).await;
        let head = head.map_err(|_| bad("the request does not come to its end"))?.map_err(|reason| bad(&reason))?;
        let target = target(&head).map_err(|reason| bad(&reason))?;
        let Some(addresses) = permit(&self.rules, &target) else {
            let Target { host, port } = &target;
            let reason = format!("to {host}:{port} denied: no rule of the machine allows it");
            return Err(("403 Forbidden", reason));
        };
        let connected = tokio::time::timeout(CONNECT_TIME, connect(&target, addresses)).await;
        let failed =
            |reason: String| ("502 Bad Gateway", format!("to {}:{} failed: {reason}", target.host, target.port));
        let outside = connected.map_err(|_| failed("no answer".to_owned()))?.map_err(failed)?;
        guest.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.map_err(|error| bad(&error.to_string()))?;
        Ok(outside)
    }
}

/// Up to the empty line and not a byte more: the rest is not ours.
async fn head(guest: &mut UnixStream) -> Result<Vec<u8>, String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_MAX {
            return Err(format!("a request head of over {HEAD_MAX} bytes"));
        }
        head.push(guest.read_u8().await.map_err(|error| error.to_string())?);
    }
    Ok(head)
}

fn target(head: &[u8]) -> Result<Target, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err("half a request".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    if request.method != Some("CONNECT") {
        return Err("only CONNECT is spoken here".to_owned());
    }
    Target::parse(request.path.unwrap_or_default()).ok_or_else(|| "no HOST:PORT".to_owned())
}

async fn connect(target: &Target, addresses: Addresses) -> Result<TcpStream, String> {
    let found =
        tokio::net::lookup_host((target.host.as_str(), target.port)).await.map_err(|error| error.to_string())?;
    let mut last = "its addresses are none that the rule means".to_owned();
    // What was looked at is what is connected to: no second look-up in between.
    for address in found.filter(|address| addresses.take(address.ip())) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connect_is_understood() {
        let parsed = target(b"CONNECT a.org:443 HTTP/1.1\r\nhost: a.org:443\r\n\r\n");
        assert_eq!(parsed, Ok(Target { host: "a.org".into(), port: 443 }));
        for bad in [
            &b"GET http://a.org/ HTTP/1.1\r\n\r\n"[..],
            b"CONNECT a.org HTTP/1.1\r\n\r\n",
            b"CONNECT  HTTP/1.1\r\n\r\n",
            b"\0\0\0\0\r\n\r\n",
            b"\r\n\r\n",
        ] {
            assert!(target(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    /// Guest, way and a server on loopback.
    async fn through(rules: &[String], request: impl Fn(u16) -> String) -> String {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                let _ = stream.write_all(b"hello").await;
            }
        });
        let rules = rules.iter().map(|rule| Rule::parse(&rule.replace("PORT", &port.to_string())).unwrap()).collect();
        let way = Arc::new(Way { name: "test".into(), rules: Arc::new(rules) });
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("way")).unwrap();
        tokio::spawn(serve(listener, way));
        let mut guest = UnixStream::connect(dir.path().join("way")).await.unwrap();
        // A refusal may come, and the connection end, before all of it was sent.
        let _ = guest.write_all(request(port).as_bytes()).await;
        let _ = guest.shutdown().await;
        let mut text = Vec::new();
        let _ = guest.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn what_is_allowed_is_reached_and_the_rest_is_denied_with_a_reason() {
        let request = |port: u16| format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n");
        let reached = through(&["127.0.0.1:PORT".to_owned()], request).await;
        assert!(reached.starts_with("HTTP/1.1 200") && reached.ends_with("hello"), "{reached}");
        let denied = through(&["example.org:443".to_owned()], request).await;
        assert!(denied.starts_with("HTTP/1.1 403") && denied.contains("no rule"), "{denied}");
        // A name that leads to this host, which the rule does not mean.
        let named = |port: u16| format!("CONNECT localhost.localdomain:{port} HTTP/1.1\r\n\r\n");
        let named = through(&["localhost.localdomain:PORT".to_owned(), "*:*".to_owned()], named).await;
        assert!(named.starts_with("HTTP/1.1 502"), "{named}");
        let endless = through(&["*:*".to_owned()], |_| "x".repeat(3 * HEAD_MAX)).await;
        assert!(endless.is_empty() || endless.starts_with("HTTP/1.1 400"), "{endless}");
    }
}
