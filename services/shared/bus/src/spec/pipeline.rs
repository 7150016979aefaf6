//! A pipeline: commands joined by pipes, without cycles.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::slot::{FLOWS_MAX, check_flow_names};
use super::{Foreign, NodeCommand, Payload, RestartPolicy, Soma, SpecError, check_label};

/// A pipeline as a person writes it.
///
/// ```toml
/// label = "largest"
/// [[nodes]]
/// label = "list"
/// command = ["ls", "-l", "${DIR}"]
/// [[nodes]]
/// label = "sort"
/// command = ["sort", "-k5n"]
/// [[edges]]
/// from = "list"
/// to = "sort"
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PipelineSpec {
    /// Name.
    pub label: String,
    /// Workspace to run in, by name or id; the command line's argument wins over it.
    pub workspace: Option<String>,
    /// Commands.
    pub nodes: Vec<Node>,
    /// Pipes between them.
    pub edges: Vec<Edge>,
    /// How tapped edges are sampled, replayed and limited.
    pub discern: DiscernPolicy,
    /// All of it is started again when all nodes have ended and one failed; none: it is not.
    pub restart: Option<RestartPolicy>,
}

/// One command of a pipeline.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Name, unique in the pipeline.
    pub label: String,
    /// Program and arguments; short for `payload.native`.
    pub command: Vec<String>,
    /// A command component of the plugin registry instead of a program: `NAME@^1` or `sha256:HEX`.
    pub wasm: Option<String>,
    /// Arguments of the component.
    pub args: Vec<String>,
    /// Folders of the workspace that the component is given.
    pub dirs: Vec<String>,
    /// Run the program in this machine.
    pub machine: Option<String>,
    /// Image of the machine to run it in; absent: the agent's own root.
    pub image: Option<String>,
    /// What the node runs, where `command` does not say it.
    pub payload: Option<Payload>,
    /// Further inputs beside `stdin`, by name: each is a descriptor of the program, `SHIPOTE_FLOW_NAME` says which. One
    /// that no edge leads to is empty.
    pub inputs: Vec<String>,
    /// Further outputs beside `stdout` and `stderr`, as of `inputs`. One that no edge takes goes where `stderr` goes.
    pub outputs: Vec<String>,
    /// Environment beside the workspace's.
    pub env: BTreeMap<String, String>,
    /// Limits, on top of the workspace's.
    pub soma: Soma,
    /// This node alone is started again when it fails, on the same pipes; none: it is not.
    pub restart: Option<RestartPolicy>,
}

/// A pipe from one node's output to another's input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// Producer, by label or by position (from 0).
    pub from: NodeRef,
    /// `stdout` (default), `stderr` or one of the node's `outputs`.
    #[serde(default = "stdout")]
    pub from_output: String,
    /// Consumer, by label or by position (from 0).
    pub to: NodeRef,
    /// `stdin` (default) or one of the node's `inputs`.
    #[serde(default = "stdin")]
    pub to_input: String,
    /// A filter component of the plugin registry that the bytes go through: `NAME@^1` or `sha256:HEX`.
    #[serde(default)]
    pub filter: Option<String>,
    /// Arguments of the filter.
    #[serde(default)]
    pub filter_args: Vec<String>,
}

fn stdout() -> String {
    "stdout".to_owned()
}

fn stdin() -> String {
    "stdin".to_owned()
}

/// A node, by label or by position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a node's label, or its position counted from 0")]
pub enum NodeRef {
    /// Position, counted from 0.
    Position(usize),
    /// Label.
    Label(String),
}

/// How tapped edges are sampled, replayed and limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscernPolicy {
    /// Bytes of the stream's beginning that are discerned.
    #[serde(deserialize_with = "shipote_units::size")]
    pub sample_bytes: usize,
    /// Chunks (of 64 KiB at most) that a late subscriber still gets.
    pub replay_chunks: usize,
    /// Bytes that a late subscriber still gets; 0: as many as the chunks hold.
    #[serde(deserialize_with = "shipote_units::size")]
    pub replay_bytes: usize,
    /// Rate limit in bytes a second; 0: none.
    #[serde(deserialize_with = "shipote_units::size")]
    pub max_bytes_per_sec: u64,
    /// A slow subscriber stalls the producer instead of being cut off.
    pub lossless: bool,
}

impl Default for DiscernPolicy {
    fn default() -> Self {
        DiscernPolicy { sample_bytes: 4096, replay_chunks: 32, replay_bytes: 0, max_bytes_per_sec: 0, lossless: false }
    }
}

