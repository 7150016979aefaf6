//! `shipote events`: everything that happens, as the services signal it on the bus.

use std::collections::HashMap;
use std::io::Write;
use std::num::NonZero;
use std::process::ExitCode;

use anyhow::Context;
use futures_util::stream::{SelectAll, StreamExt};
use serde_json::{Map, Value, json};
use shipote_bus::{Service, connect};
use zbus::fdo::{DBusProxy, NameOwnerChangedStream};
use zbus::message::Type;
use zbus::names::InterfaceName;

use zbus::{MatchRule, Message, MessageStream, ObjectPath, OwnedVariant, Structure};

use crate::output;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  shipote events\n  shipote events --service workspaces --json | jq -c 'select(.event == \"removed\")'\n  shipote events -n 1 --service machines"
)]
pub(crate) struct EventsArgs {
    /// Only what this service tells
    #[arg(long, value_name = "NAME", value_parser = service)]
    service: Option<Service>,
    /// Leave after so many events
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<u64>,
    /// Print one JSON object a line: first {"event": "listening"}, then what happens
    #[arg(long)]
    json: bool,
}

/// Reads the name of a service; for clap.
fn service(text: &str) -> Result<Service, String> {
    let known = || Service::ALL.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
    Service::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| format!("no such service; there are {}", known()))
}

/// What happened, in the words of a record.
#[derive(Debug, PartialEq)]
struct Happening {
    service: &'static str,
    event: &'static str,
    object: String,
    detail: Map<String, Value>,
}

pub(crate) async fn run(args: EventsArgs) -> anyhow::Result<ExitCode> {
    let connection = connect::client().await?;
    let services: Vec<Service> =
        Service::ALL.into_iter().filter(|s| args.service.is_none_or(|only| *s == only)).collect();
    let mut signals = SelectAll::new();
    for service in &services {
        // The bus lets through what the owner of the name sent: nobody else can tell a story here. Whose it is the path
        // says: a client does not know names' owners, so each of these streams gets what the bus sends for any of them.
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(service.bus_name())
            .path_namespace(service.path())
            .build()?;
        let stream =
            MessageStream::for_match_rule(rule, &connection, NonZero::new(1024)).await.context("listen on the bus")?;
        let name = service.name();
        signals.push(stream.map(move |message| (name, message)));
    }
    let bus = DBusProxy::new(&connection).await?;
    let mut owners: SelectAll<NameOwnerChangedStream> = SelectAll::new();
    for service in &services {
        owners.push(bus.receive_name_owner_changed_with_args(&[(0, service.bus_name())]).await?);
    }
    if args.json {
        output::json(&json!({"event": "listening"}))?;
    } else {
        eprintln!("listening; Ctrl-C leaves");
    }
    let mut told = 0;
    while args.limit.is_none_or(|limit| told < limit) {
        let happening = tokio::select! {
            Some((service, message)) = signals.next() => read(service, &message?),
            Some(change) = owners.next() => {
                let args = change.args()?;
                let service = services.iter().find(|s| s.bus_name() == args.name.as_str()).map(|s| s.name());
                let event = if args.new_owner.is_some() { "started" } else { "stopped" };
                service.map(|service| Happening { service, event, object: args.name.to_string(), detail: Map::new() })
            }
            else => anyhow::bail!("listen on the bus: it closed the connection; see `shipote status`"),
        };
        if let Some(happening) = happening {
            if !tell(&happening, args.json) {
                break;
            }
            told += 1;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a signal tells; None where it tells nothing to people.
fn read(service: &'static str, message: &Message) -> Option<Happening> {
    let header = message.header();
    let path = header.path()?.to_string();
    let said = |event, object, detail| Some(Happening { service, event, object, detail });
    match (header.interface()?.as_str(), header.member()?.as_str()) {
        ("org.freedesktop.DBus.ObjectManager", "InterfacesAdded") => {
            let body = message.body();
            let (object, interfaces): (ObjectPath<'_>, HashMap<InterfaceName<'_>, HashMap<String, OwnedVariant>>) =
                body.deserialize().ok()?;
            let properties = interfaces
                .into_iter()
                .filter(|(name, _)| name.starts_with("org.shipote."))
                .flat_map(|(_, properties)| properties);
            said("added", object.to_string(), plain(properties))
        }
        ("org.freedesktop.DBus.ObjectManager", "InterfacesRemoved") => {
            let body = message.body();
            let (object, _): (ObjectPath<'_>, Vec<String>) = body.deserialize().ok()?;
            said("removed", object.to_string(), Map::new())
        }
        ("org.freedesktop.DBus.Properties", "PropertiesChanged") => {
            let body = message.body();
            let (_, changed, invalidated): (String, HashMap<String, OwnedVariant>, Vec<String>) =
                body.deserialize().ok()?;
            let mut detail = plain(changed);
            detail.extend(invalidated.into_iter().map(|name| (name, Value::Null)));
            said("changed", path, detail)
        }
        (_, member) => {
            let body = message.body();
            let arguments = match body.deserialize::<Structure<'_>>() {
                Ok(fields) => {
                    fields.fields().iter().map(|v| output::plain(serde_json::to_value(v).unwrap_or_default())).collect()
                }
                Err(_) => Vec::new(),
            };
            let mut detail = Map::from_iter([("signal".to_owned(), member.into())]);
            detail.insert("arguments".to_owned(), arguments.into());
            said("signal", path, detail)
        }
    }
}

fn plain(properties: impl IntoIterator<Item = (String, OwnedVariant)>) -> Map<String, Value> {
    let value = |v: &OwnedVariant| output::plain(serde_json::to_value(v).unwrap_or_default());
    properties.into_iter().map(|(name, v)| (name, value(&v))).collect()
}

/// Prints one; false when nobody reads any more.
fn tell(happening: &Happening, as_json: bool) -> bool {
    let now = jiff::Timestamp::now();
    let line = if as_json {
        json!({
            "time": now.to_string(),
            "service": happening.service,
            "event": happening.event,
            "object": happening.object,
            "detail": happening.detail,
        })
        .to_string()
    } else {
        let detail: Vec<String> =
            happening.detail.iter().map(|(name, value)| format!("{name}={}", short(value))).collect();
        let object = happening.object.strip_prefix("/org/shipote/").unwrap_or(&happening.object);
        let time = now.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S");
        format!("{time}  {:<10}  {:<8}  {object}  {}", happening.service, happening.event, detail.join(" "))
            .trim_end()
            .to_owned()
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}

/// A value on a part of a line: text without quotes where it has no spaces, and nothing endless.
fn short(value: &Value) -> String {
    let text = match value {
        Value::String(text) if !text.is_empty() && !text.contains(char::is_whitespace) => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() <= 60 { text } else { text.chars().take(59).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short_and_legible() {
        assert_eq!(short(&json!("running")), "running");
        assert_eq!(short(&json!("two words")), "\"two words\"");
        assert_eq!(short(&json!("")), "\"\"");
        assert_eq!(short(&json!(["a", 1])), "[\"a\",1]");
        assert_eq!(short(&json!("x".repeat(100))).chars().count(), 60);
    }

    #[test]
    fn services_are_known_by_name() {
        assert_eq!(service("proxy").map(Service::name), Ok("proxy"));
        assert!(service("proxies").unwrap_err().contains("workspaces"));
    }
}
