//! Weights of a byte a number, against golden values of numpy and PyTorch (`tests/golden/make_quant.py`) and against themselves:
//! wherever they lie, the same numbers.

use burn::tensor::{Device, Tensor, TensorData};
use harmonica::{
    checkpoint::{
        self, Kept, LoadOptions, ModelSpec, Residence, ResidenceError, load_model_in,
        model_outline, read_named_tensors,
    },
    kernels::{QuantisedData, dequantise, quantised_product},
    metrics::max_abs_error,
    models::{self, Condition, Model, TensorSpec},
};
use serde_json::Value;

use crate::{
    common::{
        engines, golden, harmonica, harmonica_json, integers, sample_bundled, tensor, within,
    },
    pixart::texts,
};

const FILE: &str = "quant.safetensors";
/// Of outputs, relative to the largest.
const BOUND: f64 = 1e-4;

/// Networks of the golden file: name, weights, attention heads.
pub const NETWORKS: [(&str, &str, usize); 2] = [
    ("dit", "tiny-a.pt", 4),
    ("pixart", "pixart-original.pth", 3),
];

pub fn load(file: &str, heads: usize, residence: Residence, device: &Device) -> Model {
    let options = LoadOptions {
        heads: Some(heads),
        input_size: None,
    };
    let spec = ModelSpec::Path(golden(file));
    load_model_in(&spec, options, residence, device).unwrap().0
}

fn q8(max_bytes: Option<u64>) -> Residence {
    Residence {
        kept: Kept::Q8,
        max_bytes,
    }
}

/// What a network makes of the inputs that the golden file is of, and what it makes with f32 weights.
pub fn output(network: &str, model: &Model) -> (Vec<f32>, Vec<f32>) {
    let (io, prefix) = match network {
        "dit" => ("tiny-a.io.safetensors", ""),
        "pixart" => ("pixart.io.safetensors", "alpha."),
        _ => ("bundled.safetensors", "fwd_"),
    };
    let name = |name: &str| format!("{prefix}{name}");
    let conditions = match network {
        "pixart" => texts(io, &name("text"), &name("mask")),
        _ => Condition::classes(&integers(io, &name("y"))),
    };
    let (shape, x) = tensor(io, &name("x"));
    let shape: [usize; 4] = shape.try_into().unwrap();
    let x = Tensor::from_data(TensorData::new(x, shape), &model.device());
    let times = tensor(io, &name("t")).1;
    let found = read(models::forward(&**model, x, &times, &conditions));
    (found, tensor(io, &name("out")).1)
}

fn read<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_data().unwrap().try_into_vec().unwrap()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, v| most.max(v.abs()))
}

pub fn relative(found: &[f32], expected: &[f32]) -> f64 {
    f64::from(max_abs_error(found, expected) / largest(expected))
}

/// `[rows, columns]` to `[columns, rows]`.
fn turned<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let column = |c: usize| values.iter().skip(c).step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}

