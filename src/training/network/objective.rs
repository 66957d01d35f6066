//! What is minimised: the error of the predicted noise, and the variational bound for the learned variance.
//!
//! As the public DiT release trains (`create_diffusion` with learned sigma, `LossType.MSE`), which follows Improved
//! DDPM (arXiv 2102.09672): a timestep `t` is drawn uniformly from 0…999, `x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε`, and the network
//! predicts `(ε̂, v)`. An image's loss is `mse + vlb_weight·vlb`, the batch's its mean:
//!
//! - `mse`: the mean over all values of `(ε̂ − ε)²` (DDPM, arXiv 2006.11239, eq. 14), times
//!   `min(SNR_t, γ)/SNR_t` where Min-SNR weighting is asked for (arXiv 2303.09556, eq. 6 for noise prediction);
//! - `vlb`: the term `L_t` of the variational bound in bits a value. For `t > 0` it is
//!   `KL(q(x_{t−1}|x_t, x_0) ‖ p(x_{t−1}|x_t))` (2102.09672, eq. 5 and 6), for `t = 0` the negative log-likelihood of `x_0`
//!   under a Gaussian discretised to 256 levels (eq. 4, with the release's tanh form of the normal distribution
//!   function). The variance is `exp(f·log β_t + (1−f)·log β̃_t)` with `f = (v+1)/2` (eq. 15), `β̃_0` replaced by `β̃_1`.
//!   `ε̂` enters it detached: the bound trains the variance alone (2102.09672, section 3.1).
//!
//! With weight 1, the default, this is their `L_simple + 0.001·L_vlb`: their `L_vlb` sums 1000 terms, of which one
//! is drawn here. The release multiplies `vlb` by `num_timesteps/1000` for `RESCALED_MSE` only, and that is 1 here too.

use burn::tensor::{Device, Int, Tensor, TensorData, activation::sigmoid};

use crate::diffusion::{DiffusionError, MAX_STEPS, StepCoefficients, Trajectory};

/// A batch of images with everything that was drawn for them.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// `[C, H, W]`
    pub shape: [usize; 3],
    /// `x_0`, `[B, C, H, W]` row-major.
    pub images: Vec<f32>,
    /// `ε`, as `images`.
    pub noise: Vec<f32>,
    /// `t` of every image, 0 to 999.
    pub timesteps: Vec<usize>,
    /// The label that the network sees: the null label where it was dropped.
    pub labels: Vec<usize>,
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Images `first..first + count`.
    pub fn part(&self, first: usize, count: usize) -> Self {
        let size: usize = self.shape.iter().product();
        let values = first * size..(first + count) * size;
        Self {
            shape: self.shape,
            images: self.images[values.clone()].to_vec(),
            noise: self.noise[values].to_vec(),
            timesteps: self.timesteps[first..first + count].to_vec(),
            labels: self.labels[first..first + count].to_vec(),
        }
    }
}

/// The objective.
#[derive(Debug, Clone)]
pub struct Objective {
    /// By timestep.
    steps: Vec<StepCoefficients>,
    vlb_weight: f64,
    min_snr: Option<f64>,
}

/// A batch on its way through the network.
#[derive(Debug, Clone)]
pub(super) struct Noised {
    /// `[B, C, H, W]`
    pub x_t: Tensor<4>,
    x_0: Tensor<4>,
    noise: Tensor<4>,
    timesteps: Vec<usize>,
}

/// Sums over the images of a micro-batch, divided by the size of the whole batch; `[1]` each.
#[derive(Debug, Clone)]
pub(super) struct Losses {
    /// Mean squared error, unweighted.
    pub mse: Tensor<1>,
    /// The bound in bits a value; zero for a network without learned sigma.
    pub vlb: Tensor<1>,
    /// What is minimised.
    pub total: Tensor<1>,
}

impl Objective {
    /// # Errors
    /// [`DiffusionError`] never happens for the full schedule, but is the schedule's to say.
    pub fn new(vlb_weight: f64, min_snr: Option<f64>) -> Result<Self, DiffusionError> {
        let mut steps = Trajectory::linear(MAX_STEPS)?.steps().to_vec();
        steps.reverse();
        Ok(Self {
            steps,
            vlb_weight,
            min_snr,
        })
    }

    /// `x_t` of every image.
    pub(super) fn noise(&self, batch: &Batch, device: &Device) -> Noised {
        let [c, h, w] = batch.shape;
        let on_device = |values: &[f32]| {
            Tensor::<4>::from_data(
                TensorData::new(values.to_vec(), [batch.len(), c, h, w]),
                device,
            )
        };
        let (x_0, noise) = (on_device(&batch.images), on_device(&batch.noise));
        let signal = self.by_image(&batch.timesteps, device, |s| s.alpha_bar.sqrt());
        let spread = self.by_image(&batch.timesteps, device, |s| (1.0 - s.alpha_bar).sqrt());
        Noised {
            x_t: x_0.clone() * signal + noise.clone() * spread,
            x_0,
            noise,
            timesteps: batch.timesteps.clone(),
        }
    }

