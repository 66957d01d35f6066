//! Training a DiT: against PyTorch, resumed, and by the command.

use std::{collections::HashMap, path::Path, time::Duration};

use harmonica::{
    checkpoint::{self, LoadOptions, ModelSpec, StateDict, StoredDtype, load_model},
    device::Engine,
    diffusion::GuidedChannels,
    layers::NORM_EPS,
    models::dit::DitConfig,
    training::{
        TrainingError,
        network::{
            Batch, Learner, Length, Optimizer, Precision, PretrainEvent, PretrainFolder,
            PretrainOptions, PretrainRun, PretrainSettings, PretrainStart, SavedRun,
        },
    },
};

use crate::{
    common::{
        a_killed_training_is_the_training, engines, golden, harmonica, harmonica_json, integers,
        of_a_later_format, tensor, vulkan, within,
    },
    pretrain_data::{folder, open},
};

const GOLDEN: &str = "pretrain.safetensors";

/// The tiny network that `make_train.py` trains.
fn tiny() -> DitConfig {
    DitConfig {
        input_size: [8, 8],
        patch: 2,
        channels: 3,
        hidden: 16,
        blocks: 2,
        heads: 2,
        classes: 4,
        learned_sigma: true,
        timestep_shift: 0,
        mlp_norm_eps: NORM_EPS,
    }
}

/// Its settings.
fn recipe() -> PretrainSettings {
    PretrainSettings {
        batch: 6,
        micro_batch: 6,
        beta1: 0.9,
        beta2: 0.99,
        weight_decay: 0.05,
        ema: 0.9,
        clip: 0.5,
        ..Default::default()
    }
}

/// All tensors of the golden file whose names begin so, by the rest of the name.
fn named(prefix: &str) -> HashMap<String, Vec<f32>> {
    let mut source = checkpoint::open(&golden(GOLDEN)).unwrap();
    let names: Vec<String> = source
        .entries()
        .filter_map(|e| e.name.strip_prefix(prefix).map(str::to_owned))
        .collect();
    names
        .into_iter()
        .map(|name| {
            let values = source.read_f32(&format!("{prefix}{name}")).unwrap();
            (name, values)
        })
        .collect()
}

fn start() -> StateDict {
    StateDict {
        config: tiny(),
        own_embedders: false,
        class_names: Vec::new(),
        clip_x0: true,
        guidance: None,
        tensors: named("weight."),
    }
}

fn batches() -> Vec<Batch> {
    let (shape, images) = tensor(GOLDEN, "images");
    let noise = tensor(GOLDEN, "noise").1;
    let (timesteps, labels) = (integers(GOLDEN, "timesteps"), integers(GOLDEN, "labels"));
    let (count, size) = (shape[1], shape[1..].iter().product::<usize>());
    (0..shape[0])
        .map(|step| Batch {
            shape: [shape[2], shape[3], shape[4]],
            images: images[step * size..][..size].to_vec(),
            noise: noise[step * size..][..size].to_vec(),
            timesteps: timesteps[step * count..][..count].to_vec(),
            labels: labels[step * count..][..count].to_vec(),
        })
        .collect()
}

/// `‖a − b‖ / ‖b‖`
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    let all: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (off / all.max(1e-30)).sqrt()
}

/// What a step's loss says, and every gradient, with and without the ways to save memory.
#[test]
fn gradients_are_pytorchs() {
    let batch = &batches()[0];
    let expected = named("grad.");
    let figures = tensor(GOLDEN, "losses").1;
    for (device, engine) in engines() {
        for (micro_batch, gradient_checkpointing) in [(6, false), (4, false), (4, true)] {
            let settings = PretrainSettings {
                micro_batch,
                gradient_checkpointing,
                ..recipe()
            };
            let learner = Learner::new(&start(), settings, engine.device()).unwrap();
            let (learned, found) = learner.gradient(batch).unwrap();
            let losses = [learned.mse, learned.vlb, learned.grad_norm];
            for (ours, theirs) in losses.iter().zip(&figures) {
                let error = (ours / f64::from(*theirs) - 1.0).abs();
                within(format!("training losses, {device}"), error, 1e-6);
            }
            assert_eq!(found.len(), expected.len());
            let mut worst: f64 = 0.0;
            for (name, theirs) in &expected {
                worst = worst.max(relative(&found[name], theirs));
            }
            within(
                format!(
                    "gradients, micro-batch {micro_batch}, checkpointing {gradient_checkpointing}, {device}"
                ),
                worst,
                5e-6,
            );
        }
    }
}

