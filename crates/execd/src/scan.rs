//! Finding bytes, eight at a time.
//!
//! By arithmetic on words instead of loops that the compiler may turn into vector instructions: this program is optimised
//! for size, so it would not.

const ONES: u64 = u64::MAX / 255;
const HIGHS: u64 = ONES * 0x80;

/// The first `byte`.
pub(crate) fn byte(data: &[u8], byte: u8) -> Option<usize> {
    let all = ONES * u64::from(byte);
    first(data, |word| zero(word ^ all), |one| one == byte)
}

/// The last `byte`.
pub(crate) fn last(data: &[u8], byte: u8) -> Option<usize> {
    let all = ONES * u64::from(byte);
    let (rest, words) = data.as_rchunks::<8>();
    let within = |piece: &[u8], before: usize| piece.iter().rposition(|&one| one == byte).map(|at| before + at);
    for (at, word) in words.iter().enumerate().rev() {
        if zero(u64::from_le_bytes(*word) ^ all) != 0 {
            return within(word, rest.len() + at * 8);
        }
    }
    within(rest, 0)
}

/// The first LF or CR.
pub(crate) fn line_end(data: &[u8]) -> Option<usize> {
    const LF: u64 = ONES * b'\n' as u64;
    const CR: u64 = ONES * b'\r' as u64;
    first(data, |word| zero(word ^ LF) | zero(word ^ CR), |one| one == b'\n' || one == b'\r')
}

/// The first byte that the inside of a JSON string must not hold as it is: a control, a quote, a backslash.
pub(crate) fn unsafe_in_json(data: &[u8]) -> Option<usize> {
    const QUOTE: u64 = ONES * b'"' as u64;
    const BACKSLASH: u64 = ONES * b'\\' as u64;
    const BLANK: u64 = ONES * 0x20;
    let mask = |word: u64| zero(word ^ QUOTE) | zero(word ^ BACKSLASH) | (word.wrapping_sub(BLANK) & !word & HIGHS);
    first(data, mask, |one| one < 0x20 || one == b'"' || one == b'\\')
}

/// The high bit of each byte that is zero; a borrow may set further ones, but only above a byte that is.
fn zero(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGHS
}

/// The first byte whose high bit `mask` sets.
#[inline(always)]
fn first(data: &[u8], mask: impl Fn(u64) -> u64, is: impl Fn(u8) -> bool) -> Option<usize> {
    let (words, rest) = data.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let found = mask(u64::from_le_bytes(*word));
        if found != 0 {
            return Some(at * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|&one| is(one)).map(|at| words.len() * 8 + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_are_found_where_they_are(data in prop::collection::vec(prop_oneof![Just(b'a'), Just(b'\n'), Just(0x1f), Just(0x20), Just(0x80), any::<u8>()], 0..40)) {
            prop_assert_eq!(byte(&data, b'\n'), data.iter().position(|&one| one == b'\n'));
            prop_assert_eq!(byte(&data, 0), data.iter().position(|&one| one == 0));
            prop_assert_eq!(last(&data, b'\n'), data.iter().rposition(|&one| one == b'\n'));
            prop_assert_eq!(line_end(&data), data.iter().position(|&one| one == b'\n' || one == b'\r'));
            prop_assert_eq!(unsafe_in_json(&data), data.iter().position(|&one| one < 0x20 || one == b'"' || one == b'\\'));
        }
    }
}
