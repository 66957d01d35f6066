//! Schedule files: made, imported, shown, refused where they do not fit.

use harmonica::schedule::{ReleasedKind, Schedule, ScheduleFile, router_from_release};

use crate::common::{golden, harmonica, harmonica_json, integers, tensor};

#[test]
fn released_routers_import_in_execution_order() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = golden("tiny-a.pt");
    for (file, kind, expected) in [
        ("harmonica-router.pt", "harmonica", "schedule"),
        ("router-bare.pt", "harmonica", "schedule"),
        ("l2c-router.pt", "learning-to-cache", "l2c_schedule"),
    ] {
        let out = folder.path().join(format!("{file}.schedule.json"));
        let done = harmonica(&[
            "schedule",
            "import",
            golden(file).to_str().unwrap(),
            "--model",
            tiny.to_str().unwrap(),
            "--heads",
            "4",
            "--out",
            out.to_str().unwrap(),
        ]);
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let schedule = ScheduleFile::read(&out).unwrap();
        assert_eq!(schedule.policy.name, kind);
        let table = integers("router.io.safetensors", expected)
            .iter()
            .map(|c| *c == 1)
            .collect();
        assert_eq!(
            schedule.schedule().unwrap(),
            Schedule::new(10, 4, table).unwrap(),
            "{file}"
        );
    }
    let released =
        harmonica::checkpoint::ReleasedRouter::read(&golden("harmonica-router.pt")).unwrap();
    assert_eq!(ReleasedKind::guess(&released.rows), ReleasedKind::HarmoniCa);
    assert_eq!(
        router_from_release(&released.rows).unwrap().logits(),
        tensor("router.io.safetensors", "logits").1
    );
}

#[test]
fn weights_are_no_router() {
    let tiny = golden("tiny-a.pt");
    let done = harmonica(&[
        "schedule",
        "import",
        tiny.to_str().unwrap(),
        "--out",
        "nowhere.json",
    ]);
    assert_eq!(done.status.code(), Some(2));
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(
        text.contains("it is no router: expected tensors `routers.<i>.prob`, found `blocks.0."),
        "{text}"
    );
}

#[test]
fn a_file_serves_its_own_run_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fora.schedule.json");
    let file = path.to_str().unwrap();
    let picture = folder.path().join("a.png");
    let make = [
        "schedule", "make", "fora:2", "--model", "bundled", "--steps", "4", "--out", file,
    ];
    assert!(harmonica(&make).status.success());
    let sample = |flags: &[&str]| {
        let fixed = [
            "sample",
            "--device",
            "cpu",
            "--count",
            "1",
            "--schedule",
            file,
            "--out",
            picture.to_str().unwrap(),
            "--json",
        ];
        harmonica(&[&fixed[..], flags].concat())
    };
    let good = sample(&["--steps", "4"]);
    assert!(
        good.status.success(),
        "{}",
        String::from_utf8_lossy(&good.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(report["cur"], 0.5);
    assert!(report["macs"].as_u64().unwrap() < report["macs_full"].as_u64().unwrap());
    assert!(report["peak_cache_bytes"].as_u64().unwrap() > 0);

    for (flags, reason) in [
        (&["--steps", "5"][..], "it is for 4 steps, this run has 5"),
        (
            &["--steps", "4", "--solver", "ddpm"],
            "it was made for solver ddim, this run uses ddpm",
        ),
        (
            &["--steps", "4", "--guidance", "1"],
            "it was made for guidance over channels 3, this run has no guidance",
        ),
        (
            &["--steps", "4", "--guidance-channels", "all"],
            "it was made for guidance over channels 3, this run has guidance over channels all",
        ),
    ] {
        let refused = sample(flags);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{flags:?}");
        assert!(
            text.contains(&format!("the schedule does not fit: {reason}; make one")),
            "{flags:?}: {text}"
        );
    }
    let forced = sample(&["--steps", "4", "--solver", "ddpm", "--force"]);
    let text = String::from_utf8_lossy(&forced.stderr).into_owned();
    assert!(
        forced.status.success() && text.contains("warning: --force:"),
        "{text}"
    );
    assert_eq!(sample(&["--steps", "5", "--force"]).status.code(), Some(1));
}

#[test]
fn a_broken_file_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.schedule.json");
    assert!(
        harmonica(&[
            "schedule",
            "make",
            "random:0.25:1",
            "--model",
            "bundled",
            "--steps",
            "4",
            "--out",
            path.to_str().unwrap()
        ])
        .status
        .success()
    );
    let good = std::fs::read_to_string(&path).unwrap();
    let row = good
        .lines()
        .find(|l| l.contains("\"####"))
        .unwrap()
        .trim()
        .trim_matches(|c| c == '"' || c == ',')
        .to_owned();
    for (edit, reason) in [
        (
            good.replacen("\"format\": 2", "\"format\": 3", 1),
            "it has format 3, this program reads formats 1 to 2",
        ),
        (
            good.replacen(&row, &row.replace('#', "x"), 1),
            "expected only # (compute) and . (reuse)",
        ),
        (
            good.replacen(&row, &row.replacen('#', ".", 1), 1),
            "branch 0 is reused at step 0",
        ),
        (
            good.replacen(&row, &row[1..], 1),
            "needs 96 entries, got 95",
        ),
        (
            good.replacen("\"steps\": 4", "\"steps\": 3", 1),
            "it lists 4 timesteps for 3 steps",
        ),
        (
            good.replacen("\"blocks\": 12", "\"blocks\": 13", 1),
            "needs 104 entries, got 96",
        ),
        (
            good.replacen("\"blocks\": 12", "\"blocks\": 0", 1),
            "blocks is 0, expected 1 to 4096",
        ),
        (good[..good.len() / 2].to_owned(), "EOF while parsing"),
    ] {
        std::fs::write(&path, &edit).unwrap();
        let shown = harmonica(&["schedule", "show", path.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&shown.stderr).into_owned();
        assert!(
            shown.status.code() == Some(1)
                && text.contains(" is no schedule: ")
                && text.contains(reason),
            "{reason}: {text}"
        );
    }
}

#[test]
fn a_schedule_draws_in_terminal_and_picture() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, png) = (
        folder.path().join("a.json"),
        folder.path().join("b.json"),
        folder.path().join("a.png"),
    );
    for (policy, path) in [("fora:2", &a), ("fora:3", &b)] {
        let make = [
            "schedule",
            "make",
            policy,
            "--model",
            "bundled",
            "--steps",
            "6",
            "--out",
            path.to_str().unwrap(),
        ];
        assert!(harmonica(&make).status.success());
    }
    let shown = harmonica(&[
        "schedule",
        "show",
        a.to_str().unwrap(),
        "--png",
        png.to_str().unwrap(),
    ]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        text.contains("CUR 50.0 %") && text.contains("████████████  ████████████    24/24"),
        "{text}"
    );
    assert!(image::open(&png).unwrap().height() > 200);
    let diff = harmonica(&["schedule", "diff", a.to_str().unwrap(), b.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&diff.stdout).into_owned();
    assert!(text.contains("72 of 144 differ"), "{text}");
}

