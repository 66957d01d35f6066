//! Inputs, formulas and calls.

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};

use super::Case;
use crate::{
    device::{DeviceFault, read_back},
    diffusion::{Guidance, GuidedChannels, ImageNoise, Step, StepNoise, Weights},
    kernels::{
        Before, Bf16Matrix, OutputLayout, QuantisedData, Reused, SlotAt, VectorAt, attention,
        bf16_product, cache_write, dequantise, embed_tokens, gated_residual, gelu, half_product,
        modulate, product, reuse_span, solver_step,
    },
};

/// `[B, tokens, dim]`: more than one workgroup, no multiples of one.
const SHAPE: [usize; 3] = [BATCH, TOKENS, DIM];
const BATCH: usize = 2;
const TOKENS: usize = 65;
const DIM: usize = 72;
const COUNT: usize = BATCH * TOKENS * DIM;
const HEADS: usize = 3;
const EPSILON: f64 = 1e-6;

/// What right values in f32 stay far below, whatever the GPU's own exponential; what errs is far above it.
const F32: f64 = 1e-4;
/// The same of values that are kept in f16, which devices may round either way.
const F16: f64 = 2e-3;

pub(super) fn numbers(stream: u64, count: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(count);
    ImageNoise::with_purpose("harmonica kernel check", 0, stream).fill(count, &mut out);
    out
}

