//! Label and field selectors as strings: grammar and error words of `k8s.io/apimachinery/pkg/{labels,fields}`.

use super::field::FieldError;
use super::meta;

/// A parsed label selector. Matches when every requirement does; the empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

impl Labels {
    /// Parses `a=b,c in (d,e),!f`. The error is the message of the 400 that Kubernetes answers.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: lex(text), at: 0 };
        let mut requirements = parser.selector()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self(requirements))
    }

    /// Matches everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object matches whose label of a given key is `label(key)`.
    pub(crate) fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|r| {
            let value = label(&r.key);
            match (&r.test, value) {
                (Test::In(set), Some(v)) => set.iter().any(|s| s == v),
                (Test::NotIn(set), Some(v)) => !set.iter().any(|s| s == v),
                (Test::Exists, v) => v.is_some(),
                (Test::Absent, v) => v.is_none(),
                (Test::NotIn(_), None) => true,
                (Test::In(_) | Test::Greater(_) | Test::Less(_), None) => false,
                (Test::Greater(n), Some(v)) => v.parse().is_ok_and(|v: i64| v > *n),
                (Test::Less(n), Some(v)) => v.parse().is_ok_and(|v: i64| v < *n),
            }
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    Comma,
    Open,
    Close,
    Not,
    Equal,
    NotEqual,
    Greater,
    Less,
    In,
    NotIn,
    Word,
    Bad,
}

const SYMBOLS: &[u8] = b"=!(),<>";

fn symbol(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" | "=" => Token::Equal,
        ">" => Token::Greater,
        "<" => Token::Less,
        "!=" => Token::NotEqual,
        "(" => Token::Open,
        _ => return None,
    })
}

fn lex(text: &str) -> Vec<(Token, &str)> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.as_bytes().first() else {
            out.push((Token::End, ""));
            return out;
        };
        let (token, length) = if SYMBOLS.contains(first) {
            // The longest operator; "==" before "=".
            match rest.get(..2).and_then(symbol) {
                Some(token) => (token, 2),
                None => (rest.get(..1).and_then(symbol).unwrap_or(Token::Bad), 1),
            }
        } else {
            let end = rest.bytes().position(|c| SYMBOLS.contains(&c) || matches!(c, b' ' | b'\t' | b'\r' | b'\n'));
            let length = end.unwrap_or(rest.len());
            let token = match rest.get(..length) {
                Some("in") => Token::In,
                Some("notin") => Token::NotIn,
                _ => Token::Word,
            };
            (token, length)
        };
        let (word, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        out.push((token, word));
        rest = after;
    }
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    at: usize,
}

impl<'a> Parser<'a> {
    /// The next token where a value may stand: `in` and `notin` are words there.
    fn peek(&self) -> (Token, &'a str) {
        match self.tokens.get(self.at) {
            Some((Token::In | Token::NotIn, word)) => (Token::Word, word),
            Some(token) => *token,
            None => (Token::End, ""),
        }
    }

