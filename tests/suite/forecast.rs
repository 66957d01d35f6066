//! Runs whose steps make clean images of earlier ones, and the fit of their weights, against an independent program.

use std::{ops::ControlFlow, path::Path, sync::Arc};

use harmonica::{
    checkpoint::{self, LoadOptions, ModelSpec, load_model},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver, Spacing, Weights},
    metrics::{max_abs_error, mse},
    models::{Condition, Model, Prompts},
    pipeline::Pipeline,
    plan::compile,
    ranks::Ranks,
    sampler::{Event, Request, Sampler, Settings},
    schedule::{Forecast, Schedule, ScheduleFile},
    training::{
        Budget, RunFolder,
        forecast::{Draws, LadderOptions, LadderRun, LadderSettings, Progress, Purpose, Source},
    },
};

use crate::common::{
    engines, golden, harmonica, harmonica_json, integers, kill_ten_times, tensor, within,
};

const FILE: &str = "forecast.safetensors";

fn tiny(engine: &Engine) -> Model {
    let options = LoadOptions {
        heads: Some(4),
        input_size: None,
    };
    let spec = ModelSpec::Path(golden("tiny-a.pt"));
    load_model(&spec, options, engine.device()).unwrap().0
}

fn settings(clip_x0: bool) -> Settings {
    let setting = |name: &str| checkpoint::open(&golden(FILE)).unwrap().metadata()[name].clone();
    Settings {
        steps: setting("steps").parse().unwrap(),
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(setting("guidance").parse().unwrap(), GuidedChannels::Three)
            .unwrap(),
        clip_x0,
    }
}

fn table(set: &str) -> (Schedule, Vec<usize>) {
    let skipped = integers(FILE, &format!("{set}.skipped"));
    if set.ends_with("parts") {
        return (in_part(&skipped, &PARTS), skipped);
    }
    let table = Schedule::from_rule(10, 4, |s, _| !skipped.contains(&s)).unwrap();
    (table, skipped)
}

/// The branches that some steps of set `parts` compute alone.
const PARTS: [(usize, &[usize]); 4] = [(1, &[2, 3]), (4, &[]), (6, &[0, 3]), (8, &[1, 2, 3])];

/// A table whose steps in part forecast what they do not compute by a line through the last two features.
fn in_part(skipped: &[usize], parts: &[(usize, &[usize])]) -> Schedule {
    let row = |s: usize| parts.iter().find(|(at, _)| *at == s).map(|(_, row)| *row);
    let table = Schedule::from_rule(10, 4, |s, n| match row(s) {
        Some(row) => row.contains(&n),
        None => !skipped.contains(&s),
    });
    let table = table.unwrap();
    let computed: Vec<Vec<usize>> = (0..4).map(|n| table.computed_steps(n)).collect();
    let line = |s: usize, n: usize| {
        let before = computed[n].iter().rev().filter(|k| **k < s).copied();
        match before.collect::<Vec<usize>>()[..] {
            [last, older, ..] if row(s).is_some() => {
                let ahead = (s - last) as f32 / (last - older) as f32;
                vec![1.0 + ahead, -ahead]
            }
            _ => Vec::new(),
        }
    };
    table.with_reads(line).unwrap()
}

/// The weights that the independent program found.
fn expected(set: &str) -> Schedule {
    let (table, skipped) = table(set);
    let rows = tensor(FILE, &format!("{set}.estimates")).1;
    let estimates = rows.chunks(4).enumerate().skip(1).map(|(s, row)| {
        let row: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        let estimate = Weights {
            state: row[3],
            predictions: [row[0], row[1], row[2]],
        };
        (s, estimate)
    });
    let estimates = estimates.collect();
    table
        .with_forecast(Forecast { estimates, skipped })
        .unwrap()
}

fn conditions() -> Vec<Condition> {
    Condition::classes(&integers(FILE, "labels"))
}

fn request() -> Request {
    Request {
        conditions: conditions(),
        seed: 0,
        first: 0,
        noise: Some(tensor(FILE, "noise").1),
        batch: 4,
    }
}

const SETS: [(&str, bool); 6] = [
    ("even", false),
    ("some", false),
    ("parts", false),
    ("clipped.even", true),
    ("clipped.some", true),
    ("clipped.parts", true),
];

/// Relative to the largest value: without clipping these images are not within [-1, 1].
fn off(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    max_abs_error(found, expected) / largest
}

