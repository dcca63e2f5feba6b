//! Evaluation, each step of which is paid for: cel-go's interpreter and its cost tracker.

use std::sync::Arc;

use indexmap::IndexMap;

use super::Failed;
use super::ast::{ACCU, Call, Expr, Fold, Kind, Literal};
use super::call;
use super::cost::{CHECK, LIST, MAP, REGEX, TRAVERSAL, factor};
use super::text;
use super::value::{Key, List, Map, Meter, Result, Text, Value, error, no_overload};

/// A text made by an expression is at most so long; longer ones end the evaluation as too expensive.
pub(super) const TEXT_MAX: usize = 10 << 20;
/// What compiling a pattern costs that is no literal: it may be much more than it is long.
const COMPILE: u64 = 1000;

pub(super) fn evaluate<'a>(
    root: &'a Expr,
    slots: Vec<(&'a str, Result<Value<'a>>)>,
    limit: u64,
) -> (Result<Value<'a>>, u64) {
    let mut run = Run { slots, spent: 0, limit };
    let value = run.expr(root);
    // What is too large is too expensive, whatever was paid until then.
    let over = if matches!(value, Err(Failed::Cost)) { limit.saturating_add(1) } else { 0 };
    (value, run.spent.max(over))
}

/// Evaluates what is the same each time: conversions of literals, and patterns to find.
pub(super) fn constants(expr: &Expr) -> std::result::Result<(), String> {
    expr.kind.parts().try_for_each(constants)?;
    let Kind::Call(it) = &expr.kind else { return Ok(()) };
    let bare = it.args.first().map(|arg| match &arg.kind {
        Kind::Call(dynamic) if &*dynamic.function == "dyn" => dynamic.args.first().unwrap_or(arg),
        _ => arg,
    });
    let Some(Kind::Literal(literal)) = bare.map(|it| &it.kind) else { return Ok(()) };
    let outcome = match (&*it.function, literal) {
        ("bool" | "bytes" | "double" | "duration" | "int" | "string" | "timestamp" | "uint", literal) => {
            text::convert(&it.function, constant(literal)).map(drop)
        }
        ("find" | "findAll", Literal::Text(pattern)) if it.regex.is_none() => {
            text::regex(pattern).map(drop).map_err(Failed::Error)
        }
        _ => Ok(()),
    };
    outcome.map_err(|why| why.to_string())
}

pub(super) struct Run<'a> {
    /// Variables, the innermost last. An error is what a step of a macro came to, which a later one may make good.
    slots: Vec<(&'a str, Result<Value<'a>>)>,
    spent: u64,
    limit: u64,
}

