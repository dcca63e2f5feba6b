//! Signals by their names.

const ALL: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// The real-time signals of Linux' C libraries.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// As the configs of images and PodSpecs write it: a number, or a name with or without SIG. None when it is no signal.
pub(super) fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |name: &str, from: i32, by: i32| {
        let rest = name.strip_prefix(if from == RTMIN { "RTMIN" } else { "RTMAX" })?;
        let steps = match rest.strip_prefix(if by > 0 { '+' } else { '-' }) {
            Some(steps) => steps.parse::<u8>().ok()?,
            None if rest.is_empty() => 0,
            None => return None,
        };
        Some(from + by * i32::from(steps)).filter(|it| (RTMIN..=RTMAX).contains(it))
    };
    let named = || ALL.into_iter().find(|it| it.0 == name).map(|it| it.1);
    real_time(name, RTMIN, 1).or_else(|| real_time(name, RTMAX, -1)).or_else(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_numbers_and_names() {
        let table = [
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("15", Some(15)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("RTMIN+31", None),
            ("SIGRTMIN-1", None),
            ("0", None),
            ("65", None),
            ("SIG", None),
            ("", None),
        ];
        for (text, is) in table {
            assert_eq!(number(text), is, "{text}");
        }
    }
}