/// What every program has.
const STANDARD: [&str; 3] = ["stdin", "stdout", "stderr"];

/// Most nodes in one pipeline; each is a process and holds descriptors of the service.
pub const NODES_MAX: usize = 64;
/// Most edges in one pipeline.
pub const EDGES_MAX: usize = 256;
/// Largest sample, replay and chunk figures that a spec may ask for.
const SAMPLE_MAX: usize = 64 * 1024;
const REPLAY_CHUNKS_MAX: usize = 1024;

/// A pipeline that can be started: references resolved, no cycle, all names known.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidatedPipeline {
    /// Name.
    pub label: String,
    /// Its commands.
    pub nodes: Vec<ValidatedNode>,
    /// Edges, by position of the nodes.
    pub edges: Vec<ValidatedEdge>,
    /// How tapped edges are treated.
    pub discern: DiscernPolicy,
    /// Whether, and how, all of it is started again.
    pub restart: Option<RestartPolicy>,
}

/// A node with everything resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidatedNode {
    /// Name, unique in the pipeline.
    pub label: String,
    /// What it runs.
    pub command: NodeCommand,
    /// What stands behind it, where it is no program of the workspace; then `exec` is its name.
    pub foreign: Option<Foreign>,
    /// Inputs and outputs beside the standard three.
    pub further: FurtherFlows,
    /// Its limits, on top of the workspace's.
    pub soma: Soma,
    /// Whether, and how, it alone is started again when it fails.
    pub restart: Option<RestartPolicy>,
}

/// Inputs and outputs of a node beside the standard three, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FurtherFlows {
    /// Inputs.
    pub inputs: Vec<String>,
    /// Outputs.
    pub outputs: Vec<String>,
}

impl FurtherFlows {
    /// All names, inputs first: the order of their descriptors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().chain(&self.outputs).map(String::as_str)
    }
}

/// An edge between nodes that exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidatedEdge {
    /// Producer's position.
    pub from: usize,
    /// `stdout`, `stderr` or a further one.
    pub from_output: String,
    /// Consumer's position.
    pub to: usize,
    /// `stdin` or a further one.
    pub to_input: String,
}

impl PipelineSpec {
    /// Substitutes `${KEY}` in every string, resolves references and checks all that
    /// can be checked before anything starts.
    ///
    /// # Errors
    /// The first thing wrong, by its key path; a cycle with the nodes it goes through.
    pub fn validate(&self, vars: &BTreeMap<String, String>) -> Result<ValidatedPipeline, SpecError> {
        let label = super::command::substitute(&self.label, vars);
        check_label("label", &label)?;
        check_count("nodes", self.nodes.len(), NODES_MAX)?;
        if self.nodes.is_empty() {
            return Err(SpecError::new("nodes", "is empty; a pipeline has at least one `[[nodes]]`"));
        }
        check_count("edges", self.edges.len(), EDGES_MAX)?;
        check_count("discern.sample_bytes", self.discern.sample_bytes, SAMPLE_MAX)?;
        check_count("discern.replay_chunks", self.discern.replay_chunks, REPLAY_CHUNKS_MAX)?;
        let mut nodes: Vec<ValidatedNode> = Vec::with_capacity(self.nodes.len());
        for (i, node) in self.nodes.iter().enumerate() {
            let label = super::command::substitute(&node.label, vars);
            check_label(&format!("nodes[{i}].label"), &label)?;
            if nodes.iter().any(|other| other.label == label) {
                return Err(SpecError::new(format!("nodes[{i}].label"), format!("{label:?} is taken by another node")));
            }
            node.soma.validate(&format!("nodes[{i}].soma"))?;
            if let Some(policy) = &node.restart {
                policy.validate(&format!("nodes[{i}].restart"))?;
            }
            let (soma, restart) = (node.soma.clone(), node.restart);
            let (foreign, further) = (node.foreign(i, vars)?, node.further(i, vars)?);
            nodes.push(ValidatedNode { label, command: node.resolve(i, vars)?, foreign, further, soma, restart });
        }
        let mut edges = self
            .edges
            .iter()
            .enumerate()
            .map(|(i, edge)| edge.resolve(i, &nodes, vars))
            .collect::<Result<Vec<_>, _>>()?;
        for (i, edge) in edges.iter().enumerate() {
            if edges[..i].contains(edge) {
                return Err(SpecError::new(format!("edges[{i}]"), "stands there twice"));
            }
        }
        if let Some(cycle) = find_cycle(nodes.len(), &edges) {
            let path: Vec<&str> = cycle.iter().map(|&n| nodes[n].label.as_str()).collect();
            return Err(SpecError::new("edges", format!("form a cycle: {}", path.join(" -> "))));
        }
        if let Some(policy) = &self.restart {
            policy.validate("restart")?;
        }
        for (i, edge) in self.edges.iter().enumerate() {
            edge.place_filter(i, &mut nodes, &mut edges, vars)?;
        }
        check_count("nodes", nodes.len(), NODES_MAX)?;
        let (discern, restart) = (self.discern.clone(), self.restart);
        Ok(ValidatedPipeline { label, nodes, edges, discern, restart })
    }
}

