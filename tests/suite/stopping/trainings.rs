//! Trainings that are ended in the middle of a step, and go on.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use harmonica::{
    checkpoint::{self, LoadOptions, ModelSpec},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    pipeline::Pipeline,
    ranks::Ranks,
    sampler::{Settings, Stop},
    schedule::Schedule,
    training::{
        Budget, Proxy, RouterRun, RouterRunOptions, RunFolder, SdtSettings, TrainingError,
        TrainingSummary,
        calibration::{CalibrationSettings, calibrate},
        forecast::{Corrector, LadderOptions, LadderRun, LadderSettings},
        network::{PretrainEvent, PretrainRun},
    },
};

use super::Counting;
use crate::{pretrain, pretrain_data};

const STEPS: usize = 4;

fn settings() -> Settings {
    Settings {
        steps: STEPS,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(3.0, GuidedChannels::Three).unwrap(),
        clip_x0: true,
    }
}

/// Somebody who is asked before each branch, and wants to stop when asked once more than `most` times.
#[derive(Default)]
struct Asked {
    times: Arc<AtomicUsize>,
    /// Branches that were computed from one time to the next, at most.
    between: Arc<AtomicUsize>,
}

impl Asked {
    fn stop(&self, most: usize, computed: &Arc<AtomicUsize>) -> Stop {
        let (times, between, computed) =
            (self.times.clone(), self.between.clone(), computed.clone());
        let before = AtomicUsize::new(computed.load(Ordering::Relaxed));
        Arc::new(move || {
            let now = computed.load(Ordering::Relaxed);
            between.fetch_max(now - before.swap(now, Ordering::Relaxed), Ordering::Relaxed);
            times.fetch_add(1, Ordering::Relaxed) >= most
        })
    }

    fn times(&self) -> usize {
        self.times.load(Ordering::Relaxed)
    }
}

/// The bundled model, and how many of its branches were computed.
fn counting() -> (Pipeline, Arc<AtomicUsize>) {
    let mut pipeline =
        Pipeline::open(&Engine::cpu(), &ModelSpec::Bundled, LoadOptions::default()).unwrap();
    let computed = Arc::new(AtomicUsize::new(0));
    pipeline.model = Arc::new(Counting {
        model: pipeline.model,
        computed: computed.clone(),
    });
    (pipeline, computed)
}

/// Places to stop at, of so many times that somebody is asked: the first, the last, and two between.
fn places(times: usize) -> [usize; 4] {
    [0, times / 3, times * 9 / 10, times - 1]
}

fn same_files(whole: &Path, parts: &Path, files: &[&str], how: &str) {
    for file in files {
        let [whole, parts] = [whole, parts].map(|folder| std::fs::read(folder.join(file)).unwrap());
        assert!(whole == parts, "{file} differs, {how}");
    }
}

