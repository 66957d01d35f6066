//! Training a DiT: against PyTorch, resumed, from every kind of data, and by the command.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use harmonica::{
    checkpoint::{self, LoadOptions, ModelSpec, StateDict, StoredDtype, load_model, write_tensors},
    device::Engine,
    dit::{DitConfig, NORM_EPS},
    training::{
        TrainingError,
        pretrain::{
            Augmentation, Batch, DataOptions, Dataset, Learner, Length, Precision, PretrainEvent,
            PretrainFolder, PretrainOptions, PretrainRun, PretrainSettings, PretrainStart,
            center_crop,
        },
    },
};
use image::{Rgb, RgbImage};

use crate::common::{engines, golden, harmonica, harmonica_json, integers, tensor};

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
                assert!(error < 1e-4, "{device}: {losses:?} against {figures:?}");
            }
            assert_eq!(found.len(), expected.len());
            let mut worst: f64 = 0.0;
            for (name, theirs) in &expected {
                let error = relative(&found[name], theirs);
                assert!(
                    error < 1e-4,
                    "{device}, micro-batch {micro_batch}, checkpointing {gradient_checkpointing}: {name} is off by {error:.1e}"
                );
                worst = worst.max(error);
            }
            println!(
                "{device}, micro-batch {micro_batch}, checkpointing {gradient_checkpointing}: gradients within {worst:.1e}"
            );
        }
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
    assert!(
        error < 1e-4,
        "{} against {}",
        learned.grad_norm,
        expected[1]
    );
}

/// Clipping, AdamW with weight decay, and the average, over three batches.
#[test]
fn three_steps_are_pytorchs() {
    let (after, average, before) = (named("after."), named("ema."), named("weight."));
    let figures = tensor(GOLDEN, "losses").1;
    for (device, engine) in engines() {
        let mut learner = Learner::new(&start(), recipe(), engine.device()).unwrap();
        for (batch, figures) in batches().iter().zip(figures.chunks(3)) {
            let learned = learner.learn(batch, 2e-3).unwrap();
            let losses = [learned.mse, learned.vlb, learned.grad_norm];
            for (ours, theirs) in losses.iter().zip(figures) {
                let error = (ours / f64::from(*theirs) - 1.0).abs();
                assert!(error < 2e-4, "{device}: {losses:?} against {figures:?}");
            }
        }
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
                assert!(
                    error < 1e-4,
                    "{device}, average {average}: {name} is off by {error:.1e}"
                );
                let moved = |to: &[f32]| -> Vec<f32> {
                    to.iter().zip(&origin).map(|(a, b)| a - b).collect()
                };
                let error = relative(&moved(&ours), &moved(&theirs));
                assert!(
                    error < 5e-3,
                    "{device}, average {average}: {name} moved {error:.1e} otherwise"
                );
            }
        }
    }
}

#[test]
fn pictures_are_cropped_as_pillow_crops_them() {
    let mut source = checkpoint::open(&golden("crop.safetensors")).unwrap();
    let mut read = |name: &str| {
        let shape = source.get(name).unwrap().shape.clone();
        let bytes: Vec<u8> = source
            .read_i64(name)
            .unwrap()
            .into_iter()
            .map(|v| u8::try_from(v).unwrap())
            .collect();
        RgbImage::from_raw(shape[1] as u32, shape[0] as u32, bytes).unwrap()
    };
    for i in 0..5 {
        let (input, expected) = (read(&format!("in.{i}")), read(&format!("out.{i}")));
        let found = center_crop(input, 24);
        assert_eq!(found.dimensions(), expected.dimensions());
        let worst = found
            .as_raw()
            .iter()
            .zip(expected.as_raw())
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(worst <= Some(1), "picture {i} differs by {worst:?} levels");
    }
}