/// With factors of products in bf16: gradients of the twin that rounds the same numbers, which those in f32 are not.
#[test]
fn gradients_in_bf16_are_pytorchs_with_the_same_rounding() {
    let batch = &batches()[0];
    let expected = named("bf16.");
    let figures = tensor(GOLDEN, "bf16_losses").1;
    let gradient = |settings| {
        let learner = Learner::new(&start(), settings, Engine::cpu().device()).unwrap();
        learner.gradient(batch).unwrap()
    };
    let apart = |found: &HashMap<String, Vec<f32>>| -> f64 {
        assert_eq!(found.len(), expected.len());
        let error = |(name, theirs): (&String, &Vec<f32>)| {
            let error = relative(&found[name], theirs);
            assert!(error.is_finite(), "gradient of {name}");
            error
        };
        expected.iter().map(error).fold(0.0, f64::max)
    };
    for (micro_batch, gradient_checkpointing) in [(6, false), (4, true)] {
        let (learned, found) = gradient(PretrainSettings {
            precision: Precision::Bf16,
            micro_batch,
            gradient_checkpointing,
            ..recipe()
        });
        let losses = [learned.mse, learned.vlb, learned.grad_norm];
        for (ours, theirs) in losses.iter().zip(&figures) {
            let error = (ours / f64::from(*theirs) - 1.0).abs();
            within("losses in bf16, CPU", error, 1e-5);
        }
        // A number in the middle between two of bf16 is rounded either way.
        within(
            format!("gradients in bf16, micro-batch {micro_batch}, CPU"),
            apart(&found),
            6e-4,
        );
    }
    let whole = apart(&gradient(recipe()).1);
    assert!(whole > 2e-3, "gradients in f32 are {whole:.1e} apart");
}

/// Where the device computes in half precision, gradients stay near those of single precision.
#[test]
fn half_precision_stays_near() {
    let batch = &batches()[0];
    let expected = named("grad.");
    let settings = PretrainSettings {
        precision: Precision::F16,
        ..recipe()
    };
    // Mesa's software driver, which the tests ask for, computes in f16.
    let mut learner = Learner::new(&start(), settings, vulkan().device()).unwrap();
    let (_, found) = learner.gradient(batch).unwrap();
    let all = |gradients: &HashMap<String, Vec<f32>>| -> Vec<f32> {
        let mut names: Vec<_> = expected.keys().collect();
        names.sort();
        names
            .into_iter()
            .flat_map(|name| gradients[name].clone())
            .collect()
    };
    let error = relative(&all(&found), &all(&expected));
    within("gradient in half precision", error, 1.5e-3);
    for batch in &batches() {
        let learned = learner.learn(batch, 1e-3).unwrap();
        assert!(learned.mse.is_finite() && learned.grad_norm.is_finite());
    }
}

#[test]
fn min_snr_weights_are_pytorchs() {
    let expected = tensor(GOLDEN, "snr").1;
    let settings = PretrainSettings {
        min_snr: Some(5.0),
        ..recipe()
    };
    let learner = Learner::new(&start(), settings, Engine::cpu().device()).unwrap();
    let (learned, _) = learner.gradient(&batches()[0]).unwrap();
    let error = (learned.grad_norm / f64::from(expected[1]) - 1.0).abs();
    within("gradient norm under min-SNR weights", error, 1e-6);
}

