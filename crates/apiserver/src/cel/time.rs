//! Durations and timestamps as Go and CEL read and write them.

use std::fmt::Write;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::value::{Result, Value, error, no_overload};

/// Longer ones are refused: nobody means them.
const LENGTH_MAX: usize = 100;

/// Go's `time.ParseDuration`, in nanoseconds.
pub(super) fn duration(text: &str) -> std::result::Result<i64, String> {
    let wrong = || format!("time: invalid duration {}", crate::object::field::quote(text));
    if text.len() > LENGTH_MAX {
        return Err("time: invalid duration".to_owned());
    }
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(wrong());
        }
        let units = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000_i128),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let (_, unit) = units.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
        total = total.checked_add(whole.checked_mul(unit).ok_or_else(wrong)?).ok_or_else(wrong)?;
        let fraction = fraction.get(..fraction.len().min(18)).unwrap_or_default();
        if !fraction.is_empty() {
            let part: i128 = fraction.parse().map_err(|_| wrong())?;
            let part = part * unit / 10_i128.pow(u32::try_from(fraction.len()).unwrap_or_default());
            total = total.checked_add(part).ok_or_else(wrong)?;
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| wrong())
}

/// RFC 3339.
pub(super) fn timestamp(text: &str) -> std::result::Result<Timestamp, String> {
    if text.len() > LENGTH_MAX || !text.contains(['T', 't']) {
        return Err("failed to parse date-time".to_owned());
    }
    // The last day that there is, which means never, is a little later than we can count.
    let last = text.starts_with("9999-12-3").then_some(Timestamp::MAX);
    text.parse().ok().or(last).ok_or_else(|| "failed to parse date-time".to_owned())
}

/// A day, at its beginning.
pub(super) fn date(text: &str) -> std::result::Result<Timestamp, String> {
    let wrong = || "failed to parse date".to_owned();
    let day: jiff::civil::Date = text.parse().map_err(|_| wrong())?;
    day.to_zoned(TimeZone::UTC).map(|it| it.timestamp()).map_err(|_| wrong())
}

pub(super) fn shifted<'a>(at: Timestamp, by: i64) -> Result<Value<'a>> {
    match at.checked_add(SignedDuration::from_nanos(by)) {
        Ok(at) => Ok(Value::Timestamp(at)),
        Err(_) => error("timestamp overflow"),
    }
}

/// A duration as text: `1.5s`.
pub(super) fn seconds(nanos: i64) -> String {
    let all = nanos.unsigned_abs();
    let mut text = format!("{}{}", if nanos < 0 { "-" } else { "" }, all / 1_000_000_000);
    let part = all % 1_000_000_000;
    if part > 0 {
        let _ = write!(text, ".{}", format!("{part:09}").trim_end_matches('0'));
    }
    text.push('s');
    text
}

/// `getHours()` and its like.
pub(super) fn method<'a>(on: &Value<'a>, function: &str, zone: Option<&Value<'a>>) -> Result<Value<'a>> {
    let at = match on {
        Value::Duration(nanos) => {
            let unit = match function {
                "getHours" => 3_600_000_000_000,
                "getMinutes" => 60_000_000_000,
                "getSeconds" => 1_000_000_000,
                "getMilliseconds" => 1_000_000,
                _ => return no_overload(),
            };
            return Ok(Value::Int(nanos / unit));
        }
        Value::Timestamp(at) => at,
        _ => return no_overload(),
    };
    let zone = match zone {
        None => TimeZone::UTC,
        Some(Value::Text(name)) => match self::zone(name.as_str()) {
            Some(zone) => zone,
            None => return error(format!("unknown time zone {}", name.as_str())),
        },
        Some(_) => return no_overload(),
    };
    let at = at.to_zoned(zone);
    let number = match function {
        "getFullYear" => i64::from(at.year()),
        "getMonth" => i64::from(at.month()) - 1,
        "getDayOfYear" => i64::from(at.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(at.day()) - 1,
        "getDate" => i64::from(at.day()),
        "getDayOfWeek" => i64::from(at.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(at.hour()),
        "getMinutes" => i64::from(at.minute()),
        "getSeconds" => i64::from(at.second()),
        "getMilliseconds" => i64::from(at.millisecond()),
        _ => return no_overload(),
    };
    Ok(Value::Int(number))
}

/// A name of the time zone database, or `+02:00`.
fn zone(name: &str) -> Option<TimeZone> {
    if name.len() > LENGTH_MAX {
        return None;
    }
    if let Some((hours, minutes)) = name.split_once(':') {
        let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
        let sign = if name.starts_with('-') { -1 } else { 1 };
        let seconds = hours.checked_mul(3600)?.checked_add(sign * minutes.checked_mul(60)?)?;
        return jiff::tz::Offset::from_seconds(seconds).ok().map(TimeZone::fixed);
    }
    if name.is_empty() || name == "UTC" { Some(TimeZone::UTC) } else { TimeZone::get(name).ok() }
}
