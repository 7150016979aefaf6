//! `proxy`: the proxy of an appliance beside nginx, haproxy and the proxy whose plugins it runs, one worker each, on
//! loopback; its memory and its reloads by themselves.
//!
//! A unit of work is a request: its wall time is what one of 32 connections sees of the throughput (seconds by
//! requests), its CPU time that of the proxy's process alone, proc_pid_stat(5).

mod load;
mod ours;
mod rivals;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use self::load::Load;
use self::ours::{Ours, Ports};
use super::accounting::{resident, tree};
use super::harness::{Block, Claim, Figure, Row, Series, budget, interleave};
use super::{Outcome, Setting};
use crate::appliance;

/// How long a contender is driven in a turn.
const SECONDS: u32 = 1;
/// Turns for each round that was asked for, and where contenders lie close together.
const TURNS: u32 = 2;
const CLOSE_TURNS: u32 = 4;
/// Headers of a request for the plugin.
const HEADERS: usize = 20;
/// Connections that are open and idle while memory is looked at.
const IDLE: usize = 2000;
/// Rules of the reload under load.
const RULES: usize = 1000;
/// Time from one reload to the next.
const EVERY: Duration = Duration::from_millis(200);

const REST: f64 = 16.0 * 1024.0 * 1024.0;
const EACH: f64 = 8.0 * 1024.0;
const PLUGIN: f64 = 5e-6;

const NGINX: &str = "nginx, one worker";
const HAPROXY: &str = "haproxy, one thread";
const VANED: &str = "vaned 0.10.8, one worker";

const fn claim(id: &'static str, what: &'static str, against: &'static str, figure: Figure, target: f64) -> Claim {
    Claim { id, what, against, figure, target }
}

const SMALL: &str = "HTTP/1.1 kept alive, 128 bytes, 32 connections, requests/s";
const SMALL_CPU: &str = "the same, CPU of the proxy per request";
const LARGE: &str = "HTTP/1.1 kept alive, 64 KiB, requests/s";
const LARGE_CPU: &str = "the same, CPU of the proxy per request";

/// Contender that a claim is about, beside contender 0, which is ours.
const SMALL_CLAIMS: [(usize, Claim); 6] = [
    (1, claim("proxy-small", SMALL, NGINX, Figure::Throughput, 1.0)),
    (2, claim("proxy-small-haproxy", SMALL, HAPROXY, Figure::Throughput, 1.0)),
    (3, claim("proxy-small-vaned", SMALL, VANED, Figure::Throughput, 1.0)),
    (1, claim("proxy-small-cpu", SMALL_CPU, NGINX, Figure::Cpu, 1.0)),
    (2, claim("proxy-small-cpu-haproxy", SMALL_CPU, HAPROXY, Figure::Cpu, 1.0)),
    (3, claim("proxy-small-cpu-vaned", SMALL_CPU, VANED, Figure::Cpu, 1.0)),
];
const TAIL: Claim = claim("proxy-p99", "HTTP/1.1, 128 bytes, 99th of 100 latencies", HAPROXY, Figure::Time, 1.0);
const LARGE_CLAIMS: [(usize, Claim); 4] = [
    (1, claim("proxy-large-nginx", LARGE, NGINX, Figure::Throughput, 1.0)),
    (2, claim("proxy-large", LARGE, HAPROXY, Figure::Throughput, 1.0)),
    (1, claim("proxy-large-cpu-nginx", LARGE_CPU, NGINX, Figure::Cpu, 1.0)),
    (2, claim("proxy-large-cpu", LARGE_CPU, HAPROXY, Figure::Cpu, 1.0)),
];
const HANDSHAKE: Claim =
    claim("proxy-tls", "TLS 1.3 handshakes and a request each, per second", NGINX, Figure::Throughput, 1.0);
const HANDSHAKE_CPU: Claim = claim("proxy-tls-cpu", "the same, CPU of the proxy", NGINX, Figure::Cpu, 1.0);
const HTTP2: Claim =
    claim("proxy-http2", "HTTP/2 over TLS, 8 connections of 16 streams, requests/s", NGINX, Figure::Throughput, 1.0);
