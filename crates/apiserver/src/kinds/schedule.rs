//! Schedules of CronJobs, as robfig/cron reads them and refuses them.

use crate::object::field::quote;
use crate::object::schema::format;

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const DESCRIPTORS: [&str; 7] = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
/// Least, most and names of the numbers of each field.
const FIELDS: [(i64, i64, &[&str]); 5] = [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, DAYS)];

/// Whether a schedule is one: five fields, or a descriptor that stands for them. An empty one is refused elsewhere.
pub(super) fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    if text.contains("TZ") {
        return Err("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".to_owned());
    }
    if let Some(pause) = text.strip_prefix("@every ") {
        let wrong = || format!("failed to parse duration {text}: time: invalid duration {}", quote(pause));
        return if format::go_duration(pause) { Ok(()) } else { Err(wrong()) };
    }
    if let Some(name) = text.strip_prefix('@') {
        return if DESCRIPTORS.contains(&name) { Ok(()) } else { Err(format!("unrecognized descriptor: {text}")) };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    for (field, (least, most, names)) in fields.into_iter().zip(FIELDS) {
        field.split(',').filter(|it| !it.is_empty()).try_for_each(|part| check_part(part, least, most, names))?;
    }
    Ok(())
}

/// `*`, a number or a name, a range of them, and any of these with a step.
fn check_part(part: &str, least: i64, most: i64, names: &[&str]) -> Result<(), String> {
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
    match step {
        Some(0) => Err(format!("step of range should be a positive number: {part}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

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
