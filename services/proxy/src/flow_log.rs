//! The flow log for others to keep: each flow as one record of the service's log, or as one line of a file.
//!
//! Workers hand flows over and never wait: where the log does not come after, flows are left out, counted and told. A file
//! is moved aside once it is large, and the one that was aside before is gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use shipote_bus::words::counted;

use crate::flows::Flow;

/// Flows that wait to be written.
const QUEUE: usize = 4096;
/// Between two warnings that flows are missing.
const QUIET: Duration = Duration::from_secs(60);
/// Largest file, bytes; there are two at most.
const FILE_BYTES: u64 = 64 << 20;

/// Where flows go besides the ring that remembers the last ones. Clones write to the same place, which is left once all of
/// them are gone.
#[derive(Debug, Clone)]
pub struct FlowLog {
    send: SyncSender<Flow>,
    lost: Arc<AtomicU64>,
}

impl FlowLog {
    /// Records of the log: fields `client`, `rule`, `method`, `host`, `path`, `status`, `upstream`, `bytes_in`, `bytes_out`,
    /// `duration_us`, `connection`, `error`.
    ///
    /// # Errors
    /// The thread that writes could not be started.
    pub fn journal() -> io::Result<Self> {
        Self::start(|flow| {
            record(flow);
            Ok(())
        })
    }

    /// Lines of JSON in a file: what `shipote proxy tail --json` prints.
    ///
    /// # Errors
    /// The file could not be opened, or the thread that writes not started.
    pub fn file(path: &Path) -> io::Result<Self> {
        let mut kept = Kept::open(path, FILE_BYTES)?;
        Self::start(move |flow| kept.write(flow))
    }

    fn start(write: impl FnMut(&Flow) -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (send, flows) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let theirs = Arc::clone(&lost);
        std::thread::Builder::new().name("flow-log".to_owned()).spawn(move || run(&flows, &theirs, write))?;
        Ok(Self { send, lost })
    }

    /// Hands a flow over, if there is room.
    pub(crate) fn tell(&self, flow: &Flow) {
        if self.send.try_send(flow.clone()).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Flows that are missing from it.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

/// Writes what comes. That flows are missing is told once a minute at most, and that none can be written when it begins.
fn run(flows: &Receiver<Flow>, lost: &AtomicU64, mut write: impl FnMut(&Flow) -> io::Result<()>) {
    let (mut told, mut when, mut broken) = (0, None::<Instant>, false);
    for flow in flows {
        let failed = write(&flow).err();
        if let Some(error) = &failed {
            lost.fetch_add(1, Relaxed);
            if !broken {
                tracing::error!("write the flow log: {error}; flows are missing from it until that is mended");
            }
        }
        broken = failed.is_some();
        let missing = lost.load(Relaxed);
        if !broken && missing > told && when.is_none_or(|when| when.elapsed() > QUIET) {
            tracing::warn!("missing from the flow log: {}", counted(missing - told, "flow"));
            (told, when) = (missing, Some(Instant::now()));
        }
    }
}

fn record(flow: &Flow) {
    let Flow {
        client,
        rule,
        method,
        host,
        path,
        status,
        upstream,
        bytes_in,
        bytes_out,
        duration_us,
        connection,
        error,
        ..
    } = flow;
    tracing::info!(
        client,
        rule,
        method,
        host,
        path,
        status,
        upstream,
        bytes_in,
        bytes_out,
        duration_us,
        connection,
        error,
        "flow: {client} {method} {host}{path} {status}"
    );
}

/// A file that stays below a size.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    file: File,
    bytes: u64,
    limit: u64,
}

impl Kept {
    fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, limit })
    }

    fn write(&mut self, flow: &Flow) -> io::Result<()> {
        let mut line = serde_json::to_vec(flow)?;
        line.push(b'\n');
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.limit {
            let mut aside = self.path.clone().into_os_string();
            aside.push(".1");
            std::fs::rename(&self.path, aside)?;
            (self.file, self.bytes) = (open(&self.path)?, 0);
        }
        self.file.write_all(&line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let no_link = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(no_link).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(status: u16) -> Flow {
        Flow { status, path: "/x".to_owned(), ..Flow::default() }
    }

    fn statuses(path: &Path) -> Vec<u16> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str::<Flow>(line).unwrap().status).collect()
    }

    #[test]
    fn a_file_is_moved_aside_once_it_is_large_and_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("flows.jsonl"), dir.path().join("flows.jsonl.1"));
        let line = serde_json::to_vec(&flow(200)).unwrap().len() as u64 + 1;
        let limit = 2 * line;
        let mut kept = Kept::open(&path, limit).unwrap();
        (200..203).for_each(|status| kept.write(&flow(status)).unwrap());
        assert_eq!((statuses(&aside), statuses(&path)), (vec![200, 201], vec![202]));
        let mut again = Kept::open(&path, limit).unwrap();
        (203..206).for_each(|status| again.write(&flow(status)).unwrap());
        assert_eq!((statuses(&aside), statuses(&path)), (vec![202, 203], vec![204, 205]));
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("other"), dir.path().join("flows.jsonl")).unwrap();
        assert!(FlowLog::file(&dir.path().join("flows.jsonl")).is_err());
        assert!(!dir.path().join("other").exists());
    }

    #[test]
    fn who_hands_flows_over_does_not_wait_and_what_is_missing_is_counted() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let log = FlowLog::start(move |_| {
            let _ = wait.recv();
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap();
        let more = 100;
        // One is being written, the queue is full.
        (0..=QUEUE + more).for_each(|_| log.tell(&flow(200)));
        let lost = log.lost();
        assert!((more as u64..=more as u64 + 1).contains(&lost), "{lost}");
        drop(go);
        let end = Instant::now() + Duration::from_secs(20);
        while log.lost() < (QUEUE + more + 1) as u64 {
            assert!(Instant::now() < end, "what could not be written counts: {}", log.lost());
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_requests_came_to_is_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows.jsonl");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings =
            crate::Settings { workers: 1, flow_log: Some(FlowLog::file(&path).unwrap()), ..crate::Settings::default() };
        let engine = crate::Engine::start(settings, crate::Inherited::default()).unwrap();
        let rules = format!(
            r#"{{"rules": [{{"name": "a", "listen": ["127.0.0.1:{port}"], "terminate": {{"type": "static", "status": 418}}}}]}}"#
        );
        engine.apply(shipote_rules::compile(&[shipote_rules::Source::new("a.json", rules)]).unwrap()).unwrap();
        let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.write_all(b"GET /tea?pot HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").unwrap();
        io::copy(&mut client, &mut io::sink()).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while statuses(&path) != [418] {
            assert!(Instant::now() < end, "{:?}", statuses(&path));
            std::thread::yield_now();
        }
        let flow: Flow = serde_json::from_str(std::fs::read_to_string(&path).unwrap().trim()).unwrap();
        assert_eq!((flow.rule.as_str(), flow.host.as_str(), flow.path.as_str()), ("a", "a.example", "/tea"));
        assert!(crate::metrics::render(&engine).contains("shipote_proxy_flows_unlogged_total 0\n"));
    }
}