fn check_count(field: &str, is: usize, max: usize) -> Result<(), SpecError> {
    if is > max { Err(SpecError::new(field, format!("is {is}; at most {max} are allowed"))) } else { Ok(()) }
}

impl Node {
    /// What stands behind it, where that is no program of the workspace.
    fn foreign(&self, i: usize, vars: &BTreeMap<String, String>) -> Result<Option<Foreign>, SpecError> {
        let misplaced = |name: &str, beside: &str| {
            Err(SpecError::new(
                format!("nodes[{i}].{name}"),
                format!("stands without `{beside}`; add that, or drop this"),
            ))
        };
        let mut foreign = match (&self.wasm, &self.machine) {
            (Some(_), Some(_)) => {
                let problem = "stands beside `wasm`; a component runs in the workspace: keep one of them";
                return Err(SpecError::new(format!("nodes[{i}].machine"), problem));
            }
            (Some(_), None) if self.payload.is_some() || !self.command.is_empty() => {
                let problem = "stands beside `command` or `payload`; give the component its arguments in `args`";
                return Err(SpecError::new(format!("nodes[{i}].wasm"), problem));
            }
            (Some(reference), None) => Foreign::Component { reference: reference.clone(), dirs: self.dirs.clone() },
            (None, Some(name)) => Foreign::Machine { name: name.clone(), image: self.image.clone() },
            (None, None) if self.image.is_some() => return misplaced("image", "machine"),
            (None, None) => {
                return match (self.args.is_empty(), self.dirs.is_empty()) {
                    (true, true) => Ok(None),
                    (false, _) => misplaced("args", "wasm"),
                    (true, false) => misplaced("dirs", "wasm"),
                };
            }
        };
        foreign.substitute(vars);
        foreign.validate(&format!("nodes[{i}]"))?;
        Ok(Some(foreign))
    }

    /// Its further inputs and outputs.
    fn further(&self, i: usize, vars: &BTreeMap<String, String>) -> Result<FurtherFlows, SpecError> {
        let put = |names: &[String]| names.iter().map(|name| super::command::substitute(name, vars)).collect();
        let further = FurtherFlows { inputs: put(&self.inputs), outputs: put(&self.outputs) };
        let all = [("inputs", &further.inputs), ("outputs", &further.outputs)];
        for (kind, names) in all {
            check_count(&format!("nodes[{i}].{kind}"), names.len(), FLOWS_MAX)?;
            if !names.is_empty() && (self.wasm.is_some() || self.machine.is_some()) {
                let problem = "are of a program of the workspace; a component, or a program in a machine, has none";
                return Err(SpecError::new(format!("nodes[{i}].{kind}"), problem));
            }
            if let Some(name) = names.iter().find(|name| STANDARD.iter().any(|own| name.eq_ignore_ascii_case(own))) {
                let problem = format!("{name:?} is there without being named; these are further ones");
                return Err(SpecError::new(format!("nodes[{i}].{kind}"), problem));
            }
        }
        let inputs = further.inputs.len();
        check_flow_names(further.names(), |at| match at.checked_sub(inputs) {
            None => format!("nodes[{i}].inputs[{at}]"),
            Some(output) => format!("nodes[{i}].outputs[{output}]"),
        })?;
        Ok(further)
    }

