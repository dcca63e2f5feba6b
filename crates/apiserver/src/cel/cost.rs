//! What an expression can cost at most: cel-go's `checker/cost.go` with Kubernetes' `library/cost.go`.

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{ACCU, Call, Expr, Fold, Kind, Literal};
use super::decl::{Decl, Shape};
use super::types::Type;

pub(super) const LIST: u64 = 10;
pub(super) const MAP: u64 = 30;
/// For each character that is looked at.
pub(super) const TRAVERSAL: f64 = 0.1;
/// For each character of a regular expression.
pub(super) const REGEX: f64 = 0.25;
/// A question to an authorizer: no expression may ask more than two.
pub(super) const CHECK: u64 = 350_000;
/// The regular expression of a named format.
const FORMAT_MAX: f64 = 128.0;

/// A range of sizes or of costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) min: u64,
    pub(super) max: u64,
}

const UNKNOWN: Range = Range { min: 0, max: u64::MAX };
const ONE: Range = Range { min: 1, max: 1 };
const NONE: Range = Range { min: 0, max: 0 };

pub(super) fn factor(count: u64, factor: f64) -> u64 {
    // Go's rounding; what does not fit is as much as can be.
    (count as f64 * factor).ceil() as u64
}

impl Range {
    fn fixed(at: u64) -> Self {
        Self { min: at, max: at }
    }

    fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn by(self, by: f64) -> Self {
        Self { min: factor(self.min, by), max: factor(self.max, by) }
    }

    fn or(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

pub(super) fn estimate(root: &Expr, decl: &Decl) -> Range {
    Coster { decl, locals: HashMap::new() }.cost(root).cost
}

/// What is known of a part: its cost, where in the object its value comes from, how large that is and its entries are.
#[derive(Clone, Debug)]
struct Part {
    cost: Range,
    path: Option<Path>,
    size: Option<Range>,
    entry: Option<Entry>,
}

/// From a variable down, by field names and `@items`, `@values`, `@keys`.
type Path = Arc<Vec<Arc<str>>>;

#[derive(Clone, Copy, Debug)]
struct Entry {
    list: bool,
    key: Range,
    value: Range,
}

impl Entry {
    fn or(self, other: Self) -> Self {
        Self { list: self.list, key: self.key.or(other.key), value: self.value.or(other.value) }
    }
}

struct Coster<'a> {
    decl: &'a Decl,
    locals: HashMap<Arc<str>, Vec<Local>>,
}

#[derive(Clone)]
struct Local {
    path: Option<Path>,
    size: Option<Range>,
    entry: Option<Entry>,
}

fn child(path: Option<&Path>, step: &str) -> Option<Path> {
    // What comes from nowhere is looked up from the root, as upstream does.
    let mut path = path.map(|it| Vec::clone(it)).unwrap_or_default();
    path.push(step.into());
    Some(Arc::new(path))
}

impl Coster<'_> {
    /// The size of what the schema says of a place.
    fn sized(&self, path: Option<&Path>) -> Option<Range> {
        let mut decl = self.decl;
        for step in path?.iter().skip(1) {
            decl = match &**step {
                "@items" | "@values" => decl.item()?,
                "@keys" => return matches!(decl.shape, Shape::Map(_)).then_some(NONE),
                field => &decl.slot(field)?.decl,
            };
        }
        Some(Range { min: 0, max: decl.elements_max })
    }

