//! What only the kernel can do: starting processes, reaping them, finding and ending their trees, another user's eyes.

pub(crate) mod identity;
pub(crate) mod pty;
pub(crate) mod reaper;
pub(crate) mod spawn;
pub(crate) mod start;
pub(crate) mod tree;
pub(crate) mod users;
pub(crate) mod workers;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// A time in RFC 3339, in UTC, with as many digits of the second as it has (0, 3, 6 or 9).
pub(crate) fn rfc3339(seconds: i64, nanos: u32) -> String {
    let fraction = match nanos {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1_000 == 0 => format!(".{:06}", n / 1_000),
        n => format!(".{n:09}"),
    };
    format!("{}{fraction}Z", date_and_time(seconds))
}

/// The same with nine digits of the second, always.
pub(crate) fn rfc3339_nanos(at: Timespec) -> String {
    format!("{}.{:09}Z", date_and_time(at.tv_sec), at.tv_nsec)
}

fn date_and_time(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a civil date, after Howard Hinnant's `civil_from_days`: years begin in March, eras have 400 years.
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}")
}

/// The same for milliseconds since 1970.
pub(crate) fn rfc3339_ms(ms: u64) -> String {
    rfc3339(i64::try_from(ms / 1000).unwrap_or(0), u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000)
}

/// Random bytes of the kernel.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    }
    bytes
}

/// A fresh id: 32 hex digits.
pub(crate) fn id() -> String {
    random::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400, 120_000_000), "2000-02-29T00:00:00.120Z");
        assert_eq!(rfc3339(1_795_219_199, 999_999_999), "2026-11-20T23:59:59.999999999Z");
        assert_eq!(rfc3339(-1, 5_000), "1969-12-31T23:59:59.000005Z");
        assert_eq!(rfc3339_ms(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }
}
