//! The control agent: runs inside the machine as a unit of its own and executes what arrives over a virtio-serial port.
//!
//! One JSON object a line in both directions, bytes in base64. A line carries the number of the request that it belongs
//! to; requests run at the same time. Lines make the connection self-healing: after a host that went away in the middle of
//! one, the next newline is a fresh start, and answers to requests that nobody remembers are ignored by their number.
//!
//! | request | answers |
//! |---|---|
//! | `{"id", "op": "ping"}` | `{"id", "event": "done"}` |
//! | `{"id", "op": "exec", "argv", "stdin": PATH?, "timeout": SECONDS?}` | `stdout` and `stderr` events with `data`, then `exit` with `status` |
//! | `{"id", "op": "write", "path", "data", "append", "mode": MODE?}` | `done` |
//!
//! Any request may be answered by `{"id", "event": "error", "message"}`. Invariant: what a request started is killed when
//! its time is up or the host is gone; what it left running in the background on purpose (`&`, daemons) lives on.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::qemu::CONTROL_PORT;

/// Output is sent in pieces of at most this many bytes; the port's driver takes 32 KiB at a time.
const PIECE: usize = 24 * 1024;
/// A process that has ended may leave children that hold its output open; after this long without output they are let go.
const LINGER: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
/// What `timeout(1)` answers for a command that ran out of time.
const TIMED_OUT: i32 = 124;

#[derive(Debug, Deserialize)]
struct Request {
    id: u64,
    #[serde(flatten)]
    op: Op,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Op {
    Ping,
    Exec { argv: Vec<String>, stdin: Option<PathBuf>, timeout: Option<f64> },
    Write { path: PathBuf, data: String, append: bool, mode: Option<u32> },
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event {
    Done,
    Stdout { data: String },
    Stderr { data: String },
    Exit { status: i32 },
    Error { message: String },
}

#[derive(Debug, Serialize)]
struct Answer {
    id: u64,
    #[serde(flatten)]
    event: Event,
}

/// What the threads of all requests share.
#[derive(Debug)]
struct Host {
    port: Mutex<File>,
    /// Process groups of the commands that the host waits for.
    groups: Mutex<HashSet<i32>>,
}

/// Serves the control port until the machine stops.
pub(super) fn serve() -> anyhow::Result<()> {
    let path = port()?;
    let mut input =
        File::options().read(true).write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
    let host = Arc::new(Host { port: Mutex::new(input.try_clone()?), groups: Mutex::default() });
    let mut buffer = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        let count = input.read(&mut piece).context("read the control port")?;
        if count == 0 {
            // nobody at the other end: end what was being done for whoever has left, wait for the next one
            buffer.clear();
            host.kill_all();
            super::pause(Duration::from_millis(20));
            continue;
        }
        buffer.extend_from_slice(&piece[..count]);
        while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            // a line that is no request is the rest of one whose sender is gone
            if let Ok(request) = serde_json::from_slice::<Request>(&line) {
                host.handle(request);
            }
        }
    }
}

/// The port's device node, by the name that the host gave it.
fn port() -> anyhow::Result<PathBuf> {
    let class = Path::new("/sys/class/virtio-ports");
    let entries = fs::read_dir(class).with_context(|| format!("read {}", class.display()))?;
    let entry = entries
        .flatten()
        .find(|entry| fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == CONTROL_PORT))
        .with_context(|| format!("find the virtio-serial port {CONTROL_PORT}"))?;
    Ok(Path::new("/dev").join(entry.file_name()))
}

impl Host {
    fn handle(self: &Arc<Self>, Request { id, op }: Request) {
        match op {
            Op::Ping => self.answer(id, Event::Done),
            Op::Write { path, data, append, mode } => {
                // in this thread: the pieces of one file arrive in order
                let result = write(&path, &data, append, mode);
                let event = result.map_or_else(
                    |e| Event::Error { message: format!("write {}: {e}", path.display()) },
                    |()| Event::Done,
                );
                self.answer(id, event);
            }
            Op::Exec { argv, stdin, timeout } => {
                let host = Arc::clone(self);
                thread::spawn(move || {
                    let timeout = timeout.map(Duration::from_secs_f64);
                    let event = host.execute(id, &argv, stdin.as_deref(), timeout).map_or_else(
                        |e| Event::Error {
                            message: format!("execute {}: {e}", argv.first().map_or("", String::as_str)),
                        },
                        |status| Event::Exit { status },
                    );
                    host.answer(id, event);
                });
            }
        }
    }

    fn answer(&self, id: u64, event: Event) {
        let Ok(mut line) = serde_json::to_vec(&Answer { id, event }) else { return };
        line.push(b'\n');
        // an error means that the host is gone, which the reading side sees as well
        let _ = self.port.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
    }

