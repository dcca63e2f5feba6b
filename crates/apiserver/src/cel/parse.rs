//! From tokens to a tree, macros expanded on the way: cel-go's parser.

use std::sync::Arc;

use super::ast::{ACCU, Entry, Expr, Fold, Item, Kind, Literal, Mistake};
use super::token::{Spot, Token, tokens};
use super::{DEPTH_MAX, LENGTH_MAX, NEST_MAX, RESERVED};

/// By sign: the function, and how tightly it binds.
const OPERATORS: [(&str, &str, u8); 14] = [
    ("||", "_||_", 0),
    ("&&", "_&&_", 1),
    ("<", "_<_", 2),
    ("<=", "_<=_", 2),
    (">=", "_>=_", 2),
    (">", "_>_", 2),
    ("==", "_==_", 2),
    ("!=", "_!=_", 2),
    ("in", "@in", 2),
    ("+", "_+_", 3),
    ("-", "_-_", 3),
    ("*", "_*_", 4),
    ("/", "_/_", 4),
    ("%", "_%_", 4),
];
/// Macros may double so many nodes.
const COPIES_MAX: usize = 10_000;
const EXPECTED: &str =
    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

pub(super) fn parse(chars: &[char]) -> Result<Expr, Vec<Mistake>> {
    let (spots, mistakes) = tokens(chars);
    let mut parser = Parser { chars, spots, next: 0, depth: 0, copied: 0, mistakes };
    let whole = parser.expression().and_then(|root| match parser.token() {
        Token::End => Ok(root),
        _ => Err(parser.left_over()),
    });
    match whole {
        Ok(root) if parser.mistakes.is_empty() => Ok(root),
        Ok(_) => Err(parser.mistakes),
        Err(mistake) => {
            parser.mistakes.push(mistake);
            Err(parser.mistakes)
        }
    }
}

struct Parser<'a> {
    chars: &'a [char],
    spots: Vec<Spot>,
    next: usize,
    depth: usize,
    /// Nodes that macros have doubled.
    copied: usize,
    /// Those after which parsing goes on.
    mistakes: Vec<Mistake>,
}

type Parsed = Result<Expr, Mistake>;

