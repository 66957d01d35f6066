//! Weights that wait on the host, and weights in half precision: the same pictures, less memory.

use harmonica::{
    checkpoint::{Kept, LoadOptions, ModelSpec, Residence, load_model_in},
    device::Engine,
    metrics::{max_abs_error, psnr},
};
use serde_json::Value;

use crate::common::{
    engines, forward, golden, harmonica, harmonica_json, integers, sample_bundled, tensor, vulkan,
    within,
};

#[test]
fn weights_that_wait_draw_the_same_pictures() {
    let folder = tempfile::tempdir().unwrap();
    for device in ["cpu", "vulkan"] {
        let (all_here, report) = sample_bundled(folder.path(), device, "none", &[]);
        let whole = report["weights_device_bytes"].as_u64().unwrap();
        assert_eq!(
            (&report["weights_host_bytes"], &report["sent_bytes"]),
            (&0.into(), &0.into())
        );
        let quarter = (whole / 4).to_string();
        let limited = ["--max-memory", &*quarter];
        let (waiting, report) = sample_bundled(folder.path(), device, "none", &limited);
        assert_eq!(all_here, waiting);
        let at = |key: &str| report[key].as_u64().unwrap();
        assert!(at("weights_device_bytes") <= whole / 4);
        assert_eq!(at("weights_device_bytes") + at("weights_host_bytes"), whole);
        let (reusing, _) = sample_bundled(folder.path(), device, "fora:2", &[]);
        let (both, report_reusing) = sample_bundled(folder.path(), device, "fora:2", &limited);
        assert_eq!(reusing, both);
        // Half of the steps reuse everything, and send nothing: as much is sent as in half as many steps.
        let (_, half) = sample_bundled(folder.path(), device, "steps:2", &limited);
        let sent = |report: &Value| report["sent_bytes"].as_u64().unwrap();
        assert_eq!(sent(&report_reusing), sent(&half));
        // Every step sends all that a step needs of what waits; vectors of adaLN are made once.
        let (_, one) = sample_bundled(folder.path(), device, "steps:1", &limited);
        let a_step = sent(&half) - sent(&one);
        assert_eq!(sent(&report), sent(&one) + 3 * a_step);
        assert!(a_step > 0 && a_step < at("weights_host_bytes"));
    }
}

#[test]
fn half_precision_takes_half_and_costs_little() {
    let folder = tempfile::tempdir().unwrap();
    for device in ["cpu", "vulkan"] {
        let (full, report) = sample_bundled(folder.path(), device, "none", &[]);
        let (half, report_half) =
            sample_bundled(folder.path(), device, "none", &["--dtype", "f16"]);
        let bytes = |report: &Value| report["weights_device_bytes"].as_f64().unwrap();
        let share = bytes(&report_half) / bytes(&report);
        assert!(share < 0.56, "{share}");
        // The bundled weights are f16 to begin with; matrix units round what they are multiplied by as well.
        let units = device == "vulkan" && vulkan().hardware().matrix_units;
        if units {
            let psnr = psnr(&full, &half);
            assert!(psnr > 50.0, "{psnr}");
        } else {
            assert_eq!(full, half);
        }
        let (_, report_auto) = sample_bundled(folder.path(), device, "none", &["--dtype", "auto"]);
        let auto = match device {
            "vulkan" if units => "f16",
            "cpu" if Engine::cpu().hardware().bf16_units => "bf16",
            _ => "f32",
        };
        assert_eq!(report_auto["weights"], auto);
        let expected = if auto == "f32" { &report } else { &report_half };
        assert_eq!(bytes(&report_auto), bytes(expected));
        let quarter = (bytes(&report_half) / 4.0).to_string();
        let (waiting, _) = sample_bundled(
            folder.path(),
            device,
            "none",
            &["--dtype", "f16", "--max-memory", &quarter],
        );
        assert_eq!(half, waiting);
    }
}

