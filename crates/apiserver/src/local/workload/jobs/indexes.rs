//! Sets of completion indexes, as a Job's status has them: `1,3-5,7`.

use std::fmt;

/// Ranges, first and last, in order, with gaps between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// What is no index is left out, and what is not below `completions`.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let mut all = Self::default();
        for part in text.split(',').filter(|it| !it.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
            if first >= completions {
                break;
            }
            if last < first {
                continue;
            }
            all.push(first, last.min(completions - 1));
        }
        all
    }

    pub(super) fn of(indexes: impl IntoIterator<Item = i32>) -> Self {
        let mut sorted: Vec<i32> = indexes.into_iter().collect();
        sorted.sort_unstable();
        let mut all = Self::default();
        sorted.into_iter().for_each(|it| all.push(it, it));
        all
    }

    /// Adds a range that begins at or after the beginning of the last one.
    fn push(&mut self, first: i32, last: i32) {
        match self.0.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => self.0.push((first, last)),
        }
    }

    pub(super) fn and(&self, others: &Self) -> Self {
        let mut ranges: Vec<(i32, i32)> = self.0.iter().chain(&others.0).copied().collect();
        ranges.sort_unstable();
        let mut all = Self::default();
        ranges.into_iter().for_each(|(first, last)| all.push(first, last));
        all
    }

    pub(super) fn has(&self, index: i32) -> bool {
        let at = self.0.partition_point(|range| range.1 < index);
        self.0.get(at).is_some_and(|range| range.0 <= index)
    }

    pub(super) fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many are in both.
    pub(super) fn in_common(&self, others: &Self) -> i32 {
        let (mut count, mut a, mut b) = (0, self.0.iter().peekable(), others.0.iter().peekable());
        while let (Some(one), Some(other)) = (a.peek(), b.peek()) {
            count += (one.1.min(other.1) - one.0.max(other.0) + 1).max(0);
            if one.1 <= other.1 {
                a.next()
            } else {
                b.next()
            };
        }
        count
    }

    /// The first `count` that are not here, below `completions`.
    pub(super) fn missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut found = Vec::new();
        let mut candidate = 0;
        for (first, last) in self.0.iter().copied().chain([(completions, completions)]) {
            while candidate < first.min(completions) && found.len() < count {
                found.push(candidate);
                candidate += 1;
            }
            candidate = candidate.max(last.saturating_add(1));
        }
        found
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{first}")?;
            match last - first {
                0 => {}
                1 => write!(f, ",{last}")?,
                _ => write!(f, "-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Indexes;

    #[test]
    fn sets_of_indexes_are_read_joined_and_written_as_upstream_does() {
        for (text, completions, want) in [
            ("", 10, ""),
            ("0,1,2", 10, "0-2"),
            ("1,3-5,7,8", 10, "1,3-5,7,8"),
            ("1,3-5,7,8", 5, "1,3,4"),
            ("x,2,3-y,4", 10, "2,4"),
            ("2,7-4,9", 10, "2,9"),
        ] {
            assert_eq!(Indexes::parse(text, completions).to_string(), want, "{text}");
        }
        let set = Indexes::parse("1,3-5,7", 10);
        assert_eq!((set.len(), set.has(4), set.has(6), set.has(8)), (5, true, false, false));
        assert_eq!(set.and(&Indexes::of([6, 0, 9])).to_string(), "0,1,3-7,9");
        assert_eq!(set.missing(3, 10), [0, 2, 6]);
        assert_eq!(set.missing(9, 9), [0, 2, 6, 8]);
        assert_eq!(set.in_common(&Indexes::parse("4-8", 10)), 3);
        assert_eq!(set.in_common(&Indexes::parse("0,1,3,5-9", 10)), 4);
        assert_eq!(Indexes::default().missing(2, 5), [0, 1]);
    }
}
