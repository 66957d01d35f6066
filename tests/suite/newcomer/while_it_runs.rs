//! While it runs: how far it is, and Ctrl-C.
#![cfg(unix)]

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Place, QUICK};
use crate::common::{Guard, harmonica};

fn start(arguments: &[&str]) -> (Guard, BufReader<ChildStderr>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(arguments)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    (Guard(child), stderr)
}

/// Reads stderr up to a line that contains this.
fn line_with(stderr: &mut BufReader<ChildStderr>, word: &str) -> String {
    let mut before = String::new();
    for line in stderr.lines() {
        let line = line.unwrap();
        if line.contains(word) {
            return line;
        }
        before += &line;
    }
    panic!("no `{word}` in {before}");
}

fn rest(mut stderr: BufReader<ChildStderr>) -> String {
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn ctrl_c_keeps_what_is_finished_of_a_grid() {
    let place = Place::new();
    let out = place.at("grid.png");
    let many = ["-n", "4000", "--batch", "1", "-v", "--out", &out];
    let (mut run, mut stderr) = start(&[&QUICK[..], &many].concat());
    for _ in 0..3 {
        line_with(&mut stderr, " drawn ");
    }
    run.signal("INT");
    let text = rest(stderr);
    assert_eq!(run.0.wait().unwrap().code(), Some(130), "{text}");
    assert!(text.contains(" of 4000 images lie in "), "{text}");
    // Two pictures beside each other at least, with their labels.
    assert!(image::open(&out).unwrap().width() > 64);
}

#[test]
fn ctrl_c_in_a_long_step_ends_soon_where_nothing_is_lost() {
    let place = Place::new();
    let out = place.at("x.png");
    // A step of these takes five seconds on two cores.
    let long = [
        "sample",
        "--device",
        "cpu",
        "--steps",
        "20",
        "--schedule",
        "none",
        "-n",
        "512",
        "--batch",
        "512",
        "-v",
        "--out",
        &out,
    ];
    let (mut run, mut stderr) = start(&long);
    line_with(&mut stderr, " loaded bundled");
    std::thread::sleep(Duration::from_millis(200));
    let sent = Instant::now();
    run.signal("INT");
    let text = rest(stderr);
    assert_eq!(run.0.wait().unwrap().code(), Some(130), "{text}");
    assert!(text.contains("error: interrupted"), "{text}");
    assert!(
        sent.elapsed() < Duration::from_secs(3),
        "{:?}",
        sent.elapsed()
    );
    assert!(!Path::new(&out).exists());
}

#[test]
fn off_a_terminal_plain_lines_tell_how_far_it_is() {
    let place = Place::new();
    let out = place.at("pictures");
    let many = ["-n", "4000", "--batch", "1", "--out", &out];
    let (run, mut stderr) = start(&[&QUICK[..], &many].concat());
    let line = line_with(&mut stderr, " image steps · ");
    run.signal("INT");
    let (count, rest_of_line) = line.split_once('/').unwrap();
    assert!(count.parse::<u64>().unwrap() > 0, "{line}");
    assert!(rest_of_line.starts_with("4000 image steps · "), "{line}");
    assert!(line.contains(" · ETA ") && !line.contains('\x1b'), "{line}");
    let quiet = harmonica(&[&QUICK[..], &["-q", "-n", "1", "--out", &out]].concat());
    assert!(quiet.status.success() && quiet.stderr.is_empty());
}
