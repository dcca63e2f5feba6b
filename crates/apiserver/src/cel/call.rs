//! What functions and operators do. The checker has looked at the types, but for those that are dynamic.

use std::cmp::Ordering;
use std::sync::Arc;

use indexmap::IndexMap;
use regex::Regex;

use super::Failed;
use super::eval::Run;
use super::value::{Key, List, Map, Result, Text, Value, error, no_overload};
use super::{formats, lists, net, semver, text, time};
use crate::object::quantity::Quantity;

/// A call with its target first among the arguments.
pub(super) fn call<'a>(
    run: &mut Run<'a>,
    function: &str,
    member: bool,
    regex: Option<&Regex>,
    args: &[Value<'a>],
) -> Result<Value<'a>> {
    match dispatch(run, function, member, regex, args) {
        Err(Failed::Error(said)) if said == "no such overload" => error(match function {
            "contains" | "containsIP" | "endsWith" | "find" | "findAll" | "matches" | "startsWith" => said,
            "size" => format!("{said}: size"),
            name if name.starts_with(char::is_alphabetic) => {
                let shown: Vec<String> = args.iter().map(|it| text::type_name(&it.type_of())).collect();
                format!("{said}: {name}({})", shown.join(", "))
            }
            _ => said,
        }),
        other => other,
    }
}

fn dispatch<'a>(
    run: &mut Run<'a>,
    function: &str,
    member: bool,
    regex: Option<&Regex>,
    args: &[Value<'a>],
) -> Result<Value<'a>> {
    if let Some(value) = operator(run, function, args)? {
        return Ok(value);
    }
    if let [first, ..] = args {
        match (first, member) {
            (Value::Text(it), true) => {
                if let Some(value) = text::method(it.as_str(), function, regex, args)? {
                    return Ok(value);
                }
            }
            (Value::List(list), true) => {
                if let Some(value) = lists::method(run, list, function, args)? {
                    return Ok(value);
                }
            }
            (Value::Timestamp(_) | Value::Duration(_), true) => return time::method(first, function, args.get(1)),
            (Value::Optional(inner), true) => return optional(inner.clone(), function, args.get(1)),
            (_, true) if function == "orValue" => return Ok(first.clone()),
            (Value::Quantity(it), _) => {
                if let Some(value) = quantity(*it, function, args.get(1))? {
                    return Ok(value);
                }
            }
            (Value::Semver(it), true) => return semver::method(it, function, args.get(1)),
            (Value::Url(it), true) => return net::url_method(it, function),
            (Value::Ip(_) | Value::Cidr(_), true) => return net::method(first, function, args.get(1)),
            (Value::Authz(it), true) => return it.method(function, args),
            (Value::Format(it), true) if function == "validate" => {
                let Some(Value::Text(text)) = args.get(1) else { return no_overload() };
                let said = formats::validate(it, text.as_str());
                let wrong = (!said.is_empty()).then(|| Value::list(said.into_iter().map(Value::text).collect()));
                return Ok(Value::optional(wrong));
            }
            _ => {}
        }
    }
    global(run, function, regex, args)
}