    fn execute(&self, id: u64, argv: &[String], stdin: Option<&Path>, timeout: Option<Duration>) -> io::Result<i32> {
        let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let stdin = match stdin {
            Some(path) => Stdio::from(File::open(path)?),
            None => Stdio::null(),
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let group = child.id().cast_signed();
        self.groups().insert(group);
        let status = self.follow(id, &mut child, timeout);
        self.groups().remove(&group);
        status
    }

    /// Passes output on until the command has ended, and all that held its output open with it.
    fn follow(&self, id: u64, child: &mut Child, timeout: Option<Duration>) -> io::Result<i32> {
        let mut streams: Vec<Stream> = Vec::new();
        streams.extend(child.stdout.take().map(|out| Stream::new(out.into(), |data| Event::Stdout { data })));
        streams.extend(child.stderr.take().map(|err| Stream::new(err.into(), |data| Event::Stderr { data })));
        let deadline = timeout.map(|t| Instant::now() + t);
        let mut timed_out = false;
        let mut piece = vec![0; PIECE];
        loop {
            // Asked before the pipes are looked at: all that an ended command has written is in them by then, however
            // late this thread gets to run.
            let ended = child.try_wait()?.is_some();
            if streams.is_empty() {
                if ended {
                    break;
                }
                // it closed its output and works on
                super::pause(Duration::from_millis(1));
            } else {
                let ready = readable(&streams)?;
                if ended && !ready.contains(&true) {
                    break;
                }
                for (stream, _) in streams.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
                    let count = stream.from.read(&mut piece)?;
                    stream.open = count > 0;
                    if stream.open {
                        self.answer(id, (stream.event)(STANDARD.encode(&piece[..count])));
                    }
                }
                streams.retain(|stream| stream.open);
            }
            if !timed_out && deadline.is_some_and(|end| Instant::now() > end) {
                timed_out = true;
                kill(child.id().cast_signed());
            }
        }
        let status = child.wait()?;
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        Ok(if timed_out { TIMED_OUT } else { code })
    }

    fn kill_all(&self) {
        for group in self.groups().drain() {
            kill(group);
        }
    }

    fn groups(&self) -> std::sync::MutexGuard<'_, HashSet<i32>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The group leads its process, which is not reaped while its group is in use here: no stranger is hit.
fn kill(group: i32) {
    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
}

/// One of a command's outputs.
struct Stream {
    from: File,
    event: fn(String) -> Event,
    open: bool,
}

impl Stream {
    fn new(from: OwnedFd, event: fn(String) -> Event) -> Self {
        Stream { from: from.into(), event, open: true }
    }
}

/// Which of them have something to read, or their end; none where for [`LINGER`] there was nothing.
fn readable(streams: &[Stream]) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = streams.iter().map(|s| PollFd::new(&s.from, PollFlags::IN)).collect();
    match poll(&mut polled, Some(&LINGER)) {
        Ok(_) => Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
        // a signal; every stream is asked again
        Err(Errno::INTR) => readable(streams),
        Err(error) => Err(error.into()),
    }
}

fn write(path: &Path, data: &str, append: bool, mode: Option<u32>) -> io::Result<()> {
    let bytes = STANDARD.decode(data).map_err(io::Error::other)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::options().write(true).create(true).append(append).truncate(!append).mode(0o600).open(path)?;
    file.write_all(&bytes)?;
    match mode {
        Some(mode) => file.set_permissions(fs::Permissions::from_mode(mode)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_have_the_documented_form() {
        let exec: Request = serde_json::from_str(r#"{"id":7,"op":"exec","argv":["true"],"timeout":1.5}"#).unwrap();
        assert!(matches!(exec, Request { id: 7, op: Op::Exec { stdin: None, timeout: Some(_), .. } }));
        let answer = serde_json::to_string(&Answer { id: 7, event: Event::Exit { status: 3 } }).unwrap();
        assert_eq!(answer, r#"{"id":7,"event":"exit","status":3}"#);
    }

    /// Runs a command with a file in the port's place; gives the status and all that was answered.
    fn execute(script: &str, timeout: Option<Duration>) -> (i32, String) {
        let mut port = tempfile::tempfile().unwrap();
        let host = Host { port: Mutex::new(port.try_clone().unwrap()), groups: Mutex::default() };
        let argv = ["sh", "-c", script].map(str::to_owned);
        let status = host.execute(1, &argv, None, timeout).unwrap();
        assert!(host.groups().is_empty());
        let mut answers = String::new();
        io::Seek::rewind(&mut port).unwrap();
        port.read_to_string(&mut answers).unwrap();
        (status, answers)
    }

    #[test]
    fn output_and_status_arrive() {
        let (status, answers) = execute("printf out; printf err >&2; exit 5", None);
        assert_eq!(status, 5);
        assert!(answers.contains(&STANDARD.encode("out")) && answers.contains(&STANDARD.encode("err")), "{answers}");
    }

    /// Commands that end just when the agent stops waiting for more output, on a machine that is busy with them.
    #[test]
    fn what_a_command_says_at_its_end_arrives() {
        let commands: Vec<_> = (0..64)
            .map(|number| thread::spawn(move || execute(&format!("sleep 0.{}; printf out", 290 + number % 12), None)))
            .collect();
        for command in commands {
            let (status, answers) = command.join().unwrap();
            assert_eq!(status, 0);
            assert!(answers.contains(&STANDARD.encode("out")), "{answers:?}");
        }
    }

    #[test]
    fn a_background_child_that_holds_the_output_does_not_hold_the_answer() {
        let (status, answers) = execute("printf out; sleep 30 & exit 4", Some(Duration::from_secs(20)));
        assert_eq!(status, 4);
        assert!(answers.contains(&STANDARD.encode("out")));
    }

    #[test]
    fn a_command_out_of_time_is_killed_with_its_children() {
        let (status, _) = execute("sleep 300 & sleep 300", Some(Duration::from_millis(50)));
        assert_eq!(status, TIMED_OUT);
    }

    #[test]
    fn files_are_written_appended_and_given_a_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/file");
        write(&path, &STANDARD.encode("one"), false, None).unwrap();
        write(&path, &STANDARD.encode("two"), true, Some(0o755)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"onetwo");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    }
}
