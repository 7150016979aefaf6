//! A service's policy file: what it may still reach once it has confined itself.
//!
//! ```toml
//! execute = ["/usr"]
//! read = ["${CONFIG}", { path = "/etc/shipote", optional = true }]
//! write = ["${STATE}", "${RUNTIME}"]
//! connect_tcp = []          # a list of ports, or "any"; absent: none
//! bind_tcp = "any"
//! scope = ["signal", "abstract-unix"]
//! capabilities = ["net_bind_service"]
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::landlock::{Domain, Handled, PathAccess};
use crate::{CapabilitySet, Error, Mechanism, drop_capabilities, parse_capability, seccomp};

/// One path of a policy, with `${NAME}` placeholders not yet filled in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum PathRule {
    /// A path that has to exist.
    Required(String),
    /// A path with a mark.
    Marked(MarkedPath),
}

/// The long form of a path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkedPath {
    /// The path.
    pub path: String,
    /// Whether a path that does not exist is passed over.
    #[serde(default)]
    pub optional: bool,
}

/// TCP ports of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Ports {
    /// These ports only.
    Only(Vec<u16>),
    /// The word `any`.
    Any(AnyPort),
}

/// The word `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnyPort {
    /// Every port.
    Any,
}

impl Default for Ports {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

/// What is kept inside of the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Signals.
    Signal,
    /// Abstract Unix sockets.
    AbstractUnix,
}

/// What a service may still reach. Everything not listed is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Paths to read and list.
    pub read: Vec<PathRule>,
    /// Paths to read, list and execute from.
    pub execute: Vec<PathRule>,
    /// Devices, sockets and files to read and write as they are; nothing is created there.
    #[serde(rename = "use")]
    pub use_: Vec<PathRule>,
    /// Paths to read and write, and create and remove in.
    pub write: Vec<PathRule>,
    /// TCP ports to connect to.
    pub connect_tcp: Ports,
    /// TCP ports to listen on.
    pub bind_tcp: Ports,
    /// What is kept inside of the domain.
    pub scope: Vec<Scope>,
    /// Capabilities to keep where the service has them, in the kernel's names.
    pub capabilities: Vec<String>,
    /// Whether the service or what it starts may still make namespaces and mounts.
    pub namespaces: bool,
}

impl Policy {
    /// Reads a policy from TOML.
    ///
    /// # Errors
    /// [`Error::Parse`] on bad syntax, an unknown key, right, scope or port.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Ok(toml::from_str(text)?)
    }

    /// Reads a policy file.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::ParseFile`] with the path.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| Error::ParseFile { path: path.to_owned(), source })
    }

    /// Adds a folder to write to. One that is not there when the policy is applied is passed over.
    ///
    /// # Errors
    /// [`Error::Placeholder`]: the path has `${` in it, or is no text.
    pub fn allow_writing(&mut self, folder: &Path) -> Result<(), Error> {
        match folder.to_str().filter(|text| !text.contains("${")) {
            Some(text) => {
                self.write.push(PathRule::Marked(MarkedPath { path: text.to_owned(), optional: true }));
                Ok(())
            }
            None => Err(Error::Placeholder { text: folder.display().to_string(), name: String::new() }),
        }
    }

    /// Applies the policy to the calling thread and what it starts later, for good: capabilities,
    /// `no_new_privs`, landlock, seccomp, in that order. Call it before any other thread exists.
    ///
    /// `variables` fills the `${NAME}` placeholders. A mechanism that the kernel lacks is reported;
    /// the caller decides whether that is bearable.
    ///
    /// # Errors
    /// A placeholder without value, a path that is not there and not optional, or a kernel that
    /// refuses; the process may then be half confined and should end.
    pub fn apply(&self, variables: &[(&str, &Path)]) -> Result<Vec<Mechanism>, Error> {
        let mut keep = CapabilitySet::empty();
        for name in &self.capabilities {
            keep |= parse_capability(name)?;
        }
        let domain = self.domain(variables)?;
        let filter = seccomp::service_filter(self.namespaces)?;

        let mut report = vec![drop_capabilities(keep)?];
        rustix::thread::set_no_new_privs(true).map_err(Error::system("prctl PR_SET_NO_NEW_PRIVS"))?;
        report.push(Mechanism::enforced("no-new-privileges", ""));
        report.push(domain.restrict()?);
        report.push(match filter.install() {
            Ok(()) => Mechanism::enforced("seccomp", "service deny filter"),
            Err(error) => Mechanism::missing("seccomp", error.to_string()),
        });
        Ok(report)
    }

    fn domain(&self, variables: &[(&str, &Path)]) -> Result<Domain, Error> {
        let handled = Handled {
            connect_tcp: matches!(self.connect_tcp, Ports::Only(_)),
            bind_tcp: matches!(self.bind_tcp, Ports::Only(_)),
            signals: self.scope.contains(&Scope::Signal),
            abstract_unix: self.scope.contains(&Scope::AbstractUnix),
        };
        let mut domain = Domain::new(handled)?;
        for (rules, access) in [
            (&self.read, PathAccess::Read),
            (&self.execute, PathAccess::Execute),
            (&self.use_, PathAccess::Use),
            (&self.write, PathAccess::Write),
        ] {
            for rule in rules {
                let (text, optional) = match rule {
                    PathRule::Required(text) => (text, false),
                    PathRule::Marked(marked) => (&marked.path, marked.optional),
                };
                let path = expand(text, variables)?;
                if optional && !path.exists() {
                    continue;
                }
                domain = domain.allow_path(&path, access)?;
            }
        }
        if let Ports::Only(ports) = &self.connect_tcp {
            for port in ports {
                domain = domain.allow_connect(*port)?;
            }
        }
        if let Ports::Only(ports) = &self.bind_tcp {
            for port in ports {
                domain = domain.allow_bind(*port)?;
            }
        }
        Ok(domain)
    }
}

