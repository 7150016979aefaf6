//! Middleware: what a rule's chain does to a request or a response before the terminator or after it.

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use crate::error::{Problem, suggest};
use crate::field::{Phase, is_token};
use crate::graph::OnError;
use crate::response::{Response, header_name, header_value, parse_headers};
use crate::section::{Section, kind, show};
use crate::upstream::Upstream;

/// Which path a rule lets through.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct PathMatch {
    /// At least one; compared byte by byte with the beginning of the path.
    pub prefixes: Vec<String>,
}

/// Headers set, added and removed, in this order: removed, set, added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderEdit {
    /// Names whose values all go.
    pub remove: Vec<String>,
    /// Names that get one value instead of what they had.
    pub set: Vec<(String, String)>,
    /// Values beside those that are there.
    pub add: Vec<(String, String)>,
}

/// What a rate limit counts by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKey {
    /// The client's address; IPv6 by its /64.
    RemoteIp,
    /// All requests together.
    Global,
    /// The value of a request header; absent counts as one value.
    Header(String),
}

/// One entry of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "use", rename_all = "snake_case")]
pub enum Middleware {
    /// Refuses requests whose path has none of the prefixes.
    PathPrefix(PathMatch),
    /// Refuses other methods.
    MethodMatch {
        /// Upper-case tokens.
        methods: Vec<String>,
    },
    /// Refuses other hosts.
    HostHeaderMatch {
        /// Lower-case; with a port only where the client must send one.
        hosts: Vec<String>,
    },
    /// Tells the upstream who asks.
    ForwardClientIp {
        /// Append to `X-Forwarded-For`.
        forwarded_for: bool,
        /// Set `X-Real-IP`.
        real_ip: bool,
    },
    /// Lets so many through in a time, by a token bucket.
    RateLimit {
        /// What is counted by.
        key: LimitKey,
        /// Tokens that come back in a window.
        rate: u32,
        /// The bucket's size.
        burst: u32,
        /// The window.
        #[serde(serialize_with = "millis")]
        window: Duration,
        /// The answer to what is over the limit.
        on_limit: Response,
        /// Tells apart rate limits that are written alike: each rule counts on its own.
        site: u32,
    },
    /// Edits the request's headers.
    RequestHeaders(HeaderEdit),
    /// Edits the response's headers.
    ResponseHeaders(HeaderEdit),
    /// Takes a prefix off the path and puts another one there.
    RewritePath {
        /// Taken off; a path without it goes on unchanged.
        strip_prefix: String,
        /// Put there.
        add_prefix: String,
    },
    /// Asks another server whether a request may pass.
    ForwardAuth {
        /// Who is asked, by a `GET` with the request's headers.
        upstream: Upstream,
        /// For which path.
        path: String,
        /// Headers of a good answer (2xx) that the request takes over, lower-case; the client's own are taken off.
        copy_headers: Vec<String>,
        /// For the whole question.
        #[serde(serialize_with = "millis")]
        timeout: Duration,
    },
    /// Compresses answers with gzip for clients that take it.
    Compress {
        /// Answers that are shorter than this stay as they are.
        min_bytes: u64,
        /// Beginnings of content types.
        types: Vec<String>,
    },
    /// Calls an export of a plugin.
    Plugin {
        /// The plugin's file stem or registry name.
        module: String,
        /// The export.
        export: String,
        /// The call site's arguments as JSON, at least `{}`.
        args: String,
        /// Tells apart call sites that are written alike: a plugin that keeps state keeps it for each.
        site: u32,
    },
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

const BUILT_IN: [&str; 10] = [
    "path_prefix",
    "method_match",
    "host_header_match",
    "forward_client_ip",
    "rate_limit",
    "request_headers",
    "response_headers",
    "rewrite_path",
    "forward_auth",
    "compress",
];

impl Middleware {
    /// Reads one entry of `middleware_chain`; `site` numbers the place.
    pub(crate) fn parse(value: &Json, path: &str, site: u32) -> Result<(Self, Option<OnError>), Problem> {
        let mut section = Section::new(value, path)?;
        let name = section.require_text("use")?;
        let empty = json!({});
        let args = section.get("args").unwrap_or(&empty);
        let middleware = Self::parse_named(name, args, path, site)?;
        let on_error = section.get("on_error").map(|v| parse_on_error(v, &format!("{path}.on_error"))).transpose()?;
        section.finish()?;
        Ok((middleware, on_error))
    }

