//! CEL as Kubernetes speaks it: parsed, type-checked against a schema, its worst cost estimated, evaluated within a
//! budget. No I/O, no clock; what an expression may cost is counted in steps, so that it ends on any machine alike.
//!
//! The words of errors and the costs are those of cel-go with Kubernetes' libraries, as of 1.34 with what it lets new
//! expressions use: the standard library, optionals, comprehensions of two variables, strings, sets, lists, regex,
//! URLs, IPs and CIDRs, quantities, semantic versions, named formats and, where somebody declares one, an authorizer.

mod ast;
mod authz;
mod call;
mod check;
mod cost;
mod decl;
mod declare;
mod eval;
mod formats;
mod lists;
mod net;
mod parse;
mod semver;
mod text;
mod time;
mod token;
mod types;
mod value;

use std::sync::Arc;

pub(crate) use authz::{Authorizer, Authz, Resource};
pub(crate) use decl::{Decl, Order, Shape, Slot};
pub(crate) use types::{AUTHORIZER, RESOURCE_CHECK, Type};
pub(crate) use value::Value;

/// Longer expressions are refused (code points), as upstream does.
const LENGTH_MAX: usize = 100_000;
/// Trees that are higher are refused.
const DEPTH_MAX: u32 = 250;
/// Expressions within parentheses within parentheses are refused beyond so many.
const NEST_MAX: usize = 100;
/// What CEL reads as something else than a name, or keeps for itself.
pub(crate) const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
/// What one evaluation may cost at most.
pub(crate) const CALL_LIMIT: u64 = 1_000_000;

/// A checked expression. Immutable; evaluations share it.
#[derive(Debug)]
pub(crate) struct Program {
    root: ast::Expr,
    /// The variables that are mentioned.
    variables: Vec<Arc<str>>,
}

/// Why an expression was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// `ERROR: <input>:1:5: undefined field 'x'` with the line and a caret under it, one after the other.
    #[error("compilation failed: {0}")]
    Wrong(String),
    /// A part that is the same each time fails each time.
    #[error("program instantiation failed: {0}")]
    Fails(String),
}

/// Why an evaluation ended without a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failed {
    /// In the words of cel-go: `no such key: x`, `division by zero`.
    #[error("{0}")]
    Error(String),
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
}

/// The type of an expression over these variables, or what is wrong with it.
pub(crate) fn type_of(source: &str, variables: &[(&str, Type)]) -> Result<Type, String> {
    Program::check(source, variables).map(|it| it.root.of)
}

impl Program {
    /// Parses and checks an expression over these variables.
    pub(crate) fn compile(source: &str, variables: &[(&str, Type)]) -> Result<Self, Refused> {
        let program = Self::check(source, variables).map_err(Refused::Wrong)?;
        eval::constants(&program.root).map_err(Refused::Fails)?;
        Ok(program)
    }

    fn check(source: &str, variables: &[(&str, Type)]) -> Result<Self, String> {
        let chars: Vec<char> = source.chars().collect();
        if chars.len() > LENGTH_MAX {
            return Err(format!(
                "ERROR: <input>:-1:0: expression code point size exceeds limit: size: {}, limit {LENGTH_MAX}",
                chars.len()
            ));
        }
        let parsed = parse::parse(&chars).and_then(|mut root| {
            let variables = check::check(&mut root, variables)?;
            Ok(Self { root, variables })
        });
        parsed.map_err(|errors| ast::display(errors, source))
    }

    /// The type of its value.
    pub(crate) fn output(&self) -> &Type {
        &self.root.of
    }

    pub(crate) fn mentions(&self, variable: &str) -> bool {
        self.variables.iter().any(|it| **it == *variable)
    }

    /// What an evaluation costs at most, for values of `root` (the variables named first in paths).
    pub(crate) fn cost_max(&self, root: &Decl) -> u64 {
        cost::estimate(&self.root, root).max
    }

    /// Evaluates it. The second is what it cost, at most a little more than `limit`.
    pub(crate) fn evaluate<'a>(
        &'a self,
        variables: &[(&'static str, Value<'a>)],
        limit: u64,
    ) -> (Result<Value<'a>, Failed>, u64) {
        self.evaluate_in(variables.iter().map(|(name, value)| (*name, Ok(value.clone()))).collect(), limit)
    }

    /// [`Program::evaluate`] with variables that may have failed, which matters when they are looked at.
    pub(crate) fn evaluate_in<'a>(
        &'a self,
        variables: Vec<(&'a str, Result<Value<'a>, Failed>)>,
        limit: u64,
    ) -> (Result<Value<'a>, Failed>, u64) {
        eval::evaluate(&self.root, variables, limit)
    }
}

#[cfg(test)]
mod tests;