fn operator<'a>(run: &mut Run<'a>, function: &str, args: &[Value<'a>]) -> Result<Option<Value<'a>>> {
    let (first, second) = (args.first(), args.get(1));
    Ok(Some(match (function, first, second) {
        ("!_", Some(Value::Bool(value)), _) => Value::Bool(!value),
        ("-_", Some(Value::Int(value)), _) => Value::Int(value.checked_neg().map_or_else(overflow, Ok)?),
        ("-_", Some(Value::Double(value)), _) => Value::Double(-value),
        ("_==_" | "_!=_", Some(a), Some(b)) => {
            let paid = a.size().min(b.size()) / 10;
            Value::Bool(run.comparing(paid, |meter| a.equals(b, meter))? == (function == "_==_"))
        }
        ("_<_", Some(a), Some(b)) => Value::Bool(order(a, b)? == Ordering::Less),
        ("_<=_", Some(a), Some(b)) => Value::Bool(order(a, b)? != Ordering::Greater),
        ("_>_", Some(a), Some(b)) => Value::Bool(order(a, b)? == Ordering::Greater),
        ("_>=_", Some(a), Some(b)) => Value::Bool(order(a, b)? != Ordering::Less),
        ("@in", Some(a), Some(Value::List(list))) => {
            Value::Bool(run.comparing(list.len() as u64, |meter| list.contains(a, meter))?)
        }
        ("@in", Some(key), Some(map @ (Value::Map(_) | Value::Object(..)))) => Value::Bool(map.at(key)?.is_some()),
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", Some(a), Some(b)) => arithmetic(run, function, a, b)?,
        ("!_" | "-_" | "@in", ..) => return no_overload(),
        _ => return Ok(None),
    }))
}

fn overflow<T>() -> Result<T> {
    error("integer overflow")
}

fn order(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering> {
    a.compare(b)?.map_or_else(|| error("NaN values cannot be ordered"), Ok)
}

/// An operation on whole numbers of one type, none where the result does not fit.
macro_rules! checked {
    ($function:expr, $a:expr, $b:expr) => {
        match $function {
            "_+_" => $a.checked_add(*$b),
            "_-_" => $a.checked_sub(*$b),
            "_*_" => $a.checked_mul(*$b),
            "_/_" => $a.checked_div(*$b),
            _ => $a.checked_rem(*$b),
        }
    };
}

fn arithmetic<'a>(run: &mut Run<'a>, function: &str, a: &Value<'a>, b: &Value<'a>) -> Result<Value<'a>> {
    use Value::{Bytes, Double, Duration, Int, Timestamp, Uint};
    let zero = |zero: bool| match (zero, function) {
        (true, "_/_") => error("division by zero"),
        (true, "_%_") => error("modulus by zero"),
        _ => Ok(()),
    };
    match (a, b) {
        (Int(a), Int(b)) => {
            zero(*b == 0)?;
            checked!(function, a, b).map_or_else(overflow, |it| Ok(Int(it)))
        }
        (Uint(a), Uint(b)) => {
            zero(*b == 0)?;
            checked!(function, a, b).map_or_else(|| error("unsigned integer overflow"), |it| Ok(Uint(it)))
        }
        (Double(a), Double(b)) => match function {
            "_+_" => Ok(Double(a + b)),
            "_-_" => Ok(Double(a - b)),
            "_*_" => Ok(Double(a * b)),
            "_/_" => Ok(Double(a / b)),
            _ => no_overload(),
        },
        (Value::Text(a), Value::Text(b)) if function == "_+_" => {
            Ok(Value::text(format!("{}{}", a.as_str(), b.as_str())))
        }
        (Bytes(a), Bytes(b)) if function == "_+_" => Ok(Bytes([&**a, &**b].concat().into())),
        (Value::List(a), Value::List(b)) if function == "_+_" => run.comparing(1, |meter| a.plus(b, meter)),
        (Duration(a), Duration(b)) => {
            let made = match function {
                "_+_" => a.checked_add(*b),
                "_-_" => a.checked_sub(*b),
                _ => return no_overload(),
            };
            made.map_or_else(|| error("duration overflow"), |it| Ok(Duration(it)))
        }
        (Timestamp(at), Duration(by)) | (Duration(by), Timestamp(at)) if function == "_+_" => time::shifted(*at, *by),
        (Timestamp(at), Duration(by)) if function == "_-_" => {
            by.checked_neg().map_or_else(|| error("duration overflow"), |by| time::shifted(*at, by))
        }
        (Timestamp(a), Timestamp(b)) if function == "_-_" => {
            let between = a.as_nanosecond() - b.as_nanosecond();
            i64::try_from(between).map_or_else(|_| error("duration overflow"), |it| Ok(Duration(it)))
        }
        _ => no_overload(),
    }
}

fn optional<'a>(inner: Option<Arc<Value<'a>>>, function: &str, other: Option<&Value<'a>>) -> Result<Value<'a>> {
    match (function, inner, other) {
        ("hasValue", inner, _) => Ok(Value::Bool(inner.is_some())),
        ("value", Some(value), _) | ("orValue", Some(value), _) => Ok(Arc::unwrap_or_clone(value)),
        ("value", None, _) => error("optional.none() dereference"),
        ("or", Some(value), _) => Ok(Value::Optional(Some(value))),
        ("or" | "orValue", None, Some(other)) => Ok(other.clone()),
        _ => no_overload(),
    }
}

fn quantity<'a>(it: Quantity, function: &str, other: Option<&Value<'a>>) -> Result<Option<Value<'a>>> {
    let other = match other {
        Some(Value::Quantity(other)) => Some(*other),
        Some(Value::Int(whole)) => Some(Quantity::whole(*whole)),
        _ => None,
    };
    Ok(Some(match (function, other) {
        ("sign", _) => Value::Int(it.sign()),
        ("isGreaterThan", Some(other)) => Value::Bool(it > other),
        ("isLessThan", Some(other)) => Value::Bool(it < other),
        ("compareTo", Some(other)) => Value::Int(it.cmp(&other) as i64),
        ("add", Some(other)) => Value::Quantity(it.plus(other)),
        ("sub", Some(other)) => Value::Quantity(it.plus(other.negated())),
        ("asApproximateFloat", _) => Value::Double(it.as_float()),
        ("isInteger", _) => Value::Bool(it.as_whole().is_some()),
        ("asInteger", _) => match it.as_whole() {
            Some(whole) => Value::Int(whole),
            None => return error("cannot convert value to integer"),
        },
        _ => return Ok(None),
    }))
}

