//! Reuse on real devices: the same images everywhere, what it costs and what it saves.

use harmonica::{
    cache::CacheDtype,
    checkpoint::{LoadOptions, ModelSpec, load_model},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    graph::SiteKind,
    metrics::max_abs_error,
    models::{Condition, Model},
    policy::Policy,
    sampler::{Part, Request, Sampler, Settings},
    schedule::Schedule,
};

use crate::common::{engines, within};
#[cfg(not(feature = "composed"))]
use crate::common::{golden, harmonica_json};

fn settings(steps: usize) -> Settings {
    Settings {
        steps,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(3.0, GuidedChannels::Three).unwrap(),
        clip_x0: true,
    }
}

fn bundled(engine: &Engine) -> Model {
    load_model(&ModelSpec::Bundled, LoadOptions::default(), engine.device())
        .unwrap()
        .0
}

fn random(model: &Model, steps: usize) -> Schedule {
    let policy: Policy = "random:0.5:3".parse().unwrap();
    policy.schedule(steps, &model.outline().graph).unwrap()
}

fn two_images() -> Request {
    Request {
        conditions: Condition::classes(&[6, 29]),
        seed: 5,
        first: 0,
        noise: None,
        batch: 2,
    }
}

#[test]
fn a_scheduled_run_draws_the_same_images_on_cpu_and_vulkan() {
    for dtype in [CacheDtype::F32, CacheDtype::F16] {
        let images = engines().map(|(_, engine)| {
            let model = bundled(&engine);
            let sampler = Sampler::new(&model, settings(4), Some(random(&model, 4))).unwrap();
            sampler
                .with_cache_dtype(dtype)
                .sample(two_images())
                .unwrap()
        });
        let bound = match dtype {
            CacheDtype::F32 => 8e-5,
            // The composed forms round otherwise before a feature is halved: 5.6e-4.
            CacheDtype::F16 => 1.5e-3,
        };
        let error = max_abs_error(&images[0], &images[1]);
        within(
            format!("CPU and Vulkan, half reused, {dtype} cache"),
            error,
            bound,
        );
    }
}

#[test]
fn f16_halves_the_cache_and_hardly_changes_the_images() {
    let model = bundled(&Engine::cpu());
    let [full, half] = [CacheDtype::F32, CacheDtype::F16].map(|dtype| {
        let sampler = Sampler::new(&model, settings(8), Some(random(&model, 8))).unwrap();
        let sampler = sampler.with_cache_dtype(dtype);
        let mut run = sampler.run(two_images()).unwrap();
        assert!(run.by_ref().all(|event| event.is_ok()));
        let bytes = run.totals().peak_cache_bytes;
        // Two images, two halves, 64 tokens of 192 numbers a slot.
        assert_eq!(bytes, sampler.cache_bytes(2));
        assert_eq!(
            bytes,
            sampler.plan().slots() * 4 * 64 * 192 * if dtype == CacheDtype::F16 { 2 } else { 4 }
        );
        sampler.sample(two_images()).unwrap()
    });
    assert_ne!(full, half);
    within("f16 and f32 cache", max_abs_error(&full, &half), 5e-3);
}

#[test]
fn vectors_computed_ahead_are_those_of_each_step() {
    let model = bundled(&Engine::cpu());
    let run = |bytes: usize| {
        let sampler = Sampler::new(&model, settings(5), None).unwrap();
        sampler
            .with_conditioning_bytes(bytes)
            .sample(two_images())
            .unwrap()
    };
    // None ahead, three steps ahead (a step has three rows of 6·12 + 2 vectors), all ahead.
    let each = run(0);
    for bytes in [3 * 3 * 74 * 192 * 4, usize::MAX] {
        assert_eq!(each, run(bytes), "{bytes} bytes");
    }
}

#[test]
fn a_store_serves_batches_of_other_sizes() {
    let model = bundled(&Engine::cpu());
    let sampler = Sampler::new(&model, settings(4), Some(random(&model, 4))).unwrap();
    let request = |batch: usize| Request {
        conditions: Condition::classes(&[1, 2, 3]),
        batch,
        ..two_images()
    };
    assert_eq!(
        sampler.sample(request(3)).unwrap(),
        sampler.sample(request(2)).unwrap()
    );
}

#[test]
fn a_profile_accounts_for_every_op_of_the_plan_and_draws_the_same_images() {
    let model = bundled(&Engine::cpu());
    let sampler = Sampler::new(&model, settings(4), Some(random(&model, 4))).unwrap();
    let (images, parts) = sampler.profile(two_images()).unwrap();
    assert_eq!(images, sampler.sample(two_images()).unwrap());
    let plan = sampler.plan().accounting();
    let count = |part: Part| parts.of(part).count as usize;
    assert_eq!(
        count(Part::Branch(SiteKind::SelfAttention)) + count(Part::Branch(SiteKind::Mlp)),
        plan.computed
    );
    assert_eq!(count(Part::Reuse), plan.spans);
    assert_eq!((count(Part::Embedding), count(Part::Solver)), (4, 4));
    assert_eq!(count(Part::Conditioning), 1);
}

/// The promise about dispatches: at most 20 for a computed block (it takes 10), one for a reused span.
#[cfg(not(feature = "composed"))]
#[test]
fn dispatches_on_vulkan_are_few_and_reused_spans_cost_one() {
    let report = harmonica_json(&[
        "bench",
        "--device",
        "vulkan",
        "--model",
        golden("tiny-a.pt").to_str().unwrap(),
        "--heads",
        "4",
        "--steps",
        "4",
        "--runs",
        "1",
        "--schedules",
        "none,fora:2,random:0.5:1",
        "--json",
    ]);
    assert_eq!(report["backend"], "vulkan");
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["schedule"].as_str()).collect();
    assert_eq!(names, [Some("none"), Some("fora:2"), Some("random:0.5:1")]);
    for row in rows {
        let of = |part: &str, key: &str| row["parts"][part][key].as_u64().unwrap();
        // Five each; one for every computed branch of the model's two blocks.
        for part in ["attention", "mlp"] {
            assert!(
                of(part, "dispatches") <= 6 * of(part, "count"),
                "{part}: {row}"
            );
        }
        assert_eq!(
            of("reuse", "dispatches"),
            row["plan"]["spans"].as_u64().unwrap()
        );
        let total: u64 = [
            "conditioning",
            "embedding",
            "attention",
            "mlp",
            "reuse",
            "solver",
        ]
        .map(|part| of(part, "dispatches"))
        .iter()
        .sum();
        let measured = row["dispatches_per_run"].as_u64().unwrap();
        println!("{}: {measured} dispatches", row["schedule"]);
        assert!(measured <= total, "{measured} of {total}");
        assert!(row["speedup"].as_f64().unwrap() > 0.0);
    }
    let dispatches = |row: usize| rows[row]["dispatches_per_run"].as_u64().unwrap();
    assert!(dispatches(1) < dispatches(0) && dispatches(2) < dispatches(0));
}
