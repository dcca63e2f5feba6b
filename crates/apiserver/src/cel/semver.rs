//! Semantic versions, as github.com/blang/semver reads them.

use std::cmp::Ordering;

use super::value::{Result, Value, no_overload};

const LENGTH_MAX: usize = 1000;

#[derive(Debug)]
pub(crate) struct Version {
    numbers: [u64; 3],
    before: Vec<String>,
}

impl Version {
    /// Build metadata does not count.
    pub(super) fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                for (a, b) in self.before.iter().zip(&other.before) {
                    let order = match (a.parse::<u64>(), b.parse::<u64>()) {
                        (Ok(a), Ok(b)) => a.cmp(&b),
                        (Ok(_), Err(_)) => Ordering::Less,
                        (Err(_), Ok(_)) => Ordering::Greater,
                        (Err(_), Err(_)) => a.cmp(b),
                    };
                    if order != Ordering::Equal {
                        return order;
                    }
                }
                self.before.len().cmp(&other.before.len())
            }
        })
    }
}

pub(super) fn parse(text: &str) -> std::result::Result<Version, String> {
    if text.is_empty() {
        return Err("Version string empty".to_owned());
    }
    if text.len() > LENGTH_MAX {
        return Err("Version string too long".to_owned());
    }
    let mut parts = text.splitn(3, '.');
    let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("No Major.Minor.Patch elements found".to_owned());
    };
    let (rest, build) = rest.split_once('+').map_or((rest, None), |(rest, build)| (rest, Some(build)));
    let (patch, before) = rest.split_once('-').map_or((rest, None), |(patch, before)| (patch, Some(before)));
    let number = |name: &str, text: &str| -> std::result::Result<u64, String> {
        let shown = crate::object::field::quote(text);
        if text.is_empty() || !text.bytes().all(|it| it.is_ascii_digit()) {
            return Err(format!("Invalid character(s) found in {name} number {shown}"));
        }
        if text.len() > 1 && text.starts_with('0') {
            return Err(format!("{} number must not contain leading zeroes {shown}", capital(name)));
        }
        text.parse().map_err(|_| format!("strconv.ParseUint: parsing {shown}: value out of range"))
    };
    let numbers = [number("major", major)?, number("minor", minor)?, number("patch", patch)?];
    let plain = |it: &str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-');
    let mut identifiers = Vec::new();
    for part in before.into_iter().flat_map(|it| it.split('.')) {
        if part.is_empty() {
            return Err("Prerelease is empty".to_owned());
        }
        let numeric = part.bytes().all(|it| it.is_ascii_digit());
        if numeric && part.len() > 1 && part.starts_with('0') {
            let shown = crate::object::field::quote(part);
            return Err(format!("Numeric PreRelease version must not contain leading zeroes {shown}"));
        }
        if !plain(part) {
            let shown = crate::object::field::quote(part);
            return Err(format!("Invalid character(s) found in prerelease {shown}"));
        }
        identifiers.push(part.to_owned());
    }
    for part in build.into_iter().flat_map(|it| it.split('.')) {
        if part.is_empty() {
            return Err("Build meta data is empty".to_owned());
        }
        if !plain(part) {
            let shown = crate::object::field::quote(part);
            return Err(format!("Invalid character(s) found in build meta data {shown}"));
        }
    }
    Ok(Version { numbers, before: identifiers })
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().into_iter().flat_map(char::to_uppercase).chain(chars).collect()
}

/// What is a version with a little good will: `v1.02`.
pub(super) fn normalize(text: &str) -> std::result::Result<Version, String> {
    if text.len() > LENGTH_MAX {
        return parse(text);
    }
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_owned).collect();
    for part in parts.iter_mut().filter(|part| part.len() > 1) {
        let bare = part.trim_start_matches('0');
        let zero = if bare.starts_with(|c: char| c.is_ascii_digit()) { "" } else { "0" };
        *part = format!("{zero}{bare}");
    }
    if parts.len() < 3 {
        if parts.last().is_some_and(|it| it.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data".to_owned());
        }
        parts.resize(3, "0".to_owned());
    }
    parse(&parts.join("."))
}

pub(super) fn method<'a>(on: &Version, function: &str, other: Option<&Value<'a>>) -> Result<Value<'a>> {
    let [major, minor, patch] = on.numbers;
    let number = |it: u64| Ok(Value::Int(i64::try_from(it).unwrap_or(i64::MAX)));
    match (function, other) {
        ("major", None) => number(major),
        ("minor", None) => number(minor),
        ("patch", None) => number(patch),
        ("isGreaterThan", Some(Value::Semver(other))) => Ok(Value::Bool(on.cmp(other) == Ordering::Greater)),
        ("isLessThan", Some(Value::Semver(other))) => Ok(Value::Bool(on.cmp(other) == Ordering::Less)),
        ("compareTo", Some(Value::Semver(other))) => Ok(Value::Int(on.cmp(other) as i64)),
        _ => no_overload(),
    }
}
