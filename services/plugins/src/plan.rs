//! What a change would do, found out on a copy of the index.

use std::collections::BTreeSet;

use shipote_bus::plugins::PlanInfo;
use shipote_plugin_abi::reference::Reference;

use crate::error::Error;
use crate::links;
use crate::registry::now;
use crate::store::{Entry, Index, Version};

/// A change of what is at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// This version is put to work.
    Activate(String, Version),
    /// The version before is put back to work.
    RollBack(String),
    /// This version gets a share of the calls, in hundredths of a percent.
    Canary { name: String, version: Version, share: u32 },
    /// The canary is put to work.
    Promote(String),
    /// The canary's share is taken away.
    Abort(String),
    /// This version is removed.
    Remove { name: String, version: Version, force: bool },
}

impl Change {
    fn name(&self) -> &str {
        match self {
            Self::Activate(name, _)
            | Self::RollBack(name)
            | Self::Promote(name)
            | Self::Abort(name)
            | Self::Canary { name, .. }
            | Self::Remove { name, .. } => name,
        }
    }

    /// What errors call it, before `plugin NAME`.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Activate(..) => "activate",
            Self::RollBack(_) => "roll back",
            Self::Canary { .. } => "give a share to",
            Self::Promote(_) => "promote the canary of",
            Self::Abort(_) => "end the canary of",
            Self::Remove { .. } => "remove",
        }
    }

    fn what(&self) -> String {
        let (verb, name) = (self.verb(), self.name());
        match self {
            Self::Activate(_, version) | Self::Canary { version, .. } | Self::Remove { version, .. } => {
                format!("{verb} plugin {name} {version}")
            }
            Self::RollBack(_) | Self::Promote(_) | Self::Abort(_) => format!("{verb} plugin {name}"),
        }
    }

    /// Carries it out on an index; refused where plugins that fitted together would no longer, unless it is forced.
    pub(crate) fn apply(&self, index: &mut Index) -> Result<(), Error> {
        let before = links::faults(index);
        match self {
            Self::Activate(name, version) => index.activate(name, version)?,
            Self::RollBack(name) => drop(index.roll_back(name)?),
            Self::Canary { name, version, share } => {
                index.begin_canary(name, version, *share, now())?;
                // It has to fit as if it had all calls.
                let mut whole = index.clone();
                whole.activate(name, version)?;
                return self.fits(&before, &whole);
            }
            Self::Promote(name) => {
                let version = index.canary(name).map(|canary| canary.version.clone());
                index.activate(name, &version.ok_or_else(|| Error::NoCanary(name.clone()))?)?;
            }
            Self::Abort(name) => drop(index.end_canary(name)?),
            Self::Remove { name, version, force } => index.remove(name, version, *force)?,
        }
        self.fits(&before, index)
    }

    fn fits(&self, before: &BTreeSet<String>, after: &Index) -> Result<(), Error> {
        // What did not fit before is not this change's doing, and must not keep people from putting other things right.
        let faults: Vec<String> = links::faults(after).difference(before).cloned().collect();
        if faults.is_empty() || matches!(self, Self::Remove { force: true, .. }) {
            Ok(())
        } else {
            Err(Error::Links { what: self.what(), faults })
        }
    }

    /// The version that is put to work by it, or gets calls.
    pub(crate) fn puts_to_work(&self, index: &Index) -> Option<(String, Version)> {
        let version = match self {
            Self::Activate(_, version) | Self::Canary { version, .. } => Some(version),
            Self::RollBack(name) => index.last(name),
            Self::Promote(name) => index.canary(name).map(|canary| &canary.version),
            Self::Abort(_) | Self::Remove { .. } => None,
        };
        version.map(|version| (self.name().to_owned(), version.clone()))
    }

    /// What it would do; `refused` is what keeps it from being done beside what the index itself says.
    pub(crate) fn plan(&self, index: &Index, refused: Option<Error>) -> PlanInfo {
        let mut after = index.clone();
        let refused = self.apply(&mut after).err().or(refused).map(|error| error.to_string());
        let name = self.name();
        let canary = if refused.is_some() { index } else { &after }.canary(name);
        let active = |index: &Index| {
            let found = index.find(&Reference::Active(name.to_owned()));
            found.map(|(_, version, entry, _)| (version.to_string(), entry.clone()))
        };
        let (was, is) = (active(index), active(if refused.is_some() { index } else { &after }));
        let exports = |found: &Option<(String, Entry)>| -> BTreeSet<String> {
            let exports = found.iter().flat_map(|(_, entry)| entry.metadata.exports.iter());
            exports.map(|export| format!("{} ({})", export.name, export.kind)).collect()
        };
        let (had, has) = (exports(&was), exports(&is));
        let users = links::users(index, name).into_iter().chain(links::users(&after, name));
        PlanInfo {
            name: name.to_owned(),
            from: was.as_ref().map(|(version, _)| version.clone()).unwrap_or_default(),
            to: is.as_ref().map(|(version, _)| version.clone()).unwrap_or_default(),
            canary: canary.map(|canary| canary.version.to_string()).unwrap_or_default(),
            share: canary.map_or(0, |canary| canary.share),
            removed: match self {
                Self::Remove { version, .. } if refused.is_none() => Some(version.to_string()),
                _ => None,
            },
            exports_added: has.difference(&had).cloned().collect(),
            exports_removed: had.difference(&has).cloned().collect(),
            used_by: users.map(|(user, _)| user).collect::<BTreeSet<_>>().into_iter().collect(),
            refused: refused.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::tests::index;
    use shipote_plugin_abi::policy::Cardinality;

    #[test]
    fn a_provider_that_is_needed_stays_unless_forced() {
        let before = index(&[("leaf", &["a:b/c"], &[]), ("edge", &[], &[("a:b/c", Cardinality::ExactlyOne)])]);
        let remove = |force| Change::Remove { name: "leaf".to_owned(), version: Version::new(1, 0, 0), force };
        let plan = remove(false).plan(&before, None);
        assert!(plan.refused.contains("it is active"), "{plan:?}");
        let plan = remove(true).plan(&before, None);
        assert_eq!((plan.from.as_str(), plan.to.as_str(), plan.used_by), ("1.0.0", "", vec!["edge".to_owned()]));
        assert_eq!(plan.removed.as_deref(), Some("1.0.0"));
        let mut after = before.clone();
        remove(true).apply(&mut after).unwrap();
        assert_eq!(links::faults(&after).len(), 1);
        // What does not fit already does not get in the way of something else.
        Change::Activate("edge".to_owned(), Version::new(1, 0, 0)).apply(&mut after).unwrap();
    }
}
