//! DiT-XL/2 at its real size.

use crate::common::{harmonica, harmonica_json};

/// Peak resident set of a child, in bytes.
#[cfg(target_os = "linux")]
fn peak_rss(arguments: &[&str]) -> (u64, String) {
    use std::{process::Command, process::Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // VmHWM never falls, so the last value seen before the end is the peak up to that moment.
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with("VmHWM:"));
        let kib = line
            .and_then(|l| l.split_whitespace().nth(1))
            .and_then(|n| n.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{text}");
    (peak, text)
}

#[cfg(target_os = "linux")]
#[test]
fn xl_2_loads_from_f16_within_a_quarter_above_its_weights_and_steps() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("xl.safetensors");
    let path = file.to_str().unwrap();
    let made = harmonica(&["convert", "--model", "random:DiT-XL/2@256", "--out", path]);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let description = harmonica_json(&["inspect", path, "--json"]);
    let parameters = description["model"]["parameters"].as_u64().unwrap();
    assert_eq!((parameters as f64 / 1e6).round(), 675.0);
    assert!(std::fs::metadata(&file).unwrap().len() < parameters * 2 + (1 << 20));

    let picture = folder.path().join("xl.png");
    let (peak, text) = peak_rss(&[
        "sample",
        "--model",
        path,
        "--device",
        "cpu",
        "--steps",
        "1",
        "--count",
        "1",
        "--out",
        picture.to_str().unwrap(),
    ]);
    let ratio = peak as f64 / (parameters * 4) as f64;
    println!(
        "{text}peak RSS {:.2} GB, {ratio:.3} of the weights in f32",
        peak as f64 / 1e9
    );
    assert!(ratio <= 1.25, "peak RSS is {ratio:.3} of the weights");
    assert!(picture.is_file());
}
