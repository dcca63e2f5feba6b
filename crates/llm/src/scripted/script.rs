use std::fmt;
use std::time::Duration;

use http::StatusCode;
use jiff::SignedDuration;
use kit::SecretString;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::Usage;

const MAX_SCRIPT: usize = 1 << 20;
const MAX_DURATION: Duration = Duration::from_secs(3600);

/// What a scripted model says to what. See the [module](super) for the form.
#[derive(Debug)]
pub struct Script {
    pub(super) key: Option<SecretString>,
    pub(super) models: Vec<String>,
    pub(super) rules: Vec<Rule>,
}

/// Where a script is wrong, and how.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct ScriptError {
    /// Such as `rules[2].match.user`; empty for the document as a whole.
    pub path: String,
    pub problem: String,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) model: Option<String>,
    pub(super) user: Option<Text>,
    pub(super) results: Option<usize>,
    pub(super) times: Option<u64>,
    pub(super) delay: Duration,
    pub(super) reply: Reply,
}

#[derive(Debug)]
pub(super) enum Text {
    Equals(String),
    Contains(String),
}

#[derive(Debug)]
pub(super) enum Reply {
    Answer { text: Option<String>, calls: Vec<(String, String)>, chunks: Chunks, usage: Option<Usage> },
    Fail { status: StatusCode, message: String, retry_after: Option<Duration> },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    pub(super) by: By,
    pub(super) every: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    Words(usize),
    Bytes(usize),
}

/// What a rule looks at.
pub(super) struct Question<'a> {
    pub(super) model: &'a str,
    pub(super) user: &'a str,
    pub(super) results: usize,
}

impl Rule {
    pub(super) fn matches(&self, question: &Question<'_>) -> bool {
        self.model.as_ref().is_none_or(|it| it == question.model)
            && self.results.is_none_or(|it| it == question.results)
            && self.user.as_ref().is_none_or(|it| match it {
                Text::Equals(text) => text == question.user,
                Text::Contains(text) => question.user.contains(text.as_str()),
            })
    }
}

impl Script {
    /// Reads a script of at most 1 MiB. Keys that are not known, and values that cannot be, are refused.
    ///
    /// # Errors
    /// The first thing that is wrong, with its path.
    pub fn parse(yaml: &str) -> Result<Self, ScriptError> {
        let whole = |problem: String| ScriptError { path: String::new(), problem };
        if yaml.len() > MAX_SCRIPT {
            return Err(whole(format!("the script is larger than {MAX_SCRIPT} bytes")));
        }
        let document: Value = serde_saphyr::from_str(yaml).map_err(|error| whole(unreadable(&error)))?;
        let mut fields = match document {
            rules @ Value::Array(_) => {
                Fields::new(String::new(), Value::Object(Map::from_iter([("rules".into(), rules)])))?
            }
            document => Fields::new(String::new(), document)?,
        };
        let key: Option<String> = fields.take("key")?;
        let mut models: Vec<String> = fields.take("models")?.unwrap_or_default();
        let rules = fields.list("rules")?.into_iter().map(Rule::read).collect::<Result<Vec<_>, _>>()?;
        fields.end()?;
        if rules.is_empty() {
            return Err(whole("the script has no rules".into()));
        }
        for model in rules.iter().filter_map(|it| it.model.as_ref()) {
            if !models.contains(model) {
                models.push(model.clone());
            }
        }
        if models.is_empty() {
            models.push("scripted".into());
        }
        Ok(Self { key: key.map(SecretString::from), models, rules })
    }
}

/// Why a text is no document, with its line.
fn unreadable(error: &serde_saphyr::Error) -> String {
    match error.without_snippet() {
        serde_saphyr::Error::NullIntoString { location } => {
            format!("line {}, column {}: a key is missing before the colon", location.line(), location.column())
        }
        _ => error.to_string(),
    }
}

impl Rule {
    fn read(mut fields: Fields) -> Result<Self, ScriptError> {
        let (mut model, mut user, mut results) = (None, None, None);
        if let Some(mut on) = fields.object("match")? {
            model = on.take("model")?;
            results = on.take("results")?;
            if let Some(mut text) = on.object("user")? {
                user = match (text.take("equals")?, text.take("contains")?) {
                    (Some(it), None) => Some(Text::Equals(it)),
                    (None, Some(it)) => Some(Text::Contains(it)),
                    _ => return Err(text.wrong("one of equals and contains is needed")),
                };
                text.end()?;
            }
            on.end()?;
        }
        let times = fields.take("times")?;
        let delay = fields.duration("delay")?.unwrap_or_default();
        let reply = Reply::read(&mut fields)?;
        fields.end()?;
        Ok(Self { model, user, results, times, delay, reply })
    }
}

