//! What differs between two values, for people to read.

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Lines around what differs.
const CONTEXT: usize = 3;
/// Lines that are shown of either side; a spec may have thousands.
const SHOWN: usize = 60;

/// A unified diff of two values as JSON, from the first line that differs to the last.
pub(super) fn between(old: &Value, new: &Value) -> String {
    let (old, new) = (lines(old), lines(new));
    let before = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let most = old.len().min(new.len()) - before;
    let after = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(old, new)| old == new).count();
    let start = before.saturating_sub(CONTEXT);
    let context = after.min(CONTEXT);
    let mut out = String::new();
    let mut show = |sign: char, lines: &[String]| {
        for line in lines.iter().take(SHOWN) {
            out.push(sign);
            out.push_str(line);
            out.push('\n');
        }
    };
    let part = |of: &[String], from: usize, to: usize| of.get(from..to).unwrap_or_default().to_vec();
    show(' ', &part(&old, start, before));
    show('-', &part(&old, before, old.len() - after));
    show('+', &part(&new, before, new.len() - after));
    show(' ', &part(&old, old.len() - after, old.len() - after + context));
    let span = |of: &[String]| of.len() - after + context - start;
    format!("@@ -{0},{1} +{0},{2} @@\n{out}", start + 1, span(&old), span(&new))
}

fn lines(value: &Value) -> Vec<String> {
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b" "));
    // Writing to memory cannot fail.
    let _ = value.serialize(&mut serializer);
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_shows_what_was_and_what_was_wanted() {
        let old = json!({"a": 1, "b": 2, "c": 3, "d": {"e": 4}, "f": 5, "g": 6, "h": 7, "i": 8});
        let mut new = old.clone();
        new["d"] = json!({"e": 5, "x": 6});
        let said = [
            "@@ -3,7 +3,8 @@",
            "  \"b\": 2,",
            "  \"c\": 3,",
            "  \"d\": {",
            "-  \"e\": 4",
            "+  \"e\": 5,",
            "+  \"x\": 6",
            "  },",
            "  \"f\": 5,",
            "  \"g\": 6,",
        ];
        assert_eq!(between(&old, &new), said.join("\n") + "\n");
        let many: Vec<_> = (0..10_000).collect();
        assert!(between(&json!([]), &json!(many)).lines().count() < 2 * SHOWN);
    }
}
