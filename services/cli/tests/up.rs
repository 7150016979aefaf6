//! `shipote up` with services that behave, crash, fall silent or never end, and with deaths of its own.
//!
//! The services are this very test binary: a script named like a service starts it again with the "test" `service`,
//! which then does what the script's `BEHAVIOUR` says. Nothing here waits for a time to pass: each step waits for a
//! line that `up` or a service prints, or for a process to end.

#![expect(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    pty::OpenptFlags,
};

/// Far longer than anything takes: a test that gets here has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with `shipote` and services beside it, and folders for state and runtime.
struct House(tempfile::TempDir);

impl House {
    /// `services` are names and behaviours.
    fn new(services: &[(&str, &str)]) -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        fs::create_dir(house.path("bin")).unwrap();
        let built =
            [("shipote", env!("CARGO_BIN_EXE_shipote")), ("shipote-commands", env!("CARGO_BIN_EXE_shipote-commands"))];
        for (name, path) in built {
            make("install -m 755 \"$1\" \"$2\"", path, &house.path(&format!("bin/{name}")));
        }
        for (name, behaviour) in services {
            let script = format!(
                "#!/bin/sh\nBEHAVIOUR={behaviour} SERVICE={name} exec {} --ignored --exact --nocapture service\n",
                std::env::current_exe().unwrap().display()
            );
            let path = house.path(&format!("bin/shipote-{name}"));
            make("printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", &script, &path);
        }
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn shipote(&self) -> Command {
        let mut command = Command::new(self.path("bin/shipote"));
        command.env("SHIPOTE_BUS_ADDRESS", format!("unix:path={}", self.path("run/bus").display()));
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        command
    }

    fn up(&self, services: &[(&str, &str)], arguments: &[&str]) -> Up {
        self.up_as(self.shipote(), services, arguments)
    }

    fn up_as(&self, mut command: Command, services: &[(&str, &str)], arguments: &[&str]) -> Up {
        let names: Vec<&str> = services.iter().map(|(name, _)| *name).collect();
        command.arg("up").arg("--state").arg(self.path("state")).arg("--runtime").arg(self.path("run"));
        command.arg("--services").arg(names.join(",")).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Up { child, lines, seen: Vec::new() }
    }

    /// Starts with these services and waits until all are ready.
    fn ready(services: &[(&str, &str)], arguments: &[&str]) -> (Self, Up) {
        let house = Self::new(services);
        let mut up = house.up(services, arguments);
        up.line(|l| l == "ready");
        (house, up)
    }

