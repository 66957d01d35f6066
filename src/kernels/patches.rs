//! Images as rows of patches, and back.

use burn::tensor::Tensor;

/// Images `[B, C, H, W]` as rows of patches, `[B, tokens, C·p²]`.
pub fn patches_of(x: Tensor<4>, patch: usize) -> Tensor<3> {
    let [batch, channels, height, width] = x.dims();
    let (rows, columns) = (height / patch, width / patch);
    x.reshape([batch, channels, rows, patch, columns, patch])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch, rows * columns, channels * patch * patch])
}

/// Rows of output patches `[B, tokens, p²·C]` as images `[B, C, H, W]` of `[rows, columns]` patches.
pub fn images_of(patches: Tensor<3>, [rows, columns]: [usize; 2], patch: usize) -> Tensor<4> {
    let [batch, _, numbers] = patches.dims();
    let channels = numbers / (patch * patch);
    patches
        .reshape([batch, rows, columns, patch, patch, channels])
        .permute([0, 5, 1, 3, 2, 4])
        .reshape([batch, channels, rows * patch, columns * patch])
}
