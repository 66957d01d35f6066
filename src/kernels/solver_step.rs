//! From the network's last layer to the next state in one pass: unpatchify, guidance, and a step of any solver.

use burn::backend::{
    Dispatch,
    wgpu::{CubeTensor, into_contiguous},
};
use burn::tensor::Tensor;

use super::{
    Place, Route, add_bias, images_of,
    lanes::for_rows,
    route,
    sampling::SamplingKernels,
    wgsl::{self, Info, Shader},
};
use crate::diffusion::{Guidance, Step, StepNoise, Weights, solvers::PREDICTIONS};

/// How the last layer's output is to be read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutputLayout {
    /// Side of a patch.
    pub patch: usize,
    /// Channels of the network's output: `C`, or `2C` with learned sigma.
    pub out_channels: usize,
    /// Classifier-free guidance; active: the output has two halves, the conditional one first.
    pub guidance: Guidance,
}

/// What a step starts from.
#[derive(Debug, Clone)]
pub struct Before {
    /// The state `[B, C, H, W]`.
    pub x: Tensor<4>,
    /// The last layer's output before its bias, `[B, tokens, out_channels·patch²]`, or with guidance `[2B, …]`, and the bias
    /// `[out_channels·patch²]`; none where the step runs no network.
    pub output: Option<(Tensor<3>, Tensor<1>)>,
    /// Predictions of earlier steps, the newest first, `[kept·B, C, H, W]`: as many as any step of the run reads.
    pub history: Option<Tensor<4>>,
    /// N(0, 1), `[B, C, H, W]`, where the step adds noise.
    pub noise: Option<Tensor<4>>,
}

/// What a step leaves.
#[derive(Debug, Clone)]
pub struct After {
    /// `x_{s+1}`, `[B, C, H, W]`.
    pub x: Tensor<4>,
    /// What was taken for the clean image, `[B, C, H, W]`.
    pub x0: Tensor<4>,
    /// The history with this step's prediction in front.
    pub history: Option<Tensor<4>>,
}

/// Everything about a launch but the tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Launch {
    layout: OutputLayout,
    step: Step,
    runs_network: bool,
    /// Predictions that the history holds.
    kept: usize,
}

/// One step of any solver, as [`Step`] says.
///
/// For tensors without gradients.
pub fn solver_step(before: Before, layout: OutputLayout, step: &Step) -> After {
    if route(&[Place::of(&before.x)]) == Route::Composed {
        return composed(before, layout, step);
    }
    let Before {
        x,
        output,
        history,
        noise,
    } = before;
    let of_step = match (&noise, &output) {
        (None, _) => StepNoise::None,
        (_, None) => step.noise.without_network(),
        _ => step.noise,
    };
    let launch = Launch {
        layout,
        step: Step {
            noise: of_step,
            ..*step
        },
        runs_network: output.is_some(),
        kept: history.as_ref().map_or(0, |h| h.dims()[0] / x.dims()[0]),
    };
    // What is absent is stood in for by tensors that are at hand, which nobody reads.
    let (patches, bias) = output.unwrap_or_else(|| {
        let count = x.dims().iter().product();
        (x.clone().reshape([1, 1, count]), x.clone().reshape([count]))
    });
    let (next, x0, history) = <Dispatch as SamplingKernels>::solver_step(
        x.clone().into_dispatch(),
        patches.into_dispatch(),
        bias.into_dispatch(),
        history.unwrap_or_else(|| x.clone()).into_dispatch(),
        noise.unwrap_or(x).into_dispatch(),
        launch,
    );
    After {
        x: Tensor::from_dispatch(next),
        x0: Tensor::from_dispatch(x0),
        history: (launch.kept > 0).then(|| Tensor::from_dispatch(history)),
    }
}

