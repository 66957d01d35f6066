//! `compare` and `bench`: the rows they share, and the page.

use harmonica::report::comparison::nearest_steps;
use serde_json::Value;

use crate::common::{golden, harmonica, harmonica_json};

/// Seven names that would be markup, were they not text.
const NAMES: [&str; 7] = [
    "</script><script>alert(1)</script>",
    "<img src=x>",
    "a & b",
    "\"quoted\"",
    "it's",
    "/* DATA */ /* STYLE */",
    "ночь\u{2028}",
];

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter()
        .map(|row| row["schedule"].as_str().unwrap())
        .collect()
}

#[test]
fn a_comparison_adds_fewer_steps_and_says_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let list = serde_json::to_string(&NAMES).unwrap();
    std::fs::write(path("names.json"), list).unwrap();
    let converted = harmonica(&[
        "convert",
        "--model",
        golden("tiny-a.pt").to_str().unwrap(),
        "--heads",
        "4",
        "--class-names",
        &path("names.json"),
        "--out",
        &path("named.safetensors"),
    ]);
    assert!(converted.status.success());
    let done = harmonica(&[
        "compare",
        "--device",
        "cpu",
        "--model",
        &path("named.safetensors"),
        "--steps",
        "6",
        "--count",
        "7",
        "--schedules",
        "fora:2,fb:1e-9,fb:1e9,steps:1",
        "--truth",
        "12",
        "--csv",
        &path("rows.csv"),
        "--film",
        &path("film.png"),
        "--html",
        &path("compare.html"),
        "--pictures",
        "6",
        "--plot",
        &path("front.png"),
        "--json",
    ]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let schedules = names(rows);
    assert_eq!(schedules[0], "none");
    assert_eq!((schedules[1], schedules[4]), ("fora:2", "steps:1"));

    // Every row that saves work stands beside the nearest number of steps, once.
    for row in rows {
        let ratio = row["macs_ratio"].as_f64().unwrap();
        if let Some(steps) = nearest_steps(6, ratio) {
            let beside = format!("steps:{steps}");
            let there = schedules.iter().filter(|name| **name == beside).count();
            assert_eq!(there, 1, "{ratio}: {schedules:?}");
        }
    }
    // That of a run that decides as it goes on is known late.
    assert!(rows[3]["cur"].as_f64().unwrap() > 0.3, "{}", rows[3]);
    assert!(rows.len() > 5);

    // Rows hold what they held, and what is new.
    for row in &rows[1..] {
        for key in [
            "mse_standard_error",
            "mse_median",
            "mse_max",
            "ssim",
            "seconds",
            "speedup",
            "mse_true",
        ] {
            assert!(row[key].is_number(), "{key}: {row}");
        }
        let number = |key: &str| row[key].as_f64().unwrap();
        assert!(
            number("speedup_min") <= number("speedup")
                && number("speedup") <= number("speedup_max")
        );
        assert!(row["on_front"].is_boolean());
    }
    // The errors of the same images make the difference to a rival.
    let mse = |name: &str| {
        let row = rows.iter().find(|row| row["schedule"] == name);
        row.unwrap()["mse"].as_f64().unwrap()
    };
    let rival = rows[1]["rival"].as_str().unwrap();
    let difference = rows[1]["rival_difference"].as_f64().unwrap();
    assert!((difference - (mse("fora:2") - mse(rival))).abs() < 1e-9 * mse(rival).max(1.0));
    // The uncached images are their own, and nothing that saves no work is nearer.
    assert_eq!(
        (&rows[0]["mse"], &rows[0]["on_front"]),
        (&0.0.into(), &true.into())
    );
    assert_eq!(rows[0]["speedup"], 1.0);

    // A policy that never engages is told; so is what was found.
    let idle = rows[2]["warnings"].to_string();
    assert!(idle.contains("never reused anything") && said.contains("never reused anything"));
    assert!(said.contains("smallest error at each speed: "), "{said}");
    assert_eq!(
        report["verdict"][0].as_str().unwrap().split(':').next(),
        Some("smallest error at each speed")
    );

    let csv = std::fs::read_to_string(path("rows.csv")).unwrap();
    assert_eq!(csv.lines().count(), rows.len() + 1);
    assert!(csv.starts_with("schedule,policy,kind,") && csv.contains("\r\nfora:2,fora,policy,6,"));
    assert!(image::open(path("front.png")).unwrap().width() > 500);

    // Five rows, a frame for each of the six steps' work.
    let film = std::fs::File::open(path("film.png")).unwrap();
    let film = png::Decoder::new(std::io::BufReader::new(film));
    let film = film.read_info().unwrap();
    let moves = film
        .info()
        .animation_control()
        .map(|control| control.num_frames);
    assert_eq!(moves, Some(6));
    let film = image::open(path("film.png")).unwrap();
    assert!(film.width() > 6 * 96 && film.height() > 5 * 96);
    let html = std::fs::read_to_string(path("compare.html")).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
    for elsewhere in ["://", "src=\"", "href=", "@import", "url("] {
        assert!(!html.contains(elsewhere), "{elsewhere}");
    }
    assert_eq!(html.matches("<script").count(), 2);
    assert_eq!(html.matches("</script>").count(), 2);
    let start = "<script id=\"data\" type=\"application/json\">";
    let data = html
        .split_once(start)
        .unwrap()
        .1
        .split_once("</script>")
        .unwrap()
        .0;
    assert!(!data.contains(['<', '>', '&']));
    let data: Value = serde_json::from_str(data).unwrap();
    let shown = data["rows"].as_array().unwrap();
    assert_eq!(names(shown), schedules);
    let captions: Vec<_> = data["captions"].as_array().unwrap().iter().collect();
    assert_eq!(captions, NAMES[..6].iter().collect::<Vec<_>>());
    for row in shown {
        let pictures = row["pictures"].as_array().unwrap();
        assert_eq!(pictures.len(), 6);
        let start = "data:image/png;base64,";
        assert!(
            pictures
                .iter()
                .all(|p| p.as_str().unwrap().starts_with(start))
        );
    }
    // Uncached and reused pictures are others; two blocks of two branches have six rows of four cells.
    assert_ne!(shown[0]["pictures"], shown[1]["pictures"]);
    assert_eq!(
        shown[1]["map"]["rows"],
        serde_json::json!(["####", "....", "####", "....", "####", "...."])
    );
    assert_eq!(
        shown[3]["map"]["reused"],
        serde_json::json!([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    );
    assert_eq!(data["sites"].as_array().unwrap().len(), 4);
}

#[test]
fn compare_and_bench_have_the_same_figures() {
    let tiny = golden("tiny-a.pt");
    let of = |flags: &[&str]| {
        let fixed = [
            "--device",
            "cpu",
            "--model",
            tiny.to_str().unwrap(),
            "--heads",
            "4",
            "--steps",
            "4",
            "--json",
        ];
        harmonica_json(&[flags, &fixed[..]].concat())
    };
    let compared = of(&[
        "compare",
        "--count",
        "3",
        "--schedules",
        "fora:2",
        "--no-fewer-steps",
    ]);
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let timed = of(&[
        "bench",
        "--runs",
        "3",
        "--schedules",
        "none,fora:2",
        "--report",
        report.to_str().unwrap(),
    ]);
    // The report is the same figures and what they are of, without the user's folders.
    let report = std::fs::read_to_string(report).unwrap();
    let whole: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(whole["bench"], timed);
    let device = &whole["machine"]["device"];
    assert_eq!(device["device"], timed["device"]);
    let kernels = device["kernels"].as_array().unwrap();
    assert!(kernels.len() > 10 && kernels.iter().all(|kernel| kernel["difference"].is_f64()));
    assert_eq!(whole["machine"]["version"], env!("CARGO_PKG_VERSION"));
    let home = std::env::var("HOME").unwrap();
    assert!(whole["machine"].get("caches").is_none() && !report.contains(&format!("{home}/")));
    assert_eq!(
        (
            names(compared["rows"].as_array().unwrap()),
            names(timed["rows"].as_array().unwrap())
        ),
        (vec!["none", "fora:2"], vec!["none", "fora:2"])
    );
    let row = |report: &Value| report["rows"][1].as_object().unwrap().clone();
    let (compared, timed) = (row(&compared), row(&timed));
    let keys: Vec<&String> = compared.keys().collect();
    // What one run does, part by part, is bench's alone, after what both have.
    let more = [
        "max_abs_error_uncached",
        "adaln_bytes_read",
        "plan",
        "parts",
    ];
    let all: Vec<&String> = timed.keys().collect();
    assert_eq!(all[..keys.len()], keys);
    assert_eq!(all[keys.len()..], more);
    for key in [
        "cur",
        "macs_ratio",
        "policy",
        "steps",
        "peak_cache_bytes",
        "all_features_bytes",
    ] {
        assert_eq!(compared[key], timed[key], "{key}");
    }
    for key in [
        "median_s",
        "min_s",
        "max_s",
        "speedup",
        "speedup_min",
        "speedup_max",
        "efficiency",
        "dispatches_per_run",
    ] {
        assert!(timed[key].is_number(), "{key}");
    }
}

#[test]
fn a_comparison_refuses_what_makes_no_sense() {
    let refused = |flags: &[&str], text: &str| {
        let done = harmonica(
            &[
                &["compare", "--device", "cpu", "--schedules", "fora:2"],
                flags,
            ]
            .concat(),
        );
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.code() == Some(2) && said.contains(text),
            "{flags:?}: {said}"
        );
    };
    refused(&["--count", "0"], "--count is 0");
    refused(
        &["--html", "a.html", "--pictures", "65"],
        "--pictures is 65, expected at most 64",
    );
    // Pictures are on the page alone.
    refused(&["--pictures", "2"], "--html");
}
