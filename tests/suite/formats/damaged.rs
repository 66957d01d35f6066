//! Damaged pipelines, and what is said of them.

use super::*;

/// A folder that was damaged, the run that meets it, and what is said.
struct Damage {
    what: &'static str,
    /// The folder that is copied to `{}/m`: `dit`, `sharded`, `bin` or `pixart`.
    of: &'static str,
    damage: Box<dyn Fn(&Place)>,
    flags: &'static str,
    code: i32,
    said: String,
    /// Whether a dry run finds it, which reads no weights and no texts.
    dry: bool,
}

/// One that a dry run finds, too.
fn damage(
    what: &'static str,
    of: &'static str,
    damage: impl Fn(&Place) + 'static,
    flags: &'static str,
    (code, said): (i32, &str),
) -> Damage {
    Damage {
        what,
        of,
        damage: Box::new(damage),
        flags,
        code,
        said: said.into(),
        dry: true,
    }
}

/// One that shows in values alone.
fn of_values(
    what: &'static str,
    of: &'static str,
    values: impl Fn(&Place) + 'static,
    flags: &'static str,
    said: (i32, &str),
) -> Damage {
    Damage {
        dry: false,
        ..damage(what, of, values, flags, said)
    }
}

#[test]
fn every_damaged_pipeline_is_refused_before_anything_is_drawn() {
    const PARTS: &str = "though its model_index.json names it; expected the whole pipeline folder, or at least its transformer and scheduler (of a folder of the hub, `harmonica pull` fetches parts)";
    const OTHER: &str =
        "; --text-encoder DIR names another folder, with text_encoder/ and tokenizer/";
    const WHOLE: &str = "was the folder copied or downloaded wholly?";
    const POINTER: &str = "is damaged: it is a Git LFS pointer in the place of the weights; `git lfs pull` in the folder, or `harmonica pull`, fetches them";
    const OF_DIT: &str = "m/transformer/diffusion_pytorch_model.safetensors";
    const OF_VAE: &str = "m/vae/diffusion_pytorch_model.safetensors";
    const OF_TEXT: &str = "m/text_encoder/model.safetensors";
    let no_file = "No such file or directory (os error 2)";
    let remove = |name: &'static str| {
        move |place: &Place| {
            let path = place.path(name);
            match path.is_dir() {
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
        }
    };
    let cut = |name: &'static str| {
        move |place: &Place| {
            let bytes = fs::read(place.path(name)).unwrap();
            fs::write(place.path(name), &bytes[..bytes.len() - 100]).unwrap();
        }
    };
    let pointer = |name: &'static str| {
        move |place: &Place| {
            assert!(place.path(name).is_file());
            let text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2\n";
            fs::write(place.path(name), text).unwrap();
        }
    };
    // Changes the tensors of a safetensors file.
    let change = |name: &'static str, edit: fn(&mut Tensors)| {
        move |place: &Place| {
            let path = place.path(name);
            let mut tensors = tensors_of(&path);
            edit(&mut tensors);
            write_safetensors(&path, &tensors);
        }
    };
    let nan = |tensors: &mut Tensors| *tensors[0].2.last_mut().unwrap() = f32::NAN;
    let instead = |name: &'static str, from: &'static str| {
        move |place: &Place| {
            fs::remove_dir_all(place.path(name)).unwrap();
            copy_tree(&golden(from), &place.path(name));
        }
    };
    let nothing = |_: &Place| {};
    let set = |name: &'static str, key: &'static str, value: Value| {
        move |place: &Place| place.set(name, key, value.clone())
    };
    // The weights of the encoder in two shards.
    let text_shards = |place: &Place| {
        let folder = place.path("m/text_encoder");
        let tensors = tensors_of(&folder.join("model.safetensors"));
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        write_shards(&folder, "model", &tensors);
    };
    let cases = [
        damage(
            "no transformer",
            "dit",
            remove("m/transformer"),
            "",
            (1, &format!("{{}}/m has no `transformer/`, {PARTS}")),
        ),
        damage(
            "no scheduler",
            "dit",
            remove("m/scheduler"),
            "",
            (1, &format!("{{}}/m has no `scheduler/`, {PARTS}")),
        ),
        damage(
            "no autoencoder",
            "dit",
            remove("m/vae"),
            "",
            (1, &format!("{{}}/m has no `vae/`, {PARTS}")),
        ),
        damage(
            "no text encoder",
            "pixart",
            remove("m/text_encoder"),
            "--prompt lighthouse",
            (
                2,
                "no text encoder lies beside the model {}/m: pass --text-encoder DIR, a folder with text_encoder/ and tokenizer/, or --texts with a file of encoded texts",
            ),
        ),
        damage(
            "no tokenizer",
            "pixart",
            remove("m/tokenizer"),
            "--prompt lighthouse",
            (
                2,
                &format!(
                    "{{}}/m holds no tokenizer: expected tokenizer.json or spiece.model in it{OTHER}"
                ),
            ),
        ),
        damage(
            "no weights of the encoder",
            "pixart",
            remove(OF_TEXT),
            "--prompt lighthouse",
            (
                2,
                &format!(
                    "{{}}/m/text_encoder holds no weights of a text encoder: expected model.safetensors, its shards with an index, or pytorch_model.bin in it{OTHER}"
                ),
            ),
        ),
        damage(
            "no config of the autoencoder",
            "dit",
            remove("m/vae/config.json"),
            "",
            (1, &format!("cannot open {{}}/m/vae/config.json: {no_file}")),
        ),
        damage(
            "missing shard",
            "sharded",
            remove("m/transformer/diffusion_pytorch_model-00003-of-00003.safetensors"),
            "",
            (
                1,
                &format!(
                    "{{}}/m/transformer/diffusion_pytorch_model.safetensors.index.json names the shard `diffusion_pytorch_model-00003-of-00003.safetensors`, which does not lie beside it; {WHOLE}"
                ),
            ),
        ),
        damage(
            "missing shard of the encoder",
            "pixart",
            move |place| {
                text_shards(place);
                remove("m/text_encoder/model-00002-of-00002.safetensors")(place);
            },
            "--prompt lighthouse",
            (
                1,
                &format!(
                    "{{}}/m/text_encoder/model.safetensors.index.json names the shard `model-00002-of-00002.safetensors`, which does not lie beside it; {WHOLE}"
                ),
            ),
        ),
        damage(
            "shard without a tensor of the index",
            "sharded",
            change(
                "m/transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
                |tensors| drop(tensors.pop()),
            ),
            "",
            (
                1,
                &format!(
                    "{{}}/m/transformer/diffusion_pytorch_model.safetensors.index.json places tensor `transformer_blocks.1.ff.net.2.weight` in `diffusion_pytorch_model-00003-of-00003.safetensors`, which does not hold it; {WHOLE}"
                ),
            ),
        ),
        damage(
            "shard of the encoder without a tensor",
            "pixart",
            move |place| {
                text_shards(place);
                change(
                    "m/text_encoder/model-00001-of-00002.safetensors",
                    |tensors| drop(tensors.pop()),
                )(place);
            },
            "--prompt lighthouse",
            (
                1,
                &format!(
                    "{{}}/m/text_encoder/model.safetensors.index.json places tensor `encoder.block.1.layer.0.SelfAttention.k.weight` in `model-00001-of-00002.safetensors`, which does not hold it; {WHOLE}"
                ),
            ),
        ),
        damage(
            "missing tensor",
            "dit",
            change(OF_DIT, |tensors| {
                tensors.retain(|(name, ..)| name != "transformer_blocks.1.ff.net.2.bias")
            }),
            "",
            (
                1,
                "{}/m/transformer: tensor `transformer_blocks.1.ff.net.2.bias` [8] is missing (1 missing in all)",
            ),
        ),
        damage(
            "tensor of another network",
            "dit",
            change(OF_DIT, |tensors| {
                tensors.push(("lora.weight".into(), vec![1], vec![0.0]))
            }),
            "",
            (
                1,
                "{}/m/transformer: tensor `lora.weight` [1] belongs to no part of DiT with 2 blocks of 8 (2 heads), patch 2 (1 such tensors in all)",
            ),
        ),
        damage(
            "another class of transformer",
            "dit",
            set(
                "m/transformer/config.json",
                "_class_name",
                json!("SD3Transformer2DModel"),
            ),
            "",
            (
                1,
                "{}/m/transformer/config.json cannot be understood: it describes a `SD3Transformer2DModel`, expected a DiTTransformer2DModel",
            ),
        ),
        damage(
            "another class of PixArt's transformer",
            "pixart",
            set(
                "m/transformer/config.json",
                "_class_name",
                json!("FluxTransformer2DModel"),
            ),
            "--prompt lighthouse",
            (
                1,
                "{}/m/transformer/config.json cannot be understood: it describes a `FluxTransformer2DModel`, expected a PixArtTransformer2DModel",
            ),
        ),
        damage(
            "another class of autoencoder",
            "dit",
            set(
                "m/vae/config.json",
                "_class_name",
                json!("AsymmetricAutoencoderKL"),
            ),
            "",
            (
                1,
                "{}/m/vae cannot be understood: as an autoencoder: its config.json describes a `AsymmetricAutoencoderKL`, expected `AutoencoderKL` or `AutoencoderTiny`",
            ),
        ),
        damage(
            "another class of encoder",
            "pixart",
            set(
                "m/text_encoder/config.json",
                "feed_forward_proj",
                json!("gated-silu"),
            ),
            "--prompt lighthouse",
            (
                1,
                "{}/m/text_encoder/config.json cannot be understood: it describes no T5 encoder: unknown variant `gated-silu`, expected `relu` or `gated-gelu` at line 1 column 205",
            ),
        ),
        damage(
            "pipeline of another family",
            "pixart",
            set("m/model_index.json", "_class_name", json!("DiTPipeline")),
            "--prompt lighthouse",
            (
                1,
                "{}/m/model_index.json cannot be understood: it is a DiTPipeline, whose transformer is a DiT, but the one there is a PixArt",
            ),
        ),
        damage(
            "heads that do not divide",
            "dit",
            set("m/transformer/config.json", "num_attention_heads", json!(3)),
            "",
            (
                2,
                "{}/m/transformer: it describes no DiT: hidden size 8 is no multiple of heads 3",
            ),
        ),
        damage(
            "autoencoder of other latents",
            "dit",
            instead("m/vae", "vae/xl"),
            "",
            (
                2,
                "{}/m: the autoencoder has 3 latent channels, DiT with 2 blocks of 8 (2 heads), patch 2 draws 4; expected the one that it was trained with",
            ),
        ),
        damage(
            "half of an autoencoder",
            "dit",
            |place| place.copy("vae/tiny-encoder.safetensors", "taesd_encoder.safetensors"),
            "--vae {}/taesd_encoder.safetensors",
            (
                2,
                "{}/taesd_encoder.safetensors: it holds an encoder alone; expected a decoder",
            ),
        ),
        damage(
            "autoencoder of other groups",
            "dit",
            |place| place.copy("vae/kl-ldm.safetensors", "ldm.safetensors"),
            "--vae {}/ldm.safetensors",
            (
                1,
                "{}/ldm.safetensors cannot be understood: as an autoencoder: its width 4 is no multiple of the 32 groups of its norms",
            ),
        ),
        damage(
            "transformer as the autoencoder",
            "dit",
            nothing,
            "--vae {}/m/transformer",
            (
                1,
                "{}/m/transformer cannot be understood: as an autoencoder: expected the tensors of an AutoencoderKL or of TAESD, found `pos_embed.proj.bias`, `pos_embed.proj.weight`, `proj_out_1.bias`",
            ),
        ),
        damage(
            "encoder of another width",
            "pixart",
            instead("m/text_encoder", "text/relu"),
            "--prompt lighthouse",
            (
                2,
                &format!(
                    "the encoder in {{}}/m/text_encoder makes tokens of 16 numbers, the model takes tokens of 32: it belongs to another model{OTHER}"
                ),
            ),
        ),
        damage(
            "encoder of another depth",
            "pixart",
            set("m/text_encoder/config.json", "num_layers", json!(3)),
            "--prompt lighthouse",
            (
                1,
                "{}/m/text_encoder: tensor `encoder.block.2.layer.0.layer_norm.weight` [32] is missing (9 missing in all)",
            ),
        ),
        damage(
            "tokenizer cut off",
            "pixart",
            cut("m/tokenizer/tokenizer.json"),
            "--prompt lighthouse",
            (
                1,
                "the tokenizer {}/m/tokenizer/tokenizer.json cannot be used: EOF while parsing a list at line 511 column 4",
            ),
        ),
        damage(
            "weights cut off",
            "dit",
            cut(OF_DIT),
            "",
            (
                1,
                "{}/m/transformer/diffusion_pytorch_model.safetensors is damaged: tensor `transformer_blocks.1.norm1.linear.weight` lies at bytes 28320 to 29856, the file has 29756 bytes of data; was it cut off?",
            ),
        ),
        damage(
            "autoencoder cut off",
            "dit",
            cut(OF_VAE),
            "",
            (
                1,
                "{}/m/vae/diffusion_pytorch_model.safetensors is damaged: tensor `quant_conv.weight` lies at bytes 12284 to 12540, the file has 12440 bytes of data; was it cut off?",
            ),
        ),
        damage(
            "encoder cut off",
            "pixart",
            cut(OF_TEXT),
            "--prompt lighthouse",
            (
                1,
                "{}/m/text_encoder/model.safetensors is damaged: tensor `shared.weight` lies at bytes 56128 to 68928, the file has 68828 bytes of data; was it cut off?",
            ),
        ),
        damage(
            "pointer to the weights",
            "dit",
            pointer(OF_DIT),
            "",
            (1, &format!("{{}}/{OF_DIT} {POINTER}")),
        ),
        damage(
            "pointer to pickled weights",
            "bin",
            pointer("m/transformer/diffusion_pytorch_model.bin"),
            "",
            (
                1,
                &format!("{{}}/m/transformer/diffusion_pytorch_model.bin {POINTER}"),
            ),
        ),
        damage(
            "pointer to the autoencoder",
            "dit",
            pointer(OF_VAE),
            "--vae {}/m/vae/diffusion_pytorch_model.safetensors",
            (1, &format!("{{}}/{OF_VAE} {POINTER}")),
        ),
        damage(
            "pointer to the encoder",
            "pixart",
            pointer(OF_TEXT),
            "--prompt lighthouse",
            (1, &format!("{{}}/{OF_TEXT} {POINTER}")),
        ),
        damage(
            "no such variant",
            "dit",
            nothing,
            "--variant bf16",
            (
                2,
                "{}/m/transformer: it holds no variant `bf16`, but diffusion_pytorch_model.safetensors",
            ),
        ),
        of_values(
            "a weight that is no number",
            "dit",
            change(OF_DIT, nan),
            "",
            (
                1,
                "{}/m/transformer: tensor `pos_embed.proj.bias` holds a value that is not finite at position 7; the model cannot be used",
            ),
        ),
        of_values(
            "an autoencoder's weight that is no number",
            "dit",
            change(OF_VAE, |tensors| {
                tensors
                    .iter_mut()
                    .filter(|(name, ..)| name == "decoder.conv_in.bias")
                    .for_each(|(.., values)| values[1] = f32::INFINITY)
            }),
            "",
            (
                1,
                "{}/m/vae: tensor `decoder.conv_in.bias` holds a value that is not finite at position 1; the model cannot be used",
            ),
        ),
        of_values(
            "an encoder's weight that is no number",
            "pixart",
            change(OF_TEXT, nan),
            "--prompt lighthouse",
            (
                1,
                "{}/m/text_encoder: tensor `encoder.block.0.layer.0.SelfAttention.k.weight` holds a value that is not finite at position 767; the model cannot be used",
            ),
        ),
        of_values(
            "a weight beyond f16",
            "dit",
            change(OF_DIT, |tensors| {
                tensors
                    .iter_mut()
                    .filter(|(name, ..)| name == "transformer_blocks.0.attn1.to_k.weight")
                    .for_each(|(.., values)| values[3] = 1e6)
            }),
            "--dtype f16",
            (
                1,
                "{}/m: tensor `blocks.0.attn.qkv.weight` holds 1000000, which is beyond f16; keep the weights in f32 (--dtype f32)",
            ),
        ),
        of_values(
            "tokenizer of another encoder",
            "pixart",
            |place| {
                let path = place.path(OF_TEXT);
                let mut tensors = tensors_of(&path);
                for (name, shape, values) in &mut tensors {
                    if name == "shared.weight" {
                        shape[0] = 4;
                        values.truncate(4 * shape[1]);
                    }
                }
                write_safetensors(&path, &tensors);
                place.set("m/text_encoder/config.json", "vocab_size", json!(4));
            },
            "--prompt lighthouse",
            (
                1,
                "token 23 is none of the encoder's 4: its tokenizer belongs to another encoder; --text-encoder DIR names another folder, with text_encoder/ and tokenizer/",
            ),
        ),
    ];
    let mut wrong = Vec::new();
    for case in &cases {
        let place = Place::new();
        let model = place.path("m");
        match case.of {
            "pixart" => pixart(&model, "PixArtAlphaPipeline", "pixart-ms"),
            form => {
                copy_tree(&golden("hub"), &model);
                if form != "dit" {
                    fs::remove_dir_all(model.join("transformer")).unwrap();
                    copy_tree(&golden("hub-forms").join(form), &model.join("transformer"));
                }
            }
        }
        (case.damage)(&place);
        for dry in [" --dry-run", ""]
            .iter()
            .filter(|dry| case.dry || dry.is_empty())
        {
            let run =
                format!("sample --device cpu --steps 2 -n 1 --model {{}}/m --out {{}}/x.png{dry}");
            let out = place.run(&format!("{run} {}", case.flags));
            let text = String::from_utf8_lossy(&out.stderr);
            let text = text.replace(&place.0.path().display().to_string(), "{}");
            let said = text.lines().find_map(|line| line.strip_prefix("error: "));
            let found = (out.status.code(), said.unwrap_or(&text));
            if found != (Some(case.code), &case.said) {
                let what = case.what;
                wrong.push(format!(
                    "{what}{dry}\n  found    {found:?}\n  expected {:?}",
                    (case.code, &case.said)
                ));
            }
            assert!(!place.path("x.png").exists(), "{}", case.what);
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(cases.len() >= 20);
}

/// On machines where every device has f16, the unit test of `residence` is what says so; Mesa's OpenGL has none.
#[test]
fn f16_on_a_device_without_it_is_refused() {
    let devices = crate::common::harmonica_json(&["devices", "--json"]);
    let adapters = devices["adapters"].as_array().unwrap();
    assert!(!adapters.is_empty(), "these tests need a Vulkan driver");
    let place = Place::new();
    for adapter in adapters {
        println!(
            "measured: {} by {}: f16 {}",
            adapter["name"], adapter["api"], adapter["f16"]
        );
        if adapter["f16"] == true {
            continue;
        }
        let index = &adapter["index"];
        for dry in ["--dry-run", ""] {
            let run = format!("sample {dry} --dtype f16 --device {index} --out {{}}/x.png");
            let out = place.run(&run);
            let said = String::from_utf8_lossy(&out.stderr);
            let expected =
                "error: bundled: this device has no f16; keep the weights in f32 (--dtype f32)";
            assert!(said.lines().any(|line| line == expected), "{said}");
            assert_eq!(out.status.code(), Some(1));
        }
    }
}
