//! The string formats that Kubernetes checks in custom resources; any other format is a note for the reader.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use jiff::civil::Date;

/// Whether Kubernetes checks it; dashes in names do not count (`date-time`).
pub(crate) fn is_known(format: &str) -> bool {
    check(format).is_some()
}

pub(crate) fn matches(format: &str, text: &str) -> bool {
    check(format).is_none_or(|check| check(text))
}

fn check(format: &str) -> Option<fn(&str) -> bool> {
    let name = format.replace('-', "");
    Some(match name.as_str() {
        "bsonobjectid" => |s| s.len() == 24 && s.bytes().all(|c| c.is_ascii_hexdigit()),
        "uri" => uri,
        "email" => email,
        "hostname" => hostname,
        "ipv4" => ipv4,
        "ipv6" => |s| Ipv6Addr::from_str(s).is_ok(),
        "cidr" => cidr,
        "mac" => mac,
        "uuid" => |s| uuid(s, None),
        "uuid3" => |s| uuid(s, Some('3')),
        "uuid4" => |s| uuid(s, Some('4')),
        "uuid5" => |s| uuid(s, Some('5')),
        "isbn" => |s| isbn10(s) || isbn13(s),
        "isbn10" => isbn10,
        "isbn13" => isbn13,
        "creditcard" => credit_card,
        "ssn" => ssn,
        "hexcolor" => hex_color,
        "rgbcolor" => rgb_color,
        "byte" => byte,
        "password" => |_| true,
        "date" => date,
        "duration" => duration,
        "datetime" => date_time,
        _ => return None,
    })
}

/// `net/url.ParseRequestURI`: an absolute path or a scheme, and no blanks.
fn uri(text: &str) -> bool {
    let rest = match text.split_once(':') {
        _ if text.starts_with('/') => text,
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.')) =>
        {
            rest
        }
        _ => return false,
    };
    let host = rest.strip_prefix("//").map(|r| r.split(['/', '?']).next().unwrap_or_default()).unwrap_or_default();
    !text.chars().any(char::is_control) && !host.contains([' ', '<', '>', '"', '^', '`', '\\']) && escapes(rest)
}

/// Every `%` begins an escape of two hexadecimal digits.
fn escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|s| s.len() >= 2 && s.bytes().take(2).all(|c| c.is_ascii_hexdigit()))
}

/// `net/mail.ParseAddress`: `a@b`, `A <a@b>`.
fn email(text: &str) -> bool {
    let text = text.trim();
    let address = match text.strip_suffix('>').and_then(|t| t.rsplit_once('<')) {
        Some((name, address)) if !name.contains(['<', '>', '@', ',']) || name.trim().starts_with('"') => address,
        Some(_) => return false,
        None => text,
    };
    let atom = |s: &str| {
        !s.is_empty() && !s.chars().any(|c| c.is_whitespace() || c.is_control() || "()<>[]:;@\\,\"".contains(c))
    };
    let dotted = |s: &str| s.split('.').all(atom);
    address.rsplit_once('@').is_some_and(|(local, domain)| {
        let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
        (quoted || dotted(local)) && (dotted(domain) || domain.starts_with('[') && domain.ends_with(']'))
    })
}

fn hostname(text: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || c == '-';
    let label =
        |s: &str| !s.is_empty() && s.len() <= 63 && s.chars().all(inner) && !s.starts_with('-') && !s.ends_with('-');
    let labels: Vec<&str> = text.split('.').collect();
    let top = |s: &str| s.chars().count() >= 2 && s.chars().all(char::is_alphabetic);
    text.len() <= 255 && labels.iter().all(|l| label(l)) && (labels.len() == 1 || labels.last().is_some_and(|l| top(l)))
}

/// Leading zeros are let through, as Kubernetes does.
fn ipv4(text: &str) -> bool {
    let octet = |s: &str| {
        !s.is_empty()
            && s.len() <= 4
            && s.bytes().all(|c| c.is_ascii_digit())
            && s.parse::<u16>().is_ok_and(|n| n < 256)
    };
    text.split('.').count() == 4 && text.split('.').all(octet) || Ipv6Addr::from_str(text).is_ok() && text.contains('.')
}

fn cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, bits)| {
        let Ok(bits) = bits.parse::<u8>() else { return false };
        (Ipv4Addr::from_str(address).is_ok() || ipv4(address)) && bits <= 32
            || Ipv6Addr::from_str(address).is_ok() && bits <= 128
    })
}

/// 6, 8 or 20 bytes with `:` or `-` between them, or in groups of two with dots.
fn mac(text: &str) -> bool {
    let parts = |separator: char, digits: usize| {
        let mut count = 0;
        text.split(separator).all(|s| {
            count += 1;
            s.len() == digits && s.bytes().all(|c| c.is_ascii_hexdigit())
        }) && matches!(count * digits, 12 | 16 | 40)
    };
    parts(':', 2) || parts('-', 2) || parts('.', 4)
}

fn uuid(text: &str, version: Option<char>) -> bool {
    let bytes: Vec<char> = text.chars().collect();
    let (mut at, mut digits) = (0, String::with_capacity(32));
    for (i, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if i > 0 && bytes.get(at) == Some(&'-') {
            at += 1;
        }
        digits.extend(bytes.iter().skip(at).take(length));
        at += length;
    }
    let variant = digits.chars().nth(16).is_some_and(|c| matches!(c.to_ascii_lowercase(), '8' | '9' | 'a' | 'b'));
    at == bytes.len()
        && digits.len() == 32
        && digits.bytes().all(|c| c.is_ascii_hexdigit())
        && version.is_none_or(|v| digits.chars().nth(12) == Some(v) && (v == '3' || variant))
}

