//! OpenMetrics text (the standard's version 1.0) of all workers together.
//!
//! The labels are statuses' first digits, latency buckets, upstreams and plugins: nothing that a client chooses, so the
//! number of series is bounded by the rules. What plugins count themselves is bounded for each of them.

mod plugins;

use std::fmt::Write as _;

use crate::engine::Engine;
use crate::figures::{BUCKETS, Count, Figures};

/// The figures as OpenMetrics text.
#[must_use]
pub fn render(engine: &Engine) -> String {
    let mut out = String::with_capacity(4096);
    let sum = |pick: &dyn Fn(&Figures) -> &Count| engine.figures().map(|f| pick(f).get()).sum::<u64>();
    let mut counter = |name: &str, help: &str, value: u64| {
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "# TYPE shipote_proxy_{name} counter\n# HELP shipote_proxy_{name} {help}\nshipote_proxy_{name}_total {value}\n"
        );
    };
    counter("connections_accepted", "Connections accepted.", sum(&|f| &f.accepted));
    counter("connections_refused", "Connections refused by a limit.", sum(&|f| &f.refused));
    counter("quic_retries", "Clients that had to prove their address before a handshake.", sum(&|f| &f.proofs));
    counter("datagrams_dropped", "Datagrams that no queue had room for.", sum(&|f| &f.dropped));
    counter("bytes_in", "Bytes of bodies and tunnels from clients.", sum(&|f| &f.bytes_in));
    counter("bytes_out", "Bytes of bodies and tunnels to clients.", sum(&|f| &f.bytes_out));
    counter("upstream_connections", "Connections made to upstreams.", sum(&|f| &f.connects));
    counter(
        "upstream_connect_failures",
        "Connections to upstreams that could not be made.",
        sum(&|f| &f.connect_failures),
    );
    counter("upstream_reused", "Requests sent on a connection that was used before.", sum(&|f| &f.reused));
    counter("retries", "Requests sent again after a used connection turned out to be closed.", sum(&|f| &f.retries));
    counter("rate_limited", "Requests over a rate limit.", sum(&|f| &f.limited));
    counter("flows_unlogged", "Flows that are missing from the flow log.", engine.unlogged());
    counter("timeouts", "Time limits that passed.", sum(&|f| &f.timeouts));
    let open = sum(&|f| &f.open);
    let _ = write!(
        out,
        "# TYPE shipote_proxy_connections gauge\n# HELP shipote_proxy_connections Connections open now.\nshipote_proxy_connections {open}\n"
    );
    out.push_str("# TYPE shipote_proxy_responses counter\n# HELP shipote_proxy_responses Requests answered; class 0 was closed without an answer.\n");
    for class in 0..6 {
        let label = if class == 0 { "0".to_owned() } else { format!("{class}xx") };
        let _ = writeln!(out, "shipote_proxy_responses_total{{class=\"{label}\"}} {}", sum(&|f| &f.answers[class]));
    }
    latency(&mut out, engine);
    upstreams(&mut out, engine);
    plugins::render(&mut out, engine);
    out.push_str("# EOF\n");
    out
}

fn latency(out: &mut String, engine: &Engine) {
    out.push_str("# TYPE shipote_proxy_request_seconds histogram\n# UNIT shipote_proxy_request_seconds seconds\n");
    out.push_str("# HELP shipote_proxy_request_seconds From a request's head to the end of its answer.\n");
    let mut below = 0;
    for i in 0..=BUCKETS.len() {
        below += engine.figures().map(|f| f.latency[i].get()).sum::<u64>();
        let bound = BUCKETS.get(i).map_or_else(|| "+Inf".to_owned(), |b| format!("{:?}", *b as f64 / 1e6));
        let _ = writeln!(out, "shipote_proxy_request_seconds_bucket{{le=\"{bound}\"}} {below}");
    }
    let total: u64 = engine.figures().map(|f| f.latency_sum.get()).sum();
    let _ = writeln!(out, "shipote_proxy_request_seconds_count {below}");
    let _ = writeln!(out, "shipote_proxy_request_seconds_sum {:?}", total as f64 / 1e6);
}

fn upstreams(out: &mut String, engine: &Engine) {
    let all = engine.upstreams();
    type Family = (&'static str, &'static str, &'static str, fn(&crate::UpstreamInfo) -> u64);
    let families: [Family; 4] = [
        ("upstream_open", "gauge", "Requests and tunnels open at the upstream.", |u| u.open),
        ("upstream_up", "gauge", "1 unless the upstream is passed by.", |u| u64::from(!u.down)),
        ("upstream_requests", "counter", "Requests and tunnels sent to the upstream.", |u| u.total),
        ("upstream_failures", "counter", "Connections to the upstream that could not be made.", |u| u.failures),
    ];
    for (name, kind, help, value) in families {
        let _ = write!(out, "# TYPE shipote_proxy_{name} {kind}\n# HELP shipote_proxy_{name} {help}\n");
        let suffix = if kind == "counter" { "_total" } else { "" };
        for upstream in &all {
            let label = escaped(&upstream.address);
            let _ = writeln!(out, "shipote_proxy_{name}{suffix}{{upstream=\"{label}\"}} {}", value(upstream));
        }
    }
}

/// Text as a label's value.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