    fn parse_named(name: &str, args: &Json, path: &str, site: u32) -> Result<Self, Problem> {
        let at = format!("{path}.args");
        if let Some((module, export)) = name.split_once(':') {
            if module.is_empty() || export.is_empty() || !args.is_object() {
                let message = "a plugin is used as \"<plugin>:<export>\" with an object of args";
                return Err(Problem::new(format!("{path}.use"), message));
            }
            return Ok(Self::Plugin {
                module: module.to_owned(),
                export: export.to_owned(),
                args: args.to_string(),
                site,
            });
        }
        let mut section = Section::new(args, at)?;
        let middleware = match name {
            "path_prefix" => Self::PathPrefix(PathMatch { prefixes: owned(section.require_texts("prefixes")?) }),
            "method_match" => {
                let methods: Vec<String> =
                    section.require_texts("methods")?.iter().map(|m| m.to_ascii_uppercase()).collect();
                if let Some(bad) = methods.iter().find(|m| !is_token(m)) {
                    return Err(Problem::new(section.path("methods"), format!("{bad:?} is no method")));
                }
                Self::MethodMatch { methods }
            }
            "host_header_match" => Self::HostHeaderMatch {
                hosts: section.require_texts("hosts")?.iter().map(|h| h.to_ascii_lowercase()).collect(),
            },
            "forward_client_ip" => forward_client_ip(&mut section)?,
            "rate_limit" => rate_limit(&mut section, site)?,
            "request_headers" => Self::RequestHeaders(header_edit(&mut section)?),
            "response_headers" => Self::ResponseHeaders(header_edit(&mut section)?),
            "rewrite_path" => rewrite_path(&mut section)?,
            "forward_auth" => forward_auth(&mut section)?,
            "compress" => compress(&mut section)?,
            other => {
                let known = BUILT_IN.into_iter().chain(["<plugin>:<export>"]);
                return Err(Problem::new(format!("{path}.use"), format!("{other:?}: {}", suggest(other, known))));
            }
        };
        section.finish()?;
        Ok(middleware)
    }

    /// The phase in which it runs. A plugin's is its export's, which is known only once it is linked; until then it
    /// counts as a request's.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if matches!(self, Self::ResponseHeaders(_) | Self::Compress { .. }) { Phase::Response } else { Phase::Request }
    }

    /// The name that rules use.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::PathPrefix(_) => "path_prefix".to_owned(),
            Self::MethodMatch { .. } => "method_match".to_owned(),
            Self::HostHeaderMatch { .. } => "host_header_match".to_owned(),
            Self::ForwardClientIp { .. } => "forward_client_ip".to_owned(),
            Self::RateLimit { .. } => "rate_limit".to_owned(),
            Self::RequestHeaders(_) => "request_headers".to_owned(),
            Self::ResponseHeaders(_) => "response_headers".to_owned(),
            Self::RewritePath { .. } => "rewrite_path".to_owned(),
            Self::ForwardAuth { .. } => "forward_auth".to_owned(),
            Self::Compress { .. } => "compress".to_owned(),
            Self::Plugin { module, export, .. } => format!("{module}:{export}"),
        }
    }
}

fn parse_on_error(value: &Json, path: &str) -> Result<OnError, Problem> {
    match value {
        Json::String(s) if s == "close" => Ok(OnError::Close),
        Json::Object(map) if map.len() == 1 && map.contains_key("response") => {
            Ok(OnError::Respond(Response::parse(&map["response"], &format!("{path}.response"), None)?))
        }
        other => Err(Problem::new(
            path,
            format!("expected \"close\" or {{\"response\": {{\"status\": …}}}}, found {}", show(other)),
        )),
    }
}

