//! Finding the first of many checks that holds without trying each.
//!
//! The rules of a listener are tried one after the other, so a graph has chains: a check, the one where it goes on if it
//! does not hold, and so on. Where all of a chain compare one field with whole texts or beginnings of texts, which of
//! them holds first is looked up by the field's value.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::field::Field;
use crate::graph::{Graph, Node, NodeId};
use crate::operator::{Literal, Operator, Value};
use crate::predicate::View;

/// Checks that have to be left of a chain: fewer are tried as fast as they are looked up.
const WORTH: u32 = 8;

/// The chains of a graph. What it says holds for that graph alone.
#[derive(Debug, Default)]
pub struct Shortcuts {
    chains: Vec<Chain>,
    /// By node: its chain, and how many checks of it are left after the node.
    places: Vec<Option<(u32, u32)>>,
}

/// The checks of a chain, each by how many are left after it.
#[derive(Debug)]
struct Chain {
    field: Field,
    head: NodeId,
    /// Where each goes on if it holds.
    yes: Vec<NodeId>,
    /// Where the last goes on if it does not.
    no: NodeId,
    whole: Texts,
    beginnings: Texts,
    /// Of the beginnings, ascending, each once: bytes.
    lengths: Vec<usize>,
}

/// Those that compare with a text, ascending.
type Texts = HashMap<Box<[u8]>, Vec<u32>, RandomState>;

impl Shortcuts {
    /// Finds the chains.
    #[must_use]
    pub fn of(graph: &Graph) -> Self {
        let mut found = Self { chains: Vec::new(), places: vec![None; graph.nodes.len()] };
        for (at, node) in graph.nodes.iter().enumerate() {
            let Node::Check { check, yes, no } = node else { continue };
            let check = graph.check(*check);
            let Some((whole, text)) = texts(&check.operator) else { continue };
            // Successors come first. Several nodes may go on at one: the first of them has its chain, others begin one.
            let longer = found.places[no.index()].map(|(chain, _)| chain as usize);
            let longer = longer.filter(|&c| found.chains[c].head == *no && found.chains[c].field == check.field);
            let chain = longer.unwrap_or_else(|| {
                found.chains.push(Chain {
                    field: check.field.clone(),
                    head: *no,
                    yes: Vec::new(),
                    no: *no,
                    whole: Texts::default(),
                    beginnings: Texts::default(),
                    lengths: Vec::new(),
                });
                found.chains.len() - 1
            });
            let place = found.chains[chain].add(NodeId(number(at)), *yes, whole, &text);
            found.places[at] = Some((number(chain), place));
        }
        for chain in &mut found.chains {
            chain.lengths = chain.beginnings.keys().map(|text| text.len()).collect();
            chain.lengths.sort_unstable();
            chain.lengths.dedup();
        }
        found
    }

    /// Where a walk that has come to a check goes on after it and those of its chain that it would try next; none where
    /// trying it is as good.
    #[must_use]
    pub fn next(&self, node: NodeId, view: &dyn View) -> Option<NodeId> {
        let (chain, left) = (*self.places.get(node.index())?).filter(|(_, left)| *left >= WORTH)?;
        Some(self.chains[chain as usize].next(left, view))
    }
}

impl Chain {
    fn add(&mut self, node: NodeId, yes: NodeId, whole: bool, texts: &[&[u8]]) -> u32 {
        let place = number(self.yes.len());
        self.head = node;
        self.yes.push(yes);
        let known = if whole { &mut self.whole } else { &mut self.beginnings };
        for text in texts {
            known.entry((*text).into()).or_default().push(place);
        }
        place
    }

    /// Where a walk goes on after the check that has so many left, and those.
    fn next(&self, left: u32, view: &dyn View) -> NodeId {
        let mut first = None;
        view.any(&self.field, &mut |value| {
            if let Value::Bytes(bytes) = value {
                let beginnings = self.lengths.iter().take_while(|length| **length <= bytes.len());
                let beginnings = beginnings.filter_map(|length| self.beginnings.get(&bytes[..*length]));
                for places in beginnings.chain(self.whole.get(bytes)) {
                    let within = &places[..places.partition_point(|place| *place <= left)];
                    first = first.max(within.last().copied());
                }
            }
            false
        });
        first.map_or(self.no, |place| self.yes[place as usize])
    }
}

/// The texts that a check compares with, and whether as a whole.
fn texts(operator: &Operator) -> Option<(bool, Vec<&[u8]>)> {
    fn text(literal: &Literal) -> Option<&[u8]> {
        if let Literal::Text(text) = literal { Some(text.as_bytes()) } else { None }
    }
    match operator {
        Operator::Equals(literal) => Some((true, vec![text(literal)?])),
        Operator::In(literals) => Some((true, literals.iter().map(text).collect::<Option<_>>()?)),
        Operator::Prefix(text) => Some((false, vec![text.as_bytes()])),
        _ => None,
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
