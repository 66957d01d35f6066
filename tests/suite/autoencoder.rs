//! Training an autoencoder: against PyTorch and diffusers, resumed, and by the command.

use std::{collections::HashMap, path::Path, time::Duration};

use harmonica::{
    checkpoint::{self, StoredDtype},
    models::vae::{Tiling, Vae},
    training::{
        TrainingError,
        network::{
            Length,
            autoencoder::{
                VaeBatch, VaeFolder, VaeLearner, VaeOptions, VaeRun, VaeSettings, VaeStart,
            },
        },
    },
};

use crate::{
    common::{
        a_killed_training_is_the_training, engines, golden, harmonica, harmonica_json,
        of_a_later_format, tensor, within,
    },
    pretrain_data::{folder, open},
};

const GOLDEN: &str = "vae-train.safetensors";
const SHAPE: [usize; 3] = [3, 24, 20];

/// What `make_train.py` trains.
fn start() -> VaeStart {
    let (config, weights) = Vae::read_weights(&golden("vae").join("kl")).unwrap();
    VaeStart::From(config, weights)
}

/// How.
fn recipe() -> VaeSettings {
    VaeSettings {
        batch: 2,
        lr: 2e-3,
        warmup: Some(1),
        beta1: 0.9,
        beta2: 0.99,
        clip: 0.5,
        kl_weight: 0.03,
        gradient_weight: 0.7,
        area_weight: 1.3,
        ..Default::default()
    }
}

/// The golden batches; theirs of noise are `[B, C, h, w]`.
fn batches() -> Vec<VaeBatch> {
    let (images, noise) = (tensor(GOLDEN, "images"), tensor(GOLDEN, "noise"));
    let [steps, batch, c, h, w] = noise.0[..] else {
        panic!("{:?}", noise.0)
    };
    let images = images.1.chunks(images.1.len() / steps);
    let noise = noise.1.chunks(batch * c * h * w);
    let turned = |planes: &[f32]| -> Vec<f32> {
        let picture = |planes: &[f32]| -> Vec<f32> {
            let at = |cell: usize, channel: usize| planes[channel * h * w + cell];
            let cell = |cell: usize| (0..c).map(move |channel| at(cell, channel));
            (0..h * w).flat_map(cell).collect()
        };
        planes.chunks(c * h * w).flat_map(picture).collect()
    };
    images
        .zip(noise)
        .map(|(images, noise)| VaeBatch {
            shape: SHAPE,
            images: images.to_vec(),
            noise: turned(noise),
        })
        .collect()
}

/// All tensors of the golden file whose names begin so, by the rest of the name.
fn named(prefix: &str) -> HashMap<String, Vec<f32>> {
    let mut source = checkpoint::open(&golden(GOLDEN)).unwrap();
    let names: Vec<String> = source
        .entries()
        .filter_map(|e| e.name.strip_prefix(prefix).map(str::to_owned))
        .collect();
    let read = |name: String| {
        let values = source.read_f32(&format!("{prefix}{name}")).unwrap();
        (name, values)
    };
    names.into_iter().map(read).collect()
}

/// The largest difference, relative to the largest number of all tensors.
fn error(found: &HashMap<String, Vec<f32>>, expected: &HashMap<String, Vec<f32>>) -> f64 {
    assert_eq!(found.len(), expected.len());
    let all = expected.values().flatten();
    let largest = all.fold(0.0f32, |most, v| most.max(v.abs()));
    let differences = expected.iter().flat_map(|(name, expected)| {
        let found = &found[name];
        assert_eq!(found.len(), expected.len(), "{name}");
        found.iter().zip(expected).map(|(a, b)| (a - b).abs())
    });
    f64::from(differences.fold(0.0, f32::max) / largest)
}

#[test]
fn gradients_and_steps_are_pytorchs() {
    let (gradients, after) = (named("grad."), named("after."));
    let (_, figures) = tensor(GOLDEN, "losses");
    for (name, engine) in engines() {
        let mut learner = VaeLearner::new(start(), recipe(), engine.device()).unwrap();
        let (_, found) = learner.gradient(&batches()[0]).unwrap();
        within(
            format!("autoencoder's gradients, {name}"),
            error(&found, &gradients),
            2e-5,
        );
        for (batch, expected) in batches().iter().zip(figures.chunks(6)) {
            let learned = learner.learn(batch, 0.0).unwrap();
            let found = [
                learned.loss,
                learned.error,
                learned.edges,
                learned.areas,
                learned.kl,
                learned.grad_norm,
            ];
            let relative = found.iter().zip(expected);
            let relative = relative.map(|(a, b)| (a / f64::from(*b) - 1.0).abs());
            let worst = relative.fold(0.0, f64::max);
            within(format!("autoencoder's losses, {name}"), worst, 5e-5);
        }
        let (mut found, mut after) = (learner.weights().unwrap(), after.clone());
        // Softmax does not see a bias of all keys: its gradient is what rounding leaves, and AdamW follows that at full length.
        for weights in [&mut found, &mut after] {
            weights.retain(|name, _| !name.ends_with("to_k.bias"));
        }
        within(
            format!("autoencoder's weights after three steps, {name}"),
            error(&found, &after),
            3e-5,
        );
    }
}

