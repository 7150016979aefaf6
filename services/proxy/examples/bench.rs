//! The proxy beside nginx and haproxy, one worker each, on the loopback interface: `bench ROUNDS [SECONDS]`.
//!
//! Needs `nginx`, `haproxy` and `wrk` in PATH (Debian's packages do). An nginx serves the bodies; each round drives
//! every proxy in a shuffled order with one wrk thread and 32 connections, and takes the proxy's own CPU time from
//! /proc. Prints one JSON object: medians, and ratios to nginx's.
#![allow(missing_docs, clippy::disallowed_methods, reason = "an example")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

const ORIGIN: u16 = 18_080;
const PROXIES: [(&str, u16); 3] = [("shipote", 18_081), ("nginx", 18_082), ("haproxy", 18_083)];
const BODIES: [(&str, usize); 2] = [("small", 128), ("64k", 64 << 10)];

struct Running(Child, &'static str);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    per_second: f64,
    cpu_us: f64,
    p99_us: f64,
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let rounds: usize = args.next().context("usage: bench ROUNDS [SECONDS]")?.parse()?;
    let seconds: u64 = args.next().map_or(Ok(2), |s| s.parse())?;
    let dir = std::env::temp_dir().join(format!("shipote-bench-{}", std::process::id()));
    fs::create_dir_all(dir.join("www"))?;
    let result = run(&dir, rounds, seconds);
    fs::remove_dir_all(&dir)?;
    result
}

fn run(dir: &Path, rounds: usize, seconds: u64) -> anyhow::Result<()> {
    for (name, size) in BODIES {
        fs::write(dir.join("www").join(name), vec![b'x'; size])?;
    }
    let mut running = vec![start_nginx(dir, "origin", &origin(dir))?];
    running.push(start_nginx(dir, "nginx", &nginx())?);
    let config = dir.join("haproxy.cfg");
    fs::write(&config, haproxy())?;
    running.push(Running(quiet(Command::new("haproxy").arg("-db").arg("-f").arg(config))?, "haproxy"));
    fs::create_dir_all(dir.join("rules"))?;
    let rule = format!(
        "[[rules]]\nname = \"all\"\nlisten = [\"127.0.0.1:{}\"]\nterminate = {{ type = \"http_proxy\", upstream = \"127.0.0.1:{ORIGIN}\" }}\n",
        PROXIES[0].1
    );
    fs::write(dir.join("rules/all.toml"), rule)?;
    let serve = std::env::current_exe()?.with_file_name("serve");
    running.push(Running(quiet(Command::new(serve).arg(dir).arg("1"))?, "shipote"));
    wait_for(ORIGIN)?;
    for (_, port) in PROXIES {
        wait_for(port)?;
    }
    let mut samples: BTreeMap<(&str, &str), Vec<Sample>> = BTreeMap::new();
    let mut seed = u64::from(std::process::id()) | 1;
    for _ in 0..rounds {
        for (body, _) in BODIES {
            let mut order: Vec<_> = PROXIES.to_vec();
            for i in (1..order.len()).rev() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                order.swap(i, (seed >> 33) as usize % (i + 1));
            }
            for (name, port) in order {
                let process = running.iter().find(|r| r.1 == name).context("a proxy is missing")?;
                let sample = drive(process.0.id(), port, body, seconds).with_context(|| format!("drive {name}"))?;
                samples.entry((body, name)).or_default().push(sample);
            }
        }
    }
    report(&samples);
    Ok(())
}

fn quiet(command: &mut Command) -> anyhow::Result<Child> {
    let what = format!("{command:?}");
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().with_context(|| format!("start {what}"))
}

fn start_nginx(dir: &Path, name: &'static str, servers: &str) -> anyhow::Result<Running> {
    let prefix: PathBuf = dir.join(name);
    fs::create_dir_all(prefix.join("tmp"))?;
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|t| format!("{t}_temp_path {}/tmp/{t};\n", prefix.display()))
        .collect();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log {0}/error.log;\nevents {{ worker_connections 4096; }}\n\
         http {{\naccess_log off;\nkeepalive_requests 100000000;\nsendfile on;\ntcp_nodelay on;\n{temp}{servers}}}\n",
        prefix.display()
    );
    fs::write(prefix.join("nginx.conf"), config)?;
    let child = quiet(Command::new("nginx").arg("-p").arg(&prefix).arg("-c").arg(prefix.join("nginx.conf")))?;
    Ok(Running(child, name))
}

