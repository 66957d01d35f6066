//! Model families behind one face. [`Denoiser`] is a network whose branches are callable one by one; [`walk`] is the one
//! loop over them; a [`Family`] recognises files and builds networks.
//!
//! How a feature joins the stream is data ([`Join`]), so that plans, cache and kernels know no family.

mod adaln;
mod condition;
pub mod dit;
mod family;
pub mod pixart;
#[cfg(not(target_family = "wasm"))]
pub mod text;
#[cfg(not(target_family = "wasm"))]
pub mod vae;

use std::{convert::Infallible, fmt::Debug, ops::Range, sync::Arc};

use burn::tensor::{Device, Tensor};

pub use adaln::{At, Context, Join, Partial, TextContext, Times};
pub use condition::{Condition, ConditionError, Conditioning, Picture, Prompts, TextEmbedding};
pub use family::{
    Architecture, FAMILIES, Family, Hints, Naming, POSITIONS, Parameter, Start, Supply, TensorSpec,
    family_named,
};

use crate::{
    diffusion::{Guidance, GuidedChannels, Process},
    graph::Graph,
    kernels::images_of,
    layers::NORM_EPS,
};

/// What a network draws.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latents {
    /// `C`
    pub channels: usize,
    /// `[height, width]` in pixels or latent cells.
    pub size: [usize; 2],
    /// Side of a square patch; one patch is one token.
    pub patch: usize,
    /// Channels of the network's output: `C`, or `2C` with learned sigma.
    pub out_channels: usize,
    /// What the first `C` of them are, of what noise.
    pub process: Process,
}

impl Latents {
    /// `[C, H, W]` of one image.
    pub fn shape(&self) -> [usize; 3] {
        [self.channels, self.size[0], self.size[1]]
    }

    /// Numbers of one image.
    pub fn numbers(&self) -> usize {
        self.shape().iter().product()
    }

    /// `[rows, columns]` of the token grid.
    pub fn grid(&self) -> [usize; 2] {
        self.size.map(|side| side / self.patch)
    }
}

/// What is known of a network beside its weights: pure data.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// Such as `DiT`.
    pub family: &'static str,
    /// Such as `DiT-XL/2`.
    pub name: String,
    pub graph: Graph,
    pub latents: Latents,
    pub conditioning: Conditioning,
    /// Number of weights.
    pub parameters: u64,
    /// Numbers that a pass over one image holds at a time, the cache not counted.
    pub activations: u64,
    /// The guidance that its pictures are usually drawn with, where its files name none.
    pub guidance: (f64, GuidedChannels),
}

impl Outline {
    /// The guidance that pictures are usually drawn under: the one that `said` is, otherwise the family's.
    pub fn usual_guidance(&self, said: Option<Guidance>) -> Guidance {
        let (scale, channels) = self.guidance;
        let of_family = || Guidance::new(scale, channels).unwrap_or_default();
        said.unwrap_or_else(of_family)
    }
}

/// A network that predicts noise, its branches callable one by one.
///
/// Shapes: a batch has `B` elements (two an image under guidance, the conditional half first), a stream is
/// `[B, tokens, dim]`.
pub trait Denoiser: Debug + Send + Sync {
    /// What is known of it beside its weights.
    fn outline(&self) -> &Outline;

    /// The device its weights live on.
    fn device(&self) -> Device;

    /// What stands for no condition in classifier-free guidance, where the network brings that itself.
    fn null(&self) -> Option<Condition>;

    /// What depends on the conditions alone, for a batch of `elements`: those beyond the conditions share the last.
    ///
    /// Conditions have passed [`Conditioning::check`].
    fn context(&self, conditions: &[Condition], elements: usize) -> Context;

    /// What depends on timesteps and conditions: adaLN vectors. Many steps at once read every adaLN weight once.
    fn prepare(&self, times: Times<'_>, context: &Context) -> At;

    /// Numbers of adaLN vectors that a step of so many conditions takes, and of the weights that make them.
    fn prepared_numbers(&self, conditions: usize) -> [usize; 2];

    /// Images `[B, C, H, W]` as tokens with positions, `copies` times one after another: `[copies·B, tokens, dim]`.
    fn begin(&self, x: Tensor<4>, copies: usize) -> Tensor<3>;

    /// The feature of a branch, before its gate and the residual add.
    fn compute(&self, site: usize, x: Tensor<3>, at: &At) -> Partial;

    /// The stream as the first branch takes it, normed, scaled and shifted, `[B, tokens, dim]`.
    fn modulated(&self, x: Tensor<3>, at: &At) -> Tensor<3> {
        at.modulated(x, 0, 0, NORM_EPS)
    }

    /// How a branch's feature joins the stream.
    fn join(&self, site: usize, at: &At) -> Join;

    /// Tokens after the last block as patches of the output, `[B, tokens, p²·C_out]`, channels fastest.
    fn end(&self, x: Tensor<3>, at: &At) -> Partial;
}

/// A network, shared.
pub type Model = Arc<dyn Denoiser>;

/// The branches of `sites` in execution order: `x` `[B, tokens, dim]` after them, where `feature(site, x)` says what each
/// adds to it, computed or not. Every pass through a network that no plan rules is a walk.
///
/// # Errors
/// Those of `feature`, which end it.
pub fn walk<E>(
    model: &dyn Denoiser,
    mut sites: Range<usize>,
    x: Tensor<3>,
    at: &At,
    mut feature: impl FnMut(usize, &Tensor<3>) -> Result<Partial, E>,
) -> Result<Tensor<3>, E> {
    sites.try_fold(x, |x, site| {
        let partial = feature(site, &x)?;
        Ok(model.join(site, at).add(x, partial))
    })
}

/// The network's output `[B, C_out, H, W]` of tokens after the last block.
pub fn output(model: &dyn Denoiser, x: Tensor<3>, at: &At) -> Tensor<4> {
    let latents = model.outline().latents;
    images_of(model.end(x, at).whole(), latents.grid(), latents.patch)
}

/// The network's output `[B, C_out, H, W]` for `x` `[B, C, H, W]`, a timestep and a condition an image.
pub fn forward(
    model: &dyn Denoiser,
    x: Tensor<4>,
    timesteps: &[f32],
    conditions: &[Condition],
) -> Tensor<4> {
    let context = model.context(conditions, conditions.len());
    let at = model.prepare(Times::Each(timesteps), &context);
    let sites = 0..model.outline().graph.branches();
    let tokens = model.begin(x, 1);
    let Ok(x) = walk(model, sites, tokens, &at, |site, x| {
        Ok::<_, Infallible>(model.compute(site, x.clone(), &at))
    });
    output(model, x, &at)
}
