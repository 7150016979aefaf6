//! From what a client of the socket may write to what the services work with.
//!
//! Whatever they cannot honour is refused by name: a limit that was asked for and silently left out would be a hole.
//! One thing is taken without an effect because it asks for nothing: namespaces, of which a workspace always has all.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use shipote_bus::spec::{self as bus, SpecError, ValidatedPipeline, check_label, substitute};

use crate::spec::{
    CommandRef, ExitPolicy, Filesystem, Flow, FlowDirection, FlowScope, FlowSlot, Networking, Payload, PipelineSpec,
    QuotaAction, SomaSpec, Supervision, TypeRef, WorkspaceSpec,
};

/// Most entries of anything in one spec that are looked at: more are refused before they are copied.
const ENTRIES_MAX: usize = 8192;

fn refuse<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::new(field, problem))
}

fn later<T>(field: impl Into<String>, what: &str, now: &str) -> Result<T, SpecError> {
    refuse(field, format!("{what} is not available yet; {now}"))
}

/// The workspace that is asked for.
///
/// # Errors
/// The first field that cannot be honoured.
pub fn workspace(spec: WorkspaceSpec) -> Result<bus::WorkspaceSpec, SpecError> {
    check_label("label", &spec.label)?;
    let soma = soma("soma", &spec.soma)?;
    if spec.flow_dirs.len() > bus::FLOWS_MAX {
        return refuse("flow_dirs", format!("are {}; at most {} are allowed", spec.flow_dirs.len(), bus::FLOWS_MAX));
    }
    let flow_dirs = spec.flow_dirs.into_iter().map(slot).collect();
    let on_exit = match spec.on_exit {
        ExitPolicy::Reap => bus::ExitPolicy::Reap,
        ExitPolicy::Keep => bus::ExitPolicy::Keep,
        ExitPolicy::Snapshot => bus::ExitPolicy::Snapshot,
    };
    let action = |action: QuotaAction| match action {
        QuotaAction::None => bus::QuotaAction::None,
        QuotaAction::Log => bus::QuotaAction::Log,
        QuotaAction::Kill => bus::QuotaAction::Kill,
    };
    let quota_enforce =
        bus::QuotaEnforcement { mem: action(spec.quota_enforce.mem), nproc: action(spec.quota_enforce.nproc) };
    let permissions = bus::Permissions {
        networking: match spec.permissions.networking {
            Networking::None => bus::Networking::None,
            Networking::Loopback => bus::Networking::Loopback,
            Networking::Outbound => bus::Networking::Outbound,
            Networking::Full => bus::Networking::Full,
        },
        filesystem: match spec.permissions.filesystem {
            Filesystem::None => bus::Filesystem::None,
            Filesystem::ReadOnly => bus::Filesystem::ReadOnly,
            Filesystem::ReadWrite => bus::Filesystem::ReadWrite,
        },
        ipc: bus::IpcPolicy { allow: spec.permissions.ipc.allow },
        processes: spec.permissions.processes,
    };
    let made = bus::WorkspaceSpec {
        label: spec.label,
        soma,
        permissions,
        ttl: spec.ttl,
        quota_enforce,
        on_exit,
        flow_dirs,
        ..bus::WorkspaceSpec::default()
    };
    made.validate()?;
    Ok(made)
}

fn slot(slot: FlowSlot) -> bus::FlowSlot {
    let direction = match slot.direction {
        FlowDirection::Input => bus::FlowDirection::Input,
        FlowDirection::Output => bus::FlowDirection::Output,
    };
    let scope = match slot.scope {
        FlowScope::Workspace => bus::FlowScope::Workspace,
        FlowScope::Public => bus::FlowScope::Public,
    };
    bus::FlowSlot { name: slot.name, direction, scope }
}

/// The limits that are asked for, of a workspace or of a node.
fn soma(field: &str, soma: &SomaSpec) -> Result<bus::Soma, SpecError> {
    let SomaSpec { namespaces: _, rlimits, cgroup, cpu_affinity } = soma;
    if !cgroup.path.is_empty() {
        return later(format!("{field}.cgroup.path"), "a control group of one's own choice", "leave it empty");
    }
    let made = bus::Soma {
        rlimits: bus::ResourceLimits { mem_bytes: rlimits.mem_bytes, nproc: rlimits.nproc, nofile: rlimits.nofile },
        cgroup: bus::CgroupLimits {
            cpu_weight: cgroup.cpu_weight,
            io_weight: cgroup.io_weight,
            ..bus::CgroupLimits::default()
        },
        cpu_affinity: cpu_affinity.clone(),
    };
    made.validate(field)?;
    Ok(made)
}