    fn cost(&mut self, expr: &Expr) -> Part {
        let mut part = match &expr.kind {
            Kind::Literal(literal) => {
                let size = match literal {
                    Literal::Text(text) => text.chars().count() as u64,
                    Literal::Bytes(bytes) => bytes.len() as u64,
                    _ => 1,
                };
                Part { cost: NONE, path: None, size: Some(Range::fixed(size)), entry: None }
            }
            Kind::Ident(name) => {
                let local = self.locals.get(name).and_then(|all| all.last()).cloned();
                match local {
                    Some(local) => {
                        let size = self.sized(local.path.as_ref()).or_else(|| scalar(expr)).or(local.size);
                        Part { cost: ONE, path: local.path, size, entry: local.entry }
                    }
                    None => Part { cost: ONE, path: Some(Arc::new(vec![name.clone()])), size: None, entry: None },
                }
            }
            Kind::Select { operand, field, test } => {
                let inner = self.cost(operand);
                if *test {
                    Part { cost: inner.cost, path: None, size: None, entry: None }
                } else {
                    let selects = matches!(operand.of, Type::Map(_) | Type::Object(_) | Type::Library(_));
                    let cost = if selects { inner.cost.plus(ONE) } else { inner.cost };
                    Part { cost, path: child(inner.path.as_ref(), field), size: None, entry: None }
                }
            }
            Kind::Call(call) => self.call(expr, call),
            Kind::List(items) => {
                let (mut cost, mut value) = (Range::fixed(LIST), Range { min: u64::MAX, max: 0 });
                if items.is_empty() {
                    value.min = 0;
                }
                for item in items {
                    let part = self.cost(&item.value);
                    cost = cost.plus(part.cost);
                    value = value.or(part.size.unwrap_or(UNKNOWN));
                }
                let entry = Entry { list: true, key: ONE, value };
                Part { cost, path: None, size: Some(Range::fixed(items.len() as u64)), entry: Some(entry) }
            }
            Kind::Map(entries) => {
                let empty = Range { min: if entries.is_empty() { 0 } else { u64::MAX }, max: 0 };
                let (mut cost, mut entry) = (Range::fixed(MAP), Entry { list: false, key: empty, value: empty });
                for it in entries {
                    let (key, value) = (self.cost(&it.key), self.cost(&it.value));
                    cost = cost.plus(key.cost).plus(value.cost);
                    entry.key = entry.key.or(key.size.unwrap_or(UNKNOWN));
                    entry.value = entry.value.or(value.size.unwrap_or(UNKNOWN));
                }
                Part { cost, path: None, size: Some(Range::fixed(entries.len() as u64)), entry: Some(entry) }
            }
            Kind::Struct(_) => Part { cost: Range::fixed(40), path: None, size: None, entry: None },
            Kind::Fold(fold) => self.fold(fold),
        };
        if part.size.is_none() {
            part.size = self.sized(part.path.as_ref()).or_else(|| scalar(expr));
        }
        part
    }

    fn push(&mut self, name: &Arc<str>, local: Local) {
        self.locals.entry(name.clone()).or_default().push(local);
    }

    fn pop(&mut self, name: &Arc<str>) {
        if let Some(all) = self.locals.get_mut(name) {
            all.pop();
        }
    }

    fn fold(&mut self, fold: &Fold) -> Part {
        let range = self.cost(&fold.range);
        let init = self.cost(&fold.init);
        let cost = range.cost.plus(init.cost);
        let accu = Local { path: init.path.clone(), size: init.size, entry: init.entry };
        let bind = matches!(&fold.range.kind, Kind::List(items) if items.is_empty())
            && matches!(fold.condition.kind, Kind::Literal(Literal::Bool(false)))
            && *fold.accu != *ACCU;
        self.push(&fold.accu, accu);
        if bind {
            let result = self.cost(&fold.result);
            self.pop(&fold.accu);
            return Part { cost: cost.plus(result.cost), path: None, ..result };
        }
        let list = range.entry.map_or(matches!(fold.range.of, Type::List(_)), |it| it.list);
        let at = |step: &str| child(range.path.as_ref(), step);
        let (key, value) = (range.entry.map(|it| it.key), range.entry.map(|it| it.value));
        let keys = Local { path: at(if list { "@indices" } else { "@keys" }), size: key, entry: None };
        let values = Local { path: at(if list { "@items" } else { "@values" }), size: value, entry: None };
        match &fold.var2 {
            Some(var2) => {
                self.push(&fold.var, keys);
                self.push(var2, values);
            }
            None => self.push(&fold.var, if list { values } else { keys }),
        }
        let condition = self.cost(&fold.condition);
        let step = self.cost(&fold.step);
        self.pop(&fold.var);
        if let Some(var2) = &fold.var2 {
            self.pop(var2);
        }
        let result = self.cost(&fold.result);
        self.pop(&fold.accu);
        let count = range.size.unwrap_or(UNKNOWN);
        let cost = cost.plus(result.cost).plus(count.times(step.cost.plus(condition.cost)));
        let (size, entry) = match fold.init.kind {
            Kind::Literal(_) => (init.size, None),
            Kind::List(_) | Kind::Map(_) => (Some(count), step.entry),
            _ => (None, None),
        };
        Part { cost, path: None, size, entry }
    }

