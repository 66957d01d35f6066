//! JSON documents beside weights, as Python writes them.

use std::path::Path;

use super::error::CheckpointError;
use crate::files::read_text_up_to;

const MAX_JSON: u64 = 64 * 1024 * 1024;

/// Reads a document. Python writes numbers that JSON does not have, `-Infinity` in schedulers' configs; they are read as null.
///
/// # Errors
/// [`CheckpointError`]: unreadable, or no JSON.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value, CheckpointError> {
    let text = read_text_up_to(path, MAX_JSON).map_err(|source| CheckpointError::Io {
        action: "open",
        path: path.into(),
        source,
    })?;
    let strict = serde_json::from_str(&text);
    strict.or_else(|error| {
        serde_json::from_str(&without_infinities(&text)).map_err(|_| CheckpointError::Config {
            path: path.into(),
            problem: format!("it is no valid JSON: {error}"),
        })
    })
}

/// The text with null for every `NaN`, `Infinity` and `-Infinity` outside strings.
fn without_infinities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // An escaped quote ends no string.
    let (mut in_string, mut escaped, mut plain) = (false, false, String::new());
    for c in text.chars() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
        } else if c == '"' {
            out.push_str(&without_words(&plain));
            plain.clear();
            out.push(c);
            in_string = true;
        } else {
            plain.push(c);
        }
    }
    out.push_str(&without_words(&plain));
    out
}

fn without_words(plain: &str) -> String {
    let words = ["-Infinity", "Infinity", "NaN"];
    words
        .iter()
        .fold(plain.to_owned(), |text, word| text.replace(word, "null"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_numbers_become_null_and_strings_stay() {
        let text =
            r#"{"a": -Infinity, "b \" NaN": [NaN, Infinity], "c": "-Infinity \\", "d": NaN}"#;
        let expected = r#"{"a": null, "b \" NaN": [null, null], "c": "-Infinity \\", "d": null}"#;
        assert_eq!(without_infinities(text), expected);
        serde_json::from_str::<serde_json::Value>(expected).unwrap();
    }
}
