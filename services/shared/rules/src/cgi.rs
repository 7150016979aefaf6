//! Programs that answer requests by CGI (RFC 3875), in a workspace that lists them.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value as Json;

use crate::error::Problem;
use crate::section::{Section, show};
use crate::terminate::{TimeLimits, millis, read_limits};

/// The workspace of a rule that names none.
const WORKSPACE: &str = "cgi";

/// Variables that each request sets; a rule cannot give them.
const OF_REQUESTS: [&str; 23] = [
    "AUTH_TYPE",
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "DOCUMENT_URI",
    "GATEWAY_INTERFACE",
    "HTTPS",
    "PATH_INFO",
    "PATH_TRANSLATED",
    "QUERY_STRING",
    "REMOTE_ADDR",
    "REMOTE_HOST",
    "REMOTE_IDENT",
    "REMOTE_PORT",
    "REMOTE_USER",
    "REQUEST_METHOD",
    "REQUEST_SCHEME",
    "REQUEST_URI",
    "SCRIPT_NAME",
    "SERVER_ADDR",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "SERVER_SOFTWARE",
];

/// A program that is run for each request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct CgiSpec {
    /// Name of the workspace that it runs in; its spec has to list the program under `serve`.
    pub workspace: String,
    /// The program, an absolute path inside, and its arguments.
    pub command: Vec<String>,
    /// The part of the path that stands for the program; what follows is `PATH_INFO`. Empty, or begins with `/` and does
    /// not end with it.
    pub script_name: String,
    /// Working folder inside; absent: the workspace's.
    pub working_dir: Option<String>,
    /// Variables beside those of the request.
    pub env: Vec<(String, String)>,
    /// Lower-case names of headers that the program does not get.
    pub block_headers: Vec<String>,
    /// Bytes of memory of a run, on top of what its workspace has.
    pub memory_bytes: Option<u64>,
    /// Processes of a run, likewise.
    pub processes: Option<u32>,
    /// Requests that it answers at once; others are answered 503.
    pub at_once: u32,
    /// How long a run may take in all; it is ended then.
    #[serde(serialize_with = "millis")]
    pub time_limit: Duration,
    /// `connect`: until it runs; `response`: until its answer begins; `idle`: between two pieces of it.
    pub limits: TimeLimits,
    /// What of the rule has no effect, and why; each begins with the field.
    pub ignored: Vec<String>,
}

impl CgiSpec {
    pub(crate) fn read(section: &mut Section<'_>) -> Result<Self, Problem> {
        let command = read_command(section)?;
        let script_name = section.text("script_name")?.unwrap_or_default().trim_end_matches('/').to_owned();
        if !script_name.is_empty() && (!script_name.starts_with('/') || script_name.contains(['?', '#', '%'])) {
            let message = format!("{script_name:?}: has to be a decoded path that begins with \"/\"");
            return Err(Problem::new(section.path("script_name"), message));
        }
        let working_dir = section.text("working_dir")?.map(str::to_owned);
        if working_dir.as_ref().is_some_and(|dir| !dir.starts_with('/')) {
            return Err(Problem::new(section.path("working_dir"), "has to be an absolute path inside the workspace"));
        }
        let blocked = section.texts("block_headers", false)?.unwrap_or_default();
        let mut block_headers = Vec::with_capacity(blocked.len());
        for name in blocked {
            if !crate::field::is_token(name) {
                return Err(Problem::new(section.path("block_headers"), format!("{name:?} is no header name")));
            }
            block_headers.push(name.to_ascii_lowercase());
        }
        let time_limit = section.duration("time_limit")?;
        let total = match section.get("timeouts") {
            Some(value) => {
                let mut limits = Section::new(value, section.path("timeouts"))?;
                if limits.get("wake").is_some() {
                    let message =
                        "connect is all the time that a program has to start, also where its workspace sleeps";
                    return Err(Problem::new(limits.path("wake"), message));
                }
                limits.duration("total")?
            }
            None => None,
        };
        let time_limit = time_limit.or(total).unwrap_or(Duration::from_secs(60));
        if time_limit.is_zero() {
            return Err(Problem::new(section.path("time_limit"), "must be more than zero"));
        }
        let mut spec = Self {
            workspace: section.text("workspace")?.unwrap_or(WORKSPACE).to_owned(),
            command,
            script_name,
            working_dir,
            env: read_env(section)?,
            block_headers,
            memory_bytes: None,
            processes: None,
            at_once: section.number("at_once", 1..=4096)?.and_then(|n| u32::try_from(n).ok()).unwrap_or(32),
            time_limit,
            limits: read_limits(section, TimeLimits::default().idle)?,
            ignored: Vec::new(),
        };
        if spec.workspace.is_empty() {
            return Err(Problem::new(section.path("workspace"), "is empty; name a workspace"));
        }
        if let Some(value) = section.get("security") {
            spec.read_security(value, &section.path("security"))?;
        }
        Ok(spec)
    }

