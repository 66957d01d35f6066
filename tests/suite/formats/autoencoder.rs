//! AutoencoderKLs in both of their layouts.

use super::*;

/// Tensors of an AutoencoderKL, in diffusers' names and in the latent-diffusion release's.
#[derive(Default)]
pub(super) struct Autoencoder(pub Vec<[(String, Vec<usize>); 2]>);

impl Autoencoder {
    /// Of these widths, from the picture inwards.
    pub fn new(widths: &[usize], layers: usize) -> Self {
        let (latents, deep, last) = (4, *widths.last().unwrap(), widths.len() - 1);
        let mut all = Self::default();
        for (half, side) in [("encoder", "down"), ("decoder", "up")] {
            let up = side == "up";
            let of = |name: &str| format!("{half}.{name}");
            let both = |ours: &str, theirs: &str| [of(ours), of(theirs)];
            let [from, to] = if up { [latents, deep] } else { [3, widths[0]] };
            all.layer(both("conv_in", "conv_in"), &[to, from, 3, 3]);
            for n in 0..2 {
                let theirs = format!("mid.block_{}", n + 1);
                let names = both(&format!("mid_block.resnets.{n}"), &theirs);
                all.block(names, [deep; 2]);
            }
            let attention = |ours: &str, theirs: &str| {
                let ours = format!("mid_block.attentions.0.{ours}");
                both(&ours, &format!("mid.attn_1.{theirs}"))
            };
            all.layer(attention("group_norm", "norm"), &[deep]);
            for part in ["q", "k", "v"] {
                let names = attention(&format!("to_{part}"), part);
                all.layer(names, &[deep; 2]);
            }
            all.layer(attention("to_out.0", "proj_out"), &[deep; 2]);
            let mut width = if up { deep } else { widths[0] };
            for i in 0..=last {
                // The release counts the decoder's stages from the picture.
                let stage = if up { last - i } else { i };
                let to = widths[stage];
                for j in 0..layers + usize::from(up) {
                    let ours = format!("{side}_blocks.{i}.resnets.{j}");
                    let theirs = format!("{side}.{stage}.block.{j}");
                    all.block(both(&ours, &theirs), [width, to]);
                    width = to;
                }
                if i < last {
                    let ours = format!("{side}_blocks.{i}.{side}samplers.0.conv");
                    let theirs = format!("{side}.{stage}.{side}sample.conv");
                    all.layer(both(&ours, &theirs), &[to, to, 3, 3]);
                }
            }
            all.layer(both("conv_norm_out", "norm_out"), &[width]);
            let outputs = if up { 3 } else { 2 * latents };
            all.layer(both("conv_out", "conv_out"), &[outputs, width, 3, 3]);
        }
        for (name, channels) in [("quant_conv", 2 * latents), ("post_quant_conv", latents)] {
            let shape = [channels, channels, 1, 1];
            all.layer([name.to_owned(), name.to_owned()], &shape);
        }
        all
    }

    /// Weights and bias of a layer.
    fn layer(&mut self, [ours, theirs]: [String; 2], shape: &[usize]) {
        // The release has the products of its attention as convolutions.
        let of_theirs = match shape {
            [out, input] => vec![*out, *input, 1, 1],
            shape => shape.to_vec(),
        };
        self.0.push([
            (format!("{ours}.weight"), shape.to_vec()),
            (format!("{theirs}.weight"), of_theirs),
        ]);
        let bias = |name: String| (format!("{name}.bias"), vec![shape[0]]);
        self.0.push([bias(ours), bias(theirs)]);
    }

    /// A residual block.
    fn block(&mut self, [ours, theirs]: [String; 2], [from, to]: [usize; 2]) {
        let of = |part: &str| [format!("{ours}.{part}"), format!("{theirs}.{part}")];
        self.layer(of("norm1"), &[from]);
        self.layer(of("conv1"), &[to, from, 3, 3]);
        self.layer(of("norm2"), &[to]);
        self.layer(of("conv2"), &[to, to, 3, 3]);
        if from != to {
            let names = [
                format!("{ours}.conv_shortcut"),
                format!("{theirs}.nin_shortcut"),
            ];
            self.layer(names, &[to, from, 1, 1]);
        }
    }
}

/// Random weights that switch nothing off.
pub(super) fn random(rng: &mut rand_chacha::ChaCha8Rng, name: &str, shape: &[usize]) -> Vec<f32> {
    let inputs: usize = shape[1..].iter().product();
    let (middle, bound) = match shape.len() {
        1 if name.contains("norm") && name.ends_with("weight") => (1.0, 0.3),
        1 => (0.0, 0.2),
        _ => (0.0, (3.0 / inputs as f32).sqrt()),
    };
    let mut one = || rng.next_u32() as i32 as f32 / (1u32 << 31) as f32;
    let numbers = shape.iter().product();
    (0..numbers).map(|_| middle + bound * one()).collect()
}

pub(super) fn kl_config(widths: &[usize], layers: usize) -> Value {
    let blocks = |kind: &str| vec![kind.to_owned(); widths.len()];
    json!({
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": widths, "in_channels": 3, "out_channels": 3,
        "latent_channels": 4, "layers_per_block": layers, "norm_num_groups": 32, "sample_size": 256, "scaling_factor": 0.18215,
        "down_block_types": blocks("DownEncoderBlock2D"), "up_block_types": blocks("UpDecoderBlock2D"),
    })
}
