//! What is said: logs, numbers, tables.

#[cfg(target_os = "linux")]
use std::process::Command;

use super::{Place, said, says, tiny, train, with_tiny};
use crate::common::harmonica;

#[cfg(target_os = "linux")]
#[test]
fn a_server_without_a_runtime_folder_is_no_error() {
    let out = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .arg("devices")
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("WAYLAND_DISPLAY")
        .output()
        .unwrap();
    let (code, text) = said(&out);
    assert_eq!(code, Some(0));
    assert!(!text.contains("XDG_RUNTIME_DIR"), "{text}");
}

#[test]
fn a_log_has_no_colours_and_twice_verbose_says_more() {
    let place = Place::new();
    let out = place.at("x.png");
    let log = |verbosity: &[&str]| {
        let base = [
            "sample", "--device", "cpu", "--steps", "3", "-n", "1", "--out", &out,
        ];
        let (code, text) = said(&harmonica(&[&base[..], verbosity].concat()));
        assert_eq!(code, Some(0), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        text
    };
    let lines = |text: &str, level: &str| text.lines().filter(|l| l.contains(level)).count();
    let (quiet, one, two) = (log(&[]), log(&["-v"]), log(&["-vv"]));
    assert_eq!((lines(&quiet, " DEBUG "), lines(&quiet, " TRACE ")), (0, 0));
    assert!(lines(&one, " DEBUG ") >= 3, "{one}");
    assert_eq!(
        (
            lines(&one, " TRACE "),
            lines(&two, " TRACE harmonica::cli::draw")
        ),
        (0, 3)
    );
    assert_eq!(lines(&one, " DEBUG "), lines(&two, " DEBUG "));
}

#[test]
fn a_negative_seed_is_told_what_seeds_are() {
    let place = Place::new();
    let data = place.pictures(1);
    for command in [
        &["sample"][..],
        &["compare", "--schedules", "none"],
        &["train", "router"],
        &["train", "calibrate"],
        &["train", "dit", "--data", &data],
    ] {
        says(
            &[command, &["--seed", "-1"]].concat(),
            2,
            &[
                "invalid value '-1' for '--seed <SEED>': expected a whole number from 0 to 18446744073709551615",
            ],
        );
    }
    says(
        &["sample", "-n", "-1"],
        2,
        &["invalid value '-1' for '--count <N>'"],
    );
}

/// `1 images`, `1 steps` and their kin.
fn wrong_plurals(text: &str) -> Vec<&str> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let several = [
        "blocks", "classes", "draws", "files", "heads", "images", "passes", "pictures", "rounds",
        "runs", "steps", "timed",
    ];
    let plural = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric());
        several.contains(&word)
    };
    let wrong = words.windows(3).filter(|w| {
        let one = w[0].trim_start_matches('(') == "1";
        one && plural(w[1]) && (w[1] != "timed" || plural(w[2]))
    });
    wrong.map(|w| w[1]).collect()
}

#[test]
fn one_is_no_plural() {
    let place = Place::new();
    let (tiny, data) = (tiny(), place.pictures(1));
    let (out, run, picture) = (place.at("dit"), place.at("run"), place.at("x.png"));
    let dit = train(&[
        "--data", &data, "--steps", "1", "--heads", "1", "--out", &out,
    ]);
    let model = format!("{out}/model.safetensors");
    let state = format!("{out}/checkpoint.safetensors");
    let of_tiny = |arguments: &[&str]| {
        let named = tiny.iter().map(String::as_str);
        let all: Vec<String> = arguments
            .iter()
            .copied()
            .chain(named)
            .map(String::from)
            .collect();
        all
    };
    let owned = |arguments: &[&str]| arguments.iter().map(|a| a.to_string()).collect::<Vec<_>>();
    let commands = [
        owned(&dit),
        owned(&["inspect", &model]),
        owned(&["inspect", &state]),
        of_tiny(&["sample", "--steps", "1", "-n", "1", "--out", &picture]),
        of_tiny(&[
            "compare",
            "--steps",
            "2",
            "--schedules",
            "fora:2",
            "--count",
            "1",
        ]),
        of_tiny(&["bench", "--steps", "2", "--runs", "1"]),
        of_tiny(&[
            "train",
            "calibrate",
            "--steps",
            "2",
            "--draws",
            "1",
            "--out",
            &place.at("c"),
        ]),
        of_tiny(&[
            "train", "router", "--steps", "2", "--passes", "1", "--batch", "1", "--out", &run,
        ]),
    ];
    for command in commands {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let text = says(&command, 0, &[]);
        assert_eq!(
            wrong_plurals(&text),
            Vec::<&str>::new(),
            "{command:?}: {text}"
        );
    }
    assert_eq!(
        wrong_plurals("1 images (1 heads), 1 timed runs, 1 image, 11 steps"),
        ["images", "heads),", "timed"]
    );
}

#[test]
fn tables_of_the_cpu_have_no_cells_that_say_nothing() {
    let tiny = tiny();
    let bench = [
        "bench",
        "--steps",
        "4",
        "--runs",
        "1",
        "--schedules",
        "fora:2",
    ];
    let text = says(&with_tiny(&bench, &tiny), 0, &["ms by part"]);
    assert!(
        !text.contains("dispatches") && !text.contains("(0)"),
        "{text}"
    );
    let row = |name: &str| {
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("| {name} ")))
            .unwrap();
        line.split('|')
            .map(str::trim)
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let header = row("schedule");
    let cell = |name: &str, title: &str| {
        let at = header.iter().position(|cell| cell == title).unwrap();
        row(name)[at].clone()
    };
    for title in ["cache MB", "of all features"] {
        assert_eq!(cell("none", title), "–");
        assert_ne!(cell("fora:2", title), "–");
    }
}
