//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

use crate::count::Histogram;

pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// A page of metrics in the making.
#[derive(Default)]
pub(super) struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    /// Begins a family. The samples that follow are of it.
    pub(super) fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    pub(super) fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let (upto, all, seconds) = histogram.read();
        for (bound, count) in histogram.bounds.iter().zip(upto) {
            self.line("_bucket", labels, Some(&bound.to_string()), count);
        }
        self.line("_bucket", labels, Some("+Inf"), all);
        self.line("_sum", labels, None, seconds);
        self.line("_count", labels, None, all);
    }

    fn line(&mut self, part: &str, labels: &[(&str, &str)], bound: Option<&str>, value: impl Display) {
        let _ = write!(self.text, "{}{part}", self.name);
        let mut open = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            let _ = write!(self.text, "{open}{name}=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
            open = ',';
        }
        if open == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn samples_are_written_with_their_labels_escaped() {
        let mut page = Page::default();
        page.family("things", "gauge", "Things.");
        page.sample(&[], 1);
        page.sample(&[("a", "x\"\\\ny"), ("b", "")], 2.5);
        page.family("took", "histogram", "How long.");
        let took = Histogram::new(&[0.005, 1.0]);
        took.observe(Duration::from_millis(500));
        page.histogram(&[("a", "x")], &took);
        let want = "\
# HELP things Things.\n# TYPE things gauge\nthings 1\nthings{a=\"x\\\"\\\\\\ny\",b=\"\"} 2.5
# HELP took How long.\n# TYPE took histogram
took_bucket{a=\"x\",le=\"0.005\"} 0\ntook_bucket{a=\"x\",le=\"1\"} 1\ntook_bucket{a=\"x\",le=\"+Inf\"} 1
took_sum{a=\"x\"} 0.5\ntook_count{a=\"x\"} 1\n";
        assert_eq!(page.finish(), want);
    }
}
