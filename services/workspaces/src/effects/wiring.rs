//! The pipes of a pipeline: which descriptor each node gets, and which outputs need a
//! junction because they are tapped or fan out.
//!
//! ```text
//! untapped, one consumer     A ──pipe──> B
//! tapped or fan-out          A ──pipe──> junction ──pipe──> B
//!                                           ├──────pipe──> C
//!                                           └── flow sockets
//! fan-in                     several writers share the write end of B's pipe
//! ```

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};
use shipote_bus::spec::ValidatedEdge;

/// Descriptors of one node; what is absent is not wired by an edge.
#[derive(Debug, Default)]
pub(super) struct NodeDescriptors {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    /// Those beside the standard three, by name.
    pub(super) further: Vec<(String, OwnedFd)>,
}

impl NodeDescriptors {
    /// Puts a descriptor in the place that an edge calls so.
    fn put(&mut self, name: &str, descriptor: OwnedFd) {
        match name {
            "stdin" => self.stdin = Some(descriptor),
            "stdout" => self.stdout = Some(descriptor),
            "stderr" => self.stderr = Some(descriptor),
            name => self.further.push((name.to_owned(), descriptor)),
        }
    }
}

/// An output that a junction carries: where it reads, and number and sink of each edge.
#[derive(Debug)]
pub(super) struct JunctionPlan {
    pub(super) source: OwnedFd,
    pub(super) edges: Vec<(usize, OwnedFd)>,
}

/// All pipes of one pipeline.
#[derive(Debug, Default)]
pub(super) struct Wiring {
    pub(super) nodes: Vec<NodeDescriptors>,
    pub(super) junctions: Vec<JunctionPlan>,
}

/// Makes the pipes. Nothing is left open where it fails.
pub(super) fn wire(nodes: usize, edges: &[ValidatedEdge], tap: bool) -> io::Result<Wiring> {
    let mut wiring = Wiring::default();
    wiring.nodes.resize_with(nodes, NodeDescriptors::default);
    // the write end of each consumer's pipe; dropped at the end, so that only writers hold it
    let mut inputs: BTreeMap<(usize, &str), OwnedFd> = BTreeMap::new();
    for edge in edges {
        if let std::collections::btree_map::Entry::Vacant(entry) = inputs.entry((edge.to, &edge.to_input)) {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            wiring.nodes[edge.to].put(&edge.to_input, read);
            entry.insert(write);
        }
    }
    let mut outputs: BTreeMap<(usize, &str), Vec<usize>> = BTreeMap::new();
    for (number, edge) in edges.iter().enumerate() {
        outputs.entry((edge.from, &edge.from_output)).or_default().push(number);
    }
    for ((node, output), numbers) in outputs {
        let sink = |number: usize| inputs[&(edges[number].to, edges[number].to_input.as_str())].try_clone();
        let end = if numbers.len() == 1 && !tap {
            sink(numbers[0])?
        } else {
            let (source, end) = pipe_with(PipeFlags::CLOEXEC)?;
            let edges = numbers.into_iter().map(|n| Ok((n, sink(n)?))).collect::<io::Result<Vec<_>>>()?;
            wiring.junctions.push(JunctionPlan { source, edges });
            end
        };
        wiring.nodes[node].put(output, end);
    }
    Ok(wiring)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: usize, to: usize) -> ValidatedEdge {
        ValidatedEdge { from, from_output: "stdout".into(), to, to_input: "stdin".into() }
    }

    #[test]
    fn only_what_needs_a_junction_gets_one() {
        let plain = wire(3, &[edge(0, 1), edge(1, 2)], false).unwrap();
        assert!(plain.junctions.is_empty());
        assert!(plain.nodes[0].stdin.is_none() && plain.nodes[0].stdout.is_some());
        assert!(plain.nodes[1].stdin.is_some() && plain.nodes[1].stdout.is_some());
        assert!(plain.nodes[2].stdin.is_some() && plain.nodes[2].stdout.is_none());
        assert_eq!(wire(3, &[edge(0, 1), edge(1, 2)], true).unwrap().junctions.len(), 2);
        let fan_out = wire(3, &[edge(0, 1), edge(0, 2)], false).unwrap();
        assert_eq!(fan_out.junctions.len(), 1);
        assert_eq!(fan_out.junctions[0].edges.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 1]);
        assert!(wire(3, &[edge(0, 2), edge(1, 2)], false).unwrap().junctions.is_empty());
    }

    #[test]
    fn further_outputs_and_inputs_have_pipes_of_their_own() {
        use std::io::{Read, Write};
        let further = ValidatedEdge { from_output: "errors".into(), to_input: "left".into(), ..edge(0, 1) };
        let mut wiring = wire(2, &[edge(0, 1), further], false).unwrap();
        assert!(wiring.nodes[0].stdout.take().is_some() && wiring.nodes[1].stdin.is_some());
        let (output, end) = wiring.nodes[0].further.pop().unwrap();
        let (input, start) = wiring.nodes[1].further.pop().unwrap();
        assert_eq!((output.as_str(), input.as_str()), ("errors", "left"));
        std::fs::File::from(end).write_all(b"x").unwrap();
        let mut all = String::new();
        std::fs::File::from(start).read_to_string(&mut all).unwrap();
        assert_eq!(all, "x");
    }

    #[test]
    fn a_consumer_sees_the_end_when_all_its_writers_are_gone() {
        use std::io::{Read, Write};
        let mut wiring = wire(3, &[edge(0, 2), edge(1, 2)], false).unwrap();
        let mut input = std::fs::File::from(wiring.nodes[2].stdin.take().unwrap());
        for node in 0..2 {
            let mut out = std::fs::File::from(wiring.nodes[node].stdout.take().unwrap());
            out.write_all(b"x").unwrap();
        }
        let mut all = String::new();
        input.read_to_string(&mut all).unwrap();
        assert_eq!(all, "xx");
    }
}
