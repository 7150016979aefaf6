//! Drawing: a line for each workspace and each flow, with a sparkline at its end.

use ratatui::backend::TestBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Sparkline};
use ratatui::{Frame, Terminal};
use shipote_bus::words::counted;
use shipote_bus::workspaces::{FlowInfo, WorkspaceStats};

use super::beside::{self, Beside};
use super::model::{Model, POINTS, Trail};
use crate::figures::{bytes, percent};
use crate::flow::edge;
use crate::output;

/// Width of the words before a sparkline.
const WORDS: u16 = 88;

/// Draws everything into a frame.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let area = frame.area();
    let (workspaces, flows) = (model.workspaces(), model.flows());
    let flow_rows = if flows.is_empty() { 0 } else { u16::try_from(flows.len() + 2).unwrap_or(u16::MAX) };
    let others = besides(&model.beside);
    let other_rows = u16::try_from(others.len()).unwrap_or(u16::MAX);
    let [head, upper, middle, lower] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(2),
        Constraint::Length(other_rows.min(area.height.saturating_sub(4) / 3)),
        Constraint::Length(flow_rows.min(area.height.saturating_sub(4) / 2)),
    ])
    .areas(area);
    let title = format!(
        "{}, {}, {}; by {}; q quits, m c n sort",
        counted(workspaces.len(), "workspace"),
        counted(workspaces.iter().map(|(s, _)| s.commands_alive).sum::<u32>(), "command"),
        counted(flows.iter().filter(|(f, _)| f.state == "flowing").count(), "flow"),
        model.order.name(),
    );
    frame.render_widget(Paragraph::new(title), head);
    let columns = format!(
        "{:<26}{:>4} {:>10} {:>10} {:>6} {:>9} {:>9} {:>7}",
        "WORKSPACE", "CMD", "MEMORY", "LIMIT", "CPU", "PIDS", "PRESSURE", "UPTIME"
    );
    let lines = workspaces.into_iter().map(|(stats, trail)| (workspace(stats, model.beside.mark(&stats.id)), trail));
    list(frame, upper, &columns, lines, Color::Green);
    frame.render_widget(Paragraph::new(others), middle);
    if !flows.is_empty() {
        let columns = format!("{:<40}{:<9}{:>11} {:>13} {:>4}", "FLOW", "STATE", "BYTES", "PER SECOND", "SUBS");
        let lines = flows.into_iter().map(|(info, trail)| (flow(info), trail));
        list(frame, lower, &columns, lines, Color::Cyan);
    }
}

/// Machines and ways out, each below its head, and what could not be asked for.
fn besides(beside: &Beside) -> Vec<Line<'static>> {
    let bold = |head: &'static str| Line::styled(head, Style::new().add_modifier(Modifier::BOLD));
    let mut lines = Vec::new();
    if !beside.machines.is_empty() {
        lines.push(bold(beside::MACHINES));
        lines.extend(beside.machines.iter().map(|machine| Line::from(beside::machine(machine))));
        lines.push(Line::default());
    }
    if !beside.ways.is_empty() {
        lines.push(bold(beside::WAYS));
        lines.extend(beside.ways.iter().map(|way| Line::from(beside::way(way))));
        lines.push(Line::default());
    }
    lines.extend(beside.notes.iter().map(|note| Line::from(fit(note, 110))));
    lines
}

/// A head, then lines with their sparklines, as many as there is room for.
fn list<'m>(
    frame: &mut Frame<'_>,
    area: Rect,
    head: &str,
    lines: impl ExactSizeIterator<Item = (String, &'m Trail)>,
    colour: Color,
) {
    let mut rows = area.rows();
    let Some(first) = rows.next() else { return };
    frame.render_widget(Paragraph::new(Line::styled(head, Style::new().add_modifier(Modifier::BOLD))), first);
    let mut left = lines.len();
    let room = usize::from(area.height.saturating_sub(1));
    for (row, (text, trail)) in rows.zip(lines) {
        // the last line tells of those that have no room
        if left > 1 && usize::from(row.y - first.y) == room {
            frame.render_widget(Paragraph::new(format!("and {left} more")), row);
            return;
        }
        left -= 1;
        let [words, spark] = Layout::horizontal([Constraint::Length(WORDS), Constraint::Min(0)]).areas(row);
        frame.render_widget(Paragraph::new(text), words);
        // the newest stand at the right edge
        let shown = usize::from(spark.width).min(POINTS);
        let points: Vec<u64> = trail.iter().skip(trail.len().saturating_sub(shown)).copied().collect();
        frame.render_widget(Sparkline::default().data(&points).style(Style::new().fg(colour)), spark);
    }
}

/// The text, cut to a width or filled up to it.
pub(super) fn fit(text: &str, width: usize) -> String {
    let mut out: String = text.chars().filter(|c| !c.is_control()).take(width).collect();
    if text.chars().count() > width {
        out.pop();
        out.push('\u{2026}');
    }
    format!("{out:<width$}")
}

