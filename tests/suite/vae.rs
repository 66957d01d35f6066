//! Autoencoders against diffusers' own, in every layout that they are published in.

use std::{ops::ControlFlow, path::Path};

use harmonica::{
    checkpoint,
    containers::CheckpointError,
    device::Engine,
    metrics::max_abs_error,
    models::vae::{KlConfig, Tiling, Vae, VaeConfig, VaeError},
    training::network::{Augmentation, DataError, DataOptions, Dataset},
};

use crate::common::{engines, golden, harmonica, harmonica_json, tensor, within};

/// In numbers of pixels in [-1, 1].
const BOUND: f64 = 2e-5;

/// What files without a config do not tell of the golden one.
fn config() -> VaeConfig {
    VaeConfig::Kl(KlConfig {
        block_out_channels: vec![4, 4, 8],
        norm_num_groups: 2,
        scaling_factor: 0.2,
        ..KlConfig::default()
    })
}

fn open(name: &str, config: Option<VaeConfig>, engine: &Engine) -> Vae {
    Vae::open_with(&golden("vae").join(name), config, engine.device()).unwrap()
}

/// Images of a golden tensor, and the shape of each.
fn images(file: &str, name: &str) -> (Vec<Vec<f32>>, [usize; 3]) {
    let (shape, values) = tensor(&format!("vae/{file}.io.safetensors"), name);
    let [_, c, h, w] = shape[..] else {
        panic!("{shape:?}")
    };
    (
        values.chunks(c * h * w).map(<[f32]>::to_vec).collect(),
        [c, h, w],
    )
}

fn decode(vae: &Vae, latents: &[f32], shape: [usize; 3], tiling: Tiling) -> Vec<f32> {
    vae.decode(latents, shape, tiling, &mut || true).unwrap()
}

#[test]
fn pictures_are_those_of_diffusers() {
    let files = [
        ("kl", "kl", None),
        ("kl", "kl-old", None),
        ("kl", "kl-ldm.safetensors", Some(config())),
        ("kl", "kl-ldm-whole.pt", Some(config())),
        ("xl", "xl", None),
        ("tiny", "tiny", None),
        ("tiny", "tiny-decoder.safetensors", None),
    ];
    for (device, engine) in engines() {
        for (case, file, config) in &files {
            let vae = open(file, config.clone(), &engine);
            let (latents, shape) = images(case, "latents");
            let (pixels, _) = images(case, "pixels");
            for (latents, pixels) in latents.iter().zip(&pixels) {
                let found = decode(&vae, latents, shape, Tiling::Auto);
                let error = max_abs_error(&found, pixels);
                within(format!("{file} on {device}"), error, BOUND);
            }
        }
    }
}

#[test]
fn latents_are_those_of_diffusers() {
    for (device, engine) in engines() {
        for (case, file, image) in [
            ("kl", "kl", ""),
            ("kl", "kl", "odd."),
            ("kl", "kl-old", ""),
            ("xl", "xl", ""),
        ] {
            let vae = open(file, None, &engine);
            let (pictures, shape) = images(case, &format!("{image}image"));
            let (found, [channels, height, width]) = vae.moments(&pictures[0], shape).unwrap();
            let (mean, of) = images(case, &format!("{image}mean"));
            let (logvar, _) = images(case, &format!("{image}logvar"));
            assert_eq!([channels / 2, height, width], of);
            let error = max_abs_error(&found[..mean[0].len()], &mean[0]);
            within(format!("{image}mean of {file} on {device}"), error, BOUND);
            let error = max_abs_error(&found[mean[0].len()..], &logvar[0]);
            within(format!("{image}logvar of {file} on {device}"), error, BOUND);
        }
        for file in ["tiny", "tiny-encoder.safetensors"] {
            let vae = open(file, None, &engine);
            let (pictures, shape) = images("tiny", "image");
            let (encoded, _) = images("tiny", "encoded");
            let found = vae.encode(&pictures[0], shape).unwrap();
            let error = max_abs_error(&found, &encoded[0]);
            within(format!("{file} on {device}"), error, BOUND);
        }
    }
}

