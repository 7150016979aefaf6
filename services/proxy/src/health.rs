//! Upstreams are asked now and then whether they are well, by a thread of its own: a worker that is busy must not make
//! upstreams look ill.

use std::sync::Arc;

use bytes::Bytes;
use shipote_rules::{HealthCheck, Terminator};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::plan::Plan;
use crate::upstream::{AcquireError, Connected, Dialer, How, Speak, Target, connect};

/// The asking thread; it ends with this.
#[derive(Debug)]
pub(crate) struct Health {
    plans: mpsc::UnboundedSender<Vec<Patient>>,
}

/// An upstream, and how it is asked.
#[derive(Debug, Clone)]
struct Patient {
    target: Arc<Target>,
    check: HealthCheck,
}

impl Patient {
    fn is(&self, other: &Self) -> bool {
        self.target.id == other.target.id && self.check == other.check
    }
}

impl Health {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (plans, receiver) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("health".to_owned()).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, follow(receiver)),
                Err(e) => tracing::error!("upstreams are not asked whether they are well: {e}"),
            }
        })?;
        Ok(Self { plans })
    }

    /// Asks the upstreams of this plan from now on.
    pub(crate) fn watch(&self, plan: &Plan) {
        let mut all: Vec<Patient> = Vec::new();
        for (entry, targets) in plan.graph.terminators.iter().zip(&plan.targets) {
            let care = match &entry.terminator {
                Terminator::HttpProxy(spec) => &spec.care,
                Terminator::TcpForward { care, .. } => care,
                _ => continue,
            };
            for target in targets {
                match &care.health_check {
                    None => {}
                    Some(check) => {
                        let patient = Patient { target: Arc::clone(target), check: check.clone() };
                        if !all.iter().any(|p| p.is(&patient)) {
                            all.push(patient);
                        }
                    }
                }
            }
        }
        // The thread lives as long as this does.
        let _ = self.plans.send(all);
    }
}

async fn follow(mut plans: mpsc::UnboundedReceiver<Vec<Patient>>) {
    let mut running: Vec<(Patient, JoinHandle<()>)> = Vec::new();
    while let Some(plan) = plans.recv().await {
        running.retain(|(patient, task)| {
            let stays = plan.iter().any(|p| p.is(patient));
            if !stays {
                task.abort();
                // What nobody asks about any more counts as well.
                patient.target.set_well(true);
            }
            stays
        });
        for patient in plan {
            if !running.iter().any(|(p, _)| p.is(&patient)) {
                let task = tokio::task::spawn_local(ask_on(patient.clone()));
                running.push((patient, task));
            }
        }
    }
}

async fn ask_on(patient: Patient) {
    let Patient { target, check } = patient;
    let (mut good, mut bad, mut well) = (0, 0, true);
    loop {
        let answer = match tokio::time::timeout(check.timeout, ask(&target, &check)).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer within the time limit".to_owned()),
        };
        match answer {
            Ok(()) => (good, bad) = (good + 1, 0),
            Err(_) => (good, bad) = (0, bad + 1),
        }
        if well && bad >= check.unhealthy {
            well = false;
            target.set_well(false);
            tracing::warn!("upstream {} is out: {}", target.name, answer.err().unwrap_or_default());
        } else if !well && good >= check.healthy {
            well = true;
            target.set_well(true);
            tracing::info!("upstream {} is back", target.name);
        }
        tokio::time::sleep(check.interval).await;
    }
}

async fn ask(target: &Target, check: &HealthCheck) -> Result<(), String> {
    if target.speak == Speak::Three {
        return ask_three(target, check).await;
    }
    let how = How { let_sleep: true, ..How::default() };
    let Connected { mut stream, two } = match connect(target, check.timeout, how).await {
        // Looking after it must not keep it awake; that it can be woken is well enough.
        Err(AcquireError::Asleep(_)) => return Ok(()),
        other => other.map_err(|e| e.to_string())?,
    };
    let Some(path) = &check.path else { return Ok(()) };
    let status = if two {
        let (send, connection) = h2::client::handshake(stream).await.map_err(|e| e.to_string())?;
        let driver = tokio::task::spawn_local(connection);
        let request = http::Request::get(format!("http://{}{path}", target.name)).body(());
        let request = request.map_err(|e| e.to_string())?;
        let mut send: h2::client::SendRequest<Bytes> = send.ready().await.map_err(|e| e.to_string())?;
        let (answer, _) = send.send_request(request, true).map_err(|e| e.to_string())?;
        let answer = answer.await.map_err(|e| e.to_string());
        driver.abort();
        answer?.status().as_u16()
    } else {
        let text = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", target.name);
        stream.write_all(text.as_bytes()).await.map_err(|e| e.to_string())?;
        stream.flush().await.map_err(|e| e.to_string())?;
        // "HTTP/1.1 200": what follows does not matter.
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.map_err(|e| e.to_string())?;
        std::str::from_utf8(&head[9..]).ok().and_then(|s| s.parse().ok()).unwrap_or(0)
    };
    judge(status, path)
}

async fn ask_three(target: &Target, check: &HealthCheck) -> Result<(), String> {
    let dialer = Dialer::default();
    let connection = dialer.connect(target, check.timeout).await.map_err(|e| e.to_string())?;
    let Some(path) = &check.path else { return Ok(()) };
    let mut place = connection.join(0).ok_or("it takes no request")?;
    let request = http::Request::get(format!("https://{}{path}", target.name)).body(()).map_err(|e| e.to_string())?;
    let mut stream = place.send.send_request(request).await.map_err(|e| e.to_string())?;
    stream.finish().await.map_err(|e| e.to_string())?;
    let answer = stream.recv_response().await.map_err(|e| e.to_string())?;
    judge(answer.status().as_u16(), path)
}

fn judge(status: u16, path: &str) -> Result<(), String> {
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("it answered {status} to {path}")) }
}