/// A picture of one colour with a dark left column.
fn picture(side: u32, colour: [u8; 3]) -> RgbImage {
    RgbImage::from_fn(side, side, |x, _| Rgb(if x == 0 { [0; 3] } else { colour }))
}

fn save(path: &Path, image: &RgbImage) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save(path).unwrap();
}

/// Two classes of three pictures each, 8×8, and a file that is no picture.
fn folder(at: &Path) -> PathBuf {
    let path = at.join("pictures");
    for i in 0..3u8 {
        save(
            &path.join(format!("b-blue/{i}.png")),
            &picture(8, [0, 10 * i, 255]),
        );
        save(
            &path.join(format!("a-red/{i}.png")),
            &picture(8, [255, 10 * i, 0]),
        );
    }
    std::fs::write(path.join("a-red/broken.jpg"), b"no picture").unwrap();
    std::fs::write(
        path.join("a-red/notes.txt"),
        b"not a picture, and not asked for",
    )
    .unwrap();
    path
}

fn open(path: &Path, image_size: Option<usize>) -> Result<Dataset, String> {
    let options = DataOptions {
        image_size,
        ..Default::default()
    };
    let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
    Dataset::open(path, &options, go_on).map_err(|e| e.to_string())
}

fn values(data: &Dataset, index: usize, change: Augmentation) -> Vec<f32> {
    let mut out = vec![0.0; data.shape().iter().product()];
    data.read(index, change, &mut out).unwrap();
    out
}

#[test]
fn a_folder_of_classes_is_read_and_a_corrupt_file_named() {
    let at = tempfile::tempdir().unwrap();
    let path = folder(at.path());
    let data = open(&path, Some(8)).unwrap();
    assert_eq!(data.class_names(), ["a-red", "b-blue"]);
    assert_eq!(
        (data.len(), data.shape(), data.counts()),
        (6, [3, 8, 8], vec![3, 3])
    );
    assert_eq!(data.skipped().len(), 1);
    assert_eq!(data.skipped()[0].path, path.join("a-red/broken.jpg"));
    // The same on disk.
    let options = DataOptions {
        image_size: Some(8),
        memory: 0,
    };
    let spilled = Dataset::open(&path, &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(spilled.identity(), data.identity());
    for i in 0..6 {
        let plain = Augmentation::default();
        assert_eq!(values(&data, i, plain), values(&spilled, i, plain));
    }
    let red = values(&data, 0, Augmentation::default());
    assert_eq!(red[..3], [-1.0, 1.0, 1.0]);
    let mirrored = values(
        &data,
        0,
        Augmentation {
            mirror: true,
            shift: [0, 0],
        },
    );
    assert_eq!(mirrored[5..8], [1.0, 1.0, -1.0]);
    let shifted = values(
        &data,
        0,
        Augmentation {
            mirror: false,
            shift: [2, -1],
        },
    );
    assert_eq!(shifted[..4], [-1.0, -1.0, -1.0, 1.0]);
}

#[test]
fn a_flat_folder_is_one_class() {
    let at = tempfile::tempdir().unwrap();
    let path = folder(at.path()).join("b-blue");
    let data = open(&path, None).unwrap();
    assert_eq!(
        (data.len(), data.classes(), data.shape()),
        (3, 1, [3, 64, 64])
    );
    assert_eq!(data.class_names(), ["b-blue"]);
}

#[test]
fn transparent_pictures_lie_on_white() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("glass");
    std::fs::create_dir_all(&path).unwrap();
    let glass = image::RgbaImage::from_pixel(4, 4, image::Rgba([0, 0, 0, 51]));
    glass.save(path.join("0.png")).unwrap();
    let data = open(&path, Some(4)).unwrap();
    assert_eq!(
        values(&data, 0, Augmentation::default())[0],
        204.0 / 127.5 - 1.0
    );
}

