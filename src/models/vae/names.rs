//! What a weight is called in files that are not diffusers'.

/// Whose names a file uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Naming {
    Diffusers,
    /// Diffusers' before its attention layers were one class: `query`, `key`, `value`, `proj_attn`.
    OldDiffusers,
    /// The latent-diffusion release's, after this prefix.
    Release {
        prefix: String,
    },
    /// TAESD's own: numbers of a sequence of layers, of a decoder or of an encoder.
    Sequence,
}

impl Naming {
    /// The name of the weight that diffusers calls `name`, in an autoencoder of so many stages.
    pub fn stored(&self, name: &str, stages: usize) -> String {
        match self {
            Self::Diffusers => name.into(),
            Self::OldDiffusers => {
                let parts = [
                    ("to_q", "query"),
                    ("to_k", "key"),
                    ("to_v", "value"),
                    ("to_out.0", "proj_attn"),
                ];
                let found = parts.iter().find(|(new, _)| {
                    name.contains(".attentions.") && name.contains(&format!(".{new}."))
                });
                match found {
                    None => name.into(),
                    Some((new, old)) => name.replace(&format!(".{new}."), &format!(".{old}.")),
                }
            }
            Self::Release { prefix } => format!("{prefix}{}", release_name(name, stages)),
            Self::Sequence => {
                // Its decoder has the clamp as layer 0.
                let (shift, rest) = match name.strip_prefix("decoder.layers.") {
                    Some(rest) => (1, rest),
                    None => (0, name.trim_start_matches("encoder.layers.")),
                };
                match rest.split_once('.') {
                    Some((number, rest)) => match number.parse::<usize>() {
                        Ok(number) => format!("{}.{rest}", number + shift),
                        Err(_) => name.into(),
                    },
                    None => name.into(),
                }
            }
        }
    }
}

/// The latent-diffusion release's name of a weight of AutoencoderKL.
fn release_name(name: &str, stages: usize) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let residual = |rest: &[&str]| rest.join(".").replace("conv_shortcut", "nin_shortcut");
    match parts.as_slice() {
        [half, "mid_block", "resnets", n, rest @ ..] => {
            let n = if *n == "0" { 1 } else { 2 };
            format!("{half}.mid.block_{n}.{}", residual(rest))
        }
        [half, "mid_block", "attentions", _, rest @ ..] => {
            let rest = rest.join(".");
            let theirs = [
                ("group_norm.", "norm."),
                ("to_q.", "q."),
                ("to_k.", "k."),
                ("to_v.", "v."),
                ("to_out.0.", "proj_out."),
            ];
            let (ours, theirs) = theirs
                .into_iter()
                .find(|(ours, _)| rest.starts_with(ours))
                .unwrap_or(("", ""));
            format!("{half}.mid.attn_1.{theirs}{}", &rest[ours.len()..])
        }
        [half, "down_blocks", i, "resnets", j, rest @ ..] => {
            format!("{half}.down.{i}.block.{j}.{}", residual(rest))
        }
        [half, "down_blocks", i, "downsamplers", _, rest @ ..] => {
            format!("{half}.down.{i}.downsample.{}", rest.join("."))
        }
        // The release counts stages from the picture.
        [half, "up_blocks", i, part, j, rest @ ..] => {
            let i = i.parse::<usize>().unwrap_or(0);
            let i = stages.saturating_sub(i + 1);
            match *part {
                "resnets" => format!("{half}.up.{i}.block.{j}.{}", residual(rest)),
                _ => format!("{half}.up.{i}.upsample.{}", rest.join(".")),
            }
        }
        [half, "conv_norm_out", rest @ ..] => format!("{half}.norm_out.{}", rest.join(".")),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_found_under_the_releases_names() {
        let naming = Naming::Release {
            prefix: "first_stage_model.".into(),
        };
        let cases = [
            ("decoder.conv_in.bias", "decoder.conv_in.bias"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
            (
                "decoder.mid_block.resnets.1.norm2.weight",
                "decoder.mid.block_2.norm2.weight",
            ),
            (
                "encoder.mid_block.attentions.0.group_norm.bias",
                "encoder.mid.attn_1.norm.bias",
            ),
            (
                "encoder.mid_block.attentions.0.to_out.0.weight",
                "encoder.mid.attn_1.proj_out.weight",
            ),
            (
                "decoder.up_blocks.0.resnets.2.conv1.weight",
                "decoder.up.3.block.2.conv1.weight",
            ),
            (
                "decoder.up_blocks.2.resnets.0.conv_shortcut.bias",
                "decoder.up.1.block.0.nin_shortcut.bias",
            ),
            (
                "decoder.up_blocks.1.upsamplers.0.conv.weight",
                "decoder.up.2.upsample.conv.weight",
            ),
            (
                "encoder.down_blocks.1.downsamplers.0.conv.bias",
                "encoder.down.1.downsample.conv.bias",
            ),
            ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
        ];
        for (ours, theirs) in cases {
            assert_eq!(
                naming.stored(ours, 4),
                format!("first_stage_model.{theirs}")
            );
        }
    }

    #[test]
    fn old_attention_and_sequences_have_names_of_their_own() {
        let old = |name| Naming::OldDiffusers.stored(name, 4);
        assert_eq!(
            old("decoder.mid_block.attentions.0.to_out.0.weight"),
            "decoder.mid_block.attentions.0.proj_attn.weight"
        );
        assert_eq!(old("decoder.conv_in.weight"), "decoder.conv_in.weight");
        let sequence = |name| Naming::Sequence.stored(name, 4);
        assert_eq!(
            sequence("decoder.layers.2.conv.0.weight"),
            "3.conv.0.weight"
        );
        assert_eq!(sequence("encoder.layers.0.bias"), "0.bias");
    }
}
