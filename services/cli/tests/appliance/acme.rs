//! Certificates by ACME: a real authority (Pebble) that looks through the proxy whether names lead here.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Appliance, binaries, eventually, free_port, policies, text};

/// An authority, and a name server for which all names lead to this host.
struct Authority {
    children: Vec<Child>,
    folder: tempfile::TempDir,
    directory: String,
    management: u16,
}

impl Authority {
    /// One that looks for proofs at this port of a name.
    fn start(http: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let CertifiedKey { cert, signing_key }: CertifiedKey<KeyPair> =
            generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(path("own.pem"), cert.pem()).unwrap();
        std::fs::write(path("own.key"), signing_key.serialize_pem()).unwrap();
        let (port, management, dns, dns_management) = (free_port(), free_port(), free_port(), free_port());
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"), "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": path("own.pem"), "privateKey": path("own.key"), "httpPort": http, "tlsPort": 1,
            "ocspResponderURL": "", "externalAccountBindingRequired": false}});
        std::fs::write(path("config.json"), config.to_string()).unwrap();
        let log = || std::fs::File::options().create(true).append(true).open(path("log")).unwrap();
        let mut names = Command::new("pebble-challtestsrv");
        names.args(["-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""]);
        names.args(["-dns01", &format!("127.0.0.1:{dns}"), "-management", &format!("127.0.0.1:{dns_management}")]);
        let mut pebble = Command::new("pebble");
        pebble.arg("-config").arg(path("config.json")).args(["-dnsserver", &format!("127.0.0.1:{dns}")]);
        // By default it waits before it looks; that it also refuses good nonces now and then stays on.
        pebble.env("PEBBLE_VA_NOSLEEP", "1");
        let start = |command: &mut Command| {
            let child = command.stdin(Stdio::null()).stdout(log()).stderr(log()).spawn();
            child.expect("pebble and pebble-challtestsrv are there (package pebble)")
        };
        let children = vec![start(&mut names), start(&mut pebble)];
        for listens in [port, management, dns] {
            eventually("the authority listens", || std::net::TcpStream::connect(("127.0.0.1", listens)).is_ok());
        }
        Authority { children, folder, directory: format!("https://127.0.0.1:{port}/dir"), management }
    }

    /// Its own certificate, as a file: what it is verified by.
    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("own.pem")
    }

    /// The certificate, as a file, that what it certifies is verified by.
    fn root(&self) -> PathBuf {
        let path = self.folder.path().join("root.pem");
        let url = format!("https://127.0.0.1:{}/roots/0", self.management);
        let root = Command::new("curl").args(["-sS", "--fail", "--insecure", &url]).output().unwrap();
        assert!(root.status.success(), "{}", text(&root.stderr));
        std::fs::write(&path, root.stdout).unwrap();
        path
    }

    fn section(&self, agreed: bool) -> String {
        let (directory, ca_file) = (&self.directory, self.ca_file());
        format!("[proxy.acme]\ndirectory = {directory:?}\nca_file = {ca_file:?}\nagree_to_terms = {agreed}\n")
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the authority's log:\n{}", std::fs::read_to_string(self.folder.path().join("log")).unwrap());
        }
        for child in &mut self.children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn configure(folder: &Path, section: &str) {
    std::fs::write(folder.join("shipote.toml"), section).unwrap();
}

/// An appliance whose proxy serves `http` in the clear, and `https` with a certificate for these names.
fn appliance(authority: &Authority, (http, https): (u16, u16), names: &[&str]) -> Appliance {
    let appliance = Appliance::start_with(|folder| configure(&folder.join("xdg/shipote"), &authority.section(true)));
    want(&appliance, (http, https), names);
    appliance
}

fn want(appliance: &Appliance, (http, https): (u16, u16), names: &[&str]) {
    let folder = appliance.config().join("proxy/rules");
    std::fs::create_dir_all(&folder).unwrap();
    let fixed = |text: &str| json!({"type": "static", "status": 200, "text": text});
    let rules = json!({"rules": [
        {"name": "plain", "listen": [format!("127.0.0.1:{http}")], "terminate": fixed("plain")},
        {"name": "sealed", "listen": [format!("127.0.0.1:{https}")], "tls": {"acme": names}, "terminate": fixed("sealed")},
    ]});
    std::fs::write(folder.join("site.json"), rules.to_string()).unwrap();
    appliance.ok(&["proxy", "reload"]);
}

