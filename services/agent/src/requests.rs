//! Requests that one answer settles.

use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::{AgentRequest, AgentResponse, PROTOCOL_VERSION, StorageStatus, codes};

use crate::agent::Agent;
use crate::images::{self, ImageError, Store};

/// What a request for an image is told: this build keeps no image store.
const NO_STORE: &str = "this agent keeps no images; run commands in its own root (VmExec)";

/// Answers everything that is neither an exec, a session, a file nor the end.
pub(crate) async fn answer(agent: &Agent, request: AgentRequest) -> AgentResponse {
    match request {
        AgentRequest::Ping => AgentResponse::Pong { version: PROTOCOL_VERSION },
        AgentRequest::StorageStatus => storage(agent),
        AgentRequest::NetworkTest { url } => network(agent, &url).await,
        AgentRequest::FormatStorage => format(agent),
        request => match &agent.images {
            Some(store) => images_of(store, request).await,
            None => without_images(request),
        },
    }
}

/// Answers for a machine's image store, off the runtime's thread: mounting and removing take their time.
async fn images_of(store: &Arc<Store>, request: AgentRequest) -> AgentResponse {
    store.is_open().await;
    let store = Arc::clone(store);
    let work = move || match request {
        AgentRequest::ListImages => AgentResponse::ok_with(store.list()),
        AgentRequest::Query { image } => told(store.query(&image), codes::NOT_FOUND),
        AgentRequest::PrepareOverlay { image, workload_id } => {
            told(images::prepare(&store, &image, &workload_id), codes::OVERLAY_FAILED)
        }
        AgentRequest::CleanupOverlay { workload_id } => {
            told(images::cleanup(&store, &workload_id).map(|()| serde_json::Value::Null), codes::CLEANUP_FAILED)
        }
        AgentRequest::GarbageCollect { dry_run, purge_all } => match images::collect(&store, dry_run, purge_all) {
            Ok(freed) => AgentResponse::ok_with(serde_json::json!({"freed_bytes": freed, "dry_run": dry_run})),
            Err(error) => AgentResponse::error(codes::GC_FAILED, error),
        },
        AgentRequest::RemoveImage { image } => told(
            images::remove(&store, &image).map(|freed| serde_json::json!({"freed_bytes": freed})),
            codes::DELETE_FAILED,
        ),
        other => AgentResponse::error(codes::INTERNAL_ERROR, format_args!("{} is not answered here", other.method())),
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => AgentResponse::error(codes::INTERNAL_ERROR, error),
    }
}

fn told(result: Result<impl serde::Serialize, ImageError>, code: &str) -> AgentResponse {
    match result {
        Ok(data) => AgentResponse::ok_with(data),
        Err(error @ ImageError::BadId(_)) => AgentResponse::error(codes::INVALID_REQUEST, error),
        Err(error @ ImageError::Absent(_)) => AgentResponse::error(codes::NOT_FOUND, error),
        Err(error) => AgentResponse::error(code, error),
    }
}

/// Answers for a process that keeps no images.
fn without_images(request: AgentRequest) -> AgentResponse {
    match request {
        AgentRequest::ListImages => AgentResponse::ok_with(serde_json::json!([])),
        AgentRequest::GarbageCollect { dry_run, .. } => {
            AgentResponse::ok_with(serde_json::json!({"freed_bytes": 0, "dry_run": dry_run}))
        }
        AgentRequest::Query { image } | AgentRequest::RemoveImage { image } => {
            AgentResponse::error(codes::NOT_FOUND, format_args!("image {image}: none here"))
        }
        AgentRequest::Pull { .. } => AgentResponse::error(codes::PULL_FAILED, NO_STORE),
        AgentRequest::Run { image, .. } => {
            AgentResponse::error(codes::RUN_FAILED, format_args!("image {image}: {NO_STORE}"))
        }
        AgentRequest::PrepareOverlay { .. } => AgentResponse::error(codes::OVERLAY_FAILED, NO_STORE),
        AgentRequest::CleanupOverlay { .. } => AgentResponse::ok(),
        AgentRequest::ExportLayer { .. } => AgentResponse::error(codes::EXPORT_FAILED, NO_STORE),
        other => AgentResponse::error(codes::INTERNAL_ERROR, format_args!("{} is not answered here", other.method())),
    }
}

/// The host makes the file system, and what is on it stays: that it is there is all that there is to do.
fn format(agent: &Agent) -> AgentResponse {
    let Some(store) = agent.images.as_ref().filter(|_| agent.features.disk) else {
        return AgentResponse::error(codes::FORMAT_FAILED, "the machine has no storage disk; give it one");
    };
    match std::fs::write(store.root().join(".formatted"), b"1\n") {
        Ok(()) => AgentResponse::ok(),
        Err(error) => AgentResponse::error(codes::FORMAT_FAILED, error),
    }
}

fn storage(agent: &Agent) -> AgentResponse {
    let (images, layers) = agent.images.as_ref().map_or((0, 0), |store| store.counts());
    let stat = match &agent.images {
        Some(store) => rustix::fs::statvfs(store.root()),
        None => rustix::fs::fstatvfs(agent.tree.root()),
    };
    match stat {
        Ok(stat) => AgentResponse::ok_with(StorageStatus {
            ready: agent.images.is_some(),
            total_bytes: stat.f_blocks * stat.f_frsize,
            used_bytes: (stat.f_blocks - stat.f_bfree) * stat.f_frsize,
            layer_count: layers,
            image_count: images,
        }),
        Err(error) => AgentResponse::error(codes::STATUS_FAILED, error),
    }
}

/// Whether anything could be reached at all: without a network device the answer is known.
async fn network(agent: &Agent, url: &str) -> AgentResponse {
    let devices = std::fs::read_dir("/sys/class/net")
        .map_or(0, |entries| entries.filter_map(Result::ok).filter(|entry| entry.file_name() != "lo").count());
    let error = if agent.features.egress {
        return through_the_host(url).await;
    } else if devices == 0 {
        "the machine has no network device".to_owned()
    } else {
        match url.parse::<std::net::SocketAddr>() {
            Err(_) => "only ADDRESS:PORT can be tried: the agent resolves no names".to_owned(),
            Ok(address) => {
                let connecting = tokio::net::TcpStream::connect(address);
                match tokio::time::timeout(Duration::from_secs(5), connecting).await {
                    Ok(Ok(_)) => return AgentResponse::ok_with(serde_json::json!({"url": url, "reachable": true})),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "no answer within 5 s".to_owned(),
                }
            }
        }
    };
    AgentResponse::ok_with(serde_json::json!({"url": url, "reachable": false, "error": error}))
}

/// Whether the host lets a URL be reached, and somebody is there.
async fn through_the_host(url: &str) -> AgentResponse {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let default = if url.starts_with("https:") { 443 } else { 80 };
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let target = if has_port { authority.to_owned() } else { format!("{authority}:{default}") };
    let reached = tokio::time::timeout(Duration::from_secs(10), crate::egress::try_target(&target)).await;
    AgentResponse::ok_with(match reached {
        Ok(Ok(())) => serde_json::json!({"url": url, "reachable": true}),
        Ok(Err(error)) => serde_json::json!({"url": url, "reachable": false, "error": error.to_string()}),
        Err(_) => serde_json::json!({"url": url, "reachable": false, "error": "no answer within 10 s"}),
    })
}