/// Clipping, AdamW with weight decay, and the average, over three batches.
#[test]
fn three_steps_are_pytorchs() {
    let figures = tensor(GOLDEN, "losses").1;
    for (device, engine) in engines() {
        let mut learner = Learner::new(&start(), recipe(), engine.device()).unwrap();
        for (batch, figures) in batches().iter().zip(figures.chunks(3)) {
            let learned = learner.learn(batch, 2e-3).unwrap();
            let losses = [learned.mse, learned.vlb, learned.grad_norm];
            for (ours, theirs) in losses.iter().zip(figures) {
                let error = (ours / f64::from(*theirs) - 1.0).abs();
                within(format!("losses of three steps, {device}"), error, 1e-6);
            }
        }
        assert_weights(&learner, device, ["after.", "ema."], [1e-5, 8e-4]);
    }
}

/// The same with Muon for the matrices of the branches.
#[test]
fn three_steps_of_muon_are_pytorchs() {
    for (device, engine) in engines() {
        let settings = PretrainSettings {
            optimizer: Optimizer::Muon,
            ..recipe()
        };
        let mut learner = Learner::new(&start(), settings, engine.device()).unwrap();
        for batch in &batches() {
            learner.learn(batch, 2e-3).unwrap();
        }
        assert_weights(&learner, device, ["muon.", "muon_ema."], [1e-6, 1.5e-4]);
    }
}

/// Weights and average are those of the golden file, and so is how far they went.
fn assert_weights(learner: &Learner, device: &str, prefixes: [&str; 2], bounds: [f64; 2]) {
    let before = named("weight.");
    let [mut worst, mut farthest] = [0.0f64; 2];
    let [after, average] = prefixes.map(named);
    for (expected, average) in [(&after, false), (&average, true)] {
        let found = learner.weights(average).unwrap();
        for (name, theirs) in expected {
            let (mut ours, mut theirs) = (found[name].clone(), theirs.clone());
            let mut origin = before[name].clone();
            if name.ends_with("qkv.bias") {
                // Softmax does not see the keys' bias: its gradient is rounding, which Adam makes large.
                let third = ours.len() / 3;
                for values in [&mut ours, &mut theirs, &mut origin] {
                    values.drain(third..2 * third);
                }
            }
            let error = relative(&ours, &theirs);
            worst = worst.max(error);
            let moved =
                |to: &[f32]| -> Vec<f32> { to.iter().zip(&origin).map(|(a, b)| a - b).collect() };
            let error = relative(&moved(&ours), &moved(&theirs));
            farthest = farthest.max(error);
        }
    }
    within(
        format!("weights {}, {device}", prefixes[0]),
        worst,
        bounds[0],
    );
    within(
        format!("their way {}, {device}", prefixes[0]),
        farthest,
        bounds[1],
    );
}

pub fn options(folder: &Path, steps: u64, resume: bool) -> PretrainOptions {
    PretrainOptions {
        folder: PretrainFolder::new(folder),
        settings: PretrainSettings {
            length: Length::Steps(steps),
            batch: 4,
            micro_batch: 3,
            warmup: Some(2),
            shift: 1,
            balance: 0.5,
            ..Default::default()
        },
        resume,
        save_every: Duration::from_secs(3600),
        sample_every: None,
        dtype: StoredDtype::F32,
        vae: None,
    }
}

pub fn small() -> PretrainStart {
    PretrainStart::Fresh(DitConfig {
        classes: 2,
        ..tiny()
    })
}