    fn resolve(&self, i: usize, vars: &BTreeMap<String, String>) -> Result<NodeCommand, SpecError> {
        let field = |name: &str| format!("nodes[{i}].{name}");
        if let Some(reference) = &self.wasm {
            let exec = reference.clone();
            let (argv, envp) = (self.args.clone(), self.env.iter().map(|(k, v)| (k.clone(), v.clone())).collect());
            let mut payload = Payload::Native(NodeCommand { exec, argv, envp });
            payload.substitute(vars);
            payload.validate(&field("wasm"))?;
            let Payload::Native(command) = payload;
            return Ok(command);
        }
        let mut payload = match (&self.payload, self.command.split_first()) {
            (Some(payload), None) => payload.clone(),
            (None, Some((exec, argv))) => {
                Payload::Native(NodeCommand { exec: exec.clone(), argv: argv.to_vec(), envp: Vec::new() })
            }
            (Some(_), Some(_)) => {
                return Err(SpecError::new(field("command"), "stands beside `payload`; keep one of them"));
            }
            (None, None) => {
                return Err(SpecError::new(
                    field("command"),
                    "is missing; write `command = [\"program\", \"argument\"]`",
                ));
            }
        };
        let Payload::Native(command) = &mut payload;
        command.envp.extend(self.env.iter().map(|(k, v)| (k.clone(), v.clone())));
        payload.substitute(vars);
        payload.validate(&field("command"))?;
        let Payload::Native(command) = payload;
        Ok(command)
    }
}

impl Edge {
    /// Puts the filter between producer and consumer, as a node of its own: the edge leads into it, a new one out of it.
    fn place_filter(
        &self,
        i: usize,
        nodes: &mut Vec<ValidatedNode>,
        edges: &mut Vec<ValidatedEdge>,
        vars: &BTreeMap<String, String>,
    ) -> Result<(), SpecError> {
        let Some(reference) = &self.filter else {
            return if self.filter_args.is_empty() {
                Ok(())
            } else {
                Err(SpecError::new(
                    format!("edges[{i}].filter_args"),
                    "stands without `filter`; add that, or drop this",
                ))
            };
        };
        let reference = super::command::substitute(reference, vars);
        let argv = self.filter_args.iter().map(|arg| super::command::substitute(arg, vars)).collect();
        let foreign = Foreign::Filter { reference: reference.clone() };
        foreign.validate(&format!("edges[{i}]"))?;
        // The label of a node is unique; that of a filter says what it filters.
        let mut label = format!("filter of {}", nodes[edges[i].to].label);
        if nodes.iter().any(|node| node.label == label) || check_label("label", &label).is_err() {
            label = format!("filter of edge {i}");
        }
        let filter = nodes.len();
        nodes.push(ValidatedNode {
            label,
            command: NodeCommand { exec: reference, argv, envp: Vec::new() },
            foreign: Some(foreign),
            further: FurtherFlows::default(),
            soma: Soma::default(),
            restart: None,
        });
        let (to, to_input) = (edges[i].to, std::mem::take(&mut edges[i].to_input));
        (edges[i].to, edges[i].to_input) = (filter, stdin());
        edges.push(ValidatedEdge { from: filter, from_output: stdout(), to, to_input });
        Ok(())
    }

    fn resolve(
        &self,
        i: usize,
        nodes: &[ValidatedNode],
        vars: &BTreeMap<String, String>,
    ) -> Result<ValidatedEdge, SpecError> {
        let find = |field: &str, node: &NodeRef| match node {
            NodeRef::Position(n) if *n < nodes.len() => Ok(*n),
            NodeRef::Position(n) => Err(SpecError::new(
                format!("edges[{i}].{field}"),
                format!("is {n}, but the nodes are 0 to {}", nodes.len() - 1),
            )),
            NodeRef::Label(label) => {
                let label = super::command::substitute(label, vars);
                nodes.iter().position(|n| n.label == label).ok_or_else(|| {
                    let known: Vec<&str> = nodes.iter().map(|n| n.label.as_str()).collect();
                    SpecError::new(
                        format!("edges[{i}].{field}"),
                        format!("{label:?} is no node; there are {}", known.join(", ")),
                    )
                })
            }
        };
        let from = find("from", &self.from)?;
        let to = find("to", &self.to)?;
        let from_output = super::command::substitute(&self.from_output, vars);
        let to_input = super::command::substitute(&self.to_input, vars);
        let check = |field: &str, name: &str, kind: &str, node: usize, own: &[&str], further: &[String]| {
            let known: Vec<&str> = own.iter().copied().chain(further.iter().map(String::as_str)).collect();
            if known.contains(&name) {
                return Ok(());
            }
            let has = known.join(" and ");
            let problem = format!("{name:?} is no {kind} of {}; it has {has}", nodes[node].label);
            Err(SpecError::new(format!("edges[{i}].{field}"), problem))
        };
        check("from_output", &from_output, "output", from, &STANDARD[1..], &nodes[from].further.outputs)?;
        check("to_input", &to_input, "input", to, &STANDARD[..1], &nodes[to].further.inputs)?;
        Ok(ValidatedEdge { from, from_output, to, to_input })
    }
}

