//! What a machine is made of, as TOML:
//!
//! ```toml
//! memory_mib = 256
//! memory_target_mib = 128  # what it is asked to make do with for now; all of it by default
//! cpus = 1
//! cpu_percent = 50     # of one processor of the host, for all of its processes together; 100 for each of `cpus` by default
//! board = "q35"        # or "microvm", the default, which starts sooner and has no PCI
//! disk_mib = 4096      # 0: none, images are kept in memory
//! egress = ["registry-1.docker.io:443", "*.docker.com:443"]   # what it may reach; nothing by default
//! egress_ask = true                                            # what is on no list is asked about; default: refused
//! ssh_agent = "/run/user/1000/keyring/ssh"                     # a socket of the host, for the guest's programs
//! publish = ["8080:80", "5432"]                                # 127.0.0.1:8080 of the host, and a port for the proxy
//! volumes = ["/srv/data:/data", "/srv/web:/web:ro"]            # folders of the host, and where the guest has them
//! restart = "on-failure"                                       # or "no" (the default), "always"
//! expires_unix = 1800000000                                    # then it is ended and removed; by default never
//! labels = { session = "python" }
//!
//! [run]                                                        # none by default
//! command = ["busybox", "httpd", "-f", "-p", "80"]                        # started each time the machine is
//! image = "docker.io/library/httpd"                            # which is on its disk; without: the agent's own root
//!
//! [idle]                                                       # none by default
//! after_s = 300                                                # nobody needed it for so long
//! then = "pause"                                               # or "stop"; the first request wakes it
//!
//! [health]                                                     # none by default
//! port = 80                                                    # or: command = ["/usr/bin/check"]
//! interval_s = 30
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shipote_bus::spec::{EGRESS_MAX, check_hosts, too_many_hosts};

use crate::Error;
use crate::health::Check;
use crate::idle::Rule as Idle;
use crate::published::{PUBLISHED_MAX, Published};
use crate::run::Run;
use crate::volumes::{VOLUMES_MAX, Volume};

/// Longest name: it is the guest's host name (RFC 1123) and part of socket paths.
pub const NAME_MAX: usize = 48;

/// Least memory of a machine, MiB.
const MEMORY_MIN_MIB: u32 = 96;
/// Most labels, and most bytes of a label's name and of its value.
const LABELS_MAX: usize = 64;
const LABEL_MAX: usize = 256;

/// A machine's spec. Everything has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// Memory in MiB, 96 to 65,536: below 80 the guest's first root does not fit.
    #[serde(deserialize_with = "shipote_units::mib")]
    pub memory_mib: u32,
    /// What of it the guest is asked to make do with for now, MiB: [`Self::memory_floor_mib`] at least. All of it where
    /// this is absent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "shipote_units::mib_opt")]
    pub memory_target_mib: Option<u32>,
    /// Processors, 1 to 64.
    #[serde(deserialize_with = "processors")]
    pub cpus: u8,
    /// Processor time of the host that all of its processes may take, in percent of one processor: 1 to 6,400, or 100
    /// for each of `cpus` where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// The board that it is built on.
    #[serde(skip_serializing_if = "Board::is_default")]
    pub board: Board,
    /// Disk for images and what is written over them, in MiB: 64 to 4,194,304, or 0 for none. Takes room on the host as it fills.
    #[serde(deserialize_with = "shipote_units::mib")]
    pub disk_mib: u32,
    /// What it may reach through the proxy, as workspaces' lists have it.
    pub egress: Vec<String>,
    /// What is not on that list is asked about (`shipote egress pending`) instead of refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub egress_ask: bool,
    /// Socket of an SSH agent on the host, which the guest's programs may use.
    pub ssh_agent: Option<PathBuf>,
    /// What of it others reach; see [`Published`].
    pub publish: Vec<String>,
    /// Folders of the host that it has; see [`Volume`].
    pub volumes: Vec<String>,
    /// When it is started again by itself.
    pub restart: Restart,
    /// When it is ended and removed, seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_unix: Option<u64>,
    /// What it is called beside its name; for whoever looks.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What is started in it each time it is started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// When it falls asleep, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    /// How it is found out whether it does what it is for; where it doesn't, and `restart` allows it, it is started anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Check>,
}

/// What a machine's processors and devices are put on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Board {
    /// QEMU's `microvm`: no firmware, no PCI, devices on virtio-mmio. It starts a little sooner.
    #[default]
    Microvm,
    /// QEMU's `q35`: firmware, PCI Express and what a PC has else, for programs that look for it.
    Q35,
}

