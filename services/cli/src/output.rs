//! What commands print: JSON for scripts, tables for people, and one shape of error.

use std::io::Write;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;
use shipote_bus::connect;
use shipote_bus::workspaces::{ManagerProxy, WorkspacesError};
use zbus::proxy::CacheProperties;

/// Prints one JSON object on a line. A reader that went away is no error.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let value = plain(serde_json::to_value(value)?);
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}");
    Ok(())
}

/// A bus dictionary serialises each value with its signature; scripts want the value.
pub(crate) fn plain(value: Value) -> Value {
    match value {
        Value::Object(mut map) => {
            if map.len() == 2 && map.contains_key("signature") && map.contains_key("value") {
                return plain(map.remove("value").unwrap_or_default());
            }
            Value::Object(map.into_iter().map(|(k, v)| (k, plain(v))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(plain).collect()),
        other => other,
    }
}

/// Rows below a head; columns as wide as they need to be.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(head.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Prints a table on stdout; what is empty says so on stderr.
pub(crate) fn print_table(head: &[&str], rows: Vec<Vec<String>>, none: &str) {
    if rows.is_empty() {
        eprintln!("{none}");
    } else {
        let mut out = std::io::stdout().lock();
        for line in table(head, rows).lines() {
            if writeln!(out, "{}", line.trim_end()).is_err() {
                return;
            }
        }
    }
}

/// Client of the workspaces service for a call that may take as long as the grace it names.
pub(crate) async fn patient_workspaces(grace_ms: u64) -> anyhow::Result<ManagerProxy<'static>> {
    let connection = connect::patient_client(connect::CALL_TIMEOUT + Duration::from_millis(grace_ms)).await?;
    Ok(ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?)
}

/// Client of the workspaces service.
pub(crate) async fn workspaces() -> anyhow::Result<ManagerProxy<'static>> {
    let connection = connect::client().await?;
    Ok(ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?)
}

/// The text of a refusal: the service's own, whole.
pub(crate) fn refusal(error: &WorkspacesError) -> anyhow::Error {
    match error {
        WorkspacesError::ZBus(error) => {
            anyhow::anyhow!("ask the workspaces service: {}", shipote_bus::error::describe(error))
        }
        other => anyhow::anyhow!("{}", zbus::DBusError::description(other).unwrap_or("refused without a reason")),
    }
}

/// The text of a refusal of a spec, which is called by where it is from instead of by the service's word for it.
pub(crate) fn spec_refusal(error: &WorkspacesError, word: &str, source: Option<&str>) -> anyhow::Error {
    match (error, source) {
        (WorkspacesError::InvalidSpec(said), Some(source)) => {
            anyhow::anyhow!("{}", crate::spec::in_source(said, word, source))
        }
        _ => refusal(error),
    }
}

/// Text that may come from a guest or from further away, without what a terminal would act on.
pub(crate) fn readable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// A discerned type as a person reads it: `json`. The socket's contract, and so the bus and `--json`, has it as
/// `Primitive { name: "json" }`; whatever has another shape is shown as it is.
pub(crate) fn type_name(ty: &str) -> &str {
    let name = ty.strip_prefix("Primitive { name: \"").and_then(|rest| rest.strip_suffix("\" }"));
    name.filter(|name| !name.is_empty()).unwrap_or(ty)
}

/// Seconds as a person reads them: `12s`, `3m05s`, `2h10m`, `4d3h`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Bytes as a person reads them, in binary units.
pub(crate) fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_terminal_acts_on_what_others_say() {
        assert_eq!(readable("a\u{1b}[2J\r\u{9b}b\tç\n"), "a [2J  b ç\n");
    }

    #[test]
    fn figures_for_people() {
        let table = [(5, "5s"), (65, "1m05s"), (7800, "2h10m"), (97_200, "1d3h")];
        for (seconds, want) in table {
            assert_eq!(duration(seconds), want);
        }
        for (count, want) in [(0.0, "0 B"), (1023.0, "1023 B"), (1536.0, "1.5 KiB"), (3.0 * 1024.0 * 1024.0, "3.0 MiB")]
        {
            assert_eq!(bytes(count), want);
        }
    }

    #[test]
    fn types_have_plain_names() {
        let record = "Record { schema: \"a\" }";
        for (ty, want) in [("Primitive { name: \"json\" }", "json"), ("", ""), (record, record)] {
            assert_eq!(type_name(ty), want);
        }
    }

    #[test]
    fn signatures_are_left_out_of_json() {
        let info = shipote_bus::workspaces::DiscernmentInfo {
            ty: "Primitive { name: \"json\" }".into(),
            confidence: 0.95,
            mime: Some("application/json".into()),
            lens: None,
        };
        let value = plain(serde_json::to_value(&info).unwrap());
        assert_eq!(value, serde_json::json!({"ty": info.ty, "confidence": 0.95, "mime": "application/json"}));
    }
}
