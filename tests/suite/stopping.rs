//! Runs and trainings that are ended in the middle of a step.

#[cfg(unix)]
mod by_a_signal;
mod trainings;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use burn::tensor::{Device, Tensor};
use harmonica::{
    checkpoint::{LoadOptions, ModelSpec, load_model},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    models::{At, Condition, Context, Denoiser, Join, Model, Outline, Partial, Times},
    sampler::{Event, Request, SampleError, Sampler, Settings},
};

const STEPS: usize = 3;

/// A network that counts the branches that it computes.
#[derive(Debug)]
struct Counting {
    model: Model,
    computed: Arc<AtomicUsize>,
}

impl Denoiser for Counting {
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
        self.model.prepare(times, context)
    }

    fn prepared_numbers(&self, conditions: usize) -> [usize; 2] {
        self.model.prepared_numbers(conditions)
    }

    fn begin(&self, x: Tensor<4>, copies: usize) -> Tensor<3> {
        self.model.begin(x, copies)
    }

    fn compute(&self, site: usize, x: Tensor<3>, at: &At) -> Partial {
        self.computed.fetch_add(1, Ordering::Relaxed);
        self.model.compute(site, x, at)
    }

    fn join(&self, site: usize, at: &At) -> Join {
        self.model.join(site, at)
    }

    fn end(&self, x: Tensor<3>, at: &At) -> Partial {
        self.model.end(x, at)
    }
}

/// Stops in each of these places of the second image, whose first step, or whose start, is where the run then goes on.
#[test]
fn a_run_stops_in_the_middle_of_a_step_and_goes_on_from_the_last_one() {
    let engine = Engine::cpu();
    let options = LoadOptions::default();
    let (bundled, _) = load_model(&ModelSpec::Bundled, options, engine.device()).unwrap();
    let computed = Arc::new(AtomicUsize::new(0));
    let model: Model = Arc::new(Counting {
        model: bundled,
        computed: computed.clone(),
    });
    let branches = model.outline().graph.branches();
    let settings = Settings {
        steps: STEPS,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(3.0, GuidedChannels::Three).unwrap(),
        clip_x0: true,
    };
    let request = Request {
        conditions: Condition::classes(&[6, 7]),
        seed: 4,
        first: 0,
        noise: None,
        batch: 1,
    };
    let sampler = Sampler::new(&model, settings, None)
        .unwrap()
        .with_recovery(true);
    let expected = sampler.sample(request.clone()).unwrap();
    let image = expected.len() / 2;
    assert_eq!(computed.load(Ordering::Relaxed), 2 * STEPS * branches);

    let first_image = STEPS * branches;
    for (most, finished) in [
        (first_image, 0),
        (first_image + 1, 0),
        (first_image + branches + 10, 1),
        (first_image + 3 * branches - 1, 2),
    ] {
        computed.store(0, Ordering::Relaxed);
        let count = computed.clone();
        let stopping = sampler
            .clone()
            .with_stop(Arc::new(move || count.load(Ordering::Relaxed) >= most));
        let mut run = stopping.run(request.clone()).unwrap();
        let (mut delivered, mut error) = (Vec::new(), None);
        for event in run.by_ref() {
            match event {
                Ok(Event::Images { x0, .. }) => delivered.extend(x0),
                Ok(_) => {}
                Err(e) => error = Some(e),
            }
        }
        assert!(matches!(error, Some(SampleError::Stopped)), "{error:?}");
        assert!(run.next().is_none());
        // Not one branch more.
        assert_eq!(computed.load(Ordering::Relaxed), most);
        assert_eq!(delivered, expected[..image]);
        let state = run.state().unwrap().clone();
        assert_eq!((state.first_image(), state.step()), (1, finished));
        let rest: Vec<f32> = sampler
            .resume(state)
            .unwrap()
            .filter_map(|event| match event.unwrap() {
                Event::Images { x0, .. } => Some(x0),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(rest, expected[image..]);
    }
    // Who never wants to stop gets the same images.
    let undisturbed = sampler.with_stop(Arc::new(|| false));
    assert_eq!(undisturbed.sample(request).unwrap(), expected);
}
