//! Shaders, CPU twins and formulas: the same numbers for every size, and shaders that any WebGPU device takes.

use std::sync::Mutex;

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::f16;
use harmonica::{
    diffusion::{Guidance, GuidedChannels, ImageNoise, Step, StepNoise, Weights},
    kernels::{
        Before, Groups, Hardware, OutputLayout, Reused, SlotAt, VectorAt, Window, add_bias,
        attention, cache_write, constants_of_products, convolution, doubled, embed_tokens,
        gated_residual, gelu, group_norm, half_product, modulate, product, reuse_span, solver_step,
    },
    metrics::max_abs_error,
};

use crate::common::{engines, vulkan, within};

/// `[B, tokens, dim]`: single numbers, odd everything, several workgroups, a published head size.
const SHAPES: [[usize; 3]; 6] = [
    [1, 1, 1],
    [1, 3, 5],
    [2, 7, 6],
    [3, 64, 33],
    [2, 65, 72],
    [1, 257, 48],
];

fn numbers(stream: u64, count: usize) -> Vec<f32> {
    let mut out = Vec::new();
    ImageNoise::new(41, stream).fill(count, &mut out);
    out
}

fn upload<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn download<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_data().unwrap().try_into_vec().unwrap()
}

/// A slab of two blocks, five rows and some margin, and vectors in its second block from its third row on.
struct Slab {
    values: Vec<f32>,
    shape: [usize; 3],
    rows: usize,
}

impl Slab {
    fn new(dim: usize, rows: usize) -> Self {
        let shape = [2, 2 + rows, 3 * dim + 1];
        Self {
            values: numbers(9, shape.iter().product()),
            shape,
            rows,
        }
    }

    fn at(&self, column: usize) -> VectorAt {
        let [_, rows, width] = self.shape;
        VectorAt {
            start: (rows + 2) * width + column,
            stride: width,
            count: self.rows,
        }
    }

    fn value(&self, at: VectorAt, element: usize, channel: usize) -> f64 {
        f64::from(self.values[at.start + element.min(self.rows - 1) * at.stride + channel])
    }
}

/// Compares `run` on both devices with `expected`.
fn check(what: &str, expected: &[f64], bound: f64, run: impl Fn(&Device) -> Vec<f32>) {
    let expected: Vec<f32> = expected.iter().map(|v| *v as f32).collect();
    for (name, engine) in engines() {
        let found = run(engine.device());
        assert_eq!(found.len(), expected.len(), "{what} on {name}");
        let error = max_abs_error(&found, &expected);
        within(format!("{what}, {name}"), error, bound);
    }
}

/// Runs it as the Vulkan device has shaders cut their work, and as a hardware GPU would.
fn in_every_cut(run: impl Fn()) {
    // What is noted of a device is the whole process's.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let device = vulkan().device();
    let noted = Hardware::of_device(device);
    let as_gpu = Hardware {
        software: false,
        ..noted
    };
    for hardware in [noted, as_gpu] {
        // What other tests make meanwhile is the same numbers.
        hardware.note(device);
        run();
    }
    noted.note(device);
}

