//! One edge: its consumer and, perhaps, its tap.

use rustix::io::Errno;

use crate::event::{EndReason, Events, FlowEvent};
use crate::outlet::Outlet;
use crate::pipe::Moved;
use crate::tap::TapState;

pub(crate) struct Edge {
    pub(crate) outlet: Outlet,
    pub(crate) tap: Option<TapState>,
    pub(crate) events: Events,
}

impl Edge {
    /// Its consumer still reads.
    pub(crate) fn is_live(&self) -> bool {
        self.outlet.sink.is_some()
    }

    /// The tap, if it is still to be given chunks.
    pub(crate) fn live_tap(&mut self) -> Option<&mut TapState> {
        self.tap.as_mut().filter(|tap| !tap.ended)
    }

    /// Closes the consumer's pipe and lets the tap's subscribers come to the end.
    pub(crate) fn end(&mut self, reason: EndReason) {
        if self.outlet.sink.take().is_none() {
            return;
        }
        if let Some(tap) = &mut self.tap {
            tap.end();
        }
        let bytes = self.outlet.shared.snapshot().bytes_total;
        self.events.send(FlowEvent::Ended { id: self.outlet.id, bytes, reason });
    }

    pub(crate) fn fail(&mut self, what: &str, errno: Errno) {
        let reason = format!("{what}: {errno}");
        self.events.send(FlowEvent::Failed { id: self.outlet.id, reason });
        self.end(EndReason::Failed);
    }

    /// Ends the edge if what came of giving it bytes says so; how many it took otherwise.
    pub(crate) fn took(&mut self, moved: Moved) -> usize {
        if let Some(errno) = self.outlet.refused.take() {
            let reason = format!("the sink cannot be spliced to: {errno}");
            self.events.send(FlowEvent::Copied { id: self.outlet.id, reason });
        }
        match moved {
            Moved::Bytes(bytes) => return bytes,
            Moved::Later | Moved::End => {}
            Moved::Closed => self.end(EndReason::ConsumerClosed),
            Moved::Refused(errno) => self.fail("write to the consumer", errno),
        }
        0
    }
}
