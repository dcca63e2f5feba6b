//! Strings: the standard functions, cel-go's `ext/strings.go`, Kubernetes' `regex.go`, and conversions.

use std::fmt::Write;

use regex::Regex;

use super::Failed;
use super::eval::TEXT_MAX;
use super::time;
use super::types::Type;
use super::value::{Result, Value, error, no_overload};
use crate::object::field;
use crate::object::schema::pattern;

/// Go's syntax, within bounds.
pub(super) fn regex(expression: &str) -> std::result::Result<Regex, String> {
    pattern::compile(expression)
}

/// The expression that the checker has compiled, or this one.
fn with<T>(pattern: &str, known: Option<&Regex>, then: impl FnOnce(&Regex) -> T) -> Result<T> {
    match known {
        Some(regex) => Ok(then(regex)),
        None => regex(pattern).map(|it| then(&it)).map_err(Failed::Error),
    }
}

pub(super) fn matches<'a>(text: &str, pattern: &str, known: Option<&Regex>) -> Result<Value<'a>> {
    with(pattern, known, |regex| Value::Bool(regex.is_match(text)))
}

/// A method on a string; `None` when there is none of that name.
pub(super) fn method<'a>(
    on: &str,
    function: &str,
    known: Option<&Regex>,
    args: &[Value<'a>],
) -> Result<Option<Value<'a>>> {
    let text = |at: usize| match args.get(at) {
        Some(Value::Text(text)) => Ok(text.as_str()),
        _ => no_overload(),
    };
    let int = |at: usize| match args.get(at) {
        Some(Value::Int(value)) => Ok(*value),
        _ => no_overload(),
    };
    let count = args.len() - 1;
    Ok(Some(match (function, count) {
        ("contains", 1) => Value::Bool(on.contains(text(1)?)),
        ("startsWith", 1) => Value::Bool(on.starts_with(text(1)?)),
        ("endsWith", 1) => Value::Bool(on.ends_with(text(1)?)),
        ("matches", 1) => matches(on, text(1)?, known)?,
        ("size", 0) => Value::Int(on.chars().count() as i64),
        ("charAt", 1) => Value::text(slice(on, int(1)?, None, true)?),
        ("substring", 1) => Value::text(slice(on, int(1)?, None, false)?),
        ("substring", 2) => Value::text(slice(on, int(1)?, Some(int(2)?), false)?),
        ("indexOf", 1 | 2) => Value::Int(index_of(on, text(1)?, if count == 2 { int(2)? } else { 0 })?),
        ("lastIndexOf", 1 | 2) => {
            Value::Int(last_index_of(on, text(1)?, if count == 2 { Some(int(2)?) } else { None })?)
        }
        ("lowerAscii", 0) => Value::text(on.to_ascii_lowercase()),
        ("upperAscii", 0) => Value::text(on.to_ascii_uppercase()),
        ("trim", 0) => Value::text(on.trim()),
        ("replace", 2 | 3) => Value::text(replace(on, text(1)?, text(2)?, if count == 3 { int(3)? } else { -1 })?),
        ("split", 1 | 2) => {
            let parts = split(on, text(1)?, if count == 2 { int(2)? } else { -1 });
            Value::list(parts.into_iter().map(Value::text).collect())
        }
        ("find", 1) => {
            Value::text(with(text(1)?, known, |regex| regex.find(on).map_or("", |it| it.as_str()).to_owned())?)
        }
        ("findAll", 1 | 2) => {
            let most = if count == 2 { int(2)? } else { -1 };
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let found = |regex: &Regex| regex.find_iter(on).take(most).map(|it| Value::text(it.as_str())).collect();
            Value::list(with(text(1)?, known, found)?)
        }
        ("format", 1) => match args.get(1) {
            Some(Value::List(list)) => Value::text(format(on, &list.all()?)?),
            _ => return no_overload(),
        },
        _ => return Ok(None),
    }))
}

/// Characters of a text; `one`: the one at `start`.
fn slice(text: &str, start: i64, end: Option<i64>, one: bool) -> Result<String> {
    let length = text.chars().count() as i64;
    if let Some(end) = end.filter(|end| start > *end) {
        return error(format!("invalid substring range. start: {start}, end: {end}"));
    }
    for at in [Some(start), end].into_iter().flatten() {
        if at < 0 || at > length {
            return error(format!("index out of range: {at}"));
        }
    }
    let taken = if one { 1 } else { end.unwrap_or(length) - start };
    Ok(text.chars().skip(start as usize).take(taken as usize).collect())
}