impl Parser<'_> {
    fn spot(&self) -> Option<&Spot> {
        self.spots.get(self.next)
    }

    fn token(&self) -> &Token {
        self.spot().map_or(&Token::End, |it| &it.token)
    }

    fn at(&self) -> usize {
        self.spot().map_or(self.chars.len(), |it| it.at)
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.token(), Token::Sign(it) if *it == sign)
    }

    /// Goes on when the next token is this sign; where it was.
    fn skip(&mut self, sign: &str) -> Option<usize> {
        let at = self.at();
        self.is(sign).then(|| {
            self.next += 1;
            at
        })
    }

    fn need(&mut self, sign: &'static str) -> Result<usize, Mistake> {
        self.skip(sign).ok_or_else(|| match (self.token(), sign) {
            (Token::End, ")") => {
                Mistake { at: Some(self.at()), said: "Syntax error: missing ')' at '<EOF>'".to_owned() }
            }
            (_, "]" | "}") => self.unexpected(&format!("{{'{sign}', ','}}")),
            _ => self.unexpected(&format!("'{sign}'")),
        })
    }

    /// What follows the expression.
    fn left_over(&self) -> Mistake {
        let mut mistake = self.unexpected("<EOF>");
        if matches!(self.spots.get(self.next + 1), Some(Spot { token: Token::End, .. })) {
            mistake.said = mistake.said.replacen("mismatched", "extraneous", 1);
        }
        mistake
    }

    /// The next token as it was written.
    fn text(&self) -> String {
        match self.spot() {
            Some(spot) if spot.token != Token::End => {
                self.chars.get(spot.at..spot.end).unwrap_or_default().iter().collect()
            }
            _ => "<EOF>".to_owned(),
        }
    }

    fn unexpected(&self, expected: &str) -> Mistake {
        let text = self.text();
        Mistake { at: Some(self.at()), said: format!("Syntax error: mismatched input '{text}' expecting {expected}") }
    }

    fn note(&mut self, at: usize, said: impl Into<String>) {
        self.mistakes.push(Mistake { at: Some(at), said: said.into() });
    }

    /// One level deeper, within bounds.
    fn deeper<T>(&mut self, then: impl FnOnce(&mut Self) -> Result<T, Mistake>) -> Result<T, Mistake> {
        if self.depth >= NEST_MAX || self.chars.len() > LENGTH_MAX {
            return Err(too_deep());
        }
        self.depth += 1;
        let out = then(self);
        self.depth -= 1;
        out
    }

    /// Within the height that a tree may have.
    fn low(&self, expr: Expr) -> Parsed {
        if expr.height <= DEPTH_MAX { Ok(expr) } else { Err(too_deep()) }
    }

    fn expression(&mut self) -> Parsed {
        self.deeper(|this| {
            let condition = this.binary(0)?;
            let Some(at) = this.skip("?") else { return Ok(condition) };
            let yes = this.binary(0)?;
            this.need(":")?;
            let no = this.expression()?;
            this.low(Expr::call(at, "_?_:_", vec![condition, yes, no]))
        })
    }

    /// Operators that bind at least so tightly.
    fn binary(&mut self, tightness: u8) -> Parsed {
        let mut left = self.unary()?;
        loop {
            let Token::Sign(sign) = self.token() else { return Ok(left) };
            let sign = *sign;
            let found = OPERATORS.iter().find(|(it, _, bound)| *it == sign && *bound >= tightness);
            let Some((_, function, bound)) = found else { return Ok(left) };
            if matches!(sign, "&&" | "||") {
                let (mut terms, mut operators) = (vec![left], Vec::new());
                while let Some(at) = self.skip(sign) {
                    operators.push(at);
                    terms.push(self.binary(bound + 1)?);
                }
                left = balanced(function, &mut terms.into_iter(), &operators);
            } else {
                let at = self.need(sign)?;
                left = Expr::call(at, function, vec![left, self.binary(bound + 1)?]);
            }
            left = self.low(left)?;
        }
    }

    fn unary(&mut self) -> Parsed {
        for (sign, function) in [("!", "!_"), ("-", "-_")] {
            if !self.is(sign) {
                continue;
            }
            let number =
                matches!(self.spots.get(self.next + 1), Some(Spot { token: Token::Int(_) | Token::Double(_), .. }));
            if sign == "-" && number {
                return self.member();
            }
            let at = self.at();
            let mut count = 0;
            while self.skip(sign).is_some() {
                count += 1;
            }
            let operand = self.member()?;
            return Ok(if count % 2 == 0 { operand } else { Expr::call(at, function, vec![operand]) });
        }
        self.member()
    }

    fn member(&mut self) -> Parsed {
        let mut left = self.primary()?;
        loop {
            left = self.low(left)?;
            if let Some(dot) = self.skip(".") {
                let optional = self.skip("?");
                let Token::Ident(name) = self.token().clone() else {
                    let said = format!("Syntax error: no viable alternative at input '.{}'", self.text());
                    return Err(Mistake { at: Some(self.at()), said });
                };
                if matches!(name.as_str(), "true" | "false" | "null") {
                    return Err(self.unexpected("IDENTIFIER"));
                }
                self.next += 1;
                match self.skip("(") {
                    Some(open) if optional.is_none() => {
                        let args = self.arguments()?;
                        left = self.invoke(open, left, &name, args)?;
                    }
                    _ if optional.is_some() => {
                        let field = Expr::literal(dot, Literal::Text(name.as_str().into()));
                        left = Expr::call(dot, "_?._", vec![left, field]);
                    }
                    _ => {
                        let select = Kind::Select { operand: Box::new(left), field: name.as_str().into(), test: false };
                        left = Expr::new(dot, select);
                    }
                }
            } else if let Some(open) = self.skip("[") {
                let function = if self.skip("?").is_some() { "_[?_]" } else { "_[_]" };
                let index = self.expression()?;
                self.need("]")?;
                left = Expr::call(open, function, vec![left, index]);
            } else if self.is("{")
                && let Some(name) = left.qualified()
            {
                let open = self.need("{")?;
                self.fields()?;
                left = Expr::new(open, Kind::Struct(name.into()));
            } else {
                return Ok(left);
            }
        }
    }

    /// What is initialised in a message, of which there are none: only its form counts.
    fn fields(&mut self) -> Result<(), Mistake> {
        while !self.is("}") {
            self.skip("?");
            match self.token() {
                Token::Ident(_) => self.next += 1,
                _ => return Err(self.unexpected("IDENTIFIER")),
            }
            self.need(":")?;
            self.expression()?;
            if self.skip(",").is_none() {
                break;
            }
        }
        self.need("}").map(drop)
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, Mistake> {
        let mut args = Vec::new();
        while !self.is(")") {
            args.push(self.expression()?);
            if self.skip(",").is_none() {
                break;
            }
        }
        self.need(")")?;
        Ok(args)
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        let token = self.token().clone();
        self.next += 1;
        match token {
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.need(")")?;
                Ok(inner)
            }
            Token::Sign("[") => self.list(at),
            Token::Sign("{") => self.map(at),
            Token::Sign("-") => match self.token().clone() {
                Token::Int(text) => {
                    self.next += 1;
                    Ok(self.int(at, &format!("-{text}")))
                }
                Token::Double(text) => {
                    self.next += 1;
                    Ok(self.double(at, &format!("-{text}")))
                }
                _ => Err(self.unexpected(EXPECTED)),
            },
            Token::Int(text) => Ok(self.int(at, &text)),
            Token::Double(text) => Ok(self.double(at, &text)),
            Token::Uint(text) => match whole(&text).and_then(|value| u64::try_from(value).ok()) {
                Some(value) => Ok(Expr::literal(at, Literal::Uint(value))),
                None => {
                    self.note(at, "invalid uint literal");
                    Ok(Expr::literal(at, Literal::Uint(0)))
                }
            },
            Token::Text(text) => Ok(Expr::literal(at, Literal::Text(text.into()))),
            Token::Bytes(bytes) => Ok(Expr::literal(at, Literal::Bytes(bytes.into()))),
            Token::Ident(name) => self.named(at, &name),
            Token::Sign(".") => match self.token().clone() {
                Token::Ident(name) => {
                    self.next += 1;
                    self.named(at, &name)
                }
                _ => Err(self.unexpected("IDENTIFIER")),
            },
            _ => {
                self.next -= 1;
                Err(self.unexpected(EXPECTED))
            }
        }
    }

    fn named(&mut self, at: usize, name: &str) -> Parsed {
        match name {
            "true" => return Ok(Expr::literal(at, Literal::Bool(true))),
            "false" => return Ok(Expr::literal(at, Literal::Bool(false))),
            "null" => return Ok(Expr::literal(at, Literal::Null)),
            _ => {}
        }
        if RESERVED.contains(&name) {
            self.note(at, format!("reserved identifier: {name}"));
        }
        let Some(open) = self.skip("(") else { return Ok(Expr::ident(at, name)) };
        let mut args = self.arguments()?;
        if name == "has" && args.len() == 1 {
            return match args.pop() {
                Some(Expr { kind: Kind::Select { operand, field, .. }, .. }) => {
                    Ok(Expr::new(open, Kind::Select { operand, field, test: true }))
                }
                other => {
                    self.note(other.map_or(open, |it| it.at), "invalid argument to has() macro");
                    Ok(Expr::literal(open, Literal::Bool(false)))
                }
            };
        }
        Ok(Expr::call(open, name, args))
    }

    fn int(&mut self, at: usize, text: &str) -> Expr {
        let value = whole(text).and_then(|value| i64::try_from(value).ok());
        if value.is_none() {
            self.note(at, "invalid int literal");
        }
        Expr::literal(at, Literal::Int(value.unwrap_or_default()))
    }

    fn double(&mut self, at: usize, text: &str) -> Expr {
        let value = text.parse().ok().filter(|it: &f64| it.is_finite());
        if value.is_none() {
            self.note(at, "invalid double literal");
        }
        Expr::literal(at, Literal::Double(value.unwrap_or_default()))
    }

    fn list(&mut self, at: usize) -> Parsed {
        let mut items = Vec::new();
        while !self.is("]") {
            let optional = self.skip("?").is_some();
            items.push(Item { value: self.expression()?, optional });
            if self.skip(",").is_none() {
                break;
            }
        }
        self.need("]")?;
        Ok(Expr::new(at, Kind::List(items)))
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        while !self.is("}") {
            let optional = self.skip("?").is_some();
            let key = self.expression()?;
            self.need(":")?;
            entries.push(Entry { key, value: self.expression()?, optional });
            if self.skip(",").is_none() {
                break;
            }
        }
        self.need("}")?;
        Ok(Expr::new(at, Kind::Map(entries)))
    }

    /// A method, or a macro.
    fn invoke(&mut self, at: usize, target: Expr, name: &str, args: Vec<Expr>) -> Parsed {
        let name_of = |this: &mut Self, arg: Option<Expr>| -> Arc<str> {
            match arg {
                Some(Expr { kind: Kind::Ident(name), .. }) => {
                    if *name == *ACCU {
                        this.note(at, "iteration variable overwrites accumulator variable");
                    }
                    name
                }
                other => {
                    this.note(other.map_or(at, |it| it.at), "argument must be a simple name");
                    "_".into()
                }
            }
        };
        let (count, mut rest) = (args.len(), args.into_iter());
        let two = match (name, count) {
            ("all" | "exists" | "exists_one" | "existsOne" | "filter", 2) | ("map", 2 | 3) => false,
            ("optMap" | "optFlatMap", 2) => {
                // The target stands in the expansion twice.
                self.copied += target.nodes();
                if self.copied > COPIES_MAX {
                    return Err(Mistake { at: Some(at), said: "optional macros are nested too deeply".to_owned() });
                }
                let var = name_of(self, rest.next());
                let body = rest.next().unwrap_or_else(|| Expr::literal(at, Literal::Null));
                return Ok(optional_map(at, target, var, body, name == "optFlatMap"));
            }
            ("all" | "exists" | "exists_one" | "existsOne", 3)
            | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => true,
            _ => return Ok(Expr::invoke(at, name, Some(target), rest.collect())),
        };
        let var = name_of(self, rest.next());
        let var2 = if two { Some(name_of(self, rest.next())) } else { None };
        if var2.as_ref().is_some_and(|var2| *var2 == var) {
            self.note(at, format!("duplicate variable name: {var}"));
        }
        let Some(first) = rest.next() else { return Ok(Expr::invoke(at, name, Some(target), Vec::new())) };
        Ok(fold(at, name, target, (var, var2), first, rest.next()))
    }
}

