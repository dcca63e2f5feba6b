//! The tree of an expression, macros expanded, and the errors that point into it.

use std::fmt::Write;
use std::sync::Arc;

use regex::Regex;

use super::types::Type;

#[derive(Clone, Debug)]
pub(super) struct Expr {
    /// Where it stands: the operator of an operation, the parenthesis of a call; in characters from the start.
    pub(super) at: usize,
    pub(super) kind: Kind,
    /// Set by the checker.
    pub(super) of: Type,
    /// How many levels there are, with this one.
    pub(super) height: u32,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Literal(Literal),
    Ident(Arc<str>),
    Select {
        operand: Box<Expr>,
        field: Arc<str>,
        test: bool,
    },
    Call(Call),
    List(Vec<Item>),
    Map(Vec<Entry>),
    /// A message; there are none.
    Struct(Arc<str>),
    Fold(Box<Fold>),
}

#[derive(Clone, Debug)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) function: Arc<str>,
    /// What it is called on; taken away where it was the function's own name space.
    pub(super) target: Option<Box<Expr>>,
    pub(super) args: Vec<Expr>,
    /// Which of the function's overloads it may be, set by the checker.
    pub(super) overloads: Vec<&'static str>,
    /// Of a regular expression that is a literal.
    pub(super) regex: Option<Arc<Regex>>,
}

#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) value: Expr,
    pub(super) optional: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Expr,
    pub(super) value: Expr,
    pub(super) optional: bool,
}

/// A comprehension, which all macros over lists and maps become.
#[derive(Clone, Debug)]
pub(super) struct Fold {
    pub(super) range: Expr,
    pub(super) var: Arc<str>,
    /// With it, the first is the index or the key.
    pub(super) var2: Option<Arc<str>>,
    pub(super) accu: Arc<str>,
    pub(super) init: Expr,
    pub(super) condition: Expr,
    pub(super) step: Expr,
    pub(super) result: Expr,
}

/// The name of a macro's own variable, which no expression can mention.
pub(super) const ACCU: &str = "@result";

/// An error at a place; `None` of the whole.
#[derive(Clone, Debug)]
pub(super) struct Mistake {
    pub(super) at: Option<usize>,
    pub(super) said: String,
}

/// More are not told: an expression is refused with the first anyway.
const MISTAKES_MAX: usize = 100;

impl Expr {
    pub(super) fn new(at: usize, kind: Kind) -> Self {
        let height = 1 + kind.parts().map(|it| it.height).max().unwrap_or_default();
        Self { at, kind, of: Type::Dyn, height }
    }

    pub(super) fn ident(at: usize, name: &str) -> Self {
        Self::new(at, Kind::Ident(name.into()))
    }

    pub(super) fn literal(at: usize, literal: Literal) -> Self {
        Self::new(at, Kind::Literal(literal))
    }

    pub(super) fn call(at: usize, function: &str, args: Vec<Self>) -> Self {
        Self::invoke(at, function, None, args)
    }

    pub(super) fn invoke(at: usize, function: &str, target: Option<Self>, args: Vec<Self>) -> Self {
        let target = target.map(Box::new);
        let call = Call { function: function.into(), target, args, overloads: Vec::new(), regex: None };
        Self::new(at, Kind::Call(call))
    }

    /// How many nodes it has.
    pub(super) fn nodes(&self) -> usize {
        1 + self.kind.parts().map(Self::nodes).sum::<usize>()
    }

    /// `a.b.c` as text where it is nothing else.
    pub(super) fn qualified(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select { operand, field, test: false } => Some(format!("{}.{field}", operand.qualified()?)),
            _ => None,
        }
    }
}

impl Kind {
    /// The expressions directly within it.
    pub(super) fn parts(&self) -> Box<dyn Iterator<Item = &Expr> + '_> {
        match self {
            Self::Literal(_) | Self::Ident(_) | Self::Struct(_) => Box::new(std::iter::empty()),
            Self::Select { operand, .. } => Box::new(std::iter::once(&**operand)),
            Self::Call(call) => Box::new(call.target.as_deref().into_iter().chain(&call.args)),
            Self::List(items) => Box::new(items.iter().map(|it| &it.value)),
            Self::Map(entries) => Box::new(entries.iter().flat_map(|it| [&it.key, &it.value])),
            Self::Fold(it) => Box::new([&it.range, &it.init, &it.condition, &it.step, &it.result].into_iter()),
        }
    }
}

/// Errors as cel-go prints them.
pub(super) fn display(mut mistakes: Vec<Mistake>, source: &str) -> String {
    mistakes.truncate(MISTAKES_MAX);
    mistakes.sort_by_key(|it| it.at);
    let mut out = String::new();
    for mistake in mistakes {
        if !out.is_empty() {
            out.push('\n');
        }
        let Some(at) = mistake.at else {
            let _ = write!(out, "ERROR: <input>:-1:0: {}", mistake.said);
            continue;
        };
        let before: Vec<char> = source.chars().take(at).collect();
        let line = before.iter().filter(|c| **c == '\n').count();
        let column = before.iter().rev().take_while(|c| **c != '\n').count();
        let text: String = source.lines().nth(line).unwrap_or_default().replace('\t', " ");
        let _ = write!(out, "ERROR: <input>:{}:{}: {}\n | {text}\n | ", line + 1, column + 1, mistake.said);
        let mut chars = text.chars();
        for c in chars.by_ref().take(column) {
            out.push(if c.len_utf8() > 1 { '\u{ff0e}' } else { '.' });
        }
        out.push(if chars.next().is_some_and(|c| c.len_utf8() > 1) { '\u{ff3e}' } else { '^' });
    }
    out
}