/// The pipeline that is asked for, with `vars` put for `${KEY}` in every string.
///
/// # Errors
/// The first field that cannot be honoured, or what is wrong with the pipeline.
pub fn pipeline(spec: &PipelineSpec, vars: &BTreeMap<String, String>) -> Result<ValidatedPipeline, SpecError> {
    // every string is final: what a variable brought in is not looked at again
    pipeline_spec(spec, vars)?.validate(&BTreeMap::new())
}

/// As [`pipeline`], as a person would write it; without variables, `${KEY}` stays as it is.
///
/// # Errors
/// The first field that cannot be honoured.
pub fn pipeline_spec(spec: &PipelineSpec, vars: &BTreeMap<String, String>) -> Result<bus::PipelineSpec, SpecError> {
    if spec.nodes.len() > bus::NODES_MAX {
        return refuse("nodes", format!("are {}; at most {} are allowed", spec.nodes.len(), bus::NODES_MAX));
    }
    if spec.edges.len() > bus::EDGES_MAX {
        return refuse("edges", format!("are {}; at most {} are allowed", spec.edges.len(), bus::EDGES_MAX));
    }
    let nodes =
        spec.nodes.iter().enumerate().map(|(i, n)| node(&format!("nodes[{i}]"), n, vars)).collect::<Result<_, _>>()?;
    let mut edges = Vec::with_capacity(spec.edges.len());
    for (i, edge) in spec.edges.iter().enumerate() {
        let find = |field: &str, position: usize| {
            let last = spec.nodes.len().saturating_sub(1);
            spec.nodes.get(position).ok_or_else(|| {
                SpecError::new(format!("edges[{i}].{field}"), format!("is {position}, but the nodes are 0 to {last}"))
            })
        };
        let (from, to) = (find("from", edge.from)?, find("to", edge.to)?);
        let output = substitute(&edge.from_output, vars);
        let input = substitute(&edge.to_input, vars);
        edges.push(bus::Edge {
            from: bus::NodeRef::Position(edge.from),
            from_output: resolve(
                &format!("edges[{i}].from_output"),
                &output,
                (&from.label, "output"),
                &outputs(&from.flows.output, vars),
            )?,
            to: bus::NodeRef::Position(edge.to),
            to_input: resolve(
                &format!("edges[{i}].to_input"),
                &input,
                (&to.label, "input"),
                &inputs(&to.flows.input, vars),
            )?,
            filter: None,
            filter_args: Vec::new(),
        });
    }
    let discern = bus::DiscernPolicy {
        sample_bytes: spec.discern.sample_bytes,
        replay_chunks: spec.discern.replay_chunks,
        replay_bytes: spec.discern.replay_bytes,
        max_bytes_per_sec: spec.discern.max_bytes_per_sec,
        lossless: false,
    };
    let restart =
        spec.restart_on_failure.then(|| policy(spec.restart_backoff_ms, spec.restart_max_backoff_ms, spec.restart_max));
    let label = substitute(&spec.label, vars);
    Ok(bus::PipelineSpec { label, workspace: None, nodes, edges, discern, restart })
}

/// Figures of a restart, doubling; a cap below the first pause is the pause.
fn policy(initial_ms: u64, max_ms: u64, limit: u32) -> bus::RestartPolicy {
    bus::RestartPolicy { initial_ms, max_ms: max_ms.max(initial_ms), limit, ..bus::RestartPolicy::default() }
}

