//! The figures as people read them.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};

use super::harness::{Better, Row};

/// One line for each claim, in Markdown, so that it goes into a document as it stands.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    let head =
        ["id", "what", "against", "ratio", "target", "met", "wall", "wall, best", "CPU", "ours", "theirs", "samples"];
    table.set_header(head);
    for row in rows {
        let sign = if row.better == Better::Lower { "≤" } else { "≥" };
        table.add_row([
            row.id.to_string(),
            row.what.to_string(),
            row.against.to_string(),
            format!("{:.2}", row.ratio),
            format!("{sign} {:.2}", row.target),
            if row.met { "yes" } else { "no" }.to_owned(),
            format!("{:.2}", row.detail.median_ratio),
            format!("{:.2}", row.detail.best_ratio),
            format!("{:.2}", row.cpu_ratio),
            time(row.detail.ours),
            time(row.detail.theirs),
            row.samples.to_string(),
        ]);
    }
    table
}

fn time(time: Duration) -> String {
    if time < Duration::from_millis(10) {
        format!("{} µs", time.as_micros())
    } else {
        format!("{} ms", time.as_millis())
    }
}

/// The machine in one line.
pub(super) fn machine() -> anyhow::Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("processor of unknown make");
    let processors = std::thread::available_parallelism().context("count the processors")?;
    let system = rustix::system::uname();
    Ok(format!(
        "{processors} × {}, {} {}, load average {}",
        model.trim_start_matches([' ', '\t', ':']),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        load()?
    ))
}

/// Load averages of 1, 5 and 15 minutes.
pub(super) fn load() -> anyhow::Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}