fn index_of(text: &str, part: &str, from: i64) -> Result<i64> {
    if part.is_empty() {
        return Ok(from);
    }
    if from < 0 {
        return error(format!("index out of range: {from}"));
    }
    let start = text.char_indices().nth(from as usize).map(|(at, _)| at);
    let found = start.and_then(|start| text.get(start..)?.find(part).map(|at| start + at));
    Ok(found.and_then(|at| text.get(..at)).map_or(-1, |before| before.chars().count() as i64))
}

fn last_index_of(text: &str, part: &str, from: Option<i64>) -> Result<i64> {
    let length = text.chars().count() as i64;
    let from = match from {
        None if part.is_empty() => return Ok(length),
        None => length,
        Some(from) if part.is_empty() => return Ok(from),
        Some(from) if from < 0 => return error(format!("index out of range: {from}")),
        Some(from) if from >= length => return Ok(-1),
        Some(from) => from,
    };
    let end = text.char_indices().nth(from as usize).map_or(text.len(), |(at, _)| at);
    let end = end.saturating_add(part.len()).min(text.len());
    let mut end = end;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let found = text.get(..end).and_then(|it| it.rfind(part));
    Ok(found.and_then(|at| text.get(..at)).map_or(-1, |before| before.chars().count() as i64))
}

/// Go's `strings.Replace`.
fn replace(text: &str, from: &str, to: &str, most: i64) -> Result<String> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let times = text.matches(from).take(most).count();
    if text.len().saturating_add(times.saturating_mul(to.len())) > TEXT_MAX {
        return Err(Failed::Cost);
    }
    Ok(text.replacen(from, to, most))
}

/// Go's `strings.SplitN`.
fn split(text: &str, by: &str, most: i64) -> Vec<String> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if most == 0 {
        return Vec::new();
    }
    if !by.is_empty() {
        return text.splitn(most, by).map(str::to_owned).collect();
    }
    let mut parts: Vec<String> = text.chars().take(most - 1).map(String::from).collect();
    let rest: String = text.chars().skip(parts.len()).collect();
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

pub(super) fn join<'a>(items: &[Value<'a>], by: &str) -> Result<Value<'a>> {
    let mut out = String::new();
    for (at, item) in items.iter().enumerate() {
        let Value::Text(item) = item else { return error("join: invalid input") };
        if at > 0 {
            out.push_str(by);
        }
        out.push_str(item.as_str());
        if out.len() > TEXT_MAX {
            return Err(Failed::Cost);
        }
    }
    Ok(Value::text(out))
}

pub(super) fn quote<'a>(text: &str) -> Result<Value<'a>> {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match field::escape(c) {
            Some(escape) => out.push_str(escape),
            None => out.push(c),
        }
    }
    out.push('"');
    Ok(Value::text(out))
}

/// A value as errors show it.
pub(super) fn plain(value: &Value<'_>) -> String {
    match value {
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Double(value) => field::float(*value),
        Value::Text(text) => text.as_str().to_owned(),
        other => other.type_of().to_string(),
    }
}

/// A type as errors of an evaluation name it.
pub(super) fn type_name(of: &Type) -> String {
    match of {
        Type::List(_) => "list".to_owned(),
        Type::Map(_) | Type::Object(_) => "map".to_owned(),
        Type::Optional(_) => "optional_type".to_owned(),
        Type::Kind(_) => "type".to_owned(),
        Type::Null => "null_type".to_owned(),
        Type::Duration => "google.protobuf.Duration".to_owned(),
        Type::Timestamp => "google.protobuf.Timestamp".to_owned(),
        other => other.to_string(),
    }
}

