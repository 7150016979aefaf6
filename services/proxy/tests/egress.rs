//! The way out: three protocols, allow-lists for each client, addresses that are looked at.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use shipote_proxy::egress::{Access, Doors, Egress};
use support::{Upstream, free_port, until};

fn start() -> (tempfile::TempDir, Egress) {
    let dir = tempfile::tempdir().unwrap();
    let egress = Egress::start(&dir.path().join("egress"), 100, None).unwrap();
    (dir, egress)
}

fn list(entries: &[&str]) -> Vec<String> {
    entries.iter().map(|&e| e.to_owned()).collect()
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends `text`, ends the sending side, and reads all that comes.
fn say(socket: &Path, text: &str) -> String {
    let mut stream = connect(socket);
    stream.write_all(text.as_bytes()).unwrap();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn each_client_reaches_what_its_own_list_says() {
    let (_dir, egress) = start();
    let upstream = Upstream::raw_echo();
    let address = upstream.address();
    let web = egress.set("workspace:web", &list(&[&address]), &Access::default()).unwrap();
    let db = egress.set("machine:db", &list(&[]), &Access::default()).unwrap();
    let ask = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\nhello");
    let answer = say(&web, &ask);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello"), "{answer}");
    let answer = say(&db, &ask);
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains(&format!("allow \"{address}\"")), "{answer}");
    // Another list holds from the next connection on.
    assert_eq!(egress.set("machine:db", &list(&[&address]), &Access::default()).unwrap(), db);
    assert!(say(&db, &ask).starts_with("HTTP/1.1 200 "));
    let info = until(|| egress.list().into_iter().find(|e| e.client == "machine:db" && e.open == 0));
    assert_eq!((info.allowed, info.denied, info.denials.len()), (1, 1, 1));
    let flow = until(|| egress.flows(10).into_iter().find(|f| f.status == 403));
    assert_eq!(
        (flow.client.as_str(), flow.host.as_str(), flow.rule.as_str()),
        ("machine:db", address.as_str(), "egress")
    );
    assert!(egress.remove("machine:db") && !egress.remove("machine:db"));
    until(|| UnixStream::connect(&db).is_err().then_some(()));
}

#[test]
fn whole_addresses_go_out_without_what_is_meant_for_the_proxy() {
    let (_dir, egress) = start();
    let upstream = Upstream::echo();
    let socket = egress.set("workspace:web", &list(&[&upstream.address()]), &Access::default()).unwrap();
    let answer = say(
        &socket,
        &format!(
            "POST http://{0}/x?y HTTP/1.1\r\nHost: {0}\r\nProxy-Authorization: secret\r\nContent-Length: 2\r\n\r\nhi",
            upstream.address()
        ),
    );
    assert!(answer.contains("POST /x?y HTTP/1.1") && answer.ends_with("hi"), "{answer}");
    assert!(!answer.contains("secret") && answer.contains("Connection: close"), "{answer}");
    for (text, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://169.254.169.254/latest HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", 403),
        ("rubbish\r\n\r\n", 400),
    ] {
        assert!(say(&socket, text).starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    }
}

#[test]
fn names_that_lead_home_are_refused() {
    let (_dir, egress) = start();
    let upstream = Upstream::raw_echo();
    let port = upstream.address().rsplit(':').next().unwrap().to_owned();
    let (open, meant) =
        (list(&["*:*"]), list(&["localhost:*", &format!("127.0.0.0/8:{port}"), &format!("[::1]:{port}")]));
    let socket = egress.set("workspace:web", &open, &Access::default()).unwrap();
    for host in ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "127.1"] {
        let answer = say(&socket, &format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n"));
        assert!(!answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    assert!(egress.list()[0].denials.iter().any(|(_, why)| why.contains("loopback")));
    egress.set("workspace:web", &meant, &Access::default()).unwrap();
    let answer = say(&socket, &format!("CONNECT localhost:{port} HTTP/1.1\r\n\r\nhello"));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
}

#[test]
fn socks_is_spoken_by_address_and_by_name() {
    let (_dir, egress) = start();
    let upstream = Upstream::raw_echo();
    let port: u16 = upstream.address().rsplit(':').next().unwrap().parse().unwrap();
    let socket = egress.set("workspace:web", &list(&[&format!("127.0.0.1:{port}")]), &Access::default()).unwrap();
    let mut stream = connect(&socket);
    let mut bytes = [0; 2];
    stream.write_all(&[5, 2, 0, 2]).unwrap();
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [5, 0]);
    stream.write_all(&[&[5, 1, 0, 1, 127, 0, 0, 1][..], &port.to_be_bytes(), b"hello"].concat()).unwrap();
    let mut bytes = [0; 15];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!((bytes[1], &bytes[10..]), (0, &b"hello"[..]));
    // By a name that is not on the list.
    let mut stream = connect(&socket);
    stream.write_all(&[&[5, 1, 0, 5, 1, 0, 3, 9][..], b"localhost", &port.to_be_bytes()].concat()).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all[..4], [5, 0, 5, 2], "not allowed by the rules");
    assert!(egress.list()[0].denials[0].1.contains("localhost"));
}

#[test]
fn curl_goes_out_by_each_protocol() {
    let (_dir, egress) = start();
    let upstream = Upstream::echo();
    let listen = format!("127.0.0.1:{}", free_port());
    egress
        .set(
            "session:ci",
            &list(&[&upstream.address()]),
            &Access { listen: Some(listen.parse().unwrap()), users: vec![] },
        )
        .unwrap();
    for proxy in [format!("http://{listen}"), format!("socks5h://{listen}")] {
        for tunnel in [false, true] {
            let mut curl = Command::new("curl");
            curl.args(["-s", "--max-time", "20", "--noproxy", "", "-x", &proxy]);
            if tunnel && proxy.starts_with("http") {
                curl.arg("-p");
            }
            let Ok(out) = curl.arg(format!("http://{}/x", upstream.address())).output() else { return };
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(text.starts_with("GET /x HTTP/1.1"), "{proxy} {tunnel}: {text:?}");
        }
    }
}

#[test]
fn clients_and_lists_that_are_none_are_refused() {
    let (_dir, egress) = start();
    for name in ["web", "workspace:", "workspace:../x", "workspace:a/b", "user:a", "workspace:.a"] {
        assert!(egress.set(name, &[], &Access::default()).is_err(), "{name}");
    }
    assert!(
        egress
            .set("workspace:a", &list(&["http://a/"]), &Access::default())
            .unwrap_err()
            .to_string()
            .contains("http://a/")
    );
    assert!(egress.list().is_empty());
}

#[test]
fn a_socket_is_for_its_users_alone() {
    use std::os::unix::process::CommandExt as _;

    let (dir, egress) = start();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    if !rustix::process::getuid().is_root() {
        eprintln!("only root can be another user");
        return;
    }
    let upstream = Upstream::raw_echo();
    let address = upstream.address();
    let ask = |uid: u32, socket: &Path| {
        let script = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die; \
            print $s \"CONNECT $ARGV[1] HTTP/1.1\\r\\n\\r\\n\"; $s->flush; my $line = <$s>; print $line // 'closed'";
        let perl = Command::new("perl").args(["-e", script]).arg(socket).arg(&address).uid(uid).output().unwrap();
        String::from_utf8_lossy(&perl.stdout).into_owned()
    };
    let access = Access { users: vec![4242], ..Access::default() };
    let socket = egress.set("session:ci", &list(&[&address]), &access).unwrap();
    assert!(ask(4242, &socket).starts_with("HTTP/1.1 200"));
    assert!(!ask(4243, &socket).contains("200"));
    assert!(egress.denials()[0].reason.contains("uid 4243"), "{:?}", egress.denials());
}

#[test]
fn doors_are_served_by_their_own_list_and_cannot_be_taken_over() {
    let (_dir, egress) = start();
    let upstream = Upstream::raw_echo();
    let doors = || {
        let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let names = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = proxy.local_addr().unwrap();
        (Doors { proxy: proxy.into(), names: names.into() }, at)
    };
    let ask = |at: std::net::SocketAddr| {
        let mut stream = std::net::TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(format!("CONNECT {} HTTP/1.1\r\n\r\n", upstream.address()).as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let (first, at) = doors();
    egress.adopt("workspace:web", "1", first, &list(&[&upstream.address()]), false).unwrap();
    assert_eq!(ask(at), "HTTP/1.1 200");
    assert!(egress.change("1", &[], false).unwrap() && !egress.change("2", &[], false).unwrap());
    assert_eq!(ask(at), "HTTP/1.1 403");
    let error = egress.set("workspace:web", &list(&["*:*"]), &Access::default()).unwrap_err();
    assert!(error.to_string().contains("shipote egress allow"), "{error}");
    // One of the same name that was made anew
    let (second, again) = doors();
    egress.adopt("workspace:web", "2", second, &list(&[&upstream.address()]), false).unwrap();
    assert_eq!(ask(again), "HTTP/1.1 200");
    assert_eq!(egress.adopted(), [("workspace:web".to_owned(), "2".to_owned())]);
    assert!(egress.denials().iter().any(|d| d.client == "workspace:web"), "denials outlive their client");
}

/// A query for the address of a name on a connection of its own: code, and how many addresses.
fn query(socket: &Path, name: &str) -> (u8, u8) {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    let reply = answered(socket, &message).unwrap();
    assert_eq!(reply[..2], [0, 7]);
    (reply[3] & 15, reply[7])
}

/// What comes back for a message with its length before it; an error where nothing does.
fn answered(socket: &Path, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes())?;
    stream.write_all(message)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

#[test]
fn a_machines_doors_are_unix_sockets_and_its_queries_come_one_a_connection() {
    let (dir, egress) = start();
    let upstream = Upstream::raw_echo();
    let (way, names) = (dir.path().join("way"), dir.path().join("names"));
    let bind = |path: &Path| std::os::unix::net::UnixListener::bind(path).unwrap();
    let doors = Doors { proxy: bind(&way).into(), names: bind(&names).into() };
    let allow = list(&[&upstream.address(), "localhost:80", "127.0.0.1:80"]);
    egress.adopt("machine:m", "7", doors, &allow, false).unwrap();
    let ask = |place: &str| {
        let mut stream = connect(&way);
        stream.write_all(format!("CONNECT {place} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        let mut answer = [0; 400];
        let n = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    assert!(ask(&upstream.address()).starts_with("HTTP/1.1 200"));
    let refused = ask("169.254.169.254:80");
    let reason = "x-reason: machine:m may not go there: 169.254.169.254 is not on the list of allowed hosts";
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains(reason), "{refused}");
    assert!(refused.contains("shipote egress allow machine:m 169.254.169.254:80"), "{refused}");

    // One that says nothing keeps no other from its answer.
    let silent = UnixStream::connect(&names).unwrap();
    assert_eq!(query(&names, "localhost"), (0, 1));
    assert_eq!(query(&names, "example.org"), (3, 0), "what is on no list does not exist");
    assert_eq!(answered(&names, &[0xff; 40]).unwrap()[3] & 15, 2, "nonsense is answered, too");
    assert!(answered(&names, &[0; 4000]).is_err(), "and what is too long is not");
    drop(silent);
    let info = &egress.list()[0];
    assert_eq!((info.client.as_str(), info.allowed, info.denied), ("machine:m", 1, 2), "{info:?}");

    // Taken away, nobody answers.
    assert!(egress.remove("machine:m"));
    until(|| UnixStream::connect(&way).err());
    assert!(answered(&names, &[0; 12]).is_err());
}
