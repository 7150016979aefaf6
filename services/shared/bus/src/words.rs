//! Numbers with what they count, as people read them.

use std::fmt::Display;

/// `1 rule`, `2 rules`, `0 processes`, `3 entries`.
#[must_use]
pub fn counted(number: impl Display, one: &str) -> String {
    let number = number.to_string();
    if number == "1" {
        return format!("1 {one}");
    }
    let hisses = ["s", "x", "ch", "sh"].iter().any(|end| one.ends_with(end));
    match one.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{number} {stem}ies"),
        _ if hisses => format!("{number} {one}es"),
        _ => format!("{number} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_one_and_all_others_are_many() {
        let told: Vec<String> = [0, 1, 2, 11].iter().map(|n| counted(n, "rule")).collect();
        assert_eq!(told, ["0 rules", "1 rule", "2 rules", "11 rules"]);
        for (one, many) in [("process", "processes"), ("entry", "entries"), ("day", "days"), ("flow", "flows")] {
            assert_eq!((counted(1_u64, one), counted(2_u64, one)), (format!("1 {one}"), format!("2 {many}")));
        }
    }
}
