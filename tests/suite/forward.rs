//! The network against PyTorch and diffusers.

use std::path::Path;

use harmonica::{
    checkpoint::{
        LoadOptions, ModelSpec, SaveOptions, StoredDtype, load_model, model_info, save_model,
    },
    diffusion::{Guidance, GuidedChannels},
    metrics::max_abs_error,
};

use crate::common::{
    engines, forward, golden, harmonica, harmonica_json, integers, tensor, within,
};

/// Loads `model` and compares its forward pass with `<io>.io.safetensors`, on both devices.
fn check(model: &Path, options: LoadOptions, io: &str, bound: f64) {
    let io = format!("{io}.io.safetensors");
    let (x, t, out) = (tensor(&io, "x"), tensor(&io, "t").1, tensor(&io, "out").1);
    let y = integers(&io, "y");
    for (device, engine) in engines() {
        let (model, _) =
            load_model(&ModelSpec::Path(model.into()), options, engine.device()).unwrap();
        let error = max_abs_error(&forward(&model, &x, &t, &y), &out);
        within(format!("forward, {io}, {device}"), error, bound);
    }
}

#[test]
fn release_pt_with_an_odd_class_count() {
    check(
        &golden("tiny-a.pt"),
        LoadOptions {
            heads: Some(4),
            input_size: None,
        },
        "tiny-a",
        1e-5,
    );
}

#[test]
fn ema_of_a_training_checkpoint_with_rectangular_input_and_no_learned_sigma() {
    let options = LoadOptions {
        heads: Some(3),
        input_size: Some([8, 12]),
    };
    check(&golden("tiny-b.pt"), options, "tiny-b", 1e-5);
}

#[test]
fn safetensors_with_large_patches_and_one_class() {
    check(
        &golden("tiny-c.safetensors"),
        LoadOptions {
            heads: Some(1),
            input_size: None,
        },
        "tiny-c",
        1e-5,
    );
}

#[test]
fn diffusers_pipeline_folder_with_equal_embedders() {
    check(
        &golden("diffusers-single"),
        LoadOptions::default(),
        "diffusers-single",
        1e-5,
    );
}

#[test]
fn diffusers_shards_with_embedders_of_every_block() {
    check(
        &golden("diffusers-sharded"),
        LoadOptions::default(),
        "diffusers-sharded",
        1e-5,
    );
}

#[test]
fn bundled_model_forward() {
    let file = "bundled.safetensors";
    let (x, t, y) = (
        tensor(file, "fwd_x"),
        tensor(file, "fwd_t").1,
        integers(file, "fwd_y"),
    );
    for (device, engine) in engines() {
        let (model, _) =
            load_model(&ModelSpec::Bundled, LoadOptions::default(), engine.device()).unwrap();
        let error = max_abs_error(&forward(&model, &x, &t, &y), &tensor(file, "fwd_out").1);
        within(format!("forward, bundled, {device}"), error, 1e-5);
    }
}

#[test]
fn conversion_keeps_the_network_and_its_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let options = LoadOptions {
        heads: Some(4),
        input_size: None,
    };
    let spec = ModelSpec::Path(golden("tiny-a.pt"));
    let (_, original) = load_model(&spec, options, &burn::tensor::Device::flex()).unwrap();
    for (dtype, bound) in [(StoredDtype::F32, 1e-5), (StoredDtype::F16, 8e-3)] {
        let out = folder.path().join(format!("{dtype:?}.safetensors"));
        let names = (0..7).map(|i| format!("class {i}")).collect();
        let save = SaveOptions {
            class_names: Some(names),
            clip_x0: Some(true),
            guidance: Some(2.5),
            guidance_channels: None,
        };
        let fingerprint = save_model(&spec, options, save, dtype, &out).unwrap();
        assert_eq!(fingerprint, original.fingerprint);
        // The crate that defines the format reads our file.
        let bytes = std::fs::read(&out).unwrap();
        assert!(
            safetensors::SafeTensors::deserialize(&bytes)
                .unwrap()
                .tensor("blocks.1.attn.qkv.weight")
                .is_ok()
        );
        let (_, info) = load_model(
            &ModelSpec::Path(out.clone()),
            LoadOptions::default(),
            &burn::tensor::Device::flex(),
        )
        .unwrap();
        // What was not said is the family's.
        let guidance = info.usual_guidance();
        assert_eq!(
            (info.class_name(6), info.clip_x0, info.fingerprint),
            ("class 6".into(), true, fingerprint)
        );
        assert_eq!(
            (guidance.scale(), guidance.channels()),
            (2.5, GuidedChannels::Three)
        );
        assert_eq!(original.usual_guidance().scale(), 1.5);
        check(&out, LoadOptions::default(), "tiny-a", bound);
    }
}

#[test]
fn the_bundled_model_keeps_its_guidance_when_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("again.safetensors");
    let (nothing, half) = (SaveOptions::default(), StoredDtype::F16);
    save_model(
        &ModelSpec::Bundled,
        LoadOptions::default(),
        nothing,
        half,
        &out,
    )
    .unwrap();
    for spec in [ModelSpec::Bundled, ModelSpec::Path(out)] {
        let info = model_info(&spec, LoadOptions::default()).unwrap();
        let expected = Guidance::new(3.0, GuidedChannels::Three).unwrap();
        assert_eq!(info.usual_guidance(), expected, "{spec}");
    }
}

#[test]
fn a_model_says_under_which_guidance_it_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("guided.safetensors");
    let (from, to) = (golden("tiny-a.pt"), out.to_str().unwrap());
    let convert = |scale: &str| {
        let mut flags = vec!["convert", "--model", from.to_str().unwrap(), "--heads", "4"];
        flags.extend([
            "--guidance",
            scale,
            "--guidance-channels",
            "all",
            "--out",
            to,
        ]);
        let done = harmonica(&flags);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), said)
    };
    let (code, said) = convert("-1");
    assert!(code == Some(2) && said.contains("guidance"), "{said}");
    let (code, said) = convert("2.5");
    assert_eq!(code, Some(0), "{said}");
    let found = harmonica_json(&["inspect", to, "--json"]);
    let guidance = &found["model"]["guidance"];
    assert_eq!(
        (&guidance["scale"], &guidance["channels"]),
        (&2.5.into(), &"all".into())
    );
    let shown = harmonica(&["inspect", to]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("guidance    2.5 over channels all"),
        "{shown}"
    );
    // What is no guidance is refused with the rest of the description.
    let bytes = std::fs::read(&out).unwrap();
    let at = bytes.windows(3).position(|part| part == b"2.5").unwrap();
    let bad = [&bytes[..at], b"-25", &bytes[at + 3..]].concat();
    std::fs::write(&out, bad).unwrap();
    let error = model_info(&ModelSpec::Path(out), LoadOptions::default()).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("its model description is not valid"),
        "{error}"
    );
}
