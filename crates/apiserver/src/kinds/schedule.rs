//! Schedules of CronJobs, as robfig/cron reads them, refuses them and goes on from a time.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

use crate::object::field::quote;
use crate::object::schema::format;

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// Those that stand for five fields.
const DESCRIPTORS: [(&str, &str); 7] = [
    ("yearly", "0 0 1 1 *"),
    ("annually", "0 0 1 1 *"),
    ("monthly", "0 0 1 * *"),
    ("weekly", "0 0 * * 0"),
    ("daily", "0 0 * * *"),
    ("midnight", "0 0 * * *"),
    ("hourly", "0 * * * *"),
];
/// Least, most and names of the numbers of each field.
const FIELDS: [(i64, i64, &[&str]); 5] = [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, DAYS)];
/// How far ahead a time is looked for: `0 0 31 2 *` has none.
const YEARS: i16 = 5;

/// When something is due, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    Fields(Fields),
    /// So long after each other, in whole seconds.
    Every(SignedDuration),
}

/// A bit for each number that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// Days of the month and of the week must both match when one of them is `*`; else either may.
    both: bool,
}

/// Whether a schedule is one: five fields, or a descriptor that stands for them. An empty one is refused elsewhere.
pub(super) fn check(text: &str) -> Result<(), String> {
    if text.is_empty() { Ok(()) } else { Schedule::parse(text).map(drop) }
}

/// The time zone of a name as a CronJob may have it.
pub(crate) fn zone(name: &str) -> Option<TimeZone> {
    match name {
        "" | "UTC" => Some(TimeZone::UTC),
        _ if name.eq_ignore_ascii_case("local") => None,
        _ => TimeZone::get(name).ok(),
    }
}

impl Schedule {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.contains("TZ") {
            return Err("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".to_owned());
        }
        if let Some(pause) = text.strip_prefix("@every ") {
            let wrong = || format!("failed to parse duration {text}: time: invalid duration {}", quote(pause));
            return if format::go_duration(pause) { Ok(Self::Every(duration(pause))) } else { Err(wrong()) };
        }
        if let Some(name) = text.strip_prefix('@') {
            let known = DESCRIPTORS.iter().find(|it| it.0 == name);
            return match known {
                Some((_, fields)) => Self::parse(fields),
                None => Err(format!("unrecognized descriptor: {text}")),
            };
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        if fields.len() != FIELDS.len() {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        }
        let mut bits = [(0, false); 5];
        for ((field, (least, most, names)), into) in fields.into_iter().zip(FIELDS).zip(&mut bits) {
            for part in field.split(',').filter(|it| !it.is_empty()) {
                let (some, star) = part_bits(part, least, most, names)?;
                *into = (into.0 | some, into.1 || star);
            }
        }
        let [(minute, _), (hour, _), (day, any_day), (month, _), (weekday, any_weekday)] = bits;
        Ok(Self::Fields(Fields { minute, hour, day, month, weekday, both: any_day || any_weekday }))
    }

    /// The first time after another one. None when there is none within years.
    pub(crate) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let whole = Timestamp::from_second(after.as_second()).ok()?;
        match self {
            Self::Every(pause) => whole.checked_add(*pause).ok(),
            Self::Fields(fields) => {
                let begin = whole.checked_add(SignedDuration::from_secs(1)).ok()?.to_zoned(zone.clone());
                fields.first(begin).map(|it| it.timestamp())
            }
        }
    }
}