impl Reply {
    fn read(fields: &mut Fields) -> Result<Self, ScriptError> {
        let text: Option<String> = fields.take("answer")?;
        let no_calls = fields.map.get("calls").and_then(Value::as_array).is_some_and(Vec::is_empty);
        let calls = fields.list("calls")?.into_iter().map(read_call).collect::<Result<Vec<_>, _>>()?;
        if no_calls {
            return Err(fields.wrong_at("calls", "at least one call is needed, or no such key"));
        }
        let status: Option<u16> = fields.take("status")?;
        let Some(status) = status else {
            if text.is_none() && calls.is_empty() {
                return Err(fields.wrong("one of answer, calls and status is needed"));
            }
            return Ok(Self::Answer { text, calls, chunks: Chunks::read(fields)?, usage: read_usage(fields)? });
        };
        if text.is_some() || !calls.is_empty() {
            return Err(fields.wrong("status goes with neither answer nor calls"));
        }
        let status = StatusCode::from_u16(status)
            .ok()
            .filter(|it| it.is_client_error() || it.is_server_error())
            .ok_or_else(|| fields.wrong("status is not between 400 and 599"))?;
        let message = fields.take("message")?.unwrap_or_else(|| format!("scripted failure {}", status.as_u16()));
        Ok(Self::Fail { status, message, retry_after: fields.duration("retryAfter")? })
    }
}

impl Chunks {
    fn read(fields: &mut Fields) -> Result<Self, ScriptError> {
        let mut by = By::Words(1);
        let mut every = Duration::ZERO;
        if let Some(mut chunks) = fields.object("chunks")? {
            by = match (chunks.take("words")?, chunks.take("bytes")?) {
                (None, None) => by,
                (Some(words), None) if words > 0 => By::Words(words),
                (None, Some(bytes)) if bytes > 0 => By::Bytes(bytes),
                _ => return Err(chunks.wrong("one of words and bytes, at least 1, is needed")),
            };
            every = chunks.duration("every")?.unwrap_or_default();
            chunks.end()?;
        }
        Ok(Self { by, every })
    }

    /// The text in the pieces in which it is streamed; together they are the text.
    pub(super) fn cut<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = match self.by {
                By::Bytes(bytes) => (bytes..rest.len()).find(|at| rest.is_char_boundary(*at)),
                By::Words(words) => word_starts(rest).nth(words),
            };
            let (piece, after) = rest.split_at(end.unwrap_or(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces
    }
}

/// Where words begin, each with the space before it.
fn word_starts(text: &str) -> impl Iterator<Item = usize> {
    let before = std::iter::once('x').chain(text.chars());
    std::iter::once(0).chain(
        text.char_indices()
            .zip(before)
            .filter(|((at, c), before)| *at > 0 && c.is_whitespace() && !before.is_whitespace())
            .map(|((at, _), _)| at),
    )
}

fn read_call(mut fields: Fields) -> Result<(String, String), ScriptError> {
    let name = fields.take("name")?.ok_or_else(|| fields.wrong("name is needed"))?;
    // A text is taken as it is, so that a model can be scripted that writes no valid JSON.
    let arguments = match fields.take("arguments")? {
        None => "{}".to_owned(),
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
    };
    fields.end()?;
    Ok((name, arguments))
}

fn read_usage(fields: &mut Fields) -> Result<Option<Usage>, ScriptError> {
    let Some(mut usage) = fields.object("usage")? else { return Ok(None) };
    let (input, output) = (usage.take("input")?.unwrap_or(0), usage.take("output")?.unwrap_or(0));
    usage.end()?;
    Ok(Some(Usage { input, output, estimated: false }))
}

/// A mapping whose keys are taken one by one; what is left at the end is not known.
struct Fields {
    path: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    fn new(path: String, value: Value) -> Result<Self, ScriptError> {
        match value {
            Value::Object(map) => Ok(Self { path, map, known: Vec::new() }),
            _ => Err(ScriptError { path, problem: "a mapping is needed".into() }),
        }
    }

    fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name).filter(|it| !it.is_null())
    }

    fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, ScriptError> {
        let value = self.value(name);
        value.map(|it| serde_json::from_value(it).map_err(|error| self.wrong_at(name, error))).transpose()
    }

    fn object(&mut self, name: &'static str) -> Result<Option<Self>, ScriptError> {
        let path = self.at(name);
        self.value(name).map(|it| Self::new(path, it)).transpose()
    }

    fn list(&mut self, name: &'static str) -> Result<Vec<Self>, ScriptError> {
        let list: Vec<Value> = self.take(name)?.unwrap_or_default();
        list.into_iter().enumerate().map(|(i, it)| Self::new(format!("{}[{i}]", self.at(name)), it)).collect()
    }

    fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, ScriptError> {
        let Some(text) = self.take::<String>(name)? else { return Ok(None) };
        let duration = text.parse::<SignedDuration>().ok().and_then(|it| Duration::try_from(it).ok());
        match duration.filter(|it| *it <= MAX_DURATION) {
            Some(duration) => Ok(Some(duration)),
            None => Err(self.wrong_at(name, "a duration such as 2s, 1m30s or 50ms is needed, of at most an hour")),
        }
    }

    fn end(self) -> Result<(), ScriptError> {
        match self.map.keys().next() {
            Some(key) => Err(self.wrong_at(key, format!("there is no such key; there are {}", self.known.join(", ")))),
            None => Ok(()),
        }
    }

    fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn wrong_at(&self, name: &str, problem: impl fmt::Display) -> ScriptError {
        ScriptError { path: self.at(name), problem: problem.to_string() }
    }

    fn wrong(&self, problem: &str) -> ScriptError {
        ScriptError { path: self.path.clone(), problem: problem.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_a_script_is_named_with_its_path() {
        for (yaml, said) in [
            (
                "- {answer: a, anser: b}",
                "rules[0].anser: there is no such key; there are match, times, delay, answer, ",
            ),
            ("rules: []", "the script has no rules"),
            ("rule: []", "rule: there is no such key; there are key, models, rules"),
            (
                "- {answer: a}\n- {match: {user: {contain: x}}, answer: a}",
                "rules[1].match.user: one of equals and contains",
            ),
            ("- {match: {user: {equals: x, like: y}}, answer: a}", "rules[0].match.user.like: there is no such key"),
            ("- {match: {results: -1}, answer: a}", "rules[0].match.results: invalid value"),
            ("- {match: {}}", "rules[0]: one of answer, calls and status is needed"),
            ("- {status: 200}", "rules[0]: status is not between 400 and 599"),
            ("- {status: 500, answer: a}", "rules[0]: status goes with neither answer nor calls"),
            ("- {answer: a, delay: soon}", "rules[0].delay: a duration such as 2s"),
            ("- {answer: a, delay: 2h}", "rules[0].delay: a duration such as 2s"),
            ("- {answer: a, chunks: {words: 0}}", "rules[0].chunks: one of words and bytes"),
            ("- {answer: a, retryAfter: 1s}", "rules[0].retryAfter: there is no such key"),
            ("- {calls: [{arguments: {}}]}", "rules[0].calls[0]: name is needed"),
            ("- {answer: a, calls: []}", "rules[0].calls: at least one call is needed"),
            ("- {answer: a}\n- {answer: b, : c}", "line 2, column 15: a key is missing before the colon"),
            ("- {answer: a}\n- answer: b\n  ~: c", "line 3, column 3: a key is missing before the colon"),
            ("- x", "rules[0]: a mapping is needed"),
            ("x", "a mapping is needed"),
            ("- {answer: a, answer: b}", "duplicate"),
        ] {
            let error = Script::parse(yaml).unwrap_err().to_string();
            assert!(error.contains(said), "{yaml}: {error}");
        }
        assert!(Script::parse(&"#".repeat(MAX_SCRIPT + 1)).is_err());
    }

    #[test]
    fn pieces_of_a_text_are_the_text() {
        let text = "  one two\n three é😀 four ";
        for by in [By::Words(1), By::Words(2), By::Bytes(1), By::Bytes(7), By::Bytes(1000)] {
            let pieces = Chunks { by, every: Duration::ZERO }.cut(text);
            assert_eq!(pieces.concat(), text, "{by:?}");
        }
        let words = Chunks { by: By::Words(1), every: Duration::ZERO };
        assert_eq!(words.cut(text), ["  one", " two", "\n three", " é😀", " four", " "]);
        assert!(words.cut("").is_empty());
    }
}
