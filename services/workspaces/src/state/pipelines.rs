//! Pipelines: several commands that start, stop and end together.

use std::time::Duration;

use ulid::Ulid;

use super::restart::Restarts;
use super::{
    Command, CommandPhase, Effect, Ending, Key, NewPipeline, Outcome, Pipeline, RequestId, State, Timer, Usec,
};
use crate::error::Error;

/// 128 + SIGPIPE: its consumer had enough, which is no failure of the producer.
const STATUS_SIGPIPE: i32 = 141;

impl State {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn add_pipeline(
        &mut self,
        request: RequestId,
        what: NewPipeline,
        workspace: Ulid,
        workspace_name: String,
        nodes: Vec<Ulid>,
        uid: u32,
        now: Usec,
        ready: bool,
        out: &mut Vec<Effect>,
    ) {
        let id = what.id;
        let pipeline = Pipeline {
            what,
            workspace,
            workspace_name,
            nodes: nodes.clone(),
            uid,
            started: now,
            exit_status: None,
            ended: None,
            launched: now,
            restarts: Restarts::default(),
            reply: Some(request),
            stoppers: Vec::new(),
            failure: None,
        };
        self.touched.insert(Key::Pipeline(id));
        self.pipelines.insert(id, pipeline);
        if ready {
            out.push(Effect::Wire { pipeline: id });
            out.extend(nodes.into_iter().map(|command| Effect::StartCommand { command }));
        }
    }

    /// A node could not be started: the others are of no use.
    pub(super) fn pipeline_failed(&mut self, id: Ulid, error: &Error, now: Usec, out: &mut Vec<Effect>) {
        let Some(pipeline) = self.pipeline_mut(id) else { return };
        if pipeline.failure.is_some() || pipeline.exit_status.is_some() {
            return;
        }
        pipeline.failure = Some(error.clone());
        if let Some(request) = pipeline.reply.take() {
            out.push(Effect::Reply { request, result: Err(error.clone()) });
        }
        for node in pipeline.nodes.clone() {
            self.end_command(node, Ending::Stopped, Duration::ZERO, now, out);
        }
    }

    /// What carries its flows is gone or never came.
    pub(super) fn pipeline_broken(&mut self, id: Ulid, error: &Error, now: Usec, out: &mut Vec<Effect>) {
        let Some(first) = self.pipelines.get(&id).and_then(|pipeline| pipeline.nodes.first().copied()) else { return };
        if let Some(command) = self.command_mut(first).filter(|command| command.message.is_empty()) {
            command.message = error.to_string();
        }
        self.pipeline_failed(id, error, now, out);
    }

    /// Launches all nodes again.
    pub(super) fn relaunch_pipeline(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let Some(pipeline) = self.pipeline_mut(id) else { return };
        if pipeline.exit_status.is_some() || pipeline.restarts.due.take().is_none() {
            return;
        }
        pipeline.launched = now;
        let nodes = pipeline.nodes.clone();
        let mut starts = Vec::new();
        for node in nodes {
            self.relaunch(node, now, &mut starts);
        }
        let (starts, told): (Vec<_>, Vec<_>) =
            starts.into_iter().partition(|effect| matches!(effect, Effect::StartCommand { .. }));
        out.extend(told);
        out.push(Effect::Wire { pipeline: id });
        out.extend(starts);
    }

    /// All nodes of a pipeline that is restarted wait: launches them again after a pause, or ends them.
    fn settle(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let Some(pipeline) = self.pipelines.get(&id) else { return };
        let nodes = pipeline.nodes.clone();
        let failed = nodes
            .iter()
            .filter_map(|node| self.commands.get(node)?.last)
            .any(|last| last.status != 0 && last.status != STATUS_SIGPIPE);
        let Some(pipeline) = self.pipeline_mut(id) else { return };
        let policy = pipeline.what.restart.filter(|_| failed);
        if let Some(delay) = policy.and_then(|p| pipeline.restarts.after_failure(&p, pipeline.launched, now)) {
            out.push(Effect::After { delay, input: Timer::RelaunchPipeline(id) });
            out.push(Effect::PipelineChanged { pipeline: id });
            return;
        }
        for node in nodes {
            self.finish_waiting(node, None, now, out);
        }
    }

    /// A node has started or ended.
    pub(super) fn pipeline_progress(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let Some(pipeline) = self.pipelines.get(&id) else { return };
        if pipeline.exit_status.is_some() {
            return;
        }
        let phases: Vec<_> = pipeline.nodes.iter().filter_map(|n| self.commands.get(n)).collect();
        let all_begun = phases.iter().all(|c| c.phase != CommandPhase::Starting);
        let all_ended = phases.iter().all(|c| c.phase == CommandPhase::Ended);
        let resting = |c: &&Command| matches!(c.phase, CommandPhase::Waiting | CommandPhase::Ended);
        // a node that waits for a launch of its own is not resting with the others
        let all_rest = !all_ended && phases.iter().all(|c| resting(c) && c.restarts.due.is_none());
        let waits = pipeline.restarts.due.is_some();
        let status = phases.iter().filter_map(|c| c.exit_status).find(|&s| s != 0 && s != STATUS_SIGPIPE).unwrap_or(0);
        let message = phases.iter().find(|c| !c.message.is_empty()).map(|c| c.message.clone()).unwrap_or_default();
        let stopped = phases.iter().any(|c| c.reason == "stopped");
        let nodes = u32::try_from(phases.len()).unwrap_or(u32::MAX);
        let Some(pipeline) = self.pipeline_mut(id) else { return };
        if all_begun && let Some(request) = pipeline.reply.take() {
            out.push(Effect::Reply { request, result: Ok(Outcome::PipelineStarted(id)) });
            out.push(Effect::PipelineChanged { pipeline: id });
        }
        if all_rest && !waits {
            return self.settle(id, now, out);
        }
        if all_ended {
            pipeline.exit_status = Some(status);
            pipeline.ended = Some(now);
            pipeline.restarts.due = None;
            let reason = match &pipeline.failure {
                Some(_) => "spawn-failed",
                None if stopped => "stopped",
                None => "exited",
            };
            for request in std::mem::take(&mut pipeline.stoppers) {
                out.push(Effect::Reply { request, result: Ok(Outcome::Reaped(nodes)) });
            }
            out.push(Effect::Complete { id, status, reason, message });
            out.push(Effect::PipelineChanged { pipeline: id });
        }
    }

    pub(super) fn stop_pipeline(
        &mut self,
        request: RequestId,
        name: &str,
        grace: Duration,
        now: Usec,
        out: &mut Vec<Effect>,
    ) {
        let found = match self.find_pipeline(name) {
            Ok(pipeline) if pipeline.exit_status.is_none() => Ok(pipeline.what.id),
            Ok(_) => Err(Error::NoSuchPipeline(name.to_owned())),
            Err(error) => Err(error),
        };
        match found {
            Ok(id) => {
                let Some(pipeline) = self.pipeline_mut(id) else { return };
                pipeline.stoppers.push(request);
                for node in pipeline.nodes.clone() {
                    self.end_command(node, Ending::Stopped, grace, now, out);
                }
            }
            Err(error) => out.push(Effect::Reply { request, result: Err(error) }),
        }
    }

    /// One of its commands left the history.
    pub(super) fn pipeline_forget(&mut self, id: Ulid, out: &mut Vec<Effect>) {
        if self.pipelines.get(&id).is_some_and(|p| p.exit_status.is_some()) {
            self.touched.insert(Key::Pipeline(id));
            self.pipelines.remove(&id);
            out.push(Effect::PipelineForgotten { pipeline: id });
        }
    }
}
