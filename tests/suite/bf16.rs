//! Weights in bf16 on the CPU, against golden values of PyTorch (`tests/golden/make_bf16.py`), by whatever multiplies them on this
//! processor; the unit tests of `kernels::bf16` hold both ways to a reference in f64.

use harmonica::{
    checkpoint::{self, Kept, LoadOptions, ModelSpec, Residence, load_model_in},
    device::Engine,
    metrics::psnr,
};
use serde_json::Value;

use crate::{
    common::{golden, harmonica, harmonica_json, sample_bundled, tensor, within},
    quant::{NETWORKS, a_dry_run_counts, a_picture_is_drawn_again, load, output, relative},
};

const FILE: &str = "bf16.safetensors";
const BF16: [&str; 2] = ["--dtype", "bf16"];

fn bf16(max_bytes: Option<u64>) -> Residence {
    Residence {
        kept: Kept::Bf16,
        max_bytes,
    }
}

#[test]
fn networks_in_bf16_are_those_of_pytorch_with_the_same_rounding() {
    let source = checkpoint::open(&golden(FILE)).unwrap();
    let twin_is_off = |network: &str| -> f64 {
        let said = &source.metadata()[&format!("{network}.error")];
        said.parse().unwrap()
    };
    let engine = Engine::cpu();
    let units = engine.hardware().bf16_units;
    println!("measured: this processor has units for bf16: {units}");
    let options = LoadOptions::default();
    let bundled = load_model_in(&ModelSpec::Bundled, options, bf16(None), engine.device());
    let (bundled, info) = bundled.unwrap();
    assert_eq!(info.resident.kept, Kept::Bf16);
    let mut models = vec![("bundled", bundled)];
    for (network, file, heads) in NETWORKS {
        models.push((network, load(file, heads, bf16(None), engine.device())));
    }
    for (network, model) in models {
        let (found, in_f32) = output(network, &model);
        // The order of sums shows in the bundled model's outputs, but hardly in their error.
        if network != "bundled" {
            let expected = tensor(FILE, &format!("{network}.out")).1;
            let off = relative(&found, &expected);
            within(format!("{network} in bf16, CPU"), off, 5e-4);
        }
        let (error, twin) = (rms_relative(&found, &in_f32), twin_is_off(network));
        println!("measured: {network}, f32 to bf16: {error:.2e}, PyTorch {twin:.2e}");
        // Without the rounding of what is multiplied it is 0.5 to 0.7 of that.
        assert!((error / twin - 1.0).abs() < 0.1, "{error:e}, twin {twin:e}");
    }
}

/// The root of the mean square of a difference, over that of what is expected.
fn rms_relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let off: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (off / expected.iter().map(|v| square(*v)).sum::<f64>()).sqrt()
}

#[test]
fn weights_in_bf16_take_half_wherever_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let sample =
        |schedule: &str, more: &[&str]| sample_bundled(folder.path(), "cpu", schedule, more);
    let (full, report_full) = sample("none", &[]);
    let (found, report) = sample("none", &BF16);
    assert_eq!(
        [&report["weights"], &report_full["weights"]],
        ["bf16", "f32"]
    );
    assert_eq!(report["fingerprint"], report_full["fingerprint"]);
    let psnr = psnr(&full, &found);
    println!("measured: pictures in bf16 and f32, 4 steps: {psnr:.1} dB");
    assert!((40.0..100.0).contains(&psnr), "{psnr}");
    let bytes = |report: &Value| report["weights_device_bytes"].as_u64().unwrap();
    let (whole, whole_full) = (bytes(&report), bytes(&report_full));
    assert!((0.5..0.56).contains(&(whole as f64 / whole_full as f64)));
    let quarter = (whole / 4).to_string();
    for schedule in ["none", "fora:2"] {
        let (here, _) = sample(schedule, &BF16);
        let limited = [&BF16[..], &["--max-memory", &quarter]].concat();
        let (waiting, report) = sample(schedule, &limited);
        assert_eq!(here, waiting, "{schedule}");
        assert!(bytes(&report) <= whole / 4);
        let waits = report["weights_host_bytes"].as_u64().unwrap();
        assert_eq!(bytes(&report) + waits, whole);
    }
}

#[test]
fn a_dry_run_counts_what_a_run_in_bf16_keeps() {
    a_dry_run_counts("bf16", &BF16, "5M");
}

#[test]
fn a_picture_in_bf16_is_drawn_again_in_bf16() {
    a_picture_is_drawn_again("bf16", &BF16, &["f32"]);
}

#[test]
fn bf16_on_a_gpu_is_refused_with_what_to_pass() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.png");
    let draw = [
        "sample",
        "--device",
        "vulkan",
        "--out",
        out.to_str().unwrap(),
    ];
    for dry in [&["--dry-run"][..], &[]] {
        let run = harmonica(&[&draw[..], dry, &BF16].concat());
        let said = String::from_utf8_lossy(&run.stderr);
        let expected = "error: bundled: weights in bf16 are for the CPU; on this device keep them in f16, or in f32 (--dtype f16, or --device cpu)";
        assert!(said.lines().any(|line| line == expected), "{said}");
        assert_eq!(run.status.code(), Some(1));
    }
}

#[test]
fn devices_and_doctor_say_whether_the_processor_has_units_for_bf16() {
    let units = Engine::cpu().hardware().bf16_units;
    let devices = harmonica_json(&["devices", "--json"]);
    assert_eq!(devices["cpu"]["bf16_units"], units);
    let run = harmonica(&["doctor", "--device", "cpu"]);
    let said = String::from_utf8_lossy(&run.stdout);
    let line = "units for bf16: --dtype bf16 multiplies by them";
    assert_eq!(said.contains(line), units, "{said}");
}

#[test]
fn a_router_is_trained_on_bf16_and_its_schedule_says_so() {
    let (model, folder) = (golden("tiny-a.pt"), tempfile::tempdir().unwrap());
    let out = folder.path().join("run");
    let flags = format!(
        "train router --recipe harmonica --device cpu --heads 4 --steps 3 --batch 1 --beta 1e-3 --passes 1 --dtype bf16 --model {} --out {}",
        model.display(),
        out.display()
    );
    let trained = harmonica(&flags.split(' ').collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&trained.stderr);
    assert!(trained.status.success(), "{said}");
    let schedule = std::fs::read(out.join("router.schedule.json")).unwrap();
    let schedule: Value = serde_json::from_slice(&schedule).unwrap();
    assert_eq!(schedule["training"]["weights"], "bf16");
}
