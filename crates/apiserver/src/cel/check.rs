//! Types of every part of an expression, or what is wrong with it: cel-go's `checker.go` with its validators of
//! literals.

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{Call, Expr, Fold, Kind, Literal, Mistake};
use super::declare::{self, Overload};
use super::types::{Mapping, Type, less_specific};
use super::{text, time};

/// Fills in the types and overloads; the variables that are mentioned.
pub(super) fn check(root: &mut Expr, variables: &[(&str, Type)]) -> Result<Vec<Arc<str>>, Vec<Mistake>> {
    let known = variables.iter().map(|(name, of)| (Arc::from(*name), vec![of.clone()])).collect();
    let mut checker =
        Checker { scope: known, mapping: Mapping::default(), params: 0, mentioned: Vec::new(), mistakes: Vec::new() };
    checker.expr(root);
    if checker.mistakes.is_empty() {
        checker.finish(root, false);
    }
    if checker.mistakes.is_empty() { Ok(checker.mentioned) } else { Err(checker.mistakes) }
}

struct Checker {
    /// The types by their names, the innermost last.
    scope: HashMap<Arc<str>, Vec<Type>>,
    mapping: Mapping,
    params: u32,
    mentioned: Vec<Arc<str>>,
    mistakes: Vec<Mistake>,
}

fn scalar(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::Text(_) => Type::Text,
        Literal::Bytes(_) => Type::Bytes,
    }
}

impl Checker {
    fn note(&mut self, at: usize, said: String) {
        self.mistakes.push(Mistake { at: Some(at), said });
    }

    fn fresh(&mut self) -> Type {
        self.params += 1;
        Type::Param(self.params + 1000)
    }

    fn fits(&mut self, a: &Type, b: &Type) -> bool {
        self.mapping.assignable(std::slice::from_ref(a), std::slice::from_ref(b))
    }

    fn identifier(&mut self, name: &str) -> Option<Type> {
        if let Some(of) = self.scope.get(name).and_then(|all| all.last()).cloned() {
            if !self.mentioned.iter().any(|it| **it == *name) {
                self.mentioned.push(name.into());
            }
            return Some(of);
        }
        declare::named_type(name).map(|of| Type::Kind(Some(Arc::new(of))))
    }

    fn undeclared(&mut self, at: usize, name: &str) {
        self.note(at, format!("undeclared reference to '{name}' (in container '')"));
    }

    fn expr(&mut self, expr: &mut Expr) {
        let at = expr.at;
        let qualified = expr.qualified();
        let of = match &mut expr.kind {
            Kind::Literal(literal) => scalar(literal),
            Kind::Ident(name) => match self.identifier(name) {
                Some(of) => of,
                None => {
                    let name = name.clone();
                    self.undeclared(at, &name);
                    Type::Error
                }
            },
            Kind::Select { operand, field, test } => {
                let named = qualified.and_then(|name| Some((self.identifier(&name)?, name)));
                if let Some((of, name)) = named {
                    expr.kind = Kind::Ident(name.into());
                    of
                } else {
                    self.expr(operand);
                    let of = self.field(at, &operand.of, field, false);
                    if *test { Type::Bool } else { of }
                }
            }
            Kind::Call(call) => self.call(at, call),
            Kind::List(items) => {
                let mut of: Option<Type> = None;
                for item in items {
                    self.expr(&mut item.value);
                    let unwrapped = self.unwrapped(&item.value, item.optional);
                    of = Some(self.joined(of, unwrapped));
                }
                Type::list(of.unwrap_or_else(|| self.fresh()))
            }
            Kind::Map(entries) => {
                let (mut key, mut value): (Option<Type>, Option<Type>) = (None, None);
                for entry in entries {
                    self.expr(&mut entry.key);
                    key = Some(self.joined(key, entry.key.of.clone()));
                    self.expr(&mut entry.value);
                    let unwrapped = self.unwrapped(&entry.value, entry.optional);
                    value = Some(self.joined(value, unwrapped));
                }
                Type::map(key.unwrap_or_else(|| self.fresh()), value.unwrap_or_else(|| self.fresh()))
            }
            Kind::Struct(name) => {
                let name = name.clone();
                match declare::named_type(&name) {
                    Some(_) => self.note(at, format!("'{name}' is not a message type")),
                    None => self.undeclared(at, &name),
                }
                Type::Error
            }
            Kind::Fold(fold) => self.fold(fold),
        };
        expr.of = of;
    }