    /// `security` as rules of the original have it. Its users are the workspace's here, its limits hold on top of it.
    fn read_security(&mut self, value: &Json, path: &str) -> Result<(), Problem> {
        let mut section = Section::new(value, path)?;
        for field in ["uid", "gid"] {
            if section.number(field, 0..=u64::from(u32::MAX))?.is_some() {
                let why = format!("the program runs as the user of workspace {:?}", self.workspace);
                self.ignored.push(format!("{}: has no effect: {why}", section.path(field)));
            }
        }
        if section.get("chroot").is_some() {
            let message = "a program sees the root of its workspace and no other; leave this out";
            return Err(Problem::new(section.path("chroot"), message));
        }
        if let Some(limits) = section.get("limits") {
            let mut limits = Section::new(limits, section.path("limits"))?;
            self.memory_bytes = limits.number("memory_mb", 1..=1 << 30)?.map(|mb| mb << 20);
            self.processes = limits.number("max_processes", 1..=1 << 22)?.and_then(|n| u32::try_from(n).ok());
            if limits.number("cpu_seconds", 1..=1 << 30)?.is_some() {
                let message = "processor time has no limit of its own; use time_limit, or cpu_max in the workspace";
                return Err(Problem::new(limits.path("cpu_seconds"), message));
            }
            limits.finish()?;
        }
        section.finish()
    }
}

/// `command`, or `binary` as rules of the original have it.
fn read_command(section: &mut Section<'_>) -> Result<Vec<String>, Problem> {
    let (field, command) = match (section.texts("command", true)?, section.text("binary")?) {
        (Some(_), Some(_)) => {
            return Err(Problem::new(section.path("binary"), "give either command or binary, not both"));
        }
        (Some(words), None) => ("command", words.into_iter().map(str::to_owned).collect()),
        (None, Some(program)) => ("binary", vec![program.to_owned()]),
        (None, None) => return Err(section.missing("command")),
    };
    let command: Vec<String> = command;
    if !command[0].starts_with('/') {
        let message = format!("{:?}: the program has to be an absolute path inside the workspace", command[0]);
        return Err(Problem::new(section.path(field), message));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(Problem::new(section.path(field), "a command cannot hold the character NUL"));
    }
    Ok(command)
}

