//! A second family: PixArt's transformer against diffusers, cached runs and router training on it.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use harmonica::{
    cache::CacheDtype,
    checkpoint::{LoadOptions, ModelSpec, load_model},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    graph::SiteKind,
    metrics::max_abs_error,
    models::{self, Condition, Model, Picture, TextEmbedding},
    sampler::{Request, Sampler, Settings},
    schedule::Schedule,
};

use crate::common::{engines, golden, harmonica_json, integers, tensor, within};

/// Without, and with micro-conditions, whose sizes in pixels are large angles in f32.
const FORWARD_BOUNDS: [f64; 2] = [1e-5, 5e-5];

fn load(file: &str, input_size: Option<[usize; 2]>, engine: &Engine) -> Model {
    let options = LoadOptions {
        heads: file.ends_with(".pth").then_some(3),
        input_size,
    };
    let spec = ModelSpec::Path(golden(file));
    load_model(&spec, options, engine.device()).unwrap().0
}

/// Texts of a golden file.
pub fn texts(file: &str, text: &str, mask: &str) -> Vec<Condition> {
    let (shape, values) = tensor(file, text);
    let [.., tokens, width] = shape[..] else {
        panic!("{shape:?}")
    };
    let mask = integers(file, mask);
    values
        .chunks(tokens * width)
        .zip(mask.chunks(tokens))
        .map(|(values, mask)| {
            let mask = mask.iter().map(|m| *m == 1).collect();
            let text = TextEmbedding::new(values.to_vec(), width, mask).unwrap();
            Condition::Text(Arc::new(text))
        })
        .collect()
}

/// The same texts for the pictures that the golden file asks for.
fn of_pictures(conditions: Vec<Condition>, case: &str) -> Vec<Condition> {
    let of = |name: &str| tensor("pixart.io.safetensors", &format!("{case}.{name}")).1;
    let (sizes, ratios) = (of("resolution"), of("aspect_ratio"));
    let pictures = sizes.chunks(2).zip(ratios);
    conditions
        .into_iter()
        .zip(pictures)
        .map(|(condition, (size, aspect_ratio))| match condition {
            Condition::Text(text) => {
                let picture = Picture {
                    resolution: [size[0], size[1]],
                    aspect_ratio,
                };
                Condition::Text(Arc::new(TextEmbedding::clone(&text).with_picture(picture)))
            }
            class => class,
        })
        .collect()
}

#[test]
fn the_transformer_is_diffusers_own() {
    for (device, engine) in engines() {
        for (case, files, input_size) in [
            ("alpha", &["pixart-alpha", "pixart-original.pth"][..], None),
            (
                "alpha_wide",
                &["pixart-alpha", "pixart-original.pth"],
                Some([8, 12]),
            ),
            ("ms", &["pixart-ms", "pixart-ms-original.pth"], None),
            ("ms_tall", &["pixart-ms"], Some([12, 8])),
        ] {
            let io = "pixart.io.safetensors";
            let of = |name: &str| tensor(io, &format!("{case}.{name}"));
            let mut conditions = texts(io, &format!("{case}.text"), &format!("{case}.mask"));
            if case.starts_with("ms") {
                conditions = of_pictures(conditions, case);
            }
            for file in files {
                let model = load(file, input_size, &engine);
                let (shape, x) = of("x");
                let shape: [usize; 4] = shape.try_into().unwrap();
                let x = Tensor::from_data(TensorData::new(x, shape), engine.device());
                let out = models::forward(&*model, x, &of("t").1, &conditions);
                let out: Vec<f32> = out.try_into_data().unwrap().try_into_vec().unwrap();
                let error = max_abs_error(&out, &of("out").1);
                within(
                    format!("PixArt, {case}, {file}, {device}"),
                    error,
                    FORWARD_BOUNDS[usize::from(case.starts_with("ms"))],
                );
            }
        }
    }
}