    /// The losses of tracked network output `[B, C or 2C, H, W]`; `images` is the size of the whole batch.
    pub(super) fn losses(&self, output: Tensor<4>, noised: &Noised, images: usize) -> Losses {
        let [rows, channels, height, width] = noised.x_t.dims();
        let device = output.device();
        let learned_sigma = output.dims()[1] == 2 * channels;
        let epsilon = output.clone().narrow(1, 0, channels);
        let values = channels * height * width;
        let share = 1.0 / images as f64;
        let by_image = |x: Tensor<4>| x.reshape([rows, values]).mean_dim(1);

        let (x_0, noise) = (
            noised.x_0.clone().autodiff(),
            noised.noise.clone().autodiff(),
        );

        let difference = epsilon.clone() - noise.clone();
        let errors = by_image(difference.clone() * difference);
        let mse = errors.clone().sum() * share;
        let mut total = match self.min_snr {
            None => mse.clone(),
            Some(gamma) => {
                let weight = |s: &StepCoefficients| {
                    let snr = s.alpha_bar / (1.0 - s.alpha_bar);
                    snr.min(gamma) / snr
                };
                let weights = self
                    .by_image(&noised.timesteps, &device, weight)
                    .reshape([rows, 1]);
                (errors * weights).sum() * share
            }
        };
        if !learned_sigma {
            return Losses {
                vlb: mse.zeros_like(),
                mse,
                total,
            };
        }
        let v = output.narrow(1, channels, channels);
        let error = epsilon.detach() - noise;
        let vlb = self.bound(error, v, x_0, &noised.timesteps, by_image) * share;
        total = total + vlb.clone() * self.vlb_weight;
        Losses { mse, vlb, total }
    }

    /// The bound's terms, summed over images: `[1]`; `error` is `ε̂ − ε`.
    fn bound(
        &self,
        error: Tensor<4>,
        v: Tensor<4>,
        x_0: Tensor<4>,
        timesteps: &[usize],
        by_image: impl Fn(Tensor<4>) -> Tensor<2>,
    ) -> Tensor<1> {
        let device = v.device();
        let table = |of: &dyn Fn(&StepCoefficients) -> f64| self.by_image(timesteps, &device, of);
        // How far the log variance lies above log β̃: differences of close logarithms never arise.
        let range = table(&|s| s.log_beta - s.posterior_log_variance);
        let above = (v + 1.0) * 0.5 * range;
        // Both posteriors' means are `a·x̂_0 + b·x_t` with the same b·x_t, and x_0 − x̂_0 = √(1/ᾱ − 1)·(ε̂ − ε). Their
        // difference, in deviations √β̃ of the true posterior:
        let mean_weight = |s: &StepCoefficients| {
            let of_x_0 = s.beta() * s.alpha_bar_prev.sqrt() / (1.0 - s.alpha_bar);
            of_x_0 * (1.0 / s.alpha_bar - 1.0).sqrt()
        };
        let off =
            error.clone() * table(&|s| mean_weight(s) * (-0.5 * s.posterior_log_variance).exp());
        let divergence =
            (above.clone() - 1.0 + (-above.clone()).exp() * (off.clone() * off + 1.0)) * 0.5;
        let kept = table(&|s| if s.last { 0.0 } else { 1.0 });
        let mut sum = (by_image(divergence * kept)).sum();

        let last: Vec<i32> = (0..timesteps.len() as i32)
            .filter(|i| timesteps[*i as usize] == 0)
            .collect();
        if !last.is_empty() {
            let count = last.len();
            let rows = Tensor::<1, Int>::from_data(TensorData::new(last, [count]), &device);
            let of = |x: Tensor<4>| x.select(0, rows.clone());
            // At t = 0 the mean is x̂_0 itself.
            let centred = error * table(&mean_weight);
            let log_variance = above + table(&|s| s.posterior_log_variance);
            let likelihood = log_likelihood(of(x_0), of(centred), of(log_variance) * 0.5);
            let [rows, c, h, w] = likelihood.dims();
            sum = sum - likelihood.reshape([rows, c * h * w]).mean_dim(1).sum();
        }
        sum / std::f64::consts::LN_2
    }

    /// A coefficient of every image's timestep, `[B, 1, 1, 1]`.
    fn by_image(
        &self,
        timesteps: &[usize],
        device: &Device,
        of: impl Fn(&StepCoefficients) -> f64,
    ) -> Tensor<4> {
        let values: Vec<f32> = timesteps
            .iter()
            .map(|t| of(&self.steps[*t]) as f32)
            .collect();
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count, 1, 1, 1]), device)
    }
}

/// Natural log of the probability of the 8-bit level that `x` stands for, under a Gaussian with mean
/// `x − centred` and deviation `exp(log_deviation)`; all `[B, C, H, W]`.
fn log_likelihood(x: Tensor<4>, centred: Tensor<4>, log_deviation: Tensor<4>) -> Tensor<4> {
    const HALF_LEVEL: f64 = 1.0 / 255.0;
    const SMALLEST: f64 = 1e-12;
    let inverse = (-log_deviation).exp();
    let up_to = |edge: Tensor<4>| distribution(edge * inverse.clone());
    let log = |p: Tensor<4>| p.clamp_min(SMALLEST).log();
    // A level has the probability of its mirror image, and below the mean no difference of near ones is taken.
    let below_mean = -centred.clone().abs();
    let inside = up_to(below_mean.clone() + HALF_LEVEL) - up_to(below_mean - HALF_LEVEL);
    // The lowest and highest level reach to infinity.
    let lowest = log(up_to(centred.clone() + HALF_LEVEL));
    let highest = log(up_to(-centred + HALF_LEVEL));
    log(inside)
        .mask_where(x.clone().greater_scalar(0.999), highest)
        .mask_where(x.lower_scalar(-0.999), lowest)
}

/// The normal distribution function, `½(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, which is a sigmoid of twice the argument.
fn distribution(x: Tensor<4>) -> Tensor<4> {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let cube = x.clone() * x.clone() * x.clone();
    sigmoid((x + cube * 0.044_715) * (2.0 * root))
}