#[test]
fn weights_in_half_precision_err_by_their_rounding() {
    let file = "diffusers-single.io.safetensors";
    let (x, t, y) = (tensor(file, "x"), tensor(file, "t").1, integers(file, "y"));
    let (_, out) = tensor(file, "out");
    let largest = out.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
    for (device, engine) in engines() {
        let residence = Residence {
            kept: Kept::F16,
            max_bytes: None,
        };
        let spec = ModelSpec::Path(golden("diffusers-single"));
        let options = LoadOptions::default();
        let (model, _) = load_model_in(&spec, options, residence, engine.device()).unwrap();
        let found = forward(&model, &x, &t, &y);
        let error = max_abs_error(&found, &out) / largest;
        within(format!("forward, f16 weights, {device}"), error, 2e-3);
        assert!(error > 1e-5, "{error}: nothing was rounded");
    }
}

#[test]
fn a_limit_that_cannot_be_kept_says_the_least() {
    let run = |limit: &str| {
        let out = harmonica(&[
            "sample",
            "--device",
            "cpu",
            "--steps",
            "1",
            "-n",
            "1",
            "--max-memory",
            limit,
        ]);
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let (code, said) = run("100K");
    assert_eq!(code, Some(1));
    let expected = "error: bundled: at most 100000 bytes of weights on the device are too few: what belongs to no block and the largest matrix of one take ";
    assert!(said.contains(expected), "{said}");
    let (code, said) = run("much");
    assert_eq!(code, Some(2));
    assert!(
        said.contains("expected a number of bytes such as 800M or 2G"),
        "{said}"
    );
}

#[test]
fn a_dry_run_says_what_a_run_takes() {
    let folder = tempfile::tempdir().unwrap();
    let of = |report: &Value, what: &str| -> Value {
        let parts = report["memory"]["parts"].as_array().unwrap();
        parts
            .iter()
            .find(|part| part["what"] == what)
            .unwrap()
            .clone()
    };
    let dry = |more: &[&str]| {
        harmonica_json(&[&["sample", "--dry-run", "--device", "cpu", "--json"], more].concat())
    };
    let run = [
        "-n",
        "2",
        "--steps",
        "4",
        "--schedule",
        "fora:2",
        "--max-memory",
        "9M",
    ];
    let report = dry(&run);
    let weights = of(&report, "weights");
    let out = folder.path().join("x.png");
    let real = [
        &[
            "sample",
            "--device",
            "cpu",
            "--json",
            "--out",
            out.to_str().unwrap(),
        ],
        &run[..],
    ];
    let real = harmonica_json(&real.concat());
    assert_eq!(weights["device_bytes"], real["weights_device_bytes"]);
    assert_eq!(weights["host_bytes"], real["weights_host_bytes"]);
    assert_eq!(
        of(&report, "cache")["device_bytes"],
        real["peak_cache_bytes"]
    );
    // Published sizes, whose weights are nowhere.
    let report = dry(&["--model", "random:DiT-XL/2@256", "-n", "1"]);
    let bytes = of(&report, "weights")["device_bytes"].as_u64().unwrap();
    assert!((2_690_000_000..2_710_000_000).contains(&bytes), "{bytes}");
    // Latents of 8, pictures of 32, texts and their encoder.
    let model = golden("diffusers-single");
    let vae = golden("vae/kl");
    let report = dry(&[
        "--model",
        model.to_str().unwrap(),
        "--vae",
        vae.to_str().unwrap(),
    ]);
    assert!(of(&report, "decoding")["device_bytes"].as_u64().unwrap() > 4 * 3 * 32 * 32);
    // Lavapipe binds 128 MiB.
    let large = harmonica(&[
        "sample",
        "--dry-run",
        "--device",
        "vulkan",
        "--model",
        "random:DiT-XL/2@1024",
        "-n",
        "16",
        "--batch",
        "16",
    ]);
    let said = String::from_utf8_lossy(&large.stderr);
    if vulkan().report().max_buffer_bytes > Some(604_000_000) {
        assert_eq!(large.status.code(), Some(0), "{said}");
        return;
    }
    // Lavapipe has buffers of 128 MiB.
    assert_eq!(large.status.code(), Some(2), "{said}");
    assert!(said.contains("activations need a buffer of 0.604 GB, and the largest of this device is 0.134 GB; try --batch"), "{said}");
}
