use std::borrow::Cow;

use serde::de::DeserializeOwned;

/// Reads JSON that a model wrote, or its provider. Models write halves of surrogate pairs (`"\ud83d"`), and providers
/// pass them on or cut pairs and UTF-8 apart between two pieces of a stream: what is no character becomes U+FFFD.
///
/// # Errors
/// When it is no JSON for another reason, or not of this type.
pub fn from_json<T: DeserializeOwned>(document: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(document).or_else(|error| match mended(document) {
        Some(mended) => serde_json::from_str(&mended),
        None => Err(error),
    })
}

/// The document with U+FFFD in place of what is no character; `None` where there is no such thing.
fn mended(document: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(document);
    let mut mended = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    let mut changed = matches!(text, Cow::Owned(_));
    // A backslash stands only in strings, and there it begins an escape.
    while let Some((before, escape)) = rest.find('\\').and_then(|at| rest.split_at_checked(at)) {
        mended.push_str(before);
        let end = match (unit(escape), escape.get(6..).and_then(unit)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0xD800..=0xDFFF), _) => {
                changed = true;
                mended.push_str("\\ufffd");
                rest = escape.get(6..).unwrap_or_default();
                continue;
            }
            (Some(_), _) => 6,
            (None, _) => escape.chars().take(2).map(char::len_utf8).sum(),
        };
        let (escape, after) = escape.split_at_checked(end)?;
        mended.push_str(escape);
        rest = after;
    }
    mended.push_str(rest);
    changed.then_some(mended)
}

/// The number in the `\uXXXX` that a text begins with.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4).filter(|digits| digits.bytes().all(|it| it.is_ascii_hexdigit()))?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_character_becomes_a_replacement_and_the_rest_stays() {
        let table: [(&[u8], &str); 9] = [
            (br#""\ud83d\ude00 \u0041""#, "😀 A"),
            (br#""a\ud83d""#, "a\u{fffd}"),
            (br#""\ude00b""#, "\u{fffd}b"),
            (br#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (br#""\ud83d\n\\ude00""#, "\u{fffd}\n\\ude00"),
            (br#""\\ud83d \"\ud83d\"""#, "\\ud83d \"\u{fffd}\""),
            (br#""\uDC00x\uD83D\u0041""#, "\u{fffd}x\u{fffd}A"),
            (b"\"a\xf0\x9f\"", "a\u{fffd}"),
            (b"\"\xc3\xa9\\ud83d\xc3\xa9\"", "é\u{fffd}é"),
        ];
        for (document, text) in table {
            assert_eq!(from_json::<String>(document).unwrap(), text);
        }
        for broken in [&br#""\ud83"#[..], br#""\ud83d"#, b"\"\\", b"\"\\\xc3\xa9\\ud83d\"", b"{", b""] {
            assert!(from_json::<String>(broken).is_err(), "{broken:?}");
        }
    }
}
