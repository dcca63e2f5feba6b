//! Globs: `*`, `?`, `[a-z]`, `{a,b}`, and `**` over directories.

/// Whether `name` fits `pattern`. `*` and `?` do not cross a `/`, `**` does. Takes time in the product of both lengths at
/// the worst, whatever the pattern is made of.
pub(super) fn fits(pattern: &[u8], name: &[u8]) -> bool {
    alternatives(pattern).iter().any(|pattern| plain(pattern, name))
}

/// More alternatives than this are taken literally.
const ALTERNATIVES_MOST: usize = 64;

/// Writes out `{a,b}`, also one within the other.
fn alternatives(pattern: &[u8]) -> Vec<Vec<u8>> {
    let mut open = vec![pattern.to_vec()];
    let mut done = Vec::new();
    while let Some(pattern) = open.pop() {
        match braces(&pattern) {
            Some((before, inside, after)) if open.len() + done.len() + inside.len() <= ALTERNATIVES_MOST => {
                open.extend(inside.iter().map(|choice| [before, choice.as_slice(), after].concat()));
            }
            _ => done.push(pattern),
        }
    }
    done
}

/// What is before a pair of braces, its choices, what is after it.
type Braces<'a> = (&'a [u8], Vec<Vec<u8>>, &'a [u8]);

/// The first pair of braces.
fn braces(pattern: &[u8]) -> Option<Braces<'_>> {
    let mut from = None;
    let (mut depth, mut choices, mut choice) = (0_u32, Vec::new(), Vec::new());
    let mut escaped = false;
    for (at, &byte) in pattern.iter().enumerate() {
        let plain = escaped;
        escaped = byte == b'\\' && !plain;
        let Some(from) = from else {
            if byte == b'{' && !plain {
                from = Some(at);
            }
            continue;
        };
        match byte {
            b'}' if depth == 0 && !plain => {
                choices.push(choice);
                return Some((pattern.get(..from)?, choices, pattern.get(at + 1..)?));
            }
            b',' if depth == 0 && !plain => choices.push(std::mem::take(&mut choice)),
            _ => {
                depth = match byte {
                    b'{' if !plain => depth + 1,
                    b'}' if !plain => depth - 1,
                    _ => depth,
                };
                choice.push(byte);
            }
        }
    }
    None
}

/// Matches with one place to go back to for the last `*` and one for the last `**`.
fn plain(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    // With whether it stands for whole directories only (`**/`).
    let mut globstar: Option<(usize, usize, bool)> = None;
    loop {
        let rest = pattern.get(p..).unwrap_or_default();
        let byte = name.get(n).copied();
        let step = match (rest, byte) {
            ([], None) => return true,
            ([b'*', b'*', after @ ..], _) => {
                // `**/` also stands for no directory at all.
                let whole = after.first() == Some(&b'/') && (n == 0 || name.get(n - 1) == Some(&b'/'));
                let skip = if whole { 3 } else { 2 };
                globstar = Some((p + skip, n, whole));
                star = None;
                p += skip;
                continue;
            }
            ([b'*', ..], _) => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            ([b'?', ..], Some(byte)) if byte != b'/' => Some(1),
            ([b'[', class @ ..], Some(byte)) if byte != b'/' => match within(class, byte) {
                Some((true, length)) => Some(1 + length),
                Some((false, _)) => None,
                None => (byte == b'[').then_some(1),
            },
            ([b'\\', escaped, ..], Some(byte)) => (*escaped == byte).then_some(2),
            ([literal, ..], Some(byte)) => (*literal == byte).then_some(1),
            _ => None,
        };
        if let Some(step) = step {
            p += step;
            n += 1;
            continue;
        }
        // Let the last star take one more: a single one no directory's end, a double one anything.
        if let Some((after, from)) = star
            && name.get(from).is_some_and(|&byte| byte != b'/')
        {
            star = Some((after, from + 1));
            (p, n) = (after, from + 1);
            continue;
        }
        if let Some((after, from, whole)) = globstar {
            let rest = name.get(from..).unwrap_or_default();
            let further =
                if whole { rest.iter().position(|&byte| byte == b'/') } else { (!rest.is_empty()).then_some(0) };
            if let Some(further) = further {
                star = None;
                globstar = Some((after, from + further + 1, whole));
                (p, n) = (after, from + further + 1);
                continue;
            }
        }
        return false;
    }
}

/// Whether the class that begins after `[` holds `byte`, and how long it is with its `]`. None when it never ends.
fn within(class: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(class.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    // A `]` in the first place is meant literally.
    let end = class.iter().enumerate().skip(start + 1).find(|(_, byte)| **byte == b']')?.0;
    let mut members = class.get(start..end)?;
    let mut found = false;
    loop {
        members = match members {
            [low, b'-', high, after @ ..] => {
                found |= (*low..=*high).contains(&byte);
                after
            }
            [one, after @ ..] => {
                found |= *one == byte;
                after
            }
            [] => return Some((found != negated, end + 1)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn globs_fit_what_a_shell_would_fit() {
        let yes = [
            ("*.txt", "a.txt"),
            ("**", "any/thing"),
            ("**", "x"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[!a]", "b"),
            ("[]]", "]"),
            ("{a,b*}.rs", "bcd.rs"),
            ("{a,{b,c}}", "c"),
            ("src/**/*.rs", "src/main.rs"),
            ("src/**/*.rs", "src/a/b/main.rs"),
            ("**/x", "x"),
            ("**/x", "a/b/x"),
            ("a*b*c", "aXbYbZc"),
            ("\\*", "*"),
            ("[", "["),
            ("*", "line\nbreak"),
            ("{a", "{a"),
        ];
        for (pattern, name) in yes {
            assert!(fits(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        let no = [
            ("*.txt", "a.txt.bak"),
            ("*", "a/b"),
            ("a?c", "a/c"),
            ("[a-c]x", "dx"),
            ("src/*.rs", "src/a/b.rs"),
            ("", "x"),
            ("\\*", "a"),
            ("**/x", "ax"),
        ];
        for (pattern, name) in no {
            assert!(!fits(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_made_to_hurt_does_not() {
        let started = std::time::Instant::now();
        assert!(!fits("*a".repeat(40).as_bytes(), "a".repeat(250).as_bytes()) || started.elapsed().as_secs() < 2);
        assert!(!fits(format!("{}b", "**a".repeat(60)).as_bytes(), "a".repeat(4000).as_bytes()));
        assert!(!fits("{a,b}".repeat(30).as_bytes(), b"x"));
        assert!(started.elapsed().as_secs() < 2);
    }

    proptest! {
        #[test]
        fn a_name_fits_itself_escaped(name in prop::collection::vec(any::<u8>(), 0..50)) {
            let escaped: Vec<u8> = name.iter().flat_map(|&byte| match byte {
                b'*' | b'?' | b'[' | b'{' | b'\\' => vec![b'\\', byte],
                _ => vec![byte],
            }).collect();
            prop_assert!(fits(&escaped, &name));
        }

        #[test]
        fn rubbish_is_decided(pattern in prop::collection::vec(any::<u8>(), 0..60), name in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = fits(&pattern, &name);
        }
    }
}