fn options(at: &Path, steps: u64, resume: bool) -> VaeOptions {
    VaeOptions {
        folder: VaeFolder::new(at),
        settings: VaeSettings {
            length: Length::Steps(steps),
            ema: 0.5,
            ..recipe()
        },
        resume,
        save_every: Duration::from_secs(3600),
        dtype: StoredDtype::F32,
    }
}

/// What a run writes is an autoencoder that gives back what the training said that it would.
#[test]
fn a_run_leaves_an_autoencoder() {
    let at = tempfile::tempdir().unwrap();
    let data = open(&folder(at.path()), Some(8)).unwrap();
    let [(_, engine), _] = engines();
    let out = at.path().join("run");
    let mut run = VaeRun::open(&data, start(), options(&out, 3, false), engine.device()).unwrap();
    for event in &mut run {
        event.unwrap();
    }
    let shape = data.shape();
    let mut picture = vec![0.0; shape.iter().product()];
    data.read(1, Default::default(), &mut picture).unwrap();
    let [means, back] = run.learner().there_and_back(&picture, shape).unwrap();
    drop(run);

    let vae = Vae::open(&out, engine.device()).unwrap();
    let latents = vae.encode(&picture, shape).unwrap();
    let again = vae
        .decode(&latents, [4, 2, 2], Tiling::Whole, &mut || true)
        .unwrap();
    let largest = |a: &[f32], b: &[f32]| harmonica::metrics::max_abs_error(a, b);
    within(
        "pictures of a trained autoencoder",
        largest(&again, &back),
        1e-5,
    );
    // Latents are scaled to a standard deviation of 1 over the pictures of the data.
    let mut all = Vec::new();
    for index in 0..data.len() {
        data.read(index, Default::default(), &mut picture).unwrap();
        all.extend(vae.encode(&picture, shape).unwrap());
    }
    let count = all.len() as f32;
    let mean = all.iter().sum::<f32>() / count;
    let deviation = (all.iter().map(|z| (z - mean).powi(2)).sum::<f32>() / count).sqrt();
    within("mean of its latents", mean.abs(), 1e-4);
    within("their deviation from 1", (deviation - 1.0).abs(), 1e-4);
    assert!(
        means
            .iter()
            .zip(&latents)
            .any(|(a, b)| (a - b).abs() > 1e-3)
    );
}

#[test]
fn a_resumed_run_is_the_run() {
    let at = tempfile::tempdir().unwrap();
    let data = open(&folder(at.path()), Some(8)).unwrap();
    let [(_, engine), _] = engines();
    let run = |out: &Path, steps, resume| {
        VaeRun::open(&data, start(), options(out, steps, resume), engine.device())
    };
    let finish = |out: &Path, steps, resume| {
        for event in run(out, steps, resume).unwrap() {
            event.unwrap();
        }
    };
    let whole = at.path().join("whole");
    finish(&whole, 4, false);
    assert!(matches!(
        run(&whole, 4, false),
        Err(TrainingError::Exists { .. })
    ));
    assert!(matches!(
        run(&at.path().join("none"), 4, true),
        Err(TrainingError::NothingToResume { .. })
    ));
    let mut other = options(&whole, 4, true);
    other.settings.kl_weight = 1.0;
    let refused = VaeRun::open(&data, start(), other, engine.device()).unwrap_err();
    assert!(
        refused.to_string().contains("kl_weight 0.03, not 1.0"),
        "{refused}"
    );
    // A run of another length has other learning rates; one that is longer goes on.
    finish(&whole, 6, true);
    let checkpoint = whole.join("autoencoder.safetensors");
    of_a_later_format(&checkpoint);
    let later = run(&whole, 8, true).unwrap_err().to_string();
    assert!(later.contains("has format 2"), "{later}");
}

