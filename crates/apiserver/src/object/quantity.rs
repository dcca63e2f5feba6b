//! Quantities (`100m`, `1.5Gi`, `2e3`): parsed, compared and printed in Kubernetes' canonical form.

use std::cmp::Ordering;
use std::fmt;

/// What Kubernetes answers to anything that is no quantity.
pub(crate) const MISTAKE: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
pub(crate) const SUFFIX_MISTAKE: &str = "unable to parse quantity's suffix";

/// Longer ones are refused: nobody means them.
const LENGTH_MAX: usize = 128;

/// A fixed-point number in billionths (capped at 10^28, binary ones at 2^63) and how it was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

const NANOS: i128 = 1_000_000_000;
const CAP: i128 = 10_i128.pow(37);
const BINARY_CAP: i128 = NANOS * i64::MAX as i128;
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// A quantity's text in its parts.
struct Parts<'a> {
    negative: bool,
    /// Without leading zeros.
    whole: &'a str,
    fraction: &'a str,
    format: Format,
    decimal: i32,
    binary: u32,
}

fn split(text: &str) -> Result<Parts<'_>, &'static str> {
    if text.is_empty() || text.len() > LENGTH_MAX {
        return Err(MISTAKE);
    }
    let negative = text.starts_with('-');
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let number = letters.strip_prefix(['-', '+']).unwrap_or(letters);
    if digits(number) != number.len() {
        return Err(MISTAKE);
    }
    let (format, decimal, binary) = suffix_of(suffix).ok_or(SUFFIX_MISTAKE)?;
    Ok(Parts { negative, whole: whole.trim_start_matches('0'), fraction, format, decimal, binary })
}

/// Format, decimal exponent and binary exponent.
fn suffix_of(suffix: &str) -> Option<(Format, i32, u32)> {
    if let Some(at) = DECIMAL.iter().position(|s| *s == suffix) {
        return Some((Format::Decimal, (i32::try_from(at).ok()? - 3) * 3, 0));
    }
    if let Some(at) = BINARY.iter().position(|s| *s == suffix) {
        return Some((Format::Binary, 0, u32::try_from(at).ok()? * 10));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-1000..=1000).contains(&exponent).then_some((Format::Exponent, exponent, 0))
}

impl Quantity {
    /// The error is the message that Kubernetes answers.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let parts = split(text)?;
        let digits = format!("{}{}", parts.whole, parts.fraction);
        let places = i32::try_from(parts.fraction.len()).unwrap_or(i32::MAX);
        let nanos = match parts.binary {
            0 => scale(&digits, 9 + parts.decimal - places),
            // Exact up to a billionth of the suffix' unit, rounded up beyond.
            bits => scale(&digits, 9 - places).checked_mul(1 << bits).unwrap_or(CAP).min(BINARY_CAP),
        };
        let small = parts.format == Format::Binary && nanos > 0 && nanos < NANOS;
        let format = if small { Format::Decimal } else { parts.format };
        Ok(Self { nanos: if parts.negative { -nanos } else { nanos }, format })
    }

    /// A whole number.
    pub(crate) fn whole(number: i64) -> Self {
        Self { nanos: i128::from(number) * NANOS, format: Format::Decimal }
    }

    /// As a whole number, when it is one that fits.
    pub(crate) fn as_whole(self) -> Option<i64> {
        (self.nanos % NANOS == 0).then(|| i64::try_from(self.nanos / NANOS).ok()).flatten()
    }

    pub(crate) fn as_float(self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "an approximation is what is asked for")]
        let nanos = self.nanos as f64;
        nanos / 1e9
    }

    /// -1, 0 or 1.
    pub(crate) fn sign(self) -> i64 {
        self.nanos.signum().try_into().unwrap_or_default()
    }

    /// The sum, capped as what is parsed is. Nothing is written as what is added to it is.
    pub(crate) fn plus(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos).clamp(-CAP, CAP), format }
    }

    pub(crate) fn negated(self) -> Self {
        Self { nanos: -self.nanos, format: self.format }
    }
}

/// How Kubernetes stores a quantity. Small numbers that are near enough to the canonical form stay as they were written,
/// so that `+5` and `1E3` survive: the originals keep the string they parsed.
pub(crate) fn canonical(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    let parts = split(text)?;
    let whole = if parts.whole.is_empty() { "0" } else { parts.whole };
    let shifted = format!("{whole}{}", parts.fraction);
    let length = i32::try_from(shifted.len()).unwrap_or(i32::MAX);
    let places = i32::try_from(parts.fraction.len()).unwrap_or(i32::MAX);
    let number: Option<i64> = shifted.parse().ok();
    let kept = match parts.format {
        Format::Binary => {
            let bits = i32::try_from(parts.binary).unwrap_or_default();
            places == 0 && 14 - length - bits * 3 / 10 >= 0 && number.is_some_and(|n| n % 8 != 0)
        }
        _ => {
            let scale = parts.decimal - places;
            scale >= -9 && 18 - length >= 0 && scale % 3 == 0 && !shifted.ends_with("000") && !shifted.starts_with('0')
        }
    };
    if kept { Ok(text.to_owned()) } else { Ok(Quantity::parse(text)?.to_string()) }
}

/// `digits` * 10^`shift`, rounded up.
fn scale(digits: &str, shift: i32) -> i128 {
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let length = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    if length.saturating_add(shift) > 37 {
        return CAP;
    }
    let (kept, dropped) = digits.split_at(usize::try_from(length + shift.min(0)).unwrap_or(0));
    let kept: i128 = if kept.is_empty() { 0 } else { kept.parse().unwrap_or(CAP) };
    let kept = kept + i128::from(dropped.bytes().any(|c| c != b'0'));
    let factor = 10_i128.pow(u32::try_from(shift.max(0)).unwrap_or_default());
    kept.checked_mul(factor).unwrap_or(CAP).min(CAP)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::Binary && self.nanos.abs() >= 1024 * NANOS && self.nanos % NANOS == 0 {
            let (mut number, mut power) = (self.nanos / NANOS, 0);
            while number % 1024 == 0 && power + 1 < BINARY.len() {
                number /= 1024;
                power += 1;
            }
            return write!(f, "{number}{}", BINARY.get(power).unwrap_or(&""));
        }
        let (mut number, mut power) = (self.nanos, 0_usize);
        while number % 1000 == 0 && power + 1 < DECIMAL.len() {
            number /= 1000;
            power += 1;
        }
        match (self.format, power) {
            (Format::Exponent, 3) => write!(f, "{number}"),
            (Format::Exponent, power) => write!(f, "{number}e{}", 3 * i32::try_from(power).unwrap_or(0) - 9),
            _ => write!(f, "{number}{}", DECIMAL.get(power).unwrap_or(&"")),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_stored_as_a_real_api_server_stores_them() {
        let cases: Vec<(String, Option<String>)> =
            serde_json::from_str(include_str!("../../testdata/quantities.json")).unwrap();
        for (text, want) in cases {
            assert_eq!(canonical(&text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn quantities_compare_by_value_whatever_their_suffix() {
        let q = |s| Quantity::parse(s).unwrap();
        assert_eq!(q("1000m"), q("1"));
        assert!(q("1Gi") > q("1G") && q("-1") < q("1n") && q("1e3") == q("1k"));
        assert!(q("9e30") > q("1Ei"));
    }
}