/// The nodes of one cycle, first and last the same; `None` where there is none.
///
/// Depth-first search with three colours: a node that is met again while it is still
/// on the path closes a cycle.
fn find_cycle(nodes: usize, edges: &[ValidatedEdge]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Colour {
        New,
        OnPath,
        Done,
    }
    fn visit(n: usize, edges: &[ValidatedEdge], colour: &mut [Colour], path: &mut Vec<usize>) -> Option<Vec<usize>> {
        colour[n] = Colour::OnPath;
        path.push(n);
        for edge in edges.iter().filter(|e| e.from == n) {
            match colour[edge.to] {
                Colour::Done => {}
                Colour::OnPath => {
                    let start = path.iter().position(|&p| p == edge.to).unwrap_or(0);
                    return Some(path[start..].iter().copied().chain([edge.to]).collect());
                }
                Colour::New => {
                    if let Some(cycle) = visit(edge.to, edges, colour, path) {
                        return Some(cycle);
                    }
                }
            }
        }
        path.pop();
        colour[n] = Colour::Done;
        None
    }
    let mut colour = vec![Colour::New; nodes];
    (0..nodes).find_map(|n| if colour[n] == Colour::New { visit(n, edges, &mut colour, &mut Vec::new()) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<ValidatedPipeline, String> {
        let vars = BTreeMap::from([("FILE".to_owned(), "/etc/hosts".to_owned())]);
        let spec: PipelineSpec = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        spec.validate(&vars).map_err(|e| e.to_string())
    }

    const TWO: &str =
        "label='p'\n[[nodes]]\nlabel='a'\ncommand=['cat','${FILE}']\n[[nodes]]\nlabel='b'\ncommand=['wc']\n";

    #[test]
    fn a_pipeline_is_resolved() {
        let got = check(&format!("{TWO}[[edges]]\nfrom='a'\nto=1\n")).unwrap();
        assert_eq!(got.nodes[0].command.argv, ["/etc/hosts"]);
        assert_eq!((got.edges[0].from, got.edges[0].to), (0, 1));
        assert_eq!(got.edges[0].from_output, "stdout");
    }

    #[test]
    fn the_long_form_of_a_node_works() {
        let text = "label='p'\n[[nodes]]\nlabel='a'\npayload.native={exec='cat',argv=['x'],envp=[['A','${FILE}']]}\n";
        let got = check(text).unwrap();
        assert_eq!(got.nodes[0].command.envp, [("A".to_owned(), "/etc/hosts".to_owned())]);
    }

    #[test]
    fn a_component_and_a_program_of_a_machine_are_nodes_too() {
        let text = "label='p'\n[[nodes]]\nlabel='a'\nwasm='wc@^1'\nargs=['${FILE}']\ndirs=['/work']\n\
            [[nodes]]\nlabel='b'\nmachine='db'\ncommand=['cat']\n";
        let got = check(text).unwrap();
        let dirs = vec!["/work".to_owned()];
        assert_eq!(got.nodes[0].foreign, Some(Foreign::Component { reference: "wc@^1".to_owned(), dirs }));
        assert_eq!(
            (got.nodes[0].command.exec.as_str(), &got.nodes[0].command.argv[..]),
            ("wc@^1", &["/etc/hosts".to_owned()][..])
        );
        assert_eq!(got.nodes[1].foreign.as_ref().and_then(Foreign::machine), Some("db"));
    }

    #[test]
    fn further_inputs_and_outputs_are_named_and_edges_join_them() {
        let text = "label='p'\n[[nodes]]\nlabel='a'\ncommand=['x']\noutputs=['errors','${WHICH}']\n\
            [[nodes]]\nlabel='b'\ncommand=['y']\ninputs=['left']\n";
        let vars = BTreeMap::from([("WHICH".to_owned(), "frames".to_owned())]);
        let got = |edges: &str| {
            let spec: PipelineSpec = toml::from_str(&format!("{text}{edges}")).unwrap();
            spec.validate(&vars).map_err(|e| e.to_string())
        };
        let good =
            got("[[edges]]\nfrom='a'\nfrom_output='${WHICH}'\nto='b'\nto_input='left'\n[[edges]]\nfrom='a'\nto='b'\n");
        let good = good.unwrap();
        assert_eq!(good.nodes[0].further.outputs, ["errors", "frames"]);
        let ends: Vec<_> = good.edges.iter().map(|e| (e.from_output.as_str(), e.to_input.as_str())).collect();
        assert_eq!(ends, [("frames", "left"), ("stdout", "stdin")]);
        for (edge, want) in [
            ("from_output='x'", "\"x\" is no output of a; it has stdout and stderr and errors and frames"),
            ("to_input='errors'", "\"errors\" is no input of b; it has stdin and left"),
        ] {
            let refused = got(&format!("[[edges]]\nfrom='a'\nto='b'\n{edge}\n")).unwrap_err();
            assert!(refused.contains(want), "{refused}");
        }
        for (node, want) in [
            ("outputs=['stdout']", "nodes[0].outputs: \"stdout\" is there without being named"),
            ("inputs=['a b']", "nodes[0].inputs[0]: \"a b\" is no name of a flow"),
            ("inputs=['a']\noutputs=['A']", "nodes[0].outputs[0]: \"A\": the variable SHIPOTE_FLOW_A is another"),
        ] {
            let refused = check(&format!("label='p'\n[[nodes]]\nlabel='a'\ncommand=['x']\n{node}\n")).unwrap_err();
            assert!(refused.contains(want), "{refused}");
        }
        let foreign = check("label='p'\n[[nodes]]\nlabel='a'\nwasm='x'\noutputs=['o']\n").unwrap_err();
        assert!(foreign.contains("nodes[0].outputs: are of a program of the workspace"), "{foreign}");
    }

    #[test]
    fn a_filter_is_a_node_between_the_two_ends_of_its_edge() {
        let got = check(&format!("{TWO}[[edges]]\nfrom='a'\nto='b'\nfilter='redact'\nfilter_args=['x']\n")).unwrap();
        assert_eq!(got.nodes[2].label, "filter of b");
        assert_eq!(got.nodes[2].foreign, Some(Foreign::Filter { reference: "redact".to_owned() }));
        let ends: Vec<_> = got.edges.iter().map(|edge| (edge.from, edge.to)).collect();
        assert_eq!(ends, [(0, 2), (2, 1)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let edge = |e: &str| format!("{TWO}[[edges]]\n{e}\n");
        let table = [
            ("label='p'".to_owned(), "nodes: is empty"),
            ("label='p'\n[[nodes]]\nlabel='a'".to_owned(), "nodes[0].command: is missing"),
            (format!("{TWO}[[nodes]]\nlabel='a'\ncommand=['x']"), "nodes[2].label: \"a\" is taken"),
            (edge("from='a'\nto='c'"), "edges[0].to: \"c\" is no node; there are a, b"),
            (edge("from=2\nto='b'"), "edges[0].from: is 2, but the nodes are 0 to 1"),
            (edge("from='a'\nto='b'\nfrom_output='out'"), "\"out\" is no output of a; it has stdout and stderr"),
            (edge("from='a'\nto='b'\nto_input='in'"), "\"in\" is no input of b; it has stdin"),
            (edge("from='a'\nto='a'"), "form a cycle: a -> a"),
            (edge("from='a'\nto='b'\n[[edges]]\nfrom='b'\nto='a'"), "form a cycle: a -> b -> a"),
            (edge("from='a'\nto='b'\n[[edges]]\nfrom=0\nto=1"), "edges[1]: stands there twice"),
            (edge("from='a'\nto='b'\nfilter_args=['x']"), "edges[0].filter_args: stands without `filter`"),
            (edge("from='a'\nto='b'\nfilter=''"), "edges[0].filter: is empty"),
            (format!("{TWO}[[nodes]]\nlabel='c'\nwasm='x'\ncommand=['y']"), "nodes[2].wasm: stands beside"),
            (format!("{TWO}[[nodes]]\nlabel='c'\nwasm='x'\nmachine='y'"), "nodes[2].machine: stands beside"),
            (format!("{TWO}[[nodes]]\nlabel='c'\ncommand=['x']\nimage='y'"), "nodes[2].image: stands without"),
            (format!("{TWO}[[nodes]]\nlabel='c'\ncommand=['x']\ndirs=['/y']"), "nodes[2].dirs: stands without"),
            (edge("from=true\nto='b'"), "a node's label, or its position"),
            (format!("label='p'\n{}", "[[nodes]]\nlabel='a'\ncommand=['x']\n".repeat(65)), "nodes: is 65; at most 64"),
        ];
        for (text, want) in table {
            let got = check(&text).unwrap_err();
            assert!(got.contains(want), "{text}\n{got}");
        }
    }
}