/// What a value is in Go.
pub(super) fn go_type(value: &Value<'_>) -> &'static str {
    match value {
        Value::Null => "types.Null",
        Value::Bool(_) => "types.Bool",
        Value::Int(_) => "types.Int",
        Value::Uint(_) => "types.Uint",
        Value::Double(_) => "types.Double",
        Value::Text(_) => "types.String",
        Value::Bytes(_) => "types.Bytes",
        Value::Duration(_) => "types.Duration",
        Value::Timestamp(_) => "types.Timestamp",
        Value::Optional(_) => "*types.Optional",
        _ => "ref.Val",
    }
}

/// `int(x)`, `string(x)` and so on.
pub(super) fn convert<'a>(to: &str, value: Value<'a>) -> Result<Value<'a>> {
    let declared = match to {
        "bool" => matches!(value, Value::Bool(_) | Value::Text(_)),
        "bytes" => matches!(value, Value::Bytes(_) | Value::Text(_)),
        "double" => matches!(value, Value::Double(_) | Value::Int(_) | Value::Text(_) | Value::Uint(_)),
        "duration" => matches!(value, Value::Duration(_) | Value::Int(_) | Value::Text(_)),
        "timestamp" => matches!(value, Value::Timestamp(_) | Value::Int(_) | Value::Text(_)),
        "uint" => matches!(value, Value::Double(_) | Value::Int(_) | Value::Text(_) | Value::Uint(_)),
        _ => !matches!(
            value,
            Value::Null | Value::List(_) | Value::Map(_) | Value::Object(..) | Value::Optional(_) | Value::Kind(_)
        ),
    };
    if !declared {
        return no_overload();
    }
    let wrong = |value: &Value<'a>| {
        let (from, to) = (
            value.type_of(),
            match to {
                "duration" => "google.protobuf.Duration",
                "timestamp" => "google.protobuf.Timestamp",
                other => other,
            },
        );
        error(format!("type conversion error from '{from}' to '{to}'"))
    };
    if let Value::Text(text) = &value {
        let text = text.as_str();
        let made = match to {
            "string" => return Ok(value),
            "int" => text.parse().ok().map(Value::Int),
            "uint" => text.parse().ok().map(Value::Uint),
            "double" => text.parse().ok().map(Value::Double),
            "bool" => match text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(Value::Bool(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(Value::Bool(false)),
                _ => None,
            },
            "bytes" => Some(Value::Bytes(text.as_bytes().into())),
            "duration" => time::duration(text).ok().map(Value::Duration),
            _ => time::timestamp(text).ok().map(Value::Timestamp),
        };
        return made.map_or_else(|| wrong(&value), Ok);
    }
    let range = |said: &str| error(format!("{said} overflow"));
    Ok(match (to, &value) {
        ("int", Value::Int(_))
        | ("uint", Value::Uint(_))
        | ("double", Value::Double(_))
        | ("bool", Value::Bool(_))
        | ("bytes", Value::Bytes(_))
        | ("duration", Value::Duration(_))
        | ("timestamp", Value::Timestamp(_)) => value,
        ("int", Value::Uint(it)) => i64::try_from(*it).map_or_else(|_| range("integer"), |it| Ok(Value::Int(it)))?,
        ("int", Value::Double(it)) if it.abs() < 9_223_372_036_854_775_808.0 => Value::Int(*it as i64),
        ("int", Value::Double(_)) => return range("integer"),
        ("int", Value::Duration(nanos)) => Value::Int(*nanos),
        ("int", Value::Timestamp(at)) => Value::Int(at.as_second()),
        ("uint", Value::Int(it)) => {
            u64::try_from(*it).map_or_else(|_| range("unsigned integer"), |it| Ok(Value::Uint(it)))?
        }
        ("uint", Value::Double(it)) if *it >= 0.0 && *it < 18_446_744_073_709_551_616.0 => Value::Uint(*it as u64),
        ("uint", Value::Double(_)) => return range("unsigned integer"),
        ("double", Value::Int(it)) => Value::Double(*it as f64),
        ("double", Value::Uint(it)) => Value::Double(*it as f64),
        ("timestamp", Value::Int(seconds)) => match jiff::Timestamp::from_second(*seconds) {
            Ok(at) => Value::Timestamp(at),
            Err(_) => return range("timestamp"),
        },
        ("string", Value::Bytes(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::text(text),
            Err(_) => return error("invalid UTF-8 in bytes, cannot convert to string"),
        },
        ("string", Value::Duration(nanos)) => Value::text(time::seconds(*nanos)),
        ("string", Value::Timestamp(at)) => Value::text(at.to_string()),
        ("string", Value::Ip(ip)) => Value::text(ip.to_string()),
        ("string", Value::Cidr(cidr)) => Value::text(cidr.to_string()),
        ("string", Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_)) => Value::text(plain(&value)),
        _ => return wrong(&value),
    })
}

/// What a verb is for.
pub(super) fn usage(verb: char) -> &'static str {
    match verb {
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "only integers and bools can be formatted as binary",
        'o' => "octal clause can only be used on integers",
        'x' | 'X' => "only integers, byte buffers, and strings can be formatted as hex",
        _ => PRINTABLE,
    }
}

