//! Matrices of a byte a number, with a scale for each output channel.
//!
//! A channel's scale is its largest magnitude over 127, its numbers are multiples of it, rounded to the nearest even. What a
//! product takes are the numbers times their scales, in f32: a GPU widens a matrix in one launch before its product, the CPU
//! a few columns at a time, so that the wide matrix is never there whole.

use burn::backend::{
    Backend, Dispatch, Flex, backend_extension,
    tensor::{FloatTensor, IntTensor},
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{
    Bf16Matrix, Place, Route,
    bf16::bf16_product_cpu,
    differentiable::{rows, with_width},
    flex::{empty, own, tensor},
    lanes::{for_rows, rows_of, vectorised},
    on_cpu,
    product::{Matrix, product, product_into_columns},
    route,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// What the largest magnitude of a channel becomes.
const LARGEST: f32 = 127.0;

/// A matrix of a byte a number on the host.
#[derive(Debug, Clone)]
pub struct QuantisedData {
    /// i32, four numbers each, row-major, the first in the lowest byte.
    words: TensorData,
    /// f32, `[outputs]`.
    scales: TensorData,
    inputs: usize,
}

impl QuantisedData {
    /// Of `values` `[inputs, outputs]`, which are finite.
    pub fn of(values: &[f32], [inputs, outputs]: [usize; 2]) -> Self {
        assert_eq!(values.len(), inputs * outputs, "numbers of a matrix");
        let width = outputs.max(1);
        let mut scales = vec![0.0f32; outputs];
        for row in values.chunks_exact(width) {
            for (scale, value) in scales.iter_mut().zip(row) {
                *scale = scale.max(value.abs());
            }
        }
        scales.iter_mut().for_each(|scale| *scale /= LARGEST);
        let mut words = vec![0i32; values.len().div_ceil(4)];
        let numbers = &mut bytemuck::cast_slice_mut::<i32, i8>(&mut words)[..values.len()];
        let rows = rows_of(width) * width;
        numbers
            .par_chunks_mut(rows)
            .zip(values.par_chunks(rows))
            .for_each(|(numbers, values)| {
                vectorised(
                    #[inline(always)]
                    || {
                        let rows = numbers.chunks_mut(width).zip(values.chunks(width));
                        for (numbers, values) in rows {
                            for ((number, value), scale) in
                                numbers.iter_mut().zip(values).zip(&scales)
                            {
                                // A channel of zeros has no scale, and no number but zero.
                                let scaled = if *scale > 0.0 { value / scale } else { 0.0 };
                                *number = scaled.round_ties_even().clamp(-LARGEST, LARGEST) as i8;
                            }
                        }
                    },
                );
            });
        let count = words.len();
        Self {
            words: TensorData::new(words, [count]),
            scales: TensorData::new(scales, [outputs]),
            inputs,
        }
    }

    /// What a matrix of so many numbers and outputs takes.
    pub fn bytes_of(numbers: usize, outputs: usize) -> u64 {
        4 * (numbers.div_ceil(4) + outputs) as u64
    }

    /// What it takes.
    pub fn bytes(&self) -> u64 {
        (self.words.as_bytes().len() + self.scales.as_bytes().len()) as u64
    }

    /// The same on a device.
    pub fn into_device(self, device: &Device) -> Quantised {
        Quantised {
            words: Tensor::from_data(self.words, (device, DType::I32)),
            scales: Tensor::from_data(self.scales, (device, DType::F32)),
            inputs: self.inputs,
        }
    }
}

/// A matrix of a byte a number on a device.
#[derive(Debug, Clone)]
pub struct Quantised {
    /// As [`QuantisedData`] has them.
    words: Tensor<1, Int>,
    /// `[outputs]`
    scales: Tensor<1>,
    inputs: usize,
}

/// The matrix in f32, `[inputs, outputs]`.
pub fn dequantise(matrix: &Quantised) -> Tensor<2> {
    if route(&[Place::of(&matrix.scales)]) == Route::Composed {
        return composed(matrix);
    }
    let Quantised {
        words,
        scales,
        inputs,
    } = matrix.clone();
    Tensor::from_dispatch(<Dispatch as SamplingKernels>::dequantise(
        words.into_dispatch(),
        scales.into_dispatch(),
        inputs,
    ))
}

/// The same by burn's own operations.
fn composed(matrix: &Quantised) -> Tensor<2> {
    let Quantised {
        words,
        scales,
        inputs,
    } = matrix.clone();
    let outputs = scales.dims()[0];
    let [count] = words.dims();
    // Up to the sign, and down with it.
    let number = |k: i32| {
        let up = words.clone().bitwise_left_shift_scalar(24 - 8 * k);
        up.bitwise_right_shift_scalar(24)
    };
    let numbers: Tensor<2, Int> = Tensor::stack((0..4).map(number).collect(), 1);
    let numbers = numbers.reshape([4 * count]).narrow(0, 0, inputs * outputs);
    numbers.reshape([inputs, outputs]).float() * scales.unsqueeze()
}

/// `x·W` for `x` `[…, inputs]` and a matrix `[inputs, outputs]`.
pub fn quantised_product<const D: usize>(x: Tensor<D>, matrix: &Quantised) -> Tensor<D> {
    let route = route(&[Place::of(&x), Place::of(&matrix.scales)]);
    if route != Route::Fast || !on_cpu(&x.device()) {
        return product(x, dequantise(matrix));
    }
    let Quantised { words, scales, .. } = matrix.clone();
    Tensor::from_dispatch(<Dispatch as PanelKernels>::quantised_product(
        x.into_dispatch(),
        words.into_dispatch(),
        scales.into_dispatch(),
    ))
}

/// What the CPU alone does panel by panel.
#[backend_extension(Flex)]
pub trait PanelKernels: Backend {
    /// See [`quantised_product`].
    fn quantised_product(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`super::bf16::bf16_product`].
    fn bf16_product(x: FloatTensor<Self>, matrix: Bf16Matrix) -> FloatTensor<Self>;
}

impl PanelKernels for Flex {
    fn quantised_product(x: FlexTensor, words: FlexTensor, scales: FlexTensor) -> FlexTensor {
        let [x, words, scales] = [x, words, scales].map(own);
        let (scales, of_rows) = (scales.storage(), rows(&x));
        let mut out = empty([of_rows.rows(), scales.len()]);
        let numbers = bytemuck::cast_slice(words.storage::<i32>());
        product_by_panels(
            of_rows,
            scales.len(),
            out.storage_mut(),
            |first, width, panel| {
                widen(numbers, scales, first, width, panel);
            },
        );
        out.reshape(with_width(&x, scales.len()))
    }

    fn bf16_product(x: FlexTensor, matrix: Bf16Matrix) -> FlexTensor {
        let x = own(x);
        let shape = with_width(&x, matrix.shape()[1]);
        tensor(bf16_product_cpu(x.storage(), &matrix), shape)
    }
}

pub(super) fn dequantise_wgsl(words: CubeTensor, scales: CubeTensor, inputs: usize) -> CubeTensor {
    let [words, scales] = [words, scales].map(into_contiguous);
    let outputs = scales.meta.shape().num_elements();
    let out = wgsl::empty(&scales, Shape::from([inputs, outputs]));
    let shader = Shader::flat("dequantise", include_str!("../../shaders/dequantise.wgsl"));
    let count = inputs * outputs;
    let info = Info::of(&[count, outputs]);
    wgsl::launch_flat(shader, count.div_ceil(4), &[&words, &scales, &out], info);
    out
}

/// The CPU twin.
pub(super) fn dequantise_cpu(words: &[i32], scales: &[f32], out: &mut [f32]) {
    widen(bytemuck::cast_slice(words), scales, 0, scales.len(), out);
}

/// Columns `first..first + width` of a matrix whose rows are as long as `scales`.
fn widen(numbers: &[i8], scales: &[f32], first: usize, width: usize, out: &mut [f32]) {
    let (outputs, scales) = (scales.len(), &scales[first..first + width]);
    for_rows(
        out,
        width,
        #[inline(always)]
        |row, out| {
            let numbers = &numbers[row * outputs + first..][..width];
            for ((out, number), scale) in out.iter_mut().zip(numbers).zip(scales) {
                *out = f32::from(*number) * scale;
            }
        },
    );
}

/// `out = x·W`, row-major, of a matrix whose columns `first..first + width` are had in f32 by `widen(first, width, columns)`, for
/// multiples of 16 as `first`.
pub(super) fn product_by_panels(
    x: Matrix,
    outputs: usize,
    out: &mut [f32],
    widen: impl Fn(usize, usize, &mut [f32]),
) {
    /// Numbers of the columns that are widened at a time: 2 MiB.
    const PANEL: usize = 1 << 19;
    /// Numbers of the widest vector.
    const LANES: usize = 16;
    let inputs = x.columns();
    let widest = (PANEL / inputs.max(1)).max(1).next_multiple_of(LANES);
    let widest = widest.min(outputs);
    let mut panel = vec![0.0; inputs * widest];
    for first in (0..outputs).step_by(widest.max(1)) {
        let width = widest.min(outputs - first);
        let panel = &mut panel[..inputs * width];
        widen(first, width, panel);
        product_into_columns(out, [first, outputs], x, Matrix::new(panel, width));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Api, DeviceChoice, Engine};

    #[test]
    fn composed_operations_widen_to_the_same_bits() {
        let vulkan = Engine::open(DeviceChoice::Api(Api::Vulkan))
            .unwrap_or_else(|e| panic!("this test needs a Vulkan driver: {e}"))
            .engine;
        for engine in [Engine::cpu(), vulkan] {
            for shape in [[1, 1], [3, 5], [8, 12], [33, 31]] {
                let count = shape[0] * shape[1];
                let values: Vec<f32> = (0..count).map(|i| (i as f32 * 1.7).sin()).collect();
                let matrix = QuantisedData::of(&values, shape).into_device(engine.device());
                let read = |x: Tensor<2>| -> Vec<f32> {
                    assert_eq!(x.dims(), shape);
                    x.try_into_data().unwrap().try_into_vec().unwrap()
                };
                assert_eq!(read(composed(&matrix)), read(dequantise(&matrix)));
            }
        }
    }

    #[test]
    fn a_number_is_at_most_half_a_scale_off() {
        let values = [0.0, 127.0, 3.0, 0.0, -12.7, 3.0, 0.0, 2.5, -3.0];
        let data = QuantisedData::of(&values, [3, 3]);
        assert_eq!(data.bytes(), QuantisedData::bytes_of(9, 3));
        assert_eq!(data.bytes(), 4 * (3 + 3));
        let wide = dequantise(&data.into_device(&Device::flex()));
        let wide: Vec<f32> = wide.try_into_data().unwrap().try_into_vec().unwrap();
        // Half of a scale goes to the even number.
        assert_eq!(wide, [0.0, 127.0, 3.0, 0.0, -13.0, 3.0, 0.0, 2.0, -3.0]);
    }
}
