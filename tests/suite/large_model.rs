//! DiT-XL/2 at its real size.

use crate::common::{harmonica, harmonica_json, peak_rss};

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
    let (peak, out) = peak_rss(&[
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
    let text = String::from_utf8_lossy(&out.stderr);
    let ratio = peak as f64 / (parameters * 4) as f64;
    println!(
        "{text}peak RSS {:.2} GB, {ratio:.3} of the weights in f32",
        peak as f64 / 1e9
    );
    assert!(ratio <= 1.25, "peak RSS is {ratio:.3} of the weights");
    assert!(picture.is_file());
}
