//! What a plugin says in the log: a line each, bounded in length and number. Programs (CGI) are written down in the same way.

use std::time::{Duration, Instant};

use shipote_plugin_abi::host::LogField;

/// Bytes of a line, and fields in it.
const BYTES: usize = 4096;
const FIELDS: usize = 32;
/// Messages of one plugin in a second.
const MESSAGES: u32 = 100;
const SPAN: Duration = Duration::from_secs(1);

/// How many messages of one plugin there were, and were dropped.
#[derive(Debug, Default)]
pub(crate) struct Said {
    since: Option<Instant>,
    /// In the second that began then.
    messages: u32,
    dropped: u64,
}

impl Said {
    /// Whether the plugin may say something at `now`. One message too many is dropped and counted, and the first of each
    /// second is said.
    pub(super) fn admits(&mut self, plugin: &str, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= SPAN) {
            (self.since, self.messages) = (Some(now), 0);
        }
        self.messages = self.messages.saturating_add(1);
        if self.messages <= MESSAGES {
            return true;
        }
        self.dropped += 1;
        if self.messages == MESSAGES + 1 {
            tracing::warn!(
                "plugin {plugin}: more than {MESSAGES} messages in a second; the rest of them is dropped and counted"
            );
        }
        false
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// A message with its fields as one line: control characters escaped, so that none passes for another's line.
pub(crate) fn line(message: &str, fields: &[LogField]) -> String {
    let mut line = Line::default();
    line.push(message, false);
    for field in fields.iter().take(FIELDS) {
        line.push(" ", false);
        line.push(&field.key, false);
        line.push("=\"", false);
        line.push(&field.value, true);
        line.push("\"", false);
    }
    if line.cut || fields.len() > FIELDS {
        line.text.push_str(" (cut)");
    }
    line.text
}

#[derive(Default)]
struct Line {
    text: String,
    cut: bool,
}

impl Line {
    fn push(&mut self, text: &str, quoted: bool) {
        for char in text.chars() {
            if self.text.len() >= BYTES {
                self.cut = true;
                return;
            }
            match char {
                '"' | '\\' if quoted => self.text.extend(['\\', char]),
                _ if char.is_control() => self.text.extend(char.escape_default()),
                _ => self.text.push(char),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(key: &str, value: &str) -> LogField {
        LogField { key: key.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        assert_eq!(line("hi\n<2>shipote: all is lost", &[]), "hi\\n<2>shipote: all is lost");
        assert_eq!(line("a", &[field("k\u{1b}", "v\" w=\"x")]), "a k\\u{1b}=\"v\\\" w=\\\"x\"");
    }

    #[test]
    fn a_message_is_cut_where_it_is_too_long_and_says_so() {
        let much = "x".repeat(10 << 20);
        for (message, fields) in
            [(much.as_str(), vec![]), ("a", vec![field("k", &much)]), ("a", vec![field(&much, "v")])]
        {
            let line = line(message, &fields);
            assert!(line.len() < BYTES + 20 && line.ends_with(" (cut)"), "{} bytes", line.len());
        }
        let many: Vec<_> = (0..100).map(|_| field("k", "v")).collect();
        assert!(line("a", &many).ends_with(" (cut)"));
        assert_eq!(line("whole", &[field("k", "v")]), "whole k=\"v\"");
    }

    #[test]
    fn who_says_too_much_is_heard_again_in_the_next_second() {
        let (mut said, begun) = (Said::default(), Instant::now());
        let heard = |said: &mut Said, at: Duration| (0..250).filter(|_| said.admits("p", begun + at)).count();
        assert_eq!(heard(&mut said, Duration::ZERO), 100);
        assert_eq!(heard(&mut said, Duration::from_millis(999)), 0);
        assert_eq!(said.dropped(), 400);
        assert_eq!(heard(&mut said, Duration::from_millis(1000)), 100);
        assert_eq!(said.dropped(), 550);
    }
}
