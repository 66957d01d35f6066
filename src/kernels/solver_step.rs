//! From the network's last layer to the next state in one pass: unpatchify, guidance and a DDIM step with eta 0.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::Tensor;

use super::{
    lanes::for_rows_of_two,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};

/// The shape of the last layer's output, and the numbers of one DDIM step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DdimStep {
    /// Side of a patch.
    pub patch: usize,
    /// Channels of the network's output: `C`, or `2C` with learned sigma.
    pub out_channels: usize,
    /// Channels that guidance replaces; 0 without guidance.
    pub guided: usize,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// Clip the predicted `x_0` to [-1, 1] and recompute epsilon from it.
    pub clip_x0: bool,
    /// `ᾱ` of this step.
    pub alpha_bar: f64,
    /// `ᾱ` of the next.
    pub alpha_bar_prev: f64,
}

impl DdimStep {
    /// `√ᾱ, √(1−ᾱ)` of this step, then of the next.
    fn coefficients(&self) -> [f64; 4] {
        let of = |alpha_bar: f64| [alpha_bar.sqrt(), (1.0 - alpha_bar).max(0.0).sqrt()];
        let ([signal, spread], [next_signal, next_spread]) =
            (of(self.alpha_bar), of(self.alpha_bar_prev));
        [signal, spread, next_signal, next_spread]
    }
}

/// `x_{t−1}` and the predicted `x_0`, both `[B, C, H, W]`.
///
/// - `x`: the state `[B, C, H, W]`
/// - `patches`: the last layer's output before its bias `[out_channels·patch²]`, `[B, tokens, out_channels·patch²]`, or with
///   guidance `[2B, …]`, the conditional half first
///
/// For tensors without gradients on a device that runs the shaders or on the CPU.
pub fn solver_step(
    x: Tensor<4>,
    patches: Tensor<3>,
    bias: Tensor<1>,
    step: DdimStep,
) -> (Tensor<4>, Tensor<4>) {
    let (next, x0) = <Dispatch as SamplingKernels>::solver_step(
        x.into_dispatch(),
        patches.into_dispatch(),
        bias.into_dispatch(),
        step,
    );
    (Tensor::from_dispatch(next), Tensor::from_dispatch(x0))
}

pub(super) fn solver_step_wgsl(
    x: CubeTensor,
    patches: CubeTensor,
    bias: CubeTensor,
    step: DdimStep,
) -> (CubeTensor, CubeTensor) {
    let [x, patches, bias] = [x, patches, bias].map(into_contiguous);
    let shape = x.meta.shape().clone();
    let count = shape.num_elements();
    let (next, x0) = (wgsl::empty_like(&x), wgsl::empty_like(&x));
    let shader = Shader::flat(
        "solver_step",
        include_str!("../../shaders/solver_step.wgsl"),
    );
    let info = Info::of(&[count, shape[1], shape[2], shape[3], step.patch])
        .with(&[step.out_channels, step.guided, usize::from(step.clip_x0)])
        .with_f32(&[step.guidance])
        .with_f32(&step.coefficients());
    wgsl::launch_flat(shader, count, &[&x, &patches, &bias, &next, &x0], info);
    (next, x0)
}

/// The CPU twin; `shape` is `x`'s.
pub(super) fn solver_step_cpu(
    [images, channels, height, width]: [usize; 4],
    x: &[f32],
    patches: &[f32],
    bias: &[f32],
    step: DdimStep,
    next: &mut [f32],
    x0: &mut [f32],
) {
    let [signal, spread, next_signal, next_spread] = step.coefficients().map(|c| c as f32);
    let (p, columns) = (step.patch, width / step.patch);
    let tokens = columns * (height / p);
    let outputs = p * p * step.out_channels;
    let guidance = step.guidance as f32;
    for_rows_of_two(x0, next, width, |first, x0, next| {
        let rows = x0.chunks_exact_mut(width).zip(next.chunks_exact_mut(width));
        for (line, (x0, next)) in rows.enumerate() {
            let line = first + line;
            let (row, channel) = (line % height, line / height % channels);
            let image = line / height / channels;
            for column in 0..width {
                let token = row / p * columns + column / p;
                let output = (row % p * p + column % p) * step.out_channels + channel;
                let at = |image: usize| patches[(image * tokens + token) * outputs + output];
                let mut epsilon = at(image) + bias[output];
                if channel < step.guided {
                    let unconditional = at(images + image) + bias[output];
                    epsilon = unconditional + (epsilon - unconditional) * guidance;
                }
                let x = x[line * width + column];
                let mut clean = (x - epsilon * spread) / signal;
                if step.clip_x0 {
                    clean = clean.clamp(-1.0, 1.0);
                    epsilon = (x - clean * signal) / spread;
                }
                x0[column] = clean;
                next[column] = clean * next_signal + epsilon * next_spread;
            }
        }
    });
}
