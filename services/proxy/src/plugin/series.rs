//! Figures that a plugin makes, for `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use shipote_plugin_abi::host::{MAX_METRIC_SERIES, MetricLabel, is_metric_name};

/// Most labels of a series, and bytes of its name and labels together.
const LABELS: usize = 16;
const BYTES: usize = 1024;
/// The label that says whose a series is.
const OURS: &str = "plugin";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: Kind,
    name: String,
    /// By name.
    labels: Vec<(String, String)>,
}

/// The series of one plugin; at most [`MAX_METRIC_SERIES`].
#[derive(Debug, Default)]
pub(crate) struct Series {
    values: BTreeMap<Key, i128>,
    /// Values that no series had room for.
    dropped: u64,
}

/// Lines of the same kind and name, of all plugins.
pub(crate) type Families = BTreeMap<(Kind, String), String>;

impl Series {
    /// Changes a value; a new series that is one too many, or too long, or whose labels are none, is dropped, counted, and
    /// said once.
    pub(super) fn measure(
        &mut self,
        (kind, name): (Kind, String),
        labels: &[MetricLabel],
        plugin: &str,
        change: impl FnOnce(&mut i128),
    ) {
        let refused = match key(kind, name, labels) {
            Ok(key) if self.values.len() < MAX_METRIC_SERIES || self.values.contains_key(&key) => {
                return change(self.values.entry(key).or_insert(0));
            }
            Ok(_) => format!("it has {MAX_METRIC_SERIES} series, and gets no more"),
            Err(reason) => reason,
        };
        self.dropped += 1;
        if self.dropped == 1 {
            tracing::warn!("plugin {plugin}: a metric is dropped, and so are others without a further word: {refused}");
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Adds its lines to those of other plugins.
    pub(crate) fn render(&self, plugin: &str, families: &mut Families) {
        for (Key { kind, name, labels }, value) in &self.values {
            let lines = families.entry((*kind, name.clone())).or_default();
            let (kind, suffix) = match kind {
                Kind::Counter => ("counter", "_total"),
                Kind::Gauge => ("gauge", ""),
            };
            // Writing to a string cannot fail.
            let _ = write!(lines, "shipote_plugin_{kind}_{name}{suffix}{{{OURS}=\"{plugin}\"");
            for (label, text) in labels {
                let _ = write!(lines, ",{label}=\"{}\"", crate::metrics::escaped(text));
            }
            let _ = writeln!(lines, "}} {value}");
        }
    }
}

/// A counter's name without the ending that its lines get anyway.
fn family(kind: Kind, name: String) -> String {
    match name.strip_suffix("_total") {
        Some(short) if kind == Kind::Counter && !short.is_empty() => short.to_owned(),
        _ => name,
    }
}

fn key(kind: Kind, name: String, labels: &[MetricLabel]) -> Result<Key, String> {
    let bytes = labels.iter().fold(name.len(), |sum, label| sum + label.key.len() + label.value.len());
    if labels.len() > LABELS || bytes > BYTES {
        return Err(format!("a series has up to {LABELS} labels, and {BYTES} bytes of name and labels"));
    }
    let mut labels: Vec<(String, String)> = labels.iter().map(|l| (l.key.clone(), l.value.clone())).collect();
    labels.sort();
    let twice = labels.windows(2).find(|two| two[0].0 == two[1].0).map(|two| &two[0].0);
    let odd = labels.iter().map(|(label, _)| label).find(|label| !is_metric_name(label) || *label == OURS);
    match twice.or(odd) {
        Some(label) => Err(format!(
            "label {label:?} of {name}: names are [a-zA-Z_][a-zA-Z0-9_]*, each once, and {OURS:?} is taken"
        )),
        None => Ok(Key { kind, name: family(kind, name), labels }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(key: &str, value: &str) -> MetricLabel {
        MetricLabel { key: key.into(), value: value.into() }
    }

    #[test]
    fn lines_are_valid_whatever_a_plugin_says() {
        let mut series = Series::default();
        let mut count = |name: &str, labels: &[MetricLabel]| {
            series.measure((Kind::Counter, name.to_owned()), labels, "p", |value| *value += 2);
        };
        count("hits", &[label("b", "x\"y\\z\n"), label("a", "1")]);
        count("hits_total", &[label("a", "1"), label("b", "x\"y\\z\n")]);
        for bad in [
            vec![label("a b", "")],
            vec![label("", "")],
            vec![label("plugin", "another")],
            vec![label("a", "1"), label("a", "2")],
            vec![label("a", &"x".repeat(2000))],
            (0..17).map(|n| label(&format!("l{n}"), "")).collect(),
        ] {
            count("hits", &bad);
        }
        series.measure((Kind::Gauge, "hits".to_owned()), &[], "p", |value| *value = -1);
        let mut families = Families::new();
        series.render("p", &mut families);
        let lines: Vec<&str> = families.values().map(|lines| lines.trim_end()).collect();
        assert_eq!(
            lines,
            [
                r#"shipote_plugin_counter_hits_total{plugin="p",a="1",b="x\"y\\z\n"} 4"#,
                r#"shipote_plugin_gauge_hits{plugin="p"} -1"#
            ]
        );
        assert_eq!(series.dropped(), 6);
    }

    #[test]
    fn a_series_too_many_is_dropped_and_those_that_are_there_go_on() {
        let mut series = Series::default();
        for n in 0..=MAX_METRIC_SERIES {
            series.measure((Kind::Counter, format!("m{n}")), &[], "p", |value| *value += 1);
        }
        series.measure((Kind::Counter, "m0".to_owned()), &[], "p", |value| *value += 1);
        assert_eq!((series.values.len(), series.dropped()), (MAX_METRIC_SERIES, 1));
    }
}