#[test]
fn weights_become_the_bytes_that_numpy_makes_of_them() {
    let source = checkpoint::open(&golden(FILE)).unwrap();
    let names: Vec<String> = source.entries().map(|e| e.name.clone()).collect();
    let mut seen = 0;
    for (network, file, _) in NETWORKS {
        let prefix = format!("{network}.");
        for name in names.iter().filter_map(|name| name.strip_prefix(&prefix)) {
            let Some(name) = name.strip_suffix(".q") else {
                continue;
            };
            let numbers = integers(FILE, &format!("{network}.{name}.q"));
            let scales = tensor(FILE, &format!("{network}.{name}.scale")).1;
            let inputs = numbers.len() / scales.len();
            let expected: Vec<f32> = numbers
                .iter()
                .enumerate()
                .map(|(i, byte)| f32::from(*byte as u8 as i8) * scales[i / inputs])
                .collect();
            let weight = read_named_tensors(&golden(file), &[name])
                .unwrap()
                .remove(0);
            assert_eq!(weight.0, [scales.len(), inputs], "{name}");
            let data = QuantisedData::of(&turned(&weight.1, inputs), [inputs, scales.len()]);
            let bytes = numbers.len() + 4 * scales.len();
            assert_eq!(data.bytes(), bytes as u64, "{name}");
            for (device, engine) in engines() {
                let wide = read(dequantise(&data.clone().into_device(engine.device())));
                assert_eq!(turned(&wide, scales.len()), expected, "{name} on {device}");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 5 + 7, "matrices of a block of both networks");
}

#[test]
fn products_are_those_of_the_widened_matrix() {
    // A number; a last word that is not full; threads; several panels of columns, the last one narrower.
    for [rows, inputs, outputs] in [[1, 1, 1], [3, 5, 7], [64, 192, 330], [6, 4100, 300]] {
        let wave = |count: usize, by: f32| -> Vec<f32> {
            (0..count).map(|i| (i as f32 * by).sin()).collect()
        };
        let (x, weight) = (wave(rows * inputs, 0.7), wave(inputs * outputs, 1.3));
        let data = QuantisedData::of(&weight, [inputs, outputs]);
        let wide = read(dequantise(&data.clone().into_device(&Device::flex())));
        let product = |row: usize, column: usize| -> f64 {
            let term =
                |k: usize| f64::from(x[row * inputs + k]) * f64::from(wide[k * outputs + column]);
            (0..inputs).map(term).sum()
        };
        let expected: Vec<f32> = (0..rows * outputs)
            .map(|i| product(i / outputs, i % outputs) as f32)
            .collect();
        // Of the sum of the products.
        let slopes: Vec<f32> = wide.chunks(outputs).map(|row| row.iter().sum()).collect();
        for (device, engine) in engines() {
            let matrix = data.clone().into_device(engine.device());
            let shape = [1, rows, inputs];
            let x = || Tensor::<3>::from_data(TensorData::new(x.clone(), shape), engine.device());
            let found = quantised_product(x(), &matrix);
            assert_eq!(found.dims(), [1, rows, outputs]);
            let error = max_abs_error(&read(found), &expected) / largest(&expected).max(1.0);
            let what = format!("product in bytes, {rows}·{inputs}·{outputs}, {device}");
            within(what, error, 4e-5);
            // Training a router differentiates what goes through it.
            let leaf = x().autodiff().require_grad();
            let mut gradients = quantised_product(leaf.clone(), &matrix).sum().backward();
            let slope = read(leaf.grad_remove(&mut gradients).unwrap());
            assert_eq!(slope.len(), rows * inputs);
            let error = max_abs_error(&slope, &slopes.repeat(rows)) / largest(&slopes).max(1.0);
            within(
                format!("its gradient, {rows}·{inputs}·{outputs}, {device}"),
                error,
                1e-4,
            );
        }
    }
}

#[test]
fn networks_in_bytes_are_those_of_pytorch_with_the_same_rounded_weights() {
    let source = checkpoint::open(&golden(FILE)).unwrap();
    let twin_is_off = |network: &str| -> f64 {
        source.metadata()[&format!("{network}.error")]
            .parse()
            .unwrap()
    };
    for (device, engine) in engines() {
        for (network, file, heads) in NETWORKS {
            let model = load(file, heads, q8(None), engine.device());
            let (found, in_f32) = output(network, &model);
            let expected = tensor(FILE, &format!("{network}.out")).1;
            within(
                format!("{network} in bytes, {device}"),
                relative(&found, &expected),
                BOUND,
            );
            let error = relative(&found, &in_f32);
            let twin = twin_is_off(network);
            assert!(
                (error / twin - 1.0).abs() < 0.05,
                "{error:e}, twin {twin:e}"
            );
        }
        let options = LoadOptions::default();
        let (model, info) =
            load_model_in(&ModelSpec::Bundled, options, q8(None), engine.device()).unwrap();
        assert_eq!(info.resident.kept, Kept::Q8);
        let (found, in_f32) = output("bundled", &model);
        // The golden file has the second of four images.
        let expected = tensor(FILE, "bundled.out").1;
        let second = &found[expected.len()..2 * expected.len()];
        within(
            format!("bundled in bytes, {device}"),
            relative(second, &expected),
            BOUND,
        );
        let (error, twin) = (relative(&found, &in_f32), twin_is_off("bundled"));
        println!("measured: bundled, f32 to q8, {device}: {error:.2e}, PyTorch {twin:.2e}");
        assert!(
            (error / twin - 1.0).abs() < 0.05,
            "{error:e}, twin {twin:e}"
        );
    }
}

/// Bytes of weights by the tensors of a network: those of blocks in bytes, and all others.
fn bytes(tensors: &[TensorSpec]) -> [u64; 2] {
    let is_in_block = |t: &&TensorSpec| {
        t.name.starts_with("blocks.") && t.name.ends_with(".weight") && t.shape.len() == 2
    };
    let in_bytes = tensors.iter().filter(is_in_block);
    let in_bytes = in_bytes.map(|t| t.numbers().next_multiple_of(4) + 4 * t.shape[0]);
    let others = tensors.iter().filter(|t| !is_in_block(t));
    [
        in_bytes.sum::<usize>() as u64,
        4 * others.map(TensorSpec::numbers).sum::<usize>() as u64,
    ]
}

/// The least that `--max-memory` can be.
fn least(kept: Kept, tensors: &[TensorSpec]) -> u64 {
    let residence = Residence {
        kept,
        max_bytes: Some(1),
    };
    match residence.resident(tensors, &Device::flex()) {
        Err(ResidenceError::Limit { least, .. }) => least,
        other => panic!("{other:?}"),
    }
}

#[test]
fn networks_whose_bytes_wait_compute_the_same_bits() {
    for (device, engine) in engines() {
        for (network, file, heads) in NETWORKS {
            let here = output(network, &load(file, heads, q8(None), engine.device())).0;
            let options = LoadOptions {
                heads: Some(heads),
                input_size: None,
            };
            let info = model_outline(&ModelSpec::Path(golden(file)), options).unwrap();
            let tensors = info.architecture.tensors();
            let least = least(Kept::Q8, &tensors);
            for limit in [least, least + bytes(&tensors)[0] / 2] {
                let model = load(file, heads, q8(Some(limit)), engine.device());
                assert_eq!(output(network, &model).0, here, "{network}, {device}");
            }
        }
    }
}

#[test]
fn bytes_are_counted_exactly_and_a_quarter_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let info = model_outline(&ModelSpec::Bundled, LoadOptions::default()).unwrap();
    let tensors = info.architecture.tensors();
    let [in_bytes, others] = bytes(&tensors);
    let of = |report: &Value, key: &str| report[key].as_u64().unwrap();
    for device in ["cpu", "vulkan"] {
        let quant = ["--quant", "q8"];
        let (here, report) = sample_bundled(folder.path(), device, "none", &quant);
        assert_eq!(of(&report, "weights_device_bytes"), in_bytes + others);
        assert_eq!(of(&report, "weights_host_bytes"), 0);
        let (full, report_f32) = sample_bundled(folder.path(), device, "none", &[]);
        assert_ne!(here, full);
        assert_eq!(report["fingerprint"], report_f32["fingerprint"]);
        assert_eq!([&report["weights"], &report_f32["weights"]], ["q8", "f32"]);
        // Everything of blocks waits: a run of one step sends all of it once.
        let sent = |kept: Kept, more: &[&str]| {
            let limit = least(kept, &tensors).to_string();
            let limited = [more, &["--max-memory", &limit]].concat();
            let (_, report) = sample_bundled(folder.path(), device, "steps:1", &limited);
            assert_eq!(of(&report, "weights_device_bytes"), others);
            assert_eq!(of(&report, "sent_bytes"), of(&report, "weights_host_bytes"));
            of(&report, "sent_bytes")
        };
        let (q8, f32) = (sent(Kept::Q8, &quant), sent(Kept::F32, &[]));
        assert_eq!(q8, in_bytes);
        let share = q8 as f64 / f32 as f64;
        assert!((0.25..0.26).contains(&share), "{share}");
        // The same images, also where most is reused.
        let limit = least(Kept::Q8, &tensors).to_string();
        let limited = [&quant[..], &["--max-memory", &limit]].concat();
        assert_eq!(
            sample_bundled(folder.path(), device, "none", &limited).0,
            here
        );
        let (reusing, _) = sample_bundled(folder.path(), device, "fora:2", &quant);
        let (both, _) = sample_bundled(folder.path(), device, "fora:2", &limited);
        assert_eq!(reusing, both);
    }
}

/// That a dry run with `flags` counts what a run keeps, with a bound on the device's memory and without, and calls it `kept`.
pub fn a_dry_run_counts(kept: &str, flags: &[&str], bound: &str) {
    let folder = tempfile::tempdir().unwrap();
    for more in [&[][..], &["--max-memory", bound]] {
        let flags = [flags, more].concat();
        let dry = ["sample", "--dry-run", "--device", "cpu", "--json"];
        let dry = harmonica_json(&[&dry[..], &["--steps", "4", "-n", "2"], &flags].concat());
        let (_, run) = sample_bundled(folder.path(), "cpu", "none", &flags);
        let weights = &dry["memory"]["parts"][0];
        assert_eq!(weights["what"], "weights");
        assert_eq!(dry["weights"], kept);
        assert_eq!(weights["device_bytes"], run["weights_device_bytes"]);
        assert_eq!(weights["host_bytes"], run["weights_host_bytes"]);
        let waits = run["weights_host_bytes"].as_u64().unwrap() > 0;
        assert_eq!(waits, !more.is_empty());
    }
}

/// That a picture drawn with `flags` says that its weights were `kept` so and is drawn again so, and otherwise where `--dtype` says
/// one of `others`.
pub fn a_picture_is_drawn_again(kept: &str, flags: &[&str], others: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (first, again) = (path("first.png"), path("again.png"));
    let draw = |more: &[&str]| {
        let base = ["sample", "--device", "cpu", "--json"];
        harmonica_json(&[&base[..], more].concat())
    };
    let run = ["--steps", "2", "-n", "1", "--out", first.as_str()];
    draw(&[&run[..], flags].concat());
    let report = draw(&["--from", &first, "--out", &again]);
    assert_eq!(report["weights"], kept);
    let [bytes, again] = [&first, &again].map(|path| std::fs::read(path).unwrap());
    assert_eq!(bytes, again);
    // Another way of keeping them takes the place of the picture's.
    for dtype in others {
        let out = path("other.png");
        let report = draw(&["--from", &first, "--dtype", dtype, "--out", &out]);
        assert_eq!(report["weights"], *dtype);
    }
}

#[test]
fn a_dry_run_counts_the_bytes_that_a_run_keeps() {
    a_dry_run_counts("q8", &["--quant", "q8"], "3M");
}

#[test]
fn a_picture_in_bytes_is_drawn_again_in_bytes() {
    a_picture_is_drawn_again("q8", &["--quant", "q8"], &["f16", "f32"]);
}

#[test]
fn bytes_and_half_precision_exclude_each_other() {
    for command in [
        &["sample", "--dry-run"][..],
        &["sample"],
        &["bench"],
        &["compare", "--schedules", "fora:2"],
        &["train", "router"],
    ] {
        for dtype in ["f16", "bf16"] {
            let both = ["--device", "cpu", "--quant", "q8", "--dtype", dtype];
            let out = harmonica(&[command, &both].concat());
            let said = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(2), "{command:?}: {said}");
            let expected = format!(
                "--quant q8 keeps the weights of blocks in a byte a number, --dtype {dtype} in two; pass one of them"
            );
            assert!(said.contains(&expected), "{command:?}: {said}");
        }
    }
}