#[test]
fn the_command_trains_an_autoencoder_for_a_dit_that_draws() {
    let at = tempfile::tempdir().unwrap();
    let pictures = folder(at.path());
    let path = |name: &str| at.path().join(name).to_str().unwrap().to_owned();
    let (data, vae, dit) = (pictures.to_str().unwrap(), path("vae"), path("dit"));
    let usual = [
        "train", "vae", "--data", data, "--out", &vae, "--device", "cpu",
    ];
    let small = "--image-size 8 --widths 4,8 --groups 2 --batch 4 --steps 3 --dtype f16 --json";
    let small: Vec<&str> = small.split(' ').collect();
    let summary = harmonica_json(&[&usual[..], &small].concat());
    assert_eq!(
        (&summary["steps"], &summary["images"]),
        (&3.into(), &12.into())
    );
    assert!(summary["error"].as_f64().unwrap() > 0.0);
    for name in ["curve.png", "samples.png"] {
        image::open(Path::new(&vae).join(name)).unwrap();
    }
    // Without a word about data, network and recipe, a run goes on as it was.
    let resume = ["train", "vae", "--resume", "--out", &vae, "--steps", "5"];
    let longer = harmonica_json(&[&resume[..], &["--device", "cpu", "--json"]].concat());
    assert_eq!(longer["steps"], 5);

    let network = "--image-size 8 --blocks 1 --hidden 16 --patch 2 --batch 4 --steps 2";
    let network: Vec<&str> = network.split(' ').collect();
    let usual = [
        "train", "dit", "--data", data, "--out", &dit, "--device", "cpu", "--vae", &vae,
    ];
    let out = harmonica(&[&usual[..], &network].concat());
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    // A run knows its autoencoder, and goes on from the latents that it made: others in their file are another data set.
    let latents = Path::new(&dit).join("latents.safetensors");
    let kept = std::fs::read(&latents).unwrap();
    let resume = ["train", "dit", "--resume", "--out", &dit, "--device", "cpu"];
    let goes_on =
        |steps: &str| harmonica_json(&[&resume[..], &["--steps", steps, "--json"]].concat());
    assert_eq!(goes_on("3")["steps"], 3);
    let mut others = kept.clone();
    let last = others.len() - 4;
    others[last..].copy_from_slice(&0.25f32.to_le_bytes());
    std::fs::write(&latents, &others).unwrap();
    let out = harmonica(&[&resume[..], &["--steps", "4"]].concat());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("data of identity"),
        "{said}"
    );
    // Of what a damaged file held nobody knows: the run goes on from the same latents made anew, and leaves it.
    std::fs::write(&latents, &kept[..kept.len() - 8]).unwrap();
    assert_eq!(goes_on("4")["steps"], 4);
    std::fs::remove_file(&latents).unwrap();
    assert_eq!(goes_on("5")["steps"], 5);
    assert!(std::fs::read(&latents).unwrap() == kept);
    let picture = path("picture.png");
    let out = harmonica(&[
        "sample",
        "--model",
        &dit,
        "--vae",
        &vae,
        "--device",
        "cpu",
        "--count",
        "1",
        "--steps",
        "2",
        "--schedule",
        "none",
        "--out",
        &picture,
    ]);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let drawn = image::open(&picture).unwrap();
    assert_eq!((drawn.width(), drawn.height()), (8, 8));
}

#[test]
fn what_no_autoencoder_learns_from_is_refused() {
    let at = tempfile::tempdir().unwrap();
    let pictures = folder(at.path());
    let data = pictures.to_str().unwrap();
    let out = at.path().join("vae");
    let latents = at.path().join("latents.safetensors");
    let values = [("latents", vec![2, 4, 2, 2], vec![0.5; 32])];
    checkpoint::write_tensors(&latents, &values).unwrap();
    let cases: [(&[&str], i32, &str); 7] = [
        (
            &["--data", data, "--image-size", "12"],
            2,
            "--image-size is 12, expected a multiple of 8",
        ),
        (
            &[
                "--data",
                data,
                "--image-size",
                "8",
                "--widths",
                "4,6",
                "--groups",
                "4",
            ],
            2,
            "its width 6 is no multiple of the 4 groups",
        ),
        (
            &["--data", latents.to_str().unwrap()],
            2,
            "an autoencoder learns from pictures",
        ),
        (
            &["--data", data, "--image-size", "8", "--batch", "0"],
            2,
            "--batch is 0, expected a whole number of at least 1",
        ),
        (
            &["--data", data, "--image-size", "8", "--kl-weight", "-1"],
            2,
            "--kl-weight is -1, expected a finite number of at least 0",
        ),
        (&["--resume"], 2, "holds no run to resume"),
        (
            &["--data", data, "--image-size", "8", "--init", data],
            1,
            "the folder holds neither",
        ),
    ];
    for (flags, code, expected) in cases {
        let usual = ["train", "vae", "--device", "cpu", "--out"];
        let refused = harmonica(&[&usual[..], &[out.to_str().unwrap()], flags].concat());
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            refused.status.code() == Some(code) && said.contains(expected),
            "{flags:?}: {said}"
        );
        assert!(!out.exists(), "{flags:?}");
    }
}

#[test]
fn a_killed_training_ends_with_the_same_losses_and_weights() {
    let at = tempfile::tempdir().unwrap();
    a_killed_training_is_the_training(
        "train vae --device cpu --image-size 8 --widths 4,8 --groups 2 --batch 4 --steps 60 --save-every 0 -q",
        &folder(at.path()),
        60,
        "autoencoder.safetensors",
        &["diffusion_pytorch_model.safetensors", "config.json"],
    );
}
