//! Router training: against the independent trace, resumed, killed, steered.

use std::path::Path;

use harmonica::{
    checkpoint::{self, read_named_tensors},
    plan::compile,
    schedule::ScheduleFile,
};

use crate::common::{
    golden, harmonica, harmonica_json, kill_ten_times, of_a_later_format, tensor, within,
};

fn train(out: &Path, flags: &[&str]) -> Vec<String> {
    let tiny = golden("tiny-a.pt");
    let fixed = [
        "train",
        "router",
        "--model",
        tiny.to_str().unwrap(),
        "--heads",
        "4",
        "--device",
        "cpu",
        "--out",
        out.to_str().unwrap(),
    ];
    fixed.iter().chain(flags).map(|s| s.to_string()).collect()
}

fn run(arguments: &[String]) -> std::process::Output {
    harmonica(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn succeed(arguments: &[String]) {
    let out = run(arguments);
    assert!(
        out.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn log(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("train.jsonl")).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

/// 540 iterations of PyTorch, number by number, for both proxies and for SDT alone.
#[test]
fn an_independent_trace_is_reproduced() {
    for file in ["sdt-loo", "sdt-progressive", "sdt-plain"] {
        let folder = tempfile::tempdir().unwrap();
        let path = golden(&format!("{file}.safetensors"));
        let source = checkpoint::open(&path).unwrap();
        let setting = |name: &str| source.metadata()[name].clone();
        let extra = folder.path().join("again.jsonl");
        let out = folder.path().join("run");
        succeed(&train(
            &out,
            &[
                "--replay",
                path.to_str().unwrap(),
                "--log",
                extra.to_str().unwrap(),
                "--clip-x0",
                "off",
                "--beta",
                &setting("beta"),
                "--lr",
                &setting("lr"),
                "--tau",
                &setting("tau"),
                "--guidance",
                &setting("guidance"),
                "--lambda-every",
                &setting("lambda_every"),
                "--proxy",
                &setting("proxy"),
            ],
        ));
        let (worst, rows) = compare_trace(&path, &out);
        assert_eq!(rows, 540);
        within(format!("training trace, {file}"), worst, 5e-5);
        let logits = read_named_tensors(&out.join("router.safetensors"), &["logits"])
            .unwrap()
            .remove(0)
            .1;
        let off = harmonica::metrics::max_abs_error(
            &logits,
            &tensor(&format!("{file}.safetensors"), "router_final").1,
        );
        within(format!("trained logits, {file}"), off, 2e-5);
        assert_eq!(
            std::fs::read(&extra).unwrap(),
            std::fs::read(out.join("train.jsonl")).unwrap()
        );
        assert!(image::open(out.join("router.png")).unwrap().width() > 500);
    }
}

/// Learning-to-Cache's training on pairs of steps, number by number.
#[test]
fn a_trace_of_pairs_is_reproduced() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("sdt-pairs.safetensors");
    let source = checkpoint::open(&path).unwrap();
    let setting = |name: &str| source.metadata()[name].clone();
    for checkpointing in [false, true] {
        let out = folder.path().join(checkpointing.to_string());
        let (beta, lr) = (setting("beta"), setting("lr"));
        let (tau, guidance) = (setting("tau"), setting("guidance"));
        let flags = [
            "--recipe",
            "learning-to-cache",
            "--replay",
            path.to_str().unwrap(),
            "--clip-x0",
            "off",
            "--beta",
            &beta,
            "--lr",
            &lr,
            "--tau",
            &tau,
            "--guidance",
            &guidance,
            "--gradient-checkpointing",
        ];
        let flags = &flags[..flags.len() - usize::from(!checkpointing)];
        succeed(&train(&out, flags));
        let (worst, rows) = compare_trace(&path, &out);
        // 30 passes of ten steps, of which every other one may reuse.
        assert_eq!(rows, 150);
        within("training trace, pairs", worst, 5e-5);
        let logits = read_named_tensors(&out.join("router.safetensors"), &["logits"])
            .unwrap()
            .remove(0)
            .1;
        let expected = tensor("sdt-pairs.safetensors", "router_final").1;
        let off = harmonica::metrics::max_abs_error(&logits, &expected);
        within("trained logits, pairs", off, 2e-5);
        let file = ScheduleFile::read(&out.join("router.schedule.json")).unwrap();
        assert_eq!(file.policy.name, "learning-to-cache");
        let schedule = file.schedule().unwrap();
        assert!(
            (0..10)
                .step_by(2)
                .all(|s| !schedule.row(s).contains(&false))
        );
    }
}

/// Learning-to-Cache lands on a target that pairs of steps can reach, and goes on where it was.
#[test]
fn pairs_are_steered_to_a_target_and_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pairs");
    let flags = |passes: &'static str| {
        [
            "--recipe",
            "learning-to-cache",
            "--steps",
            "7",
            "--batch",
            "1",
            "--passes",
            passes,
        ]
    };
    let pairs = |passes, more: &[&str]| train(&out, &[&flags(passes)[..], more].concat());
    succeed(&pairs("3", &["--target-cur", "0.3"]));
    let file = ScheduleFile::read(&out.join("router.schedule.json")).unwrap();
    let schedule = file.schedule().unwrap();
    // Seven steps end with pairs too: steps 2, 4 and 6 may reuse.
    assert!((schedule.cur() - 0.3).abs() < 0.04, "{}", schedule.cur());
    assert!(
        [0, 1, 3, 5]
            .iter()
            .all(|s| !schedule.row(*s).contains(&false))
    );
    // What it was made with is remembered, and no run of another recipe goes on with it.
    let resumed = train(&out, &["--steps", "7", "--passes", "5", "--resume"]);
    succeed(&resumed);
    assert_eq!(log(&out).len(), 5 * 3);
    for (arguments, text) in [
        (
            pairs("5", &["--resume", "--target-cur", "0.6"]),
            "at every other step gives 0.429",
        ),
        (
            pairs("5", &["--resume", "--proxy", "sensitivity"]),
            "expected none",
        ),
        (
            pairs("5", &["--resume", "--lambda-every", "7"]),
            "does not belong to the recipe",
        ),
        (
            train(
                &out,
                &[
                    "--recipe",
                    "harmonica",
                    "--steps",
                    "7",
                    "--passes",
                    "5",
                    "--resume",
                ],
            ),
            "pairs",
        ),
    ] {
        let done = run(&arguments);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.code() == Some(2) && said.contains(text),
            "{arguments:?}: {said}"
        );
    }
}