#[test]
fn a_resumed_run_is_the_run() {
    let at = tempfile::tempdir().unwrap();
    let data = open(&folder(at.path()), Some(8)).unwrap();
    for (balance, optimizer) in [(0.0, Optimizer::AdamW), (0.5, Optimizer::Muon)] {
        let (whole, parts) = (
            at.path().join(format!("whole-{balance}")),
            at.path().join(format!("parts-{balance}")),
        );
        let engine = Engine::cpu();
        let begin = |folder: &Path, resume| {
            let mut options = options(folder, 6, resume);
            (options.settings.balance, options.settings.optimizer) = (balance, optimizer);
            PretrainRun::open(&data, small(), options, engine.device()).unwrap()
        };
        let events: Vec<_> = begin(&whole, false).map(Result::unwrap).collect();
        assert_eq!(events.len(), 8);
        assert_eq!(events[6..], [PretrainEvent::Saved, PretrainEvent::Sampled]);
        let mut run = begin(&parts, false);
        for _ in 0..3 {
            assert!(matches!(run.next(), Some(Ok(PretrainEvent::Step(_)))));
        }
        run.save().unwrap();
        // One more step, lost as in a crash.
        run.next().unwrap().unwrap();
        drop(run);
        let run = begin(&parts, true);
        assert_eq!((run.learner().steps(), run.is_done()), (3, false));
        assert_eq!(run.count(), 5);

        let bytes = |folder: &Path, file: &str| std::fs::read(folder.join(file)).unwrap();
        assert!(bytes(&whole, "model.safetensors") == bytes(&parts, "model.safetensors"));
        assert!(bytes(&whole, "samples.png") == bytes(&parts, "samples.png"));
        let state = |folder: &Path| {
            let mut source = checkpoint::open(&folder.join("checkpoint.safetensors")).unwrap();
            let names: Vec<_> = source.entries().map(|e| e.name.clone()).collect();
            names
                .into_iter()
                .map(|name| {
                    let values = source.read_f32(&name).unwrap();
                    (name, values.into_iter().map(f32::to_bits).collect())
                })
                .collect::<Vec<(String, Vec<u32>)>>()
        };
        assert!(state(&whole) == state(&parts), "the training states differ");
        let log = |folder: &Path| -> Vec<serde_json::Value> {
            let text = String::from_utf8(bytes(folder, "train.jsonl")).unwrap();
            text.lines()
                .map(|line| {
                    let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
                    // The one thing that the clock decides.
                    line.as_object_mut().unwrap().remove("images_per_second");
                    line
                })
                .collect()
        };
        assert_eq!(log(&whole), log(&parts));
        assert_eq!(log(&whole).len(), 6);
    }
}

#[test]
fn a_fresh_network_knows_nothing_and_learns() {
    let at = tempfile::tempdir().unwrap();
    let data = open(&folder(at.path()), Some(8)).unwrap();
    for (device, engine) in engines() {
        let mut options = options(&at.path().join(device), 60, false);
        options.settings.lr = 3e-3;
        options.settings.batch = 16;
        options.settings.micro_batch = 16;
        let mse: Vec<f64> = PretrainRun::open(&data, small(), options, engine.device())
            .unwrap()
            .filter_map(|event| match event.unwrap() {
                PretrainEvent::Step(step) => Some(step.mse),
                _ => None,
            })
            .collect();
        // All outputs are zero at first, so the error is the noise's variance.
        assert!((mse[0] - 1.0).abs() < 0.1, "{device}: {}", mse[0]);
        let last = mse[50..].iter().sum::<f64>() / 10.0;
        assert!(last < 0.8 * mse[0], "{device}: {} to {last}", mse[0]);
    }
}

