//! JSONPath as `k8s.io/client-go/util/jsonpath` reads it, in what printer columns and kubectl use: fields, quoted names,
//! indices, slices, wildcards, recursive descent, unions and filters.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

/// More intermediate results than this are given up: a path like `..a..a` grows without bound.
const RESULTS_MAX: usize = 10_000;
const LENGTH_MAX: usize = 4096;

/// A parsed path, such as `.status.conditions[?(@.type=="Ready")].status`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    Recursive,
    /// Start, end and step; `single` for one index.
    Slice {
        start: Option<i64>,
        end: Option<i64>,
        step: Option<i64>,
        single: bool,
    },
    Union(Vec<Vec<Step>>),
    Filter {
        left: Vec<Step>,
        test: Option<(String, Vec<Step>)>,
    },
    Literal(Value),
}

type Values<'a> = Vec<Cow<'a, Value>>;

impl JsonPath {
    /// The error says what is wrong with the path.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LENGTH_MAX {
            return Err("path is too long".to_owned());
        }
        steps(text).map(Self)
    }

    /// The first value at the path; `None` where there is nothing or the path does not fit the object.
    pub(crate) fn first(&self, object: &Value) -> Option<Value> {
        let found = walk(&self.0, vec![Cow::Borrowed(object)]).ok()?;
        found.into_iter().next().map(Cow::into_owned)
    }
}

fn is_terminator(c: char) -> bool {
    c.is_whitespace() || matches!(c, '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}

fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("[?(") {
            let (filter, after) = filter(after)?;
            out.push(filter);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("..") {
            if out.last() == Some(&Step::Recursive) {
                return Err("invalid multiple recursive descent".to_owned());
            }
            out.push(Step::Recursive);
            rest = after;
            if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '*') {
                rest = name(rest, &mut out);
            }
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = after.find(']').ok_or("unterminated array")?;
            let (inside, after) = after.split_at(end);
            out.extend(brackets(inside)?);
            rest = after.strip_prefix(']').unwrap_or_default();
        } else if let Some(after) = rest.strip_prefix('.') {
            rest = name(after, &mut out);
        } else if matches!(c, ' ' | '@' | '$') {
            rest = rest.strip_prefix(c).unwrap_or_default();
        } else if matches!(c, '"' | '\'') {
            let (text, after) = quoted(rest.strip_prefix(c).unwrap_or_default(), c)?;
            out.push(Step::Literal(text.into()));
            rest = after;
        } else {
            let end = rest.find(is_terminator_of_word).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            out.push(Step::Literal(literal(word)?));
            rest = after;
        }
    }
    Ok(out)
}

/// Numbers have dots in them.
fn is_terminator_of_word(c: char) -> bool {
    c != '.' && is_terminator(c)
}

fn literal(word: &str) -> Result<Value, String> {
    match word {
        "true" => return Ok(true.into()),
        "false" => return Ok(false.into()),
        _ => {}
    }
    if let Ok(i) = word.parse::<i64>() {
        return Ok(i.into());
    }
    match word.parse::<f64>() {
        Ok(f) if f.is_finite() => Ok(f.into()),
        _ => Err(format!("unrecognized identifier {word}")),
    }
}

/// A field's name up to an unescaped terminator.
fn name<'a>(text: &'a str, out: &mut Vec<Step>) -> &'a str {
    let (mut name, mut end) = (String::new(), text.len());
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            c if is_terminator(c) => {
                end = at;
                break;
            }
            c => name.push(c),
        }
    }
    out.push(if name == "*" { Step::Wildcard } else { Step::Field(name) });
    text.get(end..).unwrap_or_default()
}

fn quoted(text: &str, quote: char) -> Result<(String, &str), String> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            c if c == quote => return Ok((out, text.get(at + c.len_utf8()..).unwrap_or_default())),
            c => out.push(c),
        }
    }
    Err("unterminated quoted string".to_owned())
}

fn brackets(inside: &str) -> Result<Vec<Step>, String> {
    if inside == "*" {
        return Ok(vec![Step::Slice { start: None, end: None, step: None, single: false }]);
    }
    if inside.contains(',') {
        let parts: Result<Vec<Vec<Step>>, String> = inside.split(',').map(|part| brackets(part.trim())).collect();
        return Ok(vec![Step::Union(parts?)]);
    }
    if let Some(key) = inside.strip_prefix('\'').and_then(|k| k.strip_suffix('\'')) {
        let mut out = Vec::new();
        // Dots in the quotes are escaped: `['a\.b']`.
        let rest = name(key, &mut out);
        out.extend(steps(rest)?);
        return Ok(out);
    }
    let parts: Vec<&str> = inside.split(':').collect();
    let number = |part: Option<&&str>| match part {
        None | Some(&"") => Ok(None),
        Some(text) => text.parse::<i64>().map(Some).map_err(|_| format!("array index {text} is not a number")),
    };
    if parts.len() > 3 || inside.is_empty() {
        return Err(format!("invalid array index {inside}"));
    }
    let (start, end, step) = (number(parts.first())?, number(parts.get(1))?, number(parts.get(2))?);
    Ok(vec![Step::Slice { start, end, step, single: parts.len() == 1 }])
}

