//! What `sample` writes: formats, grids, pictures that say how they were drawn and are drawn again.

use std::path::Path;

use image::GenericImageView;
use serde_json::Value;

use crate::common::{golden, harmonica, harmonica_json};

/// A quick run of the bundled model.
const QUICK: [&str; 6] = ["sample", "--device", "cpu", "--steps", "3", "--schedule"];

fn sample(folder: &Path, schedule: &str, more: &[&str]) -> Value {
    let picture = folder.join("x.png");
    let mut arguments = [&QUICK[..], &[schedule, "--json"]].concat();
    if !more.contains(&"--out") {
        arguments.extend(["--out", picture.to_str().unwrap()]);
    }
    arguments.extend(more);
    harmonica_json(&arguments)
}

fn said(arguments: &[&str]) -> (Option<i32>, String) {
    let out = harmonica(arguments);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    (out.status.code(), text)
}

#[test]
fn one_image_is_the_picture_itself_and_several_are_a_grid() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let size = |name: &str| image::open(at(name)).unwrap().dimensions();
    let draw = |name: &str, more: &[&str]| {
        let path = at(name);
        let out = [&["--out", path.to_str().unwrap()], more].concat();
        sample(folder.path(), "none", &out)
    };
    let report = draw("one.png", &["-n", "1"]);
    assert_eq!(size("one.png"), (32, 32));
    assert_eq!(report["files"], serde_json::json!([at("one.png")]));
    draw("one.webp", &["-n", "1"]);
    // Both are lossless.
    let open = |name: &str| image::open(at(name)).unwrap().to_rgb8();
    assert_eq!(open("one.webp"), open("one.png"));
    draw("one.jpg", &["-n", "1"]);
    assert_eq!(size("one.jpg"), (32, 32));
    draw("grid.png", &["-n", "1", "--grid"]);
    assert!(size("grid.png").0 > 96);
    draw("two.jpeg", &["-n", "2"]);
    assert!(size("two.jpeg").0 > 192);
}

#[test]
fn a_picture_is_drawn_again_from_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (all, one, again) = (at("all"), at("one.png"), at("again.png"));
    let run = [
        "--out",
        &all,
        "-n",
        "3",
        "--classes",
        "face-flat,flag-3d",
        "-s",
        "7",
        "--guidance",
        "2.5",
        "--solver",
        "ddim:0.5",
    ];
    let report = sample(folder.path(), "fora:2", &run);
    let files: Vec<&str> = report["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f.as_str().unwrap())
        .collect();
    assert_eq!(files.len(), 3);
    assert!(files[1].ends_with("00001-flag-3d.png"));
    let open = |path: &str| image::open(path).unwrap().to_rgb8();
    let device = ["--device", "cpu"];
    // Any single one, noise of a stochastic solver included.
    for file in &files {
        harmonica_json(
            &[
                &["sample", "--from", file, "--out", &one, "--json"],
                &device[..],
            ]
            .concat(),
        );
        assert_eq!(open(&one), open(file));
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(file).unwrap());
    }
    // A grid, from its own file.
    sample(
        folder.path(),
        "none",
        &["--out", &one, "-n", "2", "--first", "5"],
    );
    let report = harmonica_json(&[
        "sample", "--from", &one, "--out", &again, "--json", "--device", "cpu",
    ]);
    assert_eq!(
        (&report["images"], &report["first"], &report["steps"]),
        (&2.into(), &5.into(), &3.into())
    );
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&again).unwrap());
    // With something else said.
    let report = harmonica_json(&[
        "sample", "--from", &one, "-s", "9", "-n", "1", "--steps", "2", "--out", &again, "--json",
        "--device", "cpu",
    ]);
    assert_eq!(
        (&report["seed"], &report["images"], &report["steps"]),
        (&9.into(), &1.into(), &2.into())
    );
    assert_ne!(open(&one), open(&again));
}

