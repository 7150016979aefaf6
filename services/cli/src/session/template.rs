//! What sessions are made from.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use shipote_bus::paths::CONFIG_DIR;
use toml::{Table, Value};

use super::{LABEL, snapshot};
use crate::spec::read_spec;
use crate::units;
use crate::up::config_folder;

/// What the command line changes of a template.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Changes {
    /// End it after this time: 90s, 1h30m, 7d, or seconds
    #[arg(long, value_name = "TIME", value_parser = units::some_seconds)]
    ttl: Option<Duration>,
    /// Let the proxy reach this port of it as `workspace:NAME:PORT`
    #[arg(long, value_name = "PORT")]
    publish: Vec<u16>,
    /// Have it sleep when nobody needed it for this time (5m, 1h, or seconds); the first request or command wakes it
    #[arg(long, value_name = "TIME", value_parser = units::whole_seconds)]
    idle: Option<u32>,
    /// Let it out to this host (`example.com`, `*.example.org:8443`), through the proxy
    #[arg(long, value_name = "HOST")]
    egress: Vec<String>,
    /// Environment of every command
    #[arg(short, long, value_name = "K=V", value_parser = crate::spec::key_value)]
    env: Vec<(String, String)>,
}

/// The key that makes it a machine's.
const MACHINE: &str = "machine";

/// The spec of a workspace, with the files that its `/work` begins with, or of a machine.
#[derive(Debug)]
pub(super) struct Template {
    spec: Table,
    machine: bool,
    source: String,
    /// Where it was read from.
    file: Option<String>,
    files: Option<File>,
}

impl Template {
    /// Nothing but defaults.
    pub(super) fn empty() -> Self {
        Self { spec: Table::new(), machine: false, source: "defaults".to_owned(), file: None, files: None }
    }

    /// One of the configuration folders.
    pub(super) fn named(name: &str) -> anyhow::Result<Self> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            bail!("template {name:?} is no name; give a file with -f");
        }
        let folders = [config_folder(), PathBuf::from(CONFIG_DIR)].map(|folder| folder.join("sessions"));
        let files = folders.iter().flat_map(|folder| ["toml", "tar"].map(|end| folder.join(format!("{name}.{end}"))));
        let Some(file) = files.into_iter().find(|file| file.is_file()) else {
            let there = known(&folders);
            let [own, system] = folders.map(|folder| folder.display().to_string());
            bail!("template {name:?} is neither in {own} nor in {system}; there {there}");
        };
        Ok(Self { source: name.to_owned(), ..Self::read(&file)? })
    }

    /// A file: a snapshot if it is a tar archive, else a spec.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let source = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let (text, files) = if is_archive(path)? {
            let (text, files) = snapshot::open(path)?;
            (text, Some(files))
        } else {
            (read_spec(path)?, None)
        };
        let file = crate::spec::source(path);
        let mut spec: Table = shipote_config::parse(&text, &file).context("read template")?;
        let machine = match spec.remove(MACHINE) {
            None => false,
            Some(Value::Boolean(machine)) => machine,
            Some(_) => bail!("read template {shown}: {MACHINE} has to be true or false"),
        };
        Ok(Self { spec, machine, source, file: Some(file), files })
    }

    /// Whether it is a machine's.
    pub(super) fn is_machine(&self) -> bool {
        self.machine
    }

    /// Where it is from.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The file that it was read from.
    pub(super) fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// What it was called as a session.
    pub(super) fn name(&self) -> Option<&str> {
        self.spec.get("label").and_then(Value::as_str)
    }

    /// The archive of its files, at its beginning.
    pub(super) fn files(&mut self) -> Option<File> {
        self.files.take()
    }

    /// Takes over what the command line says.
    pub(super) fn change(&mut self, changes: &Changes) -> anyhow::Result<()> {
        if self.machine {
            return self.change_machine(changes);
        }
        if let Some(seconds) = changes.idle {
            self.spec.insert("idle".to_owned(), Value::Integer(i64::from(seconds) * 1000));
        }
        if let Some(ttl) = changes.ttl {
            self.spec.insert("ttl".to_owned(), Value::Integer(i64::try_from(ttl.as_millis())?));
        }
        self.extend("publish", changes.publish.iter().map(|port| Value::Integer((*port).into())))?;
        self.extend("egress", changes.egress.iter().map(|host| Value::String(host.clone())))?;
        let network = if !changes.egress.is_empty() {
            "outbound"
        } else if !changes.publish.is_empty() && self.network().is_none_or(|network| network == "none") {
            "loopback"
        } else {
            ""
        };
        if !network.is_empty() {
            table(&mut self.spec, "permissions")?.insert("networking".to_owned(), Value::String(network.to_owned()));
        }
        for (key, value) in &changes.env {
            table(&mut self.spec, "env")?.insert(key.clone(), Value::String(value.clone()));
        }
        Ok(())
    }

    /// The same where it is a machine's.
    fn change_machine(&mut self, changes: &Changes) -> anyhow::Result<()> {
        if let Some(ttl) = changes.ttl {
            let now = i64::try_from(jiff::Timestamp::now().as_second().unsigned_abs())?;
            let end = now.saturating_add(i64::try_from(ttl.as_millis().div_ceil(1000))?);
            self.spec.insert("expires_unix".to_owned(), Value::Integer(end));
        }
        if let Some(seconds) = changes.idle {
            table(&mut self.spec, "idle")?.insert("after_s".to_owned(), Value::Integer(seconds.into()));
        }
        self.extend("publish", changes.publish.iter().map(|port| Value::String(port.to_string())))?;
        self.extend("egress", changes.egress.iter().map(|host| Value::String(host.clone())))?;
        if !changes.env.is_empty() {
            bail!(
                "template {}: a machine has no environment of its own; give --env to `shipote session exec`",
                self.source
            );
        }
        Ok(())
    }

    /// The spec of the session, as the service reads it.
    pub(super) fn spec(&mut self) -> anyhow::Result<String> {
        let source = Value::String(self.source.clone());
        table(&mut self.spec, "labels")?.insert(LABEL.to_owned(), source);
        Ok(toml::to_string(&self.spec)?)
    }

    fn network(&self) -> Option<&str> {
        self.spec.get("permissions")?.get("networking")?.as_str()
    }

    fn extend(&mut self, key: &str, values: impl Iterator<Item = Value>) -> anyhow::Result<()> {
        let mut values = values.peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let list = self.spec.entry(key).or_insert_with(|| Value::Array(Vec::new()));
        let Some(list) = list.as_array_mut() else { bail!("template {}: {key} is no list", self.source) };
        list.extend(values);
        Ok(())
    }
}

