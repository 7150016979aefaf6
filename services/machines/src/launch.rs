//! One machine's life in processes: the vsock device, QEMU, the first answer, the end of both.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use shipote_agent_protocol::{AgentRequest, AgentResponse, ports};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::Error;
use crate::console::Console;
use crate::guest::Guest;
use crate::image::{Image, archive_of};
use crate::spec::Spec;
use crate::vmm::host::Host;
use crate::vmm::{process, qemu};

/// How long the vsock device may take to listen.
const DEVICE_TIME: Duration = Duration::from_secs(10);
/// The file in which the guest's agent finds what is said to it at boot.
const SETTINGS: &str = "shipote-machine.json";
/// Longest path that a Unix socket can have, unix(7).
const SOCKET_PATH_MAX: usize = 107;

/// What a machine's task is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ask the guest to power off.
    PowerOff,
    /// Kill it.
    Kill,
}

/// What a machine's task tells.
#[derive(Debug)]
pub enum Report {
    /// The agent answers.
    Ready(Guest),
    /// All processes are gone. `clean` where the guest powered off.
    Exited {
        /// The guest ended by itself.
        clean: bool,
        /// Why, in words.
        reason: String,
    },
}

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name.
    pub name: String,
    /// Spec.
    pub spec: Spec,
    /// Kernel and the rest.
    pub image: Image,
    /// What guests run on.
    pub host: Host,
    /// Folder for its sockets; made here and removed at the end.
    pub runtime: PathBuf,
    /// Where its console is kept.
    pub console: Console,
}

/// Runs a machine to its end. There is exactly one [`Report::Exited`], and it is the last.
pub async fn run(plan: Plan, mut orders: mpsc::UnboundedReceiver<Order>, report: impl Fn(Report)) {
    let (clean, reason) = match start(&plan).await {
        Ok(mut running) => {
            let end = attend(&plan, &mut running, &mut orders, &report).await;
            running.end().await;
            end
        }
        Err(error) => (false, error.to_string()),
    };
    if let Err(error) = std::fs::remove_dir_all(&plan.runtime) {
        tracing::warn!("remove {}: {error}", plan.runtime.display());
    }
    report(Report::Exited { clean, reason });
}

/// The processes of a machine. Dropped, they are killed.
struct Running {
    qemu: Child,
    device: Child,
    knocked: UnixListener,
    guest: Guest,
    initramfs: PathBuf,
}

impl Running {
    async fn end(&mut self) {
        for child in [&mut self.qemu, &mut self.device] {
            // One that has ended already cannot be killed, which is as good.
            let _ = child.kill().await;
        }
    }
}

async fn start(plan: &Plan) -> Result<Running, Error> {
    let dir = &plan.runtime;
    let _ = std::fs::remove_dir_all(dir);
    private_dir(dir)?;
    let socket = dir.join("vsock");
    let knock = dir.join(format!("vsock_{}", ports::AGENT_READY));
    if knock.as_os_str().len() > SOCKET_PATH_MAX {
        let problem = format!("its socket {} would have too long a path; give it a shorter name", knock.display());
        return Err(Error::InvalidSpec { name: plan.name.clone(), problem });
    }
    let knocked = UnixListener::bind(&knock).map_err(Error::io("listen on", knock.display()))?;
    let secret = secret()?;
    let initramfs = dir.join("initramfs.cpio");
    write_initramfs(&plan.image.initramfs, &initramfs, &plan.name, &secret)?;

    let device_socket = dir.join("device");
    let mut command = Command::new(&plan.image.vsock_device);
    command
        .args(["--guest-cid", "3", "--tx-buffer-size", "262144", "--socket"])
        .arg(&device_socket)
        .arg("--uds-path")
        .arg(&socket);
    let mut device = spawn(&mut command, &plan.console)?;
    listening(&mut device, &device_socket).await?;

    let files = qemu::Files { kernel: &plan.image.kernel, initramfs: &initramfs, vsock: &device_socket };
    let mut command = Command::new(qemu::PROGRAM);
    command.args(qemu::arguments(&plan.host, &plan.spec, files));
    let qemu = spawn(&mut command, &plan.console)?;
    let guest = Guest { name: plan.name.clone(), socket, secret };
    Ok(Running { qemu, device, knocked, guest, initramfs })
}