fn too_deep() -> Mistake {
    Mistake { at: None, said: format!("expression recursion limit exceeded: {DEPTH_MAX}") }
}

fn whole(text: &str) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |it| (true, it));
    let value = match digits.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    value.ok().map(|value| if negative { -value } else { value })
}

/// Logical operators as a balanced tree.
fn balanced(function: &str, terms: &mut impl Iterator<Item = Expr>, operators: &[usize]) -> Expr {
    if operators.is_empty() {
        return terms.next().unwrap_or_else(|| Expr::literal(0, Literal::Bool(true)));
    }
    let middle = (operators.len() - 1) / 2;
    let (left, rest) = operators.split_at(middle);
    let (at, right) = rest.split_first().map_or((0, &[][..]), |(at, right)| (*at, right));
    let left = balanced(function, terms, left);
    let right = balanced(function, terms, right);
    Expr::call(at, function, vec![left, right])
}

/// The macros over lists and maps, as cel-go expands them.
fn fold(
    at: usize,
    name: &str,
    range: Expr,
    (var, var2): (Arc<str>, Option<Arc<str>>),
    first: Expr,
    second: Option<Expr>,
) -> Expr {
    let accu = || Expr::ident(at, ACCU);
    let yes = |value| Expr::literal(at, Literal::Bool(value));
    let list = |items: Vec<Expr>| {
        Expr::new(at, Kind::List(items.into_iter().map(|value| Item { value, optional: false }).collect()))
    };
    let when = |filter: Option<Expr>, step: Expr| match filter {
        Some(filter) => Expr::call(at, "_?_:_", vec![filter, step, accu()]),
        None => step,
    };
    let call = |function: &str, args: Vec<Expr>| Expr::call(at, function, args);
    let (filter, body) = match second {
        Some(body) => (Some(first), body),
        None => (None, first),
    };
    let (init, condition, step, result) = match name {
        "all" => (yes(true), call("@not_strictly_false", vec![accu()]), call("_&&_", vec![accu(), body]), accu()),
        "exists" => {
            let condition = call("@not_strictly_false", vec![call("!_", vec![accu()])]);
            (yes(false), condition, call("_||_", vec![accu(), body]), accu())
        }
        "exists_one" | "existsOne" => {
            let (zero, one) = (Expr::literal(at, Literal::Int(0)), || Expr::literal(at, Literal::Int(1)));
            let step = call("_?_:_", vec![body, call("_+_", vec![accu(), one()]), accu()]);
            (zero, yes(true), step, call("_==_", vec![accu(), one()]))
        }
        "filter" => {
            let item = Expr::ident(at, &var);
            let step = call("_?_:_", vec![body, call("_+_", vec![accu(), list(vec![item])]), accu()]);
            (list(Vec::new()), yes(true), step, accu())
        }
        "transformMap" => {
            let step = call("cel.@mapInsert", vec![accu(), Expr::ident(at, &var), body]);
            (Expr::new(at, Kind::Map(Vec::new())), yes(true), when(filter, step), accu())
        }
        "transformMapEntry" => {
            let step = call("cel.@mapInsert", vec![accu(), body]);
            (Expr::new(at, Kind::Map(Vec::new())), yes(true), when(filter, step), accu())
        }
        _ => {
            let step = call("_+_", vec![accu(), list(vec![body])]);
            (list(Vec::new()), yes(true), when(filter, step), accu())
        }
    };
    Expr::new(at, Kind::Fold(Box::new(Fold { range, var, var2, accu: ACCU.into(), init, condition, step, result })))
}

/// `target.hasValue() ? optional.of(body with var = target.value()) : optional.none()`.
fn optional_map(at: usize, target: Expr, var: Arc<str>, body: Expr, flat: bool) -> Expr {
    let bind = Fold {
        range: Expr::new(at, Kind::List(Vec::new())),
        var: "#unused".into(),
        var2: None,
        accu: var.clone(),
        init: Expr::invoke(at, "value", Some(target.clone()), Vec::new()),
        condition: Expr::literal(at, Literal::Bool(false)),
        step: Expr::ident(at, &var),
        result: body,
    };
    let bound = Expr::new(at, Kind::Fold(Box::new(bind)));
    let bound = if flat { bound } else { Expr::call(at, "optional.of", vec![bound]) };
    let has = Expr::invoke(at, "hasValue", Some(target), Vec::new());
    Expr::call(at, "_?_:_", vec![has, bound, Expr::call(at, "optional.none", Vec::new())])
}
