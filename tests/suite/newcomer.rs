//! What somebody stumbles over who uses the command for the first time: what it says then, and that what it says can be followed.

use std::{
    fs,
    path::{Path, PathBuf},
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

#[test]
fn out_is_a_file_where_it_looks_like_one() {
    let place = Place::new();
    let out = place.run(&[&QUICK[..], &["-n", "1", "--out", "pic.jpg"]].concat());
    assert!(out.status.success(), "{}", said(&out).1);
    let format = image::guess_format(&fs::read(place.path("pic.jpg")).unwrap()).unwrap();
    assert_eq!(format, image::ImageFormat::Jpeg);
    let out = place.run(&[&QUICK[..], &["-n", "1", "--out", "-"]].concat());
    assert!(out.status.success());
    let format = image::guess_format(&out.stdout).unwrap();
    assert_eq!(format, image::ImageFormat::Png);
    let names = fs::read_dir(place.0.path()).unwrap();
    assert_eq!(names.count(), 1, "only pic.jpg");
}

#[test]
fn classes_that_count_leaves_out_are_named() {
    let place = Place::new();
    let out = place.at("x.png");
    let asked = ["--classes", "face-3d,bird-3d,clock-3d", "--out", &out];
    let warning = "--count 1 leaves out 2 of the 3 classes: bird-3d, clock-3d";
    says(
        &[&QUICK[..], &asked, &["--count", "1"]].concat(),
        0,
        &[&format!("warning: {warning}")],
    );
    let all = says(&[&QUICK[..], &asked, &["--count", "3"]].concat(), 0, &[]);
    assert!(!all.contains("leaves out"), "{all}");
}

#[test]
fn part_of_a_class_name_is_understood_as_a_question() {
    for (asked, meant) in [
        ("face", "did you mean `face-flat` or `face-3d`?"),
        ("Clok", "did you mean `clock-flat` or `clock-3d`?"),
        ("animal-fat", "did you mean `animal-flat`"),
    ] {
        says(
            &[&QUICK[..], &["--classes", asked]].concat(),
            2,
            &[&format!("unknown class `{asked}`: {meant}")],
        );
    }
}

#[test]
fn inspect_lists_classes_and_says_so() {
    let listed = says(&["inspect", "bundled", "--classes"], 0, &["  45  "]);
    assert_eq!(listed.lines().count(), 46, "{listed}");
    assert_eq!(listed.lines().next(), Some("   0  animal-flat"));
    says(&["inspect", "bundled"], 0, &["--classes every class"]);
}

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

/// Subcommands that do something, or lead to some that do.
const COMMANDS: [&[&str]; 16] = [
    &["devices"],
    &["sample"],
    &["train"],
    &["train", "dit"],
    &["train", "router"],
    &["train", "calibrate"],
    &["compare"],
    &["bench"],
    &["schedule"],
    &["schedule", "show"],
    &["schedule", "make"],
    &["schedule", "import"],
    &["schedule", "diff"],
    &["pull"],
    &["inspect"],
    &["convert"],
];

#[test]
fn help_has_examples_that_are_understood() {
    for command in COMMANDS {
        let help = says(&[command, &["--help"]].concat(), 0, &["Examples:\n"]);
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        let lines: Vec<&str> = examples.lines().filter(|l| !l.trim().is_empty()).collect();
        assert!((2..=4).contains(&lines.len()), "{command:?}: {examples}");
        for line in lines {
            let example = line.trim().split("   ").next().unwrap();
            let words = example
                .strip_prefix("harmonica ")
                .unwrap()
                .split_whitespace();
            let mut words: Vec<&str> = words.collect();
            // Behind what is not understood no help is shown.
            words.push("--help");
            says(&words, 0, &["Usage: harmonica "]);
        }
    }
}

#[test]
fn help_has_headings_and_exit_codes() {
    says(
        &["--help"],
        0,
        &["Exit codes:", "  0 ", "  1 ", "  2 ", "  130 ", "Examples:"],
    );
    let headings: [(&[&str], &[&str]); 4] = [
        (
            &["sample"],
            &[
                "Pictures",
                "Output",
                "Reuse",
                "Model",
                "Denoising",
                "Device and memory",
            ],
        ),
        (
            &["train", "dit"],
            &["Data", "Output", "Network", "Length", "Recipe"],
        ),
        (
            &["train", "router"],
            &[
                "Learning",
                "Recipe harmonica",
                "Output",
                "Model",
                "Denoising",
            ],
        ),
        (&["compare"], &["Comparison", "Output", "Model"]),
    ];
    for (command, expected) in headings {
        let help = says(&[command, &["--help"]].concat(), 0, &[]);
        let of = |heading: &str| help.find(&format!("\n{heading}:\n"));
        for heading in expected {
            assert!(of(heading).is_some(), "{command:?} lacks {heading}: {help}");
        }
        // What everything has stands by itself: no flag of the command's own is among it.
        let (_, options) = help.split_once("\nOptions:\n").unwrap();
        let end = options.find("\n\n").map_or(options, |end| &options[..end]);
        let flags = end
            .lines()
            .filter(|line| line.trim_start().starts_with('-'));
        let flags: Vec<&str> = flags
            .map(|l| l.split_whitespace().next().unwrap())
            .collect();
        assert!(
            flags
                .iter()
                .all(|f| ["-q,", "-v,", "-h,", "-V,"].contains(f)),
            "{flags:?}"
        );
    }
}

#[cfg(unix)]
mod while_it_runs {
    use std::{
        io::{BufRead, BufReader, Read},
        process::{ChildStderr, Stdio},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::common::Guard;

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
}