#[test]
fn contradictions_are_refused() {
    let at = tempfile::tempdir().unwrap();
    let data = open(&folder(at.path()), Some(8)).unwrap();
    let engine = Engine::cpu();
    let refused =
        |start: PretrainStart, options: PretrainOptions, text: &str| match PretrainRun::open(
            &data,
            start,
            options,
            engine.device(),
        ) {
            Ok(_) => panic!("expected: {text}"),
            Err(error) => assert!(error.to_string().contains(text), "{error}"),
        };
    let run = at.path().join("run");
    refused(
        PretrainStart::Fresh(tiny()),
        options(&run, 1, false),
        "the network takes 4 classes, the data has 2: a model that goes on learning must have been made for the classes of its data",
    );
    let larger = DitConfig {
        input_size: [16, 16],
        classes: 2,
        ..tiny()
    };
    refused(
        PretrainStart::Fresh(larger),
        options(&run, 1, false),
        "the network takes values of [3, 16, 16] (channels, height, width), the data has [3, 8, 8]",
    );
    refused(
        small(),
        options(&run, 1, true),
        "holds no run to resume: there is no checkpoint.safetensors",
    );
    let mut half = options(&run, 1, false);
    half.settings.precision = Precision::F16;
    refused(
        small(),
        half,
        "setting `precision` is f16, expected f32 or bf16: the CPU does not compute in that type",
    );
    let mut wrong = options(&run, 1, false);
    wrong.settings.balance = 2.0;
    refused(
        small(),
        wrong,
        "setting `balance` is 2, expected a number from 0 to 1",
    );
    PretrainRun::open(&data, small(), options(&run, 1, false), engine.device()).unwrap();
    refused(small(), options(&run, 1, false), "holds a run already");
    let mut other = options(&run, 1, true);
    other.settings.lr = 1.0;
    refused(small(), other, "was trained with lr 0.0005, not 1.0");
    of_a_later_format(&run.join("checkpoint.safetensors"));
    refused(
        small(),
        options(&run, 1, true),
        "its training state has format 2, this program reads format 1",
    );
    let mut wild = options(&at.path().join("wild"), 50, false);
    wild.settings.lr = 1e30;
    let error = PretrainRun::open(&data, small(), wild, engine.device())
        .unwrap()
        .find_map(Result::err);
    assert!(
        matches!(error, Some(TrainingError::Diverged { .. })),
        "{error:?}"
    );
}