impl Fields {
    /// The first time that matches, from `at` on. Hours are counted as they pass: one that is left out when clocks are
    /// put forward is left out, and one that comes twice matches twice.
    fn first(&self, mut at: Zoned) -> Option<Zoned> {
        let limit = at.year().checked_add(YEARS)?;
        // A field of commas alone is read, and never matches.
        if [self.minute, self.hour, self.month].contains(&0) {
            return None;
        }
        let has = |bits: u64, number: i8| bits.checked_shr(u32::try_from(number).unwrap_or(63)).unwrap_or(0) & 1 == 1;
        while at.year() <= limit {
            if !has(self.month, at.month()) {
                at = midnight(at.date().first_of_month().checked_add(1.month()).ok()?, &at)?;
            } else if !self.matches_day(at.date()) {
                at = midnight(at.date().tomorrow().ok()?, &at)?;
            } else if !has(self.hour, at.hour()) {
                let into = i64::from(at.minute()) * 60 + i64::from(at.second());
                at = at.checked_add(SignedDuration::from_secs(3600 - into)).ok()?;
            } else if at.second() != 0 || !has(self.minute, at.minute()) {
                at = at.checked_add(SignedDuration::from_secs(60 - i64::from(at.second()))).ok()?;
            } else {
                return Some(at);
            }
        }
        None
    }

    fn matches_day(&self, date: Date) -> bool {
        let has = |bits: u64, number: i8| bits.checked_shr(u32::try_from(number).unwrap_or(63)).unwrap_or(0) & 1 == 1;
        let day = has(self.day, date.day());
        let weekday = has(self.weekday, date.weekday().to_sunday_zero_offset());
        if self.both { day && weekday } else { day || weekday }
    }
}

/// The first moment of a day where `at` is.
fn midnight(date: Date, at: &Zoned) -> Option<Zoned> {
    date.to_zoned(at.time_zone().clone()).ok()?.start_of_day().ok()
}

/// A duration that Go reads, in whole seconds, at least one.
fn duration(text: &str) -> SignedDuration {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    if text.starts_with('-') {
        return SignedDuration::from_secs(1);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number: f64 = rest.get(..rest.len() - after.len()).and_then(|it| it.parse().ok()).unwrap_or(0.0);
        let next = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, more) = after.split_at_checked(next).unwrap_or((after, ""));
        seconds += number * UNITS.iter().find(|it| it.0 == unit).map_or(0.0, |it| it.1);
        if more.len() == rest.len() {
            break;
        }
        rest = more;
    }
    SignedDuration::try_from_secs_f64((seconds + 1e-9).floor())
        .unwrap_or(SignedDuration::MAX)
        .max(SignedDuration::from_secs(1))
}