/// `shipote-proxy acme`, as the unit runs it.
fn acme(appliance: &Appliance, words: &[&str]) -> Output {
    Command::new(binaries().join("shipote-proxy"))
        .arg("acme")
        .args(words)
        .env("SHIPOTE_BUS_ADDRESS", appliance.address())
        .env("SHIPOTE_POLICY_DIR", policies())
        .env("STATE_DIRECTORY", appliance.path("state/acme"))
        .env("CONFIGURATION_DIRECTORY", appliance.config())
        .output()
        .unwrap()
}

fn fetched(appliance: &Appliance, words: &[&str]) -> String {
    let output = acme(appliance, words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// The certificates by ACME, by name.
fn cert(appliance: &Appliance, name: &str) -> Value {
    let certs = appliance.json(&["proxy", "certs", "--json"]);
    let found = certs["certs"].as_array().unwrap().iter().find(|cert| cert["name"] == name);
    found.unwrap_or_else(|| panic!("{name} in {certs}")).clone()
}

/// What the site answers to who trusts the authority.
fn get(authority: &Authority, name: &str, port: u16) -> Result<String, String> {
    let output = Command::new("curl")
        .args(["-sS", "--fail", "--max-time", "60", "--cacert"])
        .arg(authority.root())
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1"), &format!("https://{name}:{port}/")])
        .output()
        .unwrap();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn a_certificate_is_fetched_served_and_renewed() {
    let ports = (free_port(), free_port());
    let authority = Authority::start(ports.0);
    let shipote = appliance(&authority, ports, &["a.example.test", "b.example.test"]);

    // not there yet: the rules hold, and who comes is refused
    let before = cert(&shipote, "b.example.test");
    assert_eq!((&before["not_after"], &before["fingerprint"]), (&json!(0), &json!("")), "{before}");
    assert!(get(&authority, "a.example.test", ports.1).is_err());
    let table = shipote.ok(&["proxy", "certs"]);
    assert!(table.contains("acme") && table.contains("not there yet"), "{table}");

    fetched(&shipote, &[]);
    for name in ["a.example.test", "b.example.test"] {
        assert_eq!(get(&authority, name, ports.1), Ok("sealed".to_owned()), "{name}");
    }
    let first = cert(&shipote, "a.example.test");
    let seconds = |key: &str| first[key].as_i64().unwrap();
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    assert!(now < seconds("renew_at") && seconds("renew_at") < seconds("not_after"), "{first}");
    assert_eq!(first["names"], json!(["a.example.test", "b.example.test"]));
    assert_eq!((&first["error"], &first["next_try"]), (&json!(""), &json!(0)));
    // what the authority looked for is forgotten
    let state = shipote.path("state");
    let looked = shipote.ok(&["audit", "--state", state.to_str().unwrap(), "--json", "--action", "proxy.certificate"]);
    let challenges: Vec<Value> = looked.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let of = |prefix: &str| {
        let object = |record: &&Value| record["object"].as_str().is_some_and(|o| o.starts_with(prefix));
        challenges.iter().filter(object).collect::<Vec<_>>()
    };
    assert_eq!(of("challenge ").len(), 4, "each of the two is answered and forgotten: {looked}");
    assert_eq!(of("certificate a.example.test").len(), 1, "{looked}");
    let token = of("challenge ")[0]["object"].as_str().unwrap().trim_start_matches("challenge ").to_owned();
    let again = Command::new("curl")
        .args(["-sS", &format!("http://127.0.0.1:{}/.well-known/acme-challenge/{token}", ports.0)])
        .output()
        .unwrap();
    assert_eq!(text(&again.stdout), "plain");

    // the account's key is its owner's only, and so are the files
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let accounts = || {
        let names = std::fs::read_dir(shipote.path("state/acme")).unwrap().map(|e| e.unwrap().path());
        names.filter(|p| p.to_string_lossy().contains("account-")).collect::<Vec<_>>()
    };
    let kept = accounts();
    assert_eq!(kept.len(), 1);
    assert_eq!(mode(kept[0].clone()), 0o600);
    assert_eq!(mode(shipote.path("state/acme/certs/a.example.test.pem")) & 0o027, 0);

    // nothing is due; what is asked for by name is fetched all the same, by the same account
    let fingerprint = |cert: &Value| cert["fingerprint"].as_str().unwrap().to_owned();
    assert!(fetched(&shipote, &[]).contains("not due"));
    assert_eq!(fingerprint(&cert(&shipote, "a.example.test")), fingerprint(&first));
    fetched(&shipote, &["--now", "a.example.test"]);
    let second = cert(&shipote, "b.example.test");
    assert_ne!(fingerprint(&second), fingerprint(&first));
    assert_eq!(accounts(), kept);
    let unknown = acme(&shipote, &["c.example.test"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("there are: a.example.test"), "{}", text(&unknown.stderr));

    // another name is a reason to fetch it; until then the one before is served
    want(&shipote, ports, &["a.example.test", "b.example.test", "c.example.test"]);
    assert_eq!(get(&authority, "a.example.test", ports.1), Ok("sealed".to_owned()));
    assert!(get(&authority, "c.example.test", ports.1).is_err());
    assert!(fetched(&shipote, &[]).contains("does not carry c.example.test"));
    assert_eq!(get(&authority, "c.example.test", ports.1), Ok("sealed".to_owned()));

    // it is there for the next instance
    kill_process(shipote.service("proxy"), Signal::KILL).unwrap();
    eventually("it is served again", || get(&authority, "c.example.test", ports.1) == Ok("sealed".to_owned()));
    assert_ne!(fingerprint(&cert(&shipote, "a.example.test")), fingerprint(&second));
}

#[test]
fn what_an_authority_refuses_is_said_and_not_asked_again_at_once() {
    let ports = (free_port(), free_port());
    // it looks where nobody listens
    let authority = Authority::start(free_port());
    let shipote = appliance(&authority, ports, &["a.example.test"]);
    let failed = |words: &[&str], why: &str| {
        let output = acme(&shipote, words);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
    };

    configure(&shipote.config(), &authority.section(false));
    failed(&[], "agree_to_terms = true");
    configure(&shipote.config(), &authority.section(true));
    assert!(fetched(&shipote, &[]).contains("not asked for again"), "the failure before counts");
    failed(&["--now"], "prove a.example.test");
    let status = cert(&shipote, "a.example.test");
    let error = status["error"].as_str().unwrap();
    assert!(error.contains("prove a.example.test") && error.contains("port 80"), "{status}");
    assert!(status["next_try"].as_i64().unwrap() > 0, "{status}");
    let listed = shipote.run(&["proxy", "certs"]);
    assert!(text(&listed.stderr).contains("not fetched: a.example.test: prove"), "{}", text(&listed.stderr));

    // a section that nobody knows, an authority that is not there, one that is not who it says
    configure(&shipote.config(), "[proxy.acme]\ndirectry = 'x'\n");
    failed(&["--now"], "directory");
    let gone = format!("[proxy.acme]\ndirectory = 'https://127.0.0.1:{}/dir'\nagree_to_terms = true\n", free_port());
    configure(&shipote.config(), &gone);
    failed(&["--now"], "onnection refused");
    configure(&shipote.config(), &authority.section(true).replace("ca_file", "# ca_file"));
    failed(&["--now"], "ertificate");
    // its account is damaged: no other one is made behind the user's back
    configure(&shipote.config(), &authority.section(true));
    let account = std::fs::read_dir(shipote.path("state/acme")).unwrap().map(|e| e.unwrap().path());
    let account = account.into_iter().find(|p| p.to_string_lossy().contains("account-")).unwrap();
    std::fs::OpenOptions::new().append(true).open(&account).unwrap().write_all(b"}").unwrap();
    failed(&["--now"], "remove it to make a new one");
    assert_eq!(acme(&shipote, &["--nwo"]).status.code(), Some(2));
}
