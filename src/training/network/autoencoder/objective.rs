//! What an autoencoder is trained for.
//!
//! The latents of a picture are drawn as `z = μ + σ·ε` (arXiv 1312.6114), `μ` and `log σ²` from the encoder; the loss is
//! `mean|x − x̂| + γ·Σ_s mean|∇x_s − ∇x̂_s| + α·mean(x_2 − x̂_2)² + β·KL`, with `KL = ½(μ² + σ² − 1 − log σ²)` a latent number, `x_s`
//! the picture halved `s` times and `∇` the differences between its neighbouring pixels, at full, half and quarter size: edges count
//! for what eyes make of them, where the error of pixels alone draws them soft. The squares of areas count for colours: of absolute
//! errors those of fine detail are so many more that an autoencoder learns its second axis of colour late, if ever.

use burn::tensor::{Tensor, s};

/// Where `log σ²` is cut off, as by the latent-diffusion release.
const LOG_VARIANCE: [f32; 2] = [-30.0, 20.0];
/// Sizes of the picture at which differences count.
const SIZES: usize = 3;

/// Distribution of the latents, `[B, h, w, C]` each.
#[derive(Debug)]
pub(super) struct Posterior {
    pub mean: Tensor<4>,
    log_variance: Tensor<4>,
}

impl Posterior {
    /// Of what the encoder says, `[B, h, w, 2C]`.
    pub fn of(moments: Tensor<4>) -> Self {
        let [b, h, w, twice] = moments.dims();
        let c = twice / 2;
        let [low, high] = LOG_VARIANCE;
        let part = |first: usize| {
            let part = moments.clone();
            part.slice([0..b, 0..h, 0..w, first..first + c])
        };
        Self {
            mean: part(0),
            log_variance: part(c).clamp(low, high),
        }
    }

    /// `μ + σ·ε`
    pub fn draw(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + (self.log_variance.clone() * 0.5).exp() * noise
    }

    /// The divergence to N(0, 1) a latent number, `[1]`.
    fn divergence(&self) -> Tensor<1> {
        let (mean, log_variance) = (self.mean.clone(), self.log_variance.clone());
        let terms = mean.clone() * mean + log_variance.clone().exp() - log_variance - 1.0;
        terms.mean() * 0.5
    }
}

/// Weights of the loss's terms.
#[derive(Debug, Clone, Copy)]
pub(super) struct VaeObjective {
    pub kl_weight: f64,
    pub gradient_weight: f64,
    pub area_weight: f64,
}

/// A batch's losses, `[1]` each.
#[derive(Debug)]
pub(super) struct VaeLosses {
    pub total: Tensor<1>,
    /// Mean absolute error of the pixels.
    pub error: Tensor<1>,
    /// The same of differences between neighbours, summed over the sizes.
    pub edges: Tensor<1>,
    /// Mean squared error of areas, the pictures' smallest size.
    pub areas: Tensor<1>,
    pub kl: Tensor<1>,
}

impl VaeObjective {
    /// Of pictures `[B, H, W, 3]` and what came back.
    pub fn losses(&self, x: Tensor<4>, back: Tensor<4>, posterior: &Posterior) -> VaeLosses {
        let mut difference = x - back;
        let error = difference.clone().abs().mean();
        let mut edges = Tensor::zeros([1], &difference.device());
        for size in 0..SIZES {
            if size > 0 {
                let [b, h, w, c] = difference.dims();
                if h < 4 || w < 4 || h % 2 + w % 2 > 0 {
                    break;
                }
                let cells = difference.reshape([b, h / 2, 2, w / 2, 2, c]);
                difference = cells.mean_dim(4).mean_dim(2).reshape([b, h / 2, w / 2, c]);
            }
            edges = edges + neighbours(&difference);
        }
        let areas = (difference.clone() * difference).mean();
        let kl = posterior.divergence();
        let total = error.clone()
            + edges.clone() * self.gradient_weight
            + areas.clone() * self.area_weight
            + kl.clone() * self.kl_weight;
        VaeLosses {
            total,
            error,
            edges,
            areas,
            kl,
        }
    }
}

/// Mean absolute difference between cells and those right of and below them.
fn neighbours(x: &Tensor<4>) -> Tensor<1> {
    let [_, h, w, _] = x.dims();
    if h < 2 || w < 2 {
        return Tensor::zeros([1], &x.device());
    }
    let part = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| {
        x.clone().slice(s![.., rows, columns, ..])
    };
    let across = part(0..h, 1..w) - part(0..h, 0..w - 1);
    let down = part(1..h, 0..w) - part(0..h - 1, 0..w);
    across.abs().mean() + down.abs().mean()
}