/// The largest relative difference between a run's log and the trace of its golden file, and the number of rows.
pub fn compare_trace(golden: &Path, out: &Path) -> (f64, usize) {
    let (shape, trace) = read_f64(golden, "trace");
    let ours = log(out);
    assert_eq!((ours.len(), 6), (shape[0], shape[1]));
    let mut worst: f64 = 0.0;
    for (line, expected) in ours.iter().zip(trace.chunks(6)) {
        let keys = ["pass", "step", "mse", "score_sum", "lambda", "loss"];
        for (key, expected) in keys.iter().zip(expected) {
            let found = line[key].as_f64().unwrap();
            worst = worst.max((found - expected).abs() / expected.abs().max(1e-12));
        }
    }
    (worst, ours.len())
}

/// Doubles, which the library reads as f32: read whole here, since λ spans many orders.
fn read_f64(path: &Path, name: &str) -> (Vec<usize>, Vec<f64>) {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let values = view
        .data()
        .as_chunks::<8>()
        .0
        .iter()
        .map(|b| f64::from_le_bytes(*b))
        .collect();
    (view.shape().to_vec(), values)
}

const LONG: [&str; 12] = [
    "--steps",
    "6",
    "--passes",
    "120",
    "--batch",
    "2",
    "--target-cur",
    "0.4",
    "--save-every",
    "3",
    "--lambda-every",
    "60",
];

