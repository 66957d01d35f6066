//! What networks are made of beside their blocks: linear layers, sinusoidal features.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use burn::tensor::{DType, Device, Tensor, TensorData, activation::silu};

use crate::kernels::{self, Bf16Matrix, Quantised, QuantisedData, add_bias};

/// Width of the sinusoidal features of a timestep.
pub const TIMESTEP_CHANNELS: usize = 256;

/// Epsilon of the LayerNorms.
pub const NORM_EPS: f64 = 1e-6;

/// A linear layer, `x·W + b`, wherever its weights lie.
#[derive(Debug, Clone)]
pub struct Affine {
    weight: Lying,
    /// `[outputs]`
    bias: Tensor<1>,
}

/// Where a layer's weights lie.
#[derive(Debug, Clone)]
enum Lying {
    Here(Arc<Weight>),
    /// On the host, sent for each use.
    Waiting(Arc<Waiting>),
}

/// A layer's weights `[inputs, outputs]` on a device.
#[derive(Debug, Clone)]
pub enum Weight {
    /// In the type that products take.
    Whole(Tensor<2>),
    /// In f32, rounded to bf16 together with what it multiplies.
    Rounded(Tensor<2>),
    /// In half precision, as matrix units take it; widened for each use where there are none.
    Half(Tensor<2>),
    /// In bytes, widened for each use.
    Quantised(Box<Quantised>),
    /// In bf16, as a processor's units take it; widened for each use where there are none.
    Bf16(Bf16Matrix),
}

/// The same on the host, as it is sent.
#[derive(Debug, Clone)]
pub enum WeightData {
    /// f32 or f16
    Floats(TensorData),
    Quantised(QuantisedData),
    Bf16(Bf16Matrix),
}

impl WeightData {
    /// What it takes, on the host and on a device.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Floats(values) => values.as_bytes().len() as u64,
            Self::Quantised(matrix) => matrix.bytes(),
            Self::Bf16(matrix) => matrix.bytes(),
        }
    }

    /// The same on a device.
    pub fn into_device(self, device: &Device) -> Weight {
        match self {
            Self::Quantised(matrix) => Weight::Quantised(Box::new(matrix.into_device(device))),
            Self::Bf16(matrix) => Weight::Bf16(matrix),
            Self::Floats(values) => {
                let dtype = values.dtype();
                let weight = Tensor::from_data(values, (device, dtype));
                match dtype {
                    DType::F16 => Weight::Half(weight),
                    _ => Weight::Whole(weight),
                }
            }
        }
    }
}

/// A matrix that waits on the host.
#[derive(Debug)]
struct Waiting {
    values: WeightData,
    device: Device,
    sent: Arc<AtomicU64>,
}

impl Affine {
    /// Of `weight` `[inputs, outputs]`, which products take as it is.
    pub fn new(weight: Tensor<2>, bias: Tensor<1>) -> Self {
        Self::kept(Weight::Whole(weight), bias)
    }

    /// Whose weights lie on the device.
    pub fn kept(weight: Weight, bias: Tensor<1>) -> Self {
        let weight = Lying::Here(Arc::new(weight));
        Self { weight, bias }
    }

    /// Whose weights wait on the host and are sent for each use; `sent` counts the bytes.
    pub fn waiting(values: WeightData, bias: Tensor<1>, sent: Arc<AtomicU64>) -> Self {
        let device = bias.device();
        let waiting = Waiting {
            values,
            device,
            sent,
        };
        Self {
            weight: Lying::Waiting(Arc::new(waiting)),
            bias,
        }
    }

    /// On the device.
    fn weight(&self) -> Arc<Weight> {
        match &self.weight {
            Lying::Here(weight) => weight.clone(),
            Lying::Waiting(waiting) => {
                let Waiting {
                    values,
                    device,
                    sent,
                } = &**waiting;
                sent.fetch_add(values.bytes(), Ordering::Relaxed);
                Arc::new(values.clone().into_device(device))
            }
        }
    }
}

/// `x·W`, without the bias: whatever comes next adds that on its way.
pub fn product<const D: usize>(layer: &Affine, x: Tensor<D>) -> Tensor<D> {
    match &*layer.weight() {
        Weight::Whole(weight) => kernels::product(x, weight.clone()),
        Weight::Rounded(weight) => kernels::rounded_product(x, weight.clone()),
        Weight::Half(weight) => kernels::half_product(x, weight.clone()),
        Weight::Quantised(matrix) => kernels::quantised_product(x, matrix),
        Weight::Bf16(matrix) => kernels::bf16_product(x, matrix),
    }
}

/// `x·W + b`.
pub fn affine<const D: usize>(layer: &Affine, x: Tensor<D>) -> Tensor<D> {
    add_bias(product(layer, x), bias(layer))
}

/// A layer's bias, `[outputs]`.
pub fn bias(layer: &Affine) -> Tensor<1> {
    layer.bias.clone()
}

/// The two-layer embedding of sinusoidal features, `[n, dim]` for `[n, 256]`.
pub fn embed_features(first: &Affine, second: &Affine, features: Tensor<2>) -> Tensor<2> {
    affine(second, silu(affine(first, features)))
}

/// Sinusoidal features, `[values.len(), 256]` row-major: cosines, then sines of frequencies `10000^(−i/(128 − shift))`.
///
/// In f32 throughout, since that is what the networks were trained with.
pub fn sinusoidal_features(values: &[f32], shift: usize) -> Vec<f32> {
    let half = TIMESTEP_CHANNELS / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(10000f64.ln() as f32) * i as f32 / (half - shift) as f32).exp())
        .collect();
    let mut out = Vec::with_capacity(values.len() * TIMESTEP_CHANNELS);
    for t in values {
        out.extend(frequencies.iter().map(|f| (t * f).cos()));
        out.extend(frequencies.iter().map(|f| (t * f).sin()));
    }
    out
}

/// The same on a device, `[values.len(), 256]`.
pub fn features_on(values: &[f32], shift: usize, device: &Device) -> Tensor<2> {
    let features = sinusoidal_features(values, shift);
    Tensor::from_data(
        TensorData::new(features, [values.len(), TIMESTEP_CHANNELS]),
        device,
    )
}

/// Fixed 2-D sine-cosine position embedding, `[rows · columns, dim]` row-major, of tokens that lie `[down, across]` apart.
///
/// The first half of a token's vector encodes its column, the second its row, each as sines then
/// cosines of frequencies `10000^(−i/(dim/4))`, as in the DiT release.
pub fn sincos_positions(
    [rows, columns]: [usize; 2],
    dim: usize,
    [down, across]: [f64; 2],
) -> Vec<f32> {
    let quarter = dim / 4;
    let mut out = Vec::with_capacity(rows * columns * dim);
    for row in 0..rows {
        for column in 0..columns {
            for position in [column as f64 * across, row as f64 * down] {
                let angle = |i: usize| position / 10000f64.powf(i as f64 / quarter as f64);
                out.extend((0..quarter).map(|i| angle(i).sin() as f32));
                out.extend((0..quarter).map(|i| angle(i).cos() as f32));
            }
        }
    }
    out
}
