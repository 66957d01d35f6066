//! Cached runs against an independent program that keeps features in a dictionary and is not clever.

use burn::tensor::Device;
use harmonica::{
    cache::CacheDtype,
    checkpoint::{self, LoadOptions, ModelSpec, load_model},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    metrics::max_abs_error,
    models::{At, Condition, Context, Denoiser, Join, Model, Outline, Partial, Times},
    sampler::{Event, Request, Sampler, Settings},
    schedule::Schedule,
};

use crate::common::{engines, golden, integers, tensor, within};

const FILE: &str = "cached.safetensors";
struct Case {
    name: &'static str,
    file: &'static str,
    heads: Option<usize>,
    /// About three times the largest difference found on either device, with an f32 and with an f16 cache. What is rounded to
    /// f16 on one side of a tie and on the other is a step apart, and clipping (b) makes much of that.
    bounds: [f64; 2],
}

const CASES: [Case; 3] = [
    Case {
        name: "a",
        file: "tiny-a.pt",
        heads: Some(4),
        bounds: [1e-5, 1e-4],
    },
    Case {
        name: "b",
        file: "tiny-b.pt",
        heads: Some(3),
        bounds: [1e-4, 3e-3],
    },
    Case {
        name: "c",
        file: "tiny-c.safetensors",
        heads: Some(1),
        bounds: [8e-5, 8e-5],
    },
];

impl Case {
    fn model(&self, engine: &Engine) -> Model {
        let options = LoadOptions {
            heads: self.heads,
            input_size: (self.name == "b").then_some([8, 12]),
        };
        let spec = ModelSpec::Path(golden(self.file));
        load_model(&spec, options, engine.device()).unwrap().0
    }

    fn setting(&self, name: &str) -> String {
        checkpoint::open(&golden(FILE)).unwrap().metadata()[name].clone()
    }

    fn settings(&self) -> Settings {
        let scale = self.setting("guidance").parse().unwrap();
        Settings {
            steps: self.setting("steps").parse().unwrap(),
            spacing: Spacing::Even,
            solver: Solver::ddim(0.0).unwrap(),
            guidance: Guidance::new(scale, GuidedChannels::Three).unwrap(),
            clip_x0: self.setting(&format!("clip_{}", self.name)) == "true",
        }
    }

    fn schedule(&self, table: &str) -> Schedule {
        let name = format!("{}.{table}.table", self.name);
        let shape = tensor_shape(&name);
        let cells = integers(FILE, &name).into_iter().map(|c| c == 1).collect();
        Schedule::new(shape[0], shape[1], cells).unwrap()
    }

    fn expected(&self, table: &str, run: &str) -> Vec<f32> {
        tensor(FILE, &format!("{}.{table}.{run}", self.name)).1
    }

    fn request(&self) -> Request {
        Request {
            conditions: Condition::classes(&integers(FILE, &format!("{}.labels", self.name))),
            seed: 0,
            first: 0,
            noise: Some(tensor(FILE, &format!("{}.noise", self.name)).1),
            batch: 2,
        }
    }

    fn sampler(&self, model: &Model, table: &str, dtype: CacheDtype) -> Sampler {
        let schedule = Some(self.schedule(table));
        Sampler::new(model, self.settings(), schedule)
            .unwrap()
            .with_cache_dtype(dtype)
            .with_poisoned_cache()
    }
}

/// The largest difference in units of the largest value: these networks' images are not within [-1, 1].
fn off(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    max_abs_error(found, expected) / largest
}

fn tensor_shape(name: &str) -> Vec<usize> {
    let source = checkpoint::open(&golden(FILE)).unwrap();
    source.get(name).unwrap().shape.clone()
}

#[test]
fn cached_runs_are_those_of_the_naive_sampler() {
    for (device, engine) in engines() {
        for case in &CASES {
            let model = case.model(&engine);
            for table in ["random", "router"] {
                for (dtype, run, bound) in [
                    (CacheDtype::F32, "f32", case.bounds[0]),
                    (CacheDtype::F16, "f16", case.bounds[1]),
                ] {
                    let found = case.sampler(&model, table, dtype).sample(case.request());
                    let expected = case.expected(table, run);
                    let error = off(&found.unwrap(), &expected);
                    within(
                        format!("cached {}, {table}, {run}, {device}", case.name),
                        error,
                        bound,
                    );
                }
            }
        }
    }
}