/// The command from pictures to pictures.
#[test]
fn the_command_trains_a_model_that_samples() {
    let at = tempfile::tempdir().unwrap();
    let pictures = folder(at.path());
    let out = at.path().join("run");
    let (data, folder) = (pictures.to_str().unwrap(), out.to_str().unwrap());
    let fixed = [
        "train", "dit", "--data", data, "--out", folder, "--device", "cpu",
    ];
    let with = |flags: &[&'static str]| [&fixed[..], flags].concat();
    let network = [
        "--image-size",
        "8",
        "--blocks",
        "1",
        "--hidden",
        "16",
        "--patch",
        "2",
        "--batch",
        "4",
    ];
    let first = [
        &network[..],
        &[
            "--steps",
            "3",
            "--no-flip",
            "blue",
            "--dtype",
            "f16",
            "--optimizer",
            "muon",
            "--json",
        ],
    ]
    .concat();
    let summary = harmonica_json(&with(&first));
    assert_eq!(
        (&summary["steps"], &summary["images"]),
        (&3.into(), &12.into())
    );
    assert_eq!(summary["skipped"].as_array().unwrap().len(), 1);
    for file in [
        "model.safetensors",
        "checkpoint.safetensors",
        "train.jsonl",
        "curve.png",
        "samples.png",
    ] {
        assert!(out.join(file).exists(), "{file}");
    }
    // What is not said again stays as it was.
    let more = harmonica_json(&with(&["--steps", "5", "--resume", "--json"]));
    assert_eq!(more["steps"], 5);
    let saved = SavedRun::read(&out.join("checkpoint.safetensors")).unwrap();
    assert_eq!(
        (saved.settings.optimizer, saved.settings.lr),
        (Optimizer::Muon, Optimizer::Muon.default_lr())
    );

    let model = out.join("model.safetensors");
    let stored = checkpoint::open(&model).unwrap();
    assert!(
        stored
            .entries()
            .all(|e| e.dtype == harmonica::containers::Dtype::F16)
    );
    let (_, info) = load_model(
        &ModelSpec::Path(model.clone()),
        LoadOptions::default(),
        Engine::cpu().device(),
    )
    .unwrap();
    assert_eq!(
        (info.class_names.len(), info.clip_x0, info.class_name(1)),
        (2, true, "b-blue".into())
    );
    // As its samples are drawn.
    let guidance = info.usual_guidance();
    assert_eq!(
        (guidance.scale(), guidance.channels()),
        (3.0, GuidedChannels::Three)
    );
    let drawn = at.path().join("drawn.png");
    let sampled = harmonica_json(&[
        "sample",
        "--model",
        folder,
        "--classes",
        "a-red",
        "--steps",
        "4",
        "--schedule",
        "none",
        "--device",
        "cpu",
        "--out",
        drawn.to_str().unwrap(),
        "--json",
    ]);
    assert_eq!(sampled["images"], 1);
    let tuned = at.path().join("tuned");
    let tuned = [
        "train",
        "dit",
        "--data",
        data,
        "--out",
        tuned.to_str().unwrap(),
        "--device",
        "cpu",
        "--init",
        model.to_str().unwrap(),
        "--images",
        "8",
        "--batch",
        "4",
        "--gradient-checkpointing",
        "--json",
    ];
    assert_eq!(harmonica_json(&tuned)["steps"], 2);
    // Other pictures: what reads and draws patches begins anew, and the command says so.
    let other = at.path().join("other");
    let init = model.to_str().unwrap();
    let other = other.to_str().unwrap();
    let mut flags = vec![
        "train", "dit", "--data", data, "--out", other, "--init", init,
    ];
    flags.extend("--device cpu --image-size 16 --patch 4 --images 4 --batch 4".split(' '));
    let other = harmonica(&flags);
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(
        other.status.success()
            && said.contains("[3, 8, 8] in patches of 2, this data is [3, 16, 16] in patches of 4")
            && said.contains("final_layer.linear.bias, final_layer.linear.weight, x_embedder."),
        "{said}"
    );

    let refused = |flags: &[&'static str], text: &str| {
        let out = harmonica(&with(flags));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            out.status.code() == Some(2) && said.contains(text),
            "{flags:?}: {said}"
        );
    };
    refused(&["--steps", "3"], "holds a run already; pass --resume");
    refused(
        &["--resume", "--batch", "5"],
        "was trained with --batch 4, this command says 5",
    );
    refused(
        &["--resume", "--optimizer", "adamw"],
        "was trained with --optimizer \"muon\", this command says \"adamw\"",
    );
    refused(
        &["--resume", "--minutes", "0"],
        "--minutes is 0, expected a finite number above 0",
    );
    refused(
        &["--resume", "--hidden", "32"],
        "of hidden 16, this command says 32",
    );
    refused(&["--steps", "1", "--minutes", "1"], "cannot be used with");
    refused(&["--resume", "--size", "DiT-S/3"], "unknown size `DiT-S/3`");
    refused(&["--resume", "--save-every", "-1"], "--save-every");

    // A router's training beside it would empty its log.
    let log = || std::fs::read(out.join("train.jsonl")).unwrap();
    let before = log();
    let router = harmonica(&[
        "train", "router", "--model", folder, "--out", folder, "--device", "cpu",
    ]);
    let said = String::from_utf8_lossy(&router.stderr);
    assert!(
        router.status.code() == Some(2) && said.contains("both would write train.jsonl"),
        "{said}"
    );
    assert_eq!(log(), before);
}

#[test]
fn weights_go_on_with_other_pictures() {
    let spec: ModelSpec = "bundled".parse().unwrap();
    let state = checkpoint::load_state(&spec, LoadOptions::default()).unwrap();
    let shape = |name: &str, state: &StateDict| state.tensors[name].len();
    let name = "x_embedder.proj.weight";
    let before = state.clone();
    // As many tokens, of other numbers.
    let (other, begun) = before.clone().for_pictures([4, 16, 16], 2, 3).unwrap();
    assert_eq!(begun.len(), 4, "{begun:?}");
    assert_eq!(shape(name, &before) / 48, shape(name, &other) / 16);
    assert_eq!(other.config.tokens(), before.config.tokens());
    let kept = before.tensors.keys().filter(|name| !begun.contains(name));
    assert!(kept.clone().count() > 100);
    assert!(
        kept.into_iter()
            .all(|name| before.tensors[name] == other.tensors[name])
    );
    // A last layer that has learned nothing says nothing, as in a fresh network.
    assert!(
        other.tensors["final_layer.linear.weight"]
            .iter()
            .all(|v| *v == 0.0)
    );
    // Larger pictures of the same patches: all is kept.
    let (larger, begun) = before.clone().for_pictures([3, 64, 64], 4, 3).unwrap();
    assert!(begun.is_empty() && larger.tensors == before.tensors);
    assert_eq!(larger.config.input_size, [64, 64]);
    // Patches that do not fill a picture.
    let refused = before
        .for_pictures([3, 30, 30], 4, 3)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("describes no DiT"), "{refused}");
}