fn compact(text: &str) -> Vec<u32> {
    text.chars()
        .filter(|c| !matches!(c, ' ' | '-'))
        .map(|c| if c == 'X' { 10 } else { c.to_digit(10).unwrap_or(99) })
        .collect()
}

fn isbn10(text: &str) -> bool {
    let digits = compact(text);
    let valid = |(i, d): (usize, &u32)| *d < 10 || (*d == 10 && i == 9);
    digits.len() == 10
        && digits.iter().enumerate().all(valid)
        && (1..).zip(&digits).map(|(i, d)| i * d).sum::<u32>() % 11 == 0
}

fn isbn13(text: &str) -> bool {
    let digits = compact(text);
    let weight = |(i, d): (usize, &u32)| if i % 2 == 0 { *d } else { 3 * d };
    digits.len() == 13 && digits.iter().all(|d| *d < 10) && digits.iter().enumerate().map(weight).sum::<u32>() % 10 == 0
}

fn credit_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let luhn = |(i, d): (usize, &u32)| {
        if i % 2 == 0 {
            *d
        } else if *d > 4 {
            2 * d - 9
        } else {
            2 * d
        }
    };
    (13..=16).contains(&digits.len()) && digits.iter().rev().enumerate().map(luhn).sum::<u32>() % 10 == 0
}

fn ssn(text: &str) -> bool {
    let digits = |s: &str| s.bytes().all(|c| c.is_ascii_digit());
    let plain: String = text.chars().filter(char::is_ascii_digit).collect();
    let shaped = match text.len() {
        9 => digits(text),
        11 => {
            text.as_bytes().get(3).is_some_and(|c| matches!(c, b'-' | b' '))
                && text.as_bytes().get(6).is_some_and(|c| matches!(c, b'-' | b' '))
        }
        _ => false,
    };
    shaped && plain.len() == 9
}

fn hex_color(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    matches!(digits.len(), 3 | 6) && digits.bytes().all(|c| c.is_ascii_hexdigit())
}

fn rgb_color(text: &str) -> bool {
    let inside = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')'));
    inside.is_some_and(|t| t.split(',').count() == 3 && t.split(',').all(|n| n.trim().parse::<u8>().is_ok()))
}

fn byte(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !text.is_empty()
        && text.len().is_multiple_of(4)
        && text.len() - body.len() <= 2
        && body.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/'))
}

fn date(text: &str) -> bool {
    text.len() == 10 && text.bytes().all(|c| c.is_ascii_digit() || c == b'-') && Date::from_str(text).is_ok()
}

fn date_time(text: &str) -> bool {
    let lower = text.to_lowercase();
    let Some((day, time)) = lower.split_once('t') else { return false };
    let number = |range: std::ops::Range<usize>, below: u8| {
        time.get(range)
            .is_some_and(|s| s.bytes().all(|c| c.is_ascii_digit()) && s.parse::<u8>().is_ok_and(|n| n < below))
    };
    let colons = time.as_bytes().get(2) == Some(&b':') && time.as_bytes().get(5) == Some(&b':');
    let rest = time.get(8..).unwrap_or_default();
    // A fraction, then "z" or an offset.
    let zone = match rest.char_indices().nth(1) {
        Some((first, _)) if !rest.starts_with(['z', '+', '-']) => {
            let digits = rest.get(first..).unwrap_or_default();
            let zone = digits.trim_start_matches(|c: char| c.is_ascii_digit());
            if zone.len() == digits.len() { "" } else { zone }
        }
        _ => rest,
    };
    let offset = |z: &str| {
        z.len() == 6
            && z.starts_with(['+', '-'])
            && z.bytes().skip(1).enumerate().all(|(i, c)| if i == 2 { c == b':' } else { c.is_ascii_digit() })
    };
    date(day) && colons && number(0..2, 24) && number(3..5, 60) && number(6..8, 60) && (zone == "z" || offset(zone))
}

/// Go's durations (`1h30m`), and numbers with a spelt-out unit anywhere in the text (`3 days`).
fn duration(text: &str) -> bool {
    go_duration(text) || {
        let mut rest = text;
        loop {
            let Some(at) = rest.find(|c: char| c.is_ascii_digit()) else { return false };
            let number = rest.get(at..).unwrap_or_default();
            let after = number.trim_start_matches(|c: char| c.is_ascii_digit());
            let unit_at = after.trim_start();
            let unit: String = unit_at.chars().take_while(|c| c.is_ascii_alphabetic() || *c == 'µ').collect();
            if is_unit(&unit.to_lowercase()) {
                return true;
            }
            rest = after;
        }
    }
}

fn is_unit(unit: &str) -> bool {
    const EXACT: &[&str] = &["ns", "us", "µs", "ms", "s", "m", "h", "hr", "d", "w", "wk"];
    const PREFIX: &[&str] = &["nano", "micro", "milli", "sec", "min", "hour", "day", "week"];
    EXACT.contains(&unit) || PREFIX.iter().any(|p| unit.starts_with(p))
}

/// Whether Go reads it as a duration (`1h30m`).
pub(crate) fn go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = rest.get(..rest.len() - after.len()).unwrap_or_default();
        if !number.contains(|c: char| c.is_ascii_digit()) || number.matches('.').count() > 1 {
            return false;
        }
        let Some(unit) = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"].into_iter().find(|u| {
            after
                .strip_prefix(u)
                .is_some_and(|r| r.is_empty() || r.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
        }) else {
            return false;
        };
        rest = after.strip_prefix(unit).unwrap_or_default();
    }
    true
}
