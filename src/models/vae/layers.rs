//! An autoencoder's halves as lists of layers: pure data, from which weights are checked and passes are run.

use super::config::{KlConfig, TinyConfig};
use crate::kernels::PATCH_NUMBERS;

/// Epsilon of the norms.
pub(super) const NORM_EPS: f64 = 1e-6;
/// Queries that attention takes at a time.
pub(super) const QUERIES: usize = 1024;

/// Where a convolution of stride 2 pads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// A cell on every side.
    Around,
    /// A cell below and at the right.
    After,
}

/// One layer. Names are diffusers'.
#[derive(Debug, Clone, PartialEq)]
pub enum Layer {
    /// A convolution of side `kernel`, 1 or 3, that keeps the size.
    Conv {
        name: String,
        channels: [usize; 2],
        kernel: usize,
        bias: bool,
    },
    /// One of side 3 that halves it.
    Halve {
        name: String,
        channels: [usize; 2],
        padding: Padding,
        bias: bool,
    },
    /// Nearest neighbours, twice the size.
    Double,
    /// GroupNorm and SiLU.
    Norm {
        name: String,
        channels: usize,
        groups: usize,
    },
    /// `x + conv(silu(norm(conv(silu(norm(x))))))`, with a 1×1 convolution of `x` where the number of channels changes.
    Residual {
        name: String,
        channels: [usize; 2],
        groups: usize,
    },
    /// `x +` attention of one head over all cells.
    Attention {
        name: String,
        channels: usize,
        groups: usize,
    },
    /// TAESD's: `relu(x + conv(relu(conv(relu(conv(x))))))`.
    Block {
        name: String,
        channels: usize,
    },
    Relu,
    /// `3·tanh(x/3)`
    SoftClamp,
    /// `a·x + b`
    Affine(f32, f32),
}

/// A weight of a layer: its name in diffusers and PyTorch's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Weight {
    pub name: String,
    pub shape: Vec<usize>,
}

impl Layer {
    /// Its weights.
    pub(super) fn weights(&self) -> Vec<Weight> {
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            all.push(Weight {
                name,
                shape: shape.to_vec(),
            });
        };
        let mut conv = |name: &str, [input, output]: [usize; 2], kernel: usize, bias: bool| {
            add(format!("{name}.weight"), &[output, input, kernel, kernel]);
            if bias {
                add(format!("{name}.bias"), &[output]);
            }
        };
        match self {
            Self::Conv {
                name,
                channels,
                kernel,
                bias,
            } => conv(name, *channels, *kernel, *bias),
            Self::Halve {
                name,
                channels,
                bias,
                ..
            } => conv(name, *channels, 3, *bias),
            Self::Block { name, channels } => {
                for n in [0, 2, 4] {
                    conv(&format!("{name}.conv.{n}"), [*channels; 2], 3, true);
                }
            }
            Self::Residual { name, channels, .. } => {
                let [input, output] = *channels;
                conv(&format!("{name}.conv1"), [input, output], 3, true);
                conv(&format!("{name}.conv2"), [output; 2], 3, true);
                if input != output {
                    conv(&format!("{name}.conv_shortcut"), [input, output], 1, true);
                }
                for (norm, width) in [("norm1", input), ("norm2", output)] {
                    add(format!("{name}.{norm}.weight"), &[width]);
                    add(format!("{name}.{norm}.bias"), &[width]);
                }
            }
            Self::Norm { name, channels, .. } => {
                add(format!("{name}.weight"), &[*channels]);
                add(format!("{name}.bias"), &[*channels]);
            }
            Self::Attention { name, channels, .. } => {
                add(format!("{name}.group_norm.weight"), &[*channels]);
                add(format!("{name}.group_norm.bias"), &[*channels]);
                for part in ["to_q", "to_k", "to_v", "to_out.0"] {
                    add(format!("{name}.{part}.weight"), &[*channels, *channels]);
                    add(format!("{name}.{part}.bias"), &[*channels]);
                }
            }
            Self::Double | Self::Relu | Self::SoftClamp | Self::Affine(..) => {}
        }
        all
    }

    /// Channels that it takes and gives, where it says so.
    pub(super) fn channels(&self) -> Option<[usize; 2]> {
        match self {
            Self::Conv { channels, .. }
            | Self::Halve { channels, .. }
            | Self::Residual { channels, .. } => Some(*channels),
            Self::Norm { channels, .. }
            | Self::Attention { channels, .. }
            | Self::Block { channels, .. } => Some([*channels; 2]),
            Self::Double | Self::Relu | Self::SoftClamp | Self::Affine(..) => None,
        }
    }
}