fn global<'a>(run: &mut Run<'a>, function: &str, regex: Option<&Regex>, args: &[Value<'a>]) -> Result<Value<'a>> {
    let (first, second) = (args.first().cloned(), args.get(1).cloned());
    if let Some(name) = function.strip_prefix("format.") {
        return match (name, first) {
            ("named", Some(Value::Text(name))) => Ok(Value::optional(formats::named(name.as_str()).map(Value::Format))),
            (name, None) => formats::named(name).map_or_else(no_overload, |it| Ok(Value::Format(it))),
            _ => no_overload(),
        };
    }
    if function == "optional.none" {
        return Ok(Value::Optional(None));
    }
    let Some(first) = first else { return no_overload() };
    match (function, &first, second) {
        ("dyn", ..) => Ok(first),
        ("type", ..) => Ok(Value::Kind(first.type_of())),
        ("size", Value::Text(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) | Value::Object(..), None) => {
            Ok(Value::Int(i64::try_from(first.size()).unwrap_or(i64::MAX)))
        }
        ("bool" | "bytes" | "double" | "duration" | "int" | "string" | "timestamp" | "uint", _, None) => {
            text::convert(function, first)
        }
        ("matches", Value::Text(it), Some(Value::Text(pattern))) => text::matches(it.as_str(), pattern.as_str(), regex),
        ("strings.quote", Value::Text(it), None) => text::quote(it.as_str()),
        ("optional.of", ..) => Ok(Value::some(first)),
        ("optional.ofNonZeroValue", ..) => Ok(if first.is_zero() { Value::Optional(None) } else { Value::some(first) }),
        ("optional.unwrap", Value::List(list), None) => lists::unwrap(list),
        ("sets.contains", Value::List(a), Some(Value::List(b))) => {
            Ok(Value::Bool(run.comparing(1, |meter| b.within(a, meter))?))
        }
        ("sets.equivalent", Value::List(a), Some(Value::List(b))) => {
            Ok(Value::Bool(run.comparing(1, |meter| Ok(b.within(a, meter)? && a.within(&b, meter)?))?))
        }
        ("sets.intersects", Value::List(a), Some(Value::List(b))) => {
            let any = run.comparing(1, |meter| {
                for at in 0..a.len() {
                    if let Some(item) = a.get(at)?
                        && b.contains(&item, meter)?
                    {
                        return Ok(true);
                    }
                }
                Ok(false)
            })?;
            Ok(Value::Bool(any))
        }
        ("url", Value::Text(it), None) => net::url(it.as_str()).map(|it| Value::Url(Arc::new(it))),
        ("isURL", Value::Text(it), None) => Ok(Value::Bool(net::url(it.as_str()).is_ok())),
        ("ip", Value::Text(it), None) => net::ip(it.as_str()).map_or_else(error, |it| Ok(Value::Ip(it))),
        ("isIP", Value::Text(it), None) => Ok(Value::Bool(net::ip(it.as_str()).is_ok())),
        ("ip.isCanonical", Value::Text(it), None) => match net::ip(it.as_str()) {
            Ok(ip) => Ok(Value::Bool(ip.to_string() == it.as_str())),
            Err(said) => error(said),
        },
        ("cidr", Value::Text(it), None) => net::cidr(it.as_str()).map_or_else(error, |it| Ok(Value::Cidr(it))),
        ("isCIDR", Value::Text(it), None) => Ok(Value::Bool(net::cidr(it.as_str()).is_ok())),
        ("quantity", Value::Text(it), None) => {
            Quantity::parse(it.as_str()).map_or_else(error, |it| Ok(Value::Quantity(it)))
        }
        ("isQuantity", Value::Text(it), None) => Ok(Value::Bool(Quantity::parse(it.as_str()).is_ok())),
        ("semver" | "isSemver", Value::Text(it), normalize) => {
            let parsed = match normalize {
                None | Some(Value::Bool(false)) => semver::parse(it.as_str()),
                Some(Value::Bool(true)) => semver::normalize(it.as_str()),
                Some(_) => return no_overload(),
            };
            match parsed {
                parsed if function == "isSemver" => Ok(Value::Bool(parsed.is_ok())),
                Ok(version) => Ok(Value::Semver(Arc::new(version))),
                Err(said) => error(said),
            }
        }
        _ => no_overload(),
    }
}

/// A map from texts to lists of texts.
pub(super) fn texts<'a>(entries: Vec<(String, Vec<String>)>) -> Value<'a> {
    let mut map: IndexMap<Key, (Value<'a>, Value<'a>)> = IndexMap::new();
    for (name, values) in entries {
        let key: Arc<str> = name.into();
        let values = Value::List(List::Made(Arc::new(values.into_iter().map(Value::text).collect())));
        map.insert(Key::Text(key.clone()), (Value::Text(Text::Made(key)), values));
    }
    Value::Map(Map::Made(Arc::new(map)))
}