/// A run that lost its device goes on with an empty cache: as the naive run that forgets its features there.
#[test]
fn a_resumed_run_is_that_of_the_resumed_table() {
    for (device, engine) in engines() {
        for case in CASES.iter().filter(|case| case.name != "b") {
            let model = case.model(&engine);
            let sampler = case
                .sampler(&model, "random", CacheDtype::F32)
                .with_recovery(true);
            let at: usize = case.setting("resumed_at").parse().unwrap();
            let mut run = sampler.run(case.request()).unwrap();
            // The start, and the steps before.
            for _ in 0..1 + at {
                run.next().unwrap().unwrap();
            }
            let state = run.state().unwrap().clone();
            assert_eq!(state.step(), at);
            let resumed: Vec<f32> = sampler
                .resume(state)
                .unwrap()
                .filter_map(|event| match event.unwrap() {
                    Event::Images { x0, .. } => Some(x0),
                    _ => None,
                })
                .flatten()
                .collect();
            let error = off(&resumed, &case.expected("random", "resumed"));
            println!("{device}, {}, resumed: {error:.1e}", case.name);
            within(
                format!("resumed {}, {device}", case.name),
                error,
                case.bounds[0],
            );
            let undisturbed = case.expected("random", "f32");
            assert!(off(&resumed, &undisturbed) > 1e-3);
        }
    }
}

/// What is broken in a network that is otherwise the right one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Features join under the gates of the step before.
    Gate,
    /// Features lose the bias of their last layer.
    Bias,
}

/// A network with a fault in how its branches are reused.
#[derive(Debug)]
struct Faulty {
    model: Model,
    fault: Fault,
}

impl Denoiser for Faulty {
    fn outline(&self) -> &Outline {
        self.model.outline()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn null(&self) -> Option<Condition> {
        self.model.null()
    }

    fn context(&self, conditions: &[Condition], elements: usize) -> Context {
        self.model.context(conditions, elements)
    }

    fn prepare(&self, times: Times<'_>, context: &Context) -> At {
        match (self.fault, times) {
            (Fault::Gate, Times::Steps(times)) => {
                let mut late = times.to_vec();
                late.rotate_right(1);
                self.model.prepare(Times::Steps(&late), context)
            }
            _ => self.model.prepare(times, context),
        }
    }

    fn prepared_numbers(&self, conditions: usize) -> [usize; 2] {
        self.model.prepared_numbers(conditions)
    }

    fn begin(&self, x: burn::tensor::Tensor<4>, copies: usize) -> burn::tensor::Tensor<3> {
        self.model.begin(x, copies)
    }

    fn compute(&self, site: usize, x: burn::tensor::Tensor<3>, at: &At) -> Partial {
        let partial = self.model.compute(site, x, at);
        match self.fault {
            Fault::Bias => Partial {
                bias: None,
                ..partial
            },
            Fault::Gate => partial,
        }
    }

    fn join(&self, site: usize, at: &At) -> Join {
        self.model.join(site, at)
    }

    fn end(&self, x: burn::tensor::Tensor<3>, at: &At) -> Partial {
        self.model.end(x, at)
    }
}

/// The bounds above are far below what a broken cache does.
#[test]
fn a_wrong_gate_a_dropped_bias_and_a_stale_slot_show() {
    let engine = Engine::cpu();
    for case in &CASES {
        let right = case.model(&engine);
        let expected = case.expected("random", "f32");
        for fault in [Fault::Gate, Fault::Bias] {
            let model: Model = std::sync::Arc::new(Faulty {
                model: right.clone(),
                fault,
            });
            let sampler = case.sampler(&model, "random", CacheDtype::F32);
            let error = off(&sampler.sample(case.request()).unwrap(), &expected);
            println!("{}, {fault:?}: {error:.1e}", case.name);
            assert!(
                f64::from(error) > 20.0 * case.bounds[0],
                "{}, {fault:?}: {error}",
                case.name
            );
        }
        // A stale slot: reuse reads the feature before the one that was computed last, where there is one.
        let schedule = case.schedule("random");
        let computed = |s: usize, n: usize| (0..s).filter(|k| schedule.computes(*k, n)).count();
        let stale = schedule
            .clone()
            .with_reads(|s, n| match computed(s, n) {
                1 => vec![1.0],
                _ => vec![0.0, 1.0],
            })
            .unwrap();
        let sampler = Sampler::new(&right, case.settings(), Some(stale)).unwrap();
        let error = off(&sampler.sample(case.request()).unwrap(), &expected);
        println!("{}, stale slot: {error:.1e}", case.name);
        assert!(
            f64::from(error) > 20.0 * case.bounds[0],
            "{}, stale slot: {error}",
            case.name
        );
    }
}