/// A folder's classes come in the order of the alphabet, whatever order the network learned them in.
#[test]
fn classes_are_known_again_by_their_names() {
    const LABELS: &str = "y_embedder.embedding_table.weight";
    let before = checkpoint::load_state(&ModelSpec::Bundled, LoadOptions::default()).unwrap();
    let row = |state: &StateDict, class: usize| {
        let table = &state.tensors[LABELS];
        let width = table.len() / (state.config.classes + 1);
        table[class * width..(class + 1) * width].to_vec()
    };
    let mut names = before.class_names.clone();
    names.sort();
    names.truncate(40);
    names.push("dragon".into());
    let (after, known) = before.clone().for_classes(&names, 3).unwrap();
    assert_eq!((known, after.config.classes), (40, 41));
    assert_eq!(after.class_names, names);
    for (class, name) in names.iter().enumerate() {
        let learned = before.class_names.iter().position(|known| known == name);
        match learned {
            Some(learned) => assert_eq!(row(&after, class), row(&before, learned), "{name}"),
            None => assert!((0..46).all(|known| row(&after, class) != row(&before, known))),
        }
    }
    // The null class, which guidance needs.
    assert_eq!(row(&after, 41), row(&before, 46));
    let rest = |state: &StateDict| {
        let rest = state.tensors.iter().filter(|(name, _)| *name != LABELS);
        rest.map(|(name, values)| (name.clone(), values.clone()))
            .collect::<HashMap<_, _>>()
    };
    assert!(rest(&after) == rest(&before));
    // Without names, and with the same ones, nothing changes.
    let (same, known) = before.clone().for_classes(&before.class_names, 3).unwrap();
    assert!(same == before && known == 46);
    let (same, _) = before.clone().for_classes(&[], 3).unwrap();
    assert!(same == before);
}

#[test]
fn a_killed_training_ends_with_the_same_losses_and_weights() {
    let at = tempfile::tempdir().unwrap();
    a_killed_training_is_the_training(
        "train dit --device cpu --image-size 8 --blocks 2 --hidden 32 --patch 2 --batch 8 --steps 80 --save-every 0 -q",
        &folder(at.path()),
        80,
        "checkpoint.safetensors",
        &["model.safetensors"],
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_a_training() {
    use std::process::{Command, Stdio};
    let at = tempfile::tempdir().unwrap();
    let pictures = folder(at.path());
    let out = at.path().join("run");
    let child = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args([
            "train",
            "dit",
            "--device",
            "cpu",
            "--image-size",
            "8",
            "--blocks",
            "1",
            "--hidden",
            "16",
        ])
        .args([
            "--patch",
            "2",
            "--batch",
            "4",
            "--minutes",
            "30",
            "--data",
            pictures.to_str().unwrap(),
        ])
        .args(["--out", out.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(2000));
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{said}");
    let saved =
        harmonica::training::network::SavedRun::read(&out.join("checkpoint.safetensors")).unwrap();
    assert!(saved.steps > 0 && saved.seconds > 0.5, "{saved:?}");
    let log = std::fs::read_to_string(out.join("train.jsonl")).unwrap();
    assert_eq!(log.lines().count() as u64, saved.steps);
}
