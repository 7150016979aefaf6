//! The services of a host with systemd, from its manager (org.freedesktop.systemd1(5)).

use anyhow::{Context, Result};
use shipote_bus::Service;
use zbus::{Connection, proxy::CacheProperties};

use super::{ServiceLine, moment};

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn load_unit(&self, name: &str) -> zbus::Result<zbus::OwnedObjectPath>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait Unit {
    #[zbus(property)]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn state_change_timestamp(&self) -> zbus::Result<u64>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
trait ServiceUnit {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    #[zbus(property, name = "NRestarts")]
    fn restarts(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn status_text(&self) -> zbus::Result<String>;
}

pub(super) async fn services(bus: &Connection) -> Result<Vec<ServiceLine>> {
    let manager = ManagerProxy::new(bus).await?;
    let mut lines = Vec::new();
    for service in Service::ALL {
        let name = format!("{}.service", service.binary());
        let path = manager.load_unit(&name).await.with_context(|| format!("ask systemd for {name}"))?;
        // Read once: no cache, so no match rules for a command that ends at once.
        let unit = UnitProxy::builder(bus).path(path.clone()).cache_properties(CacheProperties::No).build().await?;
        let detail = ServiceUnitProxy::builder(bus).path(path).cache_properties(CacheProperties::No).build().await?;
        let mut line = ServiceLine { name: service.name().to_owned(), ..ServiceLine::default() };
        let load = unit.load_state().await?;
        if load == "not-found" {
            line.state = "stopped".to_owned();
            line.status = format!("{name} is not installed");
        } else {
            line.state = state(&unit.active_state().await?).to_owned();
            line.since = moment(unit.state_change_timestamp().await?);
            line.pid = Some(detail.main_pid().await?).filter(|pid| *pid != 0);
            line.restarts = detail.restarts().await?;
            line.status = match line.state.as_str() {
                "stopped" => stopped(&name, &load),
                _ => detail.status_text().await?,
            };
        }
        lines.push(line);
    }
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(lines)
}

/// What starts a service that is stopped, by its unit's `LoadState`.
fn stopped(unit: &str, load: &str) -> String {
    match load {
        "loaded" => "the first call to its name starts it".to_owned(),
        "masked" => format!("{unit} is masked: nothing starts it"),
        other => format!("{unit} is {other}: see systemctl status {unit}"),
    }
}

/// `ActiveState` in the words that the embedded supervisor uses.
fn state(active: &str) -> &'static str {
    match active {
        "active" | "reloading" | "refreshing" => "running",
        "activating" => "starting",
        "deactivating" => "stopping",
        "failed" => "failed",
        _ => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_stopped_says_what_starts_it() {
        assert_eq!(stopped("a.service", "loaded"), "the first call to its name starts it");
        assert_eq!(stopped("a.service", "masked"), "a.service is masked: nothing starts it");
        assert_eq!(stopped("a.service", "bad-setting"), "a.service is bad-setting: see systemctl status a.service");
    }
}
