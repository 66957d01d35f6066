//! What is said of a value that is no number, in place of the words of Rust's own parsers.

use std::{
    error::Error as _,
    num::{IntErrorKind, ParseFloatError, ParseIntError},
};

use clap::error::{ContextKind, ErrorKind};

/// The same error; of a flag whose value is no number, in plain words.
pub(super) fn in_plain_words(error: clap::Error) -> clap::Error {
    let Some(expected) = expected(&error) else {
        return error;
    };
    let said = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    clap::Error::raw(
        ErrorKind::ValueValidation,
        format!(
            "invalid value '{}' for '{}': expected {expected}\n\nFor more information, try '--help'.\n",
            said(ContextKind::InvalidValue),
            said(ContextKind::InvalidArg)
        ),
    )
}

fn expected(error: &clap::Error) -> Option<&'static str> {
    let source = error.source()?;
    if source.is::<ParseFloatError>() {
        return Some("a number");
    }
    Some(match source.downcast_ref::<ParseIntError>()?.kind() {
        IntErrorKind::PosOverflow => "a smaller number",
        _ => "a whole number",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_numbers_are_told_what_was_expected() {
        let count = clap::Arg::new("count")
            .long("count")
            .value_name("N")
            .value_parser(clap::value_parser!(usize));
        let scale = clap::Arg::new("scale")
            .long("scale")
            .value_name("X")
            .value_parser(clap::value_parser!(f64));
        let command = clap::Command::new("sample").args([count, scale]);
        for (flag, expected) in [
            (
                "--count=many",
                "invalid value 'many' for '--count <N>': expected a whole number",
            ),
            (
                "--count=2.5",
                "invalid value '2.5' for '--count <N>': expected a whole number",
            ),
            (
                "--count=99999999999999999999",
                "invalid value '99999999999999999999' for '--count <N>': expected a smaller number",
            ),
            (
                "--scale=a",
                "invalid value 'a' for '--scale <X>': expected a number",
            ),
            ("--colour=a", "unexpected argument '--colour' found"),
        ] {
            let error = command
                .clone()
                .try_get_matches_from(["sample", flag])
                .unwrap_err();
            let text = in_plain_words(error).to_string();
            let line = text.lines().next().unwrap();
            assert_eq!(line, format!("error: {expected}"));
        }
    }
}