fn conv(name: impl Into<String>, channels: [usize; 2], kernel: usize) -> Layer {
    Layer::Conv {
        name: name.into(),
        channels,
        kernel,
        bias: true,
    }
}

/// AutoencoderKL's decoder.
pub(super) fn kl_decoder(config: &KlConfig) -> Vec<Layer> {
    let latents = config.latent_channels;
    let [first, .., inner] = config.ends();
    let mut layers = Vec::new();
    if config.use_post_quant_conv {
        layers.push(conv("post_quant_conv", [latents; 2], 1));
    }
    layers.push(conv("decoder.conv_in", [latents, inner], 3));
    layers.extend(kl_middle("decoder", config));
    let mut width = inner;
    let blocks = config.block_out_channels.len();
    for (i, output) in config.block_out_channels.iter().rev().enumerate() {
        for j in 0..=config.layers_per_block {
            layers.push(Layer::Residual {
                name: format!("decoder.up_blocks.{i}.resnets.{j}"),
                channels: [width, *output],
                groups: config.norm_num_groups,
            });
            width = *output;
        }
        if i + 1 < blocks {
            layers.push(Layer::Double);
            let name = format!("decoder.up_blocks.{i}.upsamplers.0.conv");
            layers.push(conv(name, [width; 2], 3));
        }
    }
    layers.push(Layer::Norm {
        name: "decoder.conv_norm_out".into(),
        channels: first,
        groups: config.norm_num_groups,
    });
    layers.push(conv("decoder.conv_out", [first, config.out_channels], 3));
    layers
}

/// AutoencoderKL's encoder, to means and logarithms of variances.
pub(super) fn kl_encoder(config: &KlConfig) -> Vec<Layer> {
    let latents = config.latent_channels;
    let [first, .., inner] = config.ends();
    let mut layers = vec![conv("encoder.conv_in", [config.in_channels, first], 3)];
    let mut width = first;
    let blocks = config.block_out_channels.len();
    for (i, output) in config.block_out_channels.iter().enumerate() {
        for j in 0..config.layers_per_block {
            layers.push(Layer::Residual {
                name: format!("encoder.down_blocks.{i}.resnets.{j}"),
                channels: [width, *output],
                groups: config.norm_num_groups,
            });
            width = *output;
        }
        if i + 1 < blocks {
            layers.push(Layer::Halve {
                name: format!("encoder.down_blocks.{i}.downsamplers.0.conv"),
                channels: [width; 2],
                padding: Padding::After,
                bias: true,
            });
        }
    }
    layers.extend(kl_middle("encoder", config));
    layers.push(Layer::Norm {
        name: "encoder.conv_norm_out".into(),
        channels: inner,
        groups: config.norm_num_groups,
    });
    layers.push(conv("encoder.conv_out", [inner, 2 * latents], 3));
    if config.use_quant_conv {
        layers.push(conv("quant_conv", [2 * latents; 2], 1));
    }
    layers
}

fn kl_middle(half: &str, config: &KlConfig) -> Vec<Layer> {
    let [.., inner] = config.ends();
    let residual = |n: usize| Layer::Residual {
        name: format!("{half}.mid_block.resnets.{n}"),
        channels: [inner; 2],
        groups: config.norm_num_groups,
    };
    let attention = Layer::Attention {
        name: format!("{half}.mid_block.attentions.0"),
        channels: inner,
        groups: config.norm_num_groups,
    };
    let mut layers = vec![residual(0)];
    layers.extend(config.mid_block_add_attention.then_some(attention));
    layers.push(residual(1));
    layers
}

