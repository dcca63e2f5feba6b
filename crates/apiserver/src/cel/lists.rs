//! Lists: Kubernetes' `lists.go` and what optionals add.

use std::cmp::Ordering;
use std::sync::Arc;

use super::eval::Run;
use super::text;
use super::value::{List, Result, Value, error, no_overload};

/// A method on a list; `None` when there is none of that name.
pub(super) fn method<'a>(
    run: &mut Run<'a>,
    list: &List<'a>,
    function: &str,
    args: &[Value<'a>],
) -> Result<Option<Value<'a>>> {
    let last = list.len().checked_sub(1);
    Ok(Some(match (function, args.get(1)) {
        ("size", None) => Value::Int(list.len() as i64),
        ("isSorted", None) => {
            let items = list.all()?;
            let mut sorted = true;
            for (a, b) in items.iter().zip(items.iter().skip(1)) {
                sorted &= matches!(a.compare(b)?, Some(Ordering::Less | Ordering::Equal));
            }
            Value::Bool(sorted)
        }
        ("min" | "max", None) => {
            let wanted = if function == "min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<Value<'a>> = None;
            for item in list.all()? {
                let better = match &best {
                    Some(best) => item.compare(best)? == Some(wanted),
                    None => true,
                };
                if better {
                    best = Some(item);
                }
            }
            best.map_or_else(|| error(format!("{function} called on empty list")), Ok)?
        }
        ("sum", None) => sum(list)?,
        ("indexOf" | "lastIndexOf", Some(wanted)) => {
            let (mut found, length) = (-1, list.len());
            for step in 0..length {
                let at = if function == "indexOf" { step } else { length - 1 - step };
                if let Some(item) = list.get(at)?
                    && run.comparing(1, |meter| item.equals(wanted, meter))?
                {
                    found = at as i64;
                    break;
                }
            }
            Value::Int(found)
        }
        ("join", None) => text::join(&list.all()?, "")?,
        ("join", Some(Value::Text(by))) => text::join(&list.all()?, by.as_str())?,
        ("first", None) => Value::optional(list.get(0)?),
        ("last", None) => Value::optional(last.map(|at| list.get(at)).transpose()?.flatten()),
        ("unwrapOpt", None) => unwrap(list)?,
        _ => return Ok(None),
    }))
}

fn sum<'a>(list: &List<'a>) -> Result<Value<'a>> {
    let mut total: Option<Value<'a>> = None;
    for item in list.all()? {
        total = Some(match (total, item) {
            (None, item) => item,
            (Some(Value::Int(a)), Value::Int(b)) => match a.checked_add(b) {
                Some(sum) => Value::Int(sum),
                None => return error("integer overflow"),
            },
            (Some(Value::Uint(a)), Value::Uint(b)) => match a.checked_add(b) {
                Some(sum) => Value::Uint(sum),
                None => return error("unsigned integer overflow"),
            },
            (Some(Value::Double(a)), Value::Double(b)) => Value::Double(a + b),
            (Some(Value::Duration(a)), Value::Duration(b)) => match a.checked_add(b) {
                Some(sum) => Value::Duration(sum),
                None => return error("duration overflow"),
            },
            _ => return no_overload(),
        });
    }
    Ok(total.unwrap_or_else(|| match list {
        // Nothing, of the items' type.
        List::View(_, item, _) => match item.shape {
            super::Shape::Double => Value::Double(0.0),
            super::Shape::Duration => Value::Duration(0),
            _ => Value::Int(0),
        },
        List::Made(_) => Value::Int(0),
    }))
}

/// The values of those that have one.
pub(super) fn unwrap<'a>(list: &List<'a>) -> Result<Value<'a>> {
    let mut all = Vec::new();
    for item in list.all()? {
        match item {
            Value::Optional(inner) => all.extend(inner.map(Arc::unwrap_or_clone)),
            _ => return no_overload(),
        }
    }
    Ok(Value::list(all))
}