const HTTP2_CPU: Claim = claim("proxy-http2-cpu", "the same, CPU of the proxy", NGINX, Figure::Cpu, 1.0);

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    rivals::require()?;
    let binaries = match &setting.binaries {
        Some(folder) => folder.clone(),
        None => appliance::build_shipped(&["shipote", "shipote-plugins", "shipote-proxy"])?,
    };
    let folder = tempfile::tempdir().context("make a folder for the servers")?;
    let [origin, plain, plugin, tls, nginx_plain, nginx_tls, haproxy_plain, vaned_plain] = rivals::ports::<8>()?;
    let certificate = rivals::certificate(&folder.path().join(ours::CONFIG))?;
    let _origin = rivals::origin(folder.path(), origin)?;
    let ports = Ports { origin, plain, plugin, tls };
    let ours = Ours::start(folder.path(), binaries, ports, &certificate)?;
    // before anything was asked of it
    let rest = resident(ours.pid)?;
    let nginx = rivals::nginx(folder.path(), origin, nginx_plain, nginx_tls, &certificate)?;
    let haproxy = rivals::haproxy(folder.path(), origin, haproxy_plain)?;
    let vaned = rivals::vaned(folder.path(), origin, vaned_plain)?;
    let mut notes = Vec::new();
    let mut contenders = vec![(ours.pid, plain), (nginx.pid(), nginx_plain), (haproxy.pid(), haproxy_plain)];
    match &vaned {
        Some(vaned) => contenders.push((vaned.pid(), vaned_plain)),
        None => notes.push("vaned is not here; `cargo install vaned@0.10.8` brings it".to_owned()),
    }

    let mut rows = Vec::new();
    let (small, tails) =
        drive(setting.rounds * CLOSE_TURNS, &contenders, |port| load::wrk(&http(port, "small"), SECONDS, &[]))?;
    rows.extend(judge(&SMALL_CLAIMS, &small)?);
    rows.push(TAIL.judge(&small[0].with_walls(tails[0].clone()), &small[2].with_walls(tails[2].clone()))?);
    let (large, _) =
        drive(setting.rounds * TURNS, &contenders[..3], |port| load::wrk(&http(port, "large"), SECONDS, &[]))?;
    rows.extend(judge(&LARGE_CLAIMS, &large)?);

    let both = [(ours.pid, tls), (nginx.pid(), nginx_tls)];
    let shut = |port| load::wrk(&https(port, "small"), SECONDS, &["Connection: close"]);
    let (handshakes, _) = drive(setting.rounds * TURNS, &both, shut)?;
    rows.extend(judge(&[(1, HANDSHAKE), (1, HANDSHAKE_CPU)], &handshakes)?);
    let (http2, _) = drive(setting.rounds * TURNS, &both, |port| load::h2load(&https(port, "small"), SECONDS))?;
    rows.extend(judge(&[(1, HTTP2), (1, HTTP2_CPU)], &http2)?);

    let headers: Vec<String> = (0..HEADERS).map(|n| format!("x-header-{n}: value {n}")).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let call = |port| load::wrk(&http(port, "small"), SECONDS, &headers);
    let turns = setting.rounds * CLOSE_TURNS;
    let (called, _) = drive(turns, &[(ours.pid, plugin), (ours.pid, plain)], call)?;
    let added = called[0].cpu_beyond(&called[1]);
    notes.push(format!("a stateless l7-request plugin adds {:.1} µs of CPU to a request of 20 headers", added * 1e6));
    let what = "CPU that a stateless l7-request plugin adds to a request of 20 headers";
    rows.push(budget("proxy-plugin", what, "5 µs", added / PLUGIN, turns as usize));

    rows.push(budget("proxy-memory", "memory of the proxy at rest", "16 MiB", rest as f64 / REST, 1));
    let each = idle_connection(&ours, plain)?;
    rows.push(budget("proxy-idle", "memory that an idle connection adds", "8 KiB", each / EACH, IDLE));
    notes.push(format!(
        "{:.1} MiB at rest, {:.1} KiB for each idle connection",
        rest as f64 / 1_048_576.0,
        each / 1024.0
    ));
    rows.push(reload(setting, &ours, plain)?);
    ours.appliance.stop()?;
    Ok(Outcome { rows, notes })
}

