//! `tcp_forward`: a connection to an upstream, unread.

use std::cell::Cell;
use std::time::Instant;

use shipote_rules::{Terminator, TerminatorId};

use crate::flows::Entry;
use crate::http1::exchange::InFlight;
use crate::io::Io;
use crate::plan::Plan;
use crate::proxy_protocol;
use crate::tunnel::{Passed, buffers, tunnel};
use crate::upstream::{Connected, How, Key, connect, pick};
use crate::walk::Peer;
use crate::worker::Worker;

/// Connects to one of the rule's upstreams and passes bytes on until both sides are done.
pub(crate) async fn forward(worker: &Worker, plan: &Plan, terminator: TerminatorId, client: Io, peer: &Peer) {
    let entry = plan.graph.terminator(terminator);
    let Terminator::TcpForward { balance, limits, care, .. } = &entry.terminator else { return };
    let began = Instant::now();
    let mut tried = Vec::new();
    let mut error = String::new();
    let mut name = "";
    let passed = Cell::new(Passed::default());
    let turn = worker.turn();
    let targets = &plan.targets[terminator.index()];
    while let Some(target) = pick(targets, *balance, turn, Key::Address(peer.remote.ip()), &tried) {
        name = &target.name;
        let patience = target.patience(limits);
        client.slot().set(patience * 2);
        match connect(target, patience, How::default()).await {
            Ok(Connected { stream, .. }) => {
                worker.figures.connects.add(1);
                let _open = InFlight::new(target);
                let upstream = Io::new(stream, client.share_slot());
                client.slot().set(limits.idle);
                let (mut up, mut down) = buffers(&worker.pool);
                let announced = match target.proxy_protocol {
                    Some(version) => upstream.write(&proxy_protocol::header(version, peer)).await,
                    None => Ok(()),
                };
                let result = match announced {
                    Ok(()) => tunnel(&client, &upstream, &mut up, &mut down, &passed).await,
                    Err(e) => Err(e),
                };
                // A connection that breaks before it said anything is what a broken upstream looks like.
                target.outcome(result.is_ok() || passed.get().down > 0, care.passive.as_ref());
                error = match result {
                    Ok(()) => String::new(),
                    Err(e) => e.to_string(),
                };
                worker.pool.give(up);
                worker.pool.give(down);
                break;
            }
            Err(e) => {
                worker.figures.connect_failures.add(1);
                target.outcome(false, care.passive.as_ref());
                error = e.to_string();
                tried.push(target.id);
            }
        }
    }
    let Passed { up, down } = passed.get();
    worker.figures.bytes_in.add(up);
    worker.figures.bytes_out.add(down);
    let flow = Entry {
        connection: peer.id,
        client: &peer.remote_text,
        rule: &entry.rule,
        host: peer.sni.as_deref().unwrap_or("").as_bytes(),
        upstream: name,
        bytes_in: up,
        bytes_out: down,
        duration: began.elapsed(),
        error: &error,
        ..Entry::default()
    };
    worker.flows.push(&flow, Instant::now());
}