#[test]
fn forecast_runs_are_those_of_the_naive_program() {
    for (device, engine) in engines() {
        let model = tiny(&engine);
        for (set, clip) in SETS {
            let schedule = expected(set);
            let skipped = schedule.forecast().skipped.len() as u64;
            let whole = schedule.is_plain();
            let sampler = Sampler::new(&model, settings(clip), Some(schedule))
                .unwrap()
                .with_poisoned_cache();
            let mut run = sampler.run(request()).unwrap();
            let mut images = Vec::new();
            for event in run.by_ref() {
                if let Event::Images { x0, .. } = event.unwrap() {
                    images.extend(x0);
                }
            }
            let totals = run.totals();
            // Ten steps, of which those without the network cost nothing and keep nothing.
            if whole {
                assert_eq!(totals.macs * 10, totals.macs_full * (10 - skipped));
                assert_eq!(
                    (totals.peak_cache_bytes, totals.reused),
                    (0, skipped * 4 * 12)
                );
            } else {
                assert!(totals.macs * 10 < totals.macs_full * (10 - skipped));
                assert!(totals.peak_cache_bytes > 0);
            }
            let image = tensor(FILE, &format!("{set}.image")).1;
            within(
                format!("forecast {set}, {device}"),
                off(&images, &image),
                2e-5,
            );
        }
    }
}

#[test]
fn the_fit_finds_what_the_independent_one_finds() {
    for (device, engine) in engines() {
        let model = tiny(&engine);
        for (set, clip) in SETS {
            let null = model.null();
            let noise = tensor(FILE, "noise").1;
            let mut draws =
                Draws::given(&model, settings(clip), null.as_ref(), &conditions(), noise).unwrap();
            let (table, skipped) = table(set);
            let fit = draws.fit(&table, &skipped, None).unwrap();
            let prefix = if clip { "clipped." } else { "" };
            let uncached = tensor(FILE, &format!("{prefix}uncached")).1;
            let image = tensor(FILE, &format!("{set}.image")).1;
            let error = mse(&image, &uncached);
            within(
                format!("error of a fit, {set}, {device}"),
                (fit.error() / error - 1.0).abs(),
                5e-5,
            );
            let weights = |schedule: &Schedule| -> Vec<f32> {
                let estimates = schedule.forecast().estimates.values();
                let of = |e: &Weights| [e.predictions[0] as f32, e.state as f32];
                estimates.flat_map(of).collect()
            };
            let (found, wanted) = (weights(&fit.schedule), weights(&expected(set)));
            let largest = wanted.iter().fold(1.0f32, |most, w| most.max(w.abs()));
            within(
                format!("fitted weights, {set}, {device}"),
                max_abs_error(&found, &wanted) / largest,
                8e-5,
            );
            // What the fit walked is what the sampler draws.
            let sampler = Sampler::new(&model, settings(clip), Some(fit.schedule.clone())).unwrap();
            let found = sampler.sample(request()).unwrap();
            let judged = draws.judge(&fit.schedule).unwrap();
            let sampled = mse(&found, &uncached);
            let mean = judged.iter().sum::<f64>() / judged.len() as f64;
            within(
                format!("judged and sampled, {set}, {device}"),
                (mean / sampled - 1.0).abs(),
                1.5e-4,
            );
        }
    }
}