/// `x·w` for `w` `[depth, columns]`.
fn sums_of_products(x: &[f64], w: &[f64], [depth, columns]: [usize; 2]) -> Vec<f64> {
    let mut out = vec![0.0; x.len() / depth * columns];
    for (sums, x) in out.chunks_exact_mut(columns).zip(x.chunks_exact(depth)) {
        for (x, row) in x.iter().zip(w.chunks_exact(columns)) {
            for (sum, w) in sums.iter_mut().zip(row) {
                *sum += x * w;
            }
        }
    }
    out
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn modulate_is_layer_norm_then_scale_and_shift() {
    // The last one has more tokens than a dimension has workgroups.
    for [batch, tokens, dim] in SHAPES.into_iter().chain([[1, 65_537, 3]]) {
        let x = numbers(1, batch * tokens * dim);
        let slab = Slab::new(dim, batch.min(2));
        let (shift, scale) = (slab.at(0), slab.at(dim));
        let mut expected = Vec::new();
        for (row, x) in wide(&x).chunks(dim).enumerate() {
            let mean = x.iter().sum::<f64>() / dim as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64;
            for (i, v) in x.iter().enumerate() {
                let of = |at| slab.value(at, row / tokens, i);
                expected
                    .push((v - mean) / (variance + 1e-2).sqrt() * (1.0 + of(scale)) + of(shift));
            }
        }
        check("modulate", &expected, 2e-5, |device| {
            let slab = upload(&slab.values, slab.shape, device);
            let x = upload(&x, [batch, tokens, dim], device);
            download(modulate(x, &slab, shift, scale, 1e-2))
        });
    }
}

#[test]
fn tokens_get_bias_and_positions_once_a_half() {
    for [batch, tokens, dim] in SHAPES {
        let count = batch * tokens * dim;
        let (x, bias, positions) = (numbers(1, count), numbers(2, dim), numbers(3, tokens * dim));
        let value = |i: usize| f64::from(x[i] + bias[i % dim] + positions[i % (tokens * dim)]);
        let expected: Vec<f64> = (0..2 * count).map(|i| value(i % count)).collect();
        check("embed_tokens", &expected, 5e-7, |device| {
            let tokens_tensor = upload(&x, [batch, tokens, dim], device);
            let positions = upload(&positions, [1, tokens, dim], device);
            let bias = upload(&bias, [dim], device);
            download(embed_tokens(tokens_tensor, bias, positions, 2))
        });
    }
}

#[test]
fn gelu_adds_its_bias_at_any_size() {
    // The last one has more than 65,535 workgroups.
    for [batch, tokens, dim] in SHAPES.into_iter().chain([[1, 3, 5_600_001]]) {
        let (x, bias) = (numbers(1, batch * tokens * dim), numbers(2, dim));
        let expected: Vec<f64> = x
            .iter()
            .enumerate()
            .map(|(i, x)| {
                let v = f64::from(x + bias[i % dim]);
                let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
                0.5 * v * (1.0 + u.tanh())
            })
            .collect();
        check("gelu", &expected, 2e-6, |device| {
            let x = upload(&x, [batch, tokens, dim], device);
            download(gelu(x, upload(&bias, [dim], device)))
        });
    }
}

#[test]
fn attention_mixes_values_by_softmax_of_scores() {
    // Besides, as many queries as have the shader cut its work in every way it knows.
    let many = [([8, 65, 48], 12), ([64, 65, 32], 8)];
    let few = SHAPES.into_iter().zip([1, 5, 2, 3, 1, 4]);
    for ([batch, tokens, dim], heads) in few.chain(many) {
        let head = dim / heads;
        let (qkv, bias) = (numbers(1, batch * tokens * 3 * dim), numbers(2, 3 * dim));
        let value = |b: usize, token: usize, part: usize, h: usize, c: usize| {
            let channel = part * dim + h * head + c;
            f64::from(qkv[(b * tokens + token) * 3 * dim + channel] + bias[channel])
        };
        let mut expected = vec![0.0; batch * tokens * dim];
        for b in 0..batch {
            for h in 0..heads {
                for query in 0..tokens {
                    let score = |key: usize| {
                        let dot = |c| value(b, query, 0, h, c) * value(b, key, 1, h, c);
                        (0..head).map(dot).sum::<f64>() / (head as f64).sqrt()
                    };
                    let scores: Vec<f64> = (0..tokens).map(score).collect();
                    let largest = scores.iter().cloned().fold(f64::MIN, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                    for c in 0..head {
                        let mixed = |(k, s): (usize, &f64)| {
                            (s - largest).exp() / total * value(b, k, 2, h, c)
                        };
                        expected[(b * tokens + query) * dim + h * head + c] =
                            scores.iter().enumerate().map(mixed).sum();
                    }
                }
            }
        }
        in_every_cut(|| {
            check("attention", &expected, 1e-5, |device| {
                let qkv = upload(&qkv, [batch, tokens, 3 * dim], device);
                download(attention(qkv, upload(&bias, [3 * dim], device), heads))
            });
        });
    }
}

#[test]
fn products_are_sums_in_every_tile() {
    // Rows, depth and columns: none that a tile divides, of all counts of tiles; and what burn makes.
    for [rows, depth, columns] in [
        [1, 4, 4],
        [500, 36, 1028],
        [500, 20, 516],
        [65, 72, 100],
        [3, 200, 8],
        [7, 5, 6],
    ] {
        let (x, w) = (numbers(1, rows * depth), numbers(2, depth * columns));
        let expected = sums_of_products(&wide(&x), &wide(&w), [depth, columns]);
        in_every_cut(|| {
            check("product", &expected, 1e-4, |device| {
                let x = upload(&x, [1, rows, depth], device);
                download(product(x, upload(&w, [depth, columns], device)))
            });
        });
    }
}

#[test]
fn products_with_halves_take_them_as_they_are() {
    for (name, engine) in engines() {
        // Matrix units take the first three, in all their tiles; they round the other factor as well, to 11 bits.
        let bound = if engine.hardware().matrix_units {
            2e-2
        } else {
            1e-4
        };
        for [rows, depth, columns] in [[65, 64, 96], [500, 128, 448], [900, 96, 1792], [7, 20, 12]]
        {
            let x = numbers(1, rows * depth);
            let halves: Vec<f16> = numbers(2, depth * columns)
                .into_iter()
                .map(f16::from_f32)
                .collect();
            let widened: Vec<f64> = halves.iter().map(|half| half.to_f64()).collect();
            let expected = sums_of_products(&wide(&x), &widened, [depth, columns]);
            let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
            let device = engine.device();
            let weight = TensorData::new(halves, [depth, columns]);
            let weight = Tensor::<2>::from_data(weight, (device, DType::F16));
            let found = download(half_product(upload(&x, [rows, depth], device), weight));
            let error = max_abs_error(&found, &expected);
            within(
                format!("[{rows}, {depth}]·[{depth}, {columns}], {name}"),
                error,
                bound,
            );
        }
    }
}

/// Gradients of `op` with respect to vectors of these lengths: the CPU's own against those that burn derives from the
/// composed form, which runs on the other device.
fn check_gradients<const N: usize>(
    what: &str,
    bound: f64,
    lengths: [usize; N],
    op: impl Fn([Tensor<1>; N]) -> Tensor<3>,
) {
    let of = |device: &Device| {
        let mut stream = 60;
        let inputs = lengths.map(|length| {
            stream += 1;
            let values = upload(&numbers(stream, length), [length], device);
            values.autodiff().require_grad()
        });
        let out = op(inputs.clone());
        let shape = out.dims();
        let weights = upload(&numbers(60, shape.iter().product()), shape, device);
        let gradients = (out * weights).sum().backward();
        inputs.map(|input| download(input.grad(&gradients).unwrap()))
    };
    let [cpu, other] = engines().map(|(_, engine)| of(engine.device()));
    for (input, (found, expected)) in cpu.iter().zip(&other).enumerate() {
        let largest = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        let error = max_abs_error(found, expected) / largest;
        within(format!("gradient of {what}, input {input}"), error, bound);
    }
}

#[test]
fn gradients_are_those_of_the_composed_forms() {
    // The bundled model's heads, more queries than a multiple of 16, a published head size.
    let more = [([2, 64, 128], 2), ([1, 256, 64], 1), ([2, 250, 144], 2)];
    let shapes = SHAPES.into_iter().zip([1, 5, 2, 3, 1, 4]).chain(more);
    for ([batch, tokens, dim], heads) in shapes {
        let count = batch * tokens * dim;
        check_gradients("attention", 1e-5, [3 * count, 3 * dim], |[qkv, bias]| {
            attention(qkv.reshape([batch, tokens, 3 * dim]), bias, heads)
        });
        let outputs = 2 * dim + 1;
        check_gradients("product", 4e-6, [count, dim * outputs], |[x, weight]| {
            product(
                x.reshape([batch, tokens, dim]),
                weight.reshape([dim, outputs]),
            )
        });
        check_gradients("add_bias", 3e-6, [count, dim], |[x, bias]| {
            add_bias(x.reshape([batch, tokens, dim]), bias)
        });
        check_gradients("gelu", 4e-6, [count, dim], |[x, bias]| {
            gelu(x.reshape([batch, tokens, dim]), bias)
        });
        let slab = Slab::new(dim, batch.min(2));
        let in_slab = slab.values.len();
        check_gradients("modulate", 1e-6, [count, in_slab], |[x, vectors]| {
            let x = x.reshape([batch, tokens, dim]);
            modulate(
                x,
                &vectors.reshape(slab.shape),
                slab.at(0),
                slab.at(dim),
                1e-2,
            )
        });
        let lengths = [count, in_slab, count, dim];
        check_gradients(
            "gated_residual",
            2e-6,
            lengths,
            |[x, vectors, feature, bias]| {
                let [x, feature] = [x, feature].map(|x| x.reshape([batch, tokens, dim]));
                let vectors = vectors.reshape(slab.shape);
                gated_residual(x, &vectors, slab.at(dim), feature, Some(bias))
            },
        );
    }
}

#[test]
fn gradients_of_pictures_are_those_of_the_composed_forms() {
    // More cells than a strip's, sides of every rest, a single cell, one channel and more than a vector's.
    for [batch, h, w, c] in [[2, 9, 31, 3], [1, 6, 8, 70], [3, 1, 1, 4], [2, 20, 18, 16]] {
        let count = batch * h * w * c;
        let picture = |x: Tensor<1>| x.reshape([batch, h, w, c]);
        let flat = |x: Tensor<4>| -> Tensor<3> { x.flatten(0, 1) };
        for (stride, before) in [(1, 1), (2, 0), (2, 1)] {
            if h + before + 1 < 3 {
                continue;
            }
            let window = Window {
                stride,
                before,
                after: 1,
            };
            let outputs = c + 1;
            check_gradients(
                "convolution",
                4e-6,
                [count, 9 * c * outputs],
                |[x, weight]| {
                    let weight = weight.reshape([9 * c, outputs]);
                    flat(convolution(picture(x), weight, window))
                },
            );
        }
        for (groups, silu) in [
            (1, false),
            (c, true),
            (if c % 2 == 0 { c / 2 } else { 1 }, true),
        ] {
            let groups = Groups {
                count: groups,
                eps: 1e-2,
                silu,
            };
            check_gradients("group_norm", 4e-6, [count, c, c], |[x, scale, shift]| {
                flat(group_norm(picture(x), scale, shift, groups))
            });
        }
        check_gradients("doubled", 1e-6, [count], |[x]| flat(doubled(picture(x))));
    }
}

#[test]
fn features_join_and_come_back_from_the_arena() {
    for [batch, tokens, dim] in SHAPES {
        for packed in [false, true] {
            let count = batch * tokens * dim;
            let words = SlotAt::words(count, packed);
            let (x, bias) = (numbers(1, count), numbers(2, dim));
            let features = [numbers(3, count), numbers(4, count)];
            // The second feature's slot is in front, and something lies between them.
            let slots = [words + 3, 1].map(|word| SlotAt { word, packed });
            let slab = Slab::new(dim, batch.min(2));
            let gates = [slab.at(0), slab.at(2 * dim)];
            let stored = |k: usize, i: usize| features[k][i] + bias[i % dim];
            let joined = |x: &[f64], k: usize, gate: VectorAt, rounded: bool| -> Vec<f64> {
                let add = |(i, x): (usize, &f64)| {
                    let feature = match rounded {
                        true => half::f16::from_f32(stored(k, i)).to_f64(),
                        false => f64::from(stored(k, i)),
                    };
                    x + slab.value(gate, i / dim / tokens, i % dim) * feature
                };
                x.iter().enumerate().map(add).collect()
            };
            let fresh = joined(&wide(&x), 0, gates[0], false);
            check("gated_residual", &fresh, 2e-6, |device| {
                let slab = upload(&slab.values, slab.shape, device);
                let feature = upload(&features[0], [batch, tokens, dim], device);
                let x = upload(&x, [batch, tokens, dim], device);
                let bias = upload(&bias, [dim], device);
                download(gated_residual(x, &slab, gates[0], feature, Some(bias)))
            });
            let written = joined(&fresh, 1, gates[1], false);
            // Reused the other way round, under the other gate.
            // The first with weight 1, the second with another.
            let once = joined(&written, 1, gates[0], packed);
            let twice = joined(&once, 0, gates[1], packed);
            let weighed = once.iter().zip(twice);
            let reused = weighed.map(|(once, twice)| once - 0.5 * (twice - once));
            let expected: Vec<f64> = written.iter().copied().chain(reused).collect();
            check("cache_write and reuse_span", &expected, 8e-6, |device| {
                let slab = upload(&slab.values, slab.shape, device);
                let bias = upload(&bias, [dim], device);
                let mut x = upload(&x, [batch, tokens, dim], device);
                let mut arena = Tensor::zeros([2 * words + 4], device);
                for k in [0, 1] {
                    let feature = upload(&features[k], [batch, tokens, dim], device);
                    (x, arena) =
                        cache_write(x, &slab, gates[k], feature, bias.clone(), arena, slots[k]);
                }
                let span = [(0, 1, 1.0), (1, 0, -0.5)].map(|(g, s, weight)| Reused {
                    gate: gates[g],
                    slot: slots[s],
                    weight,
                });
                let mut both = download(x.clone());
                both.extend(download(reuse_span(x, &slab, &arena, span.to_vec())));
                let arena = download(arena);
                assert_eq!([arena[0], arena[words + 1], arena[words + 2]], [0.0; 3]);
                both
            });
        }
    }
}

#[test]
fn f16_slots_end_at_their_largest_number() {
    check("saturation", &[65504.0, -65504.0, 1.0], 0.0, |device| {
        let one = upload(&[1.0; 3], [1, 1, 3], device);
        let at = VectorAt {
            start: 0,
            stride: 3,
            count: 1,
        };
        let slot = SlotAt {
            word: 0,
            packed: true,
        };
        let feature = upload(&[1e9, -7e4, 1.0], [1, 1, 3], device);
        let (zero, arena) = (Tensor::zeros([1, 1, 3], device), Tensor::zeros([2], device));
        let bias = Tensor::zeros([3], device);
        let (_, arena) = cache_write(zero.clone(), &one, at, feature, bias, arena, slot);
        download(reuse_span(
            zero,
            &one,
            &arena,
            vec![Reused {
                gate: at,
                slot,
                weight: 1.0,
            }],
        ))
    });
}

/// In-place kernels must leave alone what somebody else still holds, and read slices of one buffer.
#[test]
fn shared_and_sliced_tensors_keep_their_values() {
    let values = numbers(1, 5 * 4 * 6);
    let part = |i: usize| &values[i * 24..][..24];
    let expected: Vec<f64> = part(1)
        .iter()
        .zip(part(2))
        .map(|(x, f)| f64::from(*x) + f64::from(values[0]) * f64::from(f + values[3 * 24]))
        .chain(wide(&values))
        .collect();
    check("slices of one buffer", &expected, 2e-6, |device| {
        let all = upload(&values, [5, 4, 6], device);
        let narrow = |i: usize| all.clone().narrow(0, i, 1);
        let slab = narrow(0).reshape([1, 24, 1]);
        let at = VectorAt {
            start: 0,
            stride: 0,
            count: 1,
        };
        // Every channel's gate is the same number, every channel's bias too.
        let bias = narrow(3).reshape([24]).narrow(0, 0, 1);
        let x = narrow(1).reshape([1, 24, 1]);
        let joined = gated_residual(x, &slab, at, narrow(2).reshape([1, 24, 1]), Some(bias));
        let mut both = download(joined);
        both.extend(download(all));
        both
    });
}

/// Every number of a step at work: with and without a network, guidance, clipping, older predictions and noise, against the
/// formulas of [`Step`] written out in f64.
#[test]
fn solver_step_is_what_its_numbers_say() {
    let (images, channels, [height, width], patch) = (3, 4, [6, 4], 2);
    let count = images * channels * height * width;
    let tokens = height / patch * (width / patch);
    let weights = |state: f64, predictions: [f64; 3]| Weights { state, predictions };
    let newest = Weights::NEWEST;
    let (forecast, look_back) = (
        weights(0.1, [1.3, -0.4, 0.2]),
        weights(0.7, [0.5, -0.2, 0.1]),
    );
    let one_step = weights(0.8, [0.3, 0.0, 0.0]);
    let learned = StepNoise::Learned {
        log_variances: [-3.0, -0.5],
    };
    let (three, all) = (Some(GuidedChannels::Three), Some(GuidedChannels::All));
    for (runs_network, guided, clip, kept, estimate, update, noise) in [
        (true, three, false, 0, newest, one_step, StepNoise::None),
        (true, None, true, 0, newest, one_step, learned),
        (true, all, true, 1, newest, look_back, StepNoise::None),
        (
            true,
            three,
            true,
            2,
            forecast,
            look_back,
            StepNoise::Deviation(0.3),
        ),
        (true, None, false, 3, forecast, look_back, learned),
        (false, three, true, 3, forecast, look_back, StepNoise::None),
        (
            false,
            None,
            false,
            1,
            newest,
            one_step,
            StepNoise::Deviation(0.3),
        ),
        (false, all, true, 2, forecast, one_step, learned),
    ] {
        let out_channels = channels * 2;
        let batch = images * if guided.is_some() { 2 } else { 1 };
        let outputs = patch * patch * out_channels;
        let scale = if guided.is_some() { 2.5 } else { 1.0 };
        let guidance = Guidance::new(scale, guided.unwrap_or_default()).unwrap();
        let step = Step {
            timestep: 0.0,
            predict: [1.2, -0.6],
            clip,
            estimate,
            update,
            noise,
        };
        let (x, fresh) = (numbers(1, count), numbers(4, count));
        let (patches, bias) = (numbers(2, batch * tokens * outputs), numbers(3, outputs));
        let planes: Vec<f32> = numbers(5, kept * count).iter().map(|v| v * 0.5).collect();

        let clipped = |v: f64| if clip { v.clamp(-1.0, 1.0) } else { v };
        let (mut next, mut x0, mut history) = (Vec::new(), Vec::new(), vec![0.0; kept * count]);
        for i in 0..count {
            let (column, row) = (i % width, i / width % height);
            let (channel, image) = (i / width / height % channels, i / width / height / channels);
            let output = |element: usize, channel: usize| {
                let token = row / patch * (width / patch) + column / patch;
                let place = (row % patch * patch + column % patch) * out_channels + channel;
                f64::from(patches[(element * tokens + token) * outputs + place] + bias[place])
            };
            let state = f64::from(x[i]);
            let mut h: Vec<f64> = (0..kept)
                .map(|k| f64::from(planes[k * count + i]))
                .collect();
            let mut deviation = match noise {
                StepNoise::None => 0.0,
                StepNoise::Deviation(deviation) => deviation,
                StepNoise::Learned { log_variances } => (0.5 * log_variances[1]).exp(),
            };
            if runs_network {
                let mut predicted = output(image, channel);
                if guided.is_some() && channel < guidance.guided_channels(channels) {
                    let unconditional = output(images + image, channel);
                    predicted = unconditional + (predicted - unconditional) * guidance.scale();
                }
                h.insert(0, clipped(1.2 * state - 0.6 * predicted));
                if let StepNoise::Learned {
                    log_variances: [low, high],
                } = noise
                {
                    let share = (output(image, channels + channel) + 1.0) / 2.0;
                    deviation = (0.5 * (share * high + (1.0 - share) * low)).exp();
                }
            }
            let kept_after = h.iter().take(kept).enumerate();
            kept_after.for_each(|(k, v)| history[k * count + i] = *v);
            h.resize(3, 0.0);
            let sum = |w: &Weights, h: &[f64]| -> f64 {
                w.state * state + w.predictions.iter().zip(h).map(|(w, h)| w * h).sum::<f64>()
            };
            h[0] = clipped(sum(&estimate, &h));
            x0.push(h[0]);
            next.push(sum(&update, &h) + deviation * f64::from(fresh[i]));
        }
        let expected: Vec<f64> = [next, x0, history].concat();
        let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        check("solver_step", &expected, 1e-6 * scale, |device| {
            let shape = [images, channels, height, width];
            let before = Before {
                x: upload(&x, shape, device),
                output: runs_network.then(|| {
                    let patches = upload(&patches, [batch, tokens, outputs], device);
                    (patches, upload(&bias, [outputs], device))
                }),
                history: (kept > 0)
                    .then(|| upload(&planes, [kept * images, channels, height, width], device)),
                noise: (noise != StepNoise::None).then(|| upload(&fresh, shape, device)),
            };
            let layout = OutputLayout {
                patch,
                out_channels,
                guidance,
            };
            let after = solver_step(before, layout, &step);
            let mut all = download(after.x);
            all.extend(download(after.x0));
            all.extend(after.history.map(download).unwrap_or_default());
            all
        });
    }
}

/// A network's NaN must not come out of clipping as a colour.
#[test]
fn clipping_keeps_what_is_no_number() {
    let step = Step {
        timestep: 0.0,
        predict: [1.0, -1.0],
        clip: true,
        estimate: Weights::NEWEST,
        update: Weights::NEWEST,
        noise: StepNoise::None,
    };
    for (name, engine) in engines() {
        let device = engine.device();
        let patches = upload(&[0.1, f32::NAN, f32::INFINITY, 0.1], [1, 4, 1], device);
        let before = Before {
            x: upload(&[0.5; 4], [1, 1, 2, 2], device),
            output: Some((patches, upload(&[0.0], [1], device))),
            history: None,
            noise: None,
        };
        let layout = OutputLayout {
            patch: 1,
            out_channels: 1,
            guidance: Guidance::default(),
        };
        let after = solver_step(before, layout, &step);
        for values in [download(after.x), download(after.x0)] {
            assert!(
                values[0].is_finite() && values[1].is_nan(),
                "{name}: {values:?}"
            );
        }
    }
}

/// What completes a shader's text: attention with the largest heads in use, 128 channels, and with the smallest; products in
/// all their tiles.
fn constants_of(path: &std::path::Path) -> Vec<Vec<(&'static str, u32)>> {
    let name = path.file_stem().unwrap().to_str().unwrap();
    match name {
        "attention" => [
            (32, 16, 8, 16),
            (32, 64, 2, 16),
            (18, 32, 4, 28),
            (1, 64, 2, 32),
        ]
        .map(|(quads, queries, parts, tile)| {
            vec![
                ("threads", queries * parts),
                ("quads", quads),
                ("queries", queries),
                ("parts", parts),
                ("tile", tile),
                ("each", tile / parts),
                ("to_the_end", parts % 2),
                ("room", (2 * tile * quads).max(queries * parts * 4)),
            ]
        })
        .to_vec(),
        "product" | "matrix_product" => constants_of_products(name),
        _ => vec![vec![("threads", 256)]],
    }
}

/// Every shader parses, validates without any optional capability, and stays within WebGPU's default limits; that of matrix
/// units with what they are.
#[test]
fn shaders_fit_every_webgpu_device() {
    use naga::{
        AddressSpace,
        valid::{Capabilities, ValidationFlags, Validator},
    };
    let limits = wgpu::Limits::default();
    let mut seen = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let matrix_units = path.ends_with("matrix_product.wgsl");
        let every = constants_of(&path);
        assert!(!every.is_empty(), "{path:?}");
        for constants in every {
            let text = constants.iter().fold(text.clone(), |text, (name, value)| {
                text.replace(&format!("{{{{ {name} }}}}"), &value.to_string())
            });
            assert!(!text.contains("{{"), "{path:?} has more constants");
            // Two f16 in a word are core WGSL; naga asks because OpenGL ES lacks them.
            let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            if matrix_units {
                capabilities |= Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
            }
            let mut options = naga::front::wgsl::Options::new();
            options.capabilities = capabilities;
            let module = naga::front::wgsl::Frontend::new_with_options(options)
                .parse(&text)
                .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
            Validator::new(ValidationFlags::all(), capabilities)
                .validate(&module)
                .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
            let in_space = |space: fn(&AddressSpace) -> bool| {
                let variables = module.global_variables.iter();
                variables
                    .filter(move |(_, v)| space(&v.space))
                    .map(|(_, v)| v)
            };
            let storage = in_space(|s| matches!(s, AddressSpace::Storage { .. })).count();
            assert!(storage as u32 <= limits.max_storage_buffers_per_shader_stage);
            let bytes: u32 = in_space(|s| *s == AddressSpace::WorkGroup)
                .map(|v| module.types[v.ty].inner.size(module.to_ctx()))
                .sum();
            assert!(
                bytes <= limits.max_compute_workgroup_storage_size,
                "{path:?}: {bytes}"
            );
            for entry in &module.entry_points {
                let [x, y, z] = entry.workgroup_size;
                assert!(x * y * z <= limits.max_compute_invocations_per_workgroup);
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 12, "shaders");
}