#[test]
fn cached_runs_are_those_of_the_naive_sampler() {
    let file = "pixart-cached.safetensors";
    let table = integers(file, "random.table");
    let schedule = Schedule::new(6, 6, table.into_iter().map(|c| c == 1).collect()).unwrap();
    let settings = Settings {
        steps: 6,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(4.5, GuidedChannels::All).unwrap(),
        clip_x0: false,
    };
    let null = texts(file, "null_text", "null_mask").remove(0);
    for (device, engine) in engines() {
        for (expected, noise, size, cached, dtype, bound) in [
            ("full", "noise", None, false, CacheDtype::F32, 5e-5),
            ("random.f32", "noise", None, true, CacheDtype::F32, 5e-5),
            // Sums in another order can round a feature the other way.
            ("random.f16", "noise", None, true, CacheDtype::F16, 3e-3),
            (
                "wide.random.f32",
                "wide.noise",
                Some([8, 12]),
                true,
                CacheDtype::F32,
                5e-5,
            ),
        ] {
            let model = load("pixart-alpha", size, &engine);
            let request = Request {
                conditions: texts(file, "text", "mask"),
                seed: 0,
                first: 0,
                noise: Some(tensor(file, noise).1),
                batch: 2,
            };
            let sampler = Sampler::new(&model, settings, cached.then(|| schedule.clone()))
                .unwrap()
                .with_null(null.clone())
                .with_cache_dtype(dtype)
                .with_poisoned_cache();
            let found = sampler.sample(request).unwrap();
            let images = tensor(file, expected).1;
            let largest = images.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let error = max_abs_error(&found, &images) / largest;
            within(format!("cached PixArt, {expected}, {device}"), error, bound);
        }
    }
}

#[test]
fn three_branches_a_block_are_scheduled_planned_and_kept() {
    let model = load("pixart-alpha", None, &Engine::cpu());
    let graph = &model.outline().graph;
    assert_eq!(graph.kinds(), SiteKind::ALL);
    assert_eq!(graph.branches(), 6);
    let schedule = Schedule::from_rule(2, 6, |_, n| n == 3).unwrap();
    let plan = harmonica::plan::compile(&schedule, graph).to_string();
    assert!(
        plan.ends_with(
            "[attn 0 ← s0, cross 0 ← s1, mlp 0 ← s2] · attn 1 · [cross 1 ← s3, mlp 1 ← s4]\n"
        ),
        "{plan}"
    );
}

/// The release's router training on a family that its authors' code does not cover, number by number.
#[test]
fn router_training_replays_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("sdt-pixart.safetensors");
    let source = harmonica::checkpoint::open(&path).unwrap();
    let setting = |name: &str| source.metadata()[name].clone();
    let out = folder.path().join("run");
    let model = golden("pixart-alpha");
    let report = harmonica_json(&[
        "train",
        "router",
        "--device",
        "cpu",
        "--model",
        model.to_str().unwrap(),
        "--replay",
        path.to_str().unwrap(),
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
        "--out",
        out.to_str().unwrap(),
        "--json",
    ]);
    assert_eq!(report["passes"], 12);
    let (worst, rows) = crate::training::compare_trace(&path, &out);
    assert_eq!(rows, 108);
    within("training trace, PixArt", worst, 5e-5);
    let shown = harmonica_json(&[
        "schedule",
        "show",
        out.join("router.schedule.json").to_str().unwrap(),
        "--json",
    ]);
    assert_eq!(shown["model"]["family"], "PixArt");
    assert!(image::open(out.join("router.png")).unwrap().width() > 500);
}