#[test]
fn an_atlas_is_cut_into_its_tiles() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path();
    // Three tiles in rows of two, the last place white.
    let mut atlas = RgbImage::from_pixel(16, 16, Rgb([255; 3]));
    for (i, (x, y)) in [(0, 0), (8, 0), (0, 8)].into_iter().enumerate() {
        let tile = picture(8, [50 * i as u8, 0, 0]);
        image::imageops::replace(&mut atlas, &tile, x, y);
    }
    save(&path.join("dots.png"), &atlas);
    save(&path.join("more.png"), &picture(8, [9, 9, 9]));
    let index = r#"{"tile": 8, "columns": 2, "classes": [
        {"id": 1, "name": "more", "tiles": 1}, {"id": 0, "name": "dots", "tiles": 3}]}"#;
    std::fs::write(path.join("classes.json"), index).unwrap();
    let data = open(path, None).unwrap();
    assert_eq!(data.class_names(), ["dots", "more"]);
    assert_eq!((data.shape(), data.counts()), ([3, 8, 8], vec![3, 1]));
    let red = |i| values(&data, i, Augmentation::default())[1];
    assert_eq!(
        [red(0), red(1), red(2)],
        [0.0, 50.0, 100.0].map(|v: f32| v / 127.5 - 1.0)
    );
    // Half as large.
    assert_eq!(open(path, Some(4)).unwrap().shape(), [3, 4, 4]);

    let wrong = |index: &str, text: &str| {
        std::fs::write(path.join("classes.json"), index).unwrap();
        let error = open(path, None).unwrap_err();
        assert!(error.contains(text), "{error}");
    };
    wrong("{", "classes.json is no atlas: EOF");
    wrong(
        r#"{"tile": 8, "columns": 2, "classes": [{"id": 1, "name": "dots", "tiles": 3}]}"#,
        "ids that are not 0 to 0: `dots` has 1",
    );
    wrong(
        r#"{"tile": 8, "columns": 2, "classes": [{"id": 0, "name": "dots", "tiles": 5}]}"#,
        "dots.png is 16×16 pixels, but 5 tiles of 8 in rows of 2 take 16×24",
    );
    wrong(
        r#"{"tile": 8, "columns": 2, "classes": [{"id": 0, "name": "gone", "tiles": 5}]}"#,
        "there is no gone.png beside it",
    );
    wrong(
        r#"{"tile": 8, "columns": 2, "classes": [{"id": 0, "name": "../dots", "tiles": 5}]}"#,
        "`../dots` is no class name",
    );
}

#[test]
fn latents_are_read_as_they_are() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("latents.safetensors");
    let latents: Vec<f32> = (0..2 * 4 * 2 * 2).map(|i| i as f32 / 4.0).collect();
    let tensors = [("latents", vec![2, 4, 2, 2], latents.clone())];
    write_tensors(&path, &tensors).unwrap();
    let data = open(&path, None).unwrap();
    assert_eq!(
        (data.shape(), data.classes(), data.is_pixels()),
        ([4, 2, 2], 1, false)
    );
    assert_eq!(values(&data, 1, Augmentation::default()), latents[16..]);
    write_tensors(&path, &[("latents", vec![2, 4], latents[..8].to_vec())]).unwrap();
    let error = open(&path, None).unwrap_err();
    assert!(
        error.ends_with("`latents` is [2, 4], expected [N,C,H,W]"),
        "{error}"
    );
    write_tensors(&path, &[("other", vec![1], vec![0.0])]).unwrap();
    let error = open(&path, None).unwrap_err();
    assert!(
        error.ends_with("expected a tensor `latents` [N,C,H,W], found other"),
        "{error}"
    );
}