#[test]
fn a_network_sees_scaled_latents() {
    let vae = open("kl", None, &Engine::cpu());
    let (pictures, shape) = images("kl", "image");
    let (mean, _) = images("kl", "mean");
    let found = vae.encode(&pictures[0], shape).unwrap();
    let scaled: Vec<f32> = mean[0].iter().map(|z| 0.2 * z).collect();
    within("scaled latents", max_abs_error(&found, &scaled), BOUND);
    assert_eq!(vae.config().factor(), 4);
}

#[test]
fn tiles_are_the_whole_where_they_see_as_much() {
    let vae = open("tiny", None, &Engine::cpu());
    let [rows, columns] = [100, 17];
    let latents: Vec<f32> = (0..4 * rows * columns)
        .map(|i| (i as f32 * 0.013).sin())
        .collect();
    let shape = [4, rows, columns];
    let whole = decode(&vae, &latents, shape, Tiling::Whole);
    let (side, mut tiles) = (64, 0);
    let tiled = vae.decode(&latents, shape, Tiling::Side(side), &mut || {
        tiles += 1;
        true
    });
    let tiled = tiled.unwrap();
    assert_eq!(tiles, 2);
    // The first rows lie in the first tile alone, and TAESD sees about 20 cells far: less than what is left of the tile below them.
    let row = columns * 8;
    let alone = (rows - side) * 8 * row;
    for c in 0..3 {
        let plane = c * rows * 8 * row..;
        let error = max_abs_error(&whole[plane.clone()][..alone], &tiled[plane][..alone]);
        within("rows of one tile", error, 5e-6);
    }
    assert_ne!(whole, tiled);
    let stopped = vae.decode(&latents, shape, Tiling::Side(side), &mut || false);
    assert!(matches!(stopped, Err(VaeError::Interrupted)));
}

