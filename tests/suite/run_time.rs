//! Runs that decide while they go on, against diffusers' own hooks on the same network.

use harmonica::{
    cache::CacheDtype,
    checkpoint::{self, LoadOptions, ModelSpec, load_model},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    metrics::max_abs_error,
    models::{Condition, Model},
    policy::Policy,
    sampler::{Event, Request, Run, Sampler, Settings, Totals},
};

use crate::common::{engines, golden, integers, tensor, within};

const FILE: &str = "hooks.safetensors";

fn model(engine: &Engine) -> Model {
    let spec = ModelSpec::Path(golden("hooks"));
    load_model(&spec, LoadOptions::default(), engine.device())
        .unwrap()
        .0
}

fn setting(name: &str) -> f64 {
    checkpoint::open(&golden(FILE)).unwrap().metadata()[name]
        .parse()
        .unwrap()
}

fn settings() -> Settings {
    Settings {
        steps: setting("steps") as usize,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(setting("guidance"), GuidedChannels::Three).unwrap(),
        clip_x0: false,
    }
}

fn sampler(model: &Model, policy: &str) -> Sampler {
    let policy: Policy = policy.parse().unwrap();
    let reuse = policy.reuse(settings().steps, &model.outline().graph);
    Sampler::reusing(model, settings(), reuse.unwrap())
        .unwrap()
        .with_poisoned_cache()
}

fn request() -> Request {
    Request {
        conditions: Condition::classes(&integers(FILE, "labels")),
        seed: 0,
        first: 0,
        noise: Some(tensor(FILE, "noise").1),
        batch: 2,
    }
}

/// Images, the steps that were computed, and what was done.
fn drawn(run: Run) -> (Vec<f32>, Vec<usize>, Totals) {
    let (mut images, mut computed, mut totals) = (Vec::new(), Vec::new(), Totals::default());
    for event in run {
        match event.unwrap() {
            Event::Step { reused, .. } => computed.push(usize::from(!reused)),
            Event::Images { x0, .. } => images.extend(x0),
            Event::Done(done) => totals = done,
            _ => {}
        }
    }
    (images, computed, totals)
}

#[test]
fn policies_decide_as_the_hooks_of_others() {
    for (device, engine) in engines() {
        let model = model(&engine);
        let graph = &model.outline().graph;
        for (policy, middle) in [
            ("fb:0.3", 2..8),
            ("fb:0.5", 2..8),
            ("fb:0.8", 2..8),
            ("db:1:1:0.5:3", 2..6),
            ("db:2:0:0.6:5", 4..8),
            ("db:1:0:0.9:4:2", 2..8),
        ] {
            let sampler = sampler(&model, policy);
            let (images, computed, totals) = drawn(sampler.run(request()).unwrap());
            let expected = integers(FILE, &format!("computed.{policy}"));
            assert_eq!(computed, expected, "{device}, {policy}");
            // Of two images and halves.
            let skipped = 4 * expected.iter().filter(|c| **c == 0).count() as u64;
            assert_eq!(totals.reused, middle.len() as u64 * skipped);
            let macs: u64 = graph.sites()[middle].iter().map(|site| site.macs).sum();
            assert_eq!(totals.macs_full - totals.macs, skipped * macs);
            assert_eq!(totals.peak_cache_bytes, sampler.cache_bytes(2));

            let expected = tensor(FILE, &format!("image.{policy}")).1;
            let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let error = max_abs_error(&images, &expected) / largest;
            within(format!("{policy}, {device}"), error, 2e-6);
        }
    }
}

#[test]
fn what_never_engages_is_the_uncached_run() {
    for (device, engine) in engines() {
        let model = model(&engine);
        let plain = Sampler::new(&model, settings(), None).unwrap();
        let (expected, ..) = drawn(plain.run(request()).unwrap());
        let (images, computed, totals) = drawn(sampler(&model, "fb:1e-9").run(request()).unwrap());
        assert_eq!(images, expected, "{device}");
        assert!(computed.iter().all(|c| *c == 1) && totals.macs == totals.macs_full);
    }
}

/// A step that computes writes everything that later ones read: a run resumed there is the undisturbed one.
#[test]
fn a_run_that_decides_resumes_where_it_computes() {
    for (device, engine) in engines() {
        let model = model(&engine);
        let sampler = sampler(&model, "fb:0.5").with_recovery(true);
        let (expected, computed, totals) = drawn(sampler.run(request()).unwrap());
        let at = (4..20)
            .find(|s| computed[*s] == 1 && computed[*s - 1] == 0)
            .unwrap();
        let mut run = sampler.run(request()).unwrap();
        // The start, and the steps before.
        for _ in 0..1 + at {
            run.next().unwrap().unwrap();
        }
        let state = run.state().unwrap().clone();
        let (images, resumed, again) = drawn(sampler.resume(state).unwrap());
        assert_eq!(images, expected, "{device}");
        assert_eq!(resumed, computed[at..], "{device}");
        assert_eq!(again, totals, "{device}");
    }
}

#[test]
fn features_kept_in_half_decide_alike() {
    for (device, engine) in engines() {
        let model = model(&engine);
        let sampler = sampler(&model, "fb:0.5").with_cache_dtype(CacheDtype::F16);
        let (images, computed, _) = drawn(sampler.run(request()).unwrap());
        assert_eq!(computed, integers(FILE, "computed.fb:0.5"), "{device}");
        let expected = tensor(FILE, "image.fb:0.5").1;
        let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let error = max_abs_error(&images, &expected) / largest;
        assert!(error > 1e-6, "{device}: halves must show");
        within(format!("first block, f16 cache, {device}"), error, 1e-5);
    }
}
