//! Counted nouns, for texts that people read.

use std::fmt::Display;

/// `1 image`, `2 images`; `1 pass`, `2 passes`.
pub(crate) fn counted<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    match (count == N::from(1), noun.ends_with('s')) {
        (true, _) => format!("{count} {noun}"),
        (false, true) => format!("{count} {noun}es"),
        (false, false) => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_one_and_all_else_is_several() {
        let said = [0usize, 1, 2].map(|count| counted(count, "image"));
        assert_eq!(said, ["0 images", "1 image", "2 images"]);
        assert_eq!(counted(3u64, "pass"), "3 passes");
        assert_eq!(counted(1u64, "class"), "1 class");
    }
}