/// By both recipes, with their graphs kept or run again on the way back, wherever they are stopped.
#[test]
fn the_training_of_a_router_stops_before_any_branch_on_both_ways_and_goes_on_byte_for_byte() {
    let (pipeline, computed) = counting();
    let branches = pipeline.info.outline.graph.branches();
    let usual = |budget| SdtSettings {
        passes: 2,
        batch: 2,
        micro_batch: 1,
        ..SdtSettings::usual(budget)
    };
    let plain = SdtSettings {
        proxy: Proxy::None,
        ..usual(Budget::Beta(1e-4))
    };
    // Of a micro-batch and pass: the first step, and of each other the full model, the student and its way back, whose first
    // branch no score is before.
    let there_and_back = |back: usize| branches + (STEPS - 1) * (2 * branches + back);
    let recipes = [
        (
            "by SDT",
            plain.clone(),
            Some(4 * there_and_back(branches - 1)),
        ),
        (
            "by SDT, blocks run again",
            SdtSettings {
                gradient_checkpointing: true,
                ..plain
            },
            Some(4 * there_and_back(2 * branches)),
        ),
        ("with IEPO", usual(Budget::TargetCur(0.4)), None),
        (
            "by pairs",
            SdtSettings {
                proxy: Proxy::None,
                pairs: true,
                ..usual(Budget::TargetCur(0.25))
            },
            None,
        ),
    ];
    for (how, recipe, expected) in recipes {
        let at = tempfile::tempdir().unwrap();
        let train = |folder: &Path, stop: Option<Stop>, resume| {
            let options = RouterRunOptions {
                folder: RunFolder::new(folder),
                settings: recipe.clone(),
                more_targets: Vec::new(),
                max_cache: None,
                prompts: pipeline.prompts.clone(),
                replay: None,
                save_every: 5,
                resume,
                log: None,
                ranks: Ranks::alone(),
            };
            let run = RouterRun::open(&pipeline.model, &pipeline.info, settings(), options);
            let mut run = match stop {
                Some(stop) => run.unwrap().with_stop(stop),
                None => run.unwrap(),
            };
            while !run.sdt().is_done() {
                let mut each = |_| ControlFlow::Continue(());
                if run.pass(&mut each).unwrap().is_none() {
                    return false;
                }
            }
            true
        };
        let whole = at.path().join("whole");
        assert!(train(&whole, None, false));
        let files = ["router.safetensors", "router.schedule.json", "train.jsonl"];

        // Who never wants to stop changes nothing.
        let (asked, undisturbed) = (Asked::default(), at.path().join("undisturbed"));
        assert!(train(
            &undisturbed,
            Some(asked.stop(usize::MAX, &computed)),
            false
        ));
        same_files(&whole, &undisturbed, &files, how);
        assert_eq!(asked.between.load(Ordering::Relaxed), 1, "{how}");
        let times = asked.times();
        println!("measured: a training of a router {how}: asked {times} times");
        expected.inspect(|expected| assert_eq!(times, *expected, "{how}"));

        for most in places(times) {
            let (asked, parts) = (Asked::default(), at.path().join(most.to_string()));
            assert!(!train(&parts, Some(asked.stop(most, &computed)), false));
            // Nothing was begun after that.
            assert_eq!(asked.times(), most + 1, "{how}");
            let saved = TrainingSummary::read(&parts.join("router.safetensors")).unwrap();
            let passes = usize::from(most >= times / 2 + times % 2);
            assert!(
                expected.is_none() || saved.unwrap().pass == passes,
                "{how}, {most}"
            );
            assert!(train(&parts, None, true));
            same_files(&whole, &parts, &files, &format!("{how}, {most}"));
        }
    }
}

#[test]
fn a_search_stops_before_any_branch_and_goes_on_byte_for_byte() {
    let (pipeline, computed) = counting();
    let at = tempfile::tempdir().unwrap();
    let train = |folder: &Path, stop: Stop, resume| {
        let options = LadderOptions {
            folder: RunFolder::new(folder),
            settings: LadderSettings {
                draws: 2,
                glance: 1,
                validation: 2,
                sweeps: 1,
                max_cache: Some(0.0),
                seed: 0,
            },
            targets: vec![Budget::TargetSpeedup(2.0)],
            prompts: pipeline.prompts.clone(),
            batch: 2,
            resume,
            stop,
            ranks: Ranks::alone(),
        };
        let run = LadderRun::open(&pipeline.model, &pipeline.info, settings(), options);
        run.unwrap()
            .work(&mut |_| ControlFlow::Continue(()))
            .unwrap()
    };
    let (asked, whole) = (Asked::default(), at.path().join("whole"));
    assert!(train(&whole, asked.stop(usize::MAX, &computed), false));
    assert_eq!(asked.between.load(Ordering::Relaxed), 1);
    let times = asked.times();
    println!("measured: a search: asked {times} times");
    for most in places(times) {
        let (asked, parts) = (Asked::default(), at.path().join(most.to_string()));
        assert!(!train(&parts, asked.stop(most, &computed), false));
        assert_eq!(asked.times(), most + 1);
        assert!(train(&parts, Arc::new(|| false), true));
        let schedule = RunFolder::new("").schedule(Budget::TargetSpeedup(2.0), None, true);
        let files = ["ladder.json", "train.jsonl", schedule.to_str().unwrap()];
        same_files(&whole, &parts, &files, &format!("stopped at {most}"));
    }
}

