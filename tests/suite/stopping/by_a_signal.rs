//! Ctrl-C in a step of seconds. What is finished by then is at stake, so the command may not just end.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    common::{Guard, harmonica_json},
    pretrain_data,
};

/// A network of 24 branches, a pass through which takes seconds on a few cores.
const LONG: &str = "random:DiT-S/2@1024";

fn start(arguments: &[&str], out: &Path) -> Guard {
    let child = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(arguments)
        .arg("--out")
        .arg(out)
        .stderr(Stdio::piped())
        .spawn();
    Guard(child.unwrap())
}

/// Interrupts a command in the middle of work that has `left` to go at least. It must end within half of that; a machine that is
/// that fast may be late by what a process costs. What it said.
fn ends_early(mut run: Guard, what: &str, left: Duration) -> String {
    let sent = Instant::now();
    run.signal("INT");
    let mut said = String::new();
    let mut stderr = run.0.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    let code = run.0.wait().unwrap().code();
    let took = sent.elapsed();
    println!("measured: Ctrl-C in {what}, {left:?} before its end: {took:?}");
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("error: interrupted"), "{said}");
    let bound = (left / 2).max(Duration::from_millis(300));
    assert!(took < bound, "{took:?}, {left:?} before the end of {what}");
    said
}

/// Interrupts a training in the second of two units of work that are alike and leave a line of its log each.
fn ends_in_the_second(mut run: Guard, out: &Path, checkpoint: &str, what: &str) -> String {
    run.wait_until(|| out.join(checkpoint).exists());
    let begun = Instant::now();
    let lines = || std::fs::read_to_string(out.join("train.jsonl")).unwrap_or_default();
    run.wait_until(|| !lines().is_empty());
    let unit = begun.elapsed();
    std::thread::sleep(unit / 5);
    let said = ends_early(run, what, unit * 4 / 5);
    assert_eq!(lines().lines().count(), 1);
    said
}

#[test]
fn a_step_of_a_run_ends_within_a_fraction_of_it_and_keeps_what_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pictures");
    let arguments = ["sample", "--device", "cpu", "--model", LONG, "--steps", "1"];
    let more = ["--schedule", "none", "--count", "6", "--batch", "3", "-v"];
    let mut run = start(&[&arguments[..], &more].concat(), &out);
    let mut lines = BufReader::new(run.0.stderr.take().unwrap());
    let mut wait_for = |word: &str| {
        let mut said = String::new();
        while !said.contains(word) {
            let before = said.len();
            lines.read_line(&mut said).unwrap();
            assert!(said.len() > before, "no `{word}` in {said}");
        }
        Instant::now()
    };
    let loaded = wait_for(" loaded ");
    let step = wait_for(" drawn ") - loaded;
    std::thread::sleep(step / 5);
    run.0.stderr = Some(lines.into_inner());
    let said = ends_early(run, "a step of a run", step * 4 / 5);
    assert!(said.contains("3 of 6 images lie in "), "{said}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 3);
}

#[test]
fn a_pass_of_a_routers_training_ends_within_a_fraction_of_it_and_keeps_those_before() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("router");
    let arguments = ["train", "router", "--device", "cpu", "--model", LONG];
    let recipe = ["--steps", "2", "--guidance", "1", "--batch", "1"];
    let more = ["--beta", "1e-4", "--proxy", "none", "--passes", "9"];
    let run = start(&[&arguments[..], &recipe, &more].concat(), &out);
    let what = "a pass of a router's training";
    let said = ends_in_the_second(run, &out, "router.safetensors", what);
    assert!(said.contains("stopped after 1 pass, saved in "), "{said}");
    let saved = out.join("router.safetensors");
    let saved = harmonica_json(&["inspect", saved.to_str().unwrap(), "--json"]);
    assert_eq!(saved["pass"], 1);
}

#[test]
fn a_step_of_a_networks_training_ends_within_a_fraction_of_it_and_keeps_those_before() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pretrain_data::folder(folder.path());
    let out = folder.path().join("dit");
    let arguments = ["train", "dit", "--device", "cpu", "--data"];
    let network = ["--hidden", "64", "--heads", "1", "--patch", "2"];
    let more = ["--image-size", "64", "--batch", "8", "--steps", "9"];
    let pictures = [pictures.to_str().unwrap()];
    let run = start(&[&arguments[..], &pictures, &network, &more].concat(), &out);
    let what = "a step of a network's training";
    let said = ends_in_the_second(run, &out, "checkpoint.safetensors", what);
    assert!(said.contains("stopped after 1 step, saved in "), "{said}");
    let saved = out.join("checkpoint.safetensors");
    let saved = harmonica_json(&["inspect", saved.to_str().unwrap(), "--json"]);
    assert_eq!(saved["steps"], 1);
}

/// A step of a search is one of all its draws: eight images, which take at least four times as long as one.
#[test]
fn a_step_of_a_search_ends_within_a_fraction_of_it_and_says_how_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--device", "cpu", "--model", LONG, "--steps"];
    let picture = folder.path().join("one.png");
    let one = ["sample", "1", "--count", "1", "--json", "--schedule"];
    let (sample, more) = one.split_at(1);
    let more = [more, &["none", "--out", picture.to_str().unwrap()]].concat();
    let report = harmonica_json(&[sample, &arguments, &more].concat());
    let one = Duration::from_secs_f64(report["seconds_sampling"].as_f64().unwrap());

    let out = folder.path().join("ladder");
    let search = [
        "4",
        "--draws",
        "8",
        "--sweeps",
        "0",
        "--target-speedup",
        "2",
    ];
    let train = [&["train", "router"][..], &arguments, &search].concat();
    let mut run = start(&train, &out);
    run.wait_until(|| out.join("ladder.json").exists());
    std::thread::sleep(one);
    let said = ends_early(run, "a step of a search", 3 * one);
    assert!(said.contains("stopped, saved in "), "{said}");
    assert!(said.contains(" --resume --out "), "{said}");
    let saved = std::fs::read_to_string(out.join("ladder.json")).unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(&saved).is_ok());
}