fn origin(dir: &Path) -> String {
    format!("server {{ listen 127.0.0.1:{ORIGIN} backlog=4096; root {}/www; }}\n", dir.display())
}

fn nginx() -> String {
    format!(
        "upstream origin {{ server 127.0.0.1:{ORIGIN}; keepalive 64; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{} backlog=4096; location / {{ proxy_pass http://origin; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_buffers 16 16k; }} }}\n",
        PROXIES[1].1
    )
}

fn haproxy() -> String {
    format!(
        "global\n maxconn 4096\n nbthread 1\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         \x20option splice-auto\nfrontend f\n bind 127.0.0.1:{}\n default_backend b\nbackend b\n http-reuse always\n server o 127.0.0.1:{ORIGIN}\n",
        PROXIES[2].1
    )
}

fn wait_for(port: u16) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > end {
            bail!("nothing listens on {port}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn drive(pid: u32, port: u16, body: &str, seconds: u64) -> anyhow::Result<Sample> {
    let before = cpu_ticks(pid)?;
    let output = Command::new("wrk")
        .args(["-t1", "-c32", "--latency", &format!("-d{seconds}s"), &format!("http://127.0.0.1:{port}/{body}")])
        .output()
        .context("run wrk")?;
    let cpu = (cpu_ticks(pid)? - before) as f64 / 100.0;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("wrk saw errors: {text}");
    }
    let field = |name: &str| text.lines().find_map(|l| l.trim().strip_prefix(name)).map(str::trim);
    let per_second: f64 = field("Requests/sec:").context("wrk printed no rate")?.parse()?;
    let requests: f64 = text
        .lines()
        .find_map(|l| l.trim().split_once(" requests in ").map(|(n, _)| n))
        .context("wrk printed no count")?
        .parse()?;
    let p99_us = micros(field("99%").context("wrk printed no p99")?)?;
    Ok(Sample { per_second, cpu_us: cpu * 1e6 / requests, p99_us })
}

fn micros(text: &str) -> anyhow::Result<f64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        other => bail!("wrk's unit {other:?} is not known"),
    };
    Ok(number.parse::<f64>()? * factor)
}

/// User and system time of a process, in hundredths of a second (proc(5): `utime`, `stime`).
fn cpu_ticks(pid: u32) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("a stat without a name")?.1;
    let mut fields = after.split_ascii_whitespace().skip(11);
    let mut next = || fields.next().context("a short stat").and_then(|f| Ok(f.parse::<u64>()?));
    Ok(next()? + next()?)
}

fn report(samples: &BTreeMap<(&str, &str), Vec<Sample>>) {
    let median = |body: &str, name: &str, pick: fn(&Sample) -> f64| {
        let mut all: Vec<f64> = samples.get(&(body, name)).into_iter().flatten().map(pick).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    println!("{{");
    for (body, _) in BODIES {
        for (name, _) in PROXIES {
            let value = |pick| (median(body, name, pick), median(body, name, pick) / median(body, "nginx", pick));
            let (rate, rate_ratio) = value(|s| s.per_second);
            let (cpu, cpu_ratio) = value(|s| s.cpu_us);
            let (p99, p99_ratio) = value(|s| s.p99_us);
            let comma = if body == "64k" && name == "haproxy" { "" } else { "," };
            println!(
                "\"{body}/{name}\": {{\"requests_per_second\": {rate:.0}, \"ratio\": {rate_ratio:.2}, \"cpu_us\": {cpu:.1}, \
                 \"cpu_ratio\": {cpu_ratio:.2}, \"p99_us\": {p99:.0}, \"p99_ratio\": {p99_ratio:.2}}}{comma}"
            );
        }
    }
    println!("}}");
}
