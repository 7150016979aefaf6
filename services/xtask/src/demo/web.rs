//! The part of the demo about traffic: a web server in a workspace that sleeps, behind the proxy with a plugin that
//! authenticates, and what a workspace may not reach.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use shipote_plugin_abi::fixtures::Fixture;

use super::{say, show};
use crate::appliance::Appliance;

/// Port in the workspace.
const PORT: &str = "8080";
const PAGE: &str = "hello from a workspace\n";
/// What the plugin asks for.
const TOKEN: &str = "Bearer open-sesame";
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests that are made while the plugin is upgraded, half of them without the token.
const REQUESTS: usize = 300;

/// Where the proxy of the demo listens.
pub(super) struct Site {
    port: u16,
}

impl Site {
    /// Writes the rule into a configuration folder.
    pub(super) fn configure(config: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?.port();
        // A deadline is wall time: on a machine that is busy a short one refuses who has the token.
        let plugins = config.join("shipote/plugins");
        std::fs::create_dir_all(&plugins).context("make a folder for the policy")?;
        std::fs::write(plugins.join("policy.toml"), "[plugins.guard]\ndeadline_ms = 10000\n")
            .context("write the policy")?;
        let rules = config.join("shipote/proxy/rules");
        std::fs::create_dir_all(&rules).context("make a folder for rules")?;
        let text = format!(
            "[[rules]]\nname = \"web\"\nlisten = [\"127.0.0.1:{port}\"]\n\
             middleware_chain = [{{ use = \"guard:l7-request\" }}]\n\
             terminate = {{ type = \"http_proxy\", upstream = \"workspace:web:{PORT}\" }}\n"
        );
        std::fs::write(rules.join("web.toml"), text).context("write a rule")?;
        Ok(Self { port })
    }

    /// The story.
    pub(super) fn tell(&self, appliance: &Appliance, demo: &Path) -> anyhow::Result<()> {
        say("A web server in a workspace without a network, behind the proxy; a plugin lets in who has the token");
        let folder = tempfile::tempdir().context("make a folder for plugins")?;
        for version in ["1.0.0", "1.1.0"] {
            let file = folder.path().join(format!("guard-{version}.wasm"));
            let refusal = format!("no token, says guard {version}\n");
            let guard = Fixture::guarding("guard", version, ("authorization", TOKEN), &refusal);
            std::fs::write(&file, guard.component())?;
            let file = file.display().to_string();
            show(appliance, &["plugin", "add", "--no-activate", &file])?;
        }
        show(appliance, &["proxy", "reload"])?;
        show(appliance, &["workspace", "create", "web", "--publish", PORT, "--idle", "1"])?;
        let server = std::fs::read_to_string(demo.join("web.pl")).context("read the demo's server")?;
        println!("$ shipote run -w web --detach -- perl -e \"$(cat web.pl)\" {PORT} …");
        let words = ["run", "-w", "web", "--detach", "--", "perl", "-e", &server, PORT, PAGE];
        super::check(appliance.shipote(&words).status(), "the web server")?;
        until("the page is served", || Ok(self.get(true).is_ok_and(|(status, _)| status == 200)))?;
        let (status, answer) = self.get(true)?;
        println!(
            "\n$ curl -i -H 'Authorization: {TOKEN}' http://127.0.0.1:{}/    ({status})\n{}",
            self.port,
            answer.trim_end()
        );

        say(
            "Nobody asks: the workspace sleeps. Who has no token does not wake it; the first who has does, and is held meanwhile",
        );
        until("the workspace sleeps", || Ok(workspace(appliance)?["state"] == "sleeping"))?;
        show(appliance, &["workspace", "list"])?;
        let (status, answer) = self.get(false)?;
        println!("\n$ curl http://127.0.0.1:{}/    ({status})\n{}", self.port, body(&answer));
        let asleep = workspace(appliance)?["state"] == "sleeping";
        if status != 401 || !asleep {
            bail!("a request without the token was answered by {status}, and the workspace sleeps: {asleep}");
        }
        let (status, _) = self.get(true)?;
        let woken = workspace(appliance)?;
        println!("$ curl -H 'Authorization: …' …    ({status}); waking it took {} µs", woken["wake_usec"]);

        say("The plugin is upgraded while requests come");
        let upgrade = self.port;
        let (failed, refusals) = std::thread::scope(|scope| {
            let asking = scope.spawn(move || load(upgrade));
            show(appliance, &["plugin", "activate", "guard@1.1.0"])?;
            asking.join().map_err(|_| anyhow::anyhow!("the requests' thread panicked"))
        })?;
        println!("{REQUESTS} requests, {failed} not as they should be; refusals in order: {}", refusals.join("; "));
        if failed > 0 {
            bail!("{failed} of {REQUESTS} requests failed while the plugin was upgraded");
        }
        until("the new version refuses", || Ok(self.get(false)?.1.contains("guard 1.1.0")))?;
        show(appliance, &["proxy", "pools"])?;

        say("A workspace reaches the hosts of its list through the proxy, and nothing else");
        let ask = std::fs::read_to_string(demo.join("ask.pl")).context("read the demo's client")?;
        println!("$ shipote run --egress example.com -- perl -e \"$(cat ask.pl)\" http://169.254.169.254/");
        let output = appliance
            .shipote(&["run", "--egress", "example.com", "--", "perl", "-e", &ask, "http://169.254.169.254/"])
            .output()?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{}", answer.trim_end());
        if !answer.starts_with("HTTP/1.1 403") {
            bail!("the metadata address was not refused: {answer}{}", String::from_utf8_lossy(&output.stderr));
        }
        show(appliance, &["egress", "list", "--denials"])?;
        show(appliance, &["workspace", "stop", "web"])
    }

    fn get(&self, token: bool) -> anyhow::Result<(u16, String)> {
        get(self.port, token)
    }
}

/// Requests one after the other, with the token and without; how many were not answered as they should be, and the
/// refusals as they changed.
fn load(port: u16) -> (usize, Vec<String>) {
    let (mut failed, mut refusals) = (0, Vec::<String>::new());
    for n in 0..REQUESTS {
        match get(port, n % 2 == 0) {
            Ok((200, _)) if n % 2 == 0 => {}
            Ok((401, answer)) if n % 2 == 1 => {
                let refusal = body(&answer);
                if refusals.last().is_none_or(|last| last != refusal) {
                    refusals.push(refusal.to_owned());
                }
            }
            _ => failed += 1,
        }
    }
    (failed, refusals)
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim_end())
}

/// Status and whole text of an answer.
fn get(port: u16, token: bool) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect to the proxy")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let line = if token { format!("Authorization: {TOKEN}\r\n") } else { String::new() };
    let request = format!("GET / HTTP/1.1\r\nHost: web\r\n{line}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).context("an answer without a status")?;
    Ok((status, answer))
}

fn workspace(appliance: &Appliance) -> anyhow::Result<serde_json::Value> {
    let output = appliance.shipote(&["workspace", "list", "--json"]).output()?;
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).context("read the list of workspaces")?;
    let all = list["workspaces"].as_array().context("a list without workspaces")?;
    all.iter().find(|one| one["name"] == "web").cloned().context("the workspace is gone")
}

fn until(what: &str, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        if begun.elapsed() > PATIENCE {
            bail!("it never came about that {what}");
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    Ok(())
}