#[test]
fn a_killed_run_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    succeed(&train(&whole, &LONG));
    let killed = folder.path().join("killed");
    let checkpoint = killed.join("router.safetensors");
    // Four passes of five lines, where every third is saved.
    kill_ten_times(&killed.join("train.jsonl"), &checkpoint, 20, |resume| {
        let mut arguments = train(&killed, &LONG);
        arguments.extend(resume.then(|| "--resume".to_owned()));
        arguments
    });
    for file in ["train.jsonl", "router.safetensors", "router.schedule.json"] {
        assert!(
            std::fs::read(whole.join(file)).unwrap() == std::fs::read(killed.join(file)).unwrap(),
            "{file} differs after ten kills"
        );
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_ends_with_130() {
    use std::{
        process::{Command, Stdio},
        time::Duration,
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let flags = [
        "--steps",
        "10",
        "--passes",
        "100000",
        "--batch",
        "2",
        "--beta",
        "1e-4",
        "--save-every",
        "100000",
    ];
    let child = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(train(&out, &flags))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let out_text = child.wait_with_output().unwrap();
    assert_eq!(
        out_text.status.code(),
        Some(130),
        "{}",
        String::from_utf8_lossy(&out_text.stderr)
    );
    let saved = harmonica_json(&[
        "inspect",
        out.join("router.safetensors").to_str().unwrap(),
        "--json",
    ]);
    let passes = saved["pass"].as_u64().unwrap();
    assert!(passes > 0);
    assert_eq!(log(&out).len() as u64, passes * 9);
}

#[test]
fn the_budget_lands_on_its_target_and_emits_a_dial() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let report = {
        let mut arguments = train(
            &out,
            &[
                "--steps",
                "10",
                "--passes",
                "60",
                "--batch",
                "2",
                "--target-cur",
                "0.5,0.25",
                "--json",
            ],
        );
        arguments.push("-q".into());
        harmonica_json(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // 40 branch evaluations: the nearest a table can come is within half of 1/40.
    let schedules = report["schedules"].as_array().unwrap();
    assert_eq!(schedules.len(), 2);
    for (schedule, target) in schedules.iter().zip([0.5, 0.25]) {
        let cur = schedule["cur"].as_f64().unwrap();
        assert!(
            (cur - target).abs() <= 0.01 * target + 1e-9,
            "{cur} for {target}"
        );
    }
    let speedup = folder.path().join("speedup");
    succeed(&train(
        &speedup,
        &[
            "--steps",
            "10",
            "--passes",
            "30",
            "--batch",
            "2",
            "--target-speedup",
            "1.3",
        ],
    ));
    let shown = harmonica_json(&[
        "schedule",
        "show",
        speedup.join("router.schedule.json").to_str().unwrap(),
        "--json",
    ]);
    let ratio = shown["macs_ratio"].as_f64().unwrap();
    assert!((ratio / 1.3 - 1.0).abs() < 0.03, "{ratio}");
}

#[test]
fn wrong_training_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let short = [
        "--steps", "3", "--passes", "1", "--batch", "1", "--beta", "1e-4",
    ];
    let said = |flags: &[&str]| {
        let out = run(&train(&out, flags));
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        (
            out.status.code(),
            text.lines()
                .rfind(|l| l.starts_with("error"))
                .unwrap_or_default()
                .to_owned(),
        )
    };
    let refused = |flags: &[&str], text: &str| {
        let (code, line) = said(flags);
        assert!(
            code == Some(2) && line.contains(text),
            "{flags:?}: {code:?} {line}"
        );
    };
    refused(&["--resume"], "holds no run to resume");
    refused(
        &["--passes", "0"],
        "--passes is 0, expected a whole number of at least 1",
    );
    refused(
        &["--tau", "1"],
        "--tau is 1, expected a number between 0 and 1",
    );
    refused(
        &["--lr", "NaN"],
        "--lr is NaN, expected a finite number above 0",
    );
    refused(
        &["--target-cur", "1.2"],
        "--target-cur is 1.2, expected a number between 0 and 1",
    );
    refused(
        &["--steps", "2", "--target-cur", "0.6"],
        "reusing everything after step 0 gives 0.500",
    );
    refused(
        &["--steps", "1", "--passes", "1"],
        "a router needs at least 2 steps",
    );
    refused(&["--steps", "1"], "--steps is 1, expected at least 2");
    refused(
        &["--steps", "4", "--target-speedup", "5"],
        "--target-speedup is 5, expected at most the number of steps",
    );
    refused(
        &["--solver", "ddpm", "--passes", "1"],
        "routers are trained along the deterministic ddim solver",
    );
    refused(
        &["--beta", "1", "--target-cur", "0.5"],
        "cannot be used with",
    );
    refused(
        &["--proxy", "fid"],
        "expected leave-one-out, progressive, sensitivity, or none",
    );
    succeed(&train(&out, &short));
    refused(&short, "holds a run already; pass --resume");
    let other = [
        "--steps", "3", "--passes", "2", "--batch", "1", "--beta", "1e-3", "--resume",
    ];
    refused(&other, "was trained with budget");
    let more = [
        "--steps", "3", "--passes", "2", "--batch", "1", "--beta", "1e-4", "--resume",
    ];
    succeed(&train(&out, &more));
    assert_eq!(log(&out).len(), 4);
    // What is not said again stays as it was.
    succeed(&train(&out, &["--steps", "3", "--passes", "3", "--resume"]));
    assert_eq!(log(&out).len(), 6);
    // A finished run makes schedules for other targets, and for a smaller cache.
    let smaller = [
        "--steps",
        "3",
        "--passes",
        "3",
        "--resume",
        "--target-cur",
        "0.3",
        "--max-cache",
    ];
    succeed(&train(&out, &[&smaller[..], &["0.5"]].concat()));
    let made = ScheduleFile::read(&out.join("router-cache0.5.schedule.json")).unwrap();
    let schedule = made.schedule().unwrap();
    let branches = schedule.branches();
    assert!(schedule.cur() > 0.2);
    assert!(compile(&schedule, &made.model.graph).slots() <= branches / 2);
    assert_eq!(log(&out).len(), 6);
    let too_small = [&smaller[..], &["0.1"]].concat();
    refused(&too_small, "slots allow gives");
    refused(
        &[&smaller[..], &["0"]].concat(),
        "--max-cache is 0, expected a number above 0 and at most 1",
    );
    refused(
        &["--steps", "3", "--target-cur", "0.9", "--out", "elsewhere"],
        "cannot be used multiple times",
    );
    // An interrupted run remembers all that it makes schedules for.
    let stopped = folder.path().join("stopped");
    let targets = ["--steps", "3", "--passes", "1", "--target-cur", "0.3,0.5"];
    succeed(&train(
        &stopped,
        &[&targets[..], &["--max-cache", "0.75"]].concat(),
    ));
    let made = |target: &str| stopped.join(format!("router-cur{target}-cache0.75.schedule.json"));
    let first = ["0.3", "0.5"].map(|target| std::fs::read(made(target)).unwrap());
    succeed(&train(
        &stopped,
        &["--steps", "3", "--passes", "20", "--resume"],
    ));
    for (target, first) in ["0.3", "0.5"].iter().zip(first) {
        assert!(std::fs::read(made(target)).unwrap() != first, "{target}");
    }
    of_a_later_format(&out.join("router.safetensors"));
    let (code, line) = said(&["--steps", "3", "--resume"]);
    let text = "its training state has format 2, this program reads format 1";
    assert!(code == Some(1) && line.ends_with(text), "{code:?} {line}");
}

/// The bundled model's second step of 40: most branches do no good there, so that the first β is 0.
#[test]
fn a_step_that_nothing_speaks_for_does_not_end_a_training() {
    let at = tempfile::tempdir().unwrap();
    let summary = harmonica_json(&[
        "train",
        "router",
        "--device",
        "cpu",
        "--steps",
        "40",
        "--passes",
        "1",
        "--batch",
        "2",
        "--proxy",
        "none",
        "--target-cur",
        "0.5",
        "--out",
        at.path().join("router").to_str().unwrap(),
        "--json",
    ]);
    assert_eq!(summary["schedules"].as_array().map(Vec::len), Some(1));
}