/// A suffix that is fitted anew from kept states is what a fit from the start finds.
#[test]
fn a_suffix_is_fitted_from_where_the_run_stood() {
    let engine = Engine::cpu();
    let model = tiny(&engine);
    let prompts = Prompts::of(&*model);
    for solver in ["ddim", "ddim:1", "ddpm", "dpm++2m"] {
        let settings = Settings {
            solver: solver.parse().unwrap(),
            ..settings(true)
        };
        let source = Source {
            model: &model,
            settings,
            prompts: &prompts,
            seed: 3,
            batch: 2,
            stop: Arc::new(|| false),
            ranks: Ranks::alone(),
        };
        let mut draws = source.draw(Purpose::Fit, 5).unwrap();
        let table =
            |skipped: &[usize]| Schedule::from_rule(10, 4, |s, _| !skipped.contains(&s)).unwrap();
        // Features of steps before it are read by those that are run again: of step 6 through what step 4 forecast.
        let parts: [(usize, &[usize]); 3] = [(4, &[2]), (6, &[0, 3]), (8, &[1, 2, 3])];
        let [first, second] = [&parts[..2], &parts].map(|parts| in_part(&[2, 7], parts));
        let before = draws.fit(&first, &[2, 7], None).unwrap();
        let whole = draws.fit(&second, &[2, 7], None).unwrap();
        let suffix = draws.fit(&second, &[2, 7], Some((&before, 8))).unwrap();
        assert_eq!(suffix.schedule, whole.schedule, "{solver}");
        assert_eq!(suffix.errors, whole.errors, "{solver}");

        let (first, second) = ([2, 4, 7], [2, 4, 8]);
        let before = draws.fit(&table(&first), &first, None).unwrap();
        let whole = draws.fit(&table(&second), &second, None).unwrap();
        let suffix = draws
            .fit(&table(&second), &second, Some((&before, 7)))
            .unwrap();
        assert_eq!(suffix.schedule, whole.schedule, "{solver}");
        assert_eq!(suffix.errors, whole.errors, "{solver}");
        // What is fitted beats plain reuse of the newest prediction, whatever the solver.
        let plain = Forecast {
            skipped: second.to_vec(),
            ..Forecast::default()
        };
        let plain = table(&second).with_forecast(plain).unwrap();
        let plain = draws.judge(&plain).unwrap().iter().sum::<f64>() / 5.0;
        println!("{solver}: {:.2e} fitted, {plain:.2e} plain", whole.error());
        assert!(
            whole.error() < 0.9 * plain,
            "{solver}: {} {plain}",
            whole.error()
        );
    }
}

/// Predictions are part of a run's state: without features to lose, a resumed run is the undisturbed one.
#[test]
fn a_forecast_run_resumes_to_the_last_bit() {
    for (device, engine) in engines() {
        let model = tiny(&engine);
        let sampler = Sampler::new(&model, settings(true), Some(expected("clipped.even")))
            .unwrap()
            .with_recovery(true);
        let whole = sampler.sample(request()).unwrap();
        for at in [3, 4] {
            let mut run = sampler.run(request()).unwrap();
            // The start, and the steps before.
            for _ in 0..1 + at {
                run.next().unwrap().unwrap();
            }
            let state = run.state().unwrap().clone();
            let mut images = Vec::new();
            for event in sampler.resume(state).unwrap() {
                if let Event::Images { x0, .. } = event.unwrap() {
                    images.extend(x0);
                }
            }
            assert_eq!(images, whole, "{device}, step {at}");
        }
    }
}

fn train(out: &Path, flags: &[&str]) -> Vec<String> {
    let tiny = golden("tiny-a.pt");
    let (tiny, out) = (tiny.to_str().unwrap(), out.to_str().unwrap());
    let fixed = [
        "train", "router", "--device", "cpu", "--model", tiny, "--heads", "4", "--out", out,
    ];
    fixed.iter().chain(flags).map(|s| s.to_string()).collect()
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn schedules_beside_a_model_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let tiny = golden("tiny-a.pt");
    let from = ["--model", tiny.to_str().unwrap(), "--heads", "4", "--out"];
    let made = harmonica(&[&["convert"], &from[..], &[&at("model.safetensors")]].concat());
    assert!(made.status.success());
    let sample = |more: &[&str]| {
        let (model, picture) = (at(""), at("x.png"));
        let run = [
            "sample", "--model", &model, "--device", "cpu", "-n", "1", "--out", &picture,
        ];
        let done = harmonica(&[&run, more].concat());
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), said)
    };
    let (code, said) = sample(&["--steps", "6", "--speed", "2"]);
    assert!(
        code == Some(2) && said.contains("the library has none"),
        "{said}"
    );
    let (model, out) = (at(""), at("schedules"));
    harmonica_json(&[
        "train",
        "router",
        "--model",
        &model,
        "--device",
        "cpu",
        "--steps",
        "6",
        "--draws",
        "3",
        "--sweeps",
        "0",
        "--target-speedup",
        "2",
        "--out",
        &out,
        "--json",
    ]);
    let (code, said) = sample(&["--steps", "6", "--speed", "2"]);
    assert!(
        code == Some(0) && said.contains("schedule learned:2.00"),
        "{said}"
    );
    let (code, said) = sample(&["--steps", "7", "--speed", "2"]);
    let others = "for this model there are some for --steps 6 --solver ddim";
    assert!(code == Some(2) && said.contains(others), "{said}");
}

