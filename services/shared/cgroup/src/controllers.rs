//! Which resources a group can limit.

use std::fmt;

/// A controller that this crate has limits or figures of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum Controller {
    Cpu,
    Cpuset,
    Io,
    Memory,
    Pids,
}

impl Controller {
    /// All of them.
    pub const ALL: [Controller; 5] =
        [Controller::Cpu, Controller::Cpuset, Controller::Io, Controller::Memory, Controller::Pids];

    /// As in `cgroup.controllers`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Cpuset => "cpuset",
            Controller::Io => "io",
            Controller::Memory => "memory",
            Controller::Pids => "pids",
        }
    }
}

/// A set of controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Controllers(u8);

impl Controllers {
    /// From the text of `cgroup.controllers` or `cgroup.subtree_control`; unknown names are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let known = |word: &str| Controller::ALL.into_iter().find(|c| c.as_str() == word);
        text.split_whitespace().filter_map(known).fold(Controllers::default(), Controllers::with)
    }

    /// With one more.
    #[must_use]
    pub fn with(self, controller: Controller) -> Self {
        Controllers(self.0 | 1 << controller as u8)
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn has(self, controller: Controller) -> bool {
        self.0 & 1 << controller as u8 != 0
    }

    /// In the order of [`Controller::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Controller> {
        Controller::ALL.into_iter().filter(move |c| self.has(*c))
    }

    /// Those of `all` that are not here.
    pub fn lacking(self) -> impl Iterator<Item = Controller> {
        Controller::ALL.into_iter().filter(move |c| !self.has(*c))
    }

    /// No controller at all.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Controller::as_str).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let some = Controllers::parse("cpuset cpu hugetlb pids\n");
        assert_eq!(some.to_string(), "cpu, cpuset, pids");
        assert!(some.has(Controller::Pids) && !some.has(Controller::Memory));
        assert_eq!(some.lacking().map(Controller::as_str).collect::<Vec<_>>(), ["io", "memory"]);
        assert!(Controllers::parse("hugetlb\n").is_empty());
    }
}