/// The same of the network's output as images, guided already, `[B, C_out, H, W]`, by burn's own operations: what training
/// walks on with. `history`: earlier predictions, the newest first.
///
/// Returns the next state, the estimate of the clean image, and this step's prediction, if it made one.
pub fn solver_step_of_images(
    x: Tensor<4>,
    output: Option<Tensor<4>>,
    history: &[Tensor<4>],
    noise: Option<Tensor<4>>,
    step: &Step,
) -> (Tensor<4>, Tensor<4>, Option<Tensor<4>>) {
    let channels = x.dims()[1];
    let clip = |x: Tensor<4>| if step.clip { x.clamp(-1.0, 1.0) } else { x };
    let prediction = output.clone().map(|output| {
        let [state, weight] = step.predict;
        clip(x.clone() * state + output.narrow(1, 0, channels) * weight)
    });
    let newest: Vec<_> = prediction.iter().chain(history).take(PREDICTIONS).collect();
    let weighed = |weights: &Weights, terms: &[&Tensor<4>]| {
        let all = terms.iter().zip(weights.predictions);
        all.filter(|(_, weight)| *weight != 0.0)
            .fold(x.clone() * weights.state, |sum, (term, weight)| {
                sum + Tensor::clone(term) * weight
            })
    };
    let estimate = match (&newest[..], step.estimate == Weights::NEWEST) {
        // Clipped when it was predicted.
        ([first, ..], true) => Tensor::clone(first),
        _ => clip(weighed(&step.estimate, &newest)),
    };
    let mut terms = newest;
    match terms.first_mut() {
        Some(first) => *first = &estimate,
        None => terms.push(&estimate),
    }
    let mut next = weighed(&step.update, &terms);
    let of_step = match output {
        Some(_) => step.noise,
        None => step.noise.without_network(),
    };
    match (noise, of_step, output) {
        (Some(noise), StepNoise::Deviation(deviation), _) => next = next + noise * deviation,
        (Some(noise), StepNoise::Learned { log_variances }, Some(output)) => {
            let v = output.narrow(1, channels, channels);
            let [low, high] = log_variances.map(|v| 0.5 * v);
            next = next + noise * ((v + 1.0) * (0.5 * (high - low)) + low).exp();
        }
        _ => {}
    }
    (next, estimate, prediction)
}

/// The composed form of [`solver_step`].
fn composed(before: Before, layout: OutputLayout, step: &Step) -> After {
    let Before {
        x,
        output,
        history,
        noise,
    } = before;
    let [batch, channels, height, width] = x.dims();
    let output = output.map(|(patches, bias)| {
        let grid = [height, width].map(|side| side / layout.patch);
        let images = images_of(add_bias(patches, bias), grid, layout.patch);
        match layout.guidance.is_active() {
            true => layout.guidance.guide(images, channels),
            false => images,
        }
    });
    let earlier = history.map(|history| history.split(batch, 0));
    let kept = earlier.as_ref().map_or(0, Vec::len);
    let earlier = earlier.unwrap_or_default();
    let (x, x0, prediction) = solver_step_of_images(x, output, &earlier, noise, step);
    let planes: Vec<_> = prediction.into_iter().chain(earlier).take(kept).collect();
    After {
        x,
        x0,
        history: (kept > 0).then(|| Tensor::cat(planes, 0)),
    }
}

impl Launch {
    /// Whether the history is one, and not a stand-in.
    pub(super) fn keeps_history(&self) -> bool {
        self.kept > 0
    }

    /// Channels that guidance replaces.
    fn guided(&self, channels: usize) -> usize {
        match self.layout.guidance.is_active() {
            true => self.layout.guidance.guided_channels(channels),
            false => 0,
        }
    }
}

pub(super) fn solver_step_wgsl(
    [x, history, noise]: [CubeTensor; 3],
    patches: CubeTensor,
    bias: CubeTensor,
    launch: Launch,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let shape = x.meta.shape().clone();
    let (count, channels) = (shape.num_elements(), shape[1]);
    let x = into_contiguous(x);
    let (next, x0) = (wgsl::empty_like(&x), wgsl::empty_like(&x));
    // WebGPU binds no buffer twice where it may be written.
    let nothing = || wgsl::empty(&x, [1].into());
    let (patches, bias) = match launch.runs_network {
        true => (into_contiguous(patches), into_contiguous(bias)),
        false => (nothing(), nothing()),
    };
    let history = match launch.kept {
        0 => nothing(),
        _ => wgsl::owned(history),
    };
    let (kind, deviation, logarithms) = match launch.step.noise {
        StepNoise::None => (0, 0.0, [0.0; 2]),
        StepNoise::Deviation(deviation) => (1, deviation, [0.0; 2]),
        StepNoise::Learned { log_variances } => (2, 0.0, log_variances.map(|v| 0.5 * v)),
    };
    let noise = match kind {
        0 => nothing(),
        _ => into_contiguous(noise),
    };
    let shader = Shader::flat(
        "solver_step",
        include_str!("../../shaders/solver_step.wgsl"),
    );
    let (layout, step) = (&launch.layout, &launch.step);
    let all = |w: &Weights| {
        [
            w.state,
            w.predictions[0],
            w.predictions[1],
            w.predictions[2],
        ]
    };
    let info = Info::of(&[count, channels, shape[2], shape[3]])
        .with(&[layout.patch, layout.out_channels, launch.guided(channels)])
        .with(&[usize::from(launch.runs_network), launch.kept])
        .with(&[usize::from(step.clip), kind])
        .with_f32(&[layout.guidance.scale()])
        .with_f32(&step.predict)
        .with_f32(&all(&step.estimate))
        .with_f32(&all(&step.update))
        .with_f32(&[deviation])
        .with_f32(&logarithms);
    let buffers = [&x, &patches, &bias, &history, &noise, &next, &x0];
    wgsl::launch_flat(shader, count, &buffers, info);
    // Where none is kept, what comes back is the stand-in, in the shape that was promised.
    let history = match launch.kept {
        0 => x.clone(),
        _ => history,
    };
    (next, x0, history)
}