fn forward_auth(section: &mut Section<'_>) -> Result<Middleware, Problem> {
    let mut upstreams = Upstream::read(section)?;
    if upstreams.len() > 1 {
        return Err(Problem::new(section.path("upstreams"), "one upstream is asked"));
    }
    let path = section.text("path")?.unwrap_or("/");
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Problem::new(section.path("path"), "must begin with / and hold no spaces"));
    }
    let path = path.to_owned();
    let names = section.texts("copy_headers", false)?.unwrap_or_default();
    let at = section.path("copy_headers");
    let copy_headers = names.into_iter().map(|name| header_name(name, &at)).collect::<Result<_, _>>()?;
    let timeout = section.duration("timeout")?.unwrap_or(Duration::from_secs(5));
    if timeout.is_zero() {
        return Err(Problem::new(section.path("timeout"), "must be more than zero"));
    }
    Ok(Middleware::ForwardAuth { upstream: upstreams.remove(0), path, copy_headers, timeout })
}

/// What compresses well.
const TEXTS: [&str; 7] = [
    "text/",
    "application/json",
    "application/javascript",
    "application/xml",
    "application/wasm",
    "image/svg+xml",
    "application/manifest+json",
];

fn compress(section: &mut Section<'_>) -> Result<Middleware, Problem> {
    let types = match section.texts("types", true)? {
        Some(types) => types.into_iter().map(str::to_ascii_lowercase).collect(),
        None => TEXTS.map(str::to_owned).to_vec(),
    };
    Ok(Middleware::Compress { min_bytes: section.size("min_bytes", 0..=1 << 30)?.unwrap_or(1024), types })
}

fn owned(texts: Vec<&str>) -> Vec<String> {
    texts.into_iter().map(str::to_owned).collect()
}

fn forward_client_ip(section: &mut Section<'_>) -> Result<Middleware, Problem> {
    let Some(names) = section.texts("headers", true)? else {
        return Ok(Middleware::ForwardClientIp { forwarded_for: true, real_ip: true });
    };
    let (mut forwarded_for, mut real_ip) = (false, false);
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "x-forwarded-for" => forwarded_for = true,
            "x-real-ip" => real_ip = true,
            other => {
                let message = format!("{other:?}: {}", suggest(other, ["x-forwarded-for", "x-real-ip"]));
                return Err(Problem::new(section.path("headers"), message));
            }
        }
    }
    Ok(Middleware::ForwardClientIp { forwarded_for, real_ip })
}

fn rate_limit(section: &mut Section<'_>, site: u32) -> Result<Middleware, Problem> {
    let count = |n: Option<u64>| n.and_then(|n| u32::try_from(n).ok());
    let key = match section.text("key")? {
        None | Some("remote_ip") => LimitKey::RemoteIp,
        Some("global") => LimitKey::Global,
        Some(other) => match other.strip_prefix("header:").filter(|name| is_token(name)) {
            Some(name) => LimitKey::Header(name.to_ascii_lowercase()),
            None => {
                let message = format!("{other:?}: {}", suggest(other, ["remote_ip", "global", "header:<name>"]));
                return Err(Problem::new(section.path("key"), message));
            }
        },
    };
    let limit = 1..=u64::from(u32::MAX);
    let rate = count(section.number("rate", limit.clone())?).ok_or_else(|| section.missing("rate"))?;
    let burst = count(section.number("burst", limit)?).ok_or_else(|| section.missing("burst"))?;
    let window = section.duration("window")?.unwrap_or(Duration::from_secs(1));
    if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&window) {
        return Err(Problem::new(section.path("window"), "must be from 1s to 1h"));
    }
    let on_limit = match section.get("on_limit") {
        None => Response::empty(429),
        Some(value) => Response::parse(value, &section.path("on_limit"), Some(429))?,
    };
    Ok(Middleware::RateLimit { key, rate, burst, window, on_limit, site })
}

fn header_edit(section: &mut Section<'_>) -> Result<HeaderEdit, Problem> {
    let mut edit = HeaderEdit::default();
    let at = section.path("remove");
    for name in section.texts("remove", false)?.unwrap_or_default() {
        edit.remove.push(header_name(name, &at)?);
    }
    if let Some(value) = section.get("set") {
        edit.set = parse_headers(value, &section.path("set"))?;
    }
    if let Some(value) = section.get("add") {
        edit.add = parse_headers(value, &section.path("add"))?;
    }
    Ok(edit)
}