fn filter(text: &str) -> Result<(Step, &str), String> {
    let (mut quote, mut end) = (None, None);
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(q)) if c == q && before != '\\' => quote = None,
            (')', None) => {
                end = Some(at);
                break;
            }
            _ => {}
        }
        before = c;
    }
    let (inside, after) = text.split_at(end.ok_or("unterminated filter")?);
    let after = after.strip_prefix(")]").ok_or("unclosed array expect ]")?;
    let is_operator = |c: char| matches!(c, '!' | '<' | '>' | '=');
    let split = inside.find(is_operator).filter(|at| *at > 0).map(|at| inside.split_at(at)).map(|(left, rest)| {
        let (operator, right) = rest.split_at(rest.find(|c| !is_operator(c)).unwrap_or(rest.len()));
        (left, operator, right)
    });
    let filter = match split.filter(|(_, _, right)| !right.is_empty()) {
        None => Step::Filter { left: steps(inside)?, test: None },
        Some((left, operator, right)) => {
            if !matches!(operator, "==" | "!=" | "<" | "<=" | ">" | ">=") {
                return Err(format!("unrecognized filter operator {operator}"));
            }
            Step::Filter { left: steps(left)?, test: Some((operator.to_owned(), steps(right)?)) }
        }
    };
    Ok((filter, after))
}

fn walk<'a>(steps: &[Step], mut values: Values<'a>) -> Result<Values<'a>, ()> {
    for step in steps {
        values = apply(step, values)?;
        if values.len() > RESULTS_MAX {
            return Err(());
        }
    }
    Ok(values)
}

fn children(value: Cow<'_, Value>) -> Vec<Cow<'_, Value>> {
    match value {
        Cow::Borrowed(Value::Object(map)) => map.values().map(Cow::Borrowed).collect(),
        Cow::Borrowed(Value::Array(items)) => items.iter().map(Cow::Borrowed).collect(),
        Cow::Owned(Value::Object(map)) => map.into_iter().map(|(_, value)| Cow::Owned(value)).collect(),
        Cow::Owned(Value::Array(items)) => items.into_iter().map(Cow::Owned).collect(),
        _ => Vec::new(),
    }
}

fn apply<'a>(step: &Step, values: Values<'a>) -> Result<Values<'a>, ()> {
    match step {
        Step::Field(name) => Ok(values.into_iter().filter_map(|value| get(value, name)).collect()),
        Step::Wildcard => Ok(values.into_iter().flat_map(children).collect()),
        Step::Recursive => {
            let mut out = Vec::new();
            for value in values {
                descend(value, &mut out)?;
            }
            Ok(out)
        }
        Step::Literal(value) => Ok(values.iter().map(|_| Cow::Owned(value.clone())).collect()),
        Step::Union(parts) => {
            let mut out = Vec::new();
            for part in parts {
                out.extend(walk(part, values.clone())?);
            }
            Ok(out)
        }
        Step::Slice { start, end, step, single } => {
            let mut out = Vec::new();
            for value in values.into_iter().filter(|v| !v.is_null()) {
                if !value.is_array() {
                    return Err(());
                }
                let items = children(value);
                out.extend(slice(items, *start, *end, *step, *single)?);
            }
            Ok(out)
        }
        Step::Filter { left, test } => {
            let mut out = Vec::new();
            for value in values {
                if !value.is_array() {
                    return Err(());
                }
                for item in children(value) {
                    if passes(left, test.as_ref(), &item)? {
                        out.push(item);
                    }
                }
            }
            Ok(out)
        }
    }
}

fn get<'a>(value: Cow<'a, Value>, name: &str) -> Option<Cow<'a, Value>> {
    match value {
        Cow::Borrowed(value) => value.as_object()?.get(name).map(Cow::Borrowed),
        Cow::Owned(mut value) => value.as_object_mut()?.get_mut(name).map(|v| Cow::Owned(v.take())),
    }
}

fn descend<'a>(value: Cow<'a, Value>, out: &mut Values<'a>) -> Result<(), ()> {
    let below = children(value.clone());
    if below.is_empty() {
        return Ok(());
    }
    if out.len() > RESULTS_MAX {
        return Err(());
    }
    out.push(value);
    below.into_iter().try_for_each(|child| descend(child, out))
}

fn slice<'a>(
    items: Values<'a>,
    start: Option<i64>,
    end: Option<i64>,
    step: Option<i64>,
    single: bool,
) -> Result<Values<'a>, ()> {
    let length = i64::try_from(items.len()).map_err(|_| ())?;
    let from = start.unwrap_or(0);
    let from = if from < 0 { from + length } else { from };
    let to = match (single, end) {
        // One past a negative index from the end.
        (true, _) => {
            let to = start.unwrap_or(0) + 1;
            if to <= 0 { to + length } else { to }
        }
        (false, None) => length,
        (false, Some(to)) if to < 0 => to + length,
        (false, Some(to)) => to,
    };
    if from == to {
        return Ok(Vec::new());
    }
    let step = usize::try_from(step.unwrap_or(1)).ok().filter(|s| *s > 0).ok_or(())?;
    if from < 0 || from >= length || to < 0 || to > length || from > to {
        return Err(());
    }
    let (skip, take) = (usize::try_from(from).map_err(|_| ())?, usize::try_from(to - from).map_err(|_| ())?);
    Ok(items.into_iter().skip(skip).take(take).step_by(step).collect())
}

fn passes(left: &[Step], test: Option<&(String, Vec<Step>)>, item: &Value) -> Result<bool, ()> {
    let found = walk(left, vec![Cow::Borrowed(item)]);
    let Some((operator, right)) = test else { return Ok(found.is_ok_and(|f| !f.is_empty())) };
    let (left, right) = (found?, walk(right, vec![Cow::Borrowed(item)])?);
    let (left, right) = match (left.as_slice(), right.as_slice()) {
        ([left], [right]) => (left, right),
        ([], _) | (_, []) => return Ok(false),
        _ => return Err(()),
    };
    let order = match (left.as_ref(), right.as_ref()) {
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
        (Value::Bool(a), Value::Bool(b)) if matches!(operator.as_str(), "==" | "!=") => a.cmp(b),
        _ => return Err(()),
    };
    Ok(match operator.as_str() {
        "==" => order == Ordering::Equal,
        "!=" => order != Ordering::Equal,
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    })
}