#[test]
fn drawing_is_told_of_and_can_be_broken_off() {
    let (engine, folder) = (Engine::cpu(), tempfile::tempdir().unwrap());
    let options = LoadOptions {
        heads: Some(4),
        input_size: None,
    };
    let spec = ModelSpec::Path(golden("tiny-a.pt"));
    let pipeline = Pipeline::open(&engine, &spec, options).unwrap();
    let run = Settings {
        steps: 4,
        ..pipeline.usual_settings()
    };
    let (draws, validation) = (3, 2);
    let work = |resume, most: usize| -> (bool, Vec<usize>) {
        let options = LadderOptions {
            folder: RunFolder::new(folder.path().join("ladder")),
            settings: LadderSettings {
                draws,
                glance: 2,
                validation,
                sweeps: 0,
                ..LadderSettings::default()
            },
            targets: vec![Budget::TargetSpeedup(2.0)],
            prompts: pipeline.prompts.clone(),
            batch: 2,
            resume,
            stop: Arc::new(|| false),
            ranks: Ranks::alone(),
        };
        let mut ladder = LadderRun::open(&pipeline.model, &pipeline.info, run, options).unwrap();
        let mut told = Vec::new();
        let done = ladder.work(&mut |progress| {
            if let Progress::Reference { drawn, images } = progress {
                assert_eq!(images, draws + validation);
                told.push(drawn);
                if drawn > most {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        (done.unwrap(), told)
    };
    let (done, told) = work(false, 1);
    assert!(!done && *told.last().unwrap() < draws, "{told:?}");
    let (done, told) = work(true, 100);
    assert!(done && told.is_sorted(), "{told:?}");
    assert_eq!((told[0], told[told.len() - 1]), (0, draws + validation));
}

/// The command with nothing but a place: a schedule for every speed, and `sample` takes one of them.
#[test]
fn a_ladder_is_trained_and_taken() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("ladder");
    let flags = [
        "--steps",
        "10",
        "--draws",
        "10",
        "--sweeps",
        "1",
        "--max-cache",
        "0",
        "--json",
        "-q",
    ];
    let report = harmonica_json(&borrowed(&train(&out, &flags)));
    let rungs = report["schedules"].as_array().unwrap();
    let ratio = |rung: &serde_json::Value| rung["macs_ratio"].as_f64().unwrap();
    // 8, 7, 6, 5, 4, 3 and 2 of 10 steps.
    let found: Vec<f64> = rungs.iter().map(ratio).collect();
    assert_eq!(
        found,
        [8, 7, 6, 5, 4, 3, 2].map(|computed| 10.0 / f64::from(computed))
    );
    for pair in rungs.windows(2) {
        let mse = |rung: &serde_json::Value| rung["mse"].as_f64().unwrap();
        assert!(mse(&pair[0]) < mse(&pair[1]), "{pair:?}");
        assert!(mse(&pair[0]) <= pair[0]["mse_even"].as_f64().unwrap());
    }
    assert!(image::open(out.join("router.png")).unwrap().width() > 500);

    let tiny = golden("tiny-a.pt");
    let picture = folder.path().join("x.png");
    let sample = |flags: &[&str]| {
        let fixed = [
            "sample",
            "--device",
            "cpu",
            "--model",
            tiny.to_str().unwrap(),
            "--heads",
            "4",
            "--steps",
            "10",
            "--count",
            "2",
            "--schedule",
            out.to_str().unwrap(),
            "--out",
            picture.to_str().unwrap(),
            "--json",
        ];
        harmonica(&[&fixed[..], flags].concat())
    };
    let taken = |flags: &[&str]| -> f64 {
        let done = sample(flags);
        let said: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        said["macs_full"].as_f64().unwrap() / said["macs"].as_f64().unwrap()
    };
    assert_eq!(taken(&[]), 2.0);
    assert_eq!(taken(&["--speed", "2.5"]), 2.5);
    let refused = sample(&["--speed", "9"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(2) && said.contains("1.25×, 1.43×"),
        "{said}"
    );
    // A comparison takes speeds of a folder, other solvers and the true solution, and draws them.
    let plot = folder.path().join("front.png");
    let flags = [
        "compare",
        "--device",
        "cpu",
        "--model",
        tiny.to_str().unwrap(),
        "--heads",
        "4",
        "--steps",
        "10",
        "--count",
        "3",
        "--schedules",
        &format!("{},steps:5:dpm++2m,fb:0.5,taylor:2:1", out.display()),
        "--no-fewer-steps",
        "--truth",
        "40",
        "--plot",
        plot.to_str().unwrap(),
        "--json",
    ];
    let report = harmonica_json(&flags);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    let keys = [
        "mse",
        "mse_standard_error",
        "mse_median",
        "mse_max",
        "psnr",
        "ssim",
        "speedup",
        "mse_true",
    ];
    for row in &rows[1..] {
        assert!(
            keys.iter().all(|key| row[*key].as_f64().unwrap() > 0.0),
            "{row}"
        );
    }
    assert_eq!(
        (&rows[0]["mse"], &rows[0]["ssim"]),
        (&0.0.into(), &1.0.into())
    );
    assert_eq!(
        (&rows[1]["peak_cache_bytes"], &rows[2]["steps"]),
        (&0.into(), &5.into())
    );
    assert!(image::open(&plot).unwrap().width() > 500);
    // Another strength of guidance works, and is told.
    let other = sample(&["--guidance", "2"]);
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(
        other.status.success() && said.contains("made for guidance 1.5"),
        "{said}"
    );

    let refused = |flags: &[&str], text: &str| {
        let done = harmonica(&borrowed(&train(&out, flags)));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.code() == Some(2) && said.contains(text),
            "{flags:?}: {said}"
        );
    };
    refused(&["--steps", "10"], "holds a run already");
    refused(
        &["--steps", "10", "--resume", "--draws", "12"],
        "was trained with --draws 10, this command says 12",
    );
    refused(
        &["--steps", "8", "--resume", "--draws", "10", "--sweeps", "1"],
        "--steps 10",
    );
    refused(
        &["--steps", "10", "--resume", "--max-cache", "1"],
        "was trained with --max-cache 0.0, this command says 1.0",
    );
    refused(&["--steps", "10", "--max-cache", "3"], "--max-cache is 3");
    refused(
        &["--steps", "10", "--table", "fora:2", "--resume"],
        "cannot be used with",
    );
    refused(&["--steps", "10", "--draws", "0"], "--draws is 0");
    refused(
        &["--draws", "4", "--passes", "3"],
        "--passes does not belong to the recipe forecast",
    );
    refused(
        &["--recipe", "forecast", "--lr", "1"],
        "--lr does not belong",
    );
    refused(
        &["--steps", "10", "--passes", "1"],
        "holds another training (ladder.json)",
    );
    // What was finished takes another speed.
    let flags = [
        "--steps",
        "10",
        "--draws",
        "10",
        "--sweeps",
        "1",
        "--json",
        "--resume",
        "--target-cur",
        "0.9",
    ];
    let report = harmonica_json(&borrowed(&train(&out, &flags)));
    assert_eq!(ratio(&report["schedules"][0]), 10.0);
    assert!(out.join("router-cur0.9.schedule.json").exists());
}

/// Steps in part stay within what they may cost, and are taken where they are worth it.
#[test]
fn a_search_finds_steps_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let search = |name: &str, share: &str| -> (serde_json::Value, ScheduleFile) {
        let out = folder.path().join(name);
        let flags = [
            "--steps",
            "10",
            "--draws",
            "24",
            "--sweeps",
            "1",
            "--target-speedup",
            "1.8",
            "--max-cache",
            share,
            "--json",
            "-q",
        ];
        let report = harmonica_json(&borrowed(&train(&out, &flags)));
        let file = out.join("router-speedup1.8.schedule.json");
        (
            report["schedules"][0].clone(),
            ScheduleFile::read(&file).unwrap(),
        )
    };
    let (whole, _) = search("whole", "0");
    let (parts, file) = search("parts", "2");
    let (_, bounded) = search("bounded", "0.5");
    println!(
        "{whole}\n{parts}\n{:?}\n{:?}",
        file.compute, bounded.compute
    );
    assert!(parts["steps_in_part"].as_u64().unwrap() > 0);
    assert!(parts["mse"].as_f64().unwrap() < whole["mse"].as_f64().unwrap());
    let graph = &file.model.graph;
    for (file, most) in [(&file, 8), (&bounded, 2)] {
        let schedule = file.schedule().unwrap();
        assert!(schedule.macs_ratio(graph) >= 0.97 * 1.8);
        assert!(compile(&schedule, graph).slots() <= most);
    }
    assert!(compile(&file.schedule().unwrap(), graph).slots() > 2);
}

/// Tables of other policies get forecasts of their own, where those hold.
#[test]
fn a_table_that_others_made_is_corrected() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tables");
    let made = folder.path().join("random.schedule.json");
    let tiny = golden("tiny-a.pt");
    let make = harmonica(&[
        "schedule",
        "make",
        "random:0.4:1",
        "--model",
        tiny.to_str().unwrap(),
        "--heads",
        "4",
        "--steps",
        "10",
        "--out",
        made.to_str().unwrap(),
    ]);
    let said = String::from_utf8_lossy(&make.stderr);
    assert!(make.status.success(), "{said}");
    let tables = format!("fora:2,taylor:2:1,{}", made.display());
    let flags = [
        "--steps", "10", "--draws", "10", "--table", &tables, "--json", "-q",
    ];
    let report = harmonica_json(&borrowed(&train(&out, &flags)));
    let rows = report["schedules"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    for (row, name) in rows.iter().zip(["fora-2", "taylor-2-1", "random"]) {
        let mse = |key: &str| row[key].as_f64().unwrap();
        assert!(mse("mse") < 0.5 * mse("mse_as_it_was"), "{row}");
        let file = out.join(format!("corrected-{name}.schedule.json"));
        let file = ScheduleFile::read(&file).unwrap();
        let schedule = file.schedule().unwrap();
        assert_eq!(schedule.macs_ratio(&file.model.graph), mse("macs_ratio"));
        assert_eq!(schedule.forecast().estimates.len(), 9);
        assert!(schedule.forecast().skipped.is_empty() && file.is_learned());
    }
    for (table, text) in [
        ("fb:0.1", "decides while a run goes on"),
        ("steps:5", "is another run"),
        ("fora:x", "fora"),
    ] {
        let flags = ["--steps", "10", "--table", table];
        let done = harmonica(&borrowed(&train(&out, &flags)));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.code() == Some(2) && said.contains(text),
            "{table}: {said}"
        );
    }
}

#[test]
fn a_killed_search_ends_where_an_undisturbed_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let flags = ["--steps", "16", "--draws", "6", "--sweeps", "3"];
    let done = harmonica(&borrowed(&train(&whole, &flags)));
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let log = killed.join("train.jsonl");
    kill_ten_times(&log, &killed.join("ladder.json"), 8, |resume| {
        let mut arguments = train(&killed, &flags);
        arguments.extend(resume.then(|| "--resume".to_owned()));
        arguments
    });
    let of = |folder: &Path, file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    for file in [
        "train.jsonl",
        "ladder.json",
        "router-speedup2.schedule.json",
    ] {
        assert!(
            of(&whole, file) == of(&killed, file),
            "{file} differs after ten kills"
        );
    }
}

