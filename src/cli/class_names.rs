//! Classes by the names that users give them.

use super::error::CliError;
use crate::checkpoint::{ModelInfo, synonyms};

/// The one class that a name means.
pub(super) fn class_named(name: &str, info: &ModelInfo) -> Result<usize, CliError> {
    let problem = match info.classes_by_name(name)[..] {
        [class] => return Ok(class),
        [] if name.trim().is_empty() => {
            "--classes has an empty name: expected names or numbers with a comma between them"
                .into()
        }
        [] => unknown_class(name, info),
        ref classes => {
            let each = |class: &usize| format!("{class} ({})", info.class_names[*class]);
            let each: Vec<_> = classes.iter().map(each).collect();
            format!(
                "`{name}` names several classes: {}; pass a number",
                each.join(", ")
            )
        }
    };
    Err(CliError::Usage(problem))
}

/// More names than these are not listed in a message.
const MOST_LISTED: usize = 64;
/// Similarity, from 0 to 1, from which a name may have been meant.
const NEAR: f64 = 0.7;

fn unknown_class(name: &str, info: &ModelInfo) -> String {
    let known = match info.classes() {
        None => "the model draws texts, not classes".into(),
        Some(classes) if info.class_names.is_empty() => {
            format!("the model has classes 0 to {}", classes - 1)
        }
        Some(classes) => {
            let near = nearest_names(name, &info.class_names);
            let last = classes - 1;
            if !near.is_empty() {
                format!("did you mean {}?", near.join(" or "))
            } else if info.class_names.len() <= MOST_LISTED {
                format!(
                    "the model has 0 to {last} or {}",
                    info.class_names.join(", ")
                )
            } else {
                format!(
                    "the model has 0 to {last}, and names that `harmonica inspect {} --classes` lists",
                    info.source
                )
            }
        }
    };
    format!("unknown class `{name}`: {known}")
}

/// How much a name is like another: as a whole, or one of its words.
fn likeness(name: &str, other: &str) -> f64 {
    let other = other.to_lowercase();
    let alike = |text: &str| strsim::normalized_damerau_levenshtein(name, text);
    let words = other.split(|c: char| !c.is_alphanumeric());
    let of_words = words.map(alike).fold(0.0, f64::max);
    // A name that is alike as a whole goes before one that merely has such a word.
    alike(&other).max(0.99 * of_words)
}

/// The names most like one, at most three, the nearest first.
fn nearest_names(name: &str, class_names: &[String]) -> Vec<String> {
    let name = name.trim().to_lowercase();
    let names = class_names.iter().flat_map(|names| synonyms(names));
    let mut near: Vec<(f64, &str)> = names
        .map(|other| (likeness(&name, other), other))
        .filter(|(likeness, _)| *likeness >= NEAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.dedup_by_key(|(_, other)| *other);
    let quoted = near.iter().map(|(_, other)| format!("`{other}`"));
    quoted.take(3).collect()
}