/// A copy of a folder, for damage.
fn copied(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("vae").join(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn refused(path: &Path) -> String {
    let engine = Engine::cpu();
    let error: CheckpointError = Vae::open(path, engine.device()).unwrap_err();
    error.to_string()
}

#[test]
fn what_is_no_autoencoder_is_refused_with_the_reason() {
    let damage = |from: &str, to: &str| {
        let folder = copied("kl");
        let path = folder.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        refused(folder.path())
    };
    let cases = [
        (
            "\"AutoencoderKL\"",
            "\"AutoencoderDC\"",
            "describes a `AutoencoderDC`, expected `AutoencoderKL` or `AutoencoderTiny`",
        ),
        (
            "\"silu\"",
            "\"mish\"",
            "its act_fn is `mish`, expected `silu`",
        ),
        (
            "\"norm_num_groups\": 2",
            "\"norm_num_groups\": 3",
            "its width 4 is no multiple of the 3 groups",
        ),
        (
            "\"latent_channels\": 4",
            "\"latent_channels\": 5",
            "has shape [4, 4, 1, 1], expected [5, 5, 1, 1]",
        ),
        (
            "\"layers_per_block\": 1",
            "\"layers_per_block\": 2",
            "is missing",
        ),
        (
            "\"scaling_factor\": 0.2",
            "\"scaling_factor\": 0.0",
            "scales latents by 0",
        ),
    ];
    for (from, to, expected) in cases {
        let said = damage(from, to);
        assert!(said.contains(expected), "{said}");
    }
    // The network itself is no autoencoder.
    let said = refused(&golden("tiny-c.safetensors"));
    assert!(
        said.contains("expected the tensors of an AutoencoderKL or of TAESD, found"),
        "{said}"
    );
    // Shapes do not tell the groups; 32 do not fit these.
    let said = refused(&golden("vae/kl-ldm.safetensors"));
    assert!(said.contains("is no multiple of the 32 groups"), "{said}");
}

#[test]
fn halves_and_shapes_are_checked() {
    let engine = Engine::cpu();
    let decoder = open("tiny-decoder.safetensors", None, &engine);
    assert!(decoder.decodes() && !decoder.encodes());
    let (pictures, shape) = images("tiny", "image");
    let said = decoder.encode(&pictures[0], shape).unwrap_err().to_string();
    assert!(said.contains("no encoder"), "{said}");
    let whole = open("tiny", None, &engine);
    let said = whole
        .encode(&vec![0.0; 3 * 12 * 12], [3, 12, 12])
        .unwrap_err();
    assert!(said.to_string().contains("multiples of 8"), "{said}");
    let said = whole.decode(&[0.0; 8], [2, 2, 2], Tiling::Auto, &mut || true);
    assert!(matches!(
        said,
        Err(VaeError::Shape {
            found: [2, 2, 2],
            ..
        })
    ));
    let said = whole.decode(&[f32::NAN; 4], [4, 1, 1], Tiling::Auto, &mut || true);
    assert!(matches!(said, Err(VaeError::NotFinite)));
}

/// Two classes of two pictures.
fn pictures(folder: &Path) {
    for (class, tint) in [("blue", [40, 60, 220]), ("red", [220, 60, 40])] {
        std::fs::create_dir_all(folder.join(class)).unwrap();
        for i in 0..2u32 {
            let picture = image::RgbImage::from_fn(40, 40, |x, y| {
                let shade = ((x * (3 + i) + y) % 40) as u8;
                image::Rgb(tint.map(|c: u8| c.saturating_add(shade)))
            });
            picture
                .save(folder.join(class).join(format!("{i}.png")))
                .unwrap();
        }
    }
}

#[test]
fn latents_of_a_data_set_are_those_of_its_pictures() {
    let folder = tempfile::tempdir().unwrap();
    pictures(folder.path());
    let vae = open("tiny", None, &Engine::cpu());
    let options = DataOptions {
        image_size: Some(32),
        ..DataOptions::default()
    };
    let go_on = |_: usize, _: usize| ControlFlow::Continue(());
    let open = || Dataset::open(folder.path(), &options, &mut { go_on }).unwrap();
    let pixels = open();
    let latents = open().encoded(&vae, true, None, &mut { go_on }).unwrap();
    assert_eq!(
        (latents.shape(), latents.len(), latents.is_pixels()),
        ([4, 4, 4], 4, false)
    );
    assert_ne!(latents.identity(), pixels.identity());
    let mut picture = vec![0.0; 3 * 32 * 32];
    let mut found = vec![0.0; 4 * 4 * 4];
    for (index, mirror) in [(0, false), (3, false), (3, true)] {
        let change = Augmentation {
            mirror,
            shift: [0; 2],
        };
        pixels.read(index, change, &mut picture).unwrap();
        latents.read(index, change, &mut found).unwrap();
        assert_eq!(found, vae.encode(&picture, [3, 32, 32]).unwrap());
    }
    let plain = open().encoded(&vae, false, None, &mut { go_on }).unwrap();
    assert!(latents.mirrors() && !plain.mirrors());
    let stopped = open().encoded(&vae, true, None, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(DataError::Stopped)));
}

#[test]
fn latents_are_made_once_for_the_same_pictures_and_autoencoder() {
    let folder = tempfile::tempdir().unwrap();
    pictures(folder.path());
    let beside = tempfile::tempdir().unwrap();
    let kept = beside.path().join("latents.safetensors");
    let vae = |scaling: f32| {
        let VaeConfig::Kl(usual) = config() else {
            unreachable!("it is one of an AutoencoderKL")
        };
        let scaling_factor = usual.scaling_factor * scaling;
        let config = VaeConfig::Kl(KlConfig {
            scaling_factor,
            ..usual
        });
        open("kl-ldm.safetensors", Some(config), &Engine::cpu())
    };
    let (usual, other) = (vae(1.0), vae(1.001));
    let encoded = |vae: &Vae, mirror: bool, image_size: usize| {
        let options = DataOptions {
            image_size: Some(image_size),
            ..DataOptions::default()
        };
        let go_on = |_: usize, _: usize| ControlFlow::Continue(());
        let data = Dataset::open(folder.path(), &options, &mut { go_on }).unwrap();
        let mut made = 0;
        let mut count = |_: usize, _: usize| {
            made += 1;
            ControlFlow::Continue(())
        };
        let data = data.encoded(vae, mirror, Some(&kept), &mut count).unwrap();
        (made, data)
    };
    let identity = |vae: &Vae, mirror: bool, image_size: usize| {
        let (made, data) = encoded(vae, mirror, image_size);
        (made, data.identity().to_owned())
    };
    let (made, first) = encoded(&usual, true, 32);
    assert_eq!(made, 4);
    first.keep_latents(&kept).unwrap();
    let first = first.identity().to_owned();
    assert_eq!(identity(&usual, true, 32), (0, first.clone()));
    // Without mirrored ones they are another data set, whose latents lie there too.
    let (made, plain) = identity(&usual, false, 32);
    assert!(made == 0 && plain != first);
    assert_eq!(identity(&other, true, 32).0, 4, "another autoencoder");
    assert_eq!(identity(&usual, true, 16).0, 4, "other pictures");
    // Those of pictures as they are do not do for mirrored ones.
    std::fs::remove_file(&kept).unwrap();
    encoded(&usual, false, 32).1.keep_latents(&kept).unwrap();
    assert_eq!(identity(&usual, false, 32), (0, plain));
    let (made, again) = encoded(&usual, true, 32);
    assert_eq!((made, again.identity()), (4, first.as_str()));
    again.keep_latents(&kept).unwrap();
    assert_eq!(identity(&usual, true, 32).0, 0);
    // A damaged file is as good as none, and left alone like one of somebody's own.
    let bytes = std::fs::read(&kept).unwrap();
    std::fs::write(&kept, &bytes[..bytes.len() - 3]).unwrap();
    assert_eq!(identity(&usual, true, 32), (4, first));
    checkpoint::write_tensors(&kept, &[("latents", vec![1, 4, 2, 2], vec![0.5; 16])]).unwrap();
    let own = std::fs::read(&kept).unwrap();
    let error = again.keep_latents(&kept).unwrap_err().to_string();
    assert!(
        error.ends_with("that were kept by a run; it is left as it is"),
        "{error}"
    );
    assert!(std::fs::read(&kept).unwrap() == own);
}

#[test]
fn a_network_learns_latents_and_draws_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    pictures(&folder.path().join("pictures"));
    let vae = golden("vae/tiny");
    let vae = vae.to_str().unwrap();
    let train = |size: &str| {
        harmonica(&[
            "train",
            "dit",
            "--device",
            "cpu",
            "--data",
            &at("pictures"),
            "--vae",
            vae,
            "--image-size",
            size,
            "--blocks",
            "1",
            "--hidden",
            "16",
            "--heads",
            "2",
            "--patch",
            "1",
            "--steps",
            "3",
            "--batch",
            "4",
            "--out",
            &at("run"),
        ])
    };
    let said = |out: &std::process::Output| String::from_utf8_lossy(&out.stderr).into_owned();
    let out = train("30");
    assert_eq!(out.status.code(), Some(2));
    assert!(
        said(&out).contains("--image-size is 30, expected a multiple of 8"),
        "{}",
        said(&out)
    );
    let out = train("32");
    assert!(out.status.success(), "{}", said(&out));
    // Twelve pixels of margin and label beside the pictures, which are enlarged to 96.
    let samples = image::open(at("run/samples.png")).unwrap();
    assert!(samples.width() > 2 * 96, "{}", samples.width());
    let (model, picture) = (at("run/model.safetensors"), at("x.png"));
    let report = harmonica_json(&[
        "sample", "--device", "cpu", "--model", &model, "--vae", vae, "--steps", "2", "-n", "1",
        "--out", &picture, "--json",
    ]);
    assert_eq!(report["images"], 1);
    assert_eq!(image::open(&picture).unwrap().width(), 32);
}