#[test]
fn an_enlarged_picture_shows_the_same_and_is_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = ["--classes", "flag-3d", "--out"];
    let open = |path: &str| image::open(path).unwrap().to_rgb8();
    sample(
        folder.path(),
        "none",
        &[&run[..], &[&at("small.png")]].concat(),
    );
    sample(
        folder.path(),
        "none",
        &[&run[..], &[&at("large.png"), "--enlarge", "5"]].concat(),
    );
    let (small, large) = (open(&at("small.png")), open(&at("large.png")));
    assert_eq!(large.dimensions(), (160, 160));
    for (x, y, pixel) in large.enumerate_pixels() {
        assert_eq!(pixel, small.get_pixel(x / 5, y / 5));
    }
    harmonica_json(&[
        "sample",
        "--from",
        &at("large.png"),
        "--out",
        &at("again.png"),
        "--json",
        "--device",
        "cpu",
    ]);
    assert_eq!(
        std::fs::read(at("large.png")).unwrap(),
        std::fs::read(at("again.png")).unwrap()
    );
    // In a grid, whose tiles are 96 pixels wide where nothing is said.
    for (flag, side) in [
        (None, 96),
        (Some("1"), 32),
        (Some("2"), 64),
        (Some("3"), 96),
    ] {
        let mut more = vec!["-n", "2"];
        more.extend(flag.iter().flat_map(|n| ["--enlarge", *n]));
        sample(folder.path(), "none", &more);
        let width = open(&at("x.png")).width();
        assert_eq!(width, 2 * (side + 8) + 8, "{flag:?}");
    }
    // What drew it can be looked up, and typed.
    let said = harmonica(&["inspect", &at("large.png")]);
    let said = String::from_utf8(said.stdout).unwrap();
    for part in [
        "drawn by    harmonica ",
        "1 image: flag-3d",
        "--enlarge 5",
        "--schedule none",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let found = harmonica_json(&["inspect", &at("large.png"), "--json"]);
    assert_eq!(found["kind"], "picture");
    assert_eq!(found["recipe"]["enlarge"], 5);
}

#[test]
fn a_picture_tells_other_programs_too() {
    let folder = tempfile::tempdir().unwrap();
    sample(folder.path(), "none", &["--classes", "flag-3d"]);
    let bytes = std::fs::read(folder.path().join("x.png")).unwrap();
    let text = |keyword: &str| {
        harmonica::report::text_of_png(&bytes, keyword)
            .unwrap()
            .unwrap()
    };
    assert_eq!(text("Title"), "flag-3d");
    assert!(text("Software").starts_with("harmonica "));
    assert!(text("Description").contains("flag-3d; seed 0, image 0, 3 steps of ddim, guidance 3"));
    let recipe: Value = serde_json::from_str(&text("harmonica")).unwrap();
    assert_eq!(recipe["classes"], serde_json::json!(["flag-3d"]));
    assert_eq!(recipe["schedule"], "none");
}

#[test]
fn what_cannot_be_written_or_read_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    image::RgbImage::new(2, 2).save(at("plain.png")).unwrap();
    std::fs::write(at("torn.png"), b"\x89PNG\r\n\x1a\n torn").unwrap();
    let run = ["sample", "--device", "cpu", "--steps", "2", "-n", "1"];
    let plain = "it does not say how it was drawn; expected a PNG that `harmonica sample` wrote";
    let cases: [(&[&str], &[&str], i32, &str); 8] = [
        (
            &run,
            &["--out", "x.gif"],
            2,
            "--out x.gif: .gif files are not written; expected .png, .jpg, .webp, or a folder",
        ),
        (
            &run,
            &["--out", "-", "--json"],
            2,
            "--out - writes the picture to stdout, where --json writes too; pass a file",
        ),
        (
            &run,
            &["--out", &at("folder"), "--grid"],
            2,
            "--grid makes one picture, and ",
        ),
        (
            &[
                "sample",
                "--device",
                "cpu",
                "--model",
                "random:DiT-S/8@4096",
            ],
            &["-n", "1", "--enlarge", "32"],
            2,
            "--enlarge 32 makes 1 picture of 16384×16384 in one file, expected at most 67 million pixels in all",
        ),
        (&run, &["--from", &at("plain.png")], 1, plain),
        (
            &run,
            &["--from", &at("torn.png")],
            1,
            "it is no PNG that can be read: ",
        ),
        (&run, &["--from", &at("gone.png")], 1, "cannot be read: "),
        (&["inspect"], &[&at("plain.png")], 1, plain),
    ];
    for (command, more, expected_code, expected) in cases {
        let (code, text) = said(&[command, more].concat());
        assert_eq!(code, Some(expected_code), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_picture_goes_to_stdout() {
    let out = harmonica(&[&QUICK[..], &["none", "-n", "1", "-q", "--out", "-"]].concat());
    assert!(out.status.success());
    let picture = image::load_from_memory(&out.stdout).unwrap();
    assert_eq!(picture.dimensions(), (32, 32));
}

#[test]
fn latents_become_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("x.png");
    let (model, vae) = (golden("diffusers-single"), golden("vae/kl"));
    for device in ["cpu", "vulkan"] {
        let run = |vae: &Path| {
            harmonica(&[
                "sample",
                "--model",
                model.to_str().unwrap(),
                "--vae",
                vae.to_str().unwrap(),
                "--device",
                device,
                "--steps",
                "2",
                "-n",
                "1",
                "--out",
                picture.to_str().unwrap(),
            ])
        };
        let out = run(&vae);
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success() && !text.contains("rough preview"),
            "{text}"
        );
        // Latents of 8, four pixels a cell.
        assert_eq!(image::open(&picture).unwrap().dimensions(), (32, 32));
        let out = run(&golden("vae/xl"));
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(
            text.contains("the autoencoder has 3 latent channels"),
            "{text}"
        );
    }
}