    fn status(&self) -> serde_json::Value {
        let output = self.shipote().args(["status", "--json"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// A running `shipote up` and what it printed.
struct Up {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Up {
    /// Waits for a line.
    fn line(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(error) => panic!("{error} after:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// A line that it has printed, or will print.
    fn said(&mut self, wanted: &str) -> String {
        match self.seen.iter().find(|l| l.contains(wanted)) {
            Some(line) => line.clone(),
            None => self.line(|l| l.contains(wanted)),
        }
    }

    /// The number at the end of such a line.
    fn number(&mut self, wanted: &str) -> u32 {
        self.said(wanted).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until the successor of this process says that it has started.
    fn restarted(&mut self, service: &str, first: u32) -> u32 {
        let first = format!("| started as {first}");
        let line = self.line(|l| l.contains(service) && l.contains("| started as ") && !l.ends_with(&first));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(pid(self.child.id()), signal).unwrap();
    }

    /// Waits for its end and what it printed until then.
    fn end(mut self) -> (std::process::ExitStatus, Vec<String>) {
        assert!(gone(watch(self.child.id()).as_fd()), "does not end:\n{}", self.seen.join("\n"));
        let status = self.child.wait().unwrap();
        self.seen.extend(self.lines.iter());
        (status, std::mem::take(&mut self.seen))
    }

    fn stop(self) -> Vec<String> {
        self.signal(Signal::TERM);
        let (status, lines) = self.end();
        assert!(status.success(), "{status}:\n{}", lines.join("\n"));
        lines
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an executable file in a process of its own: a process that another test starts just then would inherit the open
/// file from this one, and the file could not be executed (`ETXTBSY`).
fn make(script: &str, first: &str, second: &Path) {
    assert!(Command::new("sh").args(["-ec", script, "sh", first]).arg(second).status().unwrap().success());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed()).unwrap()
}

/// Children of a process.
fn children(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some(&parent)
        })
        .collect()
}

fn watch(process: u32) -> OwnedFd {
    pidfd_open(pid(process), PidfdFlags::empty()).unwrap()
}

/// Waits until the process behind a pidfd has ended.
fn gone(pidfd: BorrowedFd<'_>) -> bool {
    let timeout = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

#[test]
fn the_program_that_runs_commands_needs_the_other_for_all_else() {
    let house = House::new(&[]);
    let ask = |words: &[&str]| {
        let output = house.shipote().args(words).output().unwrap();
        (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let (code, version) = ask(&["--version"]);
    assert!(code == Some(0) && version.starts_with("shipote "), "{version}");
    let (code, wrong) = ask(&["plugin"]);
    assert!(code == Some(2) && wrong.contains("Usage: shipote plugin <COMMAND>"), "{wrong}");
    fs::remove_file(house.path("bin/shipote-commands")).unwrap();
    assert_eq!(ask(&["run", "--help"]).0, Some(0));
    let (code, alone) = ask(&["ps"]);
    assert_eq!(code, Some(1));
    assert!(alone.contains("bin/shipote-commands: No such file") && alone.contains("same installation"), "{alone}");
}

#[test]
fn starts_says_so_and_stops_in_order() {
    let services = [("workspaces", "good"), ("machines", "good"), ("proxy", "good"), ("plugins", "good")];
    let (house, up) = House::ready(&services, &[]);
    let printed = up.seen.join("\n");
    assert!(printed.contains(&format!("unix:path={}", house.path("run/bus").display())), "{printed}");
    assert!(printed.contains("shipote.sock") && printed.contains("shipote status"), "{printed}");
    let described: serde_json::Value =
        serde_json::from_slice(&fs::read(house.path("run/appliance.json")).unwrap()).unwrap();
    assert_eq!(described["pid"], up.child.id());
    for folder in ["run", "state", "run/proxy", "state/proxy"] {
        assert_eq!(fs::metadata(house.path(folder)).unwrap().permissions().mode() & 0o777, 0o700, "{folder}");
    }
    let lines = up.stop();
    let ends: Vec<&str> =
        lines.iter().filter_map(|l| l.split_once("up | ")?.1.split_once(" (process ").map(|(unit, _)| unit)).collect();
    assert_eq!(ends, ["proxy", "machines", "workspaces", "plugins", "bus"]);
    let left: Vec<_> = fs::read_dir(house.path("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
    let log = fs::read_to_string(house.path("state/log/proxy.log")).unwrap();
    assert!(log.contains("started as") && log.contains("told to end"), "{log}");
}

#[test]
fn services_get_what_systemd_would_give_them() {
    let services = [("proxy", "environment")];
    let (house, mut up) = House::ready(&services, &[]);
    let mut value = |key: &str| up.said(&format!("| {key}=")).split_once('=').unwrap().1.to_owned();
    assert_eq!(value("STATE_DIRECTORY"), house.path("state/proxy").display().to_string());
    assert_eq!(value("RUNTIME_DIRECTORY"), house.path("run/proxy").display().to_string());
    assert_eq!(value("SHIPOTE_BUS_ADDRESS"), format!("unix:path={}", house.path("run/bus").display()));
    assert_eq!(value("WATCHDOG_USEC"), "30000000");
    assert!(value("SHIPOTE_LIFELINE_FD").parse::<i32>().unwrap() > 2);
    assert!(Path::new(&value("SHIPOTE_POLICY_DIR")).is_absolute());
    assert_eq!(value("CARGO"), "absent", "the caller's environment stays outside");
    // Standard streams, the lifeline, and the folder that is being read.
    assert_eq!(value("DESCRIPTORS"), "5", "the caller's descriptors stay outside");
    up.stop();
}

#[test]
fn a_crash_is_followed_by_a_restart() {
    let (house, mut up) = House::ready(&[("proxy", "good"), ("plugins", "good")], &[]);
    let before = house.status();
    let proxy = |status: &serde_json::Value| status["services"][1].clone();
    assert_eq!(proxy(&before)["name"], "proxy");
    assert_eq!(proxy(&before)["state"], "running");
    let first = u32::try_from(proxy(&before)["pid"].as_u64().unwrap()).unwrap();
    kill_process(pid(first), Signal::KILL).unwrap();
    up.line(|l| l.contains(&format!("proxy (process {first}) ended")));
    up.restarted("proxy", first);
    let after = house.status();
    assert_eq!(proxy(&after)["restarts"], 1);
    assert_eq!(after["services"][0]["restarts"], 0, "the other one was left alone");
    up.stop();
}

#[test]
fn a_silent_service_is_killed_and_started_again() {
    let (_house, mut up) = House::ready(&[("proxy", "silent-at-first")], &["--watchdog", "1"]);
    let first = up.number("| started as ");
    up.said("proxy did not answer the watchdog in time");
    up.restarted("proxy", first);
    up.stop();
}

#[test]
fn one_that_pings_is_left_alone_and_one_that_will_not_end_is_killed() {
    let (_house, mut up) = House::ready(&[("proxy", "stubborn")], &["--watchdog", "4", "--grace", "1"]);
    up.line(|l| l.contains("| pinged 3 times"));
    let lines = up.stop();
    assert!(lines.iter().any(|l| l.contains("proxy did not end in time: killed")), "{}", lines.join("\n"));
    assert!(!lines.iter().any(|l| l.contains("watchdog")), "{}", lines.join("\n"));
}

#[test]
fn only_the_service_itself_can_say_that_it_is_ready() {
    let services = [("proxy", "liar")];
    let house = House::new(&services);
    let mut up = house.up(&services, &[]);
    up.line(|l| l.contains("which is no service, is ignored"));
    up.signal(Signal::TERM);
    let (status, lines) = up.end();
    assert!(status.success());
    assert!(!lines.iter().any(|l| l == "ready"), "{}", lines.join("\n"));
}

#[test]
fn gives_up_on_a_service_that_never_starts() {
    let services = [("proxy", "crash"), ("plugins", "good")];
    let house = House::new(&services);
    let (status, lines) = house.up(&services, &[]).end();
    assert_eq!(status.code(), Some(1));
    let last = lines.iter().find(|l| l.starts_with("shipote: start the appliance: proxy failed 5 times"));
    assert!(last.is_some_and(|l| l.contains("exit status: 7")), "{}", lines.join("\n"));
}

#[test]
fn a_dead_bus_comes_back_and_the_services_with_it() {
    let (house, mut up) = House::ready(&[("proxy", "good")], &[]);
    let status = house.status();
    let proxy = u32::try_from(status["services"][0]["pid"].as_u64().unwrap()).unwrap();
    let bus = children(up.child.id()).into_iter().find(|p| *p != proxy).unwrap();
    kill_process(pid(bus), Signal::KILL).unwrap();
    up.line(|l| l.contains("bus (process"));
    up.restarted("proxy", proxy);
    up.stop();
}

#[test]
fn killed_it_leaves_no_process_and_the_next_start_works() {
    let services = [("proxy", "with-helper"), ("plugins", "good")];
    let (house, mut up) = House::ready(&services, &[]);
    let helper = up.number("| helper ");
    let children = children(up.child.id());
    assert_eq!(children.len(), 3, "the bus and two services");
    let processes: Vec<OwnedFd> = children.into_iter().chain([helper]).map(watch).collect();
    up.signal(Signal::KILL);
    for process in &processes {
        assert!(gone(process.as_fd()));
    }
    assert!(house.path("run/bus").exists(), "what it could not remove");
    let mut again = house.up(&services, &[]);
    again.line(|l| l == "ready");
    again.stop();
}

#[test]
fn orphans_of_services_end_with_the_appliance() {
    let (_house, mut up) = House::ready(&[("proxy", "with-orphan")], &[]);
    let orphan = up.number("| orphan ");
    let orphan = watch(orphan);
    let lines = up.stop();
    assert!(gone(orphan.as_fd()));
    assert!(lines.iter().any(|l| l.contains("killed 1 process ")), "{}", lines.join("\n"));
}

#[test]
fn an_outer_service_manager_hears_of_it() {
    let services = [("proxy", "good")];
    let house = House::new(&services);
    let path = house.path("outer");
    let outer = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    outer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = house.shipote();
    command.env("NOTIFY_SOCKET", &path);
    let mut up = house.up_as(command, &services, &[]);
    let heard = || {
        let mut bytes = [0; 256];
        let length = outer.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert!(heard().contains("READY=1"));
    up.line(|l| l == "ready");
    up.stop();
    assert!(heard().contains("STOPPING=1"));
}

#[test]
fn a_hang_up_reloads_but_a_lost_terminal_stops() {
    let services = [("proxy", "good")];
    let house = House::new(&services);
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = rustix::pty::openpt(flags).unwrap();
    rustix::pty::grantpt(&controller).unwrap();
    rustix::pty::unlockpt(&controller).unwrap();
    let name = rustix::pty::ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
    let terminal = fs::OpenOptions::new().read(true).write(true).open(name).unwrap();
    let mut command = house.shipote();
    command.stdin(terminal);
    let mut up = house.up_as(command, &services, &[]);
    up.line(|l| l == "ready");
    up.signal(Signal::HUP);
    up.said("| reloads");
    drop(controller);
    up.signal(Signal::HUP);
    let (status, lines) = up.end();
    assert!(status.success() && lines.iter().any(|l| l.contains("the terminal is gone")), "{}", lines.join("\n"));
}

#[test]
fn a_second_one_is_refused_with_the_holders_number() {
    let services = [("proxy", "good")];
    let (house, up) = House::ready(&services, &[]);
    let (status, lines) = house.up(&services, &[]).end();
    assert_eq!(status.code(), Some(1));
    let refusal = lines.join("\n");
    assert!(refusal.contains(&format!("process {}", up.child.id())), "{refusal}");
    assert_eq!(lines.len(), 1, "{refusal}");
    assert_eq!(house.status()["services"][0]["state"], "running", "the first one goes on");
    up.stop();
}

#[test]
fn a_missing_binary_is_named_before_anything_starts() {
    let house = House::new(&[]);
    let mut command = house.shipote();
    command.env("PATH", "/nowhere");
    let (status, lines) = house.up_as(command, &[("machines", "good")], &[]).end();
    assert_eq!(status.code(), Some(1));
    assert!(lines.join("\n").contains("there is no shipote-machines"), "{lines:?}");
    assert!(!house.path("run").exists());
}

#[test]
fn the_supervisor_answers_on_its_bus() {
    let (house, mut up) = House::ready(&[("proxy", "good")], &[]);
    let address = format!("unix:path={}", house.path("run/bus").display());
    let first = u32::try_from(house.status()["services"][0]["pid"].as_u64().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
        let appliance = shipote_bus::appliance::Appliance1Proxy::new(&bus).await.unwrap();
        let services = appliance.services().await.unwrap();
        assert_eq!(services, appliance.list_services().await.unwrap());
        assert_eq!(services[0].status, "behaving");
        assert!(appliance.restart_service("machines").await.is_err(), "not one of this appliance's");
        assert!(appliance.restart_service("elephants").await.is_err());
        appliance.restart_service("proxy").await.unwrap();
    });
    up.restarted("proxy", first);
    runtime.block_on(async {
        let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
        shipote_bus::appliance::Appliance1Proxy::new(&bus).await.unwrap().stop().await.unwrap();
    });
    let (status, lines) = up.end();
    assert!(status.success(), "{}", lines.join("\n"));
}

#[test]
fn status_tells_of_a_service_that_does_not_answer() {
    let (house, up) = House::ready(&[("proxy", "good")], &[]);
    let status = house.status();
    assert_eq!(status["socket"], house.path("run/workspaces/shipote.sock").display().to_string());
    let proxy = &status["services"][0];
    assert!(proxy["status"].as_str().unwrap().starts_with("does not answer"), "{proxy}");
    assert_eq!(proxy["confinement"], serde_json::json!([]));
    assert!(proxy["since"].as_str().unwrap().ends_with('Z'));
    let table = house.shipote().arg("status").output().unwrap();
    assert!(String::from_utf8_lossy(&table.stdout).contains("running"));
    up.stop();
    let output = house.shipote().args(["status", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("shipote up"), "says the way out");
}

/// Not a test: what the scripts named like services start.
#[test]
#[ignore = "runs as a service of the other tests"]
fn service() {
    let Ok(behaviour) = std::env::var("BEHAVIOUR") else { return };
    let name = std::env::var("SERVICE").unwrap();
    let say = |text: String| writeln!(std::io::stderr(), "{text}").unwrap();
    match behaviour.as_str() {
        "crash" => std::process::exit(7),
        // What a helper of a service does: wait for the end of the appliance.
        "helper" => {
            let lifeline = std::env::var("SHIPOTE_LIFELINE_FD").unwrap();
            let mut end = Vec::new();
            fs::File::open(format!("/proc/self/fd/{lifeline}")).unwrap().read_to_end(&mut end).unwrap();
            return;
        }
        "orphan" => loop {
            std::thread::park();
        },
        "say-ready" => return notify("READY=1"),
        _ => {}
    }
    let start = |behaviour: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "service"])
            .env("BEHAVIOUR", behaviour)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    say(format!("started as {}", std::process::id()));
    match behaviour.as_str() {
        "with-helper" => say(format!("helper {}", start("helper").id())),
        "with-orphan" => say(format!("orphan {}", start("orphan").id())),
        "environment" => {
            for key in [
                "STATE_DIRECTORY",
                "RUNTIME_DIRECTORY",
                "SHIPOTE_BUS_ADDRESS",
                "WATCHDOG_USEC",
                "SHIPOTE_LIFELINE_FD",
                "SHIPOTE_POLICY_DIR",
                "CARGO",
            ] {
                say(format!("{key}={}", std::env::var(key).unwrap_or_else(|_| "absent".to_owned())));
            }
            say(format!("DESCRIPTORS={}", fs::read_dir("/proc/self/fd").unwrap().count()));
        }
        "liar" => {
            start("say-ready").wait().unwrap();
        }
        _ => {}
    }
    let marker = Path::new(&std::env::var("STATE_DIRECTORY").unwrap()).join(format!("{name}-was-silent"));
    let silent = behaviour == "silent-at-first" && !marker.exists();
    if silent {
        fs::write(&marker, "").unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let every = Duration::from_micros(std::env::var("WATCHDOG_USEC").unwrap().parse().unwrap());
        let mut reload = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).unwrap();
        let mut ping = tokio::time::interval(every / 4);
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        // whoever is ready may be signalled
        if behaviour != "liar" {
            notify("READY=1\nSTATUS=behaving");
        }
        for pings in 0.. {
            tokio::select! {
                _ = ping.tick(), if !silent => {
                    notify("WATCHDOG=1");
                    if behaviour == "stubborn" {
                        say(format!("pinged {pings} times"));
                    }
                }
                _ = reload.recv() => {
                    notify("RELOADING=1\nMONOTONIC_USEC=1");
                    say("reloads".to_owned());
                    notify("READY=1");
                }
                _ = end.recv(), if behaviour != "stubborn" => {
                    say("told to end".to_owned());
                    return;
                }
            }
        }
    });
}

fn notify(state: &str) {
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    socket.send_to(state.as_bytes(), std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
}