#[test]
fn every_row_names_what_weights_are_kept_in() {
    for (kept, flags) in [("q8", &["--quant", "q8"][..]), ("f32", &[])] {
        let run = ["--device", "cpu", "--steps", "2", "--json"];
        let bench = ["bench", "--schedules", "fora:2", "--runs", "1"];
        let compare = [
            "compare",
            "--schedules",
            "fora:2",
            "--count",
            "2",
            "--no-fewer-steps",
        ];
        for command in [&bench[..], &compare] {
            let report = harmonica_json(&[command, &run, flags].concat());
            let rows = report["rows"].as_array().unwrap();
            assert_eq!(rows.len(), 2, "{command:?}");
            assert!(rows.iter().all(|row| row["weights"] == kept), "{rows:?}");
        }
    }
}

#[test]
fn a_router_is_trained_on_bytes_and_its_schedule_says_so() {
    let model = golden("tiny-a.pt");
    for device in ["cpu", "vulkan"] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let train = |more: &[&str]| {
            let run = [
                "train",
                "router",
                "--recipe",
                "harmonica",
                "--device",
                device,
                "--model",
                model.to_str().unwrap(),
                "--heads",
                "4",
                "--steps",
                "3",
                "--batch",
                "1",
                "--beta",
                "1e-3",
                "--out",
                out.to_str().unwrap(),
            ];
            harmonica(&[&run[..], more].concat())
        };
        let trained = train(&["--quant", "q8", "--passes", "1"]);
        let said = String::from_utf8_lossy(&trained.stderr);
        assert!(trained.status.success(), "{said}");
        let schedule = std::fs::read(out.join("router.schedule.json")).unwrap();
        let schedule: Value = serde_json::from_slice(&schedule).unwrap();
        assert_eq!(schedule["training"]["weights"], "q8");
        // It goes on with the weights that it began with.
        let other = train(&["--resume", "--passes", "2"]);
        let said = String::from_utf8_lossy(&other.stderr);
        assert_eq!(other.status.code(), Some(2), "{said}");
        assert!(
            said.contains("was trained with weights in q8, this command says f32"),
            "{said}"
        );
        let same = train(&["--resume", "--passes", "2", "--quant", "q8"]);
        let said = String::from_utf8_lossy(&same.stderr);
        assert!(same.status.success(), "{said}");
    }
}

