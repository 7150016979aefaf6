//! The graph for people: a Mermaid flow chart. (As JSON it is what `serde` makes of it.)

use std::fmt::Write as _;

use crate::graph::{Graph, Node, OnError};
use crate::operator::Operator;
use crate::predicate::Check;
use crate::terminate::Terminator;

/// The graph as a Mermaid flow chart, listeners at the top.
#[must_use]
pub fn mermaid(graph: &Graph) -> String {
    let mut out = String::from("flowchart TD\n");
    for (i, listener) in graph.listeners.iter().enumerate() {
        let transport = if listener.listen.transport == crate::Transport::Tcp { "" } else { "udp:" };
        let label = quote(&format!("{transport}{}", listener.listen.address));
        let _ = writeln!(out, "  l{i}([{label}]) --> n{}", listener.entry.0);
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let _ = match node {
            Node::Check { check, yes, no } => writeln!(
                out,
                "  n{i}{{{}}}\n  n{i} -- yes --> n{}\n  n{i} -- no --> n{}",
                quote(&check_label(graph.check(*check))),
                yes.0,
                no.0
            ),
            Node::Detect { http, other } => writeln!(
                out,
                "  n{i}{{\"first bytes are HTTP\"}}\n  n{i} -- yes --> n{}\n  n{i} -- no --> n{}",
                http.0, other.0
            ),
            Node::Upgrade { to, next } => {
                let label = quote(&format!("to {}", format!("{to:?}").to_lowercase()));
                writeln!(out, "  n{i}[/{label}/] --> n{}", next.0)
            }
            Node::Middleware { middleware, next, on_error } => {
                let mut label = graph.middleware[middleware.index()].middleware.name();
                match on_error {
                    Some(OnError::Close) => label.push_str("\non error: close"),
                    Some(OnError::Respond(r)) => {
                        let _ = write!(label, "\non error: {}", r.status);
                    }
                    None => {}
                }
                writeln!(out, "  n{i}[{}] --> n{}", quote(&label), next.0)
            }
            Node::Terminate { terminator, response } => {
                let entry = graph.terminator(*terminator);
                let label = quote(&terminator_label(&entry.rule, &entry.terminator));
                match response {
                    Some(next) => writeln!(out, "  n{i}[[{label}]] -. response .-> n{}", next.0),
                    None => writeln!(out, "  n{i}(({label}))"),
                }
            }
        };
    }
    out
}

fn check_label(check: &Check) -> String {
    // An operator is an object of one entry: its wire name and its argument.
    let text = match serde_json::to_value(&check.operator) {
        Ok(serde_json::Value::Object(map)) => {
            map.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(" ")
        }
        _ => operator_name(&check.operator).to_owned(),
    };
    format!("{} {text}", check.field)
}

fn operator_name(operator: &Operator) -> &'static str {
    if operator.is_negative() { "is not" } else { "is" }
}

fn terminator_label(rule: &str, terminator: &Terminator) -> String {
    let mut label = if rule.is_empty() { String::new() } else { format!("{rule}\n") };
    label.push_str(terminator.name());
    match terminator {
        Terminator::HttpProxy(spec) => spec.upstreams.iter().for_each(|u| {
            let _ = write!(label, "\n{}", u.address);
        }),
        Terminator::TcpForward { upstreams, .. } | Terminator::UdpForward { upstreams, .. } => {
            upstreams.iter().for_each(|u| {
                let _ = write!(label, "\n{}", u.address);
            });
        }
        Terminator::Static(response) => {
            let _ = write!(label, " {}", response.status);
        }
        _ => {}
    }
    label
}

/// Mermaid's quoting: entities for what would end the label.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("#quot;"),
            '#' => out.push_str("#35;"),
            '<' => out.push_str("#lt;"),
            '>' => out.push_str("#gt;"),
            '\n' => out.push_str("<br/>"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use crate::{Source, compile, mermaid};

    #[test]
    fn a_chart_names_listeners_checks_and_ends_and_cannot_be_broken_out_of() {
        let text = r#"{"rules": [{"name": "a\"];x", "listen": ["127.0.0.1:80"],
            "match": {"http.uri.path": {"prefix": "/<b>"}}, "middleware_chain": [{"use": "forward_client_ip"}],
            "terminate": {"type": "http_proxy", "upstream": "127.0.0.1:9000"}}]}"#;
        let chart = mermaid(&compile(&[Source::new("a.json", text)]).unwrap());
        for part in ["127.0.0.1:80", "http.uri.path prefix", "forward_client_ip", "127.0.0.1:9000", "404", "#lt;b"] {
            assert!(chart.contains(part), "{part} in {chart}");
        }
        assert!(!chart.contains("a\"];"), "{chart}");
    }
}
