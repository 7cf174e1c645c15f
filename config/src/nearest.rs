//! "Did you mean": the known word that a misspelt one is closest to.

/// Longer words are not compared: the work grows with the square of the length.
const WORD_CHARS_MAX: usize = 64;

/// The one of `known` that differs least from `word`, if by no more than a third of its letters.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(WORD_CHARS_MAX + 1).map(|c| c.to_ascii_lowercase()).collect();
    if word.is_empty() || word.len() > WORD_CHARS_MAX {
        return None;
    }
    let limit = (word.len() / 3).max(1);
    known
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= limit)
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= limit && *edits < candidate.len())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, delete, replace or swap with their neighbour (optimal string alignment), row by row.
fn distance(word: &[char], candidate: &str) -> usize {
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=word.len()).collect();
    let mut previous = None;
    for (i, c) in candidate.chars().map(|c| c.to_ascii_lowercase()).enumerate() {
        let mut next = vec![i + 1];
        for (j, w) in word.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut least =
                (at(&row, j) + usize::from(*w != c)).min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            if let Some(before) =
                j.checked_sub(1).filter(|b| word.get(*b) == Some(&c) && previous == Some(*w))
            {
                least = least.min(at(&above, before) + 1);
            }
            next.push(least);
        }
        above = std::mem::replace(&mut row, next);
        previous = Some(c);
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, want) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "ab", 1),
            ("abc", "xabc", 1),
            ("kitten", "sitting", 3),
            ("bleu", "blue", 1),
            ("abcd", "badc", 2),
        ] {
            let word: Vec<char> = a.chars().collect();
            assert_eq!(distance(&word, b), want, "{a} {b}");
        }
    }

    #[test]
    fn near_misses_are_found_and_far_ones_are_not() {
        let known = ["name", "vni", "mtu", "remotes", "fdb_limit"];
        for (word, want) in [
            ("vnii", Some("vni")),
            ("VNI", Some("vni")),
            ("remote", Some("remotes")),
            ("fdb-limit", Some("fdb_limit")),
            ("colour", None),
            ("", None),
            ("ü", None),
        ] {
            assert_eq!(nearest(word, known), want, "{word}");
        }
        assert_eq!(nearest(&"n".repeat(1 << 20), known), None);
    }
}
