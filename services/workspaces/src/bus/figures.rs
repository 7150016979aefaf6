//! `org.shipote.Workspaces1.Figures`, at the root object: what workspaces use.

use std::collections::{HashMap, HashSet};

use shipote_bus::spec::QuotaAction;
use shipote_bus::workspaces::{WorkspaceQuota, WorkspaceStats, WorkspacesError};
use ulid::Ulid;
use zbus::OwnedVariant;
use zbus::message::Header;

use super::doors::{ACTION_RUN, Doors};
use crate::error::Error;
use crate::figures::{Meter, Sample, Standing};
use crate::state::{Workspace, manages};

/// The figures of all workspaces.
pub(crate) struct Figures {
    pub(crate) doors: Doors,
    pub(crate) meter: Meter,
}

#[zbus::interface(name = "org.shipote.Workspaces1.Figures")]
impl Figures {
    /// What a workspace (name or id) uses at this moment; of all that are the caller's, for root of all, oldest first,
    /// where it is empty. Another user's takes the right to manage. A figure that the host does not have is absent. No
    /// options yet.
    #[zbus(out_args("stats"))]
    async fn stats(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        options: HashMap<String, OwnedVariant>,
    ) -> Result<Vec<WorkspaceStats>, WorkspacesError> {
        none(&options)?;
        let wanted: HashSet<Ulid> = if workspace.is_empty() {
            let caller = self.doors.authority.check(&header, ACTION_RUN).await.map_err(Error::from)?;
            let own = move |w: &Workspace| manages(caller.uid) || w.uid == caller.uid;
            self.doors.actor.ask(move |s, _| s.workspaces.values().filter(|w| own(w)).map(|w| w.id).collect()).await?
        } else {
            HashSet::from([self.find(&header, workspace).await?])
        };
        Ok(self.meter.standings(&self.doors.actor, move |id| wanted.contains(id)).await?.iter().map(stats).collect())
    }

    /// The limits of a workspace (name or id), what happens at them, and what is over them or was. No options yet.
    #[zbus(out_args("quota"))]
    async fn quota(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        options: HashMap<String, OwnedVariant>,
    ) -> Result<WorkspaceQuota, WorkspacesError> {
        none(&options)?;
        let id = self.find(&header, workspace).await?;
        let standing = self.meter.standing(&self.doors.actor, id).await?;
        let report = standing.quota();
        Ok(WorkspaceQuota {
            name: standing.subject.name.clone(),
            memory_limit_bytes: report.memory_limit,
            process_limit: report.process_limit,
            memory_action: action(report.memory_action).to_owned(),
            process_action: action(report.process_action).to_owned(),
            breaches: report.breaches,
        })
    }

    /// Samples of a workspace (name or id), one every two seconds while it lives, the last 64 of them, oldest first; also
    /// those that an earlier instance of the service took. `tail`: only so many of the last, 0 for all. No options yet.
    #[zbus(out_args("samples"))]
    async fn history(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        tail: u32,
        options: HashMap<String, OwnedVariant>,
    ) -> Result<Vec<WorkspaceStats>, WorkspacesError> {
        none(&options)?;
        let id = self.find(&header, workspace).await?;
        let tail = usize::try_from(tail).unwrap_or(usize::MAX);
        Ok(self.meter.history(id, tail).iter().map(|sample| of_sample(id, sample)).collect())
    }
}

impl Figures {
    /// The workspace, if the caller may look at it.
    async fn find(&self, header: &Header<'_>, workspace: String) -> Result<Ulid, Error> {
        self.doors.may_look_at_workspace(header, &workspace).await?;
        self.doors.actor.ask(move |state, _| state.find_workspace(&workspace).map(|w| w.id)).await?
    }
}

fn none(options: &HashMap<String, OwnedVariant>) -> Result<(), Error> {
    match options.keys().next() {
        None => Ok(()),
        Some(key) => Err(Error::InvalidArgument(format!("option {key:?} is not known; this method has no options"))),
    }
}

pub(crate) fn action(action: QuotaAction) -> &'static str {
    match action {
        QuotaAction::None => "none",
        QuotaAction::Log => "log",
        QuotaAction::Kill => "kill",
    }
}

fn of_sample(id: Ulid, sample: &Sample) -> WorkspaceStats {
    WorkspaceStats {
        id: id.to_string(),
        at: sample.at,
        source: sample.source().to_owned(),
        commands_alive: sample.commands_alive,
        commands_total: sample.commands_total,
        uptime_ms: sample.uptime_ms,
        cpu_cores: crate::figures::cores(),
        memory_bytes: sample.memory,
        memory_peak_bytes: sample.memory_peak,
        cpu_usec: sample.cpu_usec,
        cpu_percent: sample.cpu_percent.map(f64::from),
        io_read_bytes: sample.io.map(|io| io.0),
        io_write_bytes: sample.io.map(|io| io.1),
        pids: sample.pids,
        ..WorkspaceStats::default()
    }
}

fn stats(standing: &Standing) -> WorkspaceStats {
    let (figures, soma) = (&standing.reading.figures, &standing.subject.soma);
    // a host without the group has no counts, which is not the same as none
    let counted = |n: u64| standing.subject.group.is_some().then_some(n);
    let events = standing.reading.events;
    let share = standing.subject.share.as_ref();
    WorkspaceStats {
        name: standing.subject.name.clone(),
        memory_limit_bytes: soma.memory(),
        user_memory_bytes: share.and_then(|share| share.cgroup.figures().memory),
        user_memory_limit_bytes: share.and_then(|share| share.memory),
        swap_bytes: figures.swap,
        throttled_usec: figures.throttled_usec,
        pids_peak: figures.pids_peak.map(|n| n.saturating_sub(1)),
        pids_limit: soma.processes().map(u64::from),
        cpu_pressure: figures.cpu_pressure.map(|p| p.some.avg10),
        memory_pressure: figures.memory_pressure.map(|p| p.some.avg10),
        io_pressure: figures.io_pressure.map(|p| p.some.avg10),
        oom_kills: counted(events.oom_kill),
        memory_limit_hits: counted(events.oom),
        process_limit_hits: counted(events.pids_max),
        ..of_sample(standing.id, &standing.sample)
    }
}
