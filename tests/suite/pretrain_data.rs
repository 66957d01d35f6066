//! Training data: every kind of it, and every way it can be wrong.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
};

use harmonica::{
    checkpoint::{self, write_tensors},
    training::network::{Augmentation, DataOptions, Dataset, center_crop},
};
use image::{Rgb, RgbImage};

use crate::common::golden;

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
        assert!(worst == Some(0), "picture {i} differs by {worst:?} levels");
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
pub fn folder(at: &Path) -> PathBuf {
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

pub fn open(path: &Path, image_size: Option<usize>) -> Result<Dataset, String> {
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
        ..Default::default()
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
        (3, 1, [3, 8, 8])
    );
    assert_eq!(data.class_names(), ["b-blue"]);
}

#[test]
fn pictures_keep_their_size_up_to_64() {
    for (sides, multiple, expected) in [
        // Small ones are not blown up, and one that is smaller than the others does not count.
        (&[36, 40, 4, 40, 50][..], 8, 40),
        (&[300, 200, 40], 8, 64),
        (&[30, 30], 8, 24),
        (&[3], 8, 8),
        // Cells of an autoencoder come in patches.
        (&[50], 32, 32),
        (&[50], 64, 64),
    ] {
        let at = tempfile::tempdir().unwrap();
        for (i, side) in sides.iter().enumerate() {
            save(
                &at.path().join(format!("kind/{i}.png")),
                &picture(*side, [9, 9, 9]),
            );
        }
        let options = DataOptions {
            multiple,
            ..Default::default()
        };
        let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
        let data = Dataset::open(at.path(), &options, go_on).unwrap();
        assert_eq!(data.shape(), [3, expected, expected], "{sides:?}");
    }
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

#[cfg(unix)]
#[test]
fn a_temporary_file_that_cannot_be_made_is_named() {
    let at = tempfile::tempdir().unwrap();
    let (pictures, nowhere) = (folder(at.path()), at.path().join("nowhere"));
    let out = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(["train", "dit", "--device", "cpu", "--image-size", "8"])
        .args(["--data-memory", "0", "--data", pictures.to_str().unwrap()])
        .args(["--out", at.path().join("run").to_str().unwrap()])
        .env("TMPDIR", &nowhere)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let expected = format!(
        "cannot keep the pictures in a temporary file in {}: ",
        nowhere.display()
    );
    assert!(
        out.status.code() == Some(1) && said.contains(&expected) && said.contains("--data-memory"),
        "{said}"
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
    // Not to be taken for a-red, which lacks a picture too.
    std::fs::create_dir(path.join("red")).unwrap();
    std::fs::write(path.join("red/0.png"), b"torn").unwrap();
    let error = said(&path);
    assert!(
        error.starts_with(
            "class `red` of {}/pictures has no readable picture; {}/pictures/red/0.png: "
        ),
        "{error}"
    );
}