impl Board {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// When a machine is started again by itself. One that somebody stops stays so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When it ended otherwise than by powering off.
    OnFailure,
    /// However it ended.
    Always,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            memory_mib: 256,
            memory_target_mib: None,
            cpus: 1,
            cpu_percent: None,
            board: Board::default(),
            disk_mib: 0,
            egress: vec![],
            egress_ask: false,
            ssh_agent: None,
            publish: vec![],
            volumes: vec![],
            restart: Restart::No,
            expires_unix: None,
            labels: BTreeMap::new(),
            run: None,
            idle: None,
            health: None,
        }
    }
}

/// A number of processors. One that no `u8` counts is refused as any other that is too large: with what may be given.
fn processors<'de, D: serde::Deserializer<'de>>(input: D) -> Result<u8, D::Error> {
    let number = i64::deserialize(input)?;
    u8::try_from(number)
        .map_err(|_| serde::de::Error::custom(format!("{number} is no number of processors; give 1 to 64")))
}

impl Spec {
    /// Reads and checks a spec.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`], with line and key.
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let invalid = |problem: String| Error::InvalidSpec { name: name.to_owned(), problem };
        check_name(name)?;
        let spec: Self = shipote_config::parse(text, "spec").map_err(|error| invalid(error.to_string()))?;
        spec.checked(name)
    }

    /// A spec, if it can be honoured.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`], with the key.
    pub fn checked(self, name: &str) -> Result<Self, Error> {
        let invalid = |problem: String| Error::InvalidSpec { name: name.to_owned(), problem };
        let spec = self;
        if !(MEMORY_MIN_MIB..=65_536).contains(&spec.memory_mib) {
            return Err(invalid(format!("memory_mib = {}: give 96 to 65536", spec.memory_mib)));
        }
        let may_have = spec.memory_floor_mib()..=spec.memory_mib;
        if let Some(target) = spec.memory_target_mib.filter(|target| !may_have.contains(target)) {
            let (least, most) = may_have.into_inner();
            return Err(invalid(format!(
                "memory_target_mib = {target}: give {least} (its guest needs so much) to {most} (memory_mib), or leave it out"
            )));
        }
        if !(1..=64).contains(&spec.cpus) {
            return Err(invalid(format!("cpus = {}: give 1 to 64", spec.cpus)));
        }
        if let Some(percent) = spec.cpu_percent.filter(|percent| !(1..=6400).contains(percent)) {
            return Err(invalid(format!("cpu_percent = {percent}: give 1 to 6400")));
        }
        if spec.disk_mib != 0 && !(64..=4_194_304).contains(&spec.disk_mib) {
            return Err(invalid(format!("disk_mib = {}: give 64 to 4194304, or 0", spec.disk_mib)));
        }
        if spec.egress.len() > EGRESS_MAX {
            return Err(invalid(format!("egress {}", too_many_hosts(spec.egress.len()))));
        }
        check_hosts(&spec.egress).map_err(|(n, problem)| invalid(format!("egress[{n}]: {problem}")))?;
        if spec.publish.len() > PUBLISHED_MAX {
            return Err(invalid(format!("publish: {} ports; the limit is {PUBLISHED_MAX}", spec.publish.len())));
        }
        let mut ports = BTreeSet::new();
        for text in &spec.publish {
            if let Some(port) = Published::parse(text).map_err(&invalid)?.host
                && !ports.insert(port)
            {
                return Err(invalid(format!("publish {text:?}: port {port} of the host is given twice")));
            }
        }
        let volumes = spec.volumes().map_err(&invalid)?;
        if volumes.len() > VOLUMES_MAX {
            return Err(invalid(format!("volumes: {} of them; the limit is {VOLUMES_MAX}", volumes.len())));
        }
        for (n, volume) in volumes.iter().enumerate() {
            if volumes[..n].iter().any(|other| other.guest == volume.guest) {
                return Err(invalid(format!("volumes: {} is given twice", volume.guest)));
            }
        }
        let long = |text: &String| text.len() > LABEL_MAX;
        if spec.labels.len() > LABELS_MAX || spec.labels.iter().any(|(key, value)| long(key) || long(value)) {
            return Err(invalid(format!("labels: give {LABELS_MAX} at most, each of {LABEL_MAX} bytes at most")));
        }
        if let Some(run) = &spec.run {
            run.check(spec.disk_mib).map_err(&invalid)?;
        }
        if let Some(rule) = &spec.idle {
            rule.check(&spec.publish).map_err(&invalid)?;
        }
        if let Some(check) = &spec.health {
            check.check().map_err(&invalid)?;
        }
        if let Some(socket) = spec.ssh_agent.as_ref().filter(|socket| !socket.is_absolute()) {
            return Err(invalid(format!("ssh_agent = {:?}: give an absolute path", socket.display().to_string())));
        }
        Ok(spec)
    }

    /// The least that its guest can be asked to make do with, MiB: what the smallest machine has, and what the guest's
    /// kernel keeps to manage the rest (64 bytes for each page of 4 KiB, and tables that grow with it).
    #[must_use]
    pub fn memory_floor_mib(&self) -> u32 {
        (MEMORY_MIN_MIB + self.memory_mib / 32).min(self.memory_mib)
    }

    /// What its guest is to make do with now, MiB.
    #[must_use]
    pub fn memory_now_mib(&self) -> u32 {
        self.memory_target_mib.unwrap_or(self.memory_mib)
    }

    /// Whether it has a way out at all.
    #[must_use]
    pub fn goes_out(&self) -> bool {
        self.egress_ask || !self.egress.is_empty()
    }

    /// Processor time of the host that it may take, in percent of one processor.
    #[must_use]
    pub fn cpu_percent(&self) -> u32 {
        self.cpu_percent.unwrap_or(u32::from(self.cpus) * 100)
    }

    /// Its volumes, read.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn volumes(&self) -> Result<Vec<Volume>, String> {
        self.volumes.iter().map(|text| Volume::parse(text)).collect()
    }
}