#[test]
fn bad_data_is_refused_with_its_reason() {
    let at = tempfile::tempdir().unwrap();
    let shown = at.path().display().to_string();
    let said = |path: &Path| open(path, Some(8)).unwrap_err().replace(&shown, "{}");
    assert!(said(&at.path().join("nowhere")).starts_with("cannot read {}/nowhere: "));
    let empty = at.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert_eq!(
        said(&empty),
        "{}/empty holds no pictures: expected a folder with one sub-folder a class, an atlas (classes.json), a folder of \
         .png, .jpg or .webp files, or a .safetensors file of latents"
    );
    let path = folder(at.path());
    save(&path.join("stray.png"), &picture(8, [1, 2, 3]));
    assert_eq!(
        said(&path),
        "{}/pictures holds both pictures (stray.png) and sub-folders of pictures (a-red): expected one sub-folder a class, \
         or pictures alone"
    );
    std::fs::remove_file(path.join("stray.png")).unwrap();
    std::fs::create_dir(path.join("c-torn")).unwrap();
    std::fs::write(path.join("c-torn/0.png"), b"torn").unwrap();
    let error = said(&path);
    assert!(
        error.starts_with(
            "class `c-torn` of {}/pictures has no readable picture; {}/pictures/c-torn/0.png: "
        ),
        "{error}"
    );
}

fn options(folder: &Path, steps: u64, resume: bool) -> PretrainOptions {
    PretrainOptions {
        folder: PretrainFolder::new(folder),
        settings: PretrainSettings {
            length: Length::Steps(steps),
            batch: 4,
            micro_batch: 3,
            warmup: 2,
            shift: 1,
            balance: 0.5,
            ..Default::default()
        },
        resume,
        save_every: Duration::from_secs(3600),
        sample_every: None,
        dtype: StoredDtype::F32,
    }
}

fn small() -> PretrainStart {
    PretrainStart::Fresh(DitConfig {
        classes: 2,
        ..tiny()
    })
}

#[test]
fn a_resumed_run_is_the_run() {
    let at = tempfile::tempdir().unwrap();
    let data = open(&folder(at.path()), Some(8)).unwrap();
    for balance in [0.0, 0.5] {
        let (whole, parts) = (
            at.path().join(format!("whole-{balance}")),
            at.path().join(format!("parts-{balance}")),
        );
        let engine = Engine::cpu();
        let begin = |folder: &Path, resume| {
            let mut options = options(folder, 6, resume);
            options.settings.balance = balance;
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
        "the network takes 4 classes, the data has 2: an --init model must have been made for these classes",
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
        "--precision is f16, expected f32: this device does not compute in that type",
    );
    let mut wrong = options(&run, 1, false);
    wrong.settings.balance = 2.0;
    refused(
        small(),
        wrong,
        "--balance is 2, expected a number from 0 to 1",
    );
    PretrainRun::open(&data, small(), options(&run, 1, false), engine.device()).unwrap();
    refused(
        small(),
        options(&run, 1, false),
        "holds a run already; pass --resume",
    );
    let mut other = options(&run, 1, true);
    other.settings.lr = 1.0;
    refused(
        small(),
        other,
        "was trained with --lr 0.0005, this command says 1.0",
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

    let model = out.join("model.safetensors");
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
    let drawn = at.path().join("drawn.png");
    let sampled = harmonica_json(&[
        "sample",
        "--model",
        model.to_str().unwrap(),
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
        &["--resume", "--minutes", "0"],
        "--minutes is 0, expected a finite number above 0",
    );
    refused(
        &["--resume", "--hidden", "32"],
        "was trained with the network",
    );
    refused(&["--steps", "1", "--minutes", "1"], "cannot be used with");
    refused(&["--size", "DiT-S/3"], "unknown size `DiT-S/3`");
    refused(&["--save-every", "-1"], "--save-every");
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
        harmonica::training::pretrain::SavedRun::read(&out.join("checkpoint.safetensors")).unwrap();
    assert!(saved.steps > 0 && saved.seconds > 0.5, "{saved:?}");
    let log = std::fs::read_to_string(out.join("train.jsonl")).unwrap();
    assert_eq!(log.lines().count() as u64, saved.steps);
}
