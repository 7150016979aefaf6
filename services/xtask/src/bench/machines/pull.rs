//! An image of 200 MiB in 8 layers: pulled in a machine, and by the programs that do it on a host.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use shipote_agent_protocol::AgentRequest;

use super::super::bubblewrap::succeed;
use super::super::harness::{Block, Claim, Figure, Row, interleave};
use super::Bench;
use crate::registry::{self, Content, Registry};
use crate::vm::host;

/// Each takes a minute and more where the machine's processor is emulated.
pub(super) const ROUNDS_MAX: u32 = 2;
const LAYERS: usize = 8;
const LAYER_BYTES: u64 = 25 << 20;
/// The rivals and the registry, and the Debian packages that have them.
const TOOLS: [(&str, &str); 3] = [("skopeo", "skopeo"), ("umoci", "umoci"), (registry::PROGRAM, registry::PROGRAM)];
const NAME: &str = "pull";

const PULL: Claim = Claim {
    id: "machine-pull",
    what: "pull of 200 MiB in 8 layers from a registry on loopback, in a machine, to its disk",
    against: "`skopeo copy` and `umoci unpack` of the same on the host's disk",
    figure: Figure::Time,
    target: 1.5,
};

/// Measures.
pub(super) fn measure(bench: &mut Bench, rounds: u32, work: &Path) -> anyhow::Result<Row> {
    host::require("bench", &TOOLS, None)?;
    let layers = layers(&work.join("layers"))?;
    let settings = serde_json::json!({"Cmd": ["/bin/true"]});
    let content = Content { repository: "bench/large", layers: &layers, settings: &settings };
    let registry = registry::start_with(&content)?.context("docker-registry is not there")?;
    bench.client.create(NAME, &format!("memory_mib = 512\ndisk_mib = 1024\negress = [\"{}\"]", registry.address))?;
    bench.client.start(NAME)?;
    let target = work.join("unpacked");
    let all = interleave(rounds.min(ROUNDS_MAX), 2, |contender| {
        if contender == 1 {
            let block = bench.unit(|| unpack(&registry, &target));
            std::fs::remove_dir_all(&target).context("remove what was unpacked")?;
            return block;
        }
        let block = in_machine(bench, &registry);
        bench.client.agent(NAME)?.ask(&AgentRequest::GarbageCollect { dry_run: false, purge_all: true })?;
        block
    })?;
    bench.client.kill(NAME)?;
    PULL.judge(&all[0], &all[1])
}

fn in_machine(bench: &Bench, registry: &Registry) -> anyhow::Result<Block> {
    let request = AgentRequest::Pull { image: registry.image.clone(), oci_platform: None, auth: None };
    let mut agent = bench.client.agent(NAME)?;
    bench.unit(|| agent.ask(&request).map(drop))
}

/// As a user would do it on the host.
fn unpack(registry: &Registry, folder: &Path) -> anyhow::Result<()> {
    let layout = folder.join("layout");
    std::fs::create_dir(folder).context("make a folder")?;
    let image = format!("{}:large", layout.display());
    let from = format!("docker://{}", registry.image);
    let mut copy = Command::new("skopeo");
    // Debian's skopeo has no policy of its own.
    copy.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &from, &format!("oci:{image}")]);
    succeed(&mut copy)?;
    let mut unpack = Command::new("umoci");
    unpack.args(["unpack", "--image", &image]);
    if !nix::unistd::geteuid().is_root() {
        unpack.arg("--rootless");
    }
    succeed(unpack.arg(folder.join("bundle")))
}

/// Folders of files as distributions have them: programs and libraries of this host, each in one layer, in the order of
/// their names.
fn layers(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for place in ["/usr/bin", "/usr/lib/x86_64-linux-gnu"] {
        let entries = std::fs::read_dir(place).with_context(|| format!("read {place}"))?;
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.retain(|file| file.symlink_metadata().is_ok_and(|metadata| metadata.is_file()));
    files.sort();
    let mut files = files.into_iter();
    let mut made = Vec::new();
    for n in 0..LAYERS {
        let layer = folder.join(n.to_string());
        let inside = layer.join("files");
        std::fs::create_dir_all(&inside).context("make a layer")?;
        let mut left = LAYER_BYTES;
        while left > 0 {
            let Some(file) = files.next() else { bail!("this host has too few programs and libraries for an image") };
            let Some(name) = file.file_name() else { continue };
            // The last is cut, so that all layers are of one size.
            let mut from = std::fs::File::open(&file).with_context(|| format!("open {}", file.display()))?.take(left);
            let mut to = std::fs::File::create(inside.join(name)).context("write a layer")?;
            left -= std::io::copy(&mut from, &mut to).context("write a layer")?;
        }
        made.push(layer);
    }
    Ok(made)
}
