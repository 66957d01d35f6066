//! Published policies against a sampler that keeps what it needs in variables and is not clever.

use std::{convert::Infallible, sync::Arc};

use burn::tensor::{Tensor, TensorData};
use harmonica::{
    checkpoint::{LoadOptions, ModelSpec},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, ImageNoise, Solver, Spacing},
    kernels::{Before, OutputLayout, images_of, output_patches_of, solver_step},
    metrics::max_abs_error,
    models::{At, Condition, Model, Partial, Times, walk},
    pipeline::Pipeline,
    policy::{Calibration, Policy},
    sampler::{Event, Request, Run, Sampler, Settings, Totals, batch_for},
    schedule::Reuse,
    training::calibration::{CalibrationSettings, calibrate},
};

use crate::common::{engines, golden, within};

const STEPS: usize = 14;
const LABELS: [usize; 2] = [1, 3];

fn loaded(engine: &Engine) -> Pipeline {
    let spec = ModelSpec::Path(golden("hooks"));
    Pipeline::open(engine, &spec, LoadOptions::default()).unwrap()
}

fn settings() -> Settings {
    Settings {
        steps: STEPS,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(2.0, GuidedChannels::Three).unwrap(),
        clip_x0: false,
    }
}

fn noise(model: &Model) -> Vec<f32> {
    let mut values = Vec::new();
    for image in 0..LABELS.len() as u64 {
        ImageNoise::new(7, image).fill(model.outline().latents.numbers(), &mut values);
    }
    values
}

fn request(model: &Model) -> Request {
    Request {
        conditions: Condition::classes(&LABELS),
        first: 0,
        seed: 0,
        noise: Some(noise(model)),
        batch: 2,
    }
}

/// A calibration whose inputs and outputs change by a polynomial that is known: of these the network's own are too few.
fn measured(pipeline: &Pipeline) -> Calibration {
    let input_changes: Vec<f64> = (1..=3 * (STEPS - 1)).map(|i| 0.02 * i as f64).collect();
    Calibration {
        output_changes: input_changes.iter().map(|x| 3.0 * x * x + x).collect(),
        input_changes,
        ..calibration(pipeline, 2, 0)
    }
}

fn calibration(pipeline: &Pipeline, batch: usize, seed: u64) -> Calibration {
    let asked = CalibrationSettings {
        draws: 3,
        batch,
        seed,
    };
    let mut each = |_: usize| std::ops::ControlFlow::Continue(());
    calibrate(pipeline, settings(), asked, Arc::new(|| false), &mut each).unwrap()
}

fn reuse(spec: &str, model: &Model, calibration: Option<&Calibration>) -> Reuse {
    let policy: Policy = spec.parse().unwrap();
    let graph = &model.outline().graph;
    policy
        .reuse_calibrated(STEPS, graph, calibration)
        .unwrap_or_else(|e| panic!("{spec}: {e}"))
}

fn sampler(spec: &str, model: &Model, calibration: Option<&Calibration>) -> Sampler {
    Sampler::reusing(model, settings(), reuse(spec, model, calibration))
        .unwrap()
        .with_poisoned_cache()
}

/// Images, which steps were computed, and what was done.
fn drawn(run: Run) -> (Vec<f32>, Vec<bool>, Totals) {
    let (mut images, mut computed, mut totals) = (Vec::new(), Vec::new(), Totals::default());
    for event in run {
        match event.unwrap() {
            Event::Step { reused, .. } => computed.push(!reused),
            Event::Images { x0, .. } => images.extend(x0),
            Event::Done(done) => totals = done,
            _ => {}
        }
    }
    (images, computed, totals)
}

