//! Presets: one entry that stands for several rules.
//!
//! A preset is rewritten to the rules that somebody could have written by hand, as JSON, and those are read like any
//! other; so `shipote proxy compile` shows what a preset means.

use std::borrow::Cow;

use serde_json::{Map, Value as Json, json};

use crate::error::{Problem, suggest};
use crate::section::Section;

const PRESETS: [&str; 4] = ["reverse_proxy", "port_forward", "static_site", "redirect_https"];

/// The rules that an entry stands for: itself, unless it is a preset.
pub(crate) fn expand(value: &Json) -> Result<Cow<'_, [Json]>, Problem> {
    if value.get("preset").is_none() {
        return Ok(Cow::Borrowed(std::slice::from_ref(value)));
    }
    let mut section = Section::new(value, "")?;
    let preset = section.require_text("preset")?;
    let name = section.require_text("name")?;
    let mut base = Map::new();
    base.insert("listen".to_owned(), section.require("listen")?.clone());
    if let Some(tls) = section.get("tls") {
        base.insert("tls".to_owned(), tls.clone());
    }
    let empty = json!({});
    let args = section.get("args").unwrap_or(&empty);
    section.get("source");
    section.finish()?;
    let rule = |name: String, rest: Json| {
        let mut rule = base.clone();
        rule.insert("name".to_owned(), Json::String(name));
        if let Json::Object(rest) = rest {
            rule.extend(rest);
        }
        Json::Object(rule)
    };
    let mut args = Section::new(args, "args")?;
    let rules = match preset {
        "reverse_proxy" => {
            reverse_proxy(&mut args)?.into_iter().map(|(suffix, rest)| rule(format!("{name}.{suffix}"), rest)).collect()
        }
        "port_forward" => {
            let upstream = args.require_text("upstream")?;
            let kind = match args.text("transport")? {
                None | Some("tcp") => "tcp_forward",
                Some("udp") => "udp_forward",
                Some(other) => {
                    return Err(Problem::new("args.transport", format!("{other:?}: known: tcp, udp")));
                }
            };
            vec![rule(name.to_owned(), json!({"terminate": {"type": kind, "upstream": upstream}}))]
        }
        "static_site" => {
            let mut terminate = Map::from_iter([("type".to_owned(), json!("static"))]);
            terminate.insert("status".to_owned(), args.require("status")?.clone());
            // A preset's body is text, unlike the terminator's.
            for (from, to) in [("headers", "headers"), ("body", "text")] {
                if let Some(value) = args.get(from) {
                    terminate.insert(to.to_owned(), value.clone());
                }
            }
            vec![rule(name.to_owned(), json!({"terminate": terminate}))]
        }
        "redirect_https" => vec![rule(name.to_owned(), json!({"terminate": {"type": "redirect_https"}}))],
        other => return Err(Problem::new("preset", format!("{other:?}: {}", suggest(other, PRESETS)))),
    };
    args.finish()?;
    Ok(Cow::Owned(rules))
}

/// The main rule, and before it (being more specific) what happens to WebSocket upgrades: refused unless `websocket`
/// is `true`, `"*"` or a list of path prefixes.
fn reverse_proxy(args: &mut Section<'_>) -> Result<Vec<(&'static str, Json)>, Problem> {
    let target = match (args.get("upstream"), args.get("upstreams")) {
        (Some(one), _) => ("upstream", one.clone()),
        (None, Some(many)) => ("upstreams", many.clone()),
        (None, None) => return Err(args.missing("upstream")),
    };
    let upgrade = json!({"http.header.upgrade": {"matches": "(?i)^websocket$"}});
    let mut proxy = Map::from_iter([("type".to_owned(), json!("http_proxy")), (target.0.to_owned(), target.1)]);
    for field in ["timeouts", "balance", "hash_on", "health_check", "passive_health", "retries", "tls", "host"] {
        if let Some(value) = args.get(field) {
            proxy.insert(field.to_owned(), value.clone());
        }
    }
    let mut websocket = proxy.clone();
    websocket.insert("type".to_owned(), json!("websocket"));
    let refuse = json!({"match": upgrade, "terminate": {"type": "static", "status": 400}});
    let mut rules = match args.get("websocket") {
        None | Some(Json::Bool(false)) => vec![("ws", refuse)],
        Some(Json::Bool(true)) => vec![("ws", json!({"match": upgrade, "terminate": websocket}))],
        Some(Json::String(s)) if s == "*" => vec![("ws", json!({"match": upgrade, "terminate": websocket}))],
        Some(Json::Array(paths)) if !paths.is_empty() => {
            let paths: Vec<Json> = paths.iter().map(|p| json!({"http.uri.path": {"prefix": p}})).collect();
            let allow = json!({"all_of": [upgrade, {"any_of": paths}]});
            vec![("ws-allow", json!({"match": allow, "terminate": websocket})), ("ws-deny", refuse)]
        }
        Some(_) => {
            return Err(Problem::new("args.websocket", "expected true, false, \"*\" or a list of path prefixes"));
        }
    };
    let mut chain = Vec::new();
    if let Some(limit) = args.get("rate_limit") {
        chain.push(json!({"use": "rate_limit", "args": limit}));
    }
    if args.flag("forward_client_ip")?.unwrap_or(true) {
        chain.push(json!({"use": "forward_client_ip"}));
    }
    rules.push(("main", json!({"middleware_chain": chain, "terminate": proxy})));
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(value: &Json) -> Vec<String> {
        expand(value).unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_reverse_proxy_says_what_happens_to_websockets() {
        for (websocket, want) in [
            (json!(false), vec!["a.ws", "a.main"]),
            (json!(true), vec!["a.ws", "a.main"]),
            (json!("*"), vec!["a.ws", "a.main"]),
            (json!(["/chat"]), vec!["a.ws-allow", "a.ws-deny", "a.main"]),
        ] {
            let value = json!({"preset": "reverse_proxy", "name": "a", "listen": [":80"],
                "args": {"upstream": "b:1", "websocket": websocket}});
            assert_eq!(names(&value), want, "{websocket}");
        }
    }

    #[test]
    fn the_others_expand_to_one_rule() {
        for (preset, args) in [
            ("port_forward", json!({"upstream": "a:1", "transport": "udp"})),
            ("static_site", json!({"status": 200, "body": "hello"})),
            ("redirect_https", json!({})),
        ] {
            let value = json!({"preset": preset, "name": "a", "listen": [":80"], "args": args});
            assert_eq!(names(&value), ["a"]);
        }
    }

    #[test]
    fn misspelt_presets_and_arguments_are_refused() {
        let wrong = |preset: &str, args: Json| {
            expand(&json!({"preset": preset, "name": "a", "listen": [":80"], "args": args})).unwrap_err()
        };
        assert!(wrong("reverse_prox", json!({})).message.contains("\"reverse_proxy\""));
        assert_eq!(wrong("reverse_proxy", json!({"upstream": "a:1", "websockets": true})).field, "args.websockets");
        assert_eq!(wrong("redirect_https", json!({"x": 1})).field, "args.x");
    }
}