    fn call(&mut self, expr: &Expr, call: &Call) -> Part {
        if &*call.function == "dyn"
            && let [arg] = call.args.as_slice()
        {
            let inner = self.cost(arg);
            return Part { cost: inner.cost.plus(ONE), path: None, ..inner };
        }
        let args: Vec<Part> = call.args.iter().map(|it| self.cost(it)).collect();
        let target = call.target.as_ref().map(|it| self.cost(it));
        let given = args.iter().fold(NONE, |sum, it| sum.plus(it.cost));
        let mut part = Part { cost: Range { min: u64::MAX, max: 0 }, path: None, size: None, entry: None };
        for overload in &call.overloads {
            let (cost, size) = self.overload(call, overload, target.as_ref(), &args, given);
            part.cost = part.cost.or(cost);
            if let Some(size) = size {
                part.size = Some(part.size.map_or(size, |before| before.or(size)));
            }
            if let ("index_list" | "index_map", Some(of)) = (*overload, args.first()) {
                part.size = of.entry.map(|it| it.value);
                part.path = child(of.path.as_ref(), if *overload == "index_list" { "@items" } else { "@values" });
            }
        }
        part.entry = match (&*call.function, args.as_slice()) {
            ("_?_:_", [_, yes, no]) => yes.entry.zip(no.entry).map(|(yes, no)| yes.or(no)),
            ("_+_", [left, right]) => left.entry.zip(right.entry).map(|(left, right)| left.or(right)),
            _ => None,
        };
        if call.overloads.is_empty() {
            part.cost = NONE;
        }
        part.cost = part.cost.plus(target.map_or(NONE, |it| it.cost));
        if part.size.is_none() {
            part.size = self.sized(part.path.as_ref()).or_else(|| scalar(expr));
        }
        part
    }