#[test]
fn compare_measures_against_the_uncached_run() {
    let report = harmonica_json(&[
        "compare",
        "--device",
        "cpu",
        "--steps",
        "4",
        "--count",
        "2",
        "--schedules",
        "fora:2,random:0.25:3,steps:2",
        "--no-fewer-steps",
        "--json",
    ]);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0]["mse"], 0.0);
    assert!(
        rows[1..]
            .iter()
            .all(|r| r["mse"].as_f64().unwrap() > 0.0 && r["macs_ratio"].as_f64().unwrap() > 1.0)
    );
    assert_eq!(rows[3]["steps"], 2);
}

#[test]
fn the_bundled_model_uses_its_learned_schedule_where_it_fits() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.png");
    let sample = |flags: &[&str]| {
        let fixed = [
            "sample",
            "--device",
            "cpu",
            "--count",
            "1",
            "--out",
            out.to_str().unwrap(),
            "--json",
        ];
        harmonica_json(&[&fixed[..], flags].concat())
    };
    for steps in ["20", "50"] {
        let report = sample(&["--steps", steps]);
        assert_eq!(report["schedule"], "learned:2.00");
        assert_eq!(report["cur"], 0.5);
        let count = |key: &str| report[key].as_u64().unwrap();
        assert_eq!(count("macs_full"), 2 * count("macs"));
        assert_eq!(count("peak_cache_bytes"), 0);
    }
    // Other steps, another solver or no guidance are runs it was not made for.
    for flags in [
        ["--steps", "4"],
        ["--solver", "ddim:1"],
        ["--guidance", "1"],
    ] {
        assert_eq!(sample(&flags)["schedule"], "none", "{flags:?}");
    }
}

/// The command takes the schedule that a file describes, and its learned tables are worth their training.
#[test]
fn the_bundled_router_beats_a_random_table_of_its_cur() {
    let router = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/assets/routers/ddim20-cur0.5.schedule.json"
    );
    let report = harmonica_json(&[
        "compare",
        "--device",
        "cpu",
        "--count",
        "46",
        "--schedules",
        &format!("{router},random:0.5:1"),
        "--json",
    ]);
    let mse = |row: usize| report["rows"][row]["mse"].as_f64().unwrap();
    assert!(
        mse(1) > 0.0 && mse(1) < 0.5 * mse(2),
        "{} against {}",
        mse(1),
        mse(2)
    );
}
