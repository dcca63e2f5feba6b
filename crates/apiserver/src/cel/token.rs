//! From characters to tokens: cel-go's `CEL.g4`.

use super::ast::Mistake;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Ident(String),
    Int(String),
    Uint(String),
    Double(String),
    Text(String),
    Bytes(Vec<u8>),
    /// An operator or a bracket.
    Sign(&'static str),
    End,
}

/// A token, where it begins and where it ends (in characters).
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) token: Token,
    pub(super) at: usize,
    pub(super) end: usize,
}

/// More are not told.
const MISTAKES_MAX: usize = 10;

const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*", "/", "%",
    "<", ">",
];

/// The tokens, and what is none.
pub(super) fn tokens(chars: &[char]) -> (Vec<Spot>, Vec<Mistake>) {
    let mut lexer = Lexer { chars, at: 0 };
    let (mut all, mut mistakes) = (Vec::new(), Vec::new());
    loop {
        lexer.blanks();
        let at = lexer.at;
        match lexer.token() {
            Some(token) => {
                let end = token == Token::End;
                all.push(Spot { token, at, end: lexer.at });
                if end {
                    return (all, mistakes);
                }
            }
            None => {
                lexer.at = lexer.at.max(at + 1);
                let text: String = chars.get(at..lexer.at).unwrap_or_default().iter().collect();
                let said = format!("Syntax error: token recognition error at: '{text}'");
                if mistakes.len() < MISTAKES_MAX {
                    mistakes.push(Mistake { at: Some(at), said });
                }
            }
        }
    }
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn take(&mut self, while_: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(&while_) {
            self.at += 1;
        }
        self.chars.get(start..self.at).unwrap_or_default().iter().collect()
    }

    fn blanks(&mut self) {
        loop {
            self.take(|c| matches!(c, '\t' | ' ' | '\r' | '\n' | '\u{c}'));
            if self.peek(0) == Some('/') && self.peek(1) == Some('/') {
                self.take(|c| c != '\n');
            } else {
                return;
            }
        }
    }

    /// The next token; `None` when there is none, after what is no token.
    fn token(&mut self) -> Option<Token> {
        let Some(c) = self.peek(0) else { return Some(Token::End) };
        if c.is_ascii_digit() || c == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            return Some(self.number());
        }
        if let Some((bytes, raw, length)) = self.quote() {
            self.at += length;
            return self.string(bytes, raw);
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let name = self.take(|c| c.is_ascii_alphanumeric() || c == '_');
            return Some(if name == "in" { Token::Sign("in") } else { Token::Ident(name) });
        }
        let fits = |sign: &&&str| sign.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c));
        let found = SIGNS.iter().find(fits);
        // The first half of a sign: what follows is not the other.
        let half = usize::from(found.is_none() && matches!(c, '=' | '&' | '|') && self.peek(1).is_some());
        self.at += found.map_or(1 + half, |sign| sign.len());
        found.map(|sign| Token::Sign(sign))
    }

    fn number(&mut self) -> Token {
        let start = self.at;
        if self.peek(0) == Some('0') && self.peek(1) == Some('x') && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit())
        {
            self.at += 2;
            let digits = format!("0x{}", self.take(|c| c.is_ascii_hexdigit()));
            return self.unsigned(digits);
        }
        self.take(|c| c.is_ascii_digit());
        let mut float = false;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            float = true;
            self.at += 1;
            self.take(|c| c.is_ascii_digit());
        }
        let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
        if matches!(self.peek(0), Some('e' | 'E')) && self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
            float = true;
            self.at += 1 + sign;
            self.take(|c| c.is_ascii_digit());
        }
        let text: String = self.chars.get(start..self.at).unwrap_or_default().iter().collect();
        if float { Token::Double(text) } else { self.unsigned(text) }
    }

    fn unsigned(&mut self, digits: String) -> Token {
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return Token::Uint(digits);
        }
        Token::Int(digits)
    }

    /// Whether a string begins here: of bytes, raw, and how long the prefix is.
    fn quote(&self) -> Option<(bool, bool, usize)> {
        let is = |at: usize, all: &str| self.peek(at).is_some_and(|c| all.contains(c));
        let bytes = is(0, "bB") && (is(1, "'\"") || is(1, "rR") && is(2, "'\""));
        let prefix = usize::from(bytes);
        let raw = is(prefix, "rR") && is(prefix + 1, "'\"");
        let length = prefix + usize::from(raw);
        is(length, "'\"").then_some((bytes, raw, length))
    }

    fn string(&mut self, bytes: bool, raw: bool) -> Option<Token> {
        let quote = self.peek(0)?;
        let made = |text: String, octets| if bytes { Token::Bytes(octets) } else { Token::Text(text) };
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let start = self.at;
        if triple {
            if let Some((text, octets)) = self.content(quote, 3, raw, bytes) {
                return Some(made(text, octets));
            }
            // Not closed: an empty one, and another.
            self.at = start + 2;
            return Some(made(String::new(), Vec::new()));
        }
        self.content(quote, 1, raw, bytes).map(|(text, octets)| made(text, octets))
    }

    /// A string between `width` quotes, as text and as bytes; `None` where it is not closed or an escape is wrong.
    fn content(&mut self, quote: char, width: usize, raw: bool, bytes: bool) -> Option<(String, Vec<u8>)> {
        self.at += width;
        let (mut text, mut octets) = (String::new(), Vec::new());
        loop {
            let c = self.peek(0).filter(|c| width == 3 || !matches!(c, '\n' | '\r'))?;
            if (0..width).all(|i| self.peek(i) == Some(quote)) {
                self.at += width;
                return Some((text, octets));
            }
            self.at += 1;
            let mut push = |c: char| {
                text.push(c);
                octets.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            };
            match c {
                '\\' if raw => {
                    push('\\');
                    if let Some(c) = self.peek(0) {
                        push(c);
                        self.at += 1;
                    }
                }
                '\\' => match self.escape()? {
                    Escape::Char(c) => push(c),
                    Escape::Byte(b) if bytes => octets.push(b),
                    Escape::Byte(b) => push(char::from(b)),
                    Escape::Code(c) if !bytes => push(c),
                    Escape::Code(_) => return None,
                },
                '\r' if self.peek(0) == Some('\n') => {}
                '\r' => push('\n'),
                c => push(c),
            }
        }
    }

    fn escape(&mut self) -> Option<Escape> {
        let c = self.peek(0)?;
        self.at += 1;
        let mut digits = |count: usize, radix: u32| -> Option<u32> {
            let text: String = (0..count).filter_map(|i| self.peek(i)).collect();
            let fits = text.chars().count() == count && text.chars().all(|c| c.is_digit(radix));
            self.at += if fits { count } else { 1 };
            u32::from_str_radix(&text, radix).ok().filter(|_| fits)
        };
        Some(match c {
            'a' => Escape::Char('\u{7}'),
            'b' => Escape::Char('\u{8}'),
            'f' => Escape::Char('\u{c}'),
            'n' => Escape::Char('\n'),
            'r' => Escape::Char('\r'),
            't' => Escape::Char('\t'),
            'v' => Escape::Char('\u{b}'),
            '\\' | '\'' | '"' | '`' | '?' => Escape::Char(c),
            'x' | 'X' => Escape::Byte(u8::try_from(digits(2, 16)?).ok()?),
            'u' => Escape::Code(char::from_u32(digits(4, 16)?)?),
            'U' => Escape::Code(char::from_u32(digits(8, 16)?)?),
            '0'..='3' => {
                let high = c.to_digit(8).unwrap_or_default() * 64;
                Escape::Byte(u8::try_from(high + digits(2, 8)?).ok()?)
            }
            _ => return None,
        })
    }
}

enum Escape {
    Char(char),
    Byte(u8),
    Code(char),
}