/// What the CPU twin reads.
pub(super) struct Inputs<'a> {
    pub x: &'a [f32],
    pub patches: &'a [f32],
    pub bias: &'a [f32],
    pub noise: &'a [f32],
}

/// The CPU twin; `shape` is `x`'s. Shifts `history` in place.
pub(super) fn solver_step_cpu(
    [images, channels, height, width]: [usize; 4],
    inputs: Inputs<'_>,
    history: &mut [f32],
    launch: Launch,
    next: &mut [f32],
    x0: &mut [f32],
) {
    let Inputs {
        x,
        patches,
        bias,
        noise,
    } = inputs;
    let (layout, step) = (&launch.layout, &launch.step);
    let (p, columns) = (layout.patch, width / layout.patch);
    let tokens = columns * (height / p);
    let outputs = p * p * layout.out_channels;
    // Where channel `c` of a pixel lies in the network's output of an element.
    let place = move |row: usize, column: usize, c: usize| {
        let token = row / p * columns + column / p;
        let output = (row % p * p + column % p) * layout.out_channels + c;
        (token * outputs + output, output)
    };
    let position = move |line: usize| {
        (
            line / height / channels,
            line / height % channels,
            line % height,
        )
    };
    let clip = |value: f32| {
        if step.clip {
            value.clamp(-1.0, 1.0)
        } else {
            value
        }
    };
    let (guided, guidance) = (launch.guided(channels), layout.guidance.scale() as f32);
    let [of_state, of_output] = step.predict.map(|w| w as f32);
    if launch.runs_network {
        for_rows(
            x0,
            width,
            #[inline(always)]
            |line, row_out| {
                let (image, channel, row) = position(line);
                for (column, clean) in row_out.iter_mut().enumerate() {
                    let (at, output) = place(row, column, channel);
                    let of =
                        |element: usize| patches[element * tokens * outputs + at] + bias[output];
                    let mut predicted = of(image);
                    if channel < guided {
                        let unconditional = of(images + image);
                        predicted = unconditional + (predicted - unconditional) * guidance;
                    }
                    *clean = clip(x[line * width + column] * of_state + predicted * of_output);
                }
            },
        );
    }
    let count = x.len();
    let (kept, fresh) = (launch.kept, usize::from(launch.runs_network));
    let sum = |weights: &Weights| {
        let state = weights.state as f32;
        let [a, b, c] = weights.predictions.map(|w| w as f32);
        move |x: f32, [h0, h1, h2]: [f32; PREDICTIONS]| x * state + h0 * a + h1 * b + h2 * c
    };
    let (estimate_of, update_of) = (sum(&step.estimate), sum(&step.update));
    for i in 0..count {
        let mut h = [0.0; PREDICTIONS];
        h[..fresh].fill(x0[i]);
        for (plane, h) in h[fresh..].iter_mut().take(kept).enumerate() {
            *h = history[plane * count + i];
        }
        let prediction = h[0];
        let estimate = clip(estimate_of(x[i], h));
        h[0] = estimate;
        x0[i] = estimate;
        next[i] = update_of(x[i], h)
            + match step.noise {
                StepNoise::None => 0.0,
                StepNoise::Deviation(deviation) => noise[i] * deviation as f32,
                StepNoise::Learned { log_variances } => {
                    let (image, channel, row) = position(i / width);
                    let (at, output) = place(row, i % width, channels + channel);
                    let v = patches[image * tokens * outputs + at] + bias[output];
                    let [low, high] = log_variances.map(|v| (0.5 * v) as f32);
                    noise[i] * (low + 0.5 * (v + 1.0) * (high - low)).exp()
                }
            };
        if launch.runs_network && kept > 0 {
            for plane in (1..kept).rev() {
                history[plane * count + i] = history[(plane - 1) * count + i];
            }
            history[i] = prediction;
        }
    }
}