fn read_env(section: &mut Section<'_>) -> Result<Vec<(String, String)>, Problem> {
    let path = section.path("env");
    let Some(value) = section.get("env") else { return Ok(Vec::new()) };
    let Json::Object(map) = value else {
        return Err(Problem::new(path, format!("expected an object of names to values, found {}", show(value))));
    };
    let mut env = Vec::with_capacity(map.len());
    for (name, value) in map {
        let here = format!("{path}.{name}");
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Problem::new(here, "cannot be the name of a variable"));
        }
        if name.starts_with("HTTP_") || OF_REQUESTS.contains(&name.as_str()) {
            return Err(Problem::new(here, "is set by each request, and cannot be given by a rule"));
        }
        match value.as_str().filter(|text| !text.contains('\0')) {
            Some(text) => env.push((name.clone(), text.to_owned())),
            None => return Err(Problem::new(here, format!("expected a string, found {}", show(value)))),
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Json) -> Result<CgiSpec, Problem> {
        let mut section = Section::new(value, "terminate")?;
        section.get("type");
        let spec = CgiSpec::read(&mut section)?;
        section.finish()?;
        Ok(spec)
    }

    #[test]
    fn a_rule_of_the_original_is_read_and_says_what_has_no_effect() {
        let spec = read(&json!({
            "type": "cgi", "binary": "/srv/app.cgi", "script_name": "/cgi-bin/app", "working_dir": "/srv",
            "env": {"APP": "1"}, "block_headers": ["Authorization", "Cookie"],
            "security": {"uid": 33, "gid": 33, "chroot": null,
                "limits": {"memory_mb": 256, "cpu_seconds": null, "max_processes": 8}},
            "timeouts": {"connect": "1s", "total": "30s"},
        }))
        .unwrap();
        assert_eq!((spec.command.as_slice(), spec.workspace.as_str()), (&["/srv/app.cgi".to_owned()][..], "cgi"));
        assert_eq!((spec.memory_bytes, spec.processes), (Some(256 << 20), Some(8)));
        assert_eq!((spec.time_limit, spec.limits.connect), (Duration::from_secs(30), Duration::from_secs(1)));
        assert_eq!(spec.block_headers, ["authorization", "cookie"]);
        assert!(spec.ignored[0].starts_with("terminate.security.uid: ") && spec.ignored.len() == 2, "{spec:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_field() {
        for (value, field) in [
            (json!({}), "terminate.command"),
            (json!({"comand": ["/x"]}), "terminate.comand"),
            (json!({"command": []}), "terminate.command"),
            (json!({"command": ["x"]}), "terminate.command"),
            (json!({"binary": "x"}), "terminate.binary"),
            (json!({"command": ["/x", "a\u{0}b"]}), "terminate.command"),
            (json!({"command": ["/x"], "binary": "/x"}), "terminate.binary"),
            (json!({"command": ["/x"], "script_name": "x"}), "terminate.script_name"),
            (json!({"command": ["/x"], "working_dir": "x"}), "terminate.working_dir"),
            (json!({"command": ["/x"], "workspace": ""}), "terminate.workspace"),
            (json!({"command": ["/x"], "env": {"HTTP_HOST": "x"}}), "terminate.env.HTTP_HOST"),
            (json!({"command": ["/x"], "env": {"REMOTE_ADDR": "x"}}), "terminate.env.REMOTE_ADDR"),
            (json!({"command": ["/x"], "env": {"A=B": "x"}}), "terminate.env.A=B"),
            (json!({"command": ["/x"], "env": {"A": 1}}), "terminate.env.A"),
            (json!({"command": ["/x"], "block_headers": ["a b"]}), "terminate.block_headers"),
            (json!({"command": ["/x"], "at_once": 0}), "terminate.at_once"),
            (json!({"command": ["/x"], "time_limit": 0}), "terminate.time_limit"),
            (json!({"command": ["/x"], "security": {"chroot": "/x"}}), "terminate.security.chroot"),
            (
                json!({"command": ["/x"], "security": {"limits": {"cpu_seconds": 1}}}),
                "terminate.security.limits.cpu_seconds",
            ),
            (json!({"command": ["/x"], "timeouts": {"wake": "1s"}}), "terminate.timeouts.wake"),
            (json!({"command": ["/x"], "upstream": "a:1"}), "terminate.upstream"),
        ] {
            assert_eq!(read(&value).unwrap_err().field, field, "{value}");
        }
    }
}
