//! Go's regular expressions (RE2) on the `regex` crate, which differs in a few places, with bounds on what one may cost.

use std::sync::{Arc, OnceLock};

use regex::{Regex, RegexBuilder};

/// A compiled expression takes at most this much memory; larger ones are refused as Go refuses its own too large ones.
const PROGRAM_MAX: usize = 1 << 20;
const NEST_MAX: u32 = 100;

/// A schema's `pattern`, compiled when it is first needed. Matching takes time linear in the text.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    text: Box<str>,
    compiled: Arc<OnceLock<Result<Regex, String>>>,
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.into(), compiled: Arc::default() }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is found in `text`; the error says why the pattern itself cannot be used.
    pub(crate) fn is_match(&self, text: &str) -> Result<bool, &str> {
        match self.compiled.get_or_init(|| compile(&self.text)) {
            Ok(regex) => Ok(regex.is_match(text)),
            Err(why) => Err(why),
        }
    }
}

/// Compiles Go syntax; the error is worded like Go's.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&translate(pattern))
        .size_limit(PROGRAM_MAX)
        .dfa_size_limit(PROGRAM_MAX)
        .nest_limit(NEST_MAX)
        .build()
        .map_err(|e| match e {
            regex::Error::CompiledTooBig(_) => "error parsing regexp: expression too large".to_owned(),
            other => {
                let text = other.to_string();
                let last = text.lines().last().unwrap_or_default();
                let why = match last.strip_prefix("error: ").unwrap_or(last) {
                    "unclosed character class" => "missing closing ]",
                    "unclosed group" => "missing closing )",
                    "unopened group" => "unexpected )",
                    "repetition operator missing expression" => "missing argument to repetition operator",
                    other => other,
                };
                format!("error parsing regexp: {why}: `{pattern}`")
            }
        })
}

/// `\d`, `\w` and `\s` are ASCII in Go; `{` and, within a class, `[`, `&`, `-` and `~` mean themselves where this crate
/// sees syntax; `\Q...\E` quotes; `\<` is a plain `<`.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut class = false;
    let mut class_start = false;
    let mut chars = pattern.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let first = std::mem::take(&mut class_start);
        match c {
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('d') => out.push_str("[0-9]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('s') => out.push_str(r"[\t\n\x0c\r ]"),
                Some('S') => out.push_str(r"[^\t\n\x0c\r ]"),
                Some('b') => out.push_str(r"(?-u:\b)"),
                Some('B') => out.push_str(r"(?-u:\B)"),
                Some('Q') if !class => {
                    let rest = pattern.get(at + 2..).unwrap_or_default();
                    let quoted = rest.split(r"\E").next().unwrap_or_default();
                    out.push_str(&regex::escape(quoted));
                    let end = at + 2 + quoted.len() + 2;
                    while chars.peek().is_some_and(|(i, _)| *i < end) {
                        chars.next();
                    }
                }
                Some(c @ ('<' | '>')) => out.push(c),
                Some(c) => out.extend(['\\', c]),
                None => out.push('\\'),
            },
            '[' if !class => {
                (class, class_start) = (true, true);
                out.push('[');
                if chars.next_if(|(_, c)| *c == '^').is_some() {
                    out.push('^');
                }
            }
            '[' if pattern.get(at..).is_some_and(|rest| rest.starts_with("[:") && rest.contains(":]")) => {
                // A POSIX class: copied to its end.
                let length = pattern.get(at..).and_then(|rest| rest.find(":]")).unwrap_or_default();
                out.push_str(pattern.get(at..at + length + 2).unwrap_or_default());
                while chars.peek().is_some_and(|(i, _)| *i < at + length + 2) {
                    chars.next();
                }
            }
            ']' if class && first => out.push_str(r"\]"),
            ']' if class => {
                class = false;
                out.push(']');
            }
            '[' | '&' | '~' if class => out.extend(['\\', c]),
            '-' if class && chars.peek().is_some_and(|(_, next)| *next == '-') => out.push_str(r"\-"),
            '{' if !class && !is_repetition(pattern.get(at..).unwrap_or_default()) => out.push_str(r"\{"),
            '}' if !class && !closes_repetition(pattern.get(..=at).unwrap_or_default()) => out.push_str(r"\}"),
            c => out.push(c),
        }
    }
    out
}

/// `{n}`, `{n,}`, `{n,m}` at the start of `rest`.
fn is_repetition(rest: &str) -> bool {
    let Some((inside, _)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) else { return false };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    !low.is_empty() && low.bytes().chain(high.bytes()).all(|c| c.is_ascii_digit())
}

fn closes_repetition(until: &str) -> bool {
    until.rfind('{').and_then(|at| until.get(at..)).is_some_and(is_repetition)
}
