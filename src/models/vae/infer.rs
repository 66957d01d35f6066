//! What autoencoder a file holds, checked before any weight is read.

use serde_json::Value;

use super::{
    config::{KlConfig, TinyConfig, VaeConfig},
    layers::{Layer, Weight, kl_decoder, kl_encoder, tiny_decoder, tiny_encoder},
    names::Naming,
};
use crate::containers::{CheckpointError, TensorSource};

/// One half of an autoencoder, and where its weights lie.
#[derive(Debug)]
pub(super) struct Half {
    pub layers: Vec<Layer>,
    /// Every weight with the name it is stored under.
    pub stored: Vec<(Weight, String)>,
}

#[derive(Debug)]
pub(super) struct Found {
    pub config: VaeConfig,
    pub decoder: Option<Half>,
    pub encoder: Option<Half>,
}

/// Describes the autoencoder of an open file.
pub(super) fn describe(
    source: &TensorSource,
    config: Option<VaeConfig>,
) -> Result<Found, CheckpointError> {
    let naming = naming(source)?;
    let config = match (config, source.config()?) {
        (Some(config), _) => config,
        (None, Some(config)) => of_config(source, config)?,
        (None, None) => of_shapes(source, &naming)?,
    };
    config.check().map_err(|problem| bad(source, problem))?;
    let (decoder, encoder, stages) = match &config {
        VaeConfig::Kl(kl) => (kl_decoder(kl), kl_encoder(kl), kl.block_out_channels.len()),
        VaeConfig::Tiny(tiny) => (tiny_decoder(tiny), tiny_encoder(tiny), 0),
    };
    let half = |layers: Vec<Layer>| half(source, layers, &naming, stages);
    let found = Found {
        decoder: half(decoder)?,
        encoder: half(encoder)?,
        config,
    };
    if found.decoder.is_none() && found.encoder.is_none() {
        return Err(bad(
            source,
            "it holds neither an encoder nor a decoder".into(),
        ));
    }
    Ok(found)
}

fn bad(source: &TensorSource, problem: String) -> CheckpointError {
    CheckpointError::Config {
        path: source.path().into(),
        problem: format!("as an autoencoder: {problem}"),
    }
}

fn naming(source: &TensorSource) -> Result<Naming, CheckpointError> {
    let has = |part: &str| source.entries().any(|e| e.name.contains(part));
    let first = |name: &str| source.get(name).is_some();
    // A whole checkpoint has the autoencoder under a prefix.
    let inner = |prefix: &str, name: &str| first(&format!("{prefix}{name}"));
    for prefix in ["first_stage_model.", ""] {
        if [
            "decoder.mid.block_1.conv1.weight",
            "encoder.mid.block_1.conv1.weight",
        ]
        .iter()
        .any(|name| inner(prefix, name))
        {
            return Ok(Naming::Release {
                prefix: prefix.into(),
            });
        }
    }
    if has(".mid_block.attentions.0.query.") {
        return Ok(Naming::OldDiffusers);
    }
    if first("decoder.conv_in.weight")
        || first("encoder.conv_in.weight")
        || first("decoder.layers.0.weight")
        || first("encoder.layers.0.weight")
    {
        return Ok(Naming::Diffusers);
    }
    let conv = |name: &str| source.get(name).is_some_and(|e| e.shape.len() == 4);
    if conv("0.weight") || conv("1.weight") {
        return Ok(Naming::Sequence);
    }
    let held: Vec<_> = source
        .entries()
        .take(3)
        .map(|e| format!("`{}`", e.name))
        .collect();
    Err(bad(
        source,
        format!(
            "expected the tensors of an AutoencoderKL or of TAESD, found {}",
            if held.is_empty() {
                "none".into()
            } else {
                held.join(", ")
            }
        ),
    ))
}

fn of_config(source: &TensorSource, config: Value) -> Result<VaeConfig, CheckpointError> {
    let class = config.get("_class_name").and_then(Value::as_str);
    let tiny = match class {
        Some("AutoencoderKL") => false,
        Some("AutoencoderTiny") => true,
        None => source.get("decoder.layers.0.weight").is_some(),
        Some(other) => {
            return Err(bad(
                source,
                format!(
                    "its config.json describes a `{other}`, expected `AutoencoderKL` or `AutoencoderTiny`"
                ),
            ));
        }
    };
    let misread = |e: serde_json::Error| bad(source, format!("its config.json: {e}"));
    Ok(match tiny {
        true => VaeConfig::Tiny(serde_json::from_value(config).map_err(misread)?),
        false => VaeConfig::Kl(serde_json::from_value(config).map_err(misread)?),
    })
}