    /// The type of what an optional item or entry holds.
    fn unwrapped(&mut self, value: &Expr, optional: bool) -> Type {
        match &value.of {
            Type::Optional(inner) if optional => (**inner).clone(),
            of if optional && !of.is_dyn() => {
                self.note(value.at, format!("expected type 'optional_type({of})' but found '{of}'"));
                of.clone()
            }
            of => of.clone(),
        }
    }

    /// The type of both; whether a literal may mix them is looked at when all types are known.
    fn joined(&mut self, before: Option<Type>, next: Type) -> Type {
        let Some(before) = before else { return next };
        if !self.fits(&before, &next) {
            return Type::Dyn;
        }
        if less_specific(&before, &next) { before } else { next }
    }

    fn field(&mut self, at: usize, operand: &Type, field: &str, optional: bool) -> Type {
        let operand = self.mapping.substitute(operand, false);
        let (target, within) = match &operand {
            Type::Optional(inner) => ((**inner).clone(), true),
            other => (other.clone(), false),
        };
        let of = match &target {
            Type::Map(types) => types.1.clone(),
            Type::Object(decl) => match decl.slot(field) {
                Some(slot) => slot.decl.type_of(),
                None => {
                    self.note(at, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Library("net.IP" | "net.CIDR") => {
                self.note(at, format!("type '{target}' does not support field selection"));
                Type::Dyn
            }
            Type::Library(_) => {
                self.note(at, format!("unexpected failed resolution of '{target}'"));
                Type::Error
            }
            Type::Param(_) => {
                self.fits(&Type::Dyn, &target);
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                self.note(at, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        let of = self.mapping.substitute(&of, false);
        if within || optional { Type::optional(of) } else { of }
    }

    fn call(&mut self, at: usize, call: &mut Call) -> Type {
        if &*call.function == "_?._" {
            let [operand, field] = call.args.as_mut_slice() else { return Type::Error };
            self.expr(operand);
            let Kind::Literal(Literal::Text(name)) = &field.kind else { return Type::Error };
            let of = self.field(at, &operand.of, &name.clone(), true);
            field.of = Type::Text;
            call.overloads = vec!["select_optional_field"];
            return of;
        }
        for arg in &mut call.args {
            self.expr(arg);
        }
        let Some(target) = &mut call.target else {
            let Some(overloads) = declare::function(&call.function) else {
                self.undeclared(at, &call.function.clone());
                return Type::Error;
            };
            return self.resolve(at, call, overloads);
        };
        // `sets.contains(...)`: the target is a part of the name.
        let full = target.qualified().map(|prefix| format!("{prefix}.{}", call.function));
        if let Some((full, overloads)) = full.and_then(|full| declare::function(&full).map(|found| (full, found))) {
            call.function = full.into();
            call.target = None;
            return self.resolve(at, call, overloads);
        }
        self.expr(target);
        let Some(overloads) = declare::function(&call.function) else {
            self.undeclared(at, &call.function.clone());
            return Type::Error;
        };
        self.resolve(at, call, overloads)
    }

    fn resolve(&mut self, at: usize, call: &mut Call, overloads: &'static [Overload]) -> Type {
        let args: Vec<Type> =
            call.target.iter().map(|it| it.of.clone()).chain(call.args.iter().map(|it| it.of.clone())).collect();
        if matches!(&*call.function, "_&&_" | "_||_") {
            let before = self.mistakes.len();
            for arg in &call.args {
                if !self.fits(&arg.of, &Type::Bool) {
                    self.note(arg.at, format!("expected type 'bool' but found '{}'", arg.of));
                }
            }
            call.overloads = overloads.iter().map(|it| it.id).collect();
            return if self.mistakes.len() > before { Type::Error } else { Type::Bool };
        }
        let mut result: Option<Type> = None;
        for overload in overloads.iter().filter(|it| it.member == call.target.is_some()) {
            let mut fresh = Mapping::default();
            for id in 0..overload.params {
                let param = self.fresh();
                fresh.add(id, param);
            }
            let wanted: Vec<Type> = overload.args.iter().map(|it| fresh.substitute(it, false)).collect();
            if !self.mapping.assignable(&args, &wanted) {
                continue;
            }
            call.overloads.push(overload.id);
            let of = self.mapping.substitute(&fresh.substitute(&overload.result, false), false);
            result = Some(match result {
                Some(before) if before.is_dyn() || of.is_exactly(&before) => before,
                Some(_) => Type::Dyn,
                None => of,
            });
        }
        result.unwrap_or_else(|| {
            let mut shown: Vec<String> = args.iter().map(|it| self.mapping.substitute(it, true).to_string()).collect();
            let target = if call.target.is_some() { format!("{}.", shown.remove(0)) } else { String::new() };
            let said = format!(
                "found no matching overload for '{}' applied to '{target}({})'",
                call.function,
                shown.join(", ")
            );
            self.note(at, said);
            Type::Error
        })
    }

    fn push(&mut self, name: &Arc<str>, of: Type) {
        self.scope.entry(name.clone()).or_default().push(of);
    }

    fn pop(&mut self, name: &str) {
        if let Some(all) = self.scope.get_mut(name) {
            all.pop();
        }
    }

    fn fold(&mut self, fold: &mut Fold) -> Type {
        self.expr(&mut fold.range);
        self.expr(&mut fold.init);
        let range = self.mapping.substitute(&fold.range.of, false);
        let accu = fold.init.of.clone();
        self.push(&fold.accu, accu.clone());
        let (first, second) = match &range {
            Type::List(item) if fold.var2.is_some() => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(types) => (types.0.clone(), types.1.clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.fits(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let said = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.note(fold.range.at, said);
                (Type::Error, Type::Error)
            }
        };
        self.push(&fold.var, first);
        if let Some(var2) = fold.var2.clone() {
            self.push(&var2, second);
        }
        self.expr(&mut fold.condition);
        self.is(&fold.condition, &Type::Bool);
        self.expr(&mut fold.step);
        self.is(&fold.step, &accu);
        self.pop(&fold.var.clone());
        if let Some(var2) = fold.var2.clone() {
            self.pop(&var2);
        }
        self.expr(&mut fold.result);
        self.pop(&fold.accu.clone());
        self.mapping.substitute(&fold.result.of, false)
    }

    fn is(&mut self, expr: &Expr, of: &Type) {
        if !self.fits(of, &expr.of) {
            self.note(expr.at, format!("expected type '{of}' but found '{}'", expr.of));
        }
    }

    /// Puts in what was learnt of the types later, and looks at literals that must be right. `mixed`: lists and maps may
    /// hold what they like, as the arguments of `format` do.
    fn finish(&mut self, expr: &mut Expr, mixed: bool) {
        expr.of = self.mapping.substitute(&expr.of, true);
        match &mut expr.kind {
            Kind::Literal(_) | Kind::Ident(_) | Kind::Struct(_) => {}
            Kind::Select { operand, .. } => self.finish(operand, mixed),
            Kind::Call(call) => {
                let mixed = mixed || &*call.function == "format";
                call.target.iter_mut().for_each(|it| self.finish(it, mixed));
                call.args.iter_mut().for_each(|it| self.finish(it, mixed));
                self.literals(call);
                if &*call.function == "format" {
                    self.formatted(expr.at, call);
                }
            }
            Kind::List(items) => {
                items.iter_mut().for_each(|it| self.finish(&mut it.value, mixed));
                let types = items.iter().map(|it| (&it.value, it.optional));
                self.alike(types.collect(), mixed);
            }
            Kind::Map(entries) => {
                for entry in entries.iter_mut() {
                    self.finish(&mut entry.key, mixed);
                    self.finish(&mut entry.value, mixed);
                }
                self.alike(entries.iter().map(|it| (&it.key, false)).collect(), mixed);
                self.alike(entries.iter().map(|it| (&it.value, it.optional)).collect(), mixed);
            }
            Kind::Fold(fold) => {
                for part in [&mut fold.range, &mut fold.init, &mut fold.condition, &mut fold.step, &mut fold.result] {
                    self.finish(part, mixed);
                }
            }
        }
    }

    /// Whether what a text asks for is in the list that follows, where both are literals.
    fn formatted(&mut self, at: usize, call: &Call) {
        let Some(Kind::Literal(Literal::Text(clause))) = call.target.as_ref().map(|it| &it.kind) else { return };
        let Some(Kind::List(items)) = call.args.first().map(|it| &it.kind) else { return };
        let mut asked = 0;
        for clause in text::clauses(clause) {
            let verb = match clause {
                Ok(text::Clause::Verb(verb, _)) => verb,
                Ok(text::Clause::Text(_)) => continue,
                Err(why) => return self.note(at, why),
            };
            let Some(item) = items.get(asked) else {
                return self.note(at, format!("index {asked} out of range"));
            };
            asked += 1;
            use Type::{Bool, Bytes, Double, Int, Library, Object, Optional, Text, Uint};
            let of = &item.value.of;
            let fits = match verb {
                _ if of.is_dyn() => true,
                'd' | 'o' => matches!(of, Int | Uint),
                'f' | 'e' => matches!(of, Double | Text),
                'b' => matches!(of, Int | Uint | Bool),
                'x' | 'X' => matches!(of, Int | Uint | Text | Bytes),
                _ => !matches!(of, Object(_) | Optional(_) | Library(_)),
            };
            if !fits {
                let said = format!("error during formatting: {}, was given {of}", text::usage(verb));
                return self.note(item.value.at, said);
            }
        }
    }

    /// Parts of a literal are of one type.
    fn alike(&mut self, parts: Vec<(&Expr, bool)>, mixed: bool) {
        let of = |(part, optional): &(&Expr, bool)| match &part.of {
            Type::Optional(inner) if *optional => (**inner).clone(),
            other => other.clone(),
        };
        let Some(first) = parts.first().map(of).filter(|_| !mixed) else { return };
        if let Some(other) = parts.iter().find(|it| !of(it).is_exactly(&first)) {
            self.note(other.0.at, format!("expected type '{first}' but found '{}'", of(other)));
        }
    }

    fn literals(&mut self, call: &mut Call) {
        let function = call.function.clone();
        let at = match &*function {
            "matches" => usize::from(call.target.is_none()),
            "find" | "findAll" | "duration" | "timestamp" => 0,
            _ => return,
        };
        let Some(Expr { kind: Kind::Literal(Literal::Text(literal)), at, .. }) = call.args.get(at) else { return };
        let (literal, at) = (literal.clone(), *at);
        match &*function {
            "duration" => {
                if time::duration(&literal).is_err() {
                    self.note(at, "invalid duration argument".to_owned());
                }
            }
            "timestamp" => {
                if time::timestamp(&literal).is_err() {
                    self.note(at, "invalid timestamp argument".to_owned());
                }
            }
            _ => match text::regex(&literal) {
                Ok(regex) => call.regex = Some(Arc::new(regex)),
                Err(_) if &*function == "matches" => self.note(at, "invalid matches argument".to_owned()),
                // What is no method of the standard library fails when it is called.
                Err(_) => {}
            },
        }
    }
}
