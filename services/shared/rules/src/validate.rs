//! The last look at a graph, independent of how it was made: indices, cycles, phases, ends.

use std::collections::HashSet;

use crate::error::{Problem, Problems};
use crate::field::Phase;
use crate::graph::{Graph, Node, NodeId};
use crate::terminate::Terminator;

/// Walks every path in every phase that it can be in.
///
/// A problem here is a defect of the compiler, not of the rules, but it must stop the graph all the same: the data
/// plane relies on what is checked.
pub(crate) fn validate(graph: &Graph) -> Result<(), Problems> {
    let mut seen = HashSet::new();
    for listener in &graph.listeners {
        walk(graph, listener.entry, Phase::Raw, &mut seen).map_err(|(node, message)| {
            let rule = listener.rules.first().map(String::as_str);
            let file = graph.files.first().cloned().unwrap_or_default();
            let message = format!("{message}; this is a defect of the rule compiler, please report it");
            Problems(vec![Problem::new(format!("node {}", node.0), message).at(&file, rule)])
        })?;
    }
    Ok(())
}

type Broken = (NodeId, &'static str);

fn walk(graph: &Graph, entry: NodeId, phase: Phase, seen: &mut HashSet<(NodeId, Phase)>) -> Result<(), Broken> {
    let mut open = vec![(entry, phase)];
    while let Some((id, phase)) = open.pop() {
        if !seen.insert((id, phase)) {
            continue;
        }
        let Some(node) = graph.nodes.get(id.index()) else { return Err((id, "no such node")) };
        if node.successors().any(|s| s >= id) {
            return Err((id, "a successor does not come earlier in the table"));
        }
        match node {
            Node::Check { check, yes, no } => {
                let Some(check) = graph.checks.get(check.index()) else { return Err((id, "no such check")) };
                if check.field.phase() > phase {
                    return Err((id, "a field is read before it is known"));
                }
                open.extend([(*yes, phase), (*no, phase)]);
            }
            Node::Detect { http, other } => {
                if phase != Phase::Peek {
                    return Err((id, "HTTP can be told apart only by the first bytes"));
                }
                open.extend([(*http, phase), (*other, phase)]);
            }
            Node::Upgrade { to, next } => {
                if *to <= phase || *to > Phase::Body {
                    return Err((id, "an upgrade does not go forward"));
                }
                open.push((*next, *to));
            }
            Node::Middleware { middleware, next, .. } => {
                let Some(entry) = graph.middleware.get(middleware.index()) else {
                    return Err((id, "no such middleware"));
                };
                if (entry.middleware.phase() == Phase::Response) != (phase == Phase::Response) {
                    return Err((id, "a middleware stands in the wrong phase"));
                }
                open.push((*next, phase));
            }
            Node::Terminate { terminator, response } => {
                let Some(entry) = graph.terminators.get(terminator.index()) else {
                    return Err((id, "no such terminator"));
                };
                ends(&entry.terminator, phase, response.is_some()).map_err(|message| (id, message))?;
                open.extend(response.map(|next| (next, Phase::Response)));
            }
        }
    }
    Ok(())
}

fn ends(terminator: &Terminator, phase: Phase, has_response: bool) -> Result<(), &'static str> {
    let request = matches!(phase, Phase::Request | Phase::Body);
    match terminator {
        Terminator::TcpForward { .. } | Terminator::UdpForward { .. } if phase > Phase::Peek => {
            Err("bytes that were read cannot be forwarded unread")
        }
        Terminator::Send if phase != Phase::Response => Err("there is no response to send"),
        Terminator::Send | Terminator::Close | Terminator::TcpForward { .. } | Terminator::UdpForward { .. } => {
            if has_response {
                Err("a terminator without a response has a response phase")
            } else {
                Ok(())
            }
        }
        _ if !request => Err("there is no request to answer"),
        _ if !has_response => Err("a response phase is missing"),
        _ => Ok(()),
    }
}
