use std::io::{self, Write};

use crate::events::Event;

/// A run's events as a person reads them: the model's words as they come, everything else on lines of its own.
pub struct Show<W> {
    out: W,
    /// How many bytes of the answer being written were shown as they came.
    streamed: usize,
    /// The last byte shown was no end of a line.
    midline: bool,
    last_state: String,
    /// Why the model was asked again, and how often in a row for that.
    retry: (String, u32),
}

impl<W: Write> Show<W> {
    pub fn new(out: W) -> Self {
        Self { out, streamed: 0, midline: false, last_state: String::new(), retry: (String::new(), 0) }
    }

    /// Shows one event.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Text(it) => {
                self.streamed += it.text.len();
                self.words(&it.text)
            }
            Event::Answer(it) => {
                // A listener who came late, or was cut off, gets the rest in one piece.
                let rest = it.text.get(self.streamed..).unwrap_or_default();
                self.streamed = 0;
                self.words(rest)?;
                self.end_line()
            }
            Event::Asked(_) => {
                self.streamed = 0;
                Ok(())
            }
            Event::State(it) => match it.state.as_str() {
                "pending" => {
                    let missing = it.conditions.iter().filter(|it| it.status != "True");
                    let why: Vec<&str> = missing.map(|it| it.message.as_str()).filter(|it| !it.is_empty()).collect();
                    self.state(&format!("pending: {}", why.join("; ")))
                }
                "failed" => self.state(&format!("failed: {}", it.message.as_deref().unwrap_or("(no reason given)"))),
                state => self.state(state),
            },
            Event::ToolCall(it) => self.line(&format!("→ {} {}", it.name, short(&it.arguments))),
            Event::ToolResult(it) => {
                self.line(&format!("{} {}", if it.failed { "✗" } else { "←" }, short(it.output.trim_end())))
            }
            Event::Retry(it) => self.asked_again(&it.why),
            Event::Note(it) => self.line(&it.text),
            Event::Usage(_) => Ok(()),
        }
    }

    fn state(&mut self, state: &str) -> io::Result<()> {
        if state == self.last_state || matches!(state, "succeeded" | "queued" | "running" | "pending: ") {
            return Ok(());
        }
        self.last_state = state.into();
        self.line(state)
    }

    fn asked_again(&mut self, why: &str) -> io::Result<()> {
        if self.retry.0 != why {
            self.retry = (why.to_owned(), 0);
        }
        self.retry.1 += 1;
        match self.retry.1 {
            1 => self.line(&format!("asked again: {why}")),
            times => self.line(&format!("asked again for the same reason, {times} times now")),
        }
    }

    fn words(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if !self.midline {
            write!(self.out, "  ")?;
        }
        self.midline = !text.ends_with('\n');
        write!(self.out, "{}", plain(text.trim_end_matches('\n')).replace('\n', "\n  "))?;
        if !self.midline {
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    fn end_line(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.midline) {
            writeln!(self.out)?;
        }
        Ok(())
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        self.end_line()?;
        writeln!(self.out, "  {}", plain(text))
    }
}

/// Without what a terminal would obey: what models and programs write must not move the cursor or set the title.
fn plain(text: &str) -> String {
    text.chars().map(|it| if it.is_control() && !matches!(it, '\n' | '\t') { '\u{fffd}' } else { it }).collect()
}

/// At most 200 characters, on one line.
fn short(text: &str) -> String {
    let line: String = text.chars().take(200).map(|c| if c == '\n' { ' ' } else { c }).collect();
    if line.len() < text.len() { format!("{line}…") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Answer, Asked, State, Text};

    fn shown(events: &[Event]) -> String {
        let mut out = Vec::new();
        let mut show = Show::new(&mut out);
        events.iter().for_each(|event| show.event(event).unwrap());
        String::from_utf8(out).unwrap()
    }

    fn text(it: &str) -> Event {
        Event::Text(Text { text: it.into() })
    }

    fn answer(it: &str) -> Event {
        Event::Answer(Answer { text: it.into(), at: jiff::Timestamp::UNIX_EPOCH })
    }

    #[test]
    fn an_answer_is_shown_once_however_much_of_it_came_live() {
        let asked = Event::Asked(Asked { at: jiff::Timestamp::UNIX_EPOCH });
        for live in [vec![], vec![text("one ")], vec![text("one "), text("two")]] {
            let events = [vec![asked.clone()], live, vec![answer("one two")]].concat();
            assert_eq!(shown(&events), "  one two\n");
        }
    }

    #[test]
    fn a_terminal_obeys_nothing_that_a_model_writes_and_a_reason_is_told_once() {
        let retry = || Event::Retry(crate::events::Retry { why: "busy".into() });
        let shown = shown(&[text("\u{1b}[2Jhi\u{9b}1m\r\n"), retry(), retry()]);
        assert_eq!(
            shown,
            "  \u{fffd}[2Jhi\u{fffd}1m\u{fffd}\n  asked again: busy\n  asked again for the same reason, 2 times now\n"
        );
    }

    #[test]
    fn a_failure_says_why() {
        let failed = State { state: "failed".into(), message: Some("no key".into()), ..State::default() };
        assert_eq!(shown(&[text("half"), Event::State(failed)]), "  half\n  failed: no key\n");
    }
}