fn table<'a>(spec: &'a mut Table, key: &str) -> anyhow::Result<&'a mut Table> {
    let value = spec.entry(key).or_insert_with(|| Value::Table(Table::new()));
    value.as_table_mut().with_context(|| format!("template: {key} is no table"))
}

/// The templates that there are, for those who named another.
fn known(folders: &[PathBuf]) -> String {
    let mut names: Vec<String> = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            path.extension().filter(|end| *end == "toml" || *end == "tar")?;
            Some(path.file_stem()?.to_string_lossy().into_owned())
        })
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() { "are none".to_owned() } else { format!("are {}", names.join(", ")) }
}

/// Whether a file is a tar archive, by the mark that they all have.
fn is_archive(path: &Path) -> anyhow::Result<bool> {
    if path == Path::new("-") {
        return Ok(false);
    }
    let file = File::open(path).with_context(|| format!("read template {}", path.display()))?;
    let mut head = Vec::new();
    file.take(512).read_to_end(&mut head).with_context(|| format!("read template {}", path.display()))?;
    Ok(head.get(257..262) == Some(b"ustar"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_template_and_adds_to_its_lists() {
        let mut template = Template::empty();
        template.spec = toml::from_str("ttl = 1\npublish = [80]\n[env]\nA = '1'\nB = '2'\n").unwrap();
        let changes = Changes {
            ttl: Some(Duration::from_millis(2)),
            idle: None,
            publish: vec![8080],
            egress: Vec::new(),
            env: vec![("A".to_owned(), "3".to_owned())],
        };
        template.change(&changes).unwrap();
        let spec: Table = toml::from_str(&template.spec().unwrap()).unwrap();
        let want: Table = toml::from_str(
            "ttl = 2\npublish = [80, 8080]\n[env]\nA = '3'\nB = '2'\n[permissions]\nnetworking = 'loopback'\n\
             [labels]\nsession = 'defaults'\n",
        )
        .unwrap();
        assert_eq!(spec, want);
        let mut machine = Template { machine: true, ..Template::empty() };
        let changed =
            Changes { idle: Some(60), publish: vec![80], ttl: Some(Duration::from_secs(3600)), ..Changes::default() };
        machine.change(&changed).unwrap();
        let spec: Table = toml::from_str(&machine.spec().unwrap()).unwrap();
        assert_eq!(spec["publish"].as_array().unwrap()[0].as_str(), Some("80"), "{spec}");
        assert_eq!(spec["idle"]["after_s"].as_integer(), Some(60));
        assert!(spec["expires_unix"].as_integer() > Some(1_700_003_600), "{spec}");
        assert!(machine.change(&changes).unwrap_err().to_string().contains("session exec"));
        template.spec = toml::from_str("publish = 80").unwrap();
        assert!(template.change(&changes).unwrap_err().to_string().contains("publish is no list"));
    }
}
