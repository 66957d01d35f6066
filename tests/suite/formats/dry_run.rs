//! What a dry run says of files that nobody could read here.

use super::{
    autoencoder::{Autoencoder, kl_config},
    *,
};

/// T5-XXL's encoder (v1.1), and what a dry run says of the pipeline around it.
#[cfg(target_os = "linux")]
#[test]
fn a_dry_run_counts_t5_xxl_without_reading_it() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    pixart(&place.path("m"), "PixArtAlphaPipeline", "pixart-ms");
    for part in ["transformer", "vae", "text_encoder"] {
        fs::remove_dir_all(place.path("m").join(part)).unwrap();
    }

    let [width, inner, vocabulary, layers] = [4096, 10240, 32128, 24];
    let mut tensors = vec![
        ("shared.weight".to_owned(), vec![vocabulary, width]),
        ("encoder.final_layer_norm.weight".into(), vec![width]),
        (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight".into(),
            vec![32, 64],
        ),
    ];
    for i in 0..layers {
        let of = |part: &str| format!("encoder.block.{i}.layer.{part}.weight");
        for part in ["0.layer_norm", "1.layer_norm"] {
            tensors.push((of(part), vec![width]));
        }
        for part in ["q", "k", "v", "o"] {
            tensors.push((of(&format!("0.SelfAttention.{part}")), vec![width; 2]));
        }
        for part in ["wi_0", "wi_1"] {
            let name = of(&format!("1.DenseReluDense.{part}"));
            tensors.push((name, vec![inner, width]));
        }
        tensors.push((of("1.DenseReluDense.wo"), vec![width, inner]));
    }
    let encoder = place.folder("m/text_encoder");
    let config = json!({
        "architectures": ["T5EncoderModel"], "d_ff": inner, "d_kv": 64, "d_model": width, "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6, "model_type": "t5", "num_heads": 64, "num_layers": layers,
        "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "vocab_size": vocabulary,
    });
    fs::write(encoder.join("config.json"), config.to_string()).unwrap();
    let mut map = serde_json::Map::new();
    for (i, tensors) in tensors.chunks(tensors.len() / 2 + 1).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        write_hollow(&encoder.join(&file), tensors);
        let names = tensors.iter().map(|(name, _)| name.clone());
        map.extend(names.map(|name| (name, file.clone().into())));
    }
    // As published indices do, it names the twin of the embeddings, which no shard has.
    map.insert(
        "encoder.embed_tokens.weight".into(),
        "model-00001-of-00002.safetensors".into(),
    );
    let index = json!({ "weight_map": map }).to_string();
    fs::write(encoder.join("model.safetensors.index.json"), index).unwrap();

    // The transformer and the autoencoder at their published sizes.
    let published: ModelSpec = "random:PixArt-XL/2@4096".parse().unwrap();
    let published = model_outline(&published, LoadOptions::default()).unwrap();
    let mut all = Vec::new();
    for tensor in published.architecture.tensors() {
        let names = tensor.stored(Naming::Diffusers);
        let mut shape = tensor.shape.clone();
        shape[0] /= names.len().max(1);
        let optional = |name: &String| name.starts_with("pos_embed.pos");
        all.extend(
            names
                .into_iter()
                .filter(|name| !optional(name))
                .map(|name| (name, shape.clone())),
        );
    }
    let transformer = place.folder("m/transformer");
    write_hollow(
        &transformer.join("diffusion_pytorch_model.safetensors"),
        &all,
    );
    let config = json!({
        "_class_name": "Transformer2DModel", "activation_fn": "gelu-approximate", "attention_head_dim": 72,
        "caption_channels": width, "cross_attention_dim": 1152, "in_channels": 4, "norm_type": "ada_norm_single",
        "num_attention_heads": 16, "num_layers": 28, "out_channels": 8, "patch_size": 2, "sample_size": 128,
    });
    fs::write(transformer.join("config.json"), config.to_string()).unwrap();
    let widths = [128, 256, 512, 512];
    let autoencoder: Vec<_> = Autoencoder::new(&widths, 2).0;
    let autoencoder: Vec<_> = autoencoder.into_iter().map(|[ours, _]| ours).collect();
    let vae = place.folder("m/vae");
    write_hollow(
        &vae.join("diffusion_pytorch_model.safetensors"),
        &autoencoder,
    );
    fs::write(vae.join("config.json"), kl_config(&widths, 2).to_string()).unwrap();

    let bytes = |tensors: &[(String, Vec<usize>)]| -> u64 {
        let numbers = tensors
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>());
        4 * numbers.sum::<usize>() as u64
    };
    let whole = bytes(&tensors);
    assert_eq!(whole, 19_049_242_624);
    let written: u64 = fs::read_dir(&encoder)
        .unwrap()
        .map(|entry| 512 * entry.unwrap().metadata().unwrap().blocks())
        .sum();
    assert!(written < 1 << 20, "{written} bytes on the disk");
    let run = "sample --dry-run --device cpu --model {}/m --prompt lighthouse";
    let words = place.words(&format!("{run} --json"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (peak, out) = crate::common::peak_rss(&words);
    println!(
        "measured: dry run of a PixArt with T5-XXL: {:.0} MB at most (bound 200)",
        peak as f64 / 1e6
    );
    assert!(peak > 0 && peak < 200_000_000, "{peak}");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["text_encoder_bytes"], whole);
    let part = |what: &str, key: &str| -> u64 {
        let parts = report["memory"]["parts"].as_array().unwrap();
        let part = parts.iter().find(|part| part["what"] == what);
        part.unwrap()[key].as_u64().unwrap()
    };
    let block: Vec<_> = tensors
        .iter()
        .filter(|(name, _)| name.starts_with("encoder.block.0."))
        .cloned()
        .collect();
    assert_eq!(part("text encoder", "device_bytes"), bytes(&block));
    let table = 4 * (vocabulary * width) as u64;
    assert_eq!(part("text encoder", "host_bytes"), table);
    let of_half: Vec<_> = autoencoder
        .into_iter()
        .filter(|(name, _)| name.starts_with("decoder.") || name.starts_with("post_quant"))
        .collect();
    assert_eq!(part("autoencoder", "device_bytes"), bytes(&of_half));
    let weights = part("weights", "device_bytes");
    assert!(
        (2_400_000_000..2_500_000_000).contains(&weights),
        "{weights}"
    );
    let out = place.run(run);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert!(
        said.contains(
            "text encoder: 19.049 GB in f32, of which one block at a time is read onto the device"
        ),
        "{said}"
    );
}