/// `*`, a number or a name, a range of them, and any of these with a step: its numbers, and whether it is all of them.
fn part_bits(part: &str, least: i64, most: i64, names: &[&str]) -> Result<(u64, bool), String> {
    let whole = |text: &str| {
        let wrong =
            || format!("failed to parse int from {text}: strconv.Atoi: parsing {}: invalid syntax", quote(text));
        let number: i64 = text.parse().map_err(|_| wrong())?;
        if number < 0 { Err(format!("negative number ({number}) not allowed: {text}")) } else { Ok(number) }
    };
    let number = |text: &str| {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        named.and_then(|at| i64::try_from(at).ok()).map_or_else(|| whole(text), |at| Ok(at + least))
    };
    let mut halves = part.split('/');
    let (range, step, more) = (halves.next().unwrap_or_default(), halves.next(), halves.next());
    let ends: Vec<&str> = range.split('-').collect();
    let (start, end) = match ends.as_slice() {
        ["*" | "?", ..] => (least, most),
        [one] => {
            let one = number(one)?;
            (one, if step.is_some() { most } else { one })
        }
        [start, end] => (number(start)?, number(end)?),
        _ => return Err(format!("too many hyphens: {part}")),
    };
    if more.is_some() {
        return Err(format!("too many slashes: {part}"));
    }
    let step = step.map(whole).transpose()?;
    if start < least {
        return Err(format!("beginning of range ({start}) below minimum ({least}): {part}"));
    }
    if end > most {
        return Err(format!("end of range ({end}) above maximum ({most}): {part}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if step == Some(0) {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    let step = step.unwrap_or(1);
    let mut bits = 0;
    let mut at = start;
    while at <= end {
        bits |= u32::try_from(at).ok().and_then(|at| 1u64.checked_shl(at)).unwrap_or(0);
        at = at.saturating_add(step);
    }
    Ok((bits, matches!(ends.as_slice(), ["*" | "?", ..]) && step == 1))
}

#[cfg(test)]
mod tests {
    use super::{Schedule, check, zone};

    #[test]
    fn a_schedule_goes_on_from_a_time_in_its_time_zone() {
        for (schedule, place, after, want) in [
            ("*/5 * * * *", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z"),
            ("*/5 * * * *", "UTC", "2026-01-01T00:04:59.5Z", "2026-01-01T00:05:00Z"),
            ("59 23 31 12 *", "UTC", "2026-12-31T23:59:00Z", "2027-12-31T23:59:00Z"),
            ("0 0 29 2 *", "UTC", "2025-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            // Either day where both are named, both where one of them is any.
            ("0 0 13 * 5", "UTC", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 13 * *", "UTC", "2026-01-01T00:00:00Z", "2026-01-13T00:00:00Z"),
            ("0 0 * * sun", "UTC", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("0 0 */2 * mon", "UTC", "2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"),
            ("@weekly", "UTC", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@monthly", "UTC", "2026-01-15T00:00:00Z", "2026-02-01T00:00:00Z"),
            ("@hourly", "UTC", "2026-01-01T00:00:01Z", "2026-01-01T01:00:00Z"),
            ("@every 1h30m", "UTC", "2026-01-01T00:00:00.7Z", "2026-01-01T01:30:00Z"),
            ("@every 10ms", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
            ("@every -1h", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
            ("@every 1.5m", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:01:30Z"),
        ] {
            let next = Schedule::parse(schedule).unwrap().next(after.parse().unwrap(), &zone(place).unwrap());
            assert_eq!(next, Some(want.parse().unwrap()), "{schedule} in {place} after {after}");
        }
        // The zone of a machine without zones: rules of its own, with a change of clocks.
        let berlin = jiff::tz::TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        for (schedule, after, want) in [
            ("30 9 * * *", "2026-01-01T00:00:00Z", "2026-01-01T08:30:00Z"),
            ("30 9 * * *", "2026-07-01T00:00:00Z", "2026-07-01T07:30:00Z"),
            // Half past two is left out that day, and comes twice on the other.
            ("30 2 * * *", "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z"),
            ("30 2 * * *", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            ("30 2 * * *", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"),
            ("0 0 * * *", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
        ] {
            let next = Schedule::parse(schedule).unwrap().next(after.parse().unwrap(), &berlin);
            assert_eq!(next, Some(want.parse().unwrap()), "{schedule} after {after}");
        }
        for never in ["59 23 31 2 *", ", * * * *"] {
            let never = Schedule::parse(never).unwrap();
            assert_eq!(never.next("2026-01-01T00:00:00Z".parse().unwrap(), &zone("").unwrap()), None);
        }
        assert!(zone("Local").is_none() && zone("No/Where").is_none());
    }

    #[test]
    fn schedules_are_taken_and_refused_as_upstream_does() {
        for good in [
            "* * * * *",
            "*/5 0-6/2 1,15 jan-MAR Sun",
            "0 0 1 1 ?",
            "@daily",
            "@every 1h30m",
            "5/10 * * * *",
            "1,,2 *-5 * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("nonsense", "expected exactly 5 fields, found 1: [nonsense]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-2 * * * *", "beginning of range (5) beyond end of range (2): 5-2"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/1/2 * * * *", "too many slashes: */1/2"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("1 2 3 4 */sun", "failed to parse int from sun: strconv.Atoi: parsing \"sun\": invalid syntax"),
            ("@every day", "failed to parse duration @every day: time: invalid duration \"day\""),
            ("@noon", "unrecognized descriptor: @noon"),
            ("TZ=UTC * * * * *", "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"),
        ] {
            assert_eq!(check(bad), Err(why.to_owned()), "{bad}");
        }
    }
}