/// The images of a run whose network is what `network` says of step, state and adaLN vectors: the last layer's whole output.
fn naive(model: &Model, mut network: impl FnMut(usize, Tensor<4>, &At) -> Tensor<3>) -> Vec<f32> {
    let latents = model.outline().latents;
    let mut conditions = Condition::classes(&LABELS);
    conditions.extend(model.null());
    let context = model.context(&conditions, 2 * LABELS.len());
    let [c, h, w] = latents.shape();
    let data = TensorData::new(noise(model), [LABELS.len(), c, h, w]);
    let mut x = Tensor::<4>::from_data(data, &model.device());
    let layout = OutputLayout {
        patch: latents.patch,
        out_channels: latents.out_channels,
        guidance: settings().guidance,
    };
    for (s, step) in settings().numbers(&latents).unwrap().iter().enumerate() {
        let at = model.prepare(Times::Steps(&[step.timestep as f32]), &context);
        let output = Partial::from(network(s, x.clone(), &at.step(0))).apart();
        let before = Before {
            x,
            output: Some(output),
            history: None,
            noise: None,
        };
        x = solver_step(before, layout, step).x;
    }
    values(x)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_data().unwrap().try_into_vec().unwrap()
}

fn mean_abs<const D: usize>(x: Tensor<D>) -> f64 {
    let values = values(x);
    let sum: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
    sum / values.len() as f64
}

fn change<const D: usize>(now: &Tensor<D>, before: &Tensor<D>) -> f64 {
    mean_abs(now.clone() - before.clone()) / mean_abs(before.clone())
}

fn begun(model: &Model, x: Tensor<4>) -> Tensor<3> {
    model.begin(x, 2)
}

/// The stream after these branches.
fn through(model: &Model, sites: std::ops::Range<usize>, x: Tensor<3>, at: &At) -> Tensor<3> {
    let Ok(x) = walk(&**model, sites, x, at, |site, x| {
        Ok::<_, Infallible>(model.compute(site, x.clone(), at))
    });
    x
}

fn ended(model: &Model, x: Tensor<3>, at: &At) -> Tensor<3> {
    model.end(x, at).whole()
}

fn off(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    max_abs_error(found, expected) / largest
}

#[test]
fn what_blocks_added_together_is_added_again() {
    for (device, engine) in engines() {
        let pipeline = loaded(&engine);
        let (model, calibration) = (pipeline.model.clone(), measured(&pipeline));
        let branches = model.outline().graph.branches();
        for spec in ["delta:2", "delta:3:5:1", "delta:2:14:4", "mag:1", "mag:3"] {
            let sampler = sampler(spec, &model, Some(&calibration));
            let table = sampler.reuse().table().unwrap().clone();
            let mut added: Vec<Option<Tensor<3>>> = vec![None; branches + 1];
            let expected = naive(&model, |s, x, at| {
                let mut x = begun(&model, x);
                let reused = table.reused_together(s);
                let Some(range) = reused.first() else {
                    // What any later step could want: from the middle on, up to it, and all.
                    let start = x.clone();
                    let mut streams = vec![x.clone()];
                    for site in 0..branches {
                        x = through(&model, site..site + 1, x, at);
                        streams.push(x.clone());
                    }
                    for (site, stream) in streams.iter().enumerate() {
                        added[site] = Some(x.clone() - stream.clone());
                        if later_front(&table, s) == Some(site) {
                            added[0] = Some(stream.clone() - start.clone());
                        }
                    }
                    return ended(&model, x, at);
                };
                x = through(&model, 0..range.start, x, at);
                x = x + added[range.start].clone().unwrap();
                x = through(&model, range.end..branches, x, at);
                ended(&model, x, at)
            });
            assert!(table.cur() > 0.0, "{spec} reuses nothing");
            let (images, _, totals) = drawn(sampler.run(request(&model)).unwrap());
            within(format!("{spec}, {device}"), off(&images, &expected), 1e-5);
            assert_eq!(totals.peak_cache_bytes, sampler.cache_bytes(2));
            assert!((totals.cur() - table.cur()).abs() < 1e-12);
        }
    }
}

/// The end of the front range that the next reusing step reads, where it reads one that is not the whole network.
fn later_front(table: &harmonica::schedule::Schedule, s: usize) -> Option<usize> {
    let mut later = (s + 1..table.steps()).map(|later| table.reused_together(later));
    let range = later.find_map(|reused| reused.first().cloned())?;
    (range.start == 0).then_some(range.end)
}

