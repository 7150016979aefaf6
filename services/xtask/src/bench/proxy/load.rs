//! Load by programs that users know: `wrk` for HTTP/1.1, `h2load` for HTTP/2.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

/// What a load generator counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Load {
    pub(super) per_second: f64,
    pub(super) requests: f64,
    /// Latency that all but one in a hundred requests stay below; zero where the program does not say.
    pub(super) tail: Duration,
}

/// One thread and 32 connections of `wrk` for some seconds, with further headers.
pub(super) fn wrk(url: &str, seconds: u32, headers: &[&str]) -> anyhow::Result<Load> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c32", "--latency", &format!("-d{seconds}s")]);
    for header in headers {
        command.args(["-H", header]);
    }
    read_wrk(&output(command.arg(url))?).with_context(|| format!("wrk {url}"))
}

/// One thread, 8 connections of 16 streams of `h2load` for some seconds. It takes any certificate.
pub(super) fn h2load(url: &str, seconds: u32) -> anyhow::Result<Load> {
    let mut command = Command::new("h2load");
    command.args(["-t1", "-c8", "-m16", "--warm-up-time=0", &format!("-D{seconds}"), url]);
    read_h2load(&output(&mut command)?).with_context(|| format!("h2load {url}"))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?} failed: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

fn read_wrk(text: &str) -> anyhow::Result<Load> {
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("requests failed: {text}");
    }
    let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")).context("no count printed")?.0;
    Ok(Load {
        per_second: field("Requests/sec:").context("no rate printed")?.parse()?,
        requests: requests.parse()?,
        tail: duration(field("99%").context("no latency printed")?)?,
    })
}

fn read_h2load(text: &str) -> anyhow::Result<Load> {
    let rate = text.lines().find_map(|line| line.strip_prefix("finished in ")).context("no rate printed")?;
    let per_second = rate.split(", ").find_map(|part| part.strip_suffix(" req/s")).context("no rate printed")?;
    let counts = text.lines().find_map(|line| line.strip_prefix("requests: ")).context("no counts printed")?;
    let count = |what: &str| -> anyhow::Result<f64> {
        let found = counts.split(", ").find_map(|part| part.strip_suffix(what)).context("no counts printed")?;
        Ok(found.trim().parse()?)
    };
    if count("failed")? + count("errored")? + count("timeout")? > 0.0 {
        bail!("requests failed: {counts}");
    }
    Ok(Load { per_second: per_second.parse()?, requests: count("succeeded")?, tail: Duration::ZERO })
}

/// `1.23ms` as wrk prints it.
fn duration(text: &str) -> anyhow::Result<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        other => bail!("wrk's unit {other:?} is not known"),
    };
    Ok(Duration::from_secs_f64(number.parse::<f64>()? * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 2s test @ http://127.0.0.1:1/\n  1 threads and 32 connections\n  Latency Distribution\n     50%  640.00us\n     99%    1.50ms\n  89012 requests in 2.00s, 20.10MB read\nRequests/sec:  44506.00\nTransfer/sec:     10.05MB\n";
    const H2LOAD: &str = "finished in 2.00s, 30000.50 req/s, 3.20MB/s\nrequests: 60001 total, 60129 started, 60001 done, 60001 succeeded, 0 failed, 0 errored, 0 timeout\nstatus codes: 60001 2xx, 0 3xx, 0 4xx, 0 5xx\n";

    #[test]
    fn what_the_programs_print_is_read() {
        let tail = Duration::from_micros(1500);
        assert_eq!(read_wrk(WRK).unwrap(), Load { per_second: 44506.0, requests: 89012.0, tail });
        let none = Duration::ZERO;
        assert_eq!(read_h2load(H2LOAD).unwrap(), Load { per_second: 30000.5, requests: 60001.0, tail: none });
    }

    #[test]
    fn a_failed_request_is_an_error_and_not_a_figure() {
        assert!(read_wrk(&format!("{WRK}  Non-2xx or 3xx responses: 3\n")).is_err());
        assert!(read_wrk(&format!("{WRK}  Socket errors: connect 0, read 1, write 0, timeout 0\n")).is_err());
        assert!(read_h2load(&H2LOAD.replace("0 errored", "2 errored")).is_err());
        assert!(read_wrk("").is_err() && read_h2load("").is_err());
        assert!(duration("3 parsecs").is_err());
    }
}
