//! Joining the nodes of a pipeline: their pipes, the relay that carries what is tapped, and what their keeper holds.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::live::{Live, clone_all};
use super::numbers;
use super::wiring::wire;
use crate::error::Error;
use crate::state::{Input, Pipeline};

impl Live {
    pub(super) fn wire_all(&mut self, pipeline: &Pipeline, labels: &[&str]) -> io::Result<()> {
        let what = &pipeline.what;
        let mut wiring = wire(pipeline.nodes.len(), &what.edges, what.tap)?;
        if let Some(stdio) = self.handed.get_mut(&what.id).and_then(|h| h.stdio.take()) {
            self.kept_stdio.insert(what.id, stdio.map(Some));
        }
        self.hold_for_pipeline(pipeline)?;
        if let Some(kept) = self.kept_stdio.get(&what.id) {
            let [stdin, stdout, stderr] = clone_all(kept)?;
            // one reader only: two nodes reading one input would each get some of it
            if let Some(first) = wiring.nodes.iter_mut().find(|n| n.stdin.is_none()) {
                first.stdin = stdin;
            }
            for node in &mut wiring.nodes {
                if node.stdout.is_none() {
                    node.stdout = stdout.as_ref().map(OwnedFd::try_clone).transpose()?;
                }
                if node.stderr.is_none() {
                    node.stderr = stderr.as_ref().map(OwnedFd::try_clone).transpose()?;
                }
            }
        }
        if what.restart.is_none() {
            self.kept_stdio.remove(&what.id);
        }
        let carried = self.flows.start(pipeline, labels, wiring.junctions)?;
        let (id, inputs) = (what.id, self.inputs.clone());
        tokio::spawn(async move {
            if let Err(reason) = carried.await {
                let error = Error::Failed(format!("run pipeline {id}: {reason}"));
                let _ = inputs.send(Input::PipelineBroken { pipeline: id, error });
            }
        });
        self.nodes.extend(pipeline.nodes.iter().copied().zip(wiring.nodes));
        Ok(())
    }

    /// Has the keeper hold what a pipeline needs until it has ended.
    fn hold_for_pipeline(&self, pipeline: &Pipeline) -> io::Result<()> {
        let id = pipeline.what.id;
        let mut held: Vec<(u8, OwnedFd)> = Vec::new();
        if let Some(completion) = self.handed.get(&id).and_then(|handed| handed.completion.as_ref()) {
            held.push((numbers::TAG_DONE, completion.try_clone()?));
        }
        if pipeline.what.restart.is_some()
            && let Some(kept) = self.kept_stdio.get(&id)
        {
            for (tag, fd) in (numbers::TAG_STDIO..).zip(kept) {
                if let Some(fd) = fd {
                    held.push((tag, fd.try_clone()?));
                }
            }
        }
        let Some((keeper, _)) = self.kept(pipeline.workspace).filter(|_| !held.is_empty()) else { return Ok(()) };
        tokio::spawn(async move {
            let descriptors: Vec<_> = held.iter().map(|(tag, fd)| (*tag, fd.as_fd())).collect();
            if let Err(error) = keeper.hold(numbers::number(id), &descriptors).await {
                tracing::debug!("hold the descriptors of pipeline {id}: {error}");
            }
        });
        Ok(())
    }
}