#[test]
fn a_forecast_stream_is_that_of_the_weights() {
    for (device, engine) in engines() {
        let model = loaded(&engine).model;
        let branches = model.outline().graph.branches();
        for spec in ["spectrum:2", "spectrum:3:0.5:1"] {
            let sampler = sampler(spec, &model, None);
            let table = sampler.reuse().table().unwrap().clone();
            let mut left: Vec<Tensor<3>> = Vec::new();
            let expected = naive(&model, |s, x, at| {
                let stream = match table.computes(s, 0) {
                    true => {
                        let x = begun(&model, x);
                        left.push(through(&model, 0..branches, x, at));
                        left[left.len() - 1].clone()
                    }
                    false => {
                        let weighed = table.weights(s, 0).iter().zip(left.iter().rev());
                        weighed
                            .map(|(w, stream)| stream.clone() * *w)
                            .reduce(|a, b| a + b)
                            .unwrap()
                    }
                };
                ended(&model, stream, at)
            });
            let (images, _, totals) = drawn(sampler.run(request(&model)).unwrap());
            within(format!("{spec}, {device}"), off(&images, &expected), 1e-5);
            assert!(totals.cur() > 0.2, "{}", totals.cur());
        }
    }
}

/// A naive run under a rule: its images, the steps that it computed, and the change at the first step that it could decide.
struct Ruled {
    images: Vec<f32>,
    computed: Vec<bool>,
    first: f64,
}

/// Changes that add up to a threshold, and what came of it.
struct Adder {
    threshold: f64,
    sum: f64,
    first: Option<f64>,
    computed: Vec<bool>,
}

impl Adder {
    fn new(threshold: f64) -> Self {
        Self {
            threshold,
            sum: 0.0,
            first: None,
            computed: Vec::new(),
        }
    }

    fn computes(&mut self, change: Option<f64>) -> bool {
        let reuses = change.is_some_and(|change| {
            self.first.get_or_insert(change);
            self.sum += change;
            self.sum < self.threshold
        });
        if !reuses {
            self.sum = 0.0;
        }
        self.computed.push(!reuses);
        !reuses
    }

    fn ruled(self, images: Vec<f32>) -> Ruled {
        Ruled {
            images,
            computed: self.computed,
            first: self.first.unwrap_or_default(),
        }
    }
}

/// TeaCache.
fn naive_tea(model: &Model, threshold: f64, polynomial: &dyn Fn(f64) -> f64) -> Ruled {
    let branches = model.outline().graph.branches();
    let mut adder = Adder::new(threshold);
    let (mut before, mut residual): (Option<Tensor<3>>, Option<Tensor<3>>) = (None, None);
    let images = naive(model, |s, x, at| {
        let start = begun(model, x);
        let modulated = at.modulated(start.clone(), 0, 0, 1e-6);
        let last = before.replace(modulated.clone());
        let decided = last.filter(|_| s > 0 && s < STEPS - 1);
        let change = decided.map(|last| polynomial(change(&modulated, &last)));
        let stream = match adder.computes(change) {
            false => start + residual.clone().unwrap(),
            true => {
                let stream = through(model, 0..branches, start.clone(), at);
                residual = Some(stream.clone() - start);
                stream
            }
        };
        ended(model, stream, at)
    });
    adder.ruled(images)
}

/// DiCache.
fn naive_dicache(model: &Model, threshold: f64) -> Ruled {
    let graph = &model.outline().graph;
    let (front, branches) = (graph.branches() / graph.blocks(), graph.branches());
    let mut adder = Adder::new(threshold);
    let mut before: Option<Tensor<3>> = None;
    let mut window: Vec<[Tensor<3>; 2]> = Vec::new();
    let images = naive(model, |s, x, at| {
        let start = begun(model, x);
        let probe = through(model, 0..front, start.clone(), at);
        let last = before.replace(probe.clone());
        let decided = last.filter(|_| s > STEPS / 5 && s < STEPS - 1);
        let change = decided.map(|last| change(&probe, &last));
        let stream = match adder.computes(change) {
            true => {
                let stream = through(model, front..branches, probe.clone(), at);
                window.push([probe - start.clone(), stream.clone() - start]);
                stream
            }
            false => match &window[..] {
                [.., [p2, r2], [p1, r1]] => {
                    let p = probe - start.clone();
                    let gamma = mean_abs(p - p2.clone()) / mean_abs(p1.clone() - p2.clone());
                    let gamma = gamma.clamp(1.0, 1.5) as f32;
                    start + r2.clone() + (r1.clone() - r2.clone()) * gamma
                }
                all => start + all[0][1].clone(),
            },
        };
        ended(model, stream, at)
    });
    adder.ruled(images)
}