const PRINTABLE: &str = "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps";

/// A part of a text for `format`.
pub(super) enum Clause<'a> {
    Text(&'a str),
    /// A verb and its precision.
    Verb(char, Option<usize>),
}

/// The parts of a text, the last of which may be what is wrong with it.
pub(super) fn clauses(text: &str) -> impl Iterator<Item = std::result::Result<Clause<'_>, String>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = match rest.find('%') {
            Some(0) => {
                let after = rest.get(1..).unwrap_or_default();
                if let Some(next) = after.strip_prefix('%') {
                    rest = next;
                    return Some(Ok(Clause::Text("%")));
                }
                let verb = verb(after);
                rest = verb.as_ref().map(|it| it.2).unwrap_or_default();
                return Some(verb.map(|(verb, precision, _)| Clause::Verb(verb, precision)));
            }
            Some(at) => at,
            None if rest.is_empty() => return None,
            None => rest.len(),
        };
        let (before, next) = rest.split_at(end);
        rest = next;
        Some(Ok(Clause::Text(before)))
    })
}

/// A verb, its precision, and what follows it.
fn verb(text: &str) -> std::result::Result<(char, Option<usize>, &str), String> {
    const PRECISION_MAX: usize = 100;
    let (precision, rest) = match text.strip_prefix('.') {
        None => (None, text),
        Some(after) => {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let (digits, rest) = after.split_at(end);
            match digits.parse() {
                Ok(wanted) if wanted <= PRECISION_MAX => (Some(wanted), rest),
                _ => return Err("could not parse formatting clause: error while parsing precision".to_owned()),
            }
        }
    };
    let mut chars = rest.chars();
    match chars.next() {
        Some(verb) if "sdfebxXo".contains(verb) => Ok((verb, precision, chars.as_str())),
        Some(verb) => Err(format!("could not parse formatting clause: unrecognized formatting clause \"{verb}\"")),
        None => Err("could not parse formatting clause: unexpected end of string".to_owned()),
    }
}

