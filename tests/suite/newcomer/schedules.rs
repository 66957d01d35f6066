//! Schedules, and what is taken for one.

use super::{Place, QUICK, says, tiny, with_tiny};
use crate::common::golden;

#[test]
fn force_is_proposed_where_it_helps_alone() {
    let place = Place::new();
    let (file, out) = (place.at("f.schedule.json"), place.at("x.png"));
    let make = ["schedule", "make", "fora:2", "--steps", "4", "--out", &file];
    says(&make, 0, &["for 4 steps"]);
    let sample = |more: &[&'static str], code, words: &[&str]| {
        let base = ["sample", "--device", "cpu", "-n", "1", "--out", &out];
        let schedule = ["--schedule", &file];
        says(&[&base[..], &schedule, more].concat(), code, words)
    };
    sample(
        &["--steps", "4", "--solver", "euler"],
        1,
        &["solver ddim", "or pass --force"],
    );
    sample(
        &["--steps", "4", "--solver", "euler", "--force"],
        0,
        &["warning: --force: the schedule does not fit"],
    );
    for flags in [&["--steps", "5"][..], &["--steps", "5", "--force"]] {
        let text = sample(flags, 1, &["it is for 4 steps, this run has 5"]);
        assert!(!text.contains("--force"), "{text}");
    }
}

/// Files that belong elsewhere, and what is said where they are passed as a model or as a schedule.
#[test]
fn what_is_no_model_or_no_schedule_is_told_where_it_belongs() {
    let place = Place::new();
    let (tiny, run) = (tiny(), place.at("run"));
    let router = [
        "train", "router", "--steps", "3", "--passes", "1", "--batch", "1", "--out", &run,
    ];
    says(&with_tiny(&router, &tiny), 0, &[]);
    let state = format!("{run}/router.safetensors");
    let schedule = format!("{run}/router.schedule.json");
    let released = golden("harmonica-router.pt").to_str().unwrap().to_owned();
    let import = format!("`harmonica schedule import {released} --model MODEL --out ");
    let of_state = format!(
        "it is the state of a router in training: its schedules lie beside it, pass --schedule {run}"
    );
    for (model, words) in [
        (&state, &of_state),
        (
            &run,
            &format!("it holds schedules: pass it as --schedule {run}"),
        ),
        (
            &schedule,
            &"it is a schedule: pass it as --schedule".to_owned(),
        ),
        (&released, &import),
        (
            &"fora:2".to_owned(),
            &"`fora:2` names a schedule".to_owned(),
        ),
        (
            &"learned".to_owned(),
            &"`learned` names a schedule".to_owned(),
        ),
    ] {
        says(&[&QUICK[..], &["--model", model]].concat(), 1, &[words]);
        let convert = ["convert", "--model", model, "--out", &place.at("c")];
        says(&convert, 1, &[words]);
    }
    let quick = ["sample", "--device", "cpu", "--steps", "3", "--schedule"];
    let model = tiny[1].clone();
    for (schedule, words) in [
        (&state, &of_state),
        (&released, &import),
        (
            &model,
            &"it is a weight file: pass it as --model".to_owned(),
        ),
    ] {
        says(&[&quick[..], &[schedule]].concat(), 1, &[words]);
    }
    says(
        &[&quick[..], &["bundled"]].concat(),
        2,
        &["`bundled` is a model (--model): what was learned for it is learned[:SPEED]"],
    );
    // What was proposed works.
    let out = place.at("x.png");
    let follow = [
        "sample",
        "--steps",
        "3",
        "--schedule",
        &run,
        "-n",
        "1",
        "--out",
        &out,
    ];
    says(&with_tiny(&follow, &tiny), 0, &["schedule "]);
}

#[test]
fn a_schedule_has_the_same_name_in_every_command() {
    let place = Place::new();
    says(
        &["schedule", "show", "learned"],
        0,
        &["forecast for DiT of 12 blocks, 20 steps"],
    );
    says(&["schedule", "show", "learned:3"], 0, &["MACs ratio 3."]);
    let fora = ["schedule", "show", "fora:2", "--steps", "4", "--plan"];
    says(
        &fora,
        0,
        &["fora for DiT of 12 blocks, 4 steps", "MACs ratio 1.98×"],
    );
    says(
        &["schedule", "show", "steps:7"],
        0,
        &["7 steps", "MACs ratio 1.00×"],
    );
    says(
        &["schedule", "diff", "learned", "fora:2"],
        0,
        &["learned: CUR ", "fora:2: CUR 50.0 %", "differ"],
    );
    says(
        &["schedule", "show", "fb:0.1"],
        2,
        &["decides while a run goes on"],
    );
    says(
        &["schedule", "show", "bundled"],
        2,
        &["`bundled` is a model (--model)"],
    );
    says(
        &["inspect", "fora:2"],
        1,
        &["`fora:2` names a schedule", "`harmonica schedule show`"],
    );
    // Written, it is the same as named.
    let file = place.at("l.schedule.json");
    says(
        &["schedule", "make", "learned:2", "--out", &file],
        0,
        &["MACs ratio 2.0"],
    );
    says(
        &["schedule", "diff", "learned:2", &file],
        0,
        &["0 of 480 differ"],
    );
    says(
        &["schedule", "make", &file, "--out", &place.at("m")],
        2,
        &["is a schedule file already"],
    );
}

#[test]
fn speed_1_is_all_of_the_work_and_steps_without_a_schedule_name_those_that_have_one() {
    let place = Place::new();
    let out = place.at("x.png");
    let draw = |more: &[&str]| -> String {
        let usual = [
            "sample",
            "--device",
            "cpu",
            "--classes",
            "clock-3d",
            "--out",
            &out,
            "--steps",
        ];
        says(
            &[&usual[..], more].concat(),
            0,
            &["1 image of 32×32 by DiT"],
        )
    };
    let text = draw(&["20", "--speed", "1"]);
    assert!(
        text.contains("schedule none: 0.0 % of branches reused"),
        "{text}"
    );
    let text = draw(&["3"]);
    let others =
        "for this model there are some for --steps 20 --solver ddim, --steps 50 --solver ddim";
    assert!(text.contains(others), "{text}");
    let classes = [
        "sample",
        "--device",
        "cpu",
        "--out",
        &out,
        "--classes",
        "clock-3d,",
    ];
    says(
        &classes,
        2,
        &["--classes has an empty name: expected names or numbers"],
    );
}
