//! What a step knows beside `x`: adaLN vectors where they lie, text to attend to, and how features join the stream.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::Picture;
use crate::kernels::{VectorAt, add_bias, gated_residual, modulate};

/// The timesteps of a preparation.
#[derive(Debug, Clone, Copy)]
pub enum Times<'a> {
    /// One pass: a timestep a condition.
    Each(&'a [f32]),
    /// Many steps: all conditions at each. [`At::step`] picks one.
    Steps(&'a [f32]),
}

impl Times<'_> {
    /// A timestep for each of so many conditions, step by step.
    pub fn by_row(&self, conditions: usize) -> Vec<f32> {
        match self {
            Self::Each(times) => times.to_vec(),
            Self::Steps(times) => times
                .iter()
                .flat_map(|t| std::iter::repeat_n(*t, conditions))
                .collect(),
        }
    }
}

/// What depends on the conditions alone and is computed once a run.
#[derive(Debug, Clone)]
pub struct Context {
    /// Labels, where conditions are classes.
    pub labels: Vec<usize>,
    /// Pictures that conditions are asked for, where the network is told.
    pub pictures: Vec<Picture>,
    /// Number of conditions.
    pub conditions: usize,
    /// Text to attend to, where conditions are texts.
    pub text: Option<Arc<TextContext>>,
}

/// Keys and values of the texts, of every block.
#[derive(Debug)]
pub struct TextContext {
    /// A block each, `[elements, text tokens, 2·dim]`: keys, then values.
    pub keys_values: Vec<Tensor<3>>,
    /// `[elements, 1, 1, text tokens]`: 0 where a token counts, far below elsewhere.
    pub bias: Tensor<4>,
}

/// Everything of a pass that does not depend on `x`, of one step or of many.
///
/// Elements of a batch beyond the rows of a step share its last row, as the unconditional half of a guided batch does.
#[derive(Debug, Clone)]
pub struct At {
    /// `[blocks, rows, 6·dim]` of all blocks, or `[1, rows, 6·dim]` a block: shift, scale, gate of attention, then of the MLP.
    slabs: Vec<Tensor<3>>,
    /// `[1, rows, 2·dim]`: shift and scale of the last layer.
    last: Tensor<3>,
    /// First row of the step at hand, and rows of a step.
    row: usize,
    rows: usize,
    text: Option<Arc<TextContext>>,
}

impl At {
    /// Vectors of steps that have `rows` rows each.
    pub fn new(slabs: Vec<Tensor<3>>, last: Tensor<3>, rows: usize) -> Self {
        Self {
            slabs,
            last,
            row: 0,
            rows,
            text: None,
        }
    }

    /// The same with text to attend to.
    pub fn with_text(self, text: Option<Arc<TextContext>>) -> Self {
        Self { text, ..self }
    }

    /// The vectors of step `step` of [`Times::Steps`].
    pub fn step(&self, step: usize) -> Self {
        Self {
            row: step * self.rows,
            ..self.clone()
        }
    }

    /// The texts' keys and values.
    pub fn text(&self) -> Option<&TextContext> {
        self.text.as_deref()
    }

    /// Vector number `vector` (of six) of block `block`.
    fn vector(&self, block: usize, vector: usize) -> (&Tensor<3>, VectorAt) {
        let (slab, block) = match self.slabs.as_slice() {
            [all] => (all, block),
            each => (&each[block], 0),
        };
        let [_, rows, width] = slab.dims();
        let at = VectorAt {
            start: (block * rows + self.row) * width + vector * (width / 6),
            stride: width,
            count: self.rows,
        };
        (slab, at)
    }

    /// `LN(x)·(1 + scale) + shift` with vectors `first` (shift) and `first + 1` (scale) of a block; `[B, tokens, dim]`.
    pub fn modulated(&self, x: Tensor<3>, block: usize, first: usize, eps: f64) -> Tensor<3> {
        let ((slab, shift), (_, scale)) =
            (self.vector(block, first), self.vector(block, first + 1));
        modulate(x, slab, shift, scale, eps)
    }

    /// The same with those of the last layer.
    pub fn modulated_last(&self, x: Tensor<3>, eps: f64) -> Tensor<3> {
        let dim = x.dims()[2];
        let at = |part: usize| VectorAt {
            start: self.row * 2 * dim + part * dim,
            stride: 2 * dim,
            count: self.rows,
        };
        modulate(x, &self.last, at(0), at(1), eps)
    }

    /// Joins the stream under vector `vector` of a block.
    pub fn join(&self, block: usize, vector: usize) -> Join {
        let (slab, gate) = self.vector(block, vector);
        Join {
            slab: slab.clone(),
            gate,
        }
    }
}

/// How a branch's feature joins the residual stream: `x + gate ⊙ feature`. A branch without a gate has one of ones.
#[derive(Debug, Clone)]
pub struct Join {
    /// `[blocks, rows, width]`: what holds the gates of this and of neighbouring branches.
    pub slab: Tensor<3>,
    /// Where the gates are in it.
    pub gate: VectorAt,
}

impl Join {
    /// That of what joins streams like `x` `[B, tokens, dim]` as it is.
    pub fn ungated(x: &Tensor<3>) -> Self {
        let dim = x.dims()[2];
        Self {
            slab: Tensor::ones([1, 1, dim], &x.device()),
            gate: VectorAt {
                start: 0,
                stride: dim,
                count: 1,
            },
        }
    }

    /// `x + gate ⊙ feature`, `[B, tokens, dim]`.
    pub fn add(&self, x: Tensor<3>, partial: Partial) -> Tensor<3> {
        gated_residual(x, &self.slab, self.gate, partial.feature, partial.bias)
    }
}

/// A feature, maybe before the bias of its last layer, which is added where the feature is used anyway.
#[derive(Debug, Clone)]
pub struct Partial {
    /// `[B, tokens, dim]`
    pub feature: Tensor<3>,
    /// `[dim]`
    pub bias: Option<Tensor<1>>,
}

impl Partial {
    /// Feature and bias apart, a bias of zeros where there is none.
    pub fn apart(self) -> (Tensor<3>, Tensor<1>) {
        let Self { feature, bias } = self;
        let bias = bias.unwrap_or_else(|| Tensor::zeros([feature.dims()[2]], &feature.device()));
        (feature, bias)
    }

    /// The feature with its bias.
    pub fn whole(self) -> Tensor<3> {
        match self.bias {
            Some(bias) => add_bias(self.feature, bias),
            None => self.feature,
        }
    }
}

impl From<Tensor<3>> for Partial {
    fn from(feature: Tensor<3>) -> Self {
        Self {
            feature,
            bias: None,
        }
    }
}