/// `'%s: %d'.format([...])`.
fn format(text: &str, args: &[Value<'_>]) -> Result<String> {
    let mut out = String::new();
    let mut next = 0;
    for clause in clauses(text) {
        match clause.map_err(Failed::Error)? {
            Clause::Text(text) => push(&mut out, text)?,
            Clause::Verb(verb, precision) => {
                let Some(arg) = args.get(next) else { return error(format!("index {next} out of range")) };
                next += 1;
                verb_of(verb, precision, arg, &mut out)?;
            }
        }
    }
    push(&mut out, "").map(|()| out)
}

fn verb_of(verb: char, precision: Option<usize>, arg: &Value<'_>, out: &mut String) -> Result<()> {
    let wrong = || error(format!("error during formatting: {}, was given {}", usage(verb), type_name(&arg.type_of())));
    let places = precision.unwrap_or(6);
    let _ = match (verb, arg) {
        ('s', Value::Text(text)) => return push(out, text.as_str()),
        ('s', arg) => return shown(arg, out),
        ('d', Value::Int(_) | Value::Uint(_)) => write!(out, "{}", plain(arg)),
        ('f', arg) => match decimal(arg) {
            Some(it) => write!(out, "{}", grouped(it, places)),
            None => return wrong(),
        },
        ('e', arg) => match decimal(arg) {
            // Upstream counts no other places.
            Some(it) => write!(out, "{}", scientific(it, 6)),
            None => return wrong(),
        },
        ('b', Value::Bool(it)) => write!(out, "{}", u8::from(*it)),
        ('b', Value::Int(it)) => write!(out, "{}{:b}", sign(*it), it.unsigned_abs()),
        ('b', Value::Uint(it)) => write!(out, "{it:b}"),
        ('o', Value::Int(it)) => write!(out, "{}{:o}", sign(*it), it.unsigned_abs()),
        ('o', Value::Uint(it)) => write!(out, "{it:o}"),
        ('x', Value::Int(it)) => write!(out, "{}{:x}", sign(*it), it.unsigned_abs()),
        ('X', Value::Int(it)) => write!(out, "{}{:X}", sign(*it), it.unsigned_abs()),
        ('x', Value::Uint(it)) => write!(out, "{it:x}"),
        ('X', Value::Uint(it)) => write!(out, "{it:X}"),
        ('x' | 'X', Value::Text(text)) => return hex(text.as_str().as_bytes(), verb == 'X', out),
        ('x' | 'X', Value::Bytes(bytes)) => return hex(bytes, verb == 'X', out),
        _ => return wrong(),
    };
    Ok(())
}

/// What `%f` and `%e` take: a number, or the name of what is none.
fn decimal(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Double(it) => Some(*it),
        Value::Text(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// What is no finite number, as English writes it.
fn endless(value: f64) -> Option<String> {
    match value {
        it if it.is_nan() => Some("NaN".to_owned()),
        f64::INFINITY => Some("∞".to_owned()),
        f64::NEG_INFINITY => Some("-∞".to_owned()),
        _ => None,
    }
}

/// With a comma between thousands: upstream writes as English does.
fn grouped(value: f64, places: usize) -> String {
    if let Some(name) = endless(value) {
        return name;
    }
    let text = format!("{value:.places$}");
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |it| ("-", it));
    let whole = digits.find('.').unwrap_or(digits.len());
    let mut out = sign.to_owned();
    for (at, c) in digits.char_indices() {
        if at > 0 && at < whole && (whole - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1.5×10⁰³`.
fn scientific(value: f64, places: usize) -> String {
    if let Some(name) = endless(value) {
        return name;
    }
    let text = format!("{value:.places$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |it| ("\u{207b}", it));
    let raised = |c: char| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(c.to_digit(10).unwrap_or_default() as usize).unwrap_or(c);
    let exponent: String = format!("{exponent:0>2}").chars().map(raised).collect();
    format!("{digits}\u{d7}10{sign}{exponent}")
}

fn sign(value: i64) -> &'static str {
    if value < 0 { "-" } else { "" }
}

fn push(out: &mut String, text: &str) -> Result<()> {
    out.push_str(text);
    if out.len() > TEXT_MAX { Err(Failed::Cost) } else { Ok(()) }
}

fn hex(bytes: &[u8], upper: bool, out: &mut String) -> Result<()> {
    if bytes.len() > TEXT_MAX / 2 {
        return Err(Failed::Cost);
    }
    for byte in bytes {
        let _ = if upper { write!(out, "{byte:02X}") } else { write!(out, "{byte:02x}") };
    }
    push(out, "")
}

/// `%s` of what is no string.
fn shown(value: &Value<'_>, out: &mut String) -> Result<()> {
    match value {
        Value::Null => push(out, "null"),
        Value::Bytes(bytes) => push(out, &String::from_utf8_lossy(bytes)),
        Value::Duration(nanos) => push(out, &time::seconds(*nanos)),
        Value::Timestamp(at) => push(out, &at.to_string()),
        Value::Kind(Type::Object(_) | Type::Map(_)) => push(out, "map"),
        Value::Kind(Type::List(_)) => push(out, "list"),
        Value::Kind(of) => push(out, &of.to_string()),
        Value::List(list) => {
            push(out, "[")?;
            for at in 0..list.len() {
                if at > 0 {
                    push(out, ", ")?;
                }
                if let Some(item) = list.get(at)? {
                    within(&item, out)?;
                }
            }
            push(out, "]")
        }
        Value::Map(_) | Value::Object(..) => {
            let mut entries: Vec<(String, Value<'_>)> =
                value.entries()?.into_iter().map(|(key, value)| (key_text(&key), value)).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            push(out, "{")?;
            for (at, (key, value)) in entries.iter().enumerate() {
                push(out, if at > 0 { ", " } else { "" })?;
                push(out, key)?;
                push(out, ":")?;
                within(value, out)?;
            }
            push(out, "}")
        }
        Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Text(_) => push(out, &plain(value)),
        other => error(format!("error during formatting: {PRINTABLE}, was given {}", other.type_of())),
    }
}

fn key_text(key: &Value<'_>) -> String {
    match key {
        Value::Text(text) => format!("\"{}\"", text.as_str()),
        other => plain(other),
    }
}

/// A part of a list or a map: strings in quotes.
fn within(value: &Value<'_>, out: &mut String) -> Result<()> {
    match value {
        Value::Text(text) => push(out, &format!("\"{}\"", text.as_str())),
        Value::Double(it) => push(out, &format!("{it:.6}")),
        Value::Bytes(bytes) => push(out, &format!("b\"{}\"", String::from_utf8_lossy(bytes))),
        Value::Duration(nanos) => push(out, &format!("duration(\"{}\")", time::seconds(*nanos))),
        Value::Timestamp(at) => push(out, &format!("timestamp(\"{at}\")")),
        other => shown(other, out),
    }
}