fn http(port: u16, body: &str) -> String {
    format!("http://127.0.0.1:{port}/{body}")
}

fn https(port: u16, body: &str) -> String {
    format!("https://127.0.0.1:{port}/{body}")
}

/// Has every contender, a process and its port, driven so many times, in turns. Returns the series of each, and the latencies
/// that all but one in a hundred of a turn's requests stayed below.
fn drive(
    turns: u32,
    contenders: &[(u32, u16)],
    load: impl Fn(u16) -> anyhow::Result<Load>,
) -> anyhow::Result<(Vec<Series>, Vec<Vec<Duration>>)> {
    let mut tails = vec![Vec::new(); contenders.len()];
    let all = interleave(turns, contenders.len(), |contender| {
        let (pid, port) = contenders[contender];
        let before = tree(pid)?.cpu;
        let load = load(port)?;
        let cpu = tree(pid)?.cpu - before;
        tails[contender].push(load.tail);
        let each = Duration::from_secs_f64(1.0 / load.per_second);
        Ok(Block { walls: vec![each], cpu: cpu.div_f64(load.requests) })
    })?;
    // the turn that warms up does not count
    let tails = tails.into_iter().map(|tail| tail.into_iter().skip(1).collect()).collect();
    Ok((all, tails))
}

/// Judges the claims whose rival took part.
fn judge(claims: &[(usize, Claim)], all: &[Series]) -> anyhow::Result<Vec<Row>> {
    let present = claims.iter().filter_map(|(rival, claim)| Some((claim, all.get(*rival)?)));
    present.map(|(claim, theirs)| claim.judge(&all[0], theirs)).collect()
}

/// Bytes that each of many idle connections adds, of which each has had a request answered.
fn idle_connection(ours: &Ours, port: u16) -> anyhow::Result<f64> {
    let before = resident(ours.pid)?;
    let mut open = Vec::with_capacity(IDLE);
    let mut answer = [0; 4096];
    for number in 0..IDLE {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("connection {number}"))?;
        stream.write_all(b"GET /small HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        if stream.read(&mut answer)? == 0 {
            bail!("connection {number} was closed without an answer");
        }
        open.push(stream);
    }
    let after = resident(ours.pid)?;
    Ok(after.saturating_sub(before) as f64 / open.len() as f64)
}

/// The slowest hundredth of requests while a thousand rules are loaded anew again and again, by that of a quiet time.
/// A request that fails is an error of the measurement.
fn reload(setting: &Setting, ours: &Ours, port: u16) -> anyhow::Result<Row> {
    ours.crowd(RULES, 0)?;
    let mut generation = 0;
    let mut tails = [Vec::new(), Vec::new()];
    let all = interleave(setting.rounds * TURNS, 2, |contender| {
        let before = tree(ours.pid)?.cpu;
        let load = std::thread::scope(|scope| {
            let load = scope.spawn(|| load::wrk(&http(port, "small"), SECONDS, &[]));
            let begun = Instant::now();
            for turn in 1.. {
                if contender != 0 || load.is_finished() {
                    break;
                }
                generation += 1;
                ours.crowd(RULES, generation)?;
                // However long one takes, there are as many a second.
                std::thread::park_timeout((begun + EVERY * turn).saturating_duration_since(Instant::now()));
            }
            load.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))?
        })?;
        tails[contender].push(load.tail);
        let each = Duration::from_secs_f64(1.0 / load.per_second);
        Ok(Block { walls: vec![each], cpu: (tree(ours.pid)?.cpu - before).div_f64(load.requests) })
    })?;
    let [busy, quiet] = tails.map(|tail| tail.into_iter().skip(1).collect::<Vec<_>>());
    let what = "99th of 100 latencies while 1,000 rules are loaded anew five times a second, no request failed";
    let claim = claim("proxy-reload", what, "the same without reloads", Figure::Time, 2.0);
    claim.judge(&all[0].with_walls(busy), &all[1].with_walls(quiet))
}
