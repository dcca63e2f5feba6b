//! Kubernetes' quantities as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const NANO: i128 = 1_000_000_000;

/// A quantity in thousand millionths. What is more than fits is the most that does; what is no quantity is none.
pub(crate) fn nanos(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text.find(|it: char| !it.is_ascii_digit() && !matches!(it, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end)?;
    let scale = match suffix {
        "n" => (1, 1),
        "u" => (1_000, 1),
        "m" => (1_000_000, 1),
        "" => (NANO, 1),
        "k" => (NANO, 1_000),
        "M" => (NANO, 1_000_000),
        "G" => (NANO, 1_000_000_000),
        "T" => (NANO, 1_000_000_000_000),
        "P" => (NANO, 1_000_000_000_000_000),
        "E" => (NANO, 1_000_000_000_000_000_000),
        "Ki" => (NANO, 1 << 10),
        "Mi" => (NANO, 1 << 20),
        "Gi" => (NANO, 1 << 30),
        "Ti" => (NANO, 1 << 40),
        "Pi" => (NANO, 1 << 50),
        "Ei" => (NANO, 1_i128 << 60),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            match u32::try_from(power) {
                Ok(power) => (NANO, 10_i128.checked_pow(power.min(27))?),
                // A thousand millionth is the least that there is.
                Err(_) => (NANO / 10_i128.pow(power.unsigned_abs().min(9)), 1),
            }
        }
    };
    let unit = scale.0.saturating_mul(scale.1);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 20 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut value = whole.saturating_mul(unit);
    let mut place = unit;
    let mut lost = false;
    for digit in fraction.bytes() {
        lost |= place % 10 != 0 && digit != b'0';
        place /= 10;
        value = value.saturating_add(i128::from(digit - b'0').saturating_mul(place));
    }
    // What is finer than can be said is rounded away from zero, as Kubernetes does.
    value = value.saturating_add(i128::from(lost && place == 0));
    Some(if negative { -value } else { value })
}

/// In whole units, rounded up.
pub(crate) fn value(quantity: &Quantity) -> Option<i64> {
    nanos(quantity).map(|it| whole(it, NANO))
}

/// In thousandths, rounded up.
pub(crate) fn millis(quantity: &Quantity) -> Option<i64> {
    nanos(quantity).map(|it| whole(it, NANO / 1000))
}

fn whole(nanos: i128, unit: i128) -> i64 {
    let up = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
    i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
}

fn digits(text: &str) -> bool {
    text.bytes().all(|it| it.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_what_kubernetes_takes_them_for() {
        let table = [
            ("0", Some((0, 0))),
            ("1", Some((1, 1000))),
            ("100m", Some((1, 100))),
            ("1.5", Some((2, 1500))),
            (".5", Some((1, 500))),
            ("2.", Some((2, 2000))),
            ("1Ki", Some((1024, 1_024_000))),
            ("1.5Gi", Some((1_610_612_736, 1_610_612_736_000))),
            ("1e3", Some((1000, 1_000_000))),
            ("5e-1", Some((1, 500))),
            ("1E", Some((1_000_000_000_000_000_000, i64::MAX))),
            ("100n", Some((1, 1))),
            ("-1", Some((-1, -1000))),
            ("", None),
            ("x", None),
            ("1x", None),
            ("1-2", None),
            ("99999999999999999999999999999", None),
        ];
        for (text, is) in table {
            let quantity = Quantity(text.to_owned());
            assert_eq!(value(&quantity).zip(millis(&quantity)), is, "{text}");
        }
    }
}
