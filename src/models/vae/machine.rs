//! What an autoencoder is run by: burn's operations on a device, or plain numbers on the CPU.

use std::fmt::Debug;

use super::layers::Padding;

/// The few operations that layers are made of. Pictures are `[H, W, C]`.
pub(super) trait Machine: Debug + Clone {
    type Picture: Clone;
    type Filter: Debug + Clone;
    type Norm: Debug + Clone;

    /// A convolution of `weight` `[kernel · kernel · inputs, outputs]`.
    fn filter(
        &self,
        weight: Vec<f32>,
        kernel: usize,
        outputs: usize,
        bias: Option<Vec<f32>>,
    ) -> Self::Filter;

    /// GroupNorm.
    fn norm(&self, groups: usize, scale: Vec<f32>, shift: Vec<f32>) -> Self::Norm;

    /// A convolution that keeps the size.
    fn same(filter: &Self::Filter, x: &Self::Picture) -> Self::Picture;

    /// One that halves it.
    fn halved(filter: &Self::Filter, x: &Self::Picture, padding: Padding) -> Self::Picture;

    /// Every cell four times.
    fn doubled(x: &Self::Picture) -> Self::Picture;

    /// GroupNorm, and SiLU where asked.
    fn normed(norm: &Self::Norm, x: &Self::Picture, silu: bool) -> Self::Picture;

    /// One head of attention over all cells.
    fn attention(
        query: &Self::Picture,
        key: &Self::Picture,
        value: &Self::Picture,
    ) -> Self::Picture;

    fn plus(x: Self::Picture, y: &Self::Picture) -> Self::Picture;

    fn relu(x: Self::Picture) -> Self::Picture;

    /// `3·tanh(x/3)`
    fn soft_clamp(x: Self::Picture) -> Self::Picture;

    /// `a·x + b`
    fn affine(x: Self::Picture, a: f32, b: f32) -> Self::Picture;
}