    /// What a call costs beside its target, and how large its result is.
    fn overload(
        &self,
        call: &Call,
        overload: &str,
        target: Option<&Part>,
        args: &[Part],
        given: Range,
    ) -> (Range, Option<Range>) {
        let size = |part: Option<&Part>| part.and_then(|it| it.size).unwrap_or(UNKNOWN);
        let (on, first, second) = (size(target), size(args.first()), size(args.get(1)));
        let plain = |cost: Range| (cost.plus(given), None);
        let sized = |cost: Range, size: Range| (cost.plus(given), Some(size));
        match (&*call.function, overload) {
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", _) => {
                let item = call.target.as_ref().and_then(|it| match &it.of {
                    Type::List(item) => Some((**item).clone()),
                    _ => None,
                });
                match item {
                    Some(Type::Text | Type::Bytes) => {
                        let of = target.and_then(|it| self.sized(child(Some(it.path.as_ref()?), "@items").as_ref()));
                        plain(on.times(ONE.plus(of.unwrap_or(UNKNOWN).by(TRAVERSAL))))
                    }
                    Some(_) => plain(on),
                    None => plain(on.by(TRAVERSAL)),
                }
            }
            ("sets.contains" | "sets.intersects", _) => plain(first.times(second).plus(ONE)),
            ("sets.equivalent", _) => plain(first.times(second).by(2.0).plus(ONE)),
            ("url", _) => sized(first.by(TRAVERSAL), first),
            ("lowerAscii" | "upperAscii" | "substring" | "trim", _) => sized(on.by(TRAVERSAL), on),
            ("replace", _) => sized(on.by(2.0 * TRAVERSAL), replaced(on, first, second)),
            ("split", _) => {
                let max = match call.args.get(1).map(|it| &it.kind) {
                    Some(Kind::Literal(Literal::Int(count))) => u64::try_from(*count).unwrap_or(u64::MAX),
                    _ => on.max,
                };
                sized(on.by(2.0 * TRAVERSAL), Range { min: 0, max })
            }
            ("join", _) => {
                let of = target.and_then(|it| self.sized(child(Some(it.path.as_ref()?), "@items").as_ref()));
                let list = call.target.as_ref().is_some_and(|it| matches!(it.of, Type::List(_)));
                let mut all = if list { on.times(of.unwrap_or(UNKNOWN)) } else { NONE };
                if !args.is_empty() {
                    let between = Range { min: on.min.saturating_sub(1), max: on.max.saturating_sub(1) };
                    all = all.plus(first.times(between));
                }
                sized(all.by(TRAVERSAL), all)
            }
            ("find" | "findAll", _) => {
                let cost = on.plus(ONE).by(TRAVERSAL).times(first.by(REGEX));
                sized(cost, Range { min: 0, max: on.max })
            }
            ("ip", "cidr_ip") => plain(ONE),
            ("ip.isCanonical", _) => plain(first.by(2.0 * TRAVERSAL)),
            ("cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver", _) => {
                plain(first.by(TRAVERSAL))
            }
            ("containsIP" | "containsCIDR", _) => {
                let address = Range { min: 4, max: 16 };
                let mut cost = address.plus(address).by(TRAVERSAL);
                if &*call.function == "containsCIDR" {
                    cost = cost.plus(address.by(TRAVERSAL)).plus(ONE);
                }
                if overload.ends_with("_string") {
                    cost = cost.plus(first.by(TRAVERSAL));
                }
                plain(cost)
            }
            ("check", _) => plain(Range::fixed(CHECK)),
            ("validate", _) => plain(first.by(TRAVERSAL).by(FORMAT_MAX * REGEX)),
            ("_==_" | "_!=_", _) if matches!(call.args.first().map(|it| &it.of), Some(Type::Library(_))) => plain(ONE),
            (_, "string_format") => plain(on.by(TRAVERSAL)),
            (_, "string_to_bytes") => {
                sized(first.by(TRAVERSAL), Range { min: first.min, max: first.max.saturating_mul(4) })
            }
            (_, "bytes_to_string") => sized(first.by(TRAVERSAL), Range { min: first.min / 4, max: first.max }),
            (_, "strings_quote") => {
                let max = first.max.saturating_mul(2).saturating_add(2);
                sized(first.by(TRAVERSAL), Range { min: first.min.saturating_add(2), max })
            }
            (_, "starts_with_string" | "ends_with_string") => plain(first.by(TRAVERSAL)),
            (_, "in_list") => plain(second),
            (_, "matches_string") => plain(on.plus(ONE).by(TRAVERSAL).times(first.by(REGEX))),
            (_, "contains_string") => plain(on.by(TRAVERSAL).times(first.by(TRAVERSAL))),
            (_, "logical_and" | "logical_or") => {
                (Range { min: args.first().map_or(0, |it| it.cost.min), max: given.max }, None)
            }
            (_, "conditional") => {
                let cost = |at: usize| args.get(at).map_or(NONE, |it| it.cost);
                (cost(0).plus(cost(1).or(cost(2))), Some(second.or(size(args.get(2)))))
            }
            (_, "add_list") => sized(ONE, first.plus(second)),
            (_, "add_string" | "add_bytes") => sized(first.plus(second).by(TRAVERSAL), first.plus(second)),
            (_, "equals" | "not_equals") => plain(compared(first, second)),
            ("_<_" | "_<=_" | "_>_" | "_>=_", id) if id.ends_with("_string") || id.ends_with("_bytes") => {
                plain(compared(first, second))
            }
            _ => plain(ONE),
        }
    }
}

/// As far as the shorter of two.
fn compared(a: Range, b: Range) -> Range {
    let max = a.max.min(b.max);
    Range { min: u64::from(max > 0), max }.by(TRAVERSAL)
}

/// How large a text is after a replacement.
fn replaced(on: Range, from: Range, to: Range) -> Range {
    // How often the new is put in, and how much of the old is there besides.
    let parts = |on: u64, from: u64, kept: bool| match from {
        // What is empty is found before each character and at the end.
        0 => (on.saturating_add(1), on),
        _ if kept => (0, on),
        from => (on.div_ceil(from), 0),
    };
    let (most, most_kept) = parts(on.max, from.min, to.max <= from.min);
    let (fewest, fewest_kept) = parts(on.min, from.max, from.max <= to.min);
    Range { min: fewest, max: most }.times(to).plus(Range { min: fewest_kept, max: most_kept })
}

fn scalar(expr: &Expr) -> Option<Range> {
    expr.of.is_scalar().then_some(ONE)
}