/// Waits for readiness, orders and the end.
async fn attend(
    plan: &Plan,
    running: &mut Running,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    report: &impl Fn(Report),
) -> (bool, String) {
    let Running { qemu, device, knocked, guest, initramfs } = running;
    let ready = first_answer(knocked, guest);
    tokio::pin!(ready);
    let mut is_ready = false;
    loop {
        tokio::select! {
            status = qemu.wait() => return verdict(plan, status, is_ready),
            status = device.wait() => {
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                return (false, format!("its vsock device ended ({status})"));
            }
            () = &mut ready, if !is_ready => {
                is_ready = true;
                // The guest has unpacked it: with it goes the one copy of the secret outside of our memory.
                if let Err(error) = std::fs::remove_file(&*initramfs) {
                    tracing::warn!("remove {}: {error}", initramfs.display());
                }
                report(Report::Ready(guest.clone()));
            }
            order = orders.recv() => match order {
                Some(Order::PowerOff) => {
                    let guest = guest.clone();
                    tokio::spawn(async move {
                        if let Err(error) = guest.ask(&AgentRequest::Shutdown).await {
                            tracing::warn!("{error}");
                        }
                    });
                }
                // Nobody can give orders any more: the service ends.
                Some(Order::Kill) | None => return (false, "it was killed".to_owned()),
            },
        }
    }
}

/// Returns when the agent has answered. The guest's knock saves asking in vain; it proves nothing by itself.
async fn first_answer(knocked: &UnixListener, guest: &Guest) {
    loop {
        if let Err(error) = knocked.accept().await {
            tracing::warn!("machine {}: accept the guest's knock: {error}", guest.name);
        }
        match guest.ask(&AgentRequest::Ping).await {
            Ok(AgentResponse::Pong { .. }) => return,
            Ok(answer) => tracing::warn!("machine {}: its agent answers {answer:?} to a ping", guest.name),
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

fn verdict(plan: &Plan, status: std::io::Result<std::process::ExitStatus>, was_ready: bool) -> (bool, String) {
    let said = plan.console.last_line().map(|line| format!("; its console ends with: {line}")).unwrap_or_default();
    match status {
        Ok(status) if status.success() && plan.console.contains("Kernel panic") => {
            (false, format!("the guest's kernel panicked{said}"))
        }
        Ok(status) if status.success() && was_ready => (true, "the guest powered off".to_owned()),
        Ok(status) => (false, format!("the monitor ended ({status}){said}")),
        Err(error) => (false, format!("wait for the monitor: {error}")),
    }
}

/// A folder of one's own. The one above it may be missing too.
fn private_dir(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create", dir.display()))
}

/// 256 random bits, in hexadecimal.
fn secret() -> Result<String, Error> {
    let mut bytes = [0_u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::io("draw", "a secret")(error.into()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The image's initramfs with the machine's settings behind it.
fn write_initramfs(from: &Path, to: &Path, name: &str, secret: &str) -> Result<(), Error> {
    use std::io::Write as _;
    let settings = serde_json::json!({"hostname": name, "secret": secret}).to_string();
    let copy = || {
        let mut file =
            std::os::unix::fs::OpenOptionsExt::mode(std::fs::File::options().write(true).create_new(true), 0o600)
                .open(to)?;
        std::io::copy(&mut std::fs::File::open(from)?, &mut file)?;
        file.write_all(&archive_of(SETTINGS, settings.as_bytes()))
    };
    copy().map_err(Error::io("write", to.display()))
}

/// Starts a process whose words go to the machine's console.
fn spawn(command: &mut Command, console: &Console) -> Result<Child, Error> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::spawn(command).map_err(Error::io("run", program))?;
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(console.clone().follow(stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(console.clone().follow(stderr));
    }
    Ok(child)
}

/// Waits for the vsock device's socket: it has no other way to say that it is there.
async fn listening(device: &mut Child, socket: &Path) -> Result<(), Error> {
    let program = "vhost-device-vsock";
    let appears = async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        () = appears => Ok(()),
        status = device.wait() => {
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(Error::io("run", program)(std::io::Error::other(format!("it ended at once ({status})"))))
        }
        () = tokio::time::sleep(DEVICE_TIME) => {
            Err(Error::io("run", program)(std::io::Error::other(format!("no socket within {DEVICE_TIME:?}"))))
        }
    }
}