fn workspace(stats: &WorkspaceStats, mark: &str) -> String {
    let worst = [stats.cpu_pressure, stats.memory_pressure, stats.io_pressure].into_iter().flatten().reduce(f64::max);
    let pids = match (stats.pids, stats.pids_limit) {
        (Some(now), Some(limit)) => format!("{now}/{limit}"),
        (Some(now), None) => now.to_string(),
        (None, _) => "-".to_owned(),
    };
    format!(
        "{} {:>4} {:>10} {:>10} {:>6} {:>9} {:>9} {:>7} ",
        fit(&format!("{}{mark}", stats.name), 25),
        stats.commands_alive,
        bytes(stats.memory_bytes),
        bytes(stats.memory_limit_bytes),
        percent(stats.cpu_percent),
        pids,
        percent(worst),
        output::duration(stats.uptime_ms / 1000),
    )
}

fn flow(info: &FlowInfo) -> String {
    let end = info.pipeline.len().saturating_sub(6);
    let name = format!("{} {}", info.pipeline.get(end..).unwrap_or_default(), edge(info));
    format!(
        "{} {:<9}{:>11} {:>11}/s {:>4} ",
        fit(&name, 39),
        info.state,
        output::bytes(info.bytes_total as f64),
        output::bytes(info.bytes_per_sec),
        info.subscribers
    )
}

/// The view as text: as many lines as it needs.
pub(super) fn text(model: &Model, width: u16) -> anyhow::Result<String> {
    let flows = model.flows().len();
    // As tall as the part that gets a third of it needs.
    let others = 3 * besides(&model.beside).len();
    let needed = 3 + model.workspaces().len() + 2 * (flows + 2) + 2 + others;
    let height = u16::try_from(needed).unwrap_or(u16::MAX).min(1000);
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| draw(frame, model))?;
    let buffer = terminal.backend().buffer();
    let lines = (0..height).map(|y| {
        let line: String =
            (0..width).filter_map(|x| buffer.cell((x, y))).map(|cell| cell.symbol().to_owned()).collect();
        line.trim_end().to_owned()
    });
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::super::model::Order;
    use super::super::model::tests::{flow as flow_info, stats};
    use super::*;

    fn model() -> Model {
        let mut model = Model::default();
        for cpu in [0.0, 50.0, 100.0] {
            let mut small = stats("small", 3 << 20, 0.0);
            small.memory_pressure = Some(12.0);
            let mut big = stats("big\u{7}name", 200 << 20, cpu);
            (big.memory_limit_bytes, big.pids, big.pids_limit) = (Some(256 << 20), Some(7), Some(64));
            model.take(vec![small, big], vec![flow_info(0, cpu * 1024.0, "flowing")]);
        }
        model
    }

    #[test]
    fn every_workspace_and_flow_has_its_line_and_its_sparkline() {
        let text = text(&model(), 110).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("2 workspaces, 4 commands, 1 flow; by memory"), "{text}");
        let big = "bigname                      2  200.0 MiB  256.0 MiB   100%      7/64         -   1m01s";
        assert!(lines[2].starts_with(big), "{text}");
        // half and whole: the middle and the full block
        assert!(lines[2].trim_end().ends_with("\u{2584}\u{2588}"), "{text}");
        assert!(lines[3].starts_with("small ") && lines[3].contains("12%"), "{text}");
        assert!(lines[4].starts_with("FLOW"), "{text}");
        assert!(lines[5].contains("list -> sort") && lines[5].contains("100.0 KiB/s"), "{text}");
        assert!(lines[5].trim_end().ends_with("\u{2584}\u{2588}"), "{text}");
    }

    #[test]
    fn flows_of_one_node_are_told_apart_by_its_outputs() {
        let mut model = Model::default();
        let further =
            FlowInfo { from_output: "errors".to_owned(), to_input: "left".to_owned(), ..flow_info(1, 0.0, "ended") };
        model.take(vec![], vec![flow_info(0, 0.0, "ended"), further]);
        let text = text(&model, 110).unwrap();
        assert!(text.contains("list -> sort ") && text.contains("list.errors -> sort.left "), "{text}");
    }

    #[test]
    fn machines_and_ways_out_have_their_lines() {
        let mut model = model();
        let info = beside::tests::info("db", "sleeping", 2);
        model.beside.machines = vec![beside::Machine { info, memory_bytes: 0, cpu_percent: None }];
        model.beside.notes = vec!["ways out: the service is away".to_owned()];
        let text = text(&model, 110).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let at = lines.iter().position(|line| line.starts_with("MACHINE ")).unwrap();
        assert!(lines[at + 1].starts_with("db ") && lines[at + 1].contains("96.0 MiB"), "{text}");
        assert!(text.contains("ways out: the service is away") && text.contains("list -> sort"), "{text}");
    }

    #[test]
    fn a_small_terminal_shows_what_it_can() {
        let mut model = model();
        model.order = Order::Name;
        for (width, height) in [(1, 1), (20, 3), (80, 5), (200, 50), (0, 0)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &model)).unwrap();
        }
        let many: Vec<WorkspaceStats> = (0..50).map(|n| stats(&format!("w{n:02}"), 1, 0.0)).collect();
        model.take(many, vec![]);
        let mut terminal = Terminal::new(TestBackend::new(110, 10)).unwrap();
        terminal.draw(|frame| draw(frame, &model)).unwrap();
        let shown = format!("{:?}", terminal.backend().buffer());
        assert!(shown.contains("w00") && !shown.contains("w49") && shown.contains("more"), "{shown}");
    }

    #[test]
    fn an_empty_appliance_has_an_empty_view() {
        let text = text(&Model::default(), 110).unwrap();
        assert!(text.starts_with("0 workspaces, 0 commands, 0 flows"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
