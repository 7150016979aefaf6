//! The contender: the proxy of an appliance, with one worker.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use shipote_bus::proxy::ManagerProxy;
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::metadata::MiddlewareKind;

use super::rivals::Certificate;
use crate::appliance::Appliance;

/// Our configuration, in the measurement's folder.
pub(super) const CONFIG: &str = "xdg/shipote";

/// Where it listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) origin: u16,
    pub(super) plain: u16,
    /// As `plain`, with a plugin in the chain.
    pub(super) plugin: u16,
    pub(super) tls: u16,
}

/// The appliance, the process of its proxy, and the folder of its configuration.
pub(super) struct Ours {
    pub(super) appliance: Appliance,
    pub(super) pid: u32,
    rules: PathBuf,
    ports: Ports,
    /// A client that keeps its connection: a process for each reload would take the processors from all who are measured.
    runtime: tokio::runtime::Runtime,
    manager: ManagerProxy<'static>,
}

impl Ours {
    /// Starts proxy and plugin registry, and adds a plugin that lets every request through.
    pub(super) fn start(
        folder: &Path,
        binaries: PathBuf,
        ports: Ports,
        certificate: &Certificate,
    ) -> anyhow::Result<Self> {
        let config = folder.join(CONFIG);
        let rules = config.join("proxy/rules");
        fs::create_dir_all(&rules).context("make the folder of rules")?;
        fs::write(config.join("shipote.toml"), "[proxy]\nworkers = 1\n").context("write shipote.toml")?;
        let appliance = Appliance::start_configured(binaries, true, &["plugins", "proxy"], Some(&folder.join("xdg")))?;
        let component = folder.join("through.wasm");
        let plugin = Fixture::new("through", "1.0.0", &[MiddlewareKind::L7Request]);
        fs::write(&component, plugin.component()).context("write the plugin")?;
        let pid = appliance.service("proxy")?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
        let address = appliance.address();
        let manager = runtime.block_on(async {
            let connection = zbus::connection::Builder::address(address.as_str())
                .build()
                .await
                .with_context(|| format!("connect to {address}"))?;
            ManagerProxy::new(&connection).await.context("find the proxy on the bus")
        })?;
        let ours = Self { appliance, pid, rules, ports, runtime, manager };
        ours.shipote(&["plugin", "add", &component.display().to_string()])?;
        let upstream = format!("terminate = {{ type = \"http_proxy\", upstream = \"127.0.0.1:{}\" }}", ports.origin);
        let text = format!(
            "[[rules]]\nname = \"plain\"\nlisten = [\"127.0.0.1:{}\"]\n{upstream}\n\
             [[rules]]\nname = \"plugin\"\nlisten = [\"127.0.0.1:{}\"]\n\
             middleware_chain = [{{ use = \"through:l7-request\" }}]\n{upstream}\n\
             [[rules]]\nname = \"tls\"\nlisten = [\"127.0.0.1:{}\"]\ntls = {{ cert_file = {:?}, key_file = {:?} }}\n{upstream}\n",
            ports.plain, ports.plugin, ports.tls, certificate.certificate, certificate.key,
        );
        fs::write(ours.rules.join("all.toml"), text).context("write the rules")?;
        ours.reload()?;
        Ok(ours)
    }

    /// Adds `count` rules beside the others, none of which any request meets, each naming `generation`.
    pub(super) fn crowd(&self, count: usize, generation: u32) -> anyhow::Result<()> {
        let mut text = String::new();
        for number in 0..count {
            write!(
                text,
                "[[rules]]\nname = \"crowd-{number}\"\nlisten = [\"127.0.0.1:{}\"]\n\
                 match = {{ \"http.uri.path\" = {{ prefix = \"/crowd-{number}-{generation}/\" }} }}\n\
                 terminate = {{ type = \"static\", status = 200, text = \"{number}\" }}\n",
                self.ports.plain,
            )?;
        }
        fs::write(self.rules.join("crowd.toml"), text).context("write a crowd of rules")?;
        self.reload()
    }

    pub(super) fn reload(&self) -> anyhow::Result<()> {
        self.runtime.block_on(self.manager.reload(Default::default())).context("Proxy1.Reload")?;
        Ok(())
    }

    fn shipote(&self, words: &[&str]) -> anyhow::Result<()> {
        let output = self.appliance.shipote(words).stdout(Stdio::null()).output().context("run shipote")?;
        if !output.status.success() {
            bail!("shipote {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}