pub(super) fn upload<const D: usize>(
    values: &[f32],
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// A case whose call needs the device alone.
fn case(
    kernel: &'static str,
    most: f64,
    expected: Vec<f64>,
    run: impl Fn(&Device) -> Result<Vec<f32>, DeviceFault> + 'static,
) -> Case {
    Case {
        kernel,
        expected,
        most,
        run: Box::new(move |engine| run(engine.device())),
    }
}

/// Kernels that builds without the shaders have as well, composed of burn's operations.
pub(super) fn of_both_forms() -> Vec<Case> {
    vec![
        of_product(),
        of_attention(),
        of_modulate(),
        of_gelu(),
        of_dequantise(),
        of_embed_tokens(),
        of_gated_residual(),
        of_solver_step(),
    ]
}

/// Kernels of the cache's arenas.
pub(super) fn of_arenas() -> Vec<Case> {
    vec![
        of_cache_write("cache_write", false),
        of_cache_write("cache_write, f16", true),
        of_reuse_span("reuse_span", false),
        of_reuse_span("reuse_span, f16", true),
    ]
}

fn of_product() -> Case {
    const OUTPUTS: usize = 132;
    let (x, weight) = (numbers(1, COUNT), numbers(2, DIM * OUTPUTS));
    let value = |row: usize, column: usize| {
        let term = |k| f64::from(x[row * DIM + k]) * f64::from(weight[k * OUTPUTS + column]);
        (0..DIM).map(term).sum()
    };
    let rows = BATCH * TOKENS;
    let expected = (0..rows).flat_map(|row| (0..OUTPUTS).map(move |column| (row, column)));
    let expected = expected.map(|(row, column)| value(row, column)).collect();
    // Matrix units may round their inputs to 10 bits.
    case("product", 1e-3, expected, move |device| {
        let weight = upload(&weight, [DIM, OUTPUTS], device);
        read_back(product(upload(&x, SHAPE, device), weight))
    })
}

/// The product of matrix units, whose factors are in f16.
pub(super) fn of_matrix_product() -> Case {
    const ROWS: usize = 130;
    const DEPTH: usize = 128;
    const OUTPUTS: usize = 384;
    let x = numbers(1, ROWS * DEPTH);
    let halves: Vec<f16> = numbers(2, DEPTH * OUTPUTS)
        .into_iter()
        .map(f16::from_f32)
        .collect();
    let value = |row: usize, column: usize| {
        let term = |k| f64::from(x[row * DEPTH + k]) * f64::from(halves[k * OUTPUTS + column]);
        (0..DEPTH).map(term).sum()
    };
    let expected = (0..ROWS).flat_map(|row| (0..OUTPUTS).map(move |column| (row, column)));
    let expected = expected.map(|(row, column)| value(row, column)).collect();
    case("matrix_product", F16, expected, move |device| {
        let weight = TensorData::new(halves.clone(), [DEPTH, OUTPUTS]);
        let weight = Tensor::from_data(weight, (device, DType::F16));
        read_back(half_product(upload(&x, [ROWS, DEPTH], device), weight))
    })
}

/// The product of the processor, whose factors are in bf16.
pub(super) fn of_bf16_product() -> Case {
    // No multiples of a tile.
    const ROWS: usize = 130;
    const DEPTH: usize = 129;
    const OUTPUTS: usize = 383;
    let (x, weight) = (numbers(1, ROWS * DEPTH), numbers(2, DEPTH * OUTPUTS));
    let rounded = |v: f32| bf16::from_f32(v).to_f64();
    let value = |row: usize, column: usize| {
        let term = |k| rounded(x[row * DEPTH + k]) * rounded(weight[k * OUTPUTS + column]);
        (0..DEPTH).map(term).sum()
    };
    let expected = (0..ROWS).flat_map(|row| (0..OUTPUTS).map(move |column| (row, column)));
    let expected = expected.map(|(row, column)| value(row, column)).collect();
    let matrix = Bf16Matrix::of(&weight, [DEPTH, OUTPUTS]);
    case("bf16_product", F32, expected, move |device| {
        read_back(bf16_product(upload(&x, [ROWS, DEPTH], device), &matrix))
    })
}

fn of_attention() -> Case {
    let (qkv, bias) = (numbers(1, 3 * COUNT), numbers(2, 3 * DIM));
    let head = DIM / HEADS;
    let value = |row: usize, part: usize, channel: usize| {
        let channel = part * DIM + channel;
        f64::from(qkv[row * 3 * DIM + channel] + bias[channel])
    };
    let mut expected = vec![0.0; COUNT];
    for (row, out) in expected.chunks_exact_mut(DIM).enumerate() {
        let keys = row / TOKENS * TOKENS..(row / TOKENS + 1) * TOKENS;
        for h in 0..HEADS {
            let channels = h * head..(h + 1) * head;
            let weight = |key: usize| {
                let terms = channels
                    .clone()
                    .map(|c| value(row, 0, c) * value(key, 1, c));
                (terms.sum::<f64>() / (head as f64).sqrt()).exp()
            };
            let weights: Vec<f64> = keys.clone().map(weight).collect();
            let total: f64 = weights.iter().sum();
            for c in channels.clone() {
                let terms = keys.clone().zip(&weights);
                let mixed: f64 = terms.map(|(key, weight)| weight * value(key, 2, c)).sum();
                out[c] = mixed / total;
            }
        }
    }
    case("attention", F32, expected, move |device| {
        let qkv = upload(&qkv, [BATCH, TOKENS, 3 * DIM], device);
        read_back(attention(qkv, upload(&bias, [3 * DIM], device), HEADS))
    })
}

/// Vectors of two kinds, one of each for every element of the batch.
struct Slab(Vec<f32>);

impl Slab {
    const SHAPE: [usize; 3] = [1, BATCH, 2 * DIM];

    fn new() -> Self {
        Self(numbers(9, BATCH * 2 * DIM))
    }

    fn at(kind: usize) -> VectorAt {
        VectorAt {
            start: kind * DIM,
            stride: 2 * DIM,
            count: BATCH,
        }
    }

    fn upload(&self, device: &Device) -> Tensor<3> {
        upload(&self.0, Self::SHAPE, device)
    }

    /// What number `i` of `[B, tokens, dim]` meets.
    fn value(&self, kind: usize, i: usize) -> f64 {
        let element = i / DIM / TOKENS;
        f64::from(self.0[element * 2 * DIM + kind * DIM + i % DIM])
    }
}

fn of_modulate() -> Case {
    let (x, slab) = (numbers(1, COUNT), Slab::new());
    let row = |(row, x): (usize, &[f32])| -> Vec<f64> {
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / DIM as f64;
        let variance = x
            .iter()
            .map(|v| (f64::from(*v) - mean).powi(2))
            .sum::<f64>()
            / DIM as f64;
        let value = |(c, v): (usize, &f32)| {
            let normal = (f64::from(*v) - mean) / (variance + EPSILON).sqrt();
            let i = row * DIM + c;
            normal * (1.0 + slab.value(1, i)) + slab.value(0, i)
        };
        x.iter().enumerate().map(value).collect()
    };
    let expected = x.chunks_exact(DIM).enumerate().flat_map(row).collect();
    case("modulate", F32, expected, move |device| {
        let x = upload(&x, SHAPE, device);
        let (shift, scale) = (Slab::at(0), Slab::at(1));
        read_back(modulate(x, &slab.upload(device), shift, scale, EPSILON))
    })
}

fn of_gelu() -> Case {
    let (x, bias) = (numbers(1, COUNT), numbers(2, DIM));
    let value = |(i, x): (usize, &f32)| {
        let v = f64::from(x + bias[i % DIM]);
        let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
        0.5 * v * (1.0 + u.tanh())
    };
    let expected = x.iter().enumerate().map(value).collect();
    case("gelu", F32, expected, move |device| {
        read_back(gelu(
            upload(&x, SHAPE, device),
            upload(&bias, [DIM], device),
        ))
    })
}

fn of_dequantise() -> Case {
    // No multiple of the four numbers of a word.
    let (inputs, outputs) = (29, 73);
    let values = numbers(1, inputs * outputs);
    let largest = |output: usize| {
        let column = values.iter().skip(output).step_by(outputs);
        column.fold(0.0f32, |most, v| most.max(v.abs()))
    };
    let value = |(i, v): (usize, &f32)| {
        let scale = largest(i % outputs) / 127.0;
        f64::from((v / scale).round_ties_even()) * f64::from(scale)
    };
    let expected = values.iter().enumerate().map(value).collect();
    let data = QuantisedData::of(&values, [inputs, outputs]);
    case("dequantise", F32, expected, move |device| {
        read_back(dequantise(&data.clone().into_device(device)))
    })
}

fn of_embed_tokens() -> Case {
    let (x, bias, positions) = (numbers(1, COUNT), numbers(2, DIM), numbers(3, TOKENS * DIM));
    let value = |i: usize| f64::from(x[i] + bias[i % DIM] + positions[i % (TOKENS * DIM)]);
    let expected = (0..2 * COUNT).map(|i| value(i % COUNT)).collect();
    case("embed_tokens", F32, expected, move |device| {
        let positions = upload(&positions, [1, TOKENS, DIM], device);
        let bias = upload(&bias, [DIM], device);
        read_back(embed_tokens(upload(&x, SHAPE, device), bias, positions, 2))
    })
}

/// A feature that joins the stream under the slab's first gate: what comes of it, and the inputs.
struct Joining {
    x: Vec<f32>,
    feature: Vec<f32>,
    bias: Vec<f32>,
    slab: Slab,
}

impl Joining {
    fn new() -> Self {
        Self {
            x: numbers(1, COUNT),
            feature: numbers(3, COUNT),
            bias: numbers(2, DIM),
            slab: Slab::new(),
        }
    }

    fn biased(&self, i: usize) -> f32 {
        self.feature[i] + self.bias[i % DIM]
    }

    fn joined(&self) -> Vec<f64> {
        let value =
            |i: usize| f64::from(self.x[i]) + self.slab.value(0, i) * f64::from(self.biased(i));
        (0..COUNT).map(value).collect()
    }

    /// `x`, slab, feature and bias.
    fn upload(&self, device: &Device) -> (Tensor<3>, Tensor<3>, Tensor<3>, Tensor<1>) {
        (
            upload(&self.x, SHAPE, device),
            self.slab.upload(device),
            upload(&self.feature, SHAPE, device),
            upload(&self.bias, [DIM], device),
        )
    }
}

fn of_gated_residual() -> Case {
    let joining = Joining::new();
    case("gated_residual", F32, joining.joined(), move |device| {
        let (x, slab, feature, bias) = joining.upload(device);
        read_back(gated_residual(x, &slab, Slab::at(0), feature, Some(bias)))
    })
}

/// Words in front of a slot, which nobody may touch.
const BEFORE: usize = 3;

/// What a slot holds in an arena's words, as numbers.
fn unpacked(words: &[f32], packed: bool) -> Vec<f32> {
    match packed {
        false => words.to_vec(),
        true => bytemuck::cast_slice::<f32, f16>(words)
            .iter()
            .map(|half| half.to_f32())
            .collect(),
    }
}

fn of_cache_write(kernel: &'static str, packed: bool) -> Case {
    let joining = Joining::new();
    let mut expected = joining.joined();
    expected.extend((0..COUNT).map(|i| f64::from(joining.biased(i))));
    expected.extend([0.0; BEFORE]);
    let most = if packed { F16 } else { F32 };
    case(kernel, most, expected, move |device| {
        let (x, slab, feature, bias) = joining.upload(device);
        let slot = SlotAt {
            word: BEFORE,
            packed,
        };
        let arena = Tensor::zeros([BEFORE + SlotAt::words(COUNT, packed)], device);
        let (x, arena) = cache_write(x, &slab, Slab::at(0), feature, bias, arena, slot);
        let (mut values, arena) = (read_back(x)?, read_back(arena)?);
        values.extend(unpacked(&arena[BEFORE..], packed));
        values.extend(&arena[..BEFORE]);
        Ok(values)
    })
}

fn of_reuse_span(kernel: &'static str, packed: bool) -> Case {
    const WEIGHTS: [f32; 2] = [1.0, -0.5];
    let (x, slab, features) = (
        numbers(1, COUNT),
        Slab::new(),
        [3, 4].map(|k| numbers(k, COUNT)),
    );
    let stored = |v: f32| match packed {
        true => f16::from_f32(v).to_f64(),
        false => f64::from(v),
    };
    let value = |i: usize| {
        let term = |k: usize| slab.value(k, i) * f64::from(WEIGHTS[k]) * stored(features[k][i]);
        f64::from(x[i]) + term(0) + term(1)
    };
    let expected = (0..COUNT).map(value).collect();
    let words = SlotAt::words(COUNT, packed);
    let mut arena = vec![0.0; 2 * words];
    for (slot, feature) in arena.chunks_exact_mut(words).zip(&features) {
        match packed {
            false => slot.copy_from_slice(feature),
            true => {
                let halves = bytemuck::cast_slice_mut::<f32, f16>(slot);
                let numbers = halves.iter_mut().zip(feature);
                numbers.for_each(|(half, v)| *half = f16::from_f32(*v));
            }
        }
    }
    case(kernel, F32, expected, move |device| {
        let span = [0, 1].map(|k| Reused {
            gate: Slab::at(k),
            slot: SlotAt {
                word: k * words,
                packed,
            },
            weight: WEIGHTS[k],
        });
        let arena = upload(&arena, [arena.len()], device);
        let x = upload(&x, SHAPE, device);
        read_back(reuse_span(x, &slab.upload(device), &arena, span.to_vec()))
    })
}

/// Everything that a step can do at once: guidance, clipping, older predictions, learned noise.
fn of_solver_step() -> Case {
    const IMAGES: usize = 2;
    const CHANNELS: usize = 4;
    const SIZE: [usize; 2] = [6, 10];
    const PATCH: usize = 2;
    const KEPT: usize = 2;
    const LOG_VARIANCES: [f64; 2] = [-3.0, -0.5];
    const PREDICT: [f64; 2] = [0.6, -0.4];
    let [height, width] = SIZE;
    let (plane, out_channels) = (height * width, 2 * CHANNELS);
    let (count, tokens) = (IMAGES * CHANNELS * plane, plane / PATCH / PATCH);
    let outputs = PATCH * PATCH * out_channels;
    let estimate = Weights {
        state: 0.1,
        predictions: [1.3, -0.4, 0.2],
    };
    let update = Weights {
        state: 0.7,
        predictions: [0.5, -0.2, 0.1],
    };
    let guidance = Guidance::new(2.5, GuidedChannels::Three).unwrap_or_default();
    let (x, fresh, history) = (
        numbers(1, count),
        numbers(4, count),
        numbers(5, KEPT * count),
    );
    let (patches, bias) = (
        numbers(2, 2 * IMAGES * tokens * outputs),
        numbers(3, outputs),
    );

    let clipped = |v: f64| v.clamp(-1.0, 1.0);
    let (mut next, mut x0, mut kept) = (Vec::new(), Vec::new(), vec![0.0; KEPT * count]);
    for i in 0..count {
        let (column, row) = (i % width, i / width % height);
        let (channel, image) = (i / plane % CHANNELS, i / plane / CHANNELS);
        let output = |element: usize, channel: usize| {
            let token = row / PATCH * (width / PATCH) + column / PATCH;
            let place = (row % PATCH * PATCH + column % PATCH) * out_channels + channel;
            f64::from(patches[(element * tokens + token) * outputs + place] + bias[place])
        };
        let (state, mut predicted) = (f64::from(x[i]), output(image, channel));
        if channel < guidance.guided_channels(CHANNELS) {
            let without = output(IMAGES + image, channel);
            predicted = without + (predicted - without) * guidance.scale();
        }
        let older = |k: usize| f64::from(history[k * count + i]);
        let newest = clipped(PREDICT[0] * state + PREDICT[1] * predicted);
        let mut predictions = [newest, older(0), older(1)];
        (0..KEPT).for_each(|k| kept[k * count + i] = predictions[k]);
        let sum = |weights: &Weights, predictions: &[f64; 3]| {
            let terms = weights.predictions.iter().zip(predictions);
            weights.state * state + terms.map(|(w, p)| w * p).sum::<f64>()
        };
        predictions[0] = clipped(sum(&estimate, &predictions));
        x0.push(predictions[0]);
        let share = (output(image, CHANNELS + channel) + 1.0) / 2.0;
        let log_variance = share * LOG_VARIANCES[1] + (1.0 - share) * LOG_VARIANCES[0];
        let noise = (0.5 * log_variance).exp() * f64::from(fresh[i]);
        next.push(sum(&update, &predictions) + noise);
    }
    let expected = [next, x0, kept].concat();
    case("solver_step", F32, expected, move |device| {
        let shape = [IMAGES, CHANNELS, height, width];
        let patches = upload(&patches, [2 * IMAGES, tokens, outputs], device);
        let before = Before {
            x: upload(&x, shape, device),
            output: Some((patches, upload(&bias, [outputs], device))),
            history: Some(upload(
                &history,
                [KEPT * IMAGES, CHANNELS, height, width],
                device,
            )),
            noise: Some(upload(&fresh, shape, device)),
        };
        let layout = OutputLayout {
            patch: PATCH,
            out_channels,
            guidance,
        };
        let step = Step {
            timestep: 0.0,
            predict: PREDICT,
            clip: true,
            estimate,
            update,
            noise: StepNoise::Learned {
                log_variances: LOG_VARIANCES,
            },
        };
        let after = solver_step(before, layout, &step);
        let mut values = read_back(after.x)?;
        values.extend(read_back(after.x0)?);
        if let Some(history) = after.history {
            values.extend(read_back(history)?);
        }
        Ok(values)
    })
}