/// EasyCache, decided on the conditional half and the channels that predict.
fn naive_easy(model: &Model, threshold: f64, warm_up: usize) -> Ruled {
    let latents = model.outline().latents;
    let (images, branches) = (LABELS.len(), model.outline().graph.branches());
    let conditional = |v: &Tensor<4>| {
        v.clone()
            .narrow(0, 0, images)
            .narrow(1, 0, latents.channels)
    };
    let mut adder = Adder::new(threshold);
    let mut before: Option<Tensor<4>> = None;
    let mut last: Option<[Tensor<4>; 2]> = None;
    let (mut known, mut rate): (Option<Tensor<4>>, Option<f64>) = (None, None);
    // The state in the channels that predict, of both halves.
    let widened = |x: &Tensor<4>| {
        let [b, c, h, w] = x.dims();
        let rest = Tensor::zeros([b, latents.out_channels - c, h, w], &x.device());
        let wide = Tensor::cat(vec![x.clone(), rest], 1);
        Tensor::cat(vec![wide.clone(), wide], 0)
    };
    let found = naive(model, |s, x, at| {
        let was = before.replace(x.clone());
        let decided = was.filter(|_| s >= warm_up && s < STEPS - 1);
        let change = decided.zip(rate).zip(last.as_ref());
        let change = change.map(|((was, rate), [_, v])| {
            rate * mean_abs(x.clone() - was) / mean_abs(conditional(v))
        });
        let v = match adder.computes(change) {
            false => known.clone().unwrap() + widened(&x),
            true => {
                let stream = through(model, 0..branches, begun(model, x.clone()), at);
                let output = ended(model, stream, at);
                let v = images_of(output, latents.grid(), latents.patch);
                if let Some([state, earlier]) = &last {
                    let moved = mean_abs(conditional(&v) - conditional(earlier));
                    rate = Some(moved / mean_abs(x.clone() - state.clone()));
                }
                known = Some(v.clone() - widened(&x));
                last = Some([x, v.clone()]);
                v
            }
        };
        output_patches_of(v, latents.patch)
    });
    adder.ruled(found)
}

/// What a rule is called, and its naive run with a threshold.
type Rules<'a> = Vec<(&'static str, &'static str, Box<dyn Fn(f64) -> Ruled + 'a>)>;

fn rules<'a>(model: &'a Model, calibration: &'a Calibration) -> Rules<'a> {
    let Reuse::AtRunTime(probed) = reuse("tea:1", model, Some(calibration)) else {
        panic!("it decides at run time");
    };
    let harmonica::schedule::Rule::Sum(sum) = probed.rule().clone() else {
        panic!("its changes add up");
    };
    let polynomial = move |x: f64| sum.polynomial.iter().fold(0.0, |value, c| value * x + c);
    vec![
        (
            "tea",
            "",
            Box::new(move |threshold| naive_tea(model, threshold, &polynomial)),
        ),
        (
            "di",
            "",
            Box::new(move |threshold| naive_dicache(model, threshold)),
        ),
        (
            "easy",
            ":4",
            Box::new(move |threshold| naive_easy(model, threshold, 4)),
        ),
    ]
}

