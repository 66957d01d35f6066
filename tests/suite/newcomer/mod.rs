//! What somebody stumbles over who uses the command for the first time: what it says then, and that what it says can be followed.

mod help;
mod pictures;
mod schedules;
mod training;
mod while_it_runs;
mod words;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use crate::common::{golden, harmonica};

/// A folder that is gone after the test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    /// A folder with so many pictures of one class.
    fn pictures(&self, count: u8) -> String {
        let folder = self.path("pictures");
        fs::create_dir(&folder).unwrap();
        for number in 0..count {
            let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([9 * number, 90, 200]));
            picture.save(folder.join(format!("{number}.png"))).unwrap();
        }
        folder.to_str().unwrap().into()
    }

    /// Runs the command in this folder.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_harmonica"))
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }
}

/// The exit code, and all that was said on both ways out.
fn said(out: &Output) -> (Option<i32>, String) {
    let text = [&out.stdout[..], &out.stderr[..]].concat();
    (out.status.code(), String::from_utf8_lossy(&text).into())
}

#[track_caller]
fn says(arguments: &[&str], code: i32, words: &[&str]) -> String {
    let (found, text) = said(&harmonica(arguments));
    assert_eq!(found, Some(code), "{arguments:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{arguments:?}: {text}\nlacks {word}");
    }
    text
}

/// What a text tells to type behind a mark, as arguments, where no word of it needs quotes.
#[track_caller]
fn command_behind<'t>(text: &'t str, mark: &str) -> Vec<&'t str> {
    let at = text.find(mark).unwrap_or_else(|| panic!("{text}"));
    let line = text[at + mark.len()..].lines().next().unwrap();
    let command = line.trim_start().strip_prefix("harmonica ").unwrap();
    assert!(!command.contains('\''), "{command}");
    let end = command.find([';', '`', '(']).unwrap_or(command.len());
    command[..end].split_whitespace().collect()
}

/// A quick model, and what names it.
fn tiny() -> [String; 6] {
    let model = golden("tiny-c.safetensors").to_str().unwrap().to_owned();
    ["--model", &model, "--heads", "2", "--device", "cpu"].map(String::from)
}

/// Arguments with those that name the quick model.
fn with_tiny<'a>(arguments: &[&'a str], tiny: &'a [String; 6]) -> Vec<&'a str> {
    let named = tiny.iter().map(String::as_str);
    arguments.iter().copied().chain(named).collect()
}

const QUICK: [&str; 7] = [
    "sample",
    "--device",
    "cpu",
    "--steps",
    "1",
    "--schedule",
    "none",
];

/// A network that learns in no time.
const SMALL: [&str; 10] = [
    "--blocks",
    "1",
    "--hidden",
    "16",
    "--image-size",
    "8",
    "--batch",
    "2",
    "--device",
    "cpu",
];

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "dit"], &SMALL[..], more].concat()
}