/// Fills `${NAME}` placeholders.
fn expand(text: &str, variables: &[(&str, &Path)]) -> Result<PathBuf, Error> {
    let mut path = std::ffi::OsString::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let unknown = |name: &str| Error::Placeholder { text: text.to_owned(), name: name.to_owned() };
        let (name, tail) = after.split_once('}').ok_or_else(|| unknown(after))?;
        let (_, value) = variables.iter().find(|(known, _)| *known == name).ok_or_else(|| unknown(name))?;
        path.push(before);
        path.push(value.as_os_str());
        rest = tail;
    }
    path.push(rest);
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_with_every_key() {
        let policy = Policy::parse(
            "read = ['/a', { path = '${X}/b', optional = true }]\nexecute = ['/usr']\nuse = ['/dev/null']\n\
             write = ['${STATE}']\nconnect_tcp = [53]\nbind_tcp = 'any'\nscope = ['signal', 'abstract-unix']\n\
             capabilities = ['net_bind_service']\nnamespaces = true\n",
        )
        .unwrap();
        assert_eq!(policy.read.len(), 2);
        assert_eq!(policy.connect_tcp, Ports::Only(vec![53]));
        assert_eq!(policy.bind_tcp, Ports::Any(AnyPort::Any));
        assert_eq!(policy.scope, [Scope::Signal, Scope::AbstractUnix]);
        assert!(policy.namespaces);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for text in [
            "reed = ['/a']",
            "scope = ['signals']",
            "bind_tcp = 'all'",
            "bind_tcp = [70000]",
            "read = [{ path = '/a', maybe = true }]",
            "read = '/a'",
        ] {
            assert!(Policy::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn placeholders_are_filled_or_refused() {
        let variables = [("STATE", Path::new("/s")), ("NAME", Path::new("n"))];
        for (text, path) in [("/a", "/a"), ("${STATE}/x", "/s/x"), ("${STATE}/${NAME}.sock", "/s/n.sock")] {
            assert_eq!(expand(text, &variables).unwrap(), Path::new(path));
        }
        for text in ["${OTHER}", "${STATE", "/x/${}"] {
            assert!(matches!(expand(text, &variables), Err(Error::Placeholder { .. })), "{text}");
        }
    }

    #[test]
    fn an_absent_path_is_an_error_unless_optional() {
        let required = Policy::parse("read = ['/no/such/path']").unwrap();
        assert!(matches!(required.domain(&[]), Err(Error::Path { .. })));
        let optional = Policy::parse("read = [{ path = '/no/such/path', optional = true }]").unwrap();
        assert!(optional.domain(&[]).is_ok());
    }
}
