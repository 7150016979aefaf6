//! `shipote status` on a system bus: what it makes of systemd's answers, and of a service that serves
//! `org.shipote.Service1`. The bus is a private one, systemd a stand-in with the objects that are asked for.

#![expect(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use shipote_bus::service::{Health, MechanismInfo};
use zbus::OwnedObjectPath;

/// A private bus that ends with the test.
struct Bus(Child);

impl Bus {
    fn start(folder: &Path) -> (Self, String) {
        let address = format!("unix:path={}", folder.join("bus").display());
        let config = folder.join("bus.conf");
        std::fs::write(&config, include_str!("../src/up/bus.conf").replace("@LISTEN@", &address)).unwrap();
        let mut child = Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile", "--print-address", "--config-file"])
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Self(child), address)
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Manager;

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn load_unit(&self, name: &str) -> OwnedObjectPath {
        let plain = name.trim_start_matches("shipote-").trim_end_matches(".service");
        format!("/org/freedesktop/systemd1/unit/{plain}").try_into().unwrap()
    }
}

struct Unit {
    load: &'static str,
    active: &'static str,
    since: u64,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn load_state(&self) -> &str {
        self.load
    }
    #[zbus(property)]
    fn active_state(&self) -> &str {
        self.active
    }
    #[zbus(property)]
    fn state_change_timestamp(&self) -> u64 {
        self.since
    }
}

struct ServiceUnit {
    pid: u32,
    restarts: u32,
    status: &'static str,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Service")]
impl ServiceUnit {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.pid
    }
    #[zbus(property, name = "NRestarts")]
    fn restarts(&self) -> u32 {
        self.restarts
    }
    #[zbus(property)]
    fn status_text(&self) -> &str {
        self.status
    }
}

struct Service;

#[zbus::interface(name = "org.shipote.Service1")]
impl Service {
    fn health(&self) -> Health {
        Health {
            state: "running".to_owned(),
            version: "9.8.7".to_owned(),
            uptime_ms: 1,
            pid: 4711,
            figures: BTreeMap::new(),
        }
    }
    #[zbus(property)]
    fn version(&self) -> &str {
        "9.8.7"
    }
    #[zbus(property)]
    fn confinement(&self) -> Vec<MechanismInfo> {
        let landlock =
            MechanismInfo { name: "landlock".to_owned(), state: "degraded".to_owned(), reason: "ABI 1".to_owned() };
        vec![landlock]
    }
}

#[tokio::test]
async fn asks_systemd_and_the_services() {
    let folder = tempfile::tempdir().unwrap();
    let (_bus, address) = Bus::start(folder.path());
    let mut systemd = zbus::connection::Builder::address(address.as_str())
        .serve_at("/org/freedesktop/systemd1", Manager)
        .name("org.freedesktop.systemd1");
    for (name, unit, service) in [
        (
            "workspaces",
            Unit { load: "loaded", active: "active", since: 1_000_000 },
            ServiceUnit { pid: 4711, restarts: 2, status: "serving" },
        ),
        (
            "machines",
            Unit { load: "loaded", active: "failed", since: 2_000_000 },
            ServiceUnit { pid: 0, restarts: 5, status: "" },
        ),
        (
            "proxy",
            Unit { load: "loaded", active: "activating", since: 3_000_000 },
            ServiceUnit { pid: 12, restarts: 0, status: "" },
        ),
        (
            "plugins",
            Unit { load: "not-found", active: "inactive", since: 0 },
            ServiceUnit { pid: 0, restarts: 0, status: "" },
        ),
    ] {
        let path = format!("/org/freedesktop/systemd1/unit/{name}");
        systemd = systemd.serve_at(path.clone(), unit).serve_at(path, service);
    }
    let _systemd = systemd.build().await.unwrap();
    let _service = zbus::connection::Builder::address(address.as_str())
        .serve_at("/org/shipote/Workspaces1", Service)
        .name("org.shipote.Workspaces1")
        .build()
        .await
        .unwrap();

    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_shipote"))
        .args(["status", "--json"])
        .env("DBUS_SYSTEM_BUS_ADDRESS", &address)
        .env("XDG_RUNTIME_DIR", folder.path().join("no-embedded-appliance-here"))
        .env_remove("SHIPOTE_BUS_ADDRESS")
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["bus_address"], address);
    assert_eq!(status["socket"], "/run/shipote/workspaces/shipote.sock");
    let rows: Vec<_> = status["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            [&s["name"], &s["state"], &s["pid"], &s["restarts"], &s["since"], &s["version"]].map(ToString::to_string)
        })
        .collect();
    assert_eq!(
        rows,
        [
            ["\"machines\"", "\"failed\"", "null", "5", "\"1970-01-01T00:00:02Z\"", "null"],
            ["\"plugins\"", "\"stopped\"", "null", "0", "null", "null"],
            ["\"proxy\"", "\"starting\"", "12", "0", "\"1970-01-01T00:00:03Z\"", "null"],
            ["\"workspaces\"", "\"running\"", "4711", "2", "\"1970-01-01T00:00:01Z\"", "\"9.8.7\""],
        ]
    );
    assert_eq!(status["services"][1]["status"], "shipote-plugins.service is not installed");
    let mechanism = serde_json::json!([{"mechanism": "landlock", "state": "degraded", "reason": "ABI 1"}]);
    assert_eq!(status["services"][3]["confinement"], mechanism);
}