/// `--learn` fits what is missing once, and finds it again.
#[test]
fn a_missing_speed_is_learned_on_the_spot() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = golden("tiny-a.pt");
    let sample_at = |steps: &str, flags: &[&str]| {
        let fixed = [
            "sample",
            "--device",
            "cpu",
            "--model",
            tiny.to_str().unwrap(),
            "--heads",
            "4",
            "--steps",
            steps,
            "--count",
            "2",
            "--out",
            "x.png",
        ];
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_harmonica"))
            .current_dir(folder.path())
            .args(fixed.iter().chain(flags))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), said)
    };
    let sample = |flags: &[&str]| sample_at("6", flags);
    let (code, said) = sample(&["--speed", "2"]);
    assert!(
        code == Some(2) && said.contains("has none that was made for it"),
        "{said}"
    );
    let (code, said) = sample(&["--speed", "2", "--learn"]);
    assert!(
        code == Some(0) && said.contains("fitting a schedule of 2×"),
        "{said}"
    );
    assert!(said.contains("2.00 times fewer multiplications"), "{said}");
    let (code, said) = sample(&["--speed", "2", "--learn"]);
    assert!(code == Some(0) && !said.contains("fitting"), "{said}");
    // Another speed joins it; another number of steps has a place of its own.
    let (code, said) = sample(&["--speed", "3", "--learn"]);
    assert!(
        code == Some(0) && said.contains("fitting a schedule of 3×"),
        "{said}"
    );
    let (code, _) = sample_at("8", &["--speed", "2", "--learn"]);
    assert_eq!(code, Some(0));
    let ladders = std::fs::read_dir(folder.path().join("harmonica-ladders")).unwrap();
    assert_eq!(ladders.count(), 2);
    let (code, said) = sample(&["--learn"]);
    assert!(code == Some(2) && said.contains("--speed"), "{said}");
}