#[test]
fn a_ladder_searched_on_bytes_says_so_and_goes_on_with_them() {
    let (model, folder) = (golden("tiny-a.pt"), tempfile::tempdir().unwrap());
    let out = folder.path().join("ladder");
    let train = |more: &[&str]| {
        let run = [
            "train",
            "router",
            "--device",
            "cpu",
            "--model",
            model.to_str().unwrap(),
            "--heads",
            "4",
            "--steps",
            "4",
            "--draws",
            "4",
            "--sweeps",
            "0",
            "--target-speedup",
            "2",
            "--out",
            out.to_str().unwrap(),
        ];
        let run = harmonica(&[&run[..], more].concat());
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        (run.status.code(), said)
    };
    let (code, said) = train(&["--quant", "q8"]);
    assert_eq!(code, Some(0), "{said}");
    let schedules: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".schedule.json"))
        .collect();
    assert_eq!(schedules.len(), 1, "{schedules:?}");
    let schedule = std::fs::read(&schedules[0]).unwrap();
    let schedule: Value = serde_json::from_slice(&schedule).unwrap();
    assert_eq!(schedule["training"]["weights"], "q8");
    let (code, said) = train(&["--resume"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("was trained with weights in q8, this command says f32"),
        "{said}"
    );
    let (code, said) = train(&["--resume", "--quant", "q8"]);
    assert_eq!(code, Some(0), "{said}");
}