    fn next(&mut self) -> (Token, &'a str) {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        loop {
            match self.peek() {
                (Token::Word | Token::Not, _) => {
                    out.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
                    match self.next() {
                        (Token::End, _) => return Ok(out),
                        (Token::Comma, _) => match self.peek() {
                            (Token::Word | Token::Not, _) => {}
                            (_, found) => return Err(format!("found '{found}', expected: identifier after ','")),
                        },
                        (_, found) => return Err(format!("found '{found}', expected: ',' or 'end of string'")),
                    }
                }
                (Token::End, _) => return Ok(out),
                (_, found) => return Err(format!("found '{found}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut negated = false;
        let (mut token, mut key) = self.next();
        if token == Token::Not {
            negated = true;
            (token, key) = self.next();
        }
        if token != Token::Word {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let wrong = meta::qualified_name(key);
        if !wrong.is_empty() {
            return Err(FieldError::invalid_str("", key, &wrong.join("; ")).to_string());
        }
        let key = key.to_owned();
        if negated {
            return Ok(Requirement { key, test: Test::Absent });
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(Requirement { key, test: Test::Exists });
        }
        let operator = self.tokens.get(self.at).copied().unwrap_or((Token::End, ""));
        self.at += 1;
        let values = match operator.0 {
            Token::In | Token::NotIn => self.values()?,
            Token::Equal | Token::NotEqual | Token::Greater | Token::Less => vec![self.exact_value()?],
            _ => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", operator.1)),
        };
        let number = matches!(operator.0, Token::Greater | Token::Less);
        let mut errors = Vec::new();
        for (i, value) in values.iter().enumerate() {
            if number && value.parse::<i64>().is_err() {
                let said = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid_str(format!("values[{i}]"), value, said).to_string());
            }
            let wrong = meta::label_value(value);
            if !wrong.is_empty() {
                errors
                    .push(FieldError::invalid_str(format!("values[{i}][{key}]"), value, &wrong.join("; ")).to_string());
            }
        }
        match errors.as_slice() {
            [] => {}
            [one] => return Err(one.clone()),
            many => return Err(format!("[{}]", many.join(", "))),
        }
        let first = || values.first().and_then(|v| v.parse().ok()).unwrap_or_default();
        let test = match operator.0 {
            Token::Greater => Test::Greater(first()),
            Token::Less => Test::Less(first()),
            Token::NotIn | Token::NotEqual => Test::NotIn(values),
            _ => Test::In(values),
        };
        Ok(Requirement { key, test })
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let (token, found) = self.next();
        if token != Token::Open {
            return Err(format!("found '{found}' expected: '('"));
        }
        let mut set = match self.peek() {
            (Token::Word | Token::Comma, _) => self.list()?,
            (Token::Close, _) => vec![String::new()],
            (_, found) => return Err(format!("found '{found}', expected: ',', ')' or identifier")),
        };
        self.next(); // ")": `list` ends only before one
        set.sort_unstable();
        set.dedup();
        Ok(set)
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        let mut set = Vec::new();
        loop {
            match self.next() {
                (Token::Word, word) => {
                    set.push(word.to_owned());
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(set),
                        (_, found) => return Err(format!("found '{found}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if set.is_empty() {
                        set.push(String::new());
                    }
                    match self.peek().0 {
                        Token::Close => {
                            set.push(String::new());
                            return Ok(set);
                        }
                        Token::Comma => {
                            self.next();
                            set.push(String::new());
                        }
                        _ => {}
                    }
                }
                (_, found) => return Err(format!("found '{found}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Token::Word, word) => Ok(word.to_owned()),
            (_, found) => Err(format!("found '{found}', expected: identifier")),
        }
    }
}

/// A parsed field selector: `field=value` and `field!=value`, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<Field>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// `metadata.name`, `spec.nodeName`.
    pub(crate) field: String,
    pub(crate) value: String,
    pub(crate) equal: bool,
}

impl Fields {
    /// Parses `metadata.name=a,status.phase!=Running`; `\` escapes `,`, `=` and itself in values.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut out = Vec::new();
        let mut terms = terms(text);
        terms.sort_unstable();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let Some((field, equal, value)) = split_term(term) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            out.push(Field { field: field.to_owned(), value: unescape(value)?, equal });
        }
        Ok(Self(out))
    }

    /// Matches everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn requirements(&self) -> &[Field] {
        &self.0
    }

    /// The one value that `field` must have, if the selector asks for one: `metadata.name` makes a list a lookup.
    pub(crate) fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|f| f.equal && f.field == field).map(|f| f.value.as_str())
    }

    /// Whether an object matches whose field of a given name is `value(name)`; an absent field is the empty string.
    pub(crate) fn matches(&self, value: impl Fn(&str) -> Option<String>) -> bool {
        self.0.iter().all(|f| (value(&f.field).unwrap_or_default() == f.value) == f.equal)
    }
}

fn terms(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.bytes().enumerate() {
        match c {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                out.extend(text.get(start..i));
                start = i + 1;
            }
            _ => {}
        }
    }
    out.extend(text.get(start..));
    out
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.char_indices().find(|(i, _)| {
        let rest = term.get(*i..).unwrap_or_default();
        rest.starts_with('=') || rest.starts_with("!=")
    })?;
    let (field, rest) = term.split_at_checked(at.0)?;
    Some(match rest.strip_prefix("!=") {
        Some(value) => (field, false, value),
        None => (field, true, rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?),
    })
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => {
                return Err(format!("invalid field selector: unescaped character in value: {}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(text: &str) -> impl Iterator<Item = (String, Option<String>)> {
        text.lines().map(|line| serde_json::from_str(line).unwrap())
    }

    /// What a real API server (1.34.2) said to each selector, recorded.
    #[test]
    fn selectors_are_refused_in_the_words_of_a_real_api_server() {
        for (text, said) in records(include_str!("../../testdata/label_selectors.jsonl")) {
            assert_eq!(Labels::parse(&text).err(), said, "{text}");
        }
        for (text, said) in records(include_str!("../../testdata/field_selectors.jsonl")) {
            assert_eq!(Fields::parse(&text).err(), said, "{text}");
        }
    }

    #[test]
    fn label_selectors_match_as_documented() {
        let label = |key: &str| match key {
            "app" => Some("web"),
            "tier" => Some(""),
            "n" => Some("5"),
            _ => None,
        };
        for (text, matches) in [
            ("", true),
            ("app=web", true),
            ("app==web,n=5", true),
            ("app!=web", false),
            ("none!=web", true),
            ("app in (db, web)", true),
            ("app notin (db)", true),
            ("none notin (db)", true),
            ("none in (db)", false),
            ("app", true),
            ("!app", false),
            ("!none", true),
            ("tier=", true),
            ("tier in ()", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app>1", false),
        ] {
            assert_eq!(Labels::parse(text).unwrap().matches(label), matches, "{text}");
        }
    }

    #[test]
    fn field_selectors_match_and_name_the_one_object_they_mean() {
        let selector = Fields::parse(r"metadata.name=a\,b,status.phase!=Running").unwrap();
        assert_eq!(selector.exact("metadata.name"), Some("a,b"));
        assert_eq!(selector.exact("status.phase"), None);
        let object = |phase: &'static str| {
            move |field: &str| match field {
                "metadata.name" => Some("a,b".to_owned()),
                "status.phase" => Some(phase.to_owned()),
                _ => None,
            }
        };
        assert!(selector.matches(object("Pending")) && !selector.matches(object("Running")));
        assert!(Fields::parse("x=").unwrap().matches(|_| None), "an absent field is empty");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_selector_panic(text in ".{0,80}", code in "[a-z!=(), <>innot]{0,40}") {
            for text in [text, code] {
                let _ = Labels::parse(&text).map(|s| s.matches(|_| Some("x")));
                let _ = Fields::parse(&text).map(|s| s.matches(|_| None));
            }
        }
    }
}
