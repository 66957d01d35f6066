//! Training: how it begins, how it goes on, and what it says at its end.

use std::{fs, path::Path};

use super::{Place, command_behind, says, tiny, train, with_tiny};

#[test]
fn a_training_is_resumed_without_its_data() {
    let place = Place::new();
    let (data, out) = (place.pictures(2), place.at("run"));
    says(
        &train(&["--resume", "--out", &out]),
        2,
        &["no run to resume"],
    );
    says(&["train", "dit"], 2, &["--data <DIR|FILE>"]);
    says(
        &train(&["--data", &data, "--steps", "2", "--out", &out]),
        0,
        &["2 pictures of [3, 8, 8] in 1 class; 2 steps"],
    );
    let resumed = [
        "train", "dit", "--resume", "--steps", "3", "--device", "cpu",
    ];
    says(
        &[&resumed[..], &["--out", &out]].concat(),
        0,
        &["model.safetensors: 3 steps, 6 pictures in"],
    );
    // What `inspect` tells to type does as it says.
    let state = format!("{out}/checkpoint.safetensors");
    let text = says(&["inspect", &state], 0, &["1 class", &data]);
    let command = command_behind(&text, "goes on");
    assert_eq!(command, ["train", "dit", "--resume", "--out", &out]);
    says(
        &[&command[..], &["--device", "cpu"]].concat(),
        0,
        &["3 steps"],
    );
    // Pictures that have moved are asked for by name.
    fs::rename(&data, place.path("moved")).unwrap();
    says(
        &[&command[..], &["--device", "cpu"]].concat(),
        1,
        &["cannot read", &data],
    );
    says(
        &[
            &command[..],
            &["--device", "cpu", "--data", &place.at("moved")],
        ]
        .concat(),
        2,
        &["data of identity"],
    );
}

#[test]
fn train_router_ends_with_a_command_that_works() {
    let place = Place::new();
    let tiny = tiny();
    let published = [
        "train",
        "router",
        "--passes",
        "1",
        "--batch",
        "1",
        "--target-cur",
        "0.3",
    ];
    let forecast = [
        "train",
        "router",
        "--draws",
        "2",
        "--sweeps",
        "0",
        "--target-speedup",
        "2",
    ];
    for (number, recipe) in [published, forecast].into_iter().enumerate() {
        let out = place.at(&format!("run-{number}"));
        let more = ["--steps", "4", "--guidance", "1.25", "--out", &out];
        let text = says(&with_tiny(&[&recipe[..], &more].concat(), &tiny), 0, &[]);
        let picture = place.at("x.png");
        let mut command = command_behind(&text, "next:");
        assert!(command.contains(&"1.25"), "{command:?}");
        command.extend(["-n", "1", "--out", &picture]);
        let drawn = says(&command, 0, &["schedule "]);
        assert!(!drawn.contains("warning: the schedule is used"), "{drawn}");
    }
}

#[test]
fn train_router_says_how_far_it_is_off_its_target() {
    let place = Place::new();
    let tiny = tiny();
    let train = |target: &'static str, out: &str| {
        let forecast = [
            "train", "router", "--steps", "4", "--draws", "2", "--sweeps", "0",
        ];
        let more = ["--target-speedup", target, "--out", out];
        says(&with_tiny(&[&forecast[..], &more].concat(), &tiny), 0, &[])
    };
    let off = train("1.5", &place.at("off"));
    assert!(off.contains("2 of 4 steps, 2.00×"), "{off}");
    assert!(
        off.contains("warning: 33.3 % off its target: a run of 4 steps"),
        "{off}"
    );
    let met = train("2", &place.at("met"));
    assert!(!met.contains("off its target"), "{met}");
}

/// The learning rates of a run.
fn rates(run: &Path) -> Vec<f64> {
    let log = fs::read_to_string(run.join("train.jsonl")).unwrap();
    let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    log.lines()
        .map(|line| step(line)["lr"].as_f64().unwrap())
        .collect()
}

#[test]
fn a_short_training_leaves_its_warm_up() {
    let place = Place::new();
    let data = place.pictures(2);
    let (short, slow) = (place.at("short"), place.at("slow"));
    let base = ["--data", &data, "--steps", "20", "--out"];
    says(&train(&[&base[..], &[&short]].concat()), 0, &[]);
    let highest = |run: &str| rates(Path::new(run)).into_iter().fold(0.0, f64::max);
    assert!(
        highest(&short) > 0.9 * 5e-4,
        "{:?}",
        rates(Path::new(&short))
    );
    // What is asked for is done, and said.
    says(
        &train(&[&base[..], &[&slow, "--warmup", "200"]].concat()),
        0,
        &["still rising when the run ended: --warmup is 200, the run had 20 steps"],
    );
    assert!(highest(&slow) < 0.1 * 5e-4, "{:?}", rates(Path::new(&slow)));
}

#[test]
fn nothing_trains_for_an_hour_unasked_on_next_to_nothing() {
    let place = Place::new();
    let (data, out) = (place.pictures(1), place.at("run"));
    fs::create_dir(place.path("empty")).unwrap();
    says(
        &train(&["--data", &data, "--out", &out]),
        2,
        &[
            "holds 1 picture, which a network learns by heart",
            "pass --minutes, --images or --steps",
        ],
    );
    let file = format!("{data}/0.png");
    says(
        &train(&["--data", &file, "--out", &out]),
        1,
        &["0.png is one picture: expected a folder"],
    );
    says(
        &train(&["--data", &place.at("empty"), "--out", &out]),
        1,
        &["holds no pictures"],
    );
    assert!(!place.path("run").exists());
    let follow = ["--data", &data, "--out", &out, "--steps", "1"];
    says(
        &train(&follow),
        0,
        &["1 picture of [3, 8, 8] in 1 class; 1 step"],
    );
}

#[test]
fn a_training_says_when_it_has_come_to_nothing() {
    let place = Place::new();
    let (data, out) = (place.pictures(2), place.at("run"));
    let base = ["--data", &data, "--steps", "2", "--out"];
    let noise = "warning: after 2 steps a network draws noise";
    says(&train(&[&base[..], &[&out]].concat()), 0, &[noise]);
    says(
        &["train", "dit", "--resume", "--out", &out, "--device", "cpu"],
        0,
        &["was at its end: a larger --minutes, --images or --steps goes on"],
    );
    // A run's folder holds pictures, which are none to learn.
    let on_itself = ["--data", &out, "--out", &place.at("other")];
    says(
        &train(&on_itself),
        2,
        &[
            "is the folder of a training: expected pictures",
            "--resume --out",
        ],
    );
}