impl<'a> Run<'a> {
    pub(super) fn spend(&mut self, cost: u64) -> Result<()> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit { Err(Failed::Cost) } else { Ok(()) }
    }

    /// Compares within what is left, ten looks for a unit, of which some are paid already.
    pub(super) fn comparing<T>(&mut self, paid: u64, then: impl FnOnce(&mut Meter) -> Result<T>) -> Result<T> {
        let left = self.limit.saturating_sub(self.spent).saturating_add(paid);
        let mut meter = Meter { looked: 0, max: left.saturating_mul(10) };
        let out = then(&mut meter);
        self.spend((meter.looked / 10).saturating_sub(paid))?;
        out
    }

    /// What is decoded anew each time is paid for each time.
    fn viewed(&mut self, value: Value<'a>) -> Result<Value<'a>> {
        if let Value::Bytes(bytes) = &value {
            self.spend(bytes.len() as u64 / 100)?;
        }
        Ok(value)
    }

    fn slot(&mut self, name: &str) -> Option<&mut Result<Value<'a>>> {
        self.slots.iter_mut().rev().find(|(it, _)| *it == name).map(|(_, slot)| slot)
    }

    fn expr(&mut self, expr: &'a Expr) -> Result<Value<'a>> {
        match &expr.kind {
            Kind::Literal(literal) => Ok(constant(literal)),
            Kind::Ident(name) => {
                self.spend(1)?;
                match self.slot(name) {
                    Some(slot) => slot.clone(),
                    None => match super::declare::named_type(name) {
                        Some(of) => Ok(Value::Kind(of)),
                        None => error(format!("no such attribute(s): {name}")),
                    },
                }
            }
            Kind::Select { operand, field, test } => {
                let operand = self.expr(operand)?;
                if !test {
                    self.spend(1)?;
                }
                self.select(&operand, field, *test)
            }
            Kind::Call(it) => self.call(it),
            Kind::List(items) => {
                let mut made = Vec::with_capacity(items.len());
                for item in items {
                    match self.expr(&item.value)? {
                        Value::Optional(inner) if item.optional => made.extend(inner.map(Arc::unwrap_or_clone)),
                        value => made.push(value),
                    }
                }
                self.spend(LIST)?;
                Ok(Value::list(made))
            }
            Kind::Map(entries) => {
                let mut made = IndexMap::with_capacity(entries.len());
                for entry in entries {
                    let (key, value) = (self.expr(&entry.key)?, self.expr(&entry.value)?);
                    let Some(known) = key.key() else { return error("unsupported key type") };
                    let value = match value {
                        Value::Optional(inner) if entry.optional => match inner {
                            Some(inner) => Arc::unwrap_or_clone(inner),
                            None => continue,
                        },
                        value => value,
                    };
                    made.insert(known, (key, value));
                }
                self.spend(MAP)?;
                Ok(Value::Map(Map::Made(Arc::new(made))))
            }
            Kind::Struct(_) => no_overload(),
            Kind::Fold(fold) => self.fold(fold),
        }
    }

    fn select(&mut self, operand: &Value<'a>, field: &str, test: bool) -> Result<Value<'a>> {
        if let Value::Optional(inner) = operand {
            let found = inner.as_ref().map(|it| it.field(field)).transpose()?.flatten();
            return Ok(if test { Value::Bool(found.is_some()) } else { Value::optional(found) });
        }
        let found = match operand {
            Value::Map(_) | Value::Object(..) => operand.field(field)?,
            // Of what is dynamic and holds nothing.
            _ => None,
        };
        match found {
            found if test => Ok(Value::Bool(found.is_some())),
            Some(value) => self.viewed(value),
            None => error(format!("no such key: {field}")),
        }
    }

    fn index(&mut self, operand: &Value<'a>, index: &Value<'a>, optional: bool) -> Result<Value<'a>> {
        if let Value::Optional(inner) = operand {
            return match inner {
                Some(inner) => self.index(&inner.clone(), index, true),
                None => Ok(Value::Optional(None)),
            };
        }
        let found = match operand {
            Value::List(list) => {
                let Some(Key::Int(at)) = index.key() else { return error("unsupported index type in list") };
                match usize::try_from(at).ok().map(|at| list.get(at)).transpose()?.flatten() {
                    Some(value) => value,
                    None if optional => return Ok(Value::Optional(None)),
                    None => return error(format!("index out of bounds: {at}")),
                }
            }
            Value::Map(_) | Value::Object(..) => match operand.at(index)? {
                Some(value) => value,
                None if optional => return Ok(Value::Optional(None)),
                None => return error(format!("no such key: {}", text::plain(index))),
            },
            _ if optional => return no_overload(),
            _ => return error(format!("no such key: {}", text::plain(index))),
        };
        let found = self.viewed(found)?;
        Ok(if optional { Value::some(found) } else { found })
    }

    fn logical(&mut self, args: &'a [Expr], decides: bool) -> Result<Value<'a>> {
        let mut failed = None;
        for arg in args {
            match self.expr(arg) {
                Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or_else(|| no_overload::<()>().err()),
                Err(Failed::Cost) => return Err(Failed::Cost),
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        failed.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn call(&mut self, it: &'a Call) -> Result<Value<'a>> {
        match (&*it.function, it.args.as_slice()) {
            ("_&&_", args) => return self.logical(args, false),
            ("_||_", args) => return self.logical(args, true),
            ("_?_:_", [condition, yes, no]) => {
                return match self.expr(condition)? {
                    Value::Bool(true) => self.expr(yes),
                    Value::Bool(false) => self.expr(no),
                    _ => no_overload(),
                };
            }
            ("@not_strictly_false", [arg]) => {
                self.spend(1)?;
                return match self.expr(arg) {
                    Ok(value) => Ok(Value::Bool(!matches!(value, Value::Bool(false)))),
                    Err(Failed::Cost) => Err(Failed::Cost),
                    Err(Failed::Error(_)) => Ok(Value::Bool(true)),
                };
            }
            ("_[_]" | "_[?_]", [operand, index]) => {
                let (operand, index) = (self.expr(operand)?, self.expr(index)?);
                self.spend(1)?;
                return self.index(&operand, &index, &*it.function == "_[?_]");
            }
            ("_?._", [operand, Expr { kind: Kind::Literal(Literal::Text(field)), .. }]) => {
                let operand = self.expr(operand)?;
                self.spend(1)?;
                if let Value::Optional(_) = operand {
                    return self.select(&operand, field, false);
                }
                return Ok(Value::optional(operand.field(field)?));
            }
            ("_+_", [Expr { kind: Kind::Ident(name), .. }, Expr { kind: Kind::List(items), .. }])
                if **name == *ACCU =>
            {
                if let [item] = items.as_slice() {
                    return self.append(name, &item.value);
                }
            }
            ("cel.@mapInsert", [Expr { kind: Kind::Ident(name), .. }, rest @ ..]) => return self.insert(name, rest),
            _ => {}
        }
        let mut args = Vec::with_capacity(it.args.len() + 1);
        if let Some(target) = &it.target {
            args.push(self.expr(target)?);
        }
        for arg in &it.args {
            args.push(self.expr(arg)?);
        }
        let dynamic = matches!(&*it.function, "matches" | "find" | "findAll") && it.regex.is_none();
        let paid = price(&it.function, &args).saturating_add(if dynamic { COMPILE } else { 0 });
        self.spend(paid)?;
        let value = call::call(self, &it.function, it.target.is_some(), it.regex.as_deref(), &args)?;
        let made = match &value {
            Value::Text(Text::Made(text)) => text.len(),
            Value::List(list @ List::Made(_)) => list.len(),
            _ => 0,
        };
        self.spend((made as u64 / 10).saturating_sub(paid))?;
        Ok(value)
    }

    /// `@result + [item]`, without a copy of what there is.
    fn append(&mut self, accu: &str, item: &'a Expr) -> Result<Value<'a>> {
        self.spend(1)?;
        let item = self.expr(item)?;
        self.spend(LIST + 1)?;
        match self.take(accu)? {
            Value::List(List::Made(mut items)) => {
                Arc::make_mut(&mut items).push(item);
                Ok(Value::List(List::Made(items)))
            }
            _ => no_overload(),
        }
    }

    /// The value of a variable that is written again at once.
    fn take(&mut self, name: &str) -> Result<Value<'a>> {
        match self.slot(name) {
            Some(slot) => std::mem::replace(slot, Ok(Value::Null)),
            None => no_overload(),
        }
    }

    fn insert(&mut self, accu: &str, args: &'a [Expr]) -> Result<Value<'a>> {
        self.spend(2)?;
        let added = match args {
            [key, value] => vec![(self.expr(key)?, self.expr(value)?)],
            [map] => self.expr(map)?.entries()?,
            _ => return no_overload(),
        };
        let Value::Map(Map::Made(mut map)) = self.take(accu)? else { return no_overload() };
        for (key, value) in added {
            self.spend(1)?;
            let Some(known) = key.key() else { return error("unsupported key type") };
            let shown = text::plain(&key);
            if Arc::make_mut(&mut map).insert(known, (key, value)).is_some() {
                return error(format!("insert failed: key {shown} already exists"));
            }
        }
        Ok(Value::Map(Map::Made(map)))
    }

    fn fold(&mut self, fold: &'a Fold) -> Result<Value<'a>> {
        let range = self.expr(&fold.range)?;
        let init = match self.expr(&fold.init) {
            Err(Failed::Cost) => return Err(Failed::Cost),
            other => other,
        };
        let height = self.slots.len();
        self.slots.push((&fold.accu, init));
        let out = self.rounds(fold, range).and_then(|()| self.expr(&fold.result));
        self.slots.truncate(height);
        out
    }

    fn rounds(&mut self, fold: &'a Fold, range: Value<'a>) -> Result<()> {
        let accu = self.slots.len() - 1;
        let mut rounds = Rounds::over(range)?;
        while let Some((key, value)) = rounds.next(fold.var2.is_some())? {
            let key = self.viewed(key)?;
            self.slots.push((&fold.var, Ok(key)));
            if let Some(var2) = &fold.var2 {
                let value = self.viewed(value)?;
                self.slots.push((var2, Ok(value)));
            }
            let goes_on = matches!(self.expr(&fold.condition)?, Value::Bool(true));
            let step = if goes_on { Some(self.expr(&fold.step)) } else { None };
            self.slots.truncate(accu + 1);
            match (step, self.slots.get_mut(accu)) {
                (Some(Err(Failed::Cost)), _) => return Err(Failed::Cost),
                (Some(step), Some((_, slot))) => *slot = step,
                _ => break,
            }
        }
        Ok(())
    }
}

/// What a comprehension goes over, one at a time.
enum Rounds<'a> {
    List(List<'a>, usize),
    View(serde_json::map::Iter<'a>, &'a Arc<super::Decl>),
    Made(Arc<IndexMap<Key, (Value<'a>, Value<'a>)>>, usize),
    Fields(std::vec::IntoIter<(Value<'a>, Value<'a>)>),
}

impl<'a> Rounds<'a> {
    fn over(range: Value<'a>) -> Result<Self> {
        match range {
            Value::List(list) => Ok(Self::List(list, 0)),
            Value::Map(Map::View(map, decl)) => Ok(Self::View(map.iter(), decl)),
            Value::Map(Map::Made(map)) => Ok(Self::Made(map, 0)),
            object @ Value::Object(..) => Ok(Self::Fields(object.entries()?.into_iter())),
            other => error(format!("got '{}', expected iterable type", text::go_type(&other))),
        }
    }

    /// The first variable and the second.
    fn next(&mut self, two: bool) -> Result<Option<(Value<'a>, Value<'a>)>> {
        match self {
            Self::List(list, at) => {
                let Some(item) = list.get(*at)? else { return Ok(None) };
                let index = Value::Int(i64::try_from(*at).unwrap_or(i64::MAX));
                *at += 1;
                Ok(Some(if two { (index, item) } else { (item, Value::Null) }))
            }
            Self::View(entries, decl) => {
                let Some((key, json)) = entries.next() else { return Ok(None) };
                let value = if two { Value::view(json, decl)? } else { Value::Null };
                Ok(Some((Value::Text(Text::Here(key)), value)))
            }
            Self::Made(map, at) => {
                *at += 1;
                Ok(map.get_index(*at - 1).map(|(_, entry)| entry.clone()))
            }
            Self::Fields(entries) => Ok(entries.next()),
        }
    }
}

fn constant<'a>(literal: &'a Literal) -> Value<'a> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::Text(text) => Value::Text(Text::Here(text)),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

/// What a call costs, its target first among its arguments.
fn price(function: &str, args: &[Value<'_>]) -> u64 {
    let size = |at: usize| args.get(at).map_or(1, Value::size);
    let bytes = |at: usize| match args.get(at) {
        Some(Value::Text(text)) => text.as_str().len() as u64,
        _ => 0,
    };
    match function {
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            args.first().map_or(0, traversal).saturating_add(bytes(0).saturating_mul(bytes(1)) / 1000)
        }
        "url" | "isURL" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "cidr" | "isIP" | "isCIDR"
        | "quantity" | "isQuantity" | "semver" | "isSemver" | "ip" | "startsWith" | "endsWith" | "bytes"
        | "strings.quote" | "format" => factor(size(0), TRAVERSAL),
        "ip.isCanonical" | "replace" | "split" => factor(size(0), 2.0 * TRAVERSAL),
        "find" | "findAll" | "matches" => {
            factor(size(0).saturating_add(1), TRAVERSAL).saturating_mul(factor(size(1), REGEX))
        }
        "containsIP" | "containsCIDR" => {
            let own = factor(2 * size(0), TRAVERSAL) + factor(size(1), TRAVERSAL);
            if function == "containsCIDR" { own + factor(size(0), TRAVERSAL) + 1 } else { own }
        }
        "contains" => factor(size(0), TRAVERSAL).saturating_mul(factor(size(1), TRAVERSAL)),
        "validate" => match args.first() {
            Some(Value::Format(format)) => {
                factor(size(1) + 1, TRAVERSAL).saturating_mul(factor(format.regex_size, REGEX))
            }
            _ => 1,
        },
        "check" => CHECK,
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).saturating_add(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).saturating_add(1),
        "@in" => match args.get(1) {
            Some(Value::List(list)) => list.len() as u64,
            _ => 1,
        },
        "_==_" | "_!=_" => factor(size(0).min(size(1)), TRAVERSAL),
        "_<_" | "_<=_" | "_>_" | "_>=_" => match args.first() {
            Some(Value::Text(_) | Value::Bytes(_)) => factor(size(0).min(size(1)), TRAVERSAL),
            _ => 1,
        },
        "_+_" => match args.first() {
            Some(Value::Text(_) | Value::Bytes(_)) => factor(size(0).saturating_add(size(1)), TRAVERSAL),
            Some(Value::List(_)) => 1 + size(0).saturating_add(size(1)) / 10,
            _ => 1,
        },
        "string" if matches!(args.first(), Some(Value::Bytes(_))) => factor(size(0), TRAVERSAL),
        "size" | "charAt" | "int" | "uint" | "double" | "duration" | "timestamp" => 1 + bytes(0) / 100,
        _ => 1,
    }
}

fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::Text(text) => (text.as_str().len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => {
            let item = |at: usize| list.get(at).ok().flatten().map_or(1, |it| traversal(&it));
            (0..list.len()).map(item).fold(0, u64::saturating_add)
        }
        _ => 1,
    }
}