fn node(field: &str, node: &CommandRef, vars: &BTreeMap<String, String>) -> Result<bus::Node, SpecError> {
    let soma = soma(&format!("{field}.soma"), &node.soma)?;
    for (name, flows) in [("input", &node.flows.input), ("output", &node.flows.output)] {
        // the first is a standard one
        if flows.len() > bus::FLOWS_MAX + 1 {
            let problem = format!("are {}; at most {} are allowed", flows.len(), bus::FLOWS_MAX + 1);
            return refuse(format!("{field}.flows.{name}"), problem);
        }
        if let Some(at) = flows.iter().position(|flow| flow.pin_to.is_some()) {
            let now = "leave it out, and share a flow of the workspace (`flow_dirs`)";
            return later(format!("{field}.flows.{name}[{at}].pin_to"), "binding a flow to a place", now);
        }
    }
    let restart = match node.supervision {
        Supervision::OneShot => None,
        Supervision::Restart { initial, max } => Some(policy(initial, max, 0)),
        Supervision::Delegate => return later(format!("{field}.supervision"), "delegation", "use `oneshot`"),
    };
    let label = substitute(&node.label, vars);
    let payload = match &node.payload {
        Payload::Native { exec, argv, envp } => bus::Payload::Native(command(exec, argv, envp, vars)?),
        Payload::Wasm { module_sha256, entry } => {
            let wasm = Some(component(field, module_sha256, entry)?);
            let (inputs, outputs) = (further(&node.flows.input, vars), further(&node.flows.output, vars));
            return Ok(bus::Node { label, wasm, inputs, outputs, soma, restart, ..bus::Node::default() });
        }
        Payload::Virtual => return later(format!("{field}.payload"), "a virtual node", "use `native`"),
        Payload::Legacy { .. } => {
            return later(format!("{field}.payload"), "imitating services of the system", "use `native`");
        }
    };
    let (inputs, outputs) = (further(&node.flows.input, vars), further(&node.flows.output, vars));
    Ok(bus::Node { label, payload: Some(payload), inputs, outputs, soma, restart, ..bus::Node::default() })
}

/// The reference of a component by its digest. What is called is `run`, of `wasi:cli/run`, the one entry of a command.
fn component(field: &str, digest: &[u8; 32], entry: &str) -> Result<String, SpecError> {
    if !(matches!(entry, "" | "run") || entry.starts_with("wasi:cli/run")) {
        let problem = format!("{entry:?} is no entry of a command component; write \"run\", or nothing");
        return refuse(format!("{field}.payload.entry"), problem);
    }
    let mut reference = "sha256:".to_owned();
    for byte in digest {
        // writing to a string does not fail
        let _ = write!(reference, "{byte:02x}");
    }
    Ok(reference)
}

/// A program with its arguments and environment.
///
/// # Errors
/// There are more of them than any program is given.
pub fn command(
    exec: &str,
    argv: &[String],
    envp: &[(String, String)],
    vars: &BTreeMap<String, String>,
) -> Result<bus::NodeCommand, SpecError> {
    for (field, count) in [("argv", argv.len()), ("envp", envp.len())] {
        if count > ENTRIES_MAX {
            return refuse(field, format!("has {count} entries; at most {ENTRIES_MAX} are taken"));
        }
    }
    Ok(bus::NodeCommand {
        exec: substitute(exec, vars),
        argv: argv.iter().map(|a| substitute(a, vars)).collect(),
        envp: envp.iter().map(|(k, v)| (substitute(k, vars), substitute(v, vars))).collect(),
    })
}

/// All that are declared beside the first, which is a standard stream.
fn further(declared: &[Flow], vars: &BTreeMap<String, String>) -> Vec<String> {
    declared.iter().skip(1).map(|flow| substitute(&flow.name, vars)).collect()
}

/// The declared type of an output as the socket shows types; None where it is not declared, or none is said.
#[must_use]
pub fn declared_type(node: &CommandRef, output: &str, vars: &BTreeMap<String, String>) -> Option<String> {
    let flow = node.flows.output.iter().find(|flow| substitute(&flow.name, vars) == output)?;
    match &flow.ty {
        TypeRef::Primitive { name } if name.is_empty() => None,
        ty => Some(format!("{ty:?}")),
    }
}

/// Outputs that edges may name, and what each is called in the service's own specs.
fn outputs(declared: &[Flow], vars: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut all = named(declared, vars, "stdout");
    if all.iter().all(|(name, _)| name != "stderr") {
        all.push(("stderr".to_owned(), "stderr".to_owned()));
    }
    all
}

fn inputs(declared: &[Flow], vars: &BTreeMap<String, String>) -> Vec<(String, String)> {
    named(declared, vars, "stdin")
}

fn named(declared: &[Flow], vars: &BTreeMap<String, String>, standard: &str) -> Vec<(String, String)> {
    let first = declared.first().map_or_else(|| standard.to_owned(), |flow| substitute(&flow.name, vars));
    let more = further(declared, vars).into_iter().map(|name| (name.clone(), name));
    std::iter::once((first, standard.to_owned())).chain(more).collect()
}

fn resolve(
    field: &str,
    name: &str,
    (label, kind): (&str, &str),
    known: &[(String, String)],
) -> Result<String, SpecError> {
    match known.iter().find(|(known, _)| known == name) {
        Some((_, stream)) => Ok(stream.clone()),
        None => {
            let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
            refuse(field, format!("{name:?} is no {kind} of {label}; it has {}", names.join(" and ")))
        }
    }
}
