//! The table for people.

use std::fmt::Write;

use super::{ServiceLine, Status};
use crate::output;

const HEAD: [&str; 7] = ["SERVICE", "PID", "STATE", "SINCE", "RESTARTS", "CONFINEMENT", "STATUS"];

pub(super) fn table(status: &Status) -> String {
    let mut text = format!("bus     {}\nsocket  {}\n\n", status.bus_address, status.socket);
    let rows = status.services.iter().map(row);
    for line in output::table(&HEAD, rows).lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let mut gaps = String::new();
    for service in &status.services {
        for m in service.confinement.iter().filter(|m| m.state != "enforced") {
            // Writing to a String cannot fail.
            let _ = writeln!(gaps, "{}: {} is {}: {}", service.name, m.mechanism, m.state, m.reason);
        }
    }
    if !gaps.is_empty() {
        text.push('\n');
        text.push_str(&gaps);
    }
    text
}

fn row(service: &ServiceLine) -> Vec<String> {
    let absent = || "-".to_owned();
    vec![
        service.name.clone(),
        service.pid.map_or_else(absent, |pid| pid.to_string()),
        service.state.clone(),
        service.since.map_or_else(absent, |since| since.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
        service.restarts.to_string(),
        confinement(service),
        service.status.clone(),
    ]
}

/// `5 enforced, 1 missing`.
fn confinement(service: &ServiceLine) -> String {
    let counts = ["enforced", "degraded", "missing"].into_iter().filter_map(|state| {
        let count = service.confinement.iter().filter(|m| m.state == state).count();
        (count > 0).then(|| format!("{count} {state}"))
    });
    let text: Vec<String> = counts.collect();
    if text.is_empty() { "-".to_owned() } else { text.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::{super::confinement::Line, *};

    #[test]
    fn a_service_that_is_down_has_a_row() {
        let mechanism = |name: &str, state: &str| Line {
            mechanism: name.to_owned(),
            state: state.to_owned(),
            reason: "no policy".to_owned(),
        };
        let status = Status {
            bus_address: "unix:path=/r/bus".to_owned(),
            socket: "/r/workspaces/shipote.sock".to_owned(),
            services: vec![
                ServiceLine {
                    name: "plugins".to_owned(),
                    state: "failed".to_owned(),
                    restarts: 3,
                    status: "exit status: 1".to_owned(),
                    ..ServiceLine::default()
                },
                ServiceLine {
                    name: "proxy".to_owned(),
                    pid: Some(42),
                    state: "running".to_owned(),
                    since: jiff::Timestamp::from_second(0).ok(),
                    confinement: vec![mechanism("seccomp", "enforced"), mechanism("landlock", "missing")],
                    ..ServiceLine::default()
                },
            ],
        };
        let expected = "\
bus     unix:path=/r/bus
socket  /r/workspaces/shipote.sock

SERVICE  PID  STATE    SINCE                 RESTARTS  CONFINEMENT            STATUS
plugins  -    failed   -                     3         -                      exit status: 1
proxy    42   running  1970-01-01 00:00:00Z  0         1 enforced, 1 missing

proxy: landlock is missing: no policy
";
        assert_eq!(table(&status), expected);
    }
}