#[test]
fn rules_decide_as_they_were_published() {
    for (device, engine) in engines() {
        let pipeline = loaded(&engine);
        let (model, calibration) = (pipeline.model.clone(), measured(&pipeline));
        for (name, more, ruled) in rules(&model, &calibration) {
            // A threshold that lets one step pass, and one that lets several.
            let first = ruled(1e-12).first;
            let mut mixed = false;
            for factor in [1.5, 4.0] {
                let expected = ruled(factor * first);
                let spec = format!("{name}:{}{more}", factor * first);
                let sampler = sampler(&spec, &model, Some(&calibration));
                let (images, computed, totals) = drawn(sampler.run(request(&model)).unwrap());
                assert_eq!(computed, expected.computed, "{spec}, {device}");
                within(
                    format!("{spec}, {device}"),
                    off(&images, &expected.images),
                    2e-5,
                );
                assert_eq!(totals.peak_cache_bytes, sampler.cache_bytes(2));
                let reused = computed.iter().filter(|c| !**c).count();
                mixed |= reused > 0 && computed[5..STEPS - 1].contains(&true);
                assert_eq!(totals.macs < totals.macs_full, reused > 0);
            }
            assert!(mixed, "{name} computed or reused everything");
        }
    }
}

#[test]
fn what_never_engages_is_the_uncached_run() {
    for (device, engine) in engines() {
        let pipeline = loaded(&engine);
        let (model, calibration) = (pipeline.model.clone(), measured(&pipeline));
        let plain = Sampler::new(&model, settings(), None).unwrap();
        let (expected, ..) = drawn(plain.run(request(&model)).unwrap());
        for spec in [
            "delta:1",
            "foca:1",
            "spectrum:1",
            "smooth:1e-9",
            "mag:1e-9",
            "cem:14",
            "tea:1e-12",
            "di:1e-12",
            "easy:1e-12",
        ] {
            let sampler = sampler(spec, &model, Some(&calibration));
            let (images, _, totals) = drawn(sampler.run(request(&model)).unwrap());
            assert_eq!(images, expected, "{spec}, {device}");
            assert_eq!(totals.macs, totals.macs_full, "{spec}");
        }
    }
}

/// A run that is resumed at a step which it computed is the undisturbed one, to the last bit.
#[test]
fn rules_resume_where_they_compute() {
    for (device, engine) in engines() {
        let pipeline = loaded(&engine);
        let (model, calibration) = (pipeline.model.clone(), measured(&pipeline));
        for (name, more, ruled) in rules(&model, &calibration) {
            let threshold = 1.5 * ruled(1e-12).first;
            let spec = format!("{name}:{threshold}{more}");
            let sampler = sampler(&spec, &model, Some(&calibration)).with_recovery(true);
            let (expected, computed, totals) = drawn(sampler.run(request(&model)).unwrap());
            let at = (4..STEPS)
                .find(|s| computed[*s] && !computed[*s - 1])
                .unwrap_or_else(|| panic!("{spec} computes nothing after a reuse: {computed:?}"));
            let mut run = sampler.run(request(&model)).unwrap();
            // The start, and the steps before.
            for _ in 0..1 + at {
                run.next().unwrap().unwrap();
            }
            let state = run.state().unwrap().clone();
            let (images, resumed, again) = drawn(sampler.resume(state).unwrap());
            assert_eq!(images, expected, "{spec}, {device}");
            assert_eq!(resumed, computed[at..], "{spec}, {device}");
            assert_eq!(again, totals, "{spec}, {device}");
        }
    }
}

/// A table that reuses together forgets what it kept, as any other does.
#[test]
fn a_table_that_reuses_together_resumes_with_an_empty_cache() {
    let engine = Engine::cpu();
    let model = loaded(&engine).model;
    for spec in ["delta:3:7", "spectrum:2"] {
        let sampler = sampler(spec, &model, None).with_recovery(true);
        let mut run = sampler.run(request(&model)).unwrap();
        for _ in 0..1 + 7 {
            run.next().unwrap().unwrap();
        }
        let state = run.state().unwrap().clone();
        let (images, ..) = drawn(sampler.resume(state).unwrap());
        assert!(images.iter().all(|v| v.is_finite()), "{spec}");
    }
    // Both compute step 6 of this one, so nothing is lost.
    let sampler = sampler("delta:3:7", &model, None).with_recovery(true);
    let (expected, ..) = drawn(sampler.run(request(&model)).unwrap());
    let mut run = sampler.run(request(&model)).unwrap();
    for _ in 0..1 + 6 {
        run.next().unwrap().unwrap();
    }
    let state = run.state().unwrap().clone();
    assert_eq!(drawn(sampler.resume(state).unwrap()).0, expected);
}

