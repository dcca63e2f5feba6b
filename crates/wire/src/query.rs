//! The query of a URL, percent-encoded: names and values are bytes, because a file's name need not be text.

use std::fmt::Write;

/// Each name and its value, in their order; a name without `=` has an empty value.
pub fn pairs(query: &str) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// Percent-decoding, with `+` for a space. A `%` that begins no pair of hex digits stays.
pub fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [b'%', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(hex(*high) << 4 | hex(*low));
                after
            }
            [b'+', after @ ..] => {
                out.push(b' ');
                after
            }
            [byte, after @ ..] => {
                out.push(*byte);
                after
            }
            [] => return out,
        };
    }
}

/// What is decoded to `bytes` again. Letters, digits and `-._~` stay as they are.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(*byte)),
            // Writing to a String cannot fail.
            byte => drop(write!(text, "%{byte:02X}")),
        }
    }
    text
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(value in prop::collection::vec(any::<u8>(), 0..200)) {
            let query = format!("a=b&{0}={0}&&x", encode(&value));
            let all: Vec<_> = pairs(&query).collect();
            prop_assert_eq!(all, [(b"a".to_vec(), b"b".to_vec()), (value.clone(), value), (b"x".to_vec(), vec![])]);
        }

        #[test]
        fn rubbish_is_decoded_to_something(text in "\\PC{0,200}") {
            let _ = pairs(&text).count();
        }
    }
}
