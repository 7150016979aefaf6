//! Limits beside what is used.

use shipote_bus::spec::QuotaAction;
use shipote_bus::words::counted;
use shipote_cgroup::Events;
use tokio::sync::mpsc;
use ulid::Ulid;

use super::{Sample, Standing, Subject};
use crate::state::Input;

/// What has a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Resource {
    Memory,
    Processes,
}

/// A limit that is exceeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Breach {
    pub(super) resource: Resource,
    pub(super) text: String,
}

/// Limits, what happens at them, and what has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// Bytes.
    pub(crate) memory_limit: Option<u64>,
    pub(crate) process_limit: Option<u32>,
    pub(crate) memory_action: QuotaAction,
    pub(crate) process_action: QuotaAction,
    /// A sentence for each.
    pub(crate) breaches: Vec<String>,
}

/// What is used beyond a limit now: where the kernel holds the limit, nothing ever is.
pub(super) fn over(subject: &Subject, sample: &Sample) -> Vec<Breach> {
    let mut all = Vec::new();
    if let (Some(limit), Some(used)) = (subject.soma.memory(), sample.memory)
        && used > limit
    {
        let text = format!("memory: {used} bytes are used, {limit} are the limit");
        all.push(Breach { resource: Resource::Memory, text });
    }
    if let (Some(limit), Some(living)) = (subject.soma.processes(), sample.pids)
        && living > u64::from(limit)
    {
        let text = format!("processes: {living} are living, {limit} are the limit");
        all.push(Breach { resource: Resource::Processes, text });
    }
    all
}

/// What the kernel has done to hold the limits.
fn held(events: &Events) -> Vec<String> {
    let mut all = Vec::new();
    if events.oom_kill > 0 {
        all.push(format!("memory: {} ended for want of it", counted(events.oom_kill, "process")));
    } else if events.oom > 0 {
        all.push(format!("memory: it ran out {}", counted(events.oom, "time")));
    }
    if events.pids_max > 0 {
        all.push(format!("processes: {} were refused", events.pids_max));
    }
    all
}

/// Does what the spec says about a breach that the kernel does not see.
pub(super) fn enforce(id: Ulid, subject: &Subject, breach: &Breach, inputs: &mpsc::UnboundedSender<Input>) {
    let action = match breach.resource {
        Resource::Memory => subject.quota.mem,
        Resource::Processes => subject.quota.nproc,
    };
    match action {
        QuotaAction::None => {}
        QuotaAction::Log => tracing::warn!("workspace {:?}: {}", subject.name, breach.text),
        QuotaAction::Kill => {
            let message = format!("it was ended by its workspace's quota: {}", breach.text);
            // the actor ends only with the service
            let _ = inputs.send(Input::QuotaReached { workspace: id, message });
        }
    }
}

/// Ends the commands of a workspace that keeps more than it may, as long as it does. Blocks.
pub(super) fn hold_kept(id: Ulid, standing: &Standing, inputs: &mpsc::UnboundedSender<Input>) {
    let Some(Err(text)) = standing.subject.kept.as_ref().map(|kept| kept.look()) else { return };
    if standing.sample.commands_alive > 0 {
        tracing::warn!("workspace {:?}: {text}", standing.subject.name);
        // the actor ends only with the service
        let _ = inputs.send(Input::QuotaReached { workspace: id, message: format!("it was ended: {text}") });
    }
}

impl Standing {
    /// The limits and what is over them, or was.
    pub(crate) fn quota(&self) -> Report {
        let soma = &self.subject.soma;
        let over = over(&self.subject, &self.sample).into_iter().map(|b| b.text);
        let share = self.subject.share.as_ref().and_then(|share| {
            let (limit, times) = (share.memory?, share.cgroup.ran_out());
            let user = share.uid;
            (times > 0).then(|| {
                format!(
                    "memory: that of all workspaces of user {user} ran out at {limit} bytes {}",
                    counted(times, "time")
                )
            })
        });
        Report {
            memory_limit: soma.memory(),
            process_limit: soma.processes(),
            memory_action: self.subject.quota.mem,
            process_action: self.subject.quota.nproc,
            breaches: over.chain(held(&self.reading.events)).chain(share).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shipote_bus::spec::QuotaEnforcement;

    fn subject() -> Subject {
        Subject {
            name: "w".to_owned(),
            soma: toml::from_str("cgroup={memory_max=2000000,pids_max=3}").unwrap(),
            quota: QuotaEnforcement { mem: QuotaAction::Kill, nproc: QuotaAction::Log },
            ..Subject::default()
        }
    }

    #[test]
    fn use_over_a_limit_is_a_breach_and_use_up_to_it_is_none() {
        let sample = |memory, pids| Sample { memory: Some(memory), pids: Some(pids), ..Sample::default() };
        assert_eq!(over(&subject(), &sample(2_000_000, 3)), []);
        assert_eq!(over(&subject(), &Sample::default()), [], "what cannot be seen is no breach");
        let both = over(&subject(), &sample(2_000_001, 4));
        assert_eq!(both.iter().map(|b| b.resource).collect::<Vec<_>>(), [Resource::Memory, Resource::Processes]);
    }

    #[test]
    fn each_resource_has_its_own_action() {
        let (inputs, mut sent) = mpsc::unbounded_channel();
        let breach = |resource| Breach { resource, text: "t".to_owned() };
        enforce(Ulid::default(), &subject(), &breach(Resource::Processes), &inputs);
        assert!(sent.try_recv().is_err());
        enforce(Ulid::default(), &subject(), &breach(Resource::Memory), &inputs);
        assert!(matches!(sent.try_recv(), Ok(Input::QuotaReached { message, .. }) if message.ends_with("quota: t")));
    }

    #[test]
    fn what_the_kernel_did_is_told() {
        let events = Events { memory_max: 9, oom: 2, oom_kill: 1, pids_max: 5, ..Events::default() };
        assert_eq!(held(&events), ["memory: 1 process ended for want of it", "processes: 5 were refused"]);
        assert!(held(&Events { memory_max: 9, ..Events::default() }).is_empty());
    }
}