/// The config of a file without one: widths, depth and latent channels stand in the shapes, groups and scaling are Stable
/// Diffusion's.
fn of_shapes(source: &TensorSource, naming: &Naming) -> Result<VaeConfig, CheckpointError> {
    const MOST_STAGES: usize = 8;
    let tiny = |name: &str| source.get(&naming.stored(name, 0));
    let (decoder, encoder) = ("decoder.layers.0.weight", "encoder.layers.0.weight");
    let is_tiny = *naming == Naming::Sequence || tiny(decoder).is_some() || tiny(encoder).is_some();
    if is_tiny {
        let mut config = TinyConfig::default();
        for (name, channel) in [(decoder, 1), (encoder, 0)] {
            if let Some([out, input, 3, 3]) = tiny(name).map(|e| &e.shape[..]) {
                let (width, other) = (*out, *input);
                let stages = config.num_decoder_blocks.len();
                if channel == 1 {
                    config.latent_channels = other;
                    config.decoder_block_out_channels = vec![width; stages];
                } else if other == 3 {
                    config.encoder_block_out_channels = vec![width; stages];
                }
            }
        }
        return Ok(VaeConfig::Tiny(config));
    }
    // Stages are counted from the picture in the release and from the latents in diffusers, so their number comes first.
    let shape = |name: &str, stages: usize| {
        let entry = source.get(&naming.stored(name, stages));
        entry.map(|e| e.shape.clone())
    };
    let stages_of = |half: &str| {
        (1..=MOST_STAGES).rev().find(|stages| {
            let last = stages - 1;
            let name = match half {
                "encoder" => format!("encoder.down_blocks.{last}.resnets.0.conv1.weight"),
                // The last of diffusers' stages is the release's first, whatever the count: look for the other end there.
                _ => match naming {
                    Naming::Release { .. } => "decoder.up_blocks.0.resnets.0.conv1.weight".into(),
                    _ => format!("decoder.up_blocks.{last}.resnets.0.conv1.weight"),
                },
            };
            shape(&name, *stages).is_some()
        })
    };
    let Some(stages) = stages_of("decoder").or_else(|| stages_of("encoder")) else {
        return Err(bad(source, "its stages cannot be counted".into()));
    };
    let mut config = KlConfig {
        block_out_channels: Vec::new(),
        ..KlConfig::default()
    };
    let has_decoder = shape("decoder.conv_in.weight", stages).is_some();
    for stage in 0..stages {
        let name = match has_decoder {
            true => format!(
                "decoder.up_blocks.{}.resnets.0.conv2.weight",
                stages - 1 - stage
            ),
            false => format!("encoder.down_blocks.{stage}.resnets.0.conv2.weight"),
        };
        match shape(&name, stages).as_deref() {
            Some([width, ..]) => config.block_out_channels.push(*width),
            _ => return Err(bad(source, format!("tensor `{name}` is missing"))),
        }
    }
    let (latent, moments) = (
        shape("decoder.conv_in.weight", stages),
        shape("encoder.conv_out.weight", stages),
    );
    config.latent_channels = match (latent.as_deref(), moments.as_deref()) {
        (Some([_, channels, ..]), _) => *channels,
        (None, Some([twice, ..])) => twice / 2,
        _ => config.latent_channels,
    };
    let layers = (0..64).take_while(|j| {
        let name = match has_decoder {
            true => format!("decoder.up_blocks.0.resnets.{j}.conv1.weight"),
            false => format!("encoder.down_blocks.0.resnets.{j}.conv1.weight"),
        };
        shape(&name, stages).is_some()
    });
    config.layers_per_block = layers.count().saturating_sub(usize::from(has_decoder));
    config.use_quant_conv = shape("quant_conv.weight", stages).is_some();
    config.use_post_quant_conv = shape("post_quant_conv.weight", stages).is_some();
    let half = if has_decoder { "decoder" } else { "encoder" };
    let attention = format!("{half}.mid_block.attentions.0.group_norm.weight");
    config.mid_block_add_attention = shape(&attention, stages).is_some();
    Ok(VaeConfig::Kl(config))
}

/// A half whose weights are all there; none where not one of them is.
fn half(
    source: &TensorSource,
    layers: Vec<Layer>,
    naming: &Naming,
    stages: usize,
) -> Result<Option<Half>, CheckpointError> {
    let path = source.path();
    let weights = layers.iter().flat_map(Layer::weights);
    let stored: Vec<_> = weights
        .map(|weight| {
            let name = naming.stored(&weight.name, stages);
            (weight, name)
        })
        .collect();
    // A sequence of numbers is a decoder or an encoder: the shape of its first layer says which.
    let absent = |(weight, name): &(Weight, String)| match source.get(name) {
        None => true,
        Some(entry) => *naming == Naming::Sequence && !agrees(weight, &entry.shape),
    };
    let missing: Vec<_> = stored.iter().filter(|weight| absent(weight)).collect();
    match (missing.first(), missing.len() == stored.len()) {
        _ if *naming == Naming::Sequence && stored.first().is_some_and(absent) => return Ok(None),
        (Some(_), true) => return Ok(None),
        (Some((weight, name)), false) => {
            return Err(source.missing(name, &weight.shape, missing.len()));
        }
        (None, _) => {}
    }
    for (weight, name) in &stored {
        let Some(entry) = source.get(name) else {
            continue;
        };
        if !agrees(weight, &entry.shape) {
            return Err(CheckpointError::Shape {
                path: path.into(),
                name: name.clone(),
                found: entry.shape.clone(),
                expected: weight.shape.clone(),
            });
        }
        if !entry.dtype.is_float() {
            return Err(CheckpointError::Dtype {
                path: path.into(),
                name: name.clone(),
                dtype: entry.dtype.to_string(),
            });
        }
    }
    Ok(Some(Half { layers, stored }))
}

/// Whether a stored shape is the weight's: attention's products may be stored as 1×1 convolutions.
fn agrees(weight: &Weight, found: &[usize]) -> bool {
    match (&weight.shape[..], found) {
        ([out, input], [a, b, 1, 1]) => [out, input] == [a, b],
        (expected, found) => expected == found,
    }
}
