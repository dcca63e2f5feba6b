use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration as Go writes and reads it: `10m`, `2s`, `1h30m`, `1.5h`, `300ms`. Sums of numbers with units, never
/// negative, at most 290 years (Go's own bound).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// Why a text is no duration.
#[derive(Debug, PartialEq, Eq)]
pub struct NotADuration(String);

impl fmt::Display for NotADuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a duration: write numbers with units, as in \"90s\", \"10m\" or \"1h30m\"", self.0)
    }
}

impl std::error::Error for NotADuration {}

impl FromStr for GoDuration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let wrong = || NotADuration(text.chars().take(64).collect());
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let mut seconds = 0.0_f64;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let units = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(units);
            let scale = match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
            seconds += number.parse::<f64>().map_err(|_| wrong())? * scale;
            rest = tail;
        }
        if seconds > i64::MAX as f64 / 1e9 {
            return Err(wrong());
        }
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in
            [("10m", 600_000), ("2s", 2_000), ("1h30m", 5_400_000), ("1.5h", 5_400_000), ("300ms", 300), ("0", 0)]
        {
            assert_eq!(text.parse(), Ok(GoDuration(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "10", "m", "-5s", "5 s", "1d", "1..5s", "99999999999h", "s5"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }
}