/// A name is also a host name, a folder and part of a socket's path.
///
/// # Errors
/// [`Error::InvalidSpec`].
pub fn check_name(name: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('-') && !name.ends_with('-')
    {
        return Ok(());
    }
    let problem = format!("a name has 1 to {NAME_MAX} of a-z, 0-9 and `-`, with no `-` at either end");
    Err(Error::InvalidSpec { name: name.escape_debug().to_string(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web-1", "0", &"x".repeat(NAME_MAX)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "..", "a.b", "ä", "a\0", &"x".repeat(NAME_MAX + 1)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn specs() {
        assert_eq!(Spec::parse("a", "").unwrap(), Spec::default());
        assert_eq!(
            Spec::parse("a", "memory_mib = 128\ncpus = 2").unwrap(),
            Spec { memory_mib: 128, cpus: 2, ..Spec::default() }
        );
        let numbers =
            "memory_mib = 1024\ndisk_mib = 64\nidle = { after_s = 90 }\nhealth = { port = 80, interval_s = 300 }";
        let texts = "memory_mib = '1G'\ndisk_mib = '64MiB'\nidle = { after_s = '1m30s' }\n\
            health = { port = 80, interval_s = '5m' }";
        assert_eq!(Spec::parse("a", texts).unwrap(), Spec::parse("a", numbers).unwrap());
        for (text, hint) in
            [("cpus = 9999", "give 1 to 64"), ("cpus = 200", "give 1 to 64"), ("memory_mib = '1K'", "whole MiB")]
        {
            let said = Spec::parse("a", text).unwrap_err().to_string();
            assert!(said.contains(hint), "{text}: {said}");
        }
        for bad in [
            "memory_mib = 95",
            "memory_target_mib = 103",
            "memory_target_mib = 257",
            "cpus = 0",
            "cpus = 65",
            "cpu_percent = 0",
            "disk_mib = 63",
            "egress = [\"a b\"]",
            "ssh_agent = \"s\"",
            "publish = [\"0:80\"]",
            "publish = [\"80:1\", \"80:2\"]",
            "volumes = [\"/a\"]",
            "volumes = [\"/a:/x\", \"/b:/x\"]",
            "volumes = [\"/a:/1\", \"/a:/2\", \"/a:/3\", \"/a:/4\", \"/a:/5\"]",
            "restart = \"maybe\"",
            "health = {}",
            "run = {}",
            "run = { image = \"a\" }",
            "run = { cmd = [\"a\"] }",
            "idle = { after_s = 0 }",
            "idle = { then = \"halt\" }",
            "publish = [\"80:80\"]\nidle = { then = \"stop\" }",
            "health = { port = 80, interval = 1 }",
            "memory = 1",
            "cpus = \"two\"",
            "[",
        ] {
            assert!(matches!(Spec::parse("a", bad), Err(Error::InvalidSpec { .. })), "{bad}");
        }
    }
    #[test]
    fn a_guest_keeps_what_it_needs_whatever_its_size() {
        for (memory_mib, floor) in [(96, 96), (98, 98), (256, 104), (65_536, 2144)] {
            assert_eq!(Spec { memory_mib, ..Spec::default() }.memory_floor_mib(), floor);
        }
        let spec = Spec::parse("a", "memory_target_mib = 104").unwrap();
        assert_eq!((spec.memory_now_mib(), Spec::default().memory_now_mib()), (104, 256));
    }
}