/// TAESD's decoder; its layers are numbered, those without weights too.
pub(super) fn tiny_decoder(config: &TinyConfig) -> Vec<Layer> {
    let mut numbered = Numbered::new("decoder");
    let mut layers = vec![Layer::SoftClamp];
    let stages = config.num_decoder_blocks.len();
    let [first, ..] = config.decoder_block_out_channels[..] else {
        return layers;
    };
    layers.push(numbered.conv([config.latent_channels, first], true));
    layers.push(numbered.plain(Layer::Relu));
    let widths = config.decoder_block_out_channels.iter();
    for (i, (blocks, width)) in config.num_decoder_blocks.iter().zip(widths).enumerate() {
        let last = i + 1 == stages;
        layers.extend((0..*blocks).map(|_| numbered.block(*width)));
        if !last {
            layers.push(numbered.plain(Layer::Double));
        }
        let output = if last { config.out_channels } else { *width };
        layers.push(numbered.conv([*width, output], last));
    }
    // From [0, 1].
    layers.push(Layer::Affine(2.0, -1.0));
    layers
}

/// TAESD's encoder.
pub(super) fn tiny_encoder(config: &TinyConfig) -> Vec<Layer> {
    let mut numbered = Numbered::new("encoder");
    let mut layers = vec![Layer::Affine(0.5, 0.5)];
    let mut last = config.in_channels;
    let widths = config.encoder_block_out_channels.iter();
    for (i, (blocks, width)) in config.num_encoder_blocks.iter().zip(widths).enumerate() {
        layers.push(match i {
            0 => numbered.conv([last, *width], true),
            _ => Layer::Halve {
                name: numbered.name(),
                channels: [*width; 2],
                padding: Padding::Around,
                bias: false,
            },
        });
        layers.extend((0..*blocks).map(|_| numbered.block(*width)));
        last = *width;
    }
    layers.push(numbered.conv([last, config.latent_channels], true));
    layers
}

struct Numbered {
    half: &'static str,
    next: usize,
}

impl Numbered {
    fn new(half: &'static str) -> Self {
        Self { half, next: 0 }
    }

    fn name(&mut self) -> String {
        let name = format!("{}.layers.{}", self.half, self.next);
        self.next += 1;
        name
    }

    fn plain(&mut self, layer: Layer) -> Layer {
        self.next += 1;
        layer
    }

    fn block(&mut self, channels: usize) -> Layer {
        Layer::Block {
            name: self.name(),
            channels,
        }
    }

    fn conv(&mut self, channels: [usize; 2], bias: bool) -> Layer {
        Layer::Conv {
            name: self.name(),
            channels,
            kernel: 3,
            bias,
        }
    }
}

/// Bytes that a pass of these layers over `[height, width]` holds at a time, by estimate.
pub(super) fn peak_bytes(layers: &[Layer], size: [usize; 2]) -> u64 {
    let of_layer = |layer: &Layer, cells: usize| {
        let [input, output] = layer.channels().unwrap_or([0; 2]);
        // The input, what it is turned into, the output before and after its bias; a residual keeps its input beside them.
        let numbers = match layer {
            Layer::Residual { .. } => 2 * input + 2 * output,
            Layer::Attention { .. } => 6 * input + 2 * QUERIES,
            _ => input + 2 * output,
        };
        cells * numbers + (9 * cells * input).min(PATCH_NUMBERS)
    };
    largest(layers, size, of_layer)
}

/// Bytes of the largest picture between two layers, or of patches.
pub(super) fn largest_buffer(layers: &[Layer], size: [usize; 2]) -> u64 {
    let of_layer = |layer: &Layer, cells: usize| {
        let [input, output] = layer.channels().unwrap_or([0; 2]);
        (cells * input.max(output)).max((9 * cells * input).min(PATCH_NUMBERS))
    };
    largest(layers, size, of_layer)
}

/// The most bytes of a layer, by its numbers for so many cells.
fn largest(
    layers: &[Layer],
    [height, width]: [usize; 2],
    numbers: impl Fn(&Layer, usize) -> usize,
) -> u64 {
    let mut cells = height * width;
    let of_layer = layers.iter().map(|layer| {
        match layer {
            Layer::Double => cells *= 4,
            Layer::Halve { .. } => cells = cells.div_ceil(4),
            _ => {}
        }
        4 * numbers(layer, cells) as u64
    });
    of_layer.max().unwrap_or(0)
}