/// The whole command on texts, and what it says where there are none.
#[test]
fn the_command_draws_encoded_texts() {
    let folder = tempfile::tempdir().unwrap();
    let texts = folder.path().join("texts.safetensors");
    let (_, embeds) = tensor("pixart-cached.safetensors", "text");
    let (_, null) = tensor("pixart-cached.safetensors", "null_text");
    let tensors = [
        ("prompt_embeds", vec![2, 5, 32], embeds),
        ("negative_prompt_embeds", vec![1, 5, 32], null),
    ];
    harmonica::checkpoint::write_tensors(&texts, &tensors).unwrap();
    let model = golden("pixart-alpha");
    let out = folder.path().join("texts.png");
    let sample = |more: &[&str]| {
        let fixed = [
            "sample",
            "--device",
            "cpu",
            "--model",
            model.to_str().unwrap(),
            "--steps",
            "4",
            "--schedule",
            "fora:2",
            "--out",
            out.to_str().unwrap(),
        ];
        crate::common::harmonica(&[&fixed[..], more].concat())
    };
    let said = |out: &std::process::Output| String::from_utf8_lossy(&out.stderr).into_owned();
    let drawn = sample(&["--texts", texts.to_str().unwrap(), "--json"]);
    assert!(drawn.status.success(), "{}", said(&drawn));
    let report: serde_json::Value = serde_json::from_slice(&drawn.stdout).unwrap();
    assert_eq!(
        (&report["images"], &report["cur"]),
        (&2.into(), &0.5.into())
    );
    for (flags, reason) in [
        (&[][..], "this model draws texts: pass --prompt"),
        (
            &["--texts", texts.to_str().unwrap(), "--classes", "3"],
            "the model draws texts, not classes",
        ),
        (
            &[
                "--texts",
                model.join("transformer/config.json").to_str().unwrap(),
            ],
            "config.json",
        ),
    ] {
        let refused = sample(flags);
        assert!(
            !refused.status.success() && said(&refused).contains(reason),
            "{flags:?}: {}",
            said(&refused)
        );
    }
    let wide = [("prompt_embeds", vec![1, 5, 16], vec![0.5; 80])];
    harmonica::checkpoint::write_tensors(&texts, &wide).unwrap();
    let refused = sample(&["--texts", texts.to_str().unwrap()]);
    assert!(
        said(&refused)
            .contains("the text has 5 tokens of 16, the model takes up to 300 tokens of 32"),
        "{}",
        said(&refused)
    );
    let short = [("prompt_embeds", vec![1, 5, 32], vec![0.5; 160])];
    harmonica::checkpoint::write_tensors(&texts, &short).unwrap();
    let refused = sample(&["--texts", texts.to_str().unwrap()]);
    assert!(
        said(&refused).contains("guidance needs an embedding of the empty text"),
        "{}",
        said(&refused)
    );
}

/// Our own file of it, from either naming, is the same model.
#[test]
fn it_converts_and_keeps_its_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("own.safetensors");
    let converted = crate::common::harmonica(&[
        "convert",
        "--model",
        golden("pixart-ms-original.pth").to_str().unwrap(),
        "--heads",
        "3",
        "--dtype",
        "f32",
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(
        converted.status.success(),
        "{}",
        String::from_utf8_lossy(&converted.stderr)
    );
    let engine = Engine::cpu();
    let own = ModelSpec::Path(out);
    let (model, info) = load_model(&own, LoadOptions::default(), engine.device()).unwrap();
    assert_eq!((info.outline.family, info.is_bundled()), ("PixArt", false));
    let (shape, x) = tensor("pixart.io.safetensors", "ms.x");
    let shape: [usize; 4] = shape.try_into().unwrap();
    let x = Tensor::from_data(TensorData::new(x, shape), engine.device());
    let conditions = texts("pixart.io.safetensors", "ms.text", "ms.mask");
    let conditions = of_pictures(conditions, "ms");
    let times = tensor("pixart.io.safetensors", "ms.t").1;
    let out = models::forward(&*model, x, &times, &conditions);
    let out: Vec<f32> = out.try_into_data().unwrap().try_into_vec().unwrap();
    let error = max_abs_error(&out, &tensor("pixart.io.safetensors", "ms.out").1);
    within("PixArt, converted", error, FORWARD_BOUNDS[1]);
}
