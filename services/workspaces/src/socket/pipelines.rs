//! Starting a pipeline, and what its edges turn out to carry.

use std::collections::BTreeMap;
use std::time::Duration;

use shipote_audit::Event;
use shipote_bus::spec::{ValidatedEdge, ValidatedPipeline, substitute};
use shipote_bus::workspaces::FlowInfo;
use shipote_workspace_protocol::spec::PipelineSpec;
use shipote_workspace_protocol::{EdgeDiscernmentInfo, Response, convert};
use ulid::Ulid;

use super::Door;
use super::answer::invalid;
use crate::actor::{Call, node_list};
use crate::audited::By;
use crate::effects::Handed;
use crate::error::Error;
use crate::state::Target;

/// How long the answer waits for the first samples.
const SAMPLE_TIME: Duration = Duration::from_millis(500);

impl Door {
    pub(super) async fn run_pipeline(
        &self,
        by: By,
        spec: &PipelineSpec,
        tap: bool,
        vars: &BTreeMap<String, String>,
    ) -> Result<Response, Error> {
        self.owns_workspace(by, spec.workspace.0).await?;
        let pipeline = convert::pipeline(spec, vars).map_err(invalid("run pipeline"))?;
        let ValidatedPipeline { label, nodes, edges, .. } = &pipeline;
        let label = label.clone();
        let mut known: Vec<EdgeDiscernmentInfo> = edges
            .iter()
            .zip(&spec.edges)
            .map(|(ValidatedEdge { from, to, .. }, edge)| EdgeDiscernmentInfo {
                from_label: nodes[*from].label.clone(),
                // as the client calls it, which may have declared names of its own
                from_output: substitute(&edge.from_output, vars),
                to_label: nodes[*to].label.clone(),
                to_input: substitute(&edge.to_input, vars),
                ty: None,
                mime: None,
                lens: None,
                confidence: 0.0,
                flow_socket: None,
            })
            .collect();
        let id = Ulid::generate();
        let call = Call::RunPipeline {
            target: Target::Existing(spec.workspace.0.to_string()),
            strict: false,
            uid: by.uid,
            tap,
            pipeline: Box::new(pipeline),
            id,
            handed: Handed::default(),
        };
        self.change(by, Event::PipelineRun, &label, call).await?;
        let command_pids = self
            .actor
            .ask(move |state, _| {
                let nodes = state.pipelines.get(&id).map(|p| node_list(state, p)).unwrap_or_default();
                nodes.into_iter().map(|(label, _, pid)| (label, pid)).collect()
            })
            .await?;
        if !tap {
            return Ok(Response::PipelineStarted { pipeline: id, command_pids, edges: Vec::new() });
        }
        for flow in self.first_samples(id, known.len()).await? {
            if let Some(edge) = known.get_mut(flow.edge as usize) {
                let some = |text: String| if text.is_empty() { None } else { Some(text) };
                edge.confidence = flow.confidence as f32;
                edge.flow_socket = some(flow.socket).map(Into::into);
                (edge.ty, edge.mime, edge.lens) = (some(flow.ty), some(flow.mime), some(flow.lens));
                if !spec.discern.enrich_producer {
                    let producer = spec.edges.get(flow.edge as usize).and_then(|edge| spec.nodes.get(edge.from));
                    edge.ty = producer.and_then(|node| convert::declared_type(node, &edge.from_output, vars));
                }
            }
        }
        Ok(Response::PipelineStarted { pipeline: id, command_pids, edges: known })
    }

    /// What is known of the edges of a pipeline once all have been sampled, or when the time is over.
    async fn first_samples(&self, pipeline: Ulid, edges: usize) -> Result<Vec<FlowInfo>, Error> {
        let mut news = self.flow_news.clone();
        let over = tokio::time::sleep(SAMPLE_TIME);
        tokio::pin!(over);
        loop {
            news.mark_unchanged();
            let id = pipeline.to_string();
            let flows: Vec<FlowInfo> = self
                .actor
                .ask(move |_, flows| flows.flows().into_iter().filter(|flow| flow.pipeline == id).collect())
                .await?;
            let sampled = flows.iter().filter(|flow| !flow.ty.is_empty() || flow.state == "ended").count();
            if sampled >= edges {
                return Ok(flows);
            }
            tokio::select! {
                () = &mut over => return Ok(flows),
                changed = news.changed() => if changed.is_err() { return Ok(flows) },
            }
        }
    }
}