fn rewrite_path(section: &mut Section<'_>) -> Result<Middleware, Problem> {
    let strip_prefix = section.text("strip_prefix")?.unwrap_or_default().to_owned();
    let at = section.path("add_prefix");
    let add_prefix = header_value(section.text("add_prefix")?.unwrap_or_default(), &at)?;
    if add_prefix.contains([' ', '?', '#']) || !(add_prefix.is_empty() || add_prefix.starts_with('/')) {
        return Err(Problem::new(at, "must begin with / and hold no space, ? or #"));
    }
    Ok(Middleware::RewritePath { strip_prefix, add_prefix })
}

/// Reads a whole chain.
pub(crate) fn parse_chain(
    value: &Json,
    path: &str,
    sites: &mut u32,
) -> Result<Vec<(Middleware, Option<OnError>)>, Problem> {
    let Json::Array(items) = value else {
        return Err(Problem::new(path, format!("expected a list, found {}", kind(value))));
    };
    items
        .iter()
        .enumerate()
        .map(|(i, item)| {
            *sites += 1;
            Middleware::parse(item, &format!("{path}[{i}]"), *sites)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Json) -> Result<(Middleware, Option<OnError>), Problem> {
        Middleware::parse(value, "chain[0]", 1)
    }

    #[test]
    fn every_built_in_parses() {
        for (name, args) in [
            ("path_prefix", json!({"prefixes": ["/a"]})),
            ("method_match", json!({"methods": ["get"]})),
            ("host_header_match", json!({"hosts": ["A.example"]})),
            ("forward_client_ip", json!({})),
            ("rate_limit", json!({"rate": 10, "burst": 20, "window": "1s", "key": "header:X-Key"})),
            ("request_headers", json!({"set": {"X-A": "1"}, "remove": ["cookie"]})),
            ("response_headers", json!({"add": {"x-a": "1"}})),
            ("rewrite_path", json!({"strip_prefix": "/api"})),
        ] {
            let (middleware, _) = parse(&json!({"use": name, "args": args})).unwrap();
            assert_eq!(middleware.name(), name);
        }
    }

    #[test]
    fn a_plugin_keeps_its_arguments_and_on_error() {
        let value = json!({"use": "edge:auth", "args": {"k": 1}, "on_error": {"response": {"status": 503}}});
        let (middleware, on_error) = parse(&value).unwrap();
        let Middleware::Plugin { module, export, args, .. } = middleware else { panic!() };
        assert_eq!((module.as_str(), export.as_str(), args.as_str()), ("edge", "auth", r#"{"k":1}"#));
        assert_eq!(on_error, Some(OnError::Respond(Response::empty(503))));
        assert_eq!(parse(&json!({"use": "edge:auth", "on_error": "close"})).unwrap().1, Some(OnError::Close));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_field() {
        for (value, field) in [
            (json!({"use": "path_prefx"}), "chain[0].use"),
            (json!({"use": "path_prefix", "args": {}}), "chain[0].args.prefixes"),
            (json!({"use": "path_prefix", "args": {"prefixes": []}}), "chain[0].args.prefixes"),
            (json!({"use": "rate_limit", "args": {"rate": 1, "burst": 0}}), "chain[0].args.burst"),
            (json!({"use": "rate_limit", "args": {"rate": 1, "burst": 1, "window": "2h"}}), "chain[0].args.window"),
            (json!({"use": "request_headers", "args": {"set": {"host ": "a"}}}), "chain[0].args.set.host "),
            (json!({"use": "a:b", "on_error": "explode"}), "chain[0].on_error"),
            (json!({"use": "a:b", "args": []}), "chain[0].use"),
            (json!({"use": "a:b", "argz": {}}), "chain[0].argz"),
        ] {
            assert_eq!(parse(&value).unwrap_err().field, field, "{value}");
        }
    }
}
