//! Sets of completion indexes and their text form, such as `0,3-5`.

use std::collections::BTreeSet;

pub(super) type Indexes = BTreeSet<i32>;

/// Indexes below `completions`; what does not parse is left out.
pub(super) fn parse(text: &str, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(completions - 1));
        }
    }
    indexes
}

pub(super) fn format(indexes: &Indexes) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let text = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for (text, completions, want) in [
            ("", 5, ""),
            ("0,2,3,4,9", 10, "0,2-4,9"),
            ("1-3,7", 3, "1,2"),
            ("a,1-b,2", 5, "2"),
            ("0-9", 10, "0-9"),
        ] {
            assert_eq!(format(&parse(text, completions)), want);
        }
    }
}