#[test]
fn corrections_of_tables_and_calibrations_stop_before_any_branch() {
    type Work<'a> = &'a dyn Fn(Stop) -> Result<(), TrainingError>;
    let (pipeline, computed) = counting();
    let branches = pipeline.info.outline.graph.branches();
    let few = LadderSettings {
        draws: 2,
        validation: 2,
        ..LadderSettings::default()
    };
    let every_other = Schedule::from_rule(STEPS, branches, |s, _| s % 2 == 0).unwrap();
    let correct = |stop: Stop| -> Result<(), TrainingError> {
        Corrector::new(&pipeline, settings(), &few, stop, Ranks::alone())?.correct(&every_other)?;
        Ok(())
    };
    let measure = |stop: Stop| -> Result<(), TrainingError> {
        let asked = CalibrationSettings {
            draws: 3,
            batch: 2,
            seed: 0,
        };
        let mut each = |_| ControlFlow::Continue(());
        calibrate(&pipeline, settings(), asked, stop, &mut each).map(drop)
    };
    let works: [(&str, Work<'_>); 2] = [("a correction", &correct), ("a calibration", &measure)];
    for (name, work) in works {
        let asked = Asked::default();
        work(asked.stop(usize::MAX, &computed)).unwrap();
        assert_eq!(asked.between.load(Ordering::Relaxed), 1, "{name}");
        let times = asked.times();
        println!("measured: {name}: asked {times} times");
        for most in places(times) {
            let asked = Asked::default();
            let ended = work(asked.stop(most, &computed));
            assert!(matches!(ended, Err(TrainingError::Stopped)), "{ended:?}");
            assert_eq!(asked.times(), most + 1, "{name}");
        }
    }
}

/// In each step of the training, and in the grid of samples at its end.
#[test]
fn the_training_of_a_network_stops_before_any_branch_on_both_ways_and_goes_on_bit_for_bit() {
    const LEARNED: u64 = 3;
    let at = tempfile::tempdir().unwrap();
    let data = pretrain_data::open(&pretrain_data::folder(at.path()), Some(8)).unwrap();
    let engine = Engine::cpu();
    // Two blocks of two branches, in two micro-batches.
    for (checkpointing, each_step) in [(false, 2 * 2 * 4), (true, 2 * 3 * 4)] {
        let begin = |folder: &Path, resume| {
            let mut options = pretrain::options(folder, LEARNED, resume);
            options.settings.gradient_checkpointing = checkpointing;
            PretrainRun::open(&data, pretrain::small(), options, engine.device()).unwrap()
        };
        let nothing = Arc::default();
        let whole = at.path().join(format!("whole-{checkpointing}"));
        let asked = Asked::default();
        let run = begin(&whole, false).with_stop(asked.stop(usize::MAX, &nothing));
        assert_eq!(run.map(Result::unwrap).count() as u64, LEARNED + 2);
        let (steps, times) = (LEARNED as usize * each_step, asked.times());
        println!("measured: a training of a network: asked {times} times");
        assert!(times > steps);

        let most = [
            0,
            1,
            each_step - 1,
            each_step + 5,
            steps - 1,
            steps,
            times - 1,
        ];
        for most in most {
            let asked = Asked::default();
            let parts = at.path().join(format!("{most}-{checkpointing}"));
            let mut run = begin(&parts, false).with_stop(asked.stop(most, &nothing));
            let told: Vec<_> = run.by_ref().collect();
            assert!(matches!(told.last(), Some(Err(TrainingError::Stopped))));
            assert_eq!(asked.times(), most + 1);
            let learned = LEARNED.min((most / each_step) as u64);
            assert_eq!(run.learner().steps(), learned);
            run.save().unwrap();
            drop(run);

            let rest: Vec<_> = begin(&parts, true).map(Result::unwrap).collect();
            let steps = rest
                .iter()
                .filter(|event| matches!(event, PretrainEvent::Step(_)));
            assert_eq!(steps.count() as u64, LEARNED - learned);
            let files = ["model.safetensors", "samples.png"];
            same_files(&whole, &parts, &files, &format!("stopped at {most}"));
            let state = |folder: &Path| {
                let mut source = checkpoint::open(&folder.join("checkpoint.safetensors")).unwrap();
                let names: Vec<_> = source.entries().map(|e| e.name.clone()).collect();
                let values = names.iter().flat_map(|name| source.read_f32(name).unwrap());
                values.map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(state(&whole) == state(&parts), "stopped at {most}");
        }
    }
}