#[test]
fn what_keeps_more_runs_in_smaller_batches() {
    let model = loaded(&Engine::cpu()).model;
    let outline = model.outline();
    let feature = outline.graph.feature_numbers() as u64;
    // Bytes of so many images and halves, with so many features each.
    let bytes =
        |images: u64, features: u64| images * 8 * (outline.activations + features * feature);
    let budget = bytes(8, outline.graph.branches() as u64);
    assert_eq!(batch_for(outline, true, budget), 8);
    assert_eq!(sampler("none", &model, None).batch_within(budget), 8);
    let forecasting = sampler("foca:2", &model, None);
    let slots = forecasting.plan().slots() as u64;
    assert!(slots > outline.graph.branches() as u64, "{slots}");
    let expected = (budget / bytes(1, slots)).max(1) as usize;
    assert!(expected < 8);
    assert_eq!(forecasting.batch_within(budget), expected);
}

#[test]
fn a_calibration_does_not_depend_on_its_batches() {
    for (device, engine) in engines() {
        let pipeline = loaded(&engine);
        let [one, all] = [1, 3].map(|batch| calibration(&pipeline, batch, 4));
        let numbers = |c: &Calibration| -> Vec<f64> {
            let features = c.feature_changes.values().flatten().flatten();
            let all = features.chain(c.stream_distances.iter().flatten());
            let all = all.chain(&c.magnitude_ratios).chain(&c.output_changes);
            all.chain(&c.input_changes).copied().collect()
        };
        for (a, b) in numbers(&one).iter().zip(numbers(&all)) {
            assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{device}: {a} {b}");
        }
        assert_eq!(one.magnitude_ratios[0], 1.0);
        assert_eq!(one.input_changes.len(), 3 * (STEPS - 1));
        assert_eq!(one.feature_changes.len(), 2);
    }
}

#[test]
fn the_command_measures_what_policies_then_find() {
    use std::process::Command;
    let folder = tempfile::tempdir().unwrap();
    let model = golden("hooks");
    let run = |arguments: &[&str]| {
        let given = [
            "--model",
            model.to_str().unwrap(),
            "--device",
            "cpu",
            "--steps",
            "6",
        ];
        Command::new(env!("CARGO_BIN_EXE_harmonica"))
            .current_dir(folder.path())
            .args(arguments)
            .args(given)
            .output()
            .unwrap()
    };
    let compare = [
        "compare",
        "--count",
        "1",
        "--schedules",
        "smooth:0.5,cem:3,mag:0.5,tea:0.5,easy:0.5:2,di:0.5,delta:2,foca:2,spectrum:2",
    ];
    let missing = run(&compare);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert_eq!(missing.status.code(), Some(2), "{said}");
    assert!(
        said.contains("`harmonica train calibrate --model \""),
        "{said}"
    );
    let measured = run(&["train", "calibrate", "--draws", "2"]);
    let said = String::from_utf8_lossy(&measured.stderr).into_owned();
    assert!(measured.status.success(), "{said}");
    let compared = run(&compare);
    let said = String::from_utf8_lossy(&compared.stderr).into_owned();
    assert!(compared.status.success(), "{said}");
    // Where a policy has a table, it can be written.
    let model = model.to_str().unwrap();
    for policy in ["smooth:0.5", "cem:3", "mag:0.5", "delta:2", "spectrum:2"] {
        let out = Command::new(env!("CARGO_BIN_EXE_harmonica"))
            .current_dir(folder.path())
            .args(["schedule", "make", policy, "--model", model])
            .args(["--steps", "6", "--out", "a.schedule.json"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{policy}: {said}");
        let read = harmonica::schedule::ScheduleFile::read(&folder.path().join("a.schedule.json"));
        assert_eq!(read.unwrap().schedule().unwrap().steps(), 6);
    }
}
